//! Opens a disk: every error is found here, before a machine starts.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use diskimage::{Format, shell_word};
use virtio::block::{SECTOR, Topology};

use super::error::DiskError;
use super::file::{Direct, DiskFile, mode};
use super::loop_device::{self, FilesBehind};
use super::{block_device, format, holder};
use crate::host::identity::identity;
use crate::host::lock::Kind;
use crate::host::lock_soon::lock_soon;
use crate::host::open_now::{open_now, waiting};
use crate::host::proc_path::proc_path;
use crate::shown::path as shown;

/// How to open a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Access {
    /// Read-only; other processes may read it too.
    pub(crate) read_only: bool,
    /// With direct I/O.
    pub(crate) direct: bool,
}

impl DiskFile {
    #[cfg(test)]
    pub(crate) fn open(path: &Path, access: Access) -> Result<Self, DiskError> {
        Self::open_as(path, access, None)
    }

    /// Opens and locks the raw image or the block device at `path`. `said` is the format that the user said.
    ///
    /// # Errors
    /// [`DiskError`], with its cure.
    pub(super) fn open_as(path: &Path, access: Access, said: Option<Format>) -> Result<Self, DiskError> {
        let (buffered, metadata) = open_file(path, access)?;
        let io = |action| move |error| DiskError::Io { path: PathBuf::from(path), action, error };
        let device = metadata.file_type().is_block_device();
        let behind = lock(&buffered, &metadata, path, access)?;
        let size = size(&buffered, device).map_err(io("asking for its size"))?;
        check_head(&buffered, path, said)?;
        if size < SECTOR {
            return Err(DiskError::Empty { path: path.into() });
        }
        // A user's file is never extended. In a read-only image the last sector is filled up with zeros.
        let odd = !size.is_multiple_of(SECTOR);
        let tail = if odd && access.read_only && !device {
            Some((size, File::open("/dev/zero").map_err(io("opening /dev/zero for its last sector"))?))
        } else {
            None
        };
        if odd && tail.is_none() {
            let rest = size % SECTOR;
            log::warn!(
                "the disk {} is no whole number of sectors of 512 bytes: the guest does not see its last {rest} \
                 bytes; give it as `,ro` to have them read",
                shown(path)
            );
        }
        let sectors = if tail.is_some() { size.div_ceil(SECTOR) } else { size / SECTOR }.into();
        let described = Self::described(buffered, &metadata, path, access);
        Ok(DiskFile { sectors, tail, behind, ..described })
    }

    /// A layer of an image, open and locked already.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub(super) fn layer(file: &File, path: &Path, access: Access) -> io::Result<Self> {
        let buffered = file.try_clone()?;
        let metadata = buffered.metadata()?;
        Ok(DiskFile { padded: true, ..Self::described(buffered, &metadata, path, access) })
    }

    /// What a file or a block device offers; its size is not asked for.
    fn described(buffered: File, metadata: &Metadata, path: &Path, access: Access) -> Self {
        let device = metadata.file_type().is_block_device();
        DiskFile {
            direct: if access.direct { open_direct(&buffered, path, access) } else { None },
            sectors: 0.into(),
            read_only: access.read_only,
            device,
            discard: if access.read_only { None } else { discard(&buffered, metadata) },
            topology: if device { block_device::topology(&buffered) } else { image_topology(metadata) },
            tail: None,
            behind: FilesBehind::default(),
            padded: false,
            released: AtomicBool::new(false),
            #[cfg(test)]
            syncs: 0.into(),
            #[cfg(test)]
            flushes: 0.into(),
            buffered,
        }
    }
}

/// Opens an image or a block device that the user named. It is not locked yet.
pub(crate) fn open_file(path: &Path, access: Access) -> Result<(File, Metadata), DiskError> {
    open_as_it_is(path, fs::metadata(path), access, 0)
}

/// Opens a file that an image names. It may be a link to anything, which is not even opened.
pub(crate) fn open_no_link(path: &Path, access: Access) -> Result<(File, Metadata), DiskError> {
    open_as_it_is(path, fs::symlink_metadata(path), access, libc::O_NOFOLLOW)
}

