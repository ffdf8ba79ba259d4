//! A saved machine on the host's disk: a folder with `machine.json` (what the machine is, and a list of the sections), `state` (a
//! section for each component, one behind the other) and `memory` (its contents, with holes for zeros). It may hold copies of the disks that
//! the guest writes to, such as `vda.raw`; a disk without a copy stays where it is, and `machine.json` has the mark that it had.
//!
//! The folder is there as a whole or not at all. What is read is hostile: sizes are bounded, sections have checksums, and each
//! component checks its own fields when the machine is made.

mod error;
mod manifest;
mod overlays;
mod put_back;
mod summary;
#[cfg(test)]
mod tests;
mod working_set;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub use error::SavedMachineError;
pub(crate) use manifest::{MOST_COST, MOST_SECTIONS, MOST_STATE, copied_format, copy_name, cost};
use manifest::{Manifest, SavedDisk};
pub(crate) use overlays::note_overlays;
pub(crate) use overlays::overlay_on;
#[cfg(feature = "cli")]
pub(crate) use put_back::finish_exchange;
pub(crate) use put_back::{ExchangedDisks, NewDisks};
pub(crate) use summary::{SavedSummary, is_disk_in_use, summary};
pub(crate) use working_set::WorkingSet;

use crate::host::disk::{DiskMark, WrittenFile, base_of};
use crate::host::lock::Kind;
use crate::host::lock_soon::lock_soon;
use crate::host::new_file;
use crate::host::new_folder::{NewFolder, sweep};
use crate::host::open_now::open_now;
use crate::image::printable;
use crate::machine::files::Restore;
use crate::machine::{MachineBuilder, SavedState, disk_id};
use crate::spec::{DiskSpec, MachineName, ShareOrigin, Spec};

const MANIFEST: &str = "machine.json";
const STATE: &str = "state";
const MEMORY: &str = "memory";
/// What a clone begins from, a saved machine, in the clone's folder until its guest runs.
pub(crate) const CLONE_BEGINNING: &str = ".minivmm-beginning";

/// Most bytes of `machine.json`: one has some kilobytes.
const MOST_MANIFEST: u64 = 4 << 20;

/// A saved machine, opened and checked as far as that needs no machine.
#[derive(Debug)]
pub struct SavedMachine {
    folder: PathBuf,
    spec: Spec,
    disks: Vec<Option<SavedDisk>>,
    /// What the copies lie on, by the number of the disk.
    bases: BTreeMap<usize, PathBuf>,
    state: SavedState,
    memory: File,
    /// CRC-32 of `machine.json`.
    checksum: u32,
    prefetch: Option<WorkingSet>,
    /// Its guest waits for a command.
    takes_commands: bool,
}

