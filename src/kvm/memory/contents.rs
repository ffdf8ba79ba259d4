//! Guest memory as a component, and its contents in a file: one byte for each of the memory, in the order of its ranges, with holes
//! where there are zeros.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use devices::component::{Component, State, StateError};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{GuestRam, HUGE_PAGE};

/// Whether each write goes to the file's end (pwrite(2), "BUGS").
fn is_appending(file: &File) -> bool {
    // SAFETY: the call reads the flags of an open descriptor.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    flags != -1 && flags & libc::O_APPEND != 0
}

/// Bytes that are looked at together: zeros in all of them become a hole.
const PIECE: usize = 64 << 10;
static ZEROS: [u8; PIECE] = [0; PIECE];

/// Whether a piece of at most [`PIECE`] bytes holds nothing.
pub(crate) fn is_zeros(piece: &[u8]) -> bool {
    ZEROS.get(..piece.len()) == Some(piece)
}

impl GuestRam {
    /// Writes the contents to `file`, from its beginning on, with holes for zeros.
    pub(crate) fn save(&self, file: &File) -> io::Result<()> {
        if is_appending(file) {
            let reason =
                "the file is open for appending, where writes ignore their offset; open it without O_APPEND";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        file.set_len(0)?;
        file.set_len(self.size())?;
        for (offset, len) in self.used()? {
            self.read_pieces(offset, len, |offset, piece| {
                if is_zeros(piece) { Ok(()) } else { file.write_all_at(piece, offset) }
            })?;
        }
        Ok(())
    }

    /// Offsets in such a file and bytes of what may hold more than zeros.
    pub(crate) fn used(&self) -> io::Result<Vec<(u64, u64)>> {
        match &self.file {
            Some(own) => extents(own, self.size()),
            None => Ok(vec![(0, self.size())]),
        }
    }

    /// Calls `piece` with the contents of `len` bytes from an offset in such a file on, at most [`PIECE`] bytes at a time, and where they are.
    pub(crate) fn read_pieces<E: From<io::Error>>(
        &self,
        offset: u64,
        len: u64,
        mut piece: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = vec![0; PIECE];
        for Placement { offset, guest, len } in self.place(offset, len) {
            let mut done = 0u64;
            while done < len {
                let now = usize::try_from(len - done).map_or(PIECE, |left| left.min(PIECE));
                let bytes = buffer.get_mut(..now).unwrap_or_default();
                let read = self.regions.read_slice(bytes, GuestAddress(guest + done));
                read.map_err(io::Error::other)?;
                piece(offset + done, bytes)?;
                done += now as u64;
            }
        }
        Ok(())
    }

    /// Where ranges of guest addresses are in such a file. What is no memory is left out.
    pub(crate) fn offsets(&self, guest: &[Range<u64>]) -> Vec<Range<u64>> {
        let mut offsets = Vec::with_capacity(guest.len());
        let mut start = 0u64;
        for region in self.regions.iter() {
            let first = region.start_addr().0;
            let last = first + region.len();
            for range in guest {
                let (from, to) = (range.start.max(first), range.end.min(last));
                if from < to {
                    offsets.push(start + (from - first)..start + (to - first));
                }
            }
            start += region.len();
        }
        offsets
    }

    /// Splits a piece of a file with the contents: where each part of it goes in the guest. Offsets and bytes beyond the memory are
    /// left out.
    pub(crate) fn place(&self, offset: u64, len: u64) -> Vec<Placement> {
        let mut placements = Vec::new();
        let mut start = 0u64;
        let end = offset.saturating_add(len);
        for region in self.regions.iter() {
            let (first, last) = (offset.max(start), end.min(start + region.len()));
            if first < last {
                let guest = region.start_addr().0 + (first - start);
                placements.push(Placement { offset: first, guest, len: last - first });
            }
            start += region.len();
        }
        placements
    }
}

/// A part of a file with a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) offset: u64,
    pub(crate) guest: u64,
    pub(crate) len: u64,
}

/// Where `file` of `len` bytes has data and no holes, as offset and bytes.
pub(crate) fn extents(file: &File, len: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match seek(file, at, libc::SEEK_DATA) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => break,
            // A file system that knows no holes.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => at,
            Err(error) => return Err(error),
        };
        // A file that changes, or a file system that says anything: the next extent must lie ahead and inside.
        if start < at || start >= len {
            break;
        }
        let end = seek(file, start, libc::SEEK_HOLE).unwrap_or(len).clamp(start, len);
        if end <= at {
            break;
        }
        extents.push((start, end - start));
        at = end;
    }
    Ok(extents)
}

