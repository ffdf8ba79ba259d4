//! Guest RAM: one mapping, aligned to 2 MiB and open to huge pages; anonymous, of a memfd where that is asked for, or of the file that
//! holds a saved machine's memory.
//!
//! The alignment is the largest single effect on a boot: with it some 50 page-fault exits until /init, without it
//! over 20,000, because KVM can map a huge page into the guest only where host and guest addresses agree modulo 2 MiB.

mod contents;
mod mapping;
mod touched;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio::dirty;
use virtio::memory::{Memory, MemoryOwner, Regions};
use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

pub(crate) use contents::{MemoryLayout, Placement, extents, is_zeros, parts};
use mapping::{Backing, Mapping, RAM_ADVICE};
pub(crate) use touched::read_ahead;

/// Bytes of a huge page.
const HUGE_PAGE: usize = 2 << 20;
const PAGE: usize = 4096;

/// One region of guest memory as KVM is told of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) guest: u64,
    pub(crate) host: u64,
    pub(crate) len: u64,
    pub(crate) read_only: bool,
}

/// Guest memory that is backed by host memory: RAM, or the read-only page of a device.
#[derive(Debug)]
pub(crate) struct GuestRam {
    // Before `mapping`: the regions point into it.
    regions: Regions,
    mapping: Mapping,
    read_only: bool,
    /// The memfd that is mapped, if one is.
    file: Option<File>,
    /// What is mapped of a saved machine's memory, if it is.
    saved: Option<SavedParts>,
}

/// Offsets and bytes in the mapping, in ascending order, of what shows the contents of a file.
#[derive(Debug)]
struct SavedParts {
    parts: Vec<(u64, u64)>,
    /// Ranges of them that were given back, each of which may have made two mappings out of one.
    replaced: AtomicU32,
}

impl SavedParts {
    /// A process has some 65,000 mappings (/proc/sys/vm/max_map_count), and a guest that gives back single pages would take all.
    const MOST_REPLACED: u32 = 16 << 10;

    fn touches(&self, offset: u64, len: u64) -> bool {
        let next = self.parts.partition_point(|(start, bytes)| start + bytes <= offset);
        self.parts.get(next).is_some_and(|(start, _)| *start < offset + len)
    }
}

impl GuestRam {
    /// RAM at `ranges` (guest address, bytes), all from one mapping in that order.
    pub(crate) fn new(ranges: &[(u64, u64)]) -> io::Result<Self> {
        Self::ram(ranges, Backing::Anonymous)
    }

    /// As [`GuestRam::new`], in a memfd.
    pub(crate) fn in_memfd(ranges: &[(u64, u64)]) -> io::Result<Self> {
        let len = ranges.iter().try_fold(0u64, |sum, (_, len)| sum.checked_add(*len));
        let file = sealed_memfd(c"minivmm-ram", len.ok_or(io::ErrorKind::OutOfMemory)?)?;
        Self::ram(ranges, Backing::Memfd(file))
    }

    /// As [`GuestRam::new`], with the contents of `file`, which holds a saved machine's memory. It is mapped: each page is read when it is
    /// touched, and machines that are made from one file share what none of them writes. Nothing is written to the file, and
    /// nobody may write to it or make it shorter for as long as this lives. `parts` are what [`parts`] gives for it.
    pub(crate) fn mapped(ranges: &[(u64, u64)], file: &File, parts: Vec<(u64, u64)>) -> io::Result<Self> {
        let ram = Self::ram(ranges, Backing::PartsOf(file, &parts))?;
        Ok(GuestRam { saved: Some(SavedParts { parts, replaced: AtomicU32::new(0) }), ..ram })
    }

    fn ram(ranges: &[(u64, u64)], backing: Backing<'_>) -> io::Result<Self> {
        let ram = Self::map(ranges, false, backing)?;
        ram.mapping.advise(0..ram.mapping.len, &RAM_ADVICE);
        Ok(ram)
    }

    /// Has the host keep pages of it once that are equal to pages of other guests (KSM). Of memory that shows a file those are merged that
    /// were written; the others are shared already.
    ///
    /// # Errors
    /// A kernel without KSM.
    pub(crate) fn merge(&mut self) -> io::Result<()> {
        self.mapping.merge()
    }

