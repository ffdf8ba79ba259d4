//! The folder of a clone: there as a whole or not at all. What the clone begins from is in it until its guest runs, which is how one
//! that was not finished is known. The next clone for the same folder removes it; one that has not got its name yet goes with the next clone or
//! save beside it.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::error::CloneError;
use super::source::MACHINE_FILE;
use crate::host::new_file;
use crate::host::new_folder::{NewFolder, remove_unfinished};
use crate::saved::{CLONE_BEGINNING as BEGINNING, sweep_unfinished};

/// One that is being filled. Dropped before [`CloneFolder::keep`], it is gone.
#[derive(Debug)]
pub(super) struct CloneFolder {
    new: NewFolder,
    target: PathBuf,
}

/// One that has its name. Dropped before its guest runs, it is gone.
#[derive(Debug)]
pub(super) struct Unfinished {
    target: PathBuf,
    _lock: File,
    runs: Arc<AtomicBool>,
}

fn failed(target: &Path) -> impl Fn(io::Error) -> CloneError {
    move |source| match source.kind() {
        ErrorKind::WouldBlock => CloneError::Busy(target.into()),
        _ => CloneError::Unwritable { path: target.into(), source },
    }
}

/// What may be in the folder of a clone that has not run. One with anything else is nobody's to remove.
fn is_ours(name: &OsStr) -> bool {
    let has_ending = |ending: &str| Path::new(name).extension().is_some_and(|found| found == ending);
    name == BEGINNING || name == MACHINE_FILE || ["raw", "qcow2", "sock"].into_iter().any(has_ending)
}

impl CloneFolder {
    /// Begins one that is to be `target`.
    pub(super) fn create(target: &Path) -> Result<Self, CloneError> {
        let failed = failed(target);
        remove_unfinished(target, BEGINNING, &is_ours).map_err(&failed)?;
        sweep_unfinished(new_file::folder(target));
        let is_empty = || target.read_dir().is_ok_and(|mut entries| entries.next().is_none());
        if target.symlink_metadata().is_ok_and(|found| !found.is_dir() || !is_empty()) {
            return Err(CloneError::Exists(target.into()));
        }
        Ok(CloneFolder { new: NewFolder::create(target).map_err(failed)?, target: target.into() })
    }

    /// Where a file is to be in the end.
    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    /// Where a file is for now.
    pub(super) fn now(&self, name: &str) -> PathBuf {
        self.new.path().join(name)
    }

    /// Where the machine is saved that the clone goes on from.
    pub(super) fn beginning(&self) -> PathBuf {
        self.now(BEGINNING)
    }

    /// The same as an empty folder, for a clone that goes on from another one.
    pub(super) fn begin(&self) -> Result<(), CloneError> {
        DirBuilder::new().mode(0o700).create(self.beginning()).map_err(failed(&self.target))
    }

    /// A new file in it.
    pub(super) fn file(&self, name: &str) -> io::Result<File> {
        self.new.file(name)
    }

    /// The same with this text.
    pub(super) fn write(&self, name: &str, text: &str) -> Result<(), CloneError> {
        let write = || {
            let mut file = self.file(name)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        write().map_err(failed(&self.target))
    }

    /// Gives it its name, when all of it is on the medium.
    pub(super) fn keep(self) -> Result<Unfinished, CloneError> {
        let target = self.target;
        let lock = self.new.keep_locked().map_err(|error| match error.raw_os_error() {
            Some(libc::EEXIST | libc::ENOTEMPTY | libc::ENOTDIR) => CloneError::Exists(target.clone()),
            _ => failed(&target)(error),
        })?;
        Ok(Unfinished { target, _lock: lock, runs: Arc::default() })
    }
}

impl Unfinished {
    /// To be called when the guest is about to run. Its memory is mapped, and needs no name.
    pub(super) fn finish(&self) -> impl FnOnce() -> io::Result<()> + Send + use<> {
        let (beginning, runs) = (self.target.join(BEGINNING), self.runs.clone());
        move || {
            match fs::remove_dir_all(&beginning) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => runs.store(true, Ordering::Relaxed),
            }
            Ok(())
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.runs.load(Ordering::Relaxed) {
            let _ = fs::remove_dir_all(&self.target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_is_gone_until_its_guest_runs_and_a_rest_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("vm1");
        let names = || fs::read_dir(root.path()).unwrap().count();
        let begun = || {
            let folder = CloneFolder::create(&target).unwrap();
            folder.begin().unwrap();
            folder.write("vm.toml", "version = 1").unwrap();
            folder.keep().unwrap()
        };
        drop(CloneFolder::create(&target).unwrap());
        assert_eq!(names(), 0);
        let unfinished = begun();
        assert!(target.join("vm.toml").exists());
        // Nobody takes it away from a process that is about to run it.
        assert!(matches!(CloneFolder::create(&target), Err(CloneError::Busy(_))));
        drop(unfinished);
        assert_eq!(names(), 0);
        // Killed.
        let unfinished = begun();
        let rest = root.path().join("rest");
        fs::rename(&target, &rest).unwrap();
        drop(unfinished);
        fs::rename(&rest, &target).unwrap();
        // Another's file is in it.
        let unfinished = begun();
        let mine = target.join("mine");
        fs::write(&mine, "").unwrap();
        fs::rename(&target, &rest).unwrap();
        drop(unfinished);
        fs::rename(&rest, &target).unwrap();
        assert!(matches!(CloneFolder::create(&target), Err(CloneError::Exists(_))));
        fs::remove_file(mine).unwrap();
        let unfinished = begun();
        unfinished.finish()().unwrap();
        drop(unfinished);
        assert!(target.join("vm.toml").exists() && !target.join(BEGINNING).exists());
        assert!(matches!(CloneFolder::create(&target), Err(CloneError::Exists(_))));
        assert_eq!(names(), 1);
    }

    #[test]
    fn what_a_killed_clone_has_left_goes_with_the_next_one_of_any_name() {
        let root = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[&str]| {
            let folder = root.path().join(name);
            files.iter().for_each(|file| {
                let file = folder.join(file);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, "").unwrap();
            });
        };
        // While the original is saved, and when its disks are made.
        make(".vm1.part", &["..minivmm-beginning.part/memory", "..minivmm-beginning.part/vda.raw"]);
        make(".vm2.part", &[".minivmm-beginning/memory", "vm.toml", "vda.qcow2"]);
        // Somebody's own, and one without anything to know it by.
        make(".mine.part", &[".minivmm-beginning/memory", "thesis"]);
        make(".disks.part", &["vm.toml", "vda.raw"]);
        let busy = NewFolder::create(&root.path().join("busy")).unwrap();
        make(".busy.part", &[".minivmm-beginning/memory"]);
        drop(CloneFolder::create(&root.path().join("vm3")).unwrap());
        let mut left: Vec<_> =
            fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".busy.part", ".disks.part", ".mine.part"]);
        drop(busy);
    }
}