impl SavedMachine {
    /// Opens the folder that [`Controls::save_to`](crate::Controls::save_to) has made.
    ///
    /// # Errors
    /// [`SavedMachineError`] says what is missing or damaged.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, SavedMachineError> {
        let folder = folder.as_ref();
        let text = read(folder, MANIFEST, MOST_MANIFEST)?;
        let (manifest, checksum) = (Manifest::parse(folder, &text)?, crc32fast::hash(&text));
        let state = manifest.sections(folder, &read(folder, STATE, MOST_STATE)?)?;
        let memory = open(folder, MEMORY)?;
        let failed = |source| SavedMachineError::Unreadable { path: folder.join(MEMORY), source };
        // For as long as a machine has it mapped.
        if !lock_soon(&memory, Kind::Shared).map_err(failed)? {
            return Err(SavedMachineError::Busy(folder.into()));
        }
        let (own, said) = (memory.metadata().map_err(failed)?.len(), manifest.memory);
        if own != said {
            let reason = format!("its memory has {own} bytes and should have {said}");
            return Err(SavedMachineError::Damaged { folder: folder.into(), reason });
        }
        let bases = bases(folder, &manifest)?;
        let folder = std::path::absolute(folder).map_err(failed)?;
        let Manifest { mut spec, disks, takes_commands, .. } = manifest;
        spec.share.iter_mut().for_each(|share| share.origin = ShareOrigin::Saved(folder.clone()));
        Ok(SavedMachine {
            folder,
            spec,
            disks,
            bases,
            state,
            memory,
            takes_commands,
            checksum,
            prefetch: None,
        })
    }

    /// The folder, absolute.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Has the host read ahead what of its memory the guest used in its first second when it went on from here the last time with this, and
    /// notes that anew, in the file `working-set` of the folder: a guest whose memory is on a slow disk is there sooner. There is nothing to
    /// read the first time. A note that is damaged or of another machine is a warning in the log, as is a folder that cannot be written.
    ///
    /// A [`Template`](crate::Template) reads ahead for all of its clones, and notes nothing. With
    /// [`MemBacking::Memfd`](crate::spec::MemBacking::Memfd) all of the memory is read in any case.
    pub fn prefetch(&mut self) {
        let memory = self.memory.metadata().map_or(0, |found| found.len());
        self.prefetch = Some(WorkingSet::of(&self.folder, self.checksum, memory));
    }

    /// What it goes on from, for a machine that has its disks.
    pub(crate) fn into_restore(self) -> Restore {
        // A guest that waits for a command has booted what `minivmm run` made in memory.
        Restore::new(self.state, self.memory)
            .with_prefetch(self.prefetch)
            .with_initrd_gone(self.takes_commands)
    }

    /// Whether its guest waits for a command, as `minivmm run --warm` saves one, for
    /// [`Template::exec`](crate::Template::exec). No other machine can be made from it.
    pub fn takes_commands(&self) -> bool {
        self.takes_commands
    }

    /// What the machine is made of, with absolute paths.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Checks that the disks are there as they were when the machine was saved, as far as length and time of change tell. A guest that
    /// goes on with other disks damages the file systems on them, because it has parts of those in its memory.
    ///
    /// Disks that were copied into the folder are not looked at: they do not change.
    ///
    /// # Errors
    /// [`SavedMachineError::DiskChanged`], [`SavedMachineError::Disk`].
    pub fn check_disks(&self) -> Result<(), SavedMachineError> {
        for (index, disk) in self.spec.disk.iter().enumerate() {
            let saved = self.disks.get(index).and_then(Option::as_ref);
            if matches!(saved, Some(SavedDisk::Copy(_))) {
                continue;
            }
            let path = disk.image();
            let now =
                DiskMark::at(path).map_err(|source| SavedMachineError::Disk { path: path.into(), source })?;
            if matches!(saved, Some(SavedDisk::Mark(mark)) if *mark != now) {
                return Err(SavedMachineError::DiskChanged(path.into()));
            }
        }
        Ok(())
    }

    /// Whether the folder has copies of disks.
    pub fn has_disks(&self) -> bool {
        self.copies().next().is_some()
    }

    /// What the guest writes from now on to the disks that the folder has copies of goes to overlays in `disks`, such as
    /// `vda.qcow2`: a new or empty folder, which the machine needs for as long as it is to be started, together with the saved folder.
    /// Otherwise it is gone when the machine ends. The saved folder is not written to in either case.
    ///
    /// # Errors
    /// [`SavedMachineError::NoCopy`], [`SavedMachineError::DisksExist`], [`SavedMachineError::DisksFolder`].
    pub fn keep_disks_in(&mut self, disks: impl AsRef<Path>) -> Result<(), SavedMachineError> {
        self.check_copies()?;
        let disks = disks.as_ref();
        let failed = |source| SavedMachineError::DisksFolder { folder: disks.into(), source };
        match DirBuilder::new().mode(0o700).create(disks) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_empty_folder(disks) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(SavedMachineError::DisksExist(disks.into()));
            }
            made => made.map_err(failed)?,
        }
        let disks = std::path::absolute(disks).map_err(failed)?;
        let overlay = |index| disks.join(copy_name(index, diskimage::Format::Qcow2));
        let overlays: Vec<_> = self.copies().map(|(index, _)| overlay(index)).collect();
        note_overlays(&self.folder, overlays.iter().map(PathBuf::as_path));
        self.use_copies(|index, disk| disk.overlay = Some(overlay(index)));
        Ok(())
    }

    /// Checks that the folder has a copy of each disk that the guest writes to.
    pub(crate) fn check_copies(&self) -> Result<(), SavedMachineError> {
        let is_copy = |index| matches!(self.disks.get(index), Some(Some(SavedDisk::Copy(_))));
        let writes =
            |(index, disk): &(usize, &DiskSpec)| !disk.read_only && !disk.snapshot && !is_copy(*index);
        match self.spec.disk.iter().enumerate().find(writes) {
            Some((_, disk)) => {
                Err(SavedMachineError::NoCopy { folder: self.folder.clone(), disk: disk.image().into() })
            }
            None => Ok(()),
        }
    }

    /// The copies by the number of their disk.
    pub(crate) fn copies(&self) -> impl Iterator<Item = (usize, &str)> {
        self.disks.iter().enumerate().filter_map(|(index, saved)| match saved {
            Some(SavedDisk::Copy(name)) => Some((index, name.as_str())),
            _ => None,
        })
    }

    /// The images that the guest has written to. The machine has to be given others by the caller.
    pub(crate) fn take_written(&mut self) -> Vec<WrittenDisk> {
        let mut written = Vec::new();
        for (index, (disk, saved)) in self.spec.disk.iter().zip(&mut self.disks).enumerate() {
            written.extend(saved.take().map(|saved| match saved {
                SavedDisk::Copy(name) => {
                    let base = self.bases.remove(&index);
                    WrittenDisk { index, path: self.folder.join(name), base, is_copy: true }
                }
                SavedDisk::Mark(_) => {
                    WrittenDisk { index, path: disk.image().into(), base: None, is_copy: false }
                }
            }));
        }
        written
    }

    /// Has the machine read the copies, with `on_top` of them what it says.
    fn use_copies(&mut self, on_top: impl Fn(usize, &mut DiskSpec)) {
        for (index, (disk, saved)) in self.spec.disk.iter_mut().zip(&mut self.disks).enumerate() {
            let Some(SavedDisk::Copy(name)) = saved else { continue };
            let format = copied_format(disk);
            disk.backing.extend(self.bases.remove(&index));
            (disk.path, disk.format, disk.overlay) = (self.folder.join(&*name), Some(format), None);
            on_top(index, disk);
            // No copy is left that is not used.
            *saved = None;
        }
    }

    /// Gives the machine that is made from it another name, or none.
    pub fn set_name(&mut self, name: Option<MachineName>) {
        self.spec.name = name;
    }

    /// A machine about to go on from it. See [`MachineBuilder::restore`].
    pub fn into_builder(mut self) -> MachineBuilder {
        self.use_copies(|_, disk| disk.snapshot = true);
        let spec = self.spec.clone();
        crate::Machine::builder(&spec).restore_from(self.into_restore())
    }

    /// What the machine is made of, and what it goes on from.
    pub(crate) fn into_parts(mut self) -> (Spec, Restore) {
        self.use_copies(|_, disk| disk.snapshot = true);
        (self.spec.clone(), self.into_restore())
    }
}