/// Most extents of a file that are mapped without the holes beside them.
const MOST_EXACT: usize = 16 << 10;
/// File systems in memory (statfs(2)).
const TMPFS: i64 = 0x0102_1994;
/// What an extent in memory is a multiple of.
const PAGE: u64 = 4096;

/// Whether a page of a hole takes room of a tmpfs once it is touched by a mapping: one that is full answers with SIGBUS. A memfd has no
/// such limit.
fn is_of_limited_memory(file: &File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| found.f_type == TMPFS && found.f_blocks > 0)
}

/// The parts of `file` that have to be mapped: all of its extents, in as few mappings as there are stretches of 2 MiB with data. A
/// process has some 65,000 mappings (/proc/sys/vm/max_map_count), so that the stretches of a large memory are longer.
pub(crate) fn parts(file: &File, len: u64) -> io::Result<Vec<(u64, u64)>> {
    const MOST: u64 = 4096;
    let extents = extents(file, len)?;
    let stretch = if extents.len() < MOST_EXACT && is_of_limited_memory(file) {
        PAGE
    } else {
        (HUGE_PAGE as u64).max((len / MOST).next_power_of_two())
    };
    let mut parts: Vec<(u64, u64)> = Vec::new();
    for (offset, bytes) in extents {
        let start = offset - offset % stretch;
        let end = offset.saturating_add(bytes).next_multiple_of(stretch).min(len);
        match parts.last_mut() {
            Some((first, bytes)) if *first + *bytes >= start => *bytes = (*bytes).max(end - *first),
            _ => parts.push((start, end - start)),
        }
    }
    Ok(parts)
}

