//! Opens the files of disk images: each is locked, and said by its name where that fails.

use std::fs::{File, Metadata};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use diskimage::{ImageError, Opener};

use super::disk::{Access, DiskError, DiskHolder, FilesBehind, find_holder, lock, open_file, open_no_link};
use super::identity::identity;
use super::lock::is_locked;

/// Opens images and the images below them, and keeps them open: the locks end with it.
#[derive(Debug, Default)]
pub(crate) struct ImageOpener {
    opened: Vec<Opened>,
    /// For a look: nothing is locked, and files in use are put down here.
    busy: Option<Vec<Busy>>,
}

/// A file in use.
#[derive(Debug)]
pub(crate) struct Busy {
    pub(crate) path: PathBuf,
    pub(crate) holder: Option<DiskHolder>,
}

#[derive(Debug)]
struct Opened {
    file: File,
    identity: (u64, u64),
    write: bool,
    _behind: FilesBehind,
}

impl ImageOpener {
    /// For a look at images that machines may be writing. It locks nothing, so that no machine fails to start meanwhile.
    pub(crate) fn for_a_look() -> Self {
        ImageOpener { opened: Vec::new(), busy: Some(Vec::new()) }
    }

    /// The files in use that were opened for a look.
    pub(crate) fn busy(&self) -> &[Busy] {
        self.busy.as_deref().unwrap_or_default()
    }

    /// Opens and locks the file at `path`: exclusively for writing, shared for reading.
    pub(crate) fn open_disk(&mut self, path: &Path, write: bool) -> Result<File, DiskError> {
        let access = Access { read_only: !write, direct: false };
        if let Some(file) = self.same_device(path, write) {
            return file;
        }
        let opened = open_file(path, access)?;
        self.take(opened, path, access)
    }

    /// The file of a block device that is open already: to be written to it is open for one only, and not even this process can open it again.
    fn same_device(&self, path: &Path, write: bool) -> Option<Result<File, DiskError>> {
        let metadata = path.metadata().ok().filter(|found| found.file_type().is_block_device())?;
        self.same(&metadata, write).map(|opened| opened.again(path))
    }

    fn same(&self, metadata: &Metadata, write: bool) -> Option<&Opened> {
        self.opened.iter().find(|opened| is_of(opened, metadata) && (opened.write || !write))
    }

    /// Locks an open file and keeps it.
    fn take(
        &mut self,
        (file, metadata): (File, Metadata),
        path: &Path,
        access: Access,
    ) -> Result<File, DiskError> {
        let write = !access.read_only;
        if let Some(opened) = self.same(&metadata, write) {
            // The lock belongs to the open file: another one of the same file would be locked out by it.
            return opened.again(path);
        }
        let behind = match &mut self.busy {
            None => lock(&file, &metadata, path, access)?,
            Some(busy) if is_locked(&file).unwrap_or(false) => {
                busy.push(Busy { path: path.into(), holder: find_holder(&file) });
                FilesBehind::default()
            }
            Some(_) => FilesBehind::default(),
        };
        let kept = file.try_clone().map_err(|error| DiskError::Io {
            path: path.into(),
            action: "keeping it open",
            error,
        })?;
        self.opened.push(Opened { file: kept, identity: identity(&metadata), write, _behind: behind });
        Ok(file)
    }
}

impl Opened {
    fn again(&self, path: &Path) -> Result<File, DiskError> {
        self.file.try_clone().map_err(|error| DiskError::Io {
            path: path.into(),
            action: "opening it once more",
            error,
        })
    }
}

fn is_of(opened: &Opened, metadata: &Metadata) -> bool {
    // Device files on several file systems may be of one device.
    opened.identity == identity(metadata)
}

impl Opener for ImageOpener {
    fn open(
        &mut self,
        path: &Path,
        diskimage::Access { write, named, .. }: diskimage::Access,
    ) -> Result<File, ImageError> {
        let access = Access { read_only: !write, direct: false };
        if let Some(file) = self.same_device(path, write).filter(|_| named) {
            return file.map_err(|error| ImageError::Opener(Box::new(error)));
        }
        let opened = if named { open_file(path, access) } else { open_no_link(path, access) };
        opened
            .and_then(|opened| self.take(opened, path, access))
            .map_err(|error| ImageError::Opener(Box::new(error)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [0; 512]).unwrap();
        file
    }

    #[test]
    fn file_that_is_written_is_nobody_elses() {
        let file = file();
        let mut first = ImageOpener::default();
        first.open_disk(file.path(), true).unwrap();
        let error = ImageOpener::default().open_disk(file.path(), false).unwrap_err();
        let DiskError::Busy { holder: Some(holder), .. } = error else { panic!("{error}") };
        assert_eq!(holder.pid, std::process::id());
        drop(first);
        ImageOpener::default().open_disk(file.path(), true).unwrap();
    }

    #[test]
    fn file_that_is_read_is_everybodys() {
        let file = file();
        let (mut first, mut second) = (ImageOpener::default(), ImageOpener::default());
        first.open_disk(file.path(), false).unwrap();
        second.open_disk(file.path(), false).unwrap();
        let written = ImageOpener::default().open_disk(file.path(), true);
        assert!(matches!(written, Err(DiskError::Busy { .. })), "{written:?}");
    }

    #[test]
    fn chain_and_the_image_below_it_do_not_lock_each_other_out() {
        let file = file();
        let mut opener = ImageOpener::default();
        let base = opener.open_disk(file.path(), true).unwrap();
        let again = opener.open_disk(file.path(), false).unwrap();
        drop((base, again));
        assert!(
            ImageOpener::default().open_disk(file.path(), false).is_err(),
            "locked as long as the opener lives"
        );
    }

    #[test]
    fn look_at_a_file_in_use_says_who_uses_it() {
        let file = file();
        let mut user = ImageOpener::default();
        user.open_disk(file.path(), true).unwrap();
        let mut look = ImageOpener::for_a_look();
        look.open_disk(file.path(), false).unwrap();
        assert_eq!(look.busy().len(), 1);
        drop(user);
        ImageOpener::default().open_disk(file.path(), true).expect("a look locks nothing");
        assert_eq!(look.busy()[0].holder.as_ref().map(|holder| holder.pid), Some(std::process::id()));
    }

    #[test]
    fn link_is_followed_only_where_the_user_named_it() {
        let (file, folder) = (file(), tempfile::tempdir().unwrap());
        let link = folder.path().join("base.raw");
        std::os::unix::fs::symlink(file.path(), &link).unwrap();
        let mut opener = ImageOpener::default();
        opener.open(&link, diskimage::Access::named(false)).unwrap();
        let mut access = diskimage::Access::named(false);
        access.named = false;
        let said = opener.open(&link, access).unwrap_err().to_string();
        assert!(said.contains("a symbolic link"), "{said}");
        opener.open(file.path(), access).unwrap();
    }

    #[test]
    fn what_is_no_file_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), Path::new("/dev/zero")] {
            let error = ImageOpener::default().open_disk(path, false).unwrap_err();
            assert!(matches!(error, DiskError::NotADisk { .. }), "{error}");
        }
    }
}
