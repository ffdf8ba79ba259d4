//! Which pages of a saved machine's memory a guest has touched, and reading them ahead.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::{GuestRam, PAGE};

/// Bytes of /proc/self/pagemap for a page (pagemap.rst).
const ENTRY: u64 = 8;
/// "Bit 63 page present", "Bit 62 page swapped".
const IN_USE: u64 = 3 << 62;

impl GuestRam {
    /// Offsets in the file that is mapped and bytes, in ascending order, of the pages of it that the guest or a device has touched
    /// since; the host adds neighbours that it had in memory (fault-around). Nothing if no file is mapped.
    pub(crate) fn touched(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut touched: Vec<(u64, u64)> = Vec::new();
        let Some(saved) = &self.saved else { return Ok(touched) };
        let pagemap = File::open("/proc/self/pagemap")?;
        let (page, first) = (PAGE as u64, self.mapping.start.as_ptr() as u64);
        let mut entries = vec![0; 64 << 10];
        for (start, len) in &saved.parts {
            let (mut at, end) = (*start, start.saturating_add(*len));
            while at < end {
                let want = (end - at).div_ceil(page).saturating_mul(ENTRY);
                let now = usize::try_from(want).map_or(entries.len(), |want| want.min(entries.len()));
                let chunk = entries.get_mut(..now).unwrap_or_default();
                pagemap.read_exact_at(chunk, (first + at) / page * ENTRY)?;
                for entry in chunk.as_chunks().0 {
                    if u64::from_ne_bytes(*entry) & IN_USE != 0 {
                        match touched.last_mut() {
                            Some((start, bytes)) if *start + *bytes == at => *bytes += page,
                            _ => touched.push((at, page)),
                        }
                    }
                    at += page;
                }
            }
        }
        Ok(touched)
    }
}

/// Has the host begin to read these bytes of a file into its page cache; a wish, and no more.
pub(crate) fn read_ahead(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: the descriptor is open; the call touches no memory of this process.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, len, libc::POSIX_FADV_WILLNEED) };
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::super::parts;
    use super::*;

    #[test]
    fn pages_of_the_file_that_were_touched_are_told_and_those_of_no_file_are_not() {
        const SIZE: u64 = 16 << 20;
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        // Two stretches of 2 MiB with data, and nothing between them.
        for offset in (0..2 << 20).chain(8 << 20..10 << 20).step_by(1 << 16) {
            file.write_all_at(&[7; 1 << 16], offset).unwrap();
        }
        let ranges = [(0, 8 << 20), (1 << 32, 8 << 20)];
        let ram = GuestRam::mapped(&ranges, &file, parts(&file, SIZE).unwrap()).unwrap();
        assert_eq!(ram.touched().unwrap(), []);
        ram.memory().write_obj(1u8, GuestAddress(0x3000)).unwrap();
        assert_eq!(ram.touched().unwrap(), [(0x3000, 0x1000)], "a write has no neighbours");
        ram.memory().write_obj(1u8, GuestAddress(0x4fff)).unwrap();
        assert_eq!(ram.touched().unwrap(), [(0x3000, 0x2000)]);
        // Anonymous memory.
        ram.memory().write_obj(1u8, GuestAddress(5 << 20)).unwrap();
        let read: u8 = ram.memory().read_obj(GuestAddress((1 << 32) + (1 << 20))).unwrap();
        assert_eq!(read, 7);
        let touched = ram.touched().unwrap();
        let at = 9 << 20;
        assert_eq!(touched[0], (0x3000, 0x2000));
        assert!(touched.iter().any(|(start, len)| (*start..start + len).contains(&at)), "{touched:?}");
        let bytes: u64 = touched.iter().map(|(_, len)| len).sum();
        // A huge page of the host's cache at most.
        assert!(
            bytes <= (2 << 20) + 0x2000 && touched.iter().all(|(start, _)| *start < 10 << 20),
            "{touched:?}"
        );
        let plain = GuestRam::new(&ranges).unwrap();
        plain.memory().write_obj(1u8, GuestAddress(0)).unwrap();
        assert_eq!(plain.touched().unwrap(), []);
        read_ahead(&file, 0, SIZE);
        read_ahead(&file, u64::MAX, 1);
    }
}
