//! A folder that is there as a whole or not at all: it has another name until it is finished.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::lock::try_lock_folder;
use super::new_file;

/// How often a name is tried that others take and leave.
const ATTEMPTS: u32 = 10;

/// A folder to be filled. Dropped before [`NewFolder::keep`] it is gone. Of one that SIGKILL left, the next one for the same target
/// removes the rest.
#[derive(Debug)]
pub(crate) struct NewFolder {
    target: PathBuf,
    /// Its name for now.
    temporary: PathBuf,
    /// The open folder, with a lock that says that somebody fills it.
    folder: File,
    kept: bool,
}

impl NewFolder {
    /// Makes a folder that is to be `target`, beside it and for this user alone. [`ErrorKind::WouldBlock`]: another process does so.
    pub(crate) fn create(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or(ErrorKind::InvalidInput)?;
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(".part");
        let temporary = target.with_file_name(temporary);
        for _ in 0..ATTEMPTS {
            let made = DirBuilder::new().mode(0o700).create(&temporary);
            let is_new = match made {
                Ok(()) => true,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
                Err(error) => return Err(error),
            };
            let folder = match open_folder(&temporary) {
                // Another process has removed it.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                folder => folder?,
            };
            if !try_lock_folder(&folder)? {
                return Err(ErrorKind::WouldBlock.into());
            }
            if !is_same(&folder, &temporary) {
                continue;
            }
            if is_new {
                return Ok(NewFolder { target: target.into(), temporary, folder, kept: false });
            }
            fs::remove_dir_all(&temporary)?;
        }
        Err(ErrorKind::WouldBlock.into())
    }

    /// Its path for now.
    pub(crate) fn path(&self) -> &Path {
        &self.temporary
    }

    /// The open folder, which stays this one whatever has its name.
    #[cfg(feature = "cli")]
    pub(crate) fn folder(&self) -> &File {
        &self.folder
    }

    /// As [`NewFolder::keep`]; gives the open folder, which is locked until that is closed.
    pub(crate) fn keep_locked(self) -> io::Result<File> {
        let folder = self.folder.try_clone()?;
        self.keep()?;
        Ok(folder)
    }

    /// A new file in it, to be read and written by this user alone.
    pub(crate) fn file(&self, name: &str) -> io::Result<File> {
        File::options().read(true).write(true).create_new(true).mode(0o600).open(self.temporary.join(name))
    }

    /// Gives the folder its name, when the caller has written its files to the medium. It takes the place of an empty folder; any
    /// other thing of that name is an error.
    pub(crate) fn keep(mut self) -> io::Result<()> {
        self.folder.sync_all()?;
        if !is_same(&self.folder, &self.temporary) {
            let text = format!("{} is not there any more, or has been replaced", self.temporary.display());
            return Err(io::Error::other(text));
        }
        fs::rename(&self.temporary, &self.target)?;
        self.kept = true;
        // The name as well, where the file system can: some network ones cannot.
        File::open(new_file::folder(&self.target)).and_then(|parent| parent.sync_all()).or(Ok(()))
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        // What somebody else has put there is not ours.
        if !self.kept && is_same(&self.folder, &self.temporary) {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// Removes the folder `path` if it has an entry `mark`, no entry that is not `known`, and nobody has its lock;
/// [`ErrorKind::WouldBlock`] if somebody has.
pub(crate) fn remove_unfinished(path: &Path, mark: &str, known: &dyn Fn(&OsStr) -> bool) -> io::Result<()> {
    if fs::symlink_metadata(path.join(mark)).is_err() {
        return Ok(());
    }
    let folder = open_folder(path)?;
    if !try_lock_folder(&folder)? {
        return Err(ErrorKind::WouldBlock.into());
    }
    let is_known = |entry: io::Result<fs::DirEntry>| entry.is_ok_and(|entry| known(&entry.file_name()));
    let all_known = path.read_dir()?.all(is_known);
    // It may have been finished, or replaced, until it was locked.
    if all_known && is_same(&folder, path) && fs::symlink_metadata(path.join(mark)).is_ok() {
        fs::remove_dir_all(path)?;
    }
    Ok(())
}

fn open_folder(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// Whether `path` still is that folder.
fn is_same(folder: &File, path: &Path) -> bool {
    let own = folder.metadata().map(|found| (found.dev(), found.ino()));
    let named = fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((own, named), (Ok(own), Ok(named)) if own == named)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn folder_is_there_as_a_whole_or_not_at_all() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("saved");
        let new = NewFolder::create(&target).unwrap();
        new.file("half").unwrap().write_all(b"half").unwrap();
        assert!(!target.exists());
        // Nobody else fills it meanwhile, and nobody removes it.
        assert_eq!(NewFolder::create(&target).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(new);
        assert!(names(root.path()).is_empty());
        let new = NewFolder::create(&target).unwrap();
        new.file("whole").unwrap();
        new.keep().unwrap();
        assert_eq!((names(root.path()), names(&target)), (vec!["saved".into()], vec!["whole".into()]));
        assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_somebody_puts_in_its_place_is_neither_kept_nor_removed() {
        let root = tempfile::tempdir().unwrap();
        let (temporary, theirs) = (root.path().join(".saved.part"), root.path().join("theirs"));
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("mine"), "").unwrap();
        let new = NewFolder::create(&root.path().join("saved")).unwrap();
        fs::rename(&temporary, root.path().join("moved")).unwrap();
        fs::rename(&theirs, &temporary).unwrap();
        assert!(new.keep().unwrap_err().to_string().contains("has been replaced"));
        assert!(temporary.join("mine").exists() && !root.path().join("saved").exists());
    }

    #[test]
    fn rest_of_one_that_was_killed_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let rest = root.path().join(".saved.part");
        fs::create_dir(&rest).unwrap();
        fs::write(rest.join("memory"), "half").unwrap();
        let new = NewFolder::create(&root.path().join("saved")).unwrap();
        assert!(names(&rest).is_empty());
        new.keep().unwrap();
        assert_eq!(names(root.path()), ["saved"]);
    }

    #[test]
    fn an_empty_folder_is_taken_and_no_other_is_touched() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("saved");
        fs::create_dir(&target).unwrap();
        NewFolder::create(&target).unwrap().keep().unwrap();
        fs::write(target.join("mine"), "").unwrap();
        assert!(NewFolder::create(&target).unwrap().keep().is_err());
        assert_eq!(names(&target), ["mine"]);
        fs::write(root.path().join("file"), "").unwrap();
        assert!(NewFolder::create(&root.path().join("file")).unwrap().keep().is_err());
        // A link that somebody has put there is not followed.
        std::os::unix::fs::symlink(&target, root.path().join(".other.part")).unwrap();
        assert!(NewFolder::create(&root.path().join("other")).is_err());
        assert_eq!(names(&target), ["mine"]);
    }
}
