//! Power cuts: of what was written since the last barrier, any part may be on the medium.
#![allow(clippy::cast_possible_truncation, reason = "numbers of the tests are small")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::entries::{BLOCK_OFFSET, OFFSET};
use crate::{CreateOptions, Format, Image, ImageOptions, UnlockedOpener, create};

/// What happened to the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Write(u64, Vec<u8>),
    /// The file is made as long as this.
    Longer(u64),
    /// Offset and length of a hole.
    Hole(u64, u64),
    Barrier,
    /// A barrier that failed: what was written since the last one is not on the medium, and the page cache has it.
    Lost,
}

mod faults;
mod steps;

/// The error that a test wishes for, after so many successes.
pub(super) fn injected(fails: &Mutex<Option<(usize, i32)>>) -> io::Result<()> {
    let mut fails = lock(fails);
    match &mut *fails {
        Some((0, errno)) => {
            let error = io::Error::from_raw_os_error(*errno);
            *fails = None;
            Err(error)
        }
        Some((left, _)) => {
            *left -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

const SIZE: u64 = 3 << 20;

/// Numbers that look random, and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn open(path: &Path) -> Image {
    Image::open(path, &ImageOptions::new(Format::Qcow2).write(true), &mut UnlockedOpener).unwrap()
}

/// The result of `qemu-img`, which must succeed, or find leaks only.
fn qemu_img(arguments: &[&str]) -> i32 {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img is installed");
    output.status.code().unwrap_or(-1)
}

/// The disk as qemu-img reads it.
fn contents(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    let (from, to) = (path.to_str().unwrap(), raw.to_str().unwrap());
    assert_eq!(qemu_img(&["convert", "-f", "qcow2", "-O", "raw", from, to]), 0);
    fs::read(raw).unwrap()
}

/// An image whose metadata writes are held.
struct Rig {
    image: Image,
    path: PathBuf,
    model: Vec<u8>,
    dice: Dice,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn new(cluster: u32, seed: u64) -> Self {
        Self::of_size(SIZE, cluster, seed)
    }

    fn of_size(size: u64, cluster: u32, seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).unwrap();
        create(&file, &path, &CreateOptions::new(Format::Qcow2, size).cluster_size(cluster)).unwrap();
        let image = open(&path);
        image.files()[0].hold_writes().unwrap();
        Rig { image, path, model: vec![0; size as usize], dice: Dice(seed | 1), _folder: folder }
    }

    fn held_writes(&self) -> &HeldWrites {
        self.image.files()[0].held_writes().unwrap()
    }

    fn write(&mut self) {
        let len = 512 * (1 + self.dice.below(16));
        let at = self.dice.below((SIZE - len) / 512) * 512;
        let value = 1 + self.dice.below(255) as u8;
        self.image.write_at(&vec![value; len as usize], at).unwrap();
        self.model[at as usize..(at + len) as usize].fill(value);
    }

    fn commit(&self) {
        self.try_commit().unwrap();
    }

    /// Goes on with a compressed copy.
    fn pack(&mut self) {
        let packed = self.path.with_file_name("packed.qcow2");
        let (from, to) = (self.path.to_str().unwrap(), packed.to_str().unwrap());
        assert_eq!(qemu_img(&["convert", "-c", "-f", "qcow2", "-O", "qcow2", from, to]), 0);
        self.image = open(&packed);
        self.image.files()[0].hold_writes().unwrap();
        self.path = packed;
    }

    /// Frees what nothing points to, and writes that down.
    fn reclaim(&self) {
        let mut commit = self.held_writes().commit();
        assert!(commit.reclaimable() > 0);
        while commit.reclaimable() > 0 {
            let punched = commit.punch().unwrap();
            self.image.access().flush().unwrap();
            commit.free(punched).unwrap();
            // SAFETY: nothing is in memory that is not held, and nobody else uses the image.
            #[allow(unsafe_code, reason = "imago's method is an `unsafe fn`")]
            unsafe { self.image.access().invalidate_cache() }.unwrap();
        }
        drop(commit);
        self.commit();
    }

    fn try_commit(&self) -> io::Result<()> {
        let mut commit = self.held_writes().commit();
        self.image.access().flush().unwrap();
        commit.take()?;
        commit.write()
    }

    /// After a power cut behind `events`, which began at `start`, the image is sound, and holds what all `models` have in common.
    fn assert_cut<'a>(
        &mut self,
        start: &[u8],
        events: &[Event],
        mut models: impl Iterator<Item = &'a Vec<u8>>,
    ) {
        let path = self.path.with_file_name("cut.qcow2");
        fs::write(&path, start).unwrap();
        replay(&path, events, &mut self.dice);
        let checked = qemu_img(&["check", "-f", "qcow2", path.to_str().unwrap()]);
        assert!(checked == 0 || checked == 3, "cut after {} events: check says {checked}", events.len());
        let now = contents(&path);
        let was = models.next().unwrap();
        let later: Vec<&Vec<u8>> = models.collect();
        for (sector, bytes) in now.chunks(512).enumerate() {
            let range = sector * 512..(sector + 1) * 512;
            // Data that came after the commit are there or not; a later commit's model may have passed by others.
            let untouched = later.iter().all(|model| model[range.clone()] == was[range.clone()]);
            assert!(!untouched || *bytes == was[range], "sector {sector} after {} events", events.len());
        }
    }
}

