//! The copies of a saved machine's disks, on their way back to where the machine has its disks.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use diskimage::set_backing_name;

use super::manifest::{SavedDisk, copied_format};
use super::{SavedMachine, SavedMachineError, open};
use crate::host::disk::{Access, base_of, copy_file, lock, open_file};
use crate::host::new_file::{Exchanged, NewFile};
use crate::spec::DiskSpec;

/// New files beside the images that they are to replace, on the medium already. Dropped, they are gone.
#[derive(Debug)]
pub(crate) struct NewDisks(Vec<NewDisk>);

#[derive(Debug)]
struct NewDisk {
    index: usize,
    image: PathBuf,
    new: NewFile,
}

impl SavedMachine {
    /// Copies the disks of the folder beside those of the machine, as long as `wanted` says so.
    ///
    /// # Errors
    /// There is no copy of a disk that the guest writes to, or no room for it.
    pub(crate) fn copy_disks_back(&self, wanted: &dyn Fn() -> bool) -> Result<NewDisks, SavedMachineError> {
        let mut disks = Vec::new();
        for (index, disk) in self.spec.disk.iter().enumerate() {
            match self.disks.get(index).and_then(Option::as_ref) {
                Some(SavedDisk::Copy(name)) => {
                    let image = disk.image();
                    let new = self
                        .copy_back(index, disk, name, wanted)
                        .map_err(|source| SavedMachineError::PutBack { path: image.into(), source })?;
                    disks.push(NewDisk { index, image: image.into(), new });
                }
                Some(SavedDisk::Mark(_)) => return Err(SavedMachineError::NoDisks(self.folder.clone())),
                None => {}
            }
        }
        Ok(NewDisks(disks))
    }

    fn copy_back(
        &self,
        index: usize,
        disk: &DiskSpec,
        name: &str,
        wanted: &dyn Fn() -> bool,
    ) -> io::Result<NewFile> {
        let copy = open(&self.folder, name).map_err(io::Error::other)?;
        // Beside the file itself, wherever a link is.
        let image = fs::canonicalize(disk.image())?;
        let new = NewFile::create(&image)?;
        copy_file(&copy, new.file(), wanted)?;
        if self.bases.contains_key(&index) {
            // As the image says it now: by its plain name, if both can be moved together.
            let present = base_of(&File::open(&image)?, &image, copied_format(disk))?;
            let present = present.and_then(|name| name.to_str().map(str::to_owned));
            let present = present.ok_or_else(|| io::Error::other("it lies on no base any more"))?;
            set_backing_name(new.file(), &image, &present).map_err(io::Error::other)?;
        }
        new.file().sync_all()?;
        Ok(new)
    }

    /// Puts the disks of the folder back, for a machine that does not run. Each is the old one or that of the folder, whenever this process
    /// ends; when it is done again, all are those of the folder. They are the old ones again if what this returns is dropped before it
    /// is kept.
    pub(crate) fn put_disks_back(&mut self) -> Result<ExchangedDisks, SavedMachineError> {
        let disks = self.copy_disks_back(&|| true)?;
        // Nobody writes to them, and nobody begins to.
        let locked = disks.0.iter().map(|disk| lock_image(&disk.image));
        let _locked = locked.collect::<Result<Vec<_>, _>>()?;
        let exchanged = disks.exchange()?;
        self.disks.fill(None);
        Ok(exchanged)
    }
}

fn lock_image(path: &Path) -> Result<impl Sized + use<>, SavedMachineError> {
    let access = Access { read_only: false, direct: false };
    let locked = open_file(path, access).and_then(|(file, metadata)| {
        let behind = lock(&file, &metadata, path, access)?;
        Ok((file, behind))
    });
    locked.map_err(|error| SavedMachineError::PutBack { path: path.into(), source: io::Error::other(error) })
}

impl NewDisks {
    /// Gives each the name of the image that it replaces: all of them, or none after an error.
    pub(crate) fn exchange(self) -> Result<ExchangedDisks, SavedMachineError> {
        let exchange = |NewDisk { index, image, new }| {
            let exchanged =
                new.exchange().map_err(|source| SavedMachineError::PutBack { path: image, source });
            exchanged.map(|exchanged| (index, exchanged))
        };
        self.0.into_iter().map(exchange).collect::<Result<_, _>>().map(ExchangedDisks)
    }
}

/// Disks that have the names of those that were there before, by their numbers. Dropped, those have them again.
#[derive(Debug)]
pub(crate) struct ExchangedDisks(Vec<(usize, Exchanged)>);

impl ExchangedDisks {
    /// The numbers of the disks.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|(number, _)| *number)
    }

    /// Those of before are not needed any more.
    pub(crate) fn keep(self) {
        self.0.into_iter().for_each(|(_, exchanged)| exchanged.keep());
    }
}
