//! Copies of images that are at rest: they share the blocks of the original where the file system can, and have its holes where not.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::shown::path as shown;
use diskimage::{Format, Header, ImageError, set_backing_name};
use vmm_sys_util::fallocate::{FallocateMode, fallocate};
use vmm_sys_util::seek_hole::SeekHole;

/// FICLONE (linux/fs.h): `_IOW(0x94, 9, int)`.
const FICLONE: libc::c_ulong = 0x4004_9409;
/// FICLONERANGE (linux/fs.h): `_IOW(0x94, 13, struct file_clone_range)`.
const FICLONERANGE: libc::c_ulong = 0x4020_940d;
/// Bytes between two looks whether the copy is still wanted.
const STEP: u64 = 16 << 20;
/// Bytes of a read where the kernel does not copy by itself.
const BUFFER: usize = 1 << 20;

/// The file of a disk that its guest writes to: the top one of an image of several.
#[derive(Debug)]
pub(crate) struct WrittenFile {
    /// The descriptor shares the machine's lock.
    pub(crate) file: File,
    pub(crate) format: Format,
    /// The absolute path of the file beneath, if there is one. It is not copied.
    pub(crate) base: Option<PathBuf>,
    /// A block device, which is not copied.
    pub(crate) is_device: bool,
}

impl WrittenFile {
    /// Whether it has no name any more: it is gone with its last descriptor.
    pub(crate) fn is_removed(&self) -> io::Result<bool> {
        Ok(!self.is_device && self.file.metadata()?.nlink() == 0)
    }

    /// Copies it to the empty file `to`, as long as `wanted` says so ([`ErrorKind::Interrupted`] otherwise). The copy names the file
    /// beneath by its absolute path, so that it can be anywhere. Nothing is brought to the medium. Gives the bytes that were copied, which
    /// are none of those that both share.
    pub(crate) fn copy_to(&self, to: &File, path: &Path, wanted: &dyn Fn() -> bool) -> io::Result<u64> {
        let bytes = copy_file(&self.file, to, wanted)?;
        match &self.base {
            Some(base) if self.format == Format::Qcow2 => {
                let base = base.to_str().ok_or_else(|| {
                    io::Error::other(format!("the path of its base, {}, is not UTF-8", shown(base)))
                })?;
                set_backing_name(to, path, base).map_err(as_io)?;
            }
            _ => {}
        }
        Ok(bytes)
    }

    /// Whether a copy of it in `to`, an empty file, can share its blocks. `to` is empty again. Tried with one block: the kernel brings what is
    /// shared to the medium, and the guest's requests wait meanwhile.
    pub(crate) fn shares_blocks_with(&self, to: &File) -> io::Result<bool> {
        let shares = share_first_block(&self.file, to)?;
        to.set_len(0)?;
        Ok(shares)
    }
}

/// The base that the copy at `path` names, if it is an image that has one.
pub(crate) fn base_of(file: &File, path: &Path, format: Format) -> io::Result<Option<PathBuf>> {
    match format {
        Format::Qcow2 => Ok(Header::read(file, path).map_err(as_io)?.backing.map(|backing| backing.name)),
        _ => Ok(None),
    }
}

fn as_io(error: ImageError) -> io::Error {
    match error {
        ImageError::Io { source, .. } => source,
        error => io::Error::other(error.to_string()),
    }
}

/// `struct file_clone_range`.
#[repr(C)]
struct CloneRange {
    from: i64,
    offset: u64,
    len: u64,
    to_offset: u64,
}

/// Has the empty file `to` share the first block of `from`; `false` if it cannot.
fn share_first_block(from: &File, to: &File) -> io::Result<bool> {
    let found = from.metadata()?;
    // All of a file, which is what 0 stands for, need not be whole blocks.
    let len = if found.len() > found.blksize() { found.blksize() } else { 0 };
    let range = CloneRange { from: from.as_raw_fd().into(), offset: 0, len, to_offset: 0 };
    // SAFETY: FICLONERANGE reads this structure, which lives through the call; both descriptors are open.
    Ok(unsafe { libc::ioctl(to.as_raw_fd(), FICLONERANGE, &raw const range) == 0 })
}

/// Has the empty file `to` share all blocks of `from`; `false` if it cannot.
fn share_blocks(from: &File, to: &File) -> bool {
    // SAFETY: a call on two open descriptors, without memory.
    unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, from.as_raw_fd()) == 0 }
}

/// Copies all of `from` to the empty file `to`; see [`WrittenFile::copy_to`].
pub(crate) fn copy_file(from: &File, to: &File, wanted: &dyn Fn() -> bool) -> io::Result<u64> {
    if share_blocks(from, to) { Ok(0) } else { copy_data(from, to, wanted) }
}