    /// Memory that the guest may only read, and that is written from this side. It begins as copies, each of `unit` bytes (whole
    /// pages), that hold `words` at their offsets and zeros; what is not written takes the host no more memory than one copy.
    pub(crate) fn read_only(guest: u64, len: u64, unit: u64, words: &[(u64, [u8; 4])]) -> io::Result<Self> {
        let ranges = [(guest, len)];
        let step = usize::try_from(unit).map_err(|_| io::ErrorKind::OutOfMemory)?;
        if let Ok(file) = memfd_with(unit, words) {
            return Self::map(&ranges, true, Backing::CopiesOf(&file, step));
        }
        // `ulimit -f` counts for a memfd, too. Without one, all pages with words are this process's own.
        let ram = Self::map(&ranges, true, Backing::Anonymous)?;
        for begin in (0..len).step_by(step.max(1)) {
            for (offset, word) in words {
                let at = GuestAddress(guest.saturating_add(begin).saturating_add(*offset));
                ram.regions.write_slice(word, at).map_err(io::Error::other)?;
            }
        }
        Ok(ram)
    }

    fn map(ranges: &[(u64, u64)], read_only: bool, backing: Backing<'_>) -> io::Result<Self> {
        let mut total = 0usize;
        for (_, len) in ranges {
            let len = usize::try_from(*len).map_err(|_| io::ErrorKind::OutOfMemory)?;
            total = total.checked_add(len).ok_or(io::ErrorKind::OutOfMemory)?;
        }
        let mapping = Mapping::new(total, &backing)?;
        // A fork of an embedder would copy all page tables of the guest and write-protect its memory.
        mapping.advise(0..total, &[libc::MADV_DONTFORK]);
        let file = if let Backing::Memfd(file) = backing { Some(file) } else { None };
        let flags = if file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
        let mut regions = Vec::with_capacity(ranges.len());
        let mut offset = 0usize;
        for (guest, len) in ranges {
            let len = usize::try_from(*len).map_err(|_| io::ErrorKind::OutOfMemory)?;
            // SAFETY: `offset + len <= total`, checked by construction of `total`.
            let host = unsafe { mapping.start.as_ptr().add(offset) };
            // SAFETY: the range lies in `mapping`, which lives as long as the regions: both are fields of one value,
            // and nothing hands out the regions by value.
            let region =
                unsafe { MmapRegion::build_raw(host, len, libc::PROT_READ | libc::PROT_WRITE, flags) }
                    .map_err(io::Error::other)?;
            regions
                .push(GuestRegionMmap::new(region, GuestAddress(*guest)).ok_or(io::ErrorKind::InvalidInput)?);
            offset += len;
        }
        let regions = Regions::from_regions(regions).map_err(io::Error::other)?;
        Ok(GuestRam { regions, mapping, read_only, file, saved: None })
    }

    /// The memory with its checked, volatile accessors.
    pub(crate) fn memory(&self) -> &Regions {
        &self.regions
    }

    /// A handle for devices, which keeps it mapped.
    pub(crate) fn handle(self: &Arc<Self>) -> Memory {
        Memory::new(self.regions.clone(), self.clone())
    }