fn seek(file: &File, at: u64, whence: libc::c_int) -> io::Result<u64> {
    let at = i64::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is open; the call touches no memory of this process.
    let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// Guest memory as a component: which it is, not what it holds.
#[derive(Debug)]
pub(crate) struct MemoryLayout(pub(crate) Arc<GuestRam>);

impl MemoryLayout {
    const KIND: &'static str = "memory";
    const VERSION: u16 = 1;

    fn ranges(&self) -> Vec<(u64, u64)> {
        self.0.regions.iter().map(|region| (region.start_addr().0, region.len())).collect()
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemoryState {
    /// Guest address and bytes of each range.
    ranges: Vec<(u64, u64)>,
}

impl Component for MemoryLayout {
    fn save(&self) -> Result<State, StateError> {
        State::new(Self::KIND, Self::VERSION, &MemoryState { ranges: self.ranges() })
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let MemoryState { ranges } = state.open(Self::KIND, Self::VERSION)?;
        if ranges == self.ranges() {
            return Ok(());
        }
        let sum =
            |ranges: &[(u64, u64)]| ranges.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len)) >> 20;
        let (saved, own) = (sum(&ranges), sum(&self.ranges()));
        let reason = format!("it has {saved} MiB, in {} ranges, and this machine {own} MiB", ranges.len());
        Err(StateError::mismatch(Self::KIND, reason))
    }
}

#[cfg(test)]
mod tests {
    use virtio::memory::MemoryOwner;

    use super::*;

    #[test]
    fn contents_pass_through_a_file_that_is_as_sparse_as_they_are() {
        let ranges = [(0, 4 << 20), (1 << 32, 2 << 20)];
        let in_memfd = GuestRam::in_memfd(&ranges).unwrap();
        for ram in [GuestRam::new(&ranges).unwrap(), in_memfd] {
            passes_through_a_file(&ram, &ranges);
        }
    }

    /// A file with the memory of a guest of 16 MiB that has written `spots`.
    fn saved(spots: &[u64]) -> File {
        let ram = GuestRam::new(&[(0, 16 << 20)]).unwrap();
        for spot in spots {
            ram.memory().write_obj(*spot, GuestAddress(*spot)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        ram.save(&file).unwrap();
        file
    }

    fn mapped(file: &File) -> GuestRam {
        GuestRam::mapped(&[(0, 16 << 20)], file, parts(file, 16 << 20).unwrap()).unwrap()
    }

    #[test]
    fn mapped_memory_shows_a_file_and_leaves_it_as_it_is() {
        let spots = [0x1000, 5 << 20, (16 << 20) - 8];
        let file = saved(&spots);
        let expected = match is_of_limited_memory(&file) {
            true => [(0x1000, PAGE), (5 << 20, PAGE), ((16 << 20) - PAGE, PAGE)],
            false => [(0, 2 << 20), (4 << 20, 2 << 20), (14 << 20, 2 << 20)],
        };
        assert_eq!(parts(&file, 16 << 20).unwrap(), expected);
        let before = extents(&file, 16 << 20).unwrap();
        let (first, second) = (mapped(&file), mapped(&file));
        let read = |ram: &GuestRam, at: u64| ram.memory().read_obj::<u64>(GuestAddress(at)).unwrap();
        for spot in spots {
            assert_eq!((read(&first, spot), read(&second, spot)), (spot, spot));
            first.memory().write_obj(7u64, GuestAddress(spot)).unwrap();
            assert_eq!((read(&first, spot), read(&second, spot)), (7, spot));
        }
        first.memory().write_obj(8u64, GuestAddress(9 << 20)).unwrap();
        assert_eq!(extents(&file, 16 << 20).unwrap(), before);
        let again = tempfile::tempfile().unwrap();
        first.save(&again).unwrap();
        let third = mapped(&again);
        assert_eq!([0x1000, 5 << 20, 9 << 20].map(|at| read(&third, at)), [7, 7, 8]);
    }

    #[test]
    fn mapped_memory_that_is_given_back_reads_as_zeros() {
        let spots: Vec<u64> = (0..4096).map(|page| page * 4096).collect();
        let file = saved(&spots);
        let ram = mapped(&file);
        let read = |at: u64| ram.memory().read_obj::<u64>(GuestAddress(at)).unwrap();
        // Every second page, as a guest that wants as many mappings as it can get; it gets some.
        let counts = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        let before = counts();
        for _ in 0..10 {
            for page in spots.iter().filter(|spot| *spot / 4096 % 2 == 0) {
                ram.memory().write_obj(1u64, GuestAddress(*page)).unwrap();
                ram.discard(GuestAddress(*page), 4096).unwrap();
            }
        }
        assert!(counts() < before + 2 * 4096 + 100);
        for spot in &spots {
            assert_eq!(read(*spot), if spot / 4096 % 2 == 0 { 0 } else { *spot }, "{spot:#x}");
        }
        ram.discard(GuestAddress(0), 16 << 20).unwrap();
        assert!(spots.iter().all(|spot| read(*spot) == 0));
    }

    #[test]
    fn contents_are_not_appended_to_a_file() {
        let ram = GuestRam::new(&[(0, 2 << 20)]).unwrap();
        ram.memory().write_obj(1u8, GuestAddress(0x1000)).unwrap();
        let path = tempfile::NamedTempFile::new().unwrap();
        let file = File::options().append(true).open(path.path()).unwrap();
        let error = ram.save(&file).unwrap_err();
        assert!(error.to_string().contains("O_APPEND"), "{error}");
        assert_eq!(file.metadata().unwrap().len(), 0);
    }

    fn passes_through_a_file(ram: &GuestRam, ranges: &[(u64, u64)]) {
        let spots = [0x1000, (4 << 20) - 1, 1 << 32, (1 << 32) + (2 << 20) - 3];
        for (spot, byte) in spots.into_iter().zip(1u8..) {
            ram.memory().write_obj(byte, GuestAddress(spot)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        // What stood there is gone.
        file.write_all_at(&[0xff; 16 << 10], 1 << 20).unwrap();
        ram.save(&file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), ram.size());
        let extents = extents(&file, ram.size()).unwrap();
        let data: u64 = extents.iter().map(|(_, len)| len).sum();
        assert!(data <= 4 * PIECE as u64 || extents == [(0, ram.size())], "{extents:?}");
        let other = GuestRam::new(ranges).unwrap();
        for Placement { offset, guest, len } in extents.iter().flat_map(|(at, len)| other.place(*at, *len)) {
            other.load(&file, offset, guest, len).unwrap();
        }
        let bytes = |ram: &GuestRam| {
            let mut bytes = vec![0; 6 << 20];
            let (low, high) = bytes.split_at_mut(4 << 20);
            ram.memory().read_slice(low, GuestAddress(0)).unwrap();
            ram.memory().read_slice(high, GuestAddress(1 << 32)).unwrap();
            bytes
        };
        assert!(bytes(ram) == bytes(&other));
        // A piece over the border of two ranges goes to both.
        let [low, high] = *other.place((4 << 20) - 1, 2) else { panic!() };
        assert_eq!((low.guest, low.len, high.guest, high.len), ((4 << 20) - 1, 1, 1 << 32, 1));
        assert_eq!(other.place(6 << 20, u64::MAX), []);
    }
}
