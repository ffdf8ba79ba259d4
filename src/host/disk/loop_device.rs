//! Loop devices: one over a file is the same disk as that file, and the kernel lets both be written to at once.
//!
//! A loop device that becomes a disk has the part of the file that it shows locked, as the file itself would be. An image that
//! becomes a disk must have no loop device over it. Both go by sysfs, which every user may read.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::error::DiskError;
use super::{Access, holder};
use crate::host::lock::Kind;
use crate::host::lock_soon::lock_range_soon;
use crate::host::open_now::open_now;
use crate::shown::path as shown;

/// LOOP_GET_STATUS64 (linux/loop.h).
const LOOP_GET_STATUS64: libc::c_ulong = 0x4c05;
/// Loop devices over loop devices that are followed.
const MOST_LEVELS: usize = 8;
const SECTOR: u64 = 512;
const ALL: Range<u64> = 0..u64::MAX;

/// Files behind loop devices that are open and locked: the locks end with this.
#[derive(Debug, Default)]
pub(crate) struct FilesBehind(#[expect(dead_code, reason = "only dropped")] Vec<File>);

/// Locks what is behind the open disk `file`, if it is a loop device or a partition of one, and refuses a disk that a loop
/// device shows too.
pub(super) fn claim(
    file: &File,
    metadata: &Metadata,
    path: &Path,
    access: Access,
) -> Result<FilesBehind, DiskError> {
    let claim = Claim { sys: Path::new("/sys"), path, access };
    claim.all(file, metadata).map(FilesBehind)
}

/// A file, or a block device under whatever path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Identity {
    File { device: u64, inode: u64 },
    Device(u64),
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        if metadata.file_type().is_block_device() {
            Identity::Device(metadata.rdev())
        } else {
            Identity::File { device: metadata.dev(), inode: metadata.ino() }
        }
    }
}

/// A loop device, by its folder in sysfs.
#[derive(Debug)]
struct LoopDevice {
    folder: PathBuf,
    /// What the kernel calls its file.
    backing: PathBuf,
    /// The bytes of the file that it shows.
    range: Range<u64>,
}

impl LoopDevice {
    /// The one of this folder, if it has a file.
    fn at(folder: PathBuf) -> Option<Self> {
        let mut backing = fs::read(folder.join("loop/backing_file")).ok()?;
        backing.pop_if(|last| *last == b'\n');
        let backing = PathBuf::from(OsString::from_vec(backing));
        let offset = number(&folder.join("loop/offset")).unwrap_or(0);
        let end = match number(&folder.join("loop/sizelimit")) {
            // To the end of the file, which may grow.
            None | Some(0) => u64::MAX,
            Some(limit) => offset.saturating_add(limit),
        };
        Some(LoopDevice { folder, backing, range: offset..end })
    }

    /// The one of which the block device with this number is all, or a partition: its range is that of the partition.
    fn of(sys: &Path, number_of_device: u64) -> Option<Self> {
        let (major, minor) = (libc::major(number_of_device), libc::minor(number_of_device));
        let folder = fs::canonicalize(sys.join(format!("dev/block/{major}:{minor}"))).ok()?;
        if !folder.join("partition").exists() {
            return Self::at(folder);
        }
        let whole = Self::at(folder.parent()?.to_owned())?;
        let bytes = |name| Some(number(&folder.join(name))?.saturating_mul(SECTOR));
        let start = whole.range.start.saturating_add(bytes("start")?);
        Some(LoopDevice { range: start..start.saturating_add(bytes("size")?), ..whole })
    }

    /// All of a host.
    fn all(sys: &Path) -> impl Iterator<Item = Self> {
        let folders = fs::read_dir(sys.join("block")).into_iter().flatten().flatten();
        let loops = folders.filter(|folder| folder.file_name().as_encoded_bytes().starts_with(b"loop"));
        loops.filter_map(|folder| Self::at(folder.path()))
    }

    /// Such as `loop0`.
    fn name(&self) -> &OsStr {
        self.folder.file_name().unwrap_or_default()
    }

    /// Its device file, as udev calls it.
    fn device(&self) -> PathBuf {
        Path::new("/dev").join(self.name())
    }

    fn is_read_only(&self) -> bool {
        number(&self.folder.join("ro")) == Some(1)
    }