#[test]
fn nothing_reaches_the_file_before_the_commit_and_all_does_then() {
    for cluster in [512, 4096, 65536] {
        let mut rig = Rig::new(cluster, 7);
        let before = fs::read(&rig.path).unwrap();
        for _ in 0..40 {
            rig.write();
        }
        rig.image.access().flush().unwrap();
        let now = fs::read(&rig.path).unwrap();
        assert_eq!(now[..before.len()], before, "clusters of {cluster} bytes");
        rig.commit();
        assert_eq!(qemu_img(&["check", "-f", "qcow2", rig.path.to_str().unwrap()]), 0);
        assert!(contents(&rig.path) == rig.model, "clusters of {cluster} bytes");
        assert_eq!(rig.held_writes().held_bytes(), 0);
    }
}

#[test]
fn a_power_cut_leaves_what_was_committed_and_no_pointer_to_a_free_cluster() {
    let rounds = if std::env::var("MINIVMM_SOAK").is_ok_and(|soak| soak == "1") { 100 } else { 8 };
    for (cluster, seed) in [(512, 3), (4096, 11), (65536, 23)] {
        let mut rig = Rig::new(cluster, seed);
        let start = fs::read(&rig.path).unwrap();
        // The models after each commit, and the number of events by then.
        let mut committed = vec![(0, rig.model.clone())];
        for _ in 0..5 {
            for _ in 0..1 + rig.dice.below(30) {
                rig.write();
            }
            rig.commit();
            let events = lock(&rig.held_writes().log).len();
            committed.push((events, rig.model.clone()));
        }
        let events = lock(&rig.held_writes().log).clone();
        let is_barrier = |(index, event): (usize, &Event)| matches!(event, Event::Barrier).then_some(index);
        let barriers: Vec<usize> = events.iter().enumerate().filter_map(is_barrier).collect();
        for _ in 0..rounds {
            // Most of them just before a barrier: all that it should have kept in order is at stake.
            let cut = match rig.dice.below(4) {
                0 => rig.dice.below(events.len() as u64 + 1) as usize,
                _ => barriers[rig.dice.below(barriers.len() as u64) as usize],
            };
            let last = committed.iter().rposition(|(events, _)| *events <= cut).unwrap();
            rig.assert_cut(&start, &events[..cut], committed[last..].iter().map(|(_, model)| model));
        }
    }
}

/// Some of what came after the last barrier or before one that failed, and all else.
fn replay(path: &Path, events: &[Event], dice: &mut Dice) {
    let file = File::options().write(true).open(path).unwrap();
    for (index, event) in events.iter().enumerate() {
        let (offset, bytes) = match event {
            Event::Write(offset, bytes) => (*offset, bytes.clone()),
            Event::Hole(offset, length) => (*offset, vec![0; *length as usize]),
            Event::Longer(end) => (*end - 1, vec![0]),
            Event::Barrier | Event::Lost => continue,
        };
        let end = events[index..].iter().find(|event| matches!(event, Event::Barrier | Event::Lost));
        if matches!(end, Some(Event::Barrier)) || dice.below(2) == 0 {
            file.write_all_at(&bytes, offset).unwrap();
        }
    }
}

