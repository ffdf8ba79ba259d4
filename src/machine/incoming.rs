//! A machine that comes from elsewhere: its memory as it arrives.

use std::io;
use std::sync::Arc;

use boot::layout::RamLayout;
use vm_memory::{Bytes, GuestAddress};

use super::StartError;
use super::boot_once::{guest_ram, ranges};
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

    /// So many zeros are at this offset.
    pub(crate) fn zeros(&self, offset: u64, len: u64) -> io::Result<()> {
        const PIECE: usize = 64 << 10;
        static ZEROS: [u8; PIECE] = [0; PIECE];
        // All of them are in the memory.
        self.places(offset, len)?;
        for at in (0..len).step_by(PIECE) {
            let now = usize::try_from(len - at).map_or(PIECE, |left| left.min(PIECE));
            self.data(offset + at, ZEROS.get(..now).unwrap_or_default())?;
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

    #[test]
    fn memory_arrives_where_it_belongs_and_nowhere_else() {
        let spec = Spec::new("vmlinuz").with_mem("4".parse().unwrap());
        let incoming = Incoming::new(&spec).unwrap();
        incoming.data(0x1000, &[7; 0x2000]).unwrap();
        incoming.zeros(0x2000, 0x800).unwrap();
        let byte = |at: u64| incoming.0.memory().read_obj::<u8>(GuestAddress(at)).unwrap();
        assert_eq!([0xfff, 0x1000, 0x1fff, 0x2000, 0x27ff, 0x2800, 0x3000].map(byte), [0, 7, 7, 0, 0, 7, 0]);
        let size = 4 << 20;
        incoming.data(size - 1, &[1]).unwrap();
        for (offset, len) in [(size, 1), (size - 1, 2), (u64::MAX, 1), (u64::MAX, u64::MAX), (0, u64::MAX)] {
            assert!(incoming.zeros(offset, len).is_err(), "{offset} {len}");
        }
        assert!(incoming.data(size - 1, &[1, 2]).is_err() && incoming.data(u64::MAX, &[1]).is_err());
    }
}