fn open_as_it_is(
    path: &Path,
    found: io::Result<Metadata>,
    access: Access,
    flags: i32,
) -> Result<(File, Metadata), DiskError> {
    let found = found.map_err(|error| open_error(path, access, error))?;
    check_kind(path, &found)?;
    let mut options = OpenOptions::new();
    options.read(true).write(!access.read_only);
    let mut open = || {
        if found.file_type().is_block_device() {
            // O_EXCL refuses a mounted device: two file systems would destroy it. O_NONBLOCK would open a drive without its medium.
            let exclusive = if access.read_only { 0 } else { libc::O_EXCL };
            options.custom_flags(flags | exclusive | libc::O_NOCTTY).open(path)
        } else {
            open_now(path, &mut options, flags).and_then(|file| waiting(file, 0))
        }
    };
    let opened = match open() {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => match lock_conflict(path, access) {
            // Another machine's lock is a better explanation than EBUSY.
            Some(conflict) => return Err(conflict),
            // A device that this process has closed may have become free meanwhile.
            None => open(),
        },
        opened => opened,
    };
    let file = opened.map_err(|error| open_error(path, access, error))?;
    // From the descriptor: the path may lead to another file by now.
    let metadata = file.metadata().map_err(|error| DiskError::Io {
        path: path.into(),
        action: "looking at it",
        error,
    })?;
    check_kind(path, &metadata)?;
    if metadata.file_type().is_block_device() != found.file_type().is_block_device() {
        // It was opened as what it is not: a device without O_EXCL may be mounted.
        let error = io::Error::other("another file has taken its place meanwhile; try again");
        return Err(DiskError::Io { path: path.into(), action: "opening it", error });
    }
    Ok((file, metadata))
}

/// Refuses what is neither a file nor a block device.
fn check_kind(path: &Path, metadata: &Metadata) -> Result<(), DiskError> {
    let kind = metadata.file_type();
    let what = if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else {
        "neither a file nor a block device"
    };
    Err(DiskError::NotADisk { path: path.into(), what })
}

/// Looks whether a raw image begins like one in another format. What a guest writes can, so that it stays raw if the user has
/// said so; else the format was probably forgotten, and the guest would destroy the image.
pub(super) fn check_head(file: &File, path: &Path, said: Option<Format>) -> Result<(), DiskError> {
    let mut head = [0; format::HEAD];
    let read = file.read_at(&mut head, 0).map_err(|error| DiskError::Io {
        path: path.into(),
        action: "reading its first sector",
        error,
    })?;
    match head.get(..read).and_then(format::image_format) {
        None => Ok(()),
        Some(format) if said == Some(Format::Raw) => {
            log::warn!(
                "the disk {} begins like {format}, and is raw as `format=raw` says: the guest sees these bytes",
                shown(path)
            );
            Ok(())
        }
        Some(format) => Err(DiskError::Format { path: path.into(), format }),
    }
}

/// The size of an image or a block device in bytes.
pub(crate) fn size(file: &File, device: bool) -> io::Result<u64> {
    if device { block_device::size(file) } else { Ok(file.metadata()?.len()) }
}

/// The error of a block device that another machine has locked.
fn lock_conflict(path: &Path, access: Access) -> Option<DiskError> {
    let mut options = OpenOptions::new();
    let file = open_now(path, options.read(true).write(!access.read_only), 0).ok()?;
    let metadata = file.metadata().ok()?;
    lock(&file, &metadata, path, access).err().filter(|error| matches!(error, DiskError::Busy { .. }))
}

/// The error of opening `path`.
fn open_error(path: &Path, access: Access, error: io::Error) -> DiskError {
    let path = PathBuf::from(path);
    match error.raw_os_error() {
        Some(libc::ENOENT) => DiskError::NotFound { path },
        Some(libc::EISDIR) => DiskError::NotADisk { path, what: "a directory" },
        Some(libc::EBUSY) => DiskError::OwnedByHost { path },
        Some(libc::EROFS) => DiskError::ReadOnly { path, why: "its file system is mounted read-only" },
        Some(libc::EACCES | libc::EPERM) => permission_error(path, access, error),
        _ => DiskError::Io { path, action: "opening it", error },
    }
}

fn permission_error(path: PathBuf, access: Access, error: io::Error) -> DiskError {
    // A write-protected block device also gives EACCES or EPERM, and so does a folder on the path.
    if !access.read_only && open_now(&path, OpenOptions::new().read(true), 0).is_ok() {
        let cure =
            format!("give it as `{},ro` to read only, or change its rights with chmod", shell_word(&path));
        return DiskError::Denied { path, operation: "write to", cure };
    }
    match fs::metadata(&path) {
        Ok(metadata) if metadata.file_type().is_block_device() => {
            let cure = "its group (often `disk`) may; `ls -l` shows it".to_owned();
            DiskError::Denied { path, operation: "open", cure }
        }
        Ok(_) => {
            let cure = "change its rights with chmod, or its owner with chown".to_owned();
            DiskError::Denied { path, operation: "open", cure }
        }
        Err(_) => {
            let cure = format!("a folder on the way is closed to you ({error})");
            DiskError::Denied { path, operation: "reach", cure }
        }
    }
}