/// Writes zeros to `to`, as a hole where its file system can.
pub(crate) fn write_zeros(to: &File, offset: u64, len: u64) -> io::Result<()> {
    match fallocate(to, FallocateMode::PunchHole, true, offset, len) {
        Err(error) if matches!(error.errno(), libc::EOPNOTSUPP | libc::ENOSYS) => {
            let zeros = vec![0; BUFFER.min(usize::try_from(len).unwrap_or(BUFFER))];
            let (mut at, end) = (offset, offset.saturating_add(len));
            while at < end {
                let now = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
                to.write_all_at(zeros.get(..now).unwrap_or_default(), at)?;
                at += now as u64;
            }
            Ok(())
        }
        punched => punched.map_err(|error| io::Error::from_raw_os_error(error.errno())),
    }
}

/// The same without shared blocks.
fn copy_data(from: &File, to: &File, wanted: &dyn Fn() -> bool) -> io::Result<u64> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let (mut seeking, mut at, mut by_kernel, mut all) = (from.try_clone()?, 0, true, 0);
    while at < length {
        let (start, end) = match seeking.seek_data(at) {
            Ok(None) => break,
            Ok(Some(start)) => (start.max(at), seeking.seek_hole(start)?.unwrap_or(length).min(length)),
            // A file system that knows no holes.
            Err(_) => (at, length),
        };
        at = start;
        while at < end {
            if !wanted() {
                return Err(ErrorKind::Interrupted.into());
            }
            let step = STEP.min(end - at);
            let copied =
                if by_kernel { copy_range(from, to, at, step) } else { copy_bytes(from, to, at, step) };
            match copied {
                Ok(0) if by_kernel => by_kernel = false,
                // It became shorter meanwhile.
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => (at, all) = (at + bytes, all + bytes),
                Err(error) if error.kind() == ErrorKind::StorageFull => return Err(error),
                // Two file systems, or one that cannot: what is wrong with the files shows again.
                Err(_) if by_kernel => by_kernel = false,
                Err(error) => return Err(error),
            }
        }
        // A file system that answers anything must not hold this up.
        at = at.max(end).max(start + 1);
    }
    Ok(all)
}

fn copy_range(from: &File, to: &File, at: u64, bytes: u64) -> io::Result<u64> {
    let offset = i64::try_from(at).map_err(|_| ErrorKind::InvalidInput)?;
    let bytes = usize::try_from(bytes).map_err(|_| ErrorKind::InvalidInput)?;
    let (mut source, mut target) = (offset, offset);
    // SAFETY: both offsets live through the call, which touches no other memory of this process.
    let copied = unsafe {
        libc::copy_file_range(from.as_raw_fd(), &raw mut source, to.as_raw_fd(), &raw mut target, bytes, 0)
    };
    u64::try_from(copied).map_err(|_| io::Error::last_os_error())
}

fn copy_bytes(from: &File, to: &File, at: u64, bytes: u64) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER.min(usize::try_from(bytes).unwrap_or(BUFFER))];
    let read = from.read_at(&mut buffer, at)?;
    to.write_all_at(buffer.get(..read).unwrap_or_default(), at)?;
    Ok(read as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// 64 MiB with 1 MiB in their midst and an odd end.
    fn original() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len((64 << 20) + 1000).unwrap();
        let data: Vec<u8> = (0..1_u32 << 18).flat_map(|word| (word * 7 + 1).to_le_bytes()).collect();
        file.write_all_at(&data, 32 << 20).unwrap();
        file.write_all_at(b"end", (64 << 20) + 990).unwrap();
        file
    }

    fn all(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn copy_has_the_bytes_and_the_holes_of_the_original() {
        let from = original();
        for copy in [copy_file, copy_data] {
            let to = tempfile::tempfile().unwrap();
            copy(&from, &to, &|| true).unwrap();
            assert!(all(&to) == all(&from));
            assert!(to.metadata().unwrap().blocks() * 512 < 4 << 20);
        }
    }

    #[test]
    fn copy_that_is_wanted_no_more_ends() {
        let asked = std::cell::Cell::new(0);
        let wanted = || {
            asked.set(asked.get() + 1);
            asked.get() < 2
        };
        let error = copy_data(&original(), &tempfile::tempfile().unwrap(), &wanted).unwrap_err();
        assert_eq!((error.kind(), asked.get()), (ErrorKind::Interrupted, 2));
    }

    #[test]
    fn copy_without_the_kernel_is_whole() {
        let (from, to) = (original(), tempfile::tempfile().unwrap());
        to.set_len(from.metadata().unwrap().len()).unwrap();
        let mut at = 0;
        while at < from.metadata().unwrap().len() {
            at += copy_bytes(&from, &to, at, STEP).unwrap();
        }
        assert!(all(&to) == all(&from));
    }
}