#[test]
fn compressed_clusters_are_free_again_after_they_were_written_over() {
    let mut rig = Rig::new(65536, 5);
    for _ in 0..50 {
        rig.write();
    }
    rig.commit();
    rig.pack();
    for _ in 0..50 {
        rig.write();
    }
    rig.commit();
    let path = rig.path.to_str().unwrap().to_owned();
    assert_eq!(qemu_img(&["check", "-f", "qcow2", &path]), 3, "nothing is free before the pointers are gone");
    rig.reclaim();
    assert_eq!(qemu_img(&["check", "-f", "qcow2", &path]), 0);
    assert!(contents(&rig.path) == rig.model);
}

#[test]
fn a_cluster_behind_the_end_makes_the_file_longer_by_a_write() {
    let rig = Rig::new(65536, 5);
    let writes = rig.held_writes();
    let end = writes.file.metadata().unwrap().len().div_ceil(65536);
    // Of zeros only, as a table may be.
    writes.write_cluster(end, &[0; 65536]).unwrap();
    assert_eq!(writes.file.metadata().unwrap().len(), (end + 1) * 65536);
    let log = lock(&writes.log).clone();
    let [Event::Write(offset, bytes)] = log.as_slice() else { panic!("{} events", log.len()) };
    assert_eq!(offset + bytes.len() as u64, (end + 1) * 65536);
}

/// The growth before a sync that failed is lost for good, as the page cache has it: what points to it may not be the only thing of it
/// that is on the medium.
#[test]
fn after_a_failed_barrier_the_file_is_as_long_on_the_medium_as_what_points_to_it_needs() {
    for failing in [0, 1] {
        let mut rig = Rig::new(65536, 23);
        rig.write();
        rig.commit();
        let before = fs::metadata(&rig.path).unwrap().len();
        rig.image.write_at(&[7; 512], SIZE - 512).unwrap();
        let needed = fs::metadata(&rig.path).unwrap().len();
        assert!(needed > before);
        *lock(&rig.held_writes().fails) = Some((failing, libc::EIO));
        rig.try_commit().unwrap_err();
        lock(&rig.held_writes().log).clear();
        rig.commit();
        let log = lock(&rig.held_writes().log).clone();
        let longer = log.iter().position(|event| matches!(event, Event::Longer(end) if *end > needed));
        let synced = log.iter().position(|event| matches!(event, Event::Barrier));
        assert!(longer.is_some() && longer < synced, "{longer:?} {synced:?}");
        assert_eq!(qemu_img(&["check", "-f", "qcow2", rig.path.to_str().unwrap()]), 0);
        // Once.
        let length = fs::metadata(&rig.path).unwrap().len();
        rig.image.write_at(&[8; 512], SIZE - 512).unwrap();
        rig.commit();
        assert_eq!(fs::metadata(&rig.path).unwrap().len(), length);
    }
}