    fn shows(&self, identity: Identity, range: &Range<u64>) -> bool {
        self.range.start < range.end
            && range.start < self.range.end
            && fs::metadata(&self.backing).is_ok_and(|metadata| Identity::of(&metadata) == identity)
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A disk that is being opened.
#[derive(Debug, Clone, Copy)]
struct Claim<'a> {
    sys: &'a Path,
    path: &'a Path,
    access: Access,
}

impl Claim<'_> {
    fn all(&self, file: &File, metadata: &Metadata) -> Result<Vec<File>, DiskError> {
        let mut behind: Vec<File> = Vec::new();
        let (mut identity, mut range) = (Identity::of(metadata), ALL);
        let mut own: Option<LoopDevice> = None;
        loop {
            self.refuse_others(identity, &range, own.as_ref())?;
            let Identity::Device(number) = identity else { return Ok(behind) };
            let Some(device) = LoopDevice::of(self.sys, number) else { return Ok(behind) };
            if behind.len() >= MOST_LEVELS {
                return Ok(behind);
            }
            let over = behind.last().unwrap_or(file);
            let Some((next, found)) = self.open_behind(&device, over) else { return Ok(behind) };
            self.lock(&next, &device.range)?;
            (identity, range, own) = (Identity::of(&found), device.range.clone(), Some(device));
            behind.push(next);
        }
    }

    /// Refuses what a loop device other than `own` shows of a file.
    fn refuse_others(
        &self,
        identity: Identity,
        range: &Range<u64>,
        own: Option<&LoopDevice>,
    ) -> Result<(), DiskError> {
        let read_only = self.access.read_only;
        let own = own.map(LoopDevice::name);
        let others = LoopDevice::all(self.sys).filter(|device| Some(device.name()) != own);
        let mut in_the_way = others.filter(|device| !(read_only && device.is_read_only()));
        match in_the_way.find(|device| device.shows(identity, range)) {
            Some(device) => {
                Err(DiskError::LoopDevice { path: self.path.into(), device: device.device(), read_only })
            }
            None => Ok(()),
        }
    }

    /// Opens the file behind `device`, which is open as `over`. `None`, with a warning, where this user cannot reach it.
    fn open_behind(&self, device: &LoopDevice, over: &File) -> Option<(File, Metadata)> {
        let mut options = OpenOptions::new();
        options.read(true).write(!self.access.read_only);
        let opened = open_now(&device.backing, &mut options, 0).and_then(|file| Ok((file.metadata()?, file)));
        let error = match opened {
            Ok((metadata, file)) if is_behind(over, &metadata) => return Some((file, metadata)),
            Ok(_) => io::Error::other("another file is at its path now"),
            Err(error) => error,
        };
        log::warn!(
            "the file {:?} behind the disk {} cannot be locked ({error}): take care that no second machine uses it",
            device.backing,
            shown(self.path)
        );
        None
    }

    fn lock(&self, behind: &File, range: &Range<u64>) -> Result<(), DiskError> {
        let kind = if self.access.read_only { Kind::Shared } else { Kind::Exclusive };
        match lock_range_soon(behind, kind, range) {
            Ok(false) => Err(DiskError::Busy { path: self.path.into(), holder: holder::find(behind) }),
            // A file system without locks was warned of by the lock on the disk itself, or never has any.
            Ok(true) | Err(_) => Ok(()),
        }
    }
}

/// Whether the kernel says that the loop device `over` is over the file of `metadata`. A kernel that does not answer is trusted
/// to have told the right path.
fn is_behind(over: &File, metadata: &Metadata) -> bool {
    /// The beginning of struct loop_info64; the kernel writes all 232 bytes.
    #[repr(C)]
    struct Status {
        device: u64,
        inode: u64,
        rest: [u64; 27],
    }
    let mut status = Status { device: 0, inode: 0, rest: [0; 27] };
    // SAFETY: LOOP_GET_STATUS64 writes a struct loop_info64 of 232 bytes, which lives through the call.
    let result = unsafe { libc::ioctl(over.as_raw_fd(), LOOP_GET_STATUS64, &raw mut status) };
    result < 0 || (status.device, status.inode) == (metadata.dev(), metadata.ino())
}

#[cfg(test)]
pub(super) mod tests;