    /// The slots to register.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.regions.iter().map(|region| Slot {
            guest: region.start_addr().0,
            host: region.as_ptr() as u64,
            len: region.len(),
            read_only: self.read_only,
        })
    }

    /// Bytes of it.
    pub(crate) fn size(&self) -> u64 {
        self.mapping.len as u64
    }

    /// Has writes of this process marked from now on, or no longer; those of the guest are KVM's to log.
    pub(crate) fn log_dirty(&self, on: bool) {
        dirty::set_on(&self.regions, on);
    }

    /// Calls `page` with the guest address of each page that this process has written since the last call.
    pub(crate) fn take_dirty(&self, page: impl FnMut(u64)) {
        dirty::take(&self.regions, page);
    }

    /// Bytes of its GiB number `part` that the host has given so far and not taken back (mincore(2)); `None` behind its end.
    pub(crate) fn resident(&self, part: usize) -> Option<u64> {
        const PART: usize = 1 << 30;
        const CHUNK: usize = 64 << 20;
        let start = part.checked_mul(PART).filter(|start| *start < self.mapping.len)?;
        let end = start.saturating_add(PART).min(self.mapping.len);
        let mut pages = [0u8; CHUNK / PAGE];
        let mut resident = 0u64;
        for offset in (start..end).step_by(CHUNK) {
            let len = CHUNK.min(end - offset);
            // SAFETY: the range is within this mapping, which is a whole number of pages, and `pages` has a byte for each.
            let failed = unsafe {
                libc::mincore(self.mapping.start.as_ptr().add(offset).cast(), len, pages.as_mut_ptr())
            } != 0;
            if !failed {
                let here = pages.iter().take(len / PAGE).filter(|page| **page & 1 != 0).count();
                resident += (here * PAGE) as u64;
            }
        }
        Some(resident)
    }

    /// Reads `len` bytes of `file` from `offset` straight into guest memory at `guest`, without moving the file's
    /// position, so that several threads can load one file.
    pub(crate) fn load(&self, file: &File, offset: u64, guest: u64, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let slice = self.regions.get_slice(GuestAddress(guest), len).map_err(io::Error::other)?;
        if len > 0 {
            // A fault here locks this mapping alone. One in pread(2) would lock the whole address space while the host clears a huge
            // page, and the other threads' mmap(2) would wait for it.
            self.regions.write_obj(0u8, GuestAddress(guest)).map_err(io::Error::other)?;
        }
        let target = slice.ptr_guard_mut();
        let mut done = 0usize;
        while done < len {
            let at = offset.checked_add(done as u64).and_then(|at| i64::try_from(at).ok());
            let at = at.ok_or(io::ErrorKind::InvalidInput)?;
            // SAFETY: `slice` spans `len` bytes of guest memory and `done < len`; the kernel writes at most
            // `len - done` bytes there.
            let n =
                unsafe { libc::pread(file.as_raw_fd(), target.as_ptr().add(done).cast(), len - done, at) };
            match n {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n if n > 0 => done += n.unsigned_abs(),
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

/// A memfd of `len` bytes that holds `words` at their offsets, and zeros.
fn memfd_with(len: u64, words: &[(u64, [u8; 4])]) -> io::Result<File> {
    let file = sealed_memfd(c"minivmm-read-only", len)?;
    words.iter().try_for_each(|(offset, word)| file.write_all_at(word, *offset))?;
    Ok(file)
}

/// A memfd of `len` bytes that nobody can make shorter: that would be a SIGBUS for everybody who maps it.
fn sealed_memfd(name: &CStr, len: u64) -> io::Result<File> {
    let file = memfd(name)?;
    file.set_len(len)?;
    seal(&file, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL)?;
    Ok(file)
}

/// A memfd with what `write` writes, which nobody can change afterwards.
pub(crate) fn frozen_memfd(write: impl FnOnce(&File) -> io::Result<()>) -> io::Result<File> {
    let file = memfd(c"minivmm-template")?;
    write(&file)?;
    seal(&file, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL)?;
    Ok(file)
}

fn memfd(name: &CStr) -> io::Result<File> {
    // SAFETY: the name is a string with an end; what is returned is a new descriptor or an error.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn seal(file: &File, seals: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the call touches no memory of this process.
    let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    if sealed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl MemoryOwner for GuestRam {
    fn discard(&self, start: GuestAddress, len: u64) -> io::Result<()> {
        let whole = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        let slice = self.regions.get_slice(start, whole).map_err(io::Error::other)?;
        let guard = slice.ptr_guard_mut();
        let first = (guard.as_ptr() as usize).next_multiple_of(PAGE);
        let end = (guard.as_ptr() as usize + whole) & !(PAGE - 1);
        if first >= end {
            return Ok(());
        }
        let skipped = (first - guard.as_ptr() as usize) as u64;
        let done = self.zero(start.0 + skipped, first, end - first);
        // The pages read as zeros now, which is a write; marked behind it, as all writes are.
        slice.bitmap().mark_dirty(0, whole);
        done
    }
}

impl GuestRam {
    /// Has `len` bytes of whole pages read as zeros, without memory if that can be. They are at `guest`, and at `first` in the host.
    fn zero(&self, guest: u64, first: usize, len: usize) -> io::Result<()> {
        let offset = first.wrapping_sub(self.mapping.start.as_ptr() as usize);
        if let Some(saved) = self.saved.as_ref().filter(|saved| saved.touches(offset as u64, len as u64)) {
            // A page of the file that is given back would show the file again.
            if saved.replaced.fetch_add(1, Ordering::Relaxed) < SavedParts::MOST_REPLACED {
                return self.mapping.put_zeros(offset, len);
            }
            saved.replaced.fetch_sub(1, Ordering::Relaxed);
            let page = |at: usize| self.regions.write_slice(&[0; PAGE], GuestAddress(guest + at as u64));
            return (0..len).step_by(PAGE).try_for_each(page).map_err(io::Error::other);
        }
        // A memfd keeps its pages until a hole is made in it.
        let advice = if self.file.is_some() { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        // SAFETY: whole pages of this mapping, as the caller says. The guest and everybody here reach it by volatile accesses
        // only, which then read zeros.
        let done = unsafe { libc::madvise(first as *mut libc::c_void, len, advice) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn ram_is_aligned_for_huge_pages_and_split_around_the_hole() {
        let ram = GuestRam::new(&[(0, 3 << 20), (1 << 32, 5 << 20)]).unwrap();
        let slots: Vec<_> = ram.slots().collect();
        assert_eq!(slots.len(), 2);
        assert_eq!(slots[0].host % HUGE_PAGE as u64, 0);
        assert_eq!((slots[1].guest, slots[1].len), (1 << 32, 5 << 20));
    }

    #[test]
    fn a_file_shorter_than_its_headers_said_is_an_error() {
        let ram = GuestRam::new(&[(0, 2 << 20)]).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        ram.load(&file, 2, 0x1000, 8).unwrap();
        let mut text = [0u8; 8];
        ram.memory().read_slice(&mut text, GuestAddress(0x1000)).unwrap();
        assert_eq!(&text, b"23456789");
        assert_eq!(ram.load(&file, 2, 0x1000, 9).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(ram.load(&file, 0, (2 << 20) - 4, 8).is_err());
    }

    #[test]
    fn read_only_memory_begins_as_copies_that_share_pages_until_they_are_written() {
        const UNIT: u64 = 16 << 10;
        let ram =
            GuestRam::read_only(1 << 32, 1 << 20, UNIT, &[(0, [0xff; 4]), (8192, [1, 2, 3, 4])]).unwrap();
        let read = |at: u64| {
            let mut word = [9; 4];
            ram.memory().read_slice(&mut word, GuestAddress((1 << 32) + at)).unwrap();
            word
        };
        for copy in (0..1 << 20).step_by(usize::try_from(UNIT).unwrap()) {
            assert_eq!(
                [0, 4, 4096, 8192].map(|at| read(copy + at)),
                [[0xff; 4], [0; 4], [0; 4], [1, 2, 3, 4]]
            );
        }
        ram.memory().write_slice(&[7; 4], GuestAddress((1 << 32) + UNIT)).unwrap();
        assert_eq!([0, UNIT, 2 * UNIT].map(read), [[0xff; 4], [7; 4], [0xff; 4]]);
        // No page of its own but the one that was written.
        let host = ram.slots().next().unwrap().host;
        let own = |at: u64| field(&smaps(host + at), "Anonymous:").trim().to_owned();
        assert_eq!([0, UNIT, 2 * UNIT].map(own), ["0 kB", "4 kB", "0 kB"]);
    }

    #[test]
    fn memory_beyond_the_address_space_is_an_error() {
        assert!(GuestRam::new(&[(0, u64::MAX)]).is_err());
        assert!(GuestRam::new(&[(0, 1 << 60)]).is_err());
    }

    /// What /proc/self/smaps says of the mapping that holds `address`.
    fn smaps(address: u64) -> String {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let lines = text.lines().skip_while(|line| {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let ends = range.map(|(a, b)| [a, b].map(|end| u64::from_str_radix(end, 16)));
            !matches!(ends, Some([Ok(start), Ok(end)]) if (start..end).contains(&address))
        });
        lines.fold(String::new(), |text, line| text + line + "\n")
    }

    /// The rest of the first line that begins so.
    fn field<'a>(smaps: &'a str, name: &str) -> &'a str {
        smaps.lines().find_map(|line| line.strip_prefix(name)).unwrap()
    }

    /// What the host spends on the mapping that holds `address`, in KiB: all, and in huge pages.
    fn resident(address: u64) -> (u64, u64) {
        let smaps = smaps(address);
        let kib = |name| field(&smaps, name).split_whitespace().next().unwrap().parse().unwrap();
        (kib("Rss:"), kib("AnonHugePages:"))
    }

    #[test]
    fn no_part_of_guest_memory_is_copied_by_a_fork() {
        let ram = GuestRam::new(&[(0, 2 << 20), (1 << 32, 5 << 20)]).unwrap();
        let read_only = GuestRam::read_only(1 << 33, 64 << 10, 32 << 10, &[]).unwrap();
        let mut slots = 0;
        for slot in ram.slots().chain(read_only.slots()) {
            for address in [slot.host, slot.host + slot.len - 1] {
                let smaps = smaps(address);
                // "dc": do not copy area on fork (proc_pid_smaps(5)).
                assert!(field(&smaps, "VmFlags:").split_whitespace().any(|flag| flag == "dc"), "{smaps}");
            }
            slots += 1;
        }
        assert_eq!(slots, 3);
    }

    #[test]
    fn merged_memory_is_marked_whole_and_stays_so_where_pages_are_given_back() {
        let ranges = [(0, 4 << 20), (1 << 32, 4 << 20)];
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 4096], 2 << 20).unwrap();
        file.set_len(8 << 20).unwrap();
        let parts = parts(&file, 8 << 20).unwrap();
        let plain = GuestRam::new(&ranges).unwrap();
        let mut merged = [GuestRam::new(&ranges).unwrap(), GuestRam::mapped(&ranges, &file, parts).unwrap()];
        if let Err(error) = merged.iter_mut().try_for_each(GuestRam::merge) {
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "this kernel has no KSM");
            return;
        }
        let [_, mapped] = &merged;
        mapped.discard(GuestAddress(2 << 20), 4096).unwrap();
        let is_marked = |ram: &GuestRam, offset: u64| {
            let host = ram.slots().next().unwrap().host;
            // "mg": mergeable advise flag (proc_pid_smaps(5)).
            field(&smaps(host + offset), "VmFlags:").split_whitespace().any(|flag| flag == "mg")
        };
        for offset in [0, 2 << 20, (2 << 20) + 4096, (8 << 20) - 1] {
            assert!(merged.iter().all(|ram| is_marked(ram, offset)), "{offset:#x}");
            assert!(!is_marked(&plain, offset), "{offset:#x}");
        }
    }

    #[test]
    fn discarded_pages_leave_the_host_in_whole_and_in_pieces_of_huge_pages() {
        const SIZE: usize = 64 << 20;
        let ram = GuestRam::new(&[(0, SIZE as u64)]).unwrap();
        ram.memory().write_slice(&vec![0x5a; SIZE], GuestAddress(0)).unwrap();
        let host = ram.slots().next().unwrap().host;
        let (full, huge) = resident(host);
        assert!(full >= 64 << 10, "{full} KiB, {huge} of them in huge pages");
        // As a balloon does: runs of neighbours that end anywhere in a huge page.
        for start in (0..SIZE as u64).step_by(1 << 20) {
            ram.discard(GuestAddress(start + (64 << 10)), 512 << 10).unwrap();
        }
        let (half, _) = resident(host);
        assert!(half <= full - (32 << 10) + 512, "{full} KiB before, {half} KiB after");
        // Parts of pages stay, whole ones read as zeros.
        ram.discard(GuestAddress(100), 2 * 4096).unwrap();
        let mut bytes = [0; 3 * 4096];
        ram.memory().read_slice(&mut bytes, GuestAddress(0)).unwrap();
        assert!(bytes[..4096].iter().chain(&bytes[2 * 4096..]).all(|byte| *byte == 0x5a));
        assert!(bytes[4096..2 * 4096].iter().all(|byte| *byte == 0));
        // And all come back when they are touched.
        ram.memory().write_slice(&vec![1; SIZE], GuestAddress(0)).unwrap();
        assert!(resident(host).0 >= full);
    }

    #[test]
    fn memory_in_a_memfd_is_aligned_cannot_shrink_and_gives_back_what_is_discarded() {
        use std::os::unix::fs::MetadataExt;
        const SIZE: usize = 8 << 20;
        let ram = GuestRam::in_memfd(&[(0, 4 << 20), (1 << 32, 4 << 20)]).unwrap();
        assert!(ram.slots().all(|slot| slot.host % HUGE_PAGE as u64 == 0));
        let file = ram.file.as_ref().unwrap();
        ram.memory().write_slice(&vec![7; 4 << 20], GuestAddress(1 << 32)).unwrap();
        let kib = || file.metadata().unwrap().blocks() / 2;
        assert!(kib() >= 4 << 10, "{} KiB", kib());
        let mut byte = [0];
        FileExt::read_at(file, &mut byte, 4 << 20).unwrap();
        assert_eq!(byte, [7], "what is written is in the file");
        ram.discard(GuestAddress(1 << 32), 2 << 20).unwrap();
        assert!(kib() <= 2 << 10, "{} KiB", kib());
        assert_eq!(file.set_len(SIZE as u64 / 2).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn discard_beyond_memory_is_refused() {
        let ram = GuestRam::new(&[(0, 2 << 20), (1 << 32, 2 << 20)]).unwrap();
        for (start, len) in
            [((2 << 20) - 4096, 8192), (1 << 31, 4096), (u64::MAX - 4095, 4096), (0, u64::MAX)]
        {
            assert!(ram.discard(GuestAddress(start), len).is_err(), "{len:#x} bytes at {start:#x}");
        }
    }
}
