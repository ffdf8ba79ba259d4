//! A folder that is there as a whole or not at all: it has another name until it is finished.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::file_system::magic;
use super::lock::{try_lock_folder, user};
use super::new_file::{self, is_same};
use super::soon::soon;
use crate::shown::path as shown;

/// How often a name is tried that others take and leave.
const ATTEMPTS: u32 = 10;
/// Behind the name of a folder that is not finished, which begins with a dot then.
const PART: &str = ".part";
/// Most entries of what [`sweep`] removes: more than any folder has that is filled here.
const MOST: usize = 256;

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
    /// Makes a folder that is to be `target`, beside it and for this user alone. One that is given up at this moment is waited for.
    /// [`ErrorKind::WouldBlock`]: another process makes it.
    pub(crate) fn create(target: &Path) -> io::Result<Self> {
        soon(|| Self::create_now(target), is_busy)
    }

    fn create_now(target: &Path) -> io::Result<Self> {
        let name = target.file_name().ok_or(ErrorKind::InvalidInput)?;
        let mut temporary = OsString::from(".");
        temporary.push(name);
        temporary.push(PART);
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
            let text = format!("{} is not there any more, or has been replaced", shown(&self.temporary));
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

fn is_busy(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

/// Removes the folder `path` if it has an entry `mark`, no entry that is not `known`, and nobody has its lock. One that is given up at this
/// moment is waited for. [`ErrorKind::WouldBlock`] if somebody has the lock.
pub(crate) fn remove_unfinished(path: &Path, mark: &str, known: &dyn Fn(&OsStr) -> bool) -> io::Result<()> {
    let has_mark = |names: &[OsString]| names.iter().any(|name| name == mark);
    let is_rest = |names: &[OsString]| has_mark(names) && names.iter().all(|name| known(name));
    if fs::symlink_metadata(path.join(mark)).is_err() {
        return Ok(());
    }
    soon(|| remove_rest(path, &is_rest), is_busy)
}

/// Removes what processes that were killed have left in `parent` of new folders, whatever they were to be called: this user's, if `is_rest`
/// says so of the names in them, and nobody has the lock. What it finds there that cannot be removed stays for the next time. Nothing
/// is removed where another host's process may be at work, whose locks are not seen here.
pub(crate) fn sweep(parent: &Path, is_rest: &dyn Fn(&[OsString]) -> bool) {
    if !File::open(parent).and_then(|folder| is_local(&folder)).unwrap_or(false) {
        return;
    }
    for entry in parent.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.as_bytes().starts_with(b".") && name.as_bytes().ends_with(PART.as_bytes()) {
            let _ = remove_rest(&entry.path(), is_rest);
        }
    }
}

/// Whether only this host's processes can have it: numbers of statfs(2) (linux/magic.h) of file systems that several have.
fn is_local(folder: &File) -> io::Result<bool> {
    const SHARED: [u64; 12] = [
        0x6969,      // NFS
        0x6573_5546, // FUSE, virtio-fs
        0x0102_1997, // 9p
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB 2
        0x517b,      // SMB
        0x00c3_6400, // Ceph
        0x0116_1970, // GFS2
        0x7461_636f, // OCFS2
        0x0bd0_0bd0, // Lustre
        0x5346_414f, // AFS
        0x786f_4256, // shared folders of VirtualBox
    ];
    Ok(!SHARED.contains(&magic(folder)?))
}

/// Removes this user's folder `path` if `is_rest` says so of the names in it, and nobody has its lock; [`ErrorKind::WouldBlock`] if somebody has.
fn remove_rest(path: &Path, is_rest: &dyn Fn(&[OsString]) -> bool) -> io::Result<()> {
    let folder = match open_folder(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        folder => folder?,
    };
    if folder.metadata()?.uid() != user() {
        return Ok(());
    }
    if !try_lock_folder(&folder)? {
        return Err(ErrorKind::WouldBlock.into());
    }
    // Whoever fills it has the lock before the first file: one that was made just now is empty, and no rest.
    let names = path.read_dir()?.take(MOST + 1).map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<io::Result<Vec<_>>>()?;
    // It may have been finished, or replaced, until it was locked.
    if names.len() <= MOST && is_rest(&names) && is_same(&folder, path) {
        fs::remove_dir_all(path)?;
    }
    Ok(())
}

fn open_folder(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
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
        assert_eq!(NewFolder::create_now(&target).unwrap_err().kind(), ErrorKind::WouldBlock);
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
    fn one_that_is_given_up_at_this_moment_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("saved");
        let new = NewFolder::create(&target).unwrap();
        let mut attempts = 0;
        let mut other = Some(new);
        let attempt = || {
            attempts += 1;
            if attempts == 3 {
                other = None;
            }
            NewFolder::create_now(&target)
        };
        soon(attempt, is_busy).unwrap().keep().unwrap();
        assert_eq!((attempts, names(root.path())), (3, vec!["saved".into()]));
    }

    #[test]
    fn rests_of_any_name_are_swept_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let make = |name: &str, file: &str| {
            fs::create_dir(root.path().join(name)).unwrap();
            fs::write(root.path().join(name).join(file), "half").unwrap();
        };
        make(".killed.part", "memory");
        make(".saved.1.part", "memory");
        let stays = [(".other.part", "theirs"), ("memory.part", "memory"), (".memory", "memory")];
        stays.iter().for_each(|(name, file)| make(name, file));
        // It has no file yet, and is locked in a moment.
        fs::create_dir(root.path().join(".begun.part")).unwrap();
        std::os::unix::fs::symlink(root.path().join(".memory"), root.path().join(".link.part")).unwrap();
        let new = NewFolder::create(&root.path().join("busy")).unwrap();
        new.file("memory").unwrap();
        sweep(root.path(), &|names| names.iter().any(|name| name == "memory"));
        let mut left = names(root.path());
        left.sort();
        let expected = [".begun.part", ".busy.part", ".link.part", ".memory", ".other.part", "memory.part"];
        assert_eq!(left, expected);
        new.keep().unwrap();
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
