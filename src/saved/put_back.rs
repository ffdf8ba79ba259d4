//! The copies of a saved machine's disks, on their way back to where the machine has its disks.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use diskimage::{set_backing_name, shell_word};

use super::manifest::{SavedDisk, copied_format};
use super::{SavedMachine, SavedMachineError, open, sweep_unfinished};
use crate::host::disk::{
    Access, CutExchange, DiskError, ExchangeMark, FilesBehind, base_of, copy_file, cut_exchange, has_mark,
    image_place, lock, open_file, remove_mark,
};
use crate::host::lock::user;
use crate::host::new_file::{self, Exchanged, NewFile};
use crate::shown::path as shown;
use crate::spec::DiskSpec;

/// Pieces of a copy after which it is brought to the medium: 64 MiB.
const PIECES: u64 = 4;

/// New files beside the images that they are to replace, on the medium already. Dropped, they are gone.
#[derive(Debug)]
pub(crate) struct NewDisks {
    disks: Vec<NewDisk>,
    /// Of the saved machine.
    folder: PathBuf,
    /// The images have marks: they may not fit together.
    was_cut: bool,
}

#[derive(Debug)]
struct NewDisk {
    index: usize,
    image: PathBuf,
    new: NewFile,
    /// There is no image to be replaced: somebody has removed it.
    is_missing: bool,
    /// Of one of several, which fit together only as a whole.
    mark: Option<ExchangeMark>,
}

impl SavedMachine {
    /// Copies the disks of the folder beside those of the machine, as long as `wanted` says so, which is asked before each piece.
    ///
    /// # Errors
    /// There is no copy of a disk that the guest writes to, or no room for it.
    pub(crate) fn copy_disks_back(&self, wanted: &dyn Fn() -> bool) -> Result<NewDisks, SavedMachineError> {
        let mut disks = Vec::new();
        for (index, disk) in self.spec.disk.iter().enumerate() {
            match self.disks.get(index).and_then(Option::as_ref) {
                Some(SavedDisk::Copy(name)) => {
                    let image = disk.image();
                    let (new, is_missing) = self
                        .copy_back(index, disk, name, wanted)
                        .map_err(|source| put_back(image, source))?;
                    disks.push(NewDisk { index, image: image.into(), new, is_missing, mark: None });
                }
                Some(SavedDisk::Mark(_)) => return Err(SavedMachineError::NoDisks(self.folder.clone())),
                None => {}
            }
        }
        if disks.len() > 1 {
            for NewDisk { image, mark, new, .. } in &mut disks {
                let becomes = new.file().metadata();
                let prepared = becomes.and_then(|new| ExchangeMark::prepare(image, Some(&new), &self.folder));
                *mark = Some(prepared.map_err(|source| put_back(image, source))?);
            }
        }
        let was_cut = disks.iter().any(|disk| has_mark(&disk.image));
        Ok(NewDisks { disks, folder: self.folder.clone(), was_cut })
    }

    fn copy_back(
        &self,
        index: usize,
        disk: &DiskSpec,
        name: &str,
        wanted: &dyn Fn() -> bool,
    ) -> io::Result<(NewFile, bool)> {
        let copy = open(&self.folder, name).map_err(io::Error::other)?;
        // Beside the file itself, wherever a link is.
        let (image, is_there) = image_place(disk.image()).map_err(|error| no_place(disk.image(), error))?;
        // One that replaces another gets its mode.
        let new = if is_there { NewFile::create(&image) } else { NewFile::create_private(&image) }?;
        // Brought to the medium on the way, so that no sync takes long.
        let (pieces, failed) = (Cell::new(0_u64), Cell::new(None));
        let goes_on = || {
            pieces.set(pieces.get() + 1);
            if pieces.get().is_multiple_of(PIECES)
                && let Err(error) = new.file().sync_data()
            {
                failed.set(Some(error));
                return false;
            }
            wanted()
        };
        still(wanted)?;
        let copied = copy_file(&copy, new.file(), &goes_on);
        // Of two, the one behind the other.
        failed.take().map_or(copied, Err)?;
        still(wanted)?;
        if let Some(base) = self.bases.get(&index).filter(|_| !is_there) {
            // The copy names it by its absolute path.
            fs::metadata(base).map_err(|error| {
                io::Error::other(format!(
                    "it is gone, and so is {}, on which it lay: {error}; put that there again",
                    shown(base)
                ))
            })?;
        } else if self.bases.contains_key(&index) {
            // As the image says it now: by its plain name, if both can be moved together.
            let present = base_of(&File::open(&image)?, &image, copied_format(disk))?;
            let present = present.and_then(|name| name.to_str().map(str::to_owned));
            let present = present.ok_or_else(|| io::Error::other("it lies on no base any more"))?;
            set_backing_name(new.file(), &image, &present).map_err(io::Error::other)?;
        }
        new.file().sync_all()?;
        Ok((new, !is_there))
    }