/// Locks all of `file`: exclusively for writing, shared for reading. The lock belongs to the open file, so it
/// ends with the process in any case. Keep what this returns as long: the locks on files behind a loop device.
pub(crate) fn lock(
    file: &File,
    metadata: &Metadata,
    path: &Path,
    access: Access,
) -> Result<FilesBehind, DiskError> {
    let kind = if access.read_only { Kind::Shared } else { Kind::Exclusive };
    let error = match lock_soon(file, kind) {
        Ok(true) => return loop_device::claim(file, metadata, path, access),
        Ok(false) => return Err(DiskError::Busy { path: path.into(), holder: holder::find(file) }),
        Err(error) => error,
    };
    match error.raw_os_error() {
        // A file system without locks, such as some network ones: continue without a lock.
        Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL) => {
            log::warn!(
                "the file system of the disk {} has no locks ({error}): take care that no second machine uses it",
                shown(path)
            );
            loop_device::claim(file, metadata, path, access)
        }
        _ => Err(DiskError::Io { path: path.into(), action: "locking it", error }),
    }
}

/// Both block sizes are 512 bytes, which `parted` shows as 512B/512B, with the host's block size as a hint.
fn image_topology(metadata: &Metadata) -> Topology {
    let block = u32::try_from(metadata.blksize()).unwrap_or(4096).clamp(512, 1 << 20);
    Topology { logical_block: 512, physical_block: 512, least_io: block, best_io: 0 }
}

/// Discard granularity, if the host supports it.
fn discard(file: &File, metadata: &Metadata) -> Option<u32> {
    if metadata.file_type().is_block_device() {
        return block_device::discard(metadata.rdev());
    }
    // Punching a hole behind the end changes nothing, and shows whether holes are supported.
    let end = i64::try_from(metadata.len().checked_next_multiple_of(1 << 20)?).ok()?;
    // Now, when the file is locked.
    let before = file.metadata().and_then(|metadata| metadata.modified());
    // SAFETY: a call on an open descriptor, without memory.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode::HOLE, end, 4096) };
    // Nothing was written: the time of the last change is by what others see whether somebody has. Only the owner may say it.
    let _ = before.map(|modified| file.set_modified(modified));
    (result == 0).then(|| image_topology(metadata).least_io)
}

/// The same file for direct I/O; `None`, with a warning, where the file system does not support it.
fn open_direct(file: &File, path: &Path, access: Access) -> Option<Direct> {
    // /proc leads to the same file, whatever the path leads to now.
    let again = proc_path(file);
    let mut options = OpenOptions::new();
    options.read(true).write(!access.read_only).custom_flags(libc::O_DIRECT);
    let opened = match options.open(again) {
        // Without /proc the path is opened again, and must lead to the same file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => open_now(path, &mut options, libc::O_DIRECT)
            .and_then(|direct| waiting(direct, libc::O_DIRECT))
            .and_then(|direct| if is_same(&direct, file) { Ok(direct) } else { Err(error) }),
        opened => opened,
    };
    match opened {
        Ok(direct) => {
            let (memory_align, offset_align) = direct_alignment(&direct);
            Some(Direct { file: direct, memory_align, offset_align })
        }
        Err(error) => {
            log::warn!(
                "the disk {} goes through the host's page cache, since it cannot be opened for direct I/O: {error}",
                shown(path)
            );
            None
        }
    }
}

fn is_same(one: &File, other: &File) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => identity(&one) == identity(&other),
        _ => false,
    }
}

/// The alignment of memory and of offsets for direct I/O: from the kernel (Linux 6.1), else the page size,
/// which always fits.
fn direct_alignment(file: &File) -> (u64, u64) {
    const PAGE_SIZE: u64 = 4096;
    // SAFETY: an all-zero statx is a valid object to be overwritten.
    let mut facts: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string, with which the descriptor itself is meant, and the kernel fills `facts`.
    let result = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut facts)
    };
    let (memory, offset) = (u64::from(facts.stx_dio_mem_align), u64::from(facts.stx_dio_offset_align));
    let reported = result == 0 && facts.stx_mask & libc::STATX_DIOALIGN != 0;
    if reported && memory.is_power_of_two() && offset.is_power_of_two() {
        (memory, offset)
    } else {
        (PAGE_SIZE, PAGE_SIZE)
    }
}