#[test]
fn after_a_failed_barrier_everything_is_written_again() {
    for (cluster, failing) in [(4096, 0), (4096, 1), (65536, 0), (65536, 1)] {
        let mut rig = Rig::new(cluster, 17);
        for _ in 0..20 {
            rig.write();
        }
        rig.commit();
        let start = fs::read(&rig.path).unwrap();
        for _ in 0..20 {
            rig.write();
        }
        lock(&rig.held_writes().log).clear();
        *lock(&rig.held_writes().fails) = Some((failing, libc::ENOSPC));
        let error = rig.try_commit().unwrap_err();
        assert!(error.to_string().contains("may be lost"), "{error}");
        assert_ne!(error.kind(), io::ErrorKind::StorageFull, "it would be repeated");
        assert!(rig.held_writes().may_have_failed());
        assert!(rig.held_writes().take_failure() && !rig.held_writes().take_failure());
        rig.commit();

        // A medium without the metadata that were lost; guest data do not go by the held writes alone.
        let events = lock(&rig.held_writes().log).clone();
        let lost = events.iter().position(|event| matches!(event, Event::Lost)).unwrap();
        let kept = events[..lost].iter().rposition(|event| matches!(event, Event::Barrier)).unwrap_or(0);
        let path = rig.path.with_file_name("cut.qcow2");
        fs::write(&path, &start).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        // Zeros at the end are not in the log.
        file.set_len(fs::metadata(&rig.path).unwrap().len()).unwrap();
        for (index, event) in events.iter().enumerate() {
            let Event::Write(offset, bytes) = event else { continue };
            // Data, which come before the first barrier, would be lost for good: here only what a commit wrote is.
            let is_lost = (kept..lost).contains(&index) && bytes.len() == BLOCK;
            if !is_lost {
                file.write_all_at(bytes, *offset).unwrap();
            }
        }
        let checked = qemu_img(&["check", "-f", "qcow2", path.to_str().unwrap()]);
        assert!(checked == 0 || checked == 3, "check says {checked}");
        let now = fs::read(&rig.path).unwrap();
        let again = fs::read(&path).unwrap();
        let of = |bytes: &[u8]| {
            lock(&rig.held_writes().medium)
                .l1
                .iter()
                .map(|entry| {
                    let at = (entry & OFFSET) as usize;
                    bytes.get(at..at + cluster as usize).unwrap_or_default().to_vec()
                })
                .collect::<Vec<_>>()
        };
        assert!(of(&now) == of(&again), "the tables that were lost are there");
        assert!(now[..cluster as usize] == again[..cluster as usize]);
    }
}

#[test]
fn what_new_clusters_were_filled_with_is_written_again_after_a_failed_barrier_until_one_succeeds() {
    let mut rig = Rig::new(65536, 5);
    rig.write();
    let (at, bytes) = (fs::metadata(&rig.path).unwrap().len(), vec![7; 1024]);
    File::options().write(true).open(&rig.path).unwrap().write_all_at(&bytes, at).unwrap();
    rig.held_writes().has_filled(at, 1024);
    let again = || {
        let log = std::mem::take(&mut *lock(&rig.held_writes().log));
        let barrier = log.iter().position(|event| matches!(event, Event::Barrier | Event::Lost)).unwrap();
        log[..barrier].contains(&Event::Write(at, bytes.clone()))
    };
    again_fails(&rig);
    assert!(!again(), "nothing had failed before");
    // The first barrier fails again, then that of somebody else's sync while a commit runs.
    again_fails(&rig);
    assert!(again());
    rig.held_writes().has_failed();
    rig.commit();
    assert!(again());
    rig.commit();
    assert!(!again());
    assert!(!rig.held_writes().is_doubted());
}

fn again_fails(rig: &Rig) {
    *lock(&rig.held_writes().fails) = Some((0, libc::EIO));
    rig.try_commit().unwrap_err();
    assert!(rig.held_writes().is_doubted());
}

#[test]
fn tables_are_not_freed_because_a_damaged_entry_named_them() {
    let mut rig = Rig::new(65536, 5);
    for _ in 0..20 {
        rig.write();
    }
    rig.commit();
    let mut commit = rig.held_writes().commit();
    let tables: Vec<u64> = [commit.medium.layout.l1.offset, commit.medium.layout.refcounts.offset, 0]
        .into_iter()
        .chain(commit.medium.l1.iter().map(|entry| entry & OFFSET))
        .chain(commit.medium.refcounts.iter().map(|entry| entry & BLOCK_OFFSET))
        .collect();
    for offset in tables {
        commit.medium.freed.table(16, Table { offset, entries: 1 });
    }
    drop(commit);
    rig.reclaim();
    assert_eq!(qemu_img(&["check", "-f", "qcow2", rig.path.to_str().unwrap()]), 0);
    assert!(contents(&rig.path) == rig.model);
}

#[test]
fn imago_frees_nothing_after_a_table_was_moved() {
    let rig = Rig::new(65536, 5);
    let writes = rig.held_writes();
    assert!(writes.freeing(|| writes.may_free()));
    let table = Table { offset: 1 << 20, entries: 8 };
    lock(&writes.held).moved.push(table);
    assert!(!writes.freeing(|| writes.may_free()));
}