    /// Puts the disks of the folder back, for a machine that does not run. Each is the old one or that of the folder, whenever this process
    /// ends; when it is done again, all are those of the folder. They are the old ones again if what this returns is dropped before it
    /// is kept.
    pub(crate) fn put_disks_back(&mut self) -> Result<ExchangedDisks, SavedMachineError> {
        if let Some(cut) = self.cut_at() {
            self.settle(cut)?;
        }
        let disks = self.copy_disks_back(&|| true)?;
        // Nobody writes to them, and nobody begins to.
        let locked = disks.lock()?;
        let mut exchanged = disks.exchange()?;
        exchanged.locks = locked;
        self.disks.fill(None);
        Ok(exchanged)
    }

    /// The images that have copies in the folder, in the order in which they get marks, are exchanged, and lose them.
    fn copied_images(&self) -> impl DoubleEndedIterator<Item = &Path> {
        let disks = self.spec.disk.iter().zip(&self.disks);
        let copied = disks.filter(|(_, saved)| matches!(saved, Some(SavedDisk::Copy(_))));
        copied.map(|(disk, _)| disk.image())
    }

    /// Where the exchange of all its disks for those of the folder was cut off, if it was, and nobody has written to any of them since.
    fn cut_at(&self) -> Option<CutAt> {
        let is_own = |file: io::Result<fs::Metadata>| file.is_ok_and(|file| file.uid() == user());
        // Whoever else may write there does not say what becomes of this user's disks.
        if !is_own(fs::metadata(&self.folder)) || !is_own(self.memory.metadata()) {
            return None;
        }
        let cut = |image| cut_exchange(image).filter(|cut| cut.folder == self.folder);
        let images: Vec<_> = self.copied_images().collect();
        let cuts: Vec<_> = images.iter().copied().map(cut).collect();
        // Somebody has written to it since, or goes back to another machine.
        if images.iter().zip(&cuts).any(|(image, cut)| cut.is_none() && has_mark(image)) {
            return None;
        }
        let marked = cuts.iter().flatten().count();
        let all = |part: Option<&[Option<CutExchange>]>, is: fn(&CutExchange) -> bool| {
            part.is_some_and(|part| part.iter().all(|cut| cut.as_ref().is_some_and(is)))
        };
        match marked {
            0 => None,
            count if count == cuts.len() => Some(CutAt::Between),
            _ if all(cuts.get(..marked), |cut| cut.is_old && !cut.is_new) => Some(CutAt::Before),
            _ if all(cuts.get(cuts.len() - marked..), |cut| cut.is_new && !cut.is_old) => Some(CutAt::Behind),
            // Somebody has removed a mark.
            _ => None,
        }
    }

    /// Removes the marks of disks that fit together.
    fn settle(&self, cut: CutAt) -> Result<(), SavedMachineError> {
        if cut == CutAt::Between {
            return Ok(());
        }
        // Nobody exchanges them at this moment.
        let there = self.copied_images().filter(|image| fs::metadata(image).is_ok());
        let _locked = there.map(lock_image).collect::<Result<Vec<_>, _>>()?;
        // Another process may have done it meanwhile.
        if self.cut_at() == Some(cut) { remove_marks(self.copied_images(), cut) } else { Ok(()) }
    }
}

/// Where an exchange of several disks was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CutAt {
    /// The first ones have marks, and all disks are those of before.
    Before,
    /// All have marks.
    Between,
    /// The last ones have marks, and all disks are those of the folder.
    Behind,
}

