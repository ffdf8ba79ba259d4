//! A machine that comes from elsewhere: its memory as it arrives.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use boot::layout::RamLayout;
use virtio::memory::MemoryOwner;
use vm_memory::{Bytes, GuestAddress};

use super::StartError;
use super::boot_once::{guest_ram, ranges};
use crate::kvm::PAGE;
use crate::kvm::memory::{GuestRam, Placement};
use crate::spec::Spec;

/// Memory that arrives. Offsets are those of a file that has its ranges one behind the other.
#[derive(Debug)]
pub(crate) struct Incoming(pub(super) Arc<GuestRam>);

impl Incoming {
    /// For the machine that `spec` describes; nothing in it takes memory before it is written.
    pub(crate) fn new(spec: &Spec) -> Result<Self, StartError> {
        let layout = RamLayout::new(spec.mem().bytes());
        Ok(Incoming(Arc::new(guest_ram(spec, &ranges(&layout))?)))
    }

    /// These bytes are at this offset.
    pub(crate) fn data(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        for Placement { guest, len, .. } in self.places(offset, bytes.len() as u64)? {
            let split = usize::try_from(len).ok().and_then(|len| rest.split_at_checked(len));
            let (now, behind) = split.ok_or(io::ErrorKind::InvalidData)?;
            self.0.memory().write_slice(now, GuestAddress(guest)).map_err(io::Error::other)?;
            rest = behind;
        }
        Ok(())
    }

    /// So many zeros are at this offset. Whole pages of them take no memory, and the time of that: a few bytes of the stream say it.
    pub(crate) fn zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        let part = |at: Range<u64>| {
            let len = usize::try_from(at.end.saturating_sub(at.start)).unwrap_or(usize::MAX);
            // Less than a page.
            let zeros = ZEROS.get(..len).ok_or(io::ErrorKind::InvalidInput)?;
            self.0.memory().write_slice(zeros, GuestAddress(at.start)).map_err(io::Error::other)
        };
        for Placement { guest, len, .. } in self.places(offset, len)? {
            let end = guest + len;
            let first = guest.next_multiple_of(PAGE).min(end);
            let last = (end & !(PAGE - 1)).max(first);
            part(guest..first)?;
            self.0.discard(GuestAddress(first), last - first)?;
            part(last..end)?;
        }
        Ok(())
    }

    fn places(&self, offset: u64, len: u64) -> io::Result<Vec<Placement>> {
        if offset.checked_add(len).is_none_or(|end| end > self.0.size()) {
            let what =
                format!("{len} bytes at {offset} are beyond the machine's memory of {} bytes", self.0.size());
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(self.0.place(offset, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::MemBacking;

    #[test]
    fn memory_arrives_where_it_belongs_and_nowhere_else() {
        let spec = Spec::new("vmlinuz").with_mem("4".parse().unwrap());
        let incoming = Incoming::new(&spec).unwrap();
        incoming.data(0x1000, &[7; 0x2000]).unwrap();
        incoming.zeros(0x2000, 0x800).unwrap();
        incoming.data(0x10ffe, &[7; 0x2004]).unwrap();
        incoming.zeros(0x10fff, 0x2002).unwrap();
        let byte = |at: u64| incoming.0.memory().read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!([0xfff, 0x1000, 0x1fff, 0x2000, 0x27ff, 0x2800, 0x3000].map(byte), [0, 7, 7, 0, 0, 7, 0]);
        let ends = [0x10ffe, 0x10fff, 0x11000, 0x12fff, 0x13000, 0x13001];
        assert_eq!(ends.map(byte), [7, 0, 0, 0, 0, 7]);
        let size = 4 << 20;
        incoming.data(size - 1, &[1]).unwrap();
        for (offset, len) in [(size, 1), (size - 1, 2), (u64::MAX, 1), (u64::MAX, u64::MAX), (0, u64::MAX)] {
            assert!(incoming.zeros(offset, len).is_err(), "{offset} {len}");
        }
        assert!(incoming.data(size - 1, &[1, 2]).is_err() && incoming.data(u64::MAX, &[1]).is_err());
    }

    #[test]
    fn zeros_take_no_memory() {
        // Of a memfd it is known what is used.
        let spec = Spec::new("vmlinuz").with_mem("1G".parse().unwrap()).with_mem_backing(MemBacking::Memfd);
        let incoming = Incoming::new(&spec).unwrap();
        incoming.data(0x5000, &[7; 0x3000]).unwrap();
        let used = || incoming.0.used().unwrap().iter().map(|(_, len)| len).sum::<u64>();
        assert!(used() > 0);
        incoming.zeros(0, 1 << 30).unwrap();
        assert_eq!(used(), 0);
    }
}
