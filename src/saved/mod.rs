//! A saved machine on the host's disk: a folder with `machine.json` (what the machine is, and a list of the sections), `state` (a
//! section for each component, one behind the other) and `memory` (its contents, with holes for zeros).
//!
//! The folder is there as a whole or not at all. What is read is hostile: sizes are bounded, sections have checksums, and each
//! component checks its own fields when the machine is made.

mod error;
mod manifest;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub use error::SavedMachineError;
use manifest::Manifest;

use crate::host::disk::DiskMark;
use crate::host::lock::{Kind, try_lock};
use crate::host::new_folder::NewFolder;
use crate::host::open_now::open_now;
use crate::machine::files::Restore;
use crate::machine::{MachineBuilder, SavedState};
use crate::spec::{MachineName, Spec};

const MANIFEST: &str = "machine.json";
const STATE: &str = "state";
const MEMORY: &str = "memory";

/// Most bytes of `machine.json`: one has some kilobytes.
const MOST_MANIFEST: u64 = 4 << 20;
/// Most bytes of `state`: a vCPU has some 30 KiB, a device a few hundred bytes and what its queues hold.
const MOST_STATE: u64 = 256 << 20;

/// A saved machine, opened and checked as far as that needs no machine.
#[derive(Debug)]
pub struct SavedMachine {
    spec: Spec,
    marks: Vec<Option<DiskMark>>,
    state: SavedState,
    memory: File,
}

impl SavedMachine {
    /// Opens the folder that [`Controls::save_to`](crate::Controls::save_to) has made.
    ///
    /// # Errors
    /// [`SavedMachineError`] says what is missing or damaged.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, SavedMachineError> {
        let folder = folder.as_ref();
        let manifest = Manifest::parse(folder, &read(folder, MANIFEST, MOST_MANIFEST)?)?;
        let state = manifest.sections(folder, &read(folder, STATE, MOST_STATE)?)?;
        let memory = open(folder, MEMORY)?;
        let failed = |source| SavedMachineError::Unreadable { path: folder.join(MEMORY), source };
        // For as long as a machine has it mapped.
        if !try_lock(&memory, Kind::Shared).map_err(failed)? {
            return Err(SavedMachineError::Busy(folder.into()));
        }
        let (own, said) = (memory.metadata().map_err(failed)?.len(), manifest.memory);
        if own != said {
            let reason = format!("its memory has {own} bytes and should have {said}");
            return Err(SavedMachineError::Damaged { folder: folder.into(), reason });
        }
        Ok(SavedMachine { spec: manifest.spec, marks: manifest.disks, state, memory })
    }

    /// What the machine is made of, with absolute paths.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Checks that the disks are there as they were when the machine was saved, as far as length and time of change tell. A guest that
    /// goes on with other disks damages the file systems on them, because it has parts of those in its memory.
    ///
    /// # Errors
    /// [`SavedMachineError::DiskChanged`], [`SavedMachineError::Disk`].
    pub fn check_disks(&self) -> Result<(), SavedMachineError> {
        for (disk, mark) in self.spec.disk.iter().zip(&self.marks) {
            let path = disk.image();
            let now =
                DiskMark::at(path).map_err(|source| SavedMachineError::Disk { path: path.into(), source })?;
            if mark.is_some_and(|saved| saved != now) {
                return Err(SavedMachineError::DiskChanged(path.into()));
            }
        }
        Ok(())
    }

    /// Gives the machine that is made from it another name, or none.
    pub fn set_name(&mut self, name: Option<MachineName>) {
        self.spec.name = name;
    }

    /// A machine about to go on from it. See [`MachineBuilder::restore`].
    pub fn into_builder(self) -> MachineBuilder {
        crate::Machine::builder(&self.spec).restore(self.state, self.memory)
    }

    /// What the machine is made of, and what it goes on from.
    pub(crate) fn into_parts(self) -> (Spec, Restore) {
        (self.spec, Restore::new(self.state, self.memory))
    }
}

/// A saved machine that is being written. Dropped before [`NewSavedMachine::keep`] nothing is left of it.
#[derive(Debug)]
pub(crate) struct NewSavedMachine {
    folder: NewFolder,
    target: PathBuf,
    memory: File,
}

