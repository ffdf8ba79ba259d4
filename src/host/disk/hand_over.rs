//! Disks that move with their machine to another process: that one opens the same images. They stay open here, without a lock, and are
//! written to by nothing of this process until they are taken back: a guest at rest asks for nothing, and what else would write looks first.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::file::DiskFile;
use super::open_disk::OpenDisk;
use super::rest::DiskMark;
use crate::host::lock::{Kind, try_lock, unlock};

/// Why a disk was not taken back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeBackError {
    /// Another process has it.
    #[error("another process has it locked")]
    Busy,
    /// Another process had it.
    #[error("another process has written to it")]
    Changed,
    /// The host.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl OpenDisk {
    /// The file that the guest's writes change.
    pub(super) fn writable(&self) -> Option<&Arc<DiskFile>> {
        match self {
            _ if self.is_read_only() => None,
            OpenDisk::Raw(file) => Some(file),
            OpenDisk::Image(image) => image.top(),
        }
    }

    /// Lets another process have the disk, which was brought to [`OpenDisk::rest`].
    ///
    /// # Errors
    /// The host refused; it is as before.
    pub(crate) fn release(&self) -> io::Result<()> {
        let Some(file) = self.writable() else { return Ok(()) };
        no_locks(unlock(&file.buffered).map(|()| true))?;
        file.released.store(true, Ordering::Release);
        Ok(())
    }

    /// Takes it back, if it was released. With its mark of then nobody may have written to it since.
    ///
    /// # Errors
    /// [`TakeBackError`]; it is still released.
    pub(crate) fn take_back(&self, since: Option<&DiskMark>) -> Result<(), TakeBackError> {
        let Some(file) = self.writable().filter(|file| file.is_released()) else { return Ok(()) };
        if !no_locks(try_lock(&file.buffered, Kind::Exclusive))? {
            return Err(TakeBackError::Busy);
        }
        if since.is_some_and(|mark| DiskMark::of_file(&file.buffered).is_ok_and(|now| now != *mark)) {
            let _ = unlock(&file.buffered);
            return Err(TakeBackError::Changed);
        }
        file.released.store(false, Ordering::Release);
        Ok(())
    }
}

impl DiskMark {
    /// That of an open image.
    pub(crate) fn of_file(file: &File) -> io::Result<Self> {
        Ok(Self::of(&file.metadata()?))
    }
}

/// A file system without locks was warned of when the disk was opened.
fn no_locks(locked: io::Result<bool>) -> io::Result<bool> {
    match locked {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOLCK | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL)
            ) =>
        {
            Ok(true)
        }
        locked => locked,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use diskimage::{CreateOptions, Format};

    use super::*;
    use crate::spec::DiskSpec;

    #[test]
    fn disk_is_somebody_elses_until_it_is_taken_back_and_not_if_that_one_has_written() {
        let folder = tempfile::tempdir().unwrap();
        let (raw, qcow2) = (folder.path().join("vda.raw"), folder.path().join("vdb.qcow2"));
        File::create(&raw).unwrap().set_len(1 << 20).unwrap();
        let options = CreateOptions::new(Format::Qcow2, 1 << 20);
        let file = File::options().create_new(true).read(true).write(true).open(&qcow2).unwrap();
        diskimage::create(&file, &qcow2, &options).unwrap();
        drop(file);
        for path in [raw, qcow2] {
            let spec = DiskSpec::new(&path);
            let disk = OpenDisk::open(&spec).unwrap();
            let mark = disk.rest().unwrap().unwrap();
            disk.take_back(Some(&mark)).unwrap();
            assert!(OpenDisk::open(&spec).is_err());
            disk.release().unwrap();
            let other = OpenDisk::open(&spec).unwrap();
            assert!(matches!(disk.take_back(None), Err(TakeBackError::Busy)));
            assert!(disk.grow(2 << 20).is_err());
            drop(other);
            // Neither has written.
            disk.take_back(Some(&mark)).unwrap();
            assert!(OpenDisk::open(&spec).is_err());
            let mark = disk.rest().unwrap().unwrap();
            disk.release().unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
            assert!(matches!(disk.take_back(Some(&mark)), Err(TakeBackError::Changed)));
            // It is closed as it is.
            file.write_all_at(b"other", 600_000).unwrap();
            let mark = DiskMark::of_file(&file).unwrap();
            drop(disk);
            assert_eq!(DiskMark::of_file(&file).unwrap(), mark);
            if path.ends_with("vda.raw") {
                OpenDisk::open(&spec).unwrap();
            }
        }
    }
}