/// Brings to its end what was cut off when a machine went back to a saved one: all its disks become those of the folder, which this gives,
/// whichever of them were already. `disks` are those that somebody wants to use now. Nothing is done unless it is clear what to do: all disks
/// of the folder have marks of this user that name it, so that no machine has run on any of them since, and nothing else has written to them.
/// Where marks were about to be set or removed, all disks fit together, and the rest of the marks goes. `wanted` is asked before each piece of
/// the work, however large the disks are; once it says no they stay as they are.
pub(crate) fn finish_exchange(
    disks: &[DiskSpec],
    wanted: &dyn Fn() -> bool,
) -> Option<Result<PathBuf, SavedMachineError>> {
    let used = || disks.iter().filter(|disk| !disk.read_only && !disk.snapshot);
    // What else a process that was killed there has left.
    let mut folders: BTreeMap<&Path, Vec<&OsStr>> = BTreeMap::new();
    for image in used().map(DiskSpec::image) {
        folders.entry(new_file::folder(image)).or_default().extend(image.file_name());
    }
    for (folder, names) in folders {
        new_file::sweep_names(folder, &names);
        sweep_unfinished(folder);
    }
    let folder = used().filter_map(|disk| cut_exchange(disk.image())).next()?;
    let saved = SavedMachine::open(folder.folder).ok()?;
    let cut = saved.cut_at()?;
    let finish = || {
        if cut != CutAt::Between {
            return saved.settle(cut);
        }
        let disks = saved.copy_disks_back(wanted)?;
        let _locked = disks.lock()?;
        still(wanted).map_err(|source| put_back(&saved.folder, source))?;
        // Another process may have done it meanwhile.
        if saved.cut_at() == Some(cut) {
            disks.exchange()?.keep();
        }
        Ok(())
    };
    match finish() {
        Ok(()) if cut == CutAt::Before => None,
        done => Some(done.map(|()| saved.folder.clone())),
    }
}