impl NewSavedMachine {
    /// Begins to write one that is to be the folder `target`.
    pub(crate) fn create(target: &Path) -> Result<Self, SavedMachineError> {
        if target.symlink_metadata().is_ok() && !is_empty_folder(target) {
            return Err(SavedMachineError::Exists(target.into()));
        }
        let folder = NewFolder::create(target).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => SavedMachineError::Busy(target.into()),
            _ => unwritable(target)(error),
        })?;
        let memory = folder.file(MEMORY).map_err(unwritable(target))?;
        Ok(NewSavedMachine { folder, target: target.into(), memory })
    }

    /// Where the contents of memory go.
    pub(crate) fn memory(&self) -> &File {
        &self.memory
    }

    /// Writes the rest, and gives the folder its name.
    pub(crate) fn keep(
        self,
        spec: Spec,
        state: &SavedState,
        disks: Vec<Option<DiskMark>>,
    ) -> Result<(), SavedMachineError> {
        let failed = unwritable(&self.target);
        let saved_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let memory = self.memory.metadata().map_err(&failed)?.len();
        let spec = with_absolute_paths(spec).map_err(&failed)?;
        let (manifest, sections) =
            Manifest::new(spec, disks, saved_at, memory, state).map_err(|error| failed(error.into()))?;
        let manifest = serde_json::to_vec_pretty(&manifest).map_err(|error| failed(error.into()))?;
        let write = || {
            for (name, bytes) in [(STATE, &sections), (MANIFEST, &manifest)] {
                let mut file = self.folder.file(name)?;
                file.write_all(bytes)?;
                file.sync_all()?;
            }
            self.memory.sync_all()
        };
        write().map_err(&failed)?;
        self.folder.keep().map_err(|error| match error.raw_os_error() {
            Some(libc::EEXIST | libc::ENOTEMPTY | libc::ENOTDIR) => {
                SavedMachineError::Exists(self.target.clone())
            }
            _ => failed(error),
        })
    }
}

fn unwritable(target: &Path) -> impl Fn(io::Error) -> SavedMachineError {
    move |source| SavedMachineError::Unwritable { folder: target.into(), source }
}

fn is_empty_folder(path: &Path) -> bool {
    let is_folder = path.symlink_metadata().is_ok_and(|found| found.is_dir());
    is_folder && path.read_dir().is_ok_and(|mut entries| entries.next().is_none())
}

/// A saved machine is restored from any working directory.
pub(crate) fn with_absolute_paths(mut spec: Spec) -> io::Result<Spec> {
    spec.paths_mut().try_for_each(|path| {
        *path = std::path::absolute(&*path)?;
        Ok::<_, io::Error>(())
    })?;
    Ok(spec)
}

/// Opens a regular file in a folder: no pipe that never answers, and no link to what the folder does not hold.
fn open(folder: &Path, name: &str) -> Result<File, SavedMachineError> {
    let path = folder.join(name);
    let file = match open_now(&path, File::options().read(true), libc::O_NOFOLLOW) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && name == MANIFEST => {
            return Err(SavedMachineError::NotSaved(folder.into()));
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(SavedMachineError::NotSaved(folder.into()));
        }
        opened => opened.map_err(|source| SavedMachineError::Unreadable { path: path.clone(), source })?,
    };
    if file.metadata().is_ok_and(|found| found.is_file()) {
        return Ok(file);
    }
    let reason = format!("{name} is no regular file");
    Err(SavedMachineError::Damaged { folder: folder.into(), reason })
}

/// All of a small file.
fn read(folder: &Path, name: &str, most: u64) -> Result<Vec<u8>, SavedMachineError> {
    let mut bytes = Vec::new();
    let failed = |source| SavedMachineError::Unreadable { path: folder.join(name), source };
    open(folder, name)?.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 <= most {
        return Ok(bytes);
    }
    let reason = format!("{name} is longer than {most} bytes");
    Err(SavedMachineError::Damaged { folder: folder.into(), reason })
}