/// An image that the guest of a saved machine has written to.
#[derive(Debug)]
pub(crate) struct WrittenDisk {
    /// Number of the disk.
    pub(crate) index: usize,
    /// The copy in the folder, or the image itself.
    pub(crate) path: PathBuf,
    /// What the copy lies on.
    pub(crate) base: Option<PathBuf>,
    pub(crate) is_copy: bool,
}

/// A saved machine that is being written. Dropped before [`NewSavedMachine::keep`] nothing is left of it.
#[derive(Debug)]
pub(crate) struct NewSavedMachine {
    folder: NewFolder,
    target: PathBuf,
    memory: File,
    /// By the number of the disk.
    copies: BTreeMap<usize, (String, File)>,
    takes_commands: bool,
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
        sweep_unfinished(new_file::folder(target));
        Ok(NewSavedMachine {
            folder,
            target: target.into(),
            memory,
            copies: BTreeMap::new(),
            takes_commands: false,
        })
    }

    /// Says that the guest waits for a command, and keeps `note` beside it, in the file `name`.
    pub(crate) fn takes_commands(&mut self, name: &str, note: &[u8]) -> io::Result<()> {
        self.takes_commands = true;
        let mut file = self.folder.file(name)?;
        file.write_all(note)?;
        file.sync_all()
    }

    /// Where the contents of memory go.
    pub(crate) fn memory(&self) -> &File {
        &self.memory
    }

    /// Makes an empty file for a copy of disk `index` that is taken while its guest writes, unless it can share the blocks of the original: then it
    /// is copied at rest. The file gets its length from the copy.
    pub(crate) fn begin_disk(
        &mut self,
        index: usize,
        disk: &WrittenFile,
    ) -> Result<Option<File>, SavedMachineError> {
        let name = copy_name(index, disk.format);
        let began = || {
            let file = self.folder.file(&name)?;
            if disk.shares_blocks_with(&file)? {
                std::fs::remove_file(self.folder.path().join(&name))?;
                return Ok(None);
            }
            Ok(Some((file.try_clone()?, file)))
        };
        let began = began().map_err(|source| SavedMachineError::Copy {
            folder: self.target.clone(),
            disk: disk_id(index),
            source,
        })?;
        Ok(began.map(|(file, own)| {
            self.copies.insert(index, (name, own));
            file
        }))
    }

    /// Whether there is a copy of disk `index`, or one that was begun.
    pub(crate) fn has_disk(&self, index: usize) -> bool {
        self.copies.contains_key(&index)
    }

    /// Takes a copy of disk `index`, which is at rest, for as long as `wanted` says so. It is not on the medium yet. Gives the bytes that were
    /// copied.
    pub(crate) fn copy_disk(
        &mut self,
        index: usize,
        disk: &WrittenFile,
        wanted: &dyn Fn() -> bool,
    ) -> Result<u64, SavedMachineError> {
        let name = copy_name(index, disk.format);
        let copied = self.folder.file(&name).and_then(|file| {
            let bytes = disk.copy_to(&file, &self.target.join(&name), wanted)?;
            Ok((file, bytes))
        });
        let (file, bytes) = copied.map_err(|source| SavedMachineError::Copy {
            folder: self.target.clone(),
            disk: disk_id(index),
            source,
        })?;
        self.copies.insert(index, (name, file));
        Ok(bytes)
    }

    /// Writes the rest, and gives the folder its name. `marks` are of the disks that were not copied.
    pub(crate) fn keep(
        self,
        spec: Spec,
        state: &SavedState,
        marks: Vec<Option<DiskMark>>,
    ) -> Result<(), SavedMachineError> {
        let disks = marks.into_iter().enumerate().map(|(index, mark)| match self.copies.get(&index) {
            Some((name, _)) => Some(SavedDisk::Copy(name.clone())),
            None => mark.map(SavedDisk::Mark),
        });
        let disks = disks.collect();
        let failed = unwritable(&self.target);
        let saved_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let memory = self.memory.metadata().map_err(&failed)?.len();
        let spec = with_absolute_paths(spec).map_err(&failed)?;
        let (mut manifest, sections) =
            Manifest::new(spec, disks, saved_at, memory, state).map_err(&failed)?;
        manifest.takes_commands = self.takes_commands;
        let manifest = serde_json::to_vec_pretty(&manifest).map_err(|error| failed(error.into()))?;
        let write = || {
            for (name, bytes) in [(STATE, &sections), (MANIFEST, &manifest)] {
                let mut file = self.folder.file(name)?;
                file.write_all(bytes)?;
                file.sync_all()?;
            }
            self.copies.values().try_for_each(|(_, copy)| copy.sync_all())?;
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

/// Removes what processes that were killed have left in `folder` of machines that they were saving or cloning there.
pub(crate) fn sweep_unfinished(folder: &Path) {
    let is_copy = |name: &str| name.starts_with("vd") && (name.ends_with(".raw") || name.ends_with(".qcow2"));
    // What may be in one: the last is beside a machine of `minivmm run --warm`.
    let is_saved = |name: &str| [MANIFEST, STATE, MEMORY, "warm.json"].contains(&name) || is_copy(name);
    // Also before it has its name.
    let is_beginning = |name: &str| {
        let unfinished = name.strip_prefix('.').and_then(|name| name.strip_suffix(".part"));
        [Some(name), unfinished].contains(&Some(CLONE_BEGINNING))
    };
    let is_cloned = |name: &str| is_beginning(name) || is_copy(name) || name == "vm.toml";
    sweep(folder, &|names| {
        let names: Option<Vec<_>> = names.iter().map(|name| name.to_str()).collect();
        names.is_some_and(|names| {
            let all = |is: &dyn Fn(&str) -> bool| names.iter().all(|name| is(name));
            let has_beginning = names.iter().any(|name| is_beginning(name));
            (names.contains(&MEMORY) && all(&is_saved)) || (has_beginning && all(&is_cloned))
        })
    });
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

/// What the copies of disks lie on. Each is opened, so that one that is missing is told early.
fn bases(folder: &Path, manifest: &Manifest) -> Result<BTreeMap<usize, PathBuf>, SavedMachineError> {
    let mut bases = BTreeMap::new();
    for (index, (disk, saved)) in manifest.spec.disk.iter().zip(&manifest.disks).enumerate() {
        if let Some(SavedDisk::Copy(name)) = saved {
            let base = base_of(&open(folder, name)?, Path::new(name), copied_format(disk));
            let base = base.map_err(|error| SavedMachineError::Damaged {
                folder: folder.into(),
                reason: printable(&format!("{name}: {error}")),
            })?;
            bases.extend(base.map(|base| (index, base)));
        }
    }
    Ok(bases)
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
        // A link, or a socket.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) => {
            return Err(no_regular_file(folder, name));
        }
        opened => opened.map_err(|source| SavedMachineError::Unreadable { path: path.clone(), source })?,
    };
    if file.metadata().is_ok_and(|found| found.is_file()) {
        return Ok(file);
    }
    Err(no_regular_file(folder, name))
}

fn no_regular_file(folder: &Path, name: &str) -> SavedMachineError {
    SavedMachineError::Damaged { folder: folder.into(), reason: format!("{name} is no regular file") }
}

/// All of a small file.
fn read(folder: &Path, name: &str, most: u64) -> Result<Vec<u8>, SavedMachineError> {
    let failed = |source| SavedMachineError::Unreadable { path: folder.join(name), source };
    let file = open(folder, name)?;
    // Room for all of it, so that one read suffices: it is not told by itself of a reader with a limit.
    let len = file.metadata().map_or(0, |found| found.len()).min(most);
    let mut bytes = Vec::with_capacity(usize::try_from(len).unwrap_or(0) + 1);
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 <= most {
        return Ok(bytes);
    }
    let reason = format!("{name} is longer than {most} bytes");
    Err(SavedMachineError::Damaged { folder: folder.into(), reason })
}
