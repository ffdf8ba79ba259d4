//! Copies of disks that come with their machine: new files, which are gone unless the machine comes to run.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use diskimage::Format;
use virtio::block::{Extent, SECTOR};

use crate::host::disk::{BlockSet, write_zeros};
use crate::host::new_file::NewFile;
use crate::machine::disk_id;
use crate::shown::path as shown;
use crate::spec::{DiskSpec, Spec};

/// Bytes after which what came is brought to the medium, so that little is left for the time in which the guest rests.
const SYNC: u64 = 64 << 20;

/// Disks on their way, by their place in the list.
#[derive(Debug, Default)]
pub(super) struct IncomingDisks(BTreeMap<usize, IncomingDisk>);

#[derive(Debug)]
struct IncomingDisk {
    file: NewFile,
    path: PathBuf,
    len: u64,
    /// Blocks with bytes that came: nothing else is ever zeroed, so that a few bytes of the stream do not make this host write much.
    written: BlockSet,
    /// Bytes that are not on the medium.
    waiting: u64,
}

/// Copies that have their names. Dropped, they are gone.
#[derive(Debug, Default)]
pub(super) struct ReceivedDisks(Vec<PathBuf>);

/// All of this process: nothing is dropped in one that exits at once.
static RECEIVED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn received() -> MutexGuard<'static, Vec<PathBuf>> {
    RECEIVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the disks of a machine that has not come to run. For a process that exits while others of its threads are stuck.
pub(crate) fn remove_received() {
    received().drain(..).for_each(|path| drop(fs::remove_file(path)));
}

impl IncomingDisks {
    /// Begins new files in `folder` for those disks of `spec` that come with it, whose lengths are `lens`. The error is a sentence.
    pub(super) fn create(spec: &Spec, lens: &[Option<u64>], folder: Option<&Path>) -> Result<Self, String> {
        if lens.len() > spec.disk.len() {
            return Err("it has fewer disks than come with it".into());
        }
        let mut disks = BTreeMap::new();
        for (index, (disk, len)) in spec.disk.iter().zip(lens).enumerate() {
            let Some(len) = *len else { continue };
            let Some(folder) = folder else {
                return Err(
                    "its disks come with it; say where they are to be with `minivmm receive --disks FOLDER`"
                        .into(),
                );
            };
            if disk.read_only || disk.snapshot || len < SECTOR {
                return Err(format!("its disk {} is none that can come with it", disk_id(index)));
            }
            let path = folder.join(format!("{}.raw", disk_id(index)));
            disks.insert(index, IncomingDisk::create(path, len)?);
        }
        Ok(IncomingDisks(disks))
    }

    /// Whether the disk of this number comes with the machine.
    pub(super) fn has(&self, index: usize) -> bool {
        self.0.contains_key(&index)
    }

    /// These bytes are at this offset of a disk.
    pub(super) fn data(&mut self, index: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let len = bytes.len() as u64;
        let disk = self.disk(index, offset, len)?;
        // Before: some of them may have landed if it fails.
        disk.written.add(Extent { offset, len });
        disk.file.file().write_all_at(bytes, offset).map_err(unwritable(&disk.path))?;
        disk.waiting += len;
        if disk.waiting >= SYNC {
            disk.file.file().sync_data().map_err(unwritable(&disk.path))?;
            disk.waiting = 0;
        }
        Ok(())
    }

    /// So many zeros are at this offset of a disk.
    pub(super) fn zeros(&mut self, index: u32, offset: u64, len: u64) -> io::Result<()> {
        let disk = self.disk(index, offset, len)?;
        let extent = Extent { offset, len };
        // As in the first round. A look at the blocks of a large disk for each few bytes of the stream would make this host work much.
        if disk.written.is_empty() {
            return Ok(());
        }
        for range in disk.written.ranges_in(extent) {
            let written = write_zeros(disk.file.file(), range.start, range.end - range.start);
            written.map_err(unwritable(&disk.path))?;
        }
        disk.written.remove(extent);
        Ok(())
    }

    fn disk(&mut self, index: u32, offset: u64, len: u64) -> io::Result<&mut IncomingDisk> {
        let disk = usize::try_from(index).ok().and_then(|index| self.0.get_mut(&index));
        let disk =
            disk.ok_or_else(|| invalid(format!("there is no disk {index} that comes with the machine")))?;
        match offset.checked_add(len) {
            Some(end) if end <= disk.len => Ok(disk),
            _ => Err(invalid(format!(
                "{len} bytes at {offset} are beyond the disk {index}, of {} bytes",
                disk.len
            ))),
        }
    }