fn still(wanted: &dyn Fn() -> bool) -> io::Result<()> {
    if wanted() { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

/// Why an image has no place.
fn no_place(image: &Path, error: io::Error) -> io::Error {
    let folder = shell_word(new_file::folder(image));
    match error.kind() {
        io::ErrorKind::NotFound if fs::symlink_metadata(image).is_ok() => io::Error::other(format!(
            "it is a link that leads to nothing; remove it (`rm {}`)",
            shell_word(image)
        )),
        io::ErrorKind::NotFound => {
            io::Error::other(format!("its folder is gone; make it before: `mkdir -p {folder}`"))
        }
        _ => error,
    }
}

fn put_back(path: &Path, source: io::Error) -> SavedMachineError {
    SavedMachineError::PutBack { path: path.into(), source }
}

fn lock_image(path: &Path) -> Result<Locked, SavedMachineError> {
    let access = Access { read_only: false, direct: false };
    let locked = open_file(path, access).and_then(|(file, metadata)| {
        let behind = lock(&file, &metadata, path, access)?;
        Ok(Locked { _file: file, _behind: behind })
    });
    locked.map_err(|error| match error {
        DiskError::Busy { holder, .. } => SavedMachineError::InUse {
            path: path.into(),
            holder: holder.map_or_else(String::new, |holder| format!(" by {holder}")),
        },
        error => put_back(path, io::Error::other(error)),
    })
}

impl NewDisks {
    /// Locks the images that they replace, as a machine does that writes to them.
    fn lock(&self) -> Result<Vec<Locked>, SavedMachineError> {
        self.disks.iter().filter(|disk| !disk.is_missing).map(|disk| lock_image(&disk.image)).collect()
    }

    /// Gives each the name of the image that it replaces, and then calls `then` with each disk's number and the image's path. If this
    /// ends between two images, they have marks, and no machine starts on them before they are put back again.
    pub(crate) fn replace<E: From<SavedMachineError>>(
        mut self,
        then: impl Fn(usize, &Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let marked = self.set_marks()?;
        let mut replaced = Vec::new();
        for NewDisk { index, image, new, is_missing, .. } in self.disks {
            new.keep(!is_missing).map_err(|source| put_back(&image, source))?;
            replaced.push((index, image));
        }
        remove_marks(marked.iter().map(PathBuf::as_path), CutAt::Behind)?;
        replaced.iter().try_for_each(|(index, image)| then(*index, image))
    }

    /// The same for those whose images may be wanted again: all of them have their names afterwards, or none after an error.
    fn exchange(mut self) -> Result<ExchangedDisks, SavedMachineError> {
        let marked = self.set_marks()?;
        let exchange = |NewDisk { image, new, is_missing, .. }: NewDisk| {
            let exchanged = if is_missing { new.appear() } else { new.exchange() };
            exchanged.map_err(|source| put_back(&image, source))
        };
        let (folder, was_cut) = (self.folder, self.was_cut);
        // Those that were exchanged before an error have come back when this is over.
        let exchanged = self.disks.into_iter().map(exchange).collect::<Result<_, _>>();
        let marked = marked.iter().map(PathBuf::as_path);
        match exchanged {
            Ok(exchanged) => {
                // Before the marks go, so that an error has all come back.
                let exchanged = ExchangedDisks { exchanged, folder, was_cut, locks: Vec::new() };
                remove_marks(marked, CutAt::Behind).map(|()| exchanged)
            }
            Err(error) if was_cut => Err(error),
            Err(error) => remove_marks(marked, CutAt::Before).and(Err(error)),
        }
    }

    /// Gives those images marks that are to have one, and says which those are.
    fn set_marks(&mut self) -> Result<Vec<PathBuf>, SavedMachineError> {
        let mut marked = Vec::new();
        for NewDisk { image, mark, .. } in &mut self.disks {
            let Some(mark) = mark.take() else { continue };
            mark.set().map_err(|source| put_back(image, source))?;
            marked.push(image.clone());
        }
        Ok(marked)
    }
}

/// Removes the marks of these images, in the order in which those that are left say that all disks are the old ones, or the new ones.
fn remove_marks<'a>(
    mut images: impl DoubleEndedIterator<Item = &'a Path>,
    at: CutAt,
) -> Result<(), SavedMachineError> {
    let remove = |image: &Path| remove_mark(image).map_err(|source| put_back(image, source));
    match at {
        CutAt::Before => images.rev().try_for_each(remove),
        CutAt::Between | CutAt::Behind => images.try_for_each(remove),
    }
}

/// Disks that have the names of those that were there before. Dropped, those have them again.
#[derive(Debug)]
pub(crate) struct ExchangedDisks {
    exchanged: Vec<Exchanged>,
    /// Of the saved machine.
    folder: PathBuf,
    /// Those of before may not fit together.
    was_cut: bool,
    /// On those of before, which nobody sweeps away as long as they may be wanted.
    locks: Vec<Locked>,
}

/// An image that no machine writes to.
#[derive(Debug)]
struct Locked {
    _file: File,
    _behind: FilesBehind,
}

impl ExchangedDisks {
    /// Those of before are not needed any more.
    pub(crate) fn keep(mut self) {
        self.exchanged.drain(..).for_each(Exchanged::keep);
    }

    /// Gives them marks: they are about to be the old ones again.
    fn set_marks(&self) -> io::Result<()> {
        let prepare = |one: &Exchanged| {
            let before = one.before().map(fs::metadata).transpose()?;
            ExchangeMark::prepare(one.target(), before.as_ref(), &self.folder)
        };
        let marks = self.exchanged.iter().map(prepare).collect::<io::Result<Vec<_>>>()?;
        marks.into_iter().try_for_each(ExchangeMark::set)
    }
}

impl Drop for ExchangedDisks {
    fn drop(&mut self) {
        if self.exchanged.len() < 2 {
            return;
        }
        if let Err(error) = self.set_marks() {
            log::warn!("the disks of before have no marks while they come back: {error}");
        }
        let images: Vec<_> = self.exchanged.iter().map(|one| one.target().to_path_buf()).collect();
        // They come back.
        self.exchanged.clear();
        if !self.was_cut {
            // What is left of the marks goes with the next start.
            let _ = remove_marks(images.iter().map(PathBuf::as_path), CutAt::Behind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::disk::OpenDisk;
    use crate::machine::SavedState;
    use crate::saved::NewSavedMachine;
    use crate::spec::Spec;

    /// What replaces the two images.
    fn new_disks(images: &[PathBuf; 2]) -> NewDisks {
        let new = |(index, image): (usize, &PathBuf)| {
            let new = NewFile::create(image).unwrap();
            new.file().set_len(1024).unwrap();
            let becomes = new.file().metadata().unwrap();
            let mark = Some(ExchangeMark::prepare(image, Some(&becomes), Path::new("/first")).unwrap());
            NewDisk { index, image: image.clone(), new, is_missing: false, mark }
        };
        let disks = images.iter().enumerate().map(new).collect();
        NewDisks { disks, folder: "/first".into(), was_cut: false }
    }

    #[test]
    fn disks_of_which_one_was_not_exchanged_are_refused_until_all_are() {
        let root = tempfile::tempdir().unwrap();
        let images = ["a.raw", "b.raw"].map(|name| root.path().join(name));
        images.iter().for_each(|image| fs::write(image, [0; 512]).unwrap());
        let open =
            || images.each_ref().map(|image| OpenDisk::open(&DiskSpec::new(image)).map(|disk| disk.length()));
        let half = new_disks(&images);
        // The second one cannot be replaced.
        fs::remove_file(&images[1]).unwrap();
        fs::create_dir(&images[1]).unwrap();
        half.replace(|_, _| Err::<(), _>(put_back(Path::new("then"), io::ErrorKind::Other.into())))
            .unwrap_err();
        assert_eq!(fs::metadata(&images[0]).unwrap().len(), 1024);
        fs::remove_dir(&images[1]).unwrap();
        fs::write(&images[1], [0; 512]).unwrap();
        for refused in open() {
            assert!(refused.unwrap_err().to_string().contains("restore --put-back /first"));
        }
        new_disks(&images).replace(|_, _| Ok::<_, SavedMachineError>(())).unwrap();
        assert_eq!(open().map(Result::unwrap), [1024, 1024]);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }

    #[test]
    fn disks_that_were_exchanged_come_back_unless_they_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let images = ["a.raw", "b.raw"].map(|name| root.path().join(name));
        images.iter().for_each(|image| fs::write(image, [0; 512]).unwrap());
        let lengths = || images.each_ref().map(|image| fs::metadata(image).unwrap().len());
        let exchanged = new_disks(&images).exchange().unwrap();
        assert_eq!(lengths(), [1024, 1024]);
        drop(exchanged);
        assert_eq!(lengths(), [512, 512]);
        // The second one cannot be exchanged.
        let half = new_disks(&images);
        fs::remove_file(&images[1]).unwrap();
        half.exchange().unwrap_err();
        fs::write(&images[1], [0; 512]).unwrap();
        assert_eq!(lengths(), [512, 512]);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
        new_disks(&images).exchange().unwrap().keep();
        assert_eq!(lengths(), [1024, 1024]);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 2);
    }

    /// The images of a saved machine with copies of two disks, of which one was exchanged when its process was killed.
    fn half_exchanged(root: &Path) -> [PathBuf; 2] {
        let (images, saved) = two_disks(root);
        let mut cut = saved.copy_disks_back(&|| true).unwrap();
        cut.set_marks().unwrap();
        cut.disks.remove(0).new.keep(true).unwrap();
        images
    }

    /// A saved machine with copies of two disks: its images.
    fn two_disks(root: &Path) -> ([PathBuf; 2], SavedMachine) {
        let (images, folder) = (["a.raw", "b.raw"].map(|name| root.join(name)), root.join("first"));
        images.iter().for_each(|image| fs::write(image, [0; 512]).unwrap());
        let spec =
            images.iter().fold(Spec::new("/vmlinuz"), |spec, image| spec.with_disk(DiskSpec::new(image)));
        let new = NewSavedMachine::create(&folder).unwrap();
        new.keep(spec, &SavedState::from_states(1, -1, []), vec![None, None]).unwrap();
        let manifest = folder.join("machine.json");
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace("null,\n    null", "\"vda.raw\", \"vdb.raw\"")).unwrap();
        fs::write(folder.join("vda.raw"), [1; 512]).unwrap();
        // Several pieces.
        fs::write(folder.join("vdb.raw"), vec![2; 100 << 20]).unwrap();
        (images, SavedMachine::open(&folder).unwrap())
    }

    fn firsts(images: &[PathBuf; 2]) -> [u8; 2] {
        images.each_ref().map(|image| fs::read(image).unwrap()[0])
    }

    #[test]
    fn cut_exchange_with_an_image_that_was_missing_is_finished() {
        let root = tempfile::tempdir().unwrap();
        let (images, saved) = two_disks(root.path());
        fs::remove_file(&images[1]).unwrap();
        let mut cut = saved.copy_disks_back(&|| true).unwrap();
        cut.set_marks().unwrap();
        cut.disks.remove(0).new.keep(true).unwrap();
        drop(cut);
        assert!(!images[1].exists());
        let disks = images.each_ref().map(DiskSpec::new);
        assert_eq!(finish_exchange(&disks, &|| true).unwrap().unwrap(), root.path().join("first"));
        assert_eq!(firsts(&images), [1, 2]);
        disks.iter().for_each(|disk| drop(OpenDisk::open(disk).unwrap()));
    }

    #[test]
    fn exchange_that_was_cut_off_before_or_behind_its_disks_leaves_no_marks() {
        let root = tempfile::tempdir().unwrap();
        let (images, saved) = two_disks(root.path());
        let disks = images.each_ref().map(DiskSpec::new);
        let mut cut = saved.copy_disks_back(&|| true).unwrap();
        cut.disks[0].mark.take().unwrap().set().unwrap();
        OpenDisk::open(&disks[0]).unwrap_err();
        // A machine that has only the other one still says nothing of it.
        assert!(finish_exchange(&disks[1..], &|| true).is_none());
        assert!(has_mark(&images[0]));
        assert!(finish_exchange(&disks, &|| true).is_none());
        assert_eq!(firsts(&images), [0, 0]);
        disks.iter().for_each(|disk| drop(OpenDisk::open(disk).unwrap()));
        // All are exchanged.
        let mut cut = saved.copy_disks_back(&|| true).unwrap();
        cut.set_marks().unwrap();
        cut.disks.into_iter().for_each(|disk| disk.new.keep(true).unwrap());
        remove_mark(&images[0]).unwrap();
        OpenDisk::open(&disks[1]).unwrap_err();
        finish_exchange(&disks, &|| true).unwrap().unwrap();
        assert_eq!(firsts(&images), [1, 2]);
        disks.iter().for_each(|disk| drop(OpenDisk::open(disk).unwrap()));
    }

    #[test]
    fn mark_that_somebody_has_removed_is_not_taken_for_one_of_disks_that_fit_together() {
        for removed in [0, 1] {
            let root = tempfile::tempdir().unwrap();
            let images = half_exchanged(root.path());
            remove_mark(&images[removed]).unwrap();
            assert!(finish_exchange(&images.each_ref().map(DiskSpec::new), &|| true).is_none());
            assert!(has_mark(&images[1 - removed]));
            assert_eq!(firsts(&images), [1, 0]);
        }
    }

    #[test]
    fn disks_that_did_not_fit_together_have_marks_when_they_come_back() {
        let root = tempfile::tempdir().unwrap();
        let images = half_exchanged(root.path());
        let mut saved = SavedMachine::open(root.path().join("first")).unwrap();
        let exchanged = saved.put_disks_back().unwrap();
        assert_eq!(firsts(&images), [1, 2]);
        // The machine was not made.
        drop(exchanged);
        assert_eq!(firsts(&images), [1, 0]);
        let disks = images.each_ref().map(DiskSpec::new);
        disks.iter().for_each(|disk| drop(OpenDisk::open(disk).unwrap_err()));
        finish_exchange(&disks, &|| true).unwrap().unwrap();
        assert_eq!(firsts(&images), [1, 2]);
        disks.iter().for_each(|disk| drop(OpenDisk::open(disk).unwrap()));
    }

    #[test]
    fn cut_exchange_is_finished_piece_by_piece_and_can_be_given_up() {
        let root = tempfile::tempdir().unwrap();
        let images = half_exchanged(root.path());
        let disks = images.each_ref().map(DiskSpec::new);
        let first = || firsts(&images);
        let asked = Cell::new(0);
        // Also the last time that it is asked, when all is copied.
        let count = |most: u32| {
            asked.set(0);
            finish_exchange(&disks, &|| {
                asked.set(asked.get() + 1);
                asked.get() < most
            })
            .unwrap()
        };
        for most in 1..6 {
            count(most).unwrap_err();
            assert_eq!(asked.get(), most);
            assert_eq!(first(), [1, 0]);
        }
        assert_eq!(count(u32::MAX).unwrap(), root.path().join("first"));
        assert_eq!(first(), [1, 2]);
        OpenDisk::open(&disks[0]).unwrap();
        assert!(finish_exchange(&disks, &|| true).is_none());
        assert!(asked.get() >= 5, "{}", asked.get());
    }

    #[test]
    fn exchange_for_the_disks_of_another_users_folder_is_not_finished() {
        let root = tempfile::tempdir().unwrap();
        let images = half_exchanged(root.path());
        let disks = images.each_ref().map(DiskSpec::new);
        // Only root can make one.
        if user() != 0 {
            return;
        }
        for path in ["first", "first/memory"].map(|name| root.path().join(name)) {
            std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
            assert!(finish_exchange(&disks, &|| true).is_none());
            std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        }
        assert!(finish_exchange(&disks, &|| true).is_some());
    }
}