    /// All has come: brings it to the medium, gives the files their names, and has `spec` name them.
    pub(super) fn finish(self, spec: &mut Spec) -> io::Result<ReceivedDisks> {
        let mut received = ReceivedDisks::default();
        for (index, IncomingDisk { file, path, .. }) in self.0 {
            file.keep(false).map_err(unwritable(&path))?;
            received.add(path.clone());
            if let Some(disk) = spec.disk.get_mut(index) {
                *disk = DiskSpec {
                    path,
                    format: Some(Format::Raw),
                    overlay: None,
                    backing: Vec::new(),
                    ..disk.clone()
                };
            }
        }
        Ok(received)
    }
}

/// What the host has refused; what the stream has wrong is [`io::ErrorKind::InvalidData`].
fn unwritable(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::other(format!("{} cannot be written there: {error}", shown(path)))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl IncomingDisk {
    fn create(path: PathBuf, len: u64) -> Result<Self, String> {
        let failed = |error: io::Error| format!("{} cannot be made there: {error}", shown(&path));
        if let Some(folder) = path.parent().filter(|folder| !folder.is_dir()) {
            return Err(format!(
                "the folder {} of `minivmm receive --disks` is not there; make it before, with `mkdir -p`",
                shown(folder)
            ));
        }
        if path.symlink_metadata().is_ok() {
            return Err(format!(
                "{} is there already, and is not replaced; give another folder with `minivmm receive --disks`",
                shown(&path)
            ));
        }
        // Nobody else may read what a guest keeps, whoever may there what is new.
        let file = NewFile::create_private(&path).map_err(failed)?;
        file.file().set_len(len).map_err(failed)?;
        Ok(IncomingDisk { file, len, written: BlockSet::new(len), waiting: 0, path })
    }
}

impl ReceivedDisks {
    pub(super) fn add(&mut self, path: PathBuf) {
        received().push(path.clone());
        self.0.push(path);
    }

    /// Their machine runs.
    pub(super) fn keep(&mut self) {
        let own = std::mem::take(&mut self.0);
        received().retain(|path| !own.contains(path));
    }

    /// Their machine does not come to run: they are gone.
    pub(super) fn remove(&mut self) {
        let own = std::mem::take(&mut self.0);
        // One that the process has removed may be another machine's by now.
        let gone = received().extract_if(.., |path| own.contains(path)).collect::<Vec<_>>();
        gone.into_iter().for_each(|path| drop(fs::remove_file(path)));
    }
}

impl Drop for ReceivedDisks {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const LEN: u64 = (8 << 20) + 512;

    /// Held by tests that have received disks.
    static ALONE: Mutex<()> = Mutex::new(());

    fn spec(folder: &Path) -> Spec {
        let overlay =
            DiskSpec { overlay: Some(folder.join("vdb.qcow2")), ..DiskSpec::new(folder.join("base")) };
        Spec::new("vmlinuz")
            .with_disk(DiskSpec::new(folder.join("iso")).read_only())
            .with_disk(overlay)
            .with_disk(DiskSpec::new(folder.join("other")))
    }

    fn names(folder: &Path) -> usize {
        folder.read_dir().unwrap().count()
    }

    #[test]
    fn disk_arrives_in_a_new_file_that_is_gone_unless_its_machine_runs() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        for kept in [false, true] {
            let mut spec = spec(folder.path());
            let mut disks = IncomingDisks::create(&spec, &[None, Some(LEN)], Some(folder.path())).unwrap();
            assert_eq!([0, 1, 2].map(|index| disks.has(index)), [false, true, false]);
            disks.data(1, 4096, &[7; 8192]).unwrap();
            disks.data(1, LEN - 512, &[8; 512]).unwrap();
            disks.zeros(1, 4096, 4096).unwrap();
            let vdb = folder.path().join("vdb.raw");
            assert!(!vdb.exists());
            let mut received = disks.finish(&mut spec).unwrap();
            let DiskSpec { path, format, overlay, .. } = &spec.disk[1];
            assert_eq!((path, *format, overlay), (&vdb, Some(Format::Raw), &None));
            assert_eq!(spec.disk[2].path, folder.path().join("other"));
            let mut wanted = vec![0; usize::try_from(LEN).unwrap()];
            wanted[8192..12288].fill(7);
            let end = wanted.len() - 512;
            wanted[end..].fill(8);
            assert!(fs::read(&vdb).unwrap() == wanted);
            assert_eq!(fs::metadata(&vdb).unwrap().mode() & 0o777, 0o600);
            assert!(fs::metadata(&vdb).unwrap().blocks() * 512 < 1 << 20);
            if kept {
                received.keep();
            }
            drop(received);
            assert_eq!(names(folder.path()), usize::from(kept));
        }
        // Nobody knows whether its name is a mistake.
        let nowhere = folder.path().join("nowhere");
        let refused =
            IncomingDisks::create(&spec(folder.path()), &[None, Some(LEN)], Some(&nowhere)).unwrap_err();
        assert!(refused.contains("nowhere") && refused.contains("mkdir -p"), "{refused}");
        // It is another machine's by now.
        let spec = spec(folder.path());
        let refused = IncomingDisks::create(&spec, &[None, Some(LEN)], Some(folder.path())).unwrap_err();
        assert!(refused.contains("vdb.raw is there already"), "{refused}");
        assert_eq!(fs::metadata(folder.path().join("vdb.raw")).unwrap().len(), LEN);
    }

    #[test]
    fn file_that_came_meanwhile_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = spec(folder.path());
        let lens = [None, Some(LEN), Some(LEN)];
        let disks = IncomingDisks::create(&spec, &lens, Some(folder.path())).unwrap();
        fs::write(folder.path().join("vdc.raw"), "another's").unwrap();
        let refused = disks.finish(&mut spec).unwrap_err().to_string();
        assert!(refused.contains("vdc.raw") && refused.contains("exists"), "{refused}");
        assert_eq!(
            (names(folder.path()), fs::read(folder.path().join("vdc.raw")).unwrap()),
            (1, b"another's".to_vec())
        );
    }

    #[test]
    fn what_a_hostile_source_says_is_refused_and_a_few_bytes_make_little_work() {
        let folder = tempfile::tempdir().unwrap();
        let spec = spec(folder.path());
        let none = folder.path().join("none");
        let create = |lens: &[Option<u64>], at| IncomingDisks::create(&spec, lens, at);
        for (lens, word) in [
            (&[Some(LEN)][..], "none that can come"),
            (&[None, Some(511)], "none that can come"),
            (&[None, None, None, Some(LEN)], "fewer disks"),
            (&[None, Some(u64::MAX)], "cannot be made"),
        ] {
            let refused = create(lens, Some(folder.path())).unwrap_err();
            assert!(refused.contains(word), "{refused}");
        }
        assert!(create(&[None, Some(LEN)], None).unwrap_err().contains("--disks FOLDER"));
        assert!(create(&[None, Some(LEN)], Some(&none)).is_err());
        let mut disks = create(&[None, Some(LEN)], Some(folder.path())).unwrap();
        for (index, offset, len) in [
            (0, 0, 1),
            (2, 0, 1),
            (u32::MAX, 0, 1),
            (1, LEN, 1),
            (1, LEN - 1, 2),
            (1, u64::MAX, 1),
            (1, 1, u64::MAX),
        ] {
            assert!(disks.zeros(index, offset, len).is_err(), "{index} {offset} {len}");
        }
        assert!(disks.data(1, LEN - 1, &[1, 2]).is_err() && disks.data(1, u64::MAX, &[1]).is_err());
        disks.zeros(1, LEN, 0).unwrap();
        // Zeros of a disk of any length write nothing where nothing came.
        let len = 1 << 40;
        let mut disks = create(&[None, Some(len)], Some(folder.path())).unwrap();
        for _ in 0..1000 {
            disks.zeros(1, 0, len).unwrap();
        }
        disks.data(1, len / 2, &[1; 4096]).unwrap();
        disks.zeros(1, 0, len).unwrap();
        let disk = &disks.0[&1];
        assert_eq!(disk.written.ranges().count(), 0);
        assert!(disk.file.used().unwrap() <= 64 << 10);
    }

    #[test]
    fn process_that_exits_at_once_leaves_no_disk_of_a_machine_that_has_not_run() {
        let folder = tempfile::tempdir().unwrap();
        let receive = || {
            let mut spec = spec(folder.path());
            let disks = IncomingDisks::create(&spec, &[None, Some(LEN)], Some(folder.path())).unwrap();
            disks.finish(&mut spec).unwrap()
        };
        // Those of other tests are not to be removed here.
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stays = receive();
        remove_received();
        assert_eq!(names(folder.path()), 0);
        // Another machine's.
        fs::write(folder.path().join("vdb.raw"), "").unwrap();
        stays.remove();
        assert_eq!(names(folder.path()), 1);
        fs::remove_file(folder.path().join("vdb.raw")).unwrap();
        receive().keep();
        remove_received();
        assert_eq!(names(folder.path()), 1);
    }
}
