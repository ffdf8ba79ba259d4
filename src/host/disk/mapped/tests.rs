//! Images under random operations, compared with what they should hold and checked by qemu-img.
#![allow(clippy::cast_possible_truncation, reason = "numbers of the tests are small")]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use diskimage::{Format, Image, ImageOptions, UnlockedOpener};
use tempfile::TempDir;
use virtio::block::{AnyEngine, Completion, Extent, Operation, Tag};
use virtio::memory::{Memory, Segment};
use virtio::poll::Token;
use virtio::testing;
use vm_memory::{Bytes, GuestAddress};

use super::super::engine::EngineKind;
use super::super::open::Access;
use super::ImageDisk;
use super::engine::engine;

const DONE: Token = 7;
const MIB: u64 = 1 << 20;
/// No whole number of clusters.
const SIZE: u64 = 4 * MIB + 3 * 512;
/// Guest memory for each tag.
const SLOT: u64 = 256 << 10;
const TAGS: u64 = 32;

fn is_soak() -> bool {
    std::env::var("MINIVMM_SOAK").is_ok_and(|soak| soak == "1")
}

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

fn qemu_img(arguments: &[&str]) -> i32 {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img is installed");
    if !output.status.success() {
        println!("qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.code().unwrap_or(-1)
}

fn make(path: &Path, size: u64, options: &[&str]) {
    let size = size.to_string();
    let mut words = vec!["create", "-q", "-f", "qcow2"];
    words.extend(options);
    words.extend([path.to_str().unwrap(), &size]);
    assert_eq!(qemu_img(&words), 0, "{words:?}");
}

fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let mut dice = Dice(seed * 2 + 1);
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < len {
        // Sectors that compress.
        bytes.extend(vec![dice.below(256) as u8; 512]);
    }
    bytes.truncate(len as usize);
    bytes
}

/// A disk on an engine, and what it should hold.
struct Rig {
    /// `None` while the disk is closed.
    engine: Option<AnyEngine>,
    disk: Option<Arc<ImageDisk>>,
    memory: Memory,
    kind: EngineKind,
    access: Access,
    path: PathBuf,
    model: Vec<u8>,
    dice: Dice,
    _folder: Arc<TempDir>,
}

impl Rig {
    fn new(folder: Arc<TempDir>, path: &Path, kind: EngineKind, access: Access, model: Vec<u8>) -> Self {
        let (memory, _) = testing::memory(16 << 20);
        let dice = Dice(0x9e37_79b9_7f4a_7c15);
        let (engine, disk) = (None, None);
        let mut rig =
            Rig { engine, disk, memory, kind, access, path: path.into(), model, dice, _folder: folder };
        rig.open();
        rig
    }

    fn open(&mut self) {
        let options = ImageOptions::new(Format::Qcow2).write(!self.access.read_only);
        let image = Image::open(&self.path, &options, &mut UnlockedOpener).unwrap();
        let disk = Arc::new(ImageDisk::new(image, self.access).unwrap());
        let mut made = engine(disk.clone(), self.kind).unwrap();
        made.attach(DONE, &self.memory);
        (self.engine, self.disk) = (Some(made), Some(disk));
    }

    fn disk(&self) -> &Arc<ImageDisk> {
        self.disk.as_ref().unwrap()
    }

    fn engine(&mut self) -> &mut AnyEngine {
        self.engine.as_mut().unwrap()
    }

    /// Ends the disk, and has it checked.
    fn close(&mut self) {
        (self.engine, self.disk) = (None, None);
        self.check(&self.path.clone());
        self.open();
    }

    fn check(&self, path: &Path) {
        assert_eq!(
            qemu_img(&["check", "-q", "-f", "qcow2", path.to_str().unwrap()]),
            0,
            "check of {}",
            path.display()
        );
        let raw = path.with_extension("compared");
        let (from, to) = (path.to_str().unwrap(), raw.to_str().unwrap());
        assert_eq!(qemu_img(&["convert", "-f", "qcow2", "-O", "raw", from, to]), 0);
        let bytes = fs::read(raw).unwrap();
        assert_eq!(bytes.len(), self.model.len());
        let differs = bytes.chunks(512).zip(self.model.chunks(512)).position(|(one, other)| one != other);
        assert_eq!(differs, None, "first sector that differs in {}", path.display());
    }

    fn next(&mut self) -> Completion {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut ready = Vec::new();
        loop {
            if let Some(completion) = self.engine().completed() {
                return completion;
            }
            assert!(Instant::now() < deadline, "nothing completes in time");
            self.engine().wait(Some(Duration::from_secs(60)), &mut ready).unwrap();
            assert!(ready.drain(..).all(|token| token == DONE));
        }
    }

    /// The memory of `tag`, in pieces that are no pages.
    fn segments(tag: Tag, len: u64) -> Vec<Segment> {
        let start = u64::from(tag) * SLOT;
        let first = len.min(1536);
        let piece = |address, len| Segment { address: GuestAddress(address), len: len as u32 };
        let mut pieces = vec![piece(start, first)];
        if len > first {
            pieces.push(piece(start + first, len - first));
        }
        pieces
    }

    fn submit(&mut self, tag: Tag, operation: Operation, extent: Extent) {
        let segments = match operation {
            Operation::Read | Operation::Write => Self::segments(tag, extent.len),
            _ => Vec::new(),
        };
        self.engine().submit(tag, operation, extent, &segments);
    }

    fn run(&mut self, operation: Operation, offset: u64, len: u64) -> io::Result<()> {
        self.submit(0, operation, Extent { offset, len });
        self.next().result
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        for (index, part) in bytes.chunks(SLOT as usize).enumerate() {
            self.memory.write_slice(part, GuestAddress(0)).unwrap();
            self.run(Operation::Write, offset + index as u64 * SLOT, part.len() as u64)?;
        }
        self.model[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        for (index, part) in bytes.chunks_mut(SLOT as usize).enumerate() {
            self.run(Operation::Read, offset + index as u64 * SLOT, part.len() as u64).unwrap();
            self.memory.read_slice(part, GuestAddress(0)).unwrap();
        }
        bytes
    }

    /// A place of whole sectors, of sizes from one to many.
    fn place(&mut self) -> Extent {
        let sectors = self.model.len() as u64 / 512;
        let most = [1, 8, 128, 512][self.dice.below(4) as usize];
        let len = 1 + self.dice.below(most);
        let offset = self.dice.below(sectors - len);
        Extent { offset: offset * 512, len: len * 512 }
    }

    /// Many operations at once in places of their own, and flushes between.
    fn batch(&mut self) {
        let mut taken: Vec<(Tag, Operation, Extent)> = Vec::new();
        for tag in 0..TAGS as Tag {
            let place = self.place();
            let (from, to) = (place.offset, place.offset + place.len);
            if taken.iter().any(|(_, _, other)| from < other.offset + other.len && other.offset < to) {
                continue;
            }
            let operation = match self.dice.below(10) {
                0..4 => Operation::Write,
                4..7 => Operation::Read,
                7 => Operation::Discard,
                8 => Operation::WriteZeroes { unmap: true },
                _ => Operation::WriteZeroes { unmap: false },
            };
            let bytes = pattern(self.dice.below(1 << 30), place.len);
            self.memory.write_slice(&bytes, GuestAddress(u64::from(tag) * SLOT)).unwrap();
            taken.push((tag, operation, place));
            self.submit(tag, operation, place);
            if self.dice.below(16) == 0 {
                self.submit(TAGS as Tag + tag, Operation::Flush, Extent::default());
                taken.push((TAGS as Tag + tag, Operation::Flush, Extent::default()));
            }
        }
        for _ in 0..taken.len() {
            let Completion { tag, result } = self.next();
            let at = taken.iter().position(|(taken, ..)| *taken == tag).expect("a tag in flight");
            let (_, operation, place) = taken.swap_remove(at);
            result.unwrap();
            let range = place.offset as usize..(place.offset + place.len) as usize;
            let mut bytes = vec![0; place.len as usize];
            match operation {
                Operation::Read => {
                    self.memory.read_slice(&mut bytes, GuestAddress(u64::from(tag) * SLOT)).unwrap();
                    assert!(bytes == self.model[range], "read of {place:?}");
                }
                Operation::Write => {
                    self.memory.read_slice(&mut bytes, GuestAddress(u64::from(tag) * SLOT)).unwrap();
                    self.model[range].copy_from_slice(&bytes);
                }
                Operation::WriteZeroes { .. } => self.model[range].fill(0),
                // What was there, or zeros.
                Operation::Discard => self.discarded(place),
                Operation::Flush => {}
            }
        }
    }

    fn discarded(&mut self, place: Extent) {
        let mut bytes = vec![0; place.len as usize];
        assert_eq!(self.disk().read_at(&mut bytes, place.offset).unwrap(), bytes.len());
        let was = &mut self.model[place.offset as usize..(place.offset + place.len) as usize];
        for (was, is) in was.iter_mut().zip(bytes) {
            assert!(is == *was || is == 0, "a discard of {place:?}");
            *was = is;
        }
    }
}

/// Runs a test with each kind of engine on an image that `prepare` makes.
fn on_each(access: Access, prepare: impl Fn(&Path) -> Vec<u8>, test: impl Fn(&mut Rig)) {
    for kind in EngineKind::ALL {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let path = folder.path().join("disk.qcow2");
        let model = prepare(&path);
        let mut rig = Rig::new(folder, &path, kind, access, model);
        test(&mut rig);
    }
}

/// Images of every kind, and their contents.
fn kinds() -> Vec<(&'static str, Box<dyn Fn(&Path) -> Vec<u8>>)> {
    let plain = |options: &'static [&'static str]| -> Box<dyn Fn(&Path) -> Vec<u8>> {
        Box::new(move |path| {
            make(path, SIZE, options);
            vec![0; SIZE as usize]
        })
    };
    let raw = |path: &Path, seed, len| {
        let bytes = pattern(seed, len);
        fs::write(path, &bytes).unwrap();
        bytes
    };
    vec![
        ("plain", plain(&[])),
        ("clusters of 512 bytes", plain(&["-o", "cluster_size=512"])),
        ("clusters of 2 MiB", plain(&["-o", "cluster_size=2M"])),
        ("version 2", plain(&["-o", "compat=0.10"])),
        ("refcounts of 1 bit", plain(&["-o", "refcount_bits=1,cluster_size=4k"])),
        ("refcounts of 64 bits", plain(&["-o", "refcount_bits=64"])),
        ("preallocated", plain(&["-o", "preallocation=metadata"])),
        (
            "on a shorter raw file",
            Box::new(move |path| {
                let below = path.with_file_name("base.raw");
                let mut bytes = raw(&below, 1, SIZE - MIB - 100);
                make(path, SIZE, &["-b", "base.raw", "-F", "raw"]);
                bytes.resize(SIZE as usize, 0);
                bytes
            }),
        ),
        (
            "version 2 on raw",
            Box::new(move |path| {
                let below = path.with_file_name("base.raw");
                let bytes = raw(&below, 2, SIZE);
                make(path, SIZE, &["-o", "compat=0.10", "-b", "base.raw", "-F", "raw"]);
                bytes
            }),
        ),
        (
            "compressed",
            Box::new(move |path| {
                let plain = path.with_file_name("plain.raw");
                let bytes = raw(&plain, 3, SIZE);
                let (from, to) = (plain.to_str().unwrap(), path.to_str().unwrap());
                assert_eq!(qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", from, to]), 0);
                bytes
            }),
        ),
        (
            "on a compressed image on another",
            Box::new(move |path| {
                let plain = path.with_file_name("plain.raw");
                let bytes = raw(&plain, 4, SIZE);
                let (low, middle) = (path.with_file_name("low.qcow2"), path.with_file_name("middle.qcow2"));
                let (from, to) = (plain.to_str().unwrap(), low.to_str().unwrap());
                assert_eq!(
                    qemu_img(&[
                        "convert",
                        "-c",
                        "-f",
                        "raw",
                        "-O",
                        "qcow2",
                        "-o",
                        "cluster_size=4k",
                        from,
                        to
                    ]),
                    0
                );
                make(&middle, SIZE, &["-b", "low.qcow2", "-F", "qcow2"]);
                make(path, SIZE, &["-b", "middle.qcow2", "-F", "qcow2"]);
                bytes
            }),
        ),
    ]
}

#[test]
fn random_operations_leave_what_they_should() {
    let batches = if is_soak() { 400 } else { 6 };
    for (name, prepare) in kinds() {
        println!("{name}");
        on_each(Access::default(), &prepare, |rig| {
            let base = rig.path.with_file_name("base.raw");
            let below = fs::read(&base).unwrap_or_default();
            for batch in 0..batches {
                rig.batch();
                if batch % 3 == 2 {
                    rig.close();
                }
            }
            rig.close();
            assert_eq!(fs::read(&base).unwrap_or_default(), below, "nothing is written to a backing file");
        });
    }
}

#[test]
fn random_operations_with_direct_io_leave_what_they_should() {
    let kinds = kinds();
    for name in ["plain", "on a shorter raw file", "compressed"] {
        let (_, prepare) = kinds.iter().find(|(kind, _)| *kind == name).unwrap();
        on_each(Access { direct: true, ..Access::default() }, prepare, |rig| {
            for _ in 0..if is_soak() { 200 } else { 4 } {
                rig.batch();
            }
            rig.close();
        });
    }
}

fn plain(path: &Path) -> Vec<u8> {
    make(path, SIZE, &[]);
    vec![0; SIZE as usize]
}

#[test]
fn a_flush_brings_everything_to_the_file() {
    on_each(Access::default(), plain, |rig| {
        for seed in 0..3 {
            rig.write(seed * MIB + 512, &pattern(seed, 70_000 / 512 * 512)).unwrap();
            rig.run(Operation::Flush, 0, 0).unwrap();
            // As a machine that is killed now would leave it.
            let killed = rig.path.with_file_name("killed.qcow2");
            fs::copy(&rig.path, &killed).unwrap();
            rig.check(&killed);
        }
    });
}

#[test]
fn discarded_space_goes_back_to_the_host_and_is_used_again() {
    on_each(Access::default(), plain, |rig| {
        rig.write(0, &pattern(1, 2 * MIB)).unwrap();
        rig.run(Operation::Flush, 0, 0).unwrap();
        let full = rig.disk().used().unwrap();
        assert!(full >= 2 * MIB);
        rig.run(Operation::Discard, 0, 2 * MIB).unwrap();
        rig.model[..2 * MIB as usize].fill(0);
        assert!(rig.disk().used().unwrap() + 2 * MIB <= full + 4096);
        assert!(rig.read(0, 2 * MIB).iter().all(|byte| *byte == 0));
        let len = fs::metadata(&rig.path).unwrap().len();
        rig.write(0, &pattern(2, 2 * MIB)).unwrap();
        rig.close();
        assert_eq!(fs::metadata(&rig.path).unwrap().len(), len, "the clusters had kept their places");
    });
}

#[test]
fn a_disk_grows_while_it_works_and_nothing_shows_through() {
    let prepare = |path: &Path| {
        let below = path.with_file_name("base.raw");
        let mut bytes = pattern(9, SIZE);
        fs::write(&below, &bytes).unwrap();
        make(path, MIB + 512, &["-b", "base.raw", "-F", "raw"]);
        bytes.truncate((MIB + 512) as usize);
        bytes
    };
    on_each(Access::default(), prepare, |rig| {
        for size in [MIB + 1024, 2 * MIB, 3 * MIB + 512, 40 * MIB, (2 << 30) + 512] {
            let disk = rig.disk().clone();
            rig.batch();
            let grower = std::thread::spawn(move || disk.resize(size));
            let seed = rig.dice.below(1000);
            rig.write(4096, &pattern(seed, 8192)).unwrap();
            grower.join().unwrap().unwrap();
            assert_eq!(rig.disk().measure().unwrap(), size / 512);
            if size < 100 * MIB {
                rig.model.resize(size as usize, 0);
                let was = rig.model.clone();
                assert!(rig.read(0, size) == was, "{size}");
            }
        }
        rig.model.truncate(40 << 20);
        rig.disk().resize(MIB).unwrap_err();
        let far = (2 << 30) - MIB;
        rig.memory.write_slice(&pattern(1, 4096), GuestAddress(0)).unwrap();
        rig.run(Operation::Write, far, 4096).unwrap();
        (rig.engine, rig.disk) = (None, None);
        assert_eq!(qemu_img(&["check", "-q", "-f", "qcow2", rig.path.to_str().unwrap()]), 0);
    });
}

#[test]
fn overlapping_writes_and_zeroes_leave_one_or_the_other() {
    on_each(
        Access::default(),
        |path| kinds()[7].1(path),
        |rig| {
            for round in 0..if is_soak() { 500 } else { 20 } {
                let start = rig.dice.below(32) * 65536;
                for tag in 0..TAGS as Tag {
                    let value = [tag as u8 + 1; 512];
                    for sector in 0..16 {
                        rig.memory
                            .write_slice(&value, GuestAddress(u64::from(tag) * SLOT + sector * 512))
                            .unwrap();
                    }
                    let operation = match (round + u64::from(tag)) % 4 {
                        0 => Operation::WriteZeroes { unmap: true },
                        1 => Operation::Discard,
                        _ => Operation::Write,
                    };
                    let offset = start + rig.dice.below(120) * 512;
                    rig.submit(tag, operation, Extent { offset, len: 8192 });
                }
                for _ in 0..TAGS {
                    rig.next().result.unwrap();
                }
                let (from, len) = (start as usize, (136 * 512) as u64);
                let now = rig.read(start, len);
                for (index, sector) in now.chunks(512).enumerate() {
                    let was = &rig.model[from + index * 512..][..512];
                    let whole = sector.iter().all(|byte| *byte == sector[0]) && sector[0] <= TAGS as u8;
                    assert!(whole || sector == was, "sector {index} after {start}");
                }
                rig.model[from..from + len as usize].copy_from_slice(&now);
            }
            rig.close();
        },
    );
}

#[test]
fn a_disk_that_is_only_read_is_not_changed() {
    let access = Access { read_only: true, ..Access::default() };
    let kinds = kinds();
    for name in ["compressed", "on a compressed image on another"] {
        let (_, prepare) = kinds.iter().find(|(kind, _)| *kind == name).unwrap();
        on_each(access, prepare, |rig| {
            let before = fs::read(&rig.path).unwrap();
            let model = rig.model.clone();
            assert!(rig.read(0, SIZE) == model);
            rig.run(Operation::Flush, 0, 0).unwrap();
            rig.run(Operation::Write, 0, 512).unwrap_err();
            rig.run(Operation::WriteZeroes { unmap: true }, 0, 512).unwrap_err();
            (rig.engine, rig.disk) = (None, None);
            assert!(fs::read(&rig.path).unwrap() == before);
        });
    }
}

#[test]
fn an_image_with_a_snapshot_inside_is_only_read() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let path = folder.path().join("disk.qcow2");
    let bytes = kinds()[9].1(&path);
    assert_eq!(qemu_img(&["snapshot", "-c", "before", path.to_str().unwrap()]), 0);
    let options = ImageOptions::new(Format::Qcow2).write(true);
    Image::open(&path, &options, &mut UnlockedOpener).unwrap_err();
    let access = Access { read_only: true, ..Access::default() };
    let mut rig = Rig::new(folder, &path, EngineKind::Sync, access, bytes.clone());
    assert!(rig.read(0, SIZE) == bytes);
}

#[test]
fn many_clusters_are_freed_while_the_disk_works() {
    let prepare = |path: &Path| {
        let raw = path.with_extension("raw");
        let bytes = pattern(8, 64 * MIB);
        fs::write(&raw, &bytes).unwrap();
        let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
        let options = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=8k", from, to];
        assert_eq!(qemu_img(&options), 0);
        bytes
    };
    on_each(Access::default(), prepare, |rig| {
        for at in 0..64 {
            let seed = rig.dice.below(1 << 20);
            rig.write(at * MIB, &pattern(seed, MIB)).unwrap();
            if at % 16 == 15 {
                rig.run(Operation::Flush, 0, 0).unwrap();
            }
        }
        let model = rig.model.clone();
        assert!(rig.read(0, 64 * MIB) == model);
        rig.close();
        let space = fs::metadata(&rig.path).unwrap().blocks() * 512;
        assert!(space < 70 * MIB, "the space of what was compressed is free: {space}");
    });
}

/// On a file system that is full, as many writes fail as must, with its error, and the image stays whole.
#[test]
fn a_full_file_system_is_an_error_and_breaks_nothing() {
    let Some(small) = Small::mount(6) else {
        println!("skipped: no file system can be mounted here");
        return;
    };
    for kind in EngineKind::ALL {
        let folder = Arc::new(tempfile::tempdir_in(&small.0).unwrap());
        let path = folder.path().join("disk.qcow2");
        make(&path, 16 * MIB, &[]);
        let mut rig = Rig::new(folder, &path, kind, Access::default(), vec![0; 16 << 20]);
        rig.write(0, &pattern(1, MIB)).unwrap();
        rig.run(Operation::Flush, 0, 0).unwrap();
        let mut failed = 0;
        for at in 1..16 {
            for part in 0..8 {
                let offset = at * MIB + part * 128 * 1024;
                if let Err(error) = rig.write(offset, &pattern(at * 8 + part, 64 * 1024)) {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
                    failed += 1;
                }
            }
        }
        assert!(failed > 0, "the file system has room for everything");
        let _ = rig.run(Operation::Flush, 0, 0);
        // Room is made, and everything goes on.
        rig.run(Operation::Discard, 0, MIB).unwrap();
        rig.model[..MIB as usize].fill(0);
        rig.run(Operation::Flush, 0, 0).unwrap();
        rig.write(15 * MIB, &pattern(3, 128 * 1024)).unwrap();
        rig.run(Operation::Flush, 0, 0).unwrap();
        (rig.engine, rig.disk) = (None, None);
        assert_eq!(qemu_img(&["check", "-q", "-f", "qcow2", path.to_str().unwrap()]), 0);
        rig.open();
        // A write that failed may have been done in part.
        let (first, last) = (rig.read(0, MIB), rig.read(15 * MIB, 128 * 1024));
        assert!(first.iter().all(|byte| *byte == 0) && last == pattern(3, 128 * 1024));
    }
}

/// A small tmpfs, for as long as this lives.
struct Small(PathBuf);

impl Small {
    fn mount(mib: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap().keep();
        let options = format!("size={mib}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "minivmm"]).arg(&folder).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Small(folder));
        }
        fs::remove_dir(folder).unwrap();
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).output();
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_read_of_a_cluster_that_is_being_written_first_finds_old_bytes_or_new_ones() {
    on_each(
        Access::default(),
        |path| kinds()[7].1(path),
        |rig| {
            let model = rig.model.clone();
            for cluster in 0..40u64 {
                let at = cluster * 65536 + 4096;
                rig.memory.write_slice(&[0xee; 4096], GuestAddress(0)).unwrap();
                rig.submit(0, Operation::Write, Extent { offset: at, len: 4096 });
                for tag in 1..8 {
                    rig.submit(tag, Operation::Read, Extent { offset: cluster * 65536, len: 65536 });
                }
                for _ in 0..8 {
                    let Completion { tag, result } = rig.next();
                    result.unwrap();
                    if tag == 0 {
                        continue;
                    }
                    let mut bytes = vec![0; 65536];
                    rig.memory.read_slice(&mut bytes, GuestAddress(u64::from(tag) * SLOT)).unwrap();
                    let was = &model[(cluster * 65536) as usize..][..65536];
                    assert!(bytes[..4096] == was[..4096] && bytes[8192..] == was[8192..], "around the write");
                    assert!(
                        bytes[4096..8192] == was[4096..8192] || bytes[4096..8192] == [0xee; 4096],
                        "the write"
                    );
                }
                rig.model[at as usize..at as usize + 4096].fill(0xee);
            }
            rig.close();
        },
    );
}

#[test]
fn operations_in_flight_are_waited_for_when_the_disk_ends() {
    on_each(Access::default(), plain, |rig| {
        for tag in 0..16 {
            rig.memory.write_slice(&pattern(1, 65536), GuestAddress(u64::from(tag) * SLOT)).unwrap();
            rig.submit(tag, Operation::Write, Extent { offset: u64::from(tag) * 131_072 + 512, len: 65536 });
        }
        rig.engine().drain().unwrap();
        let ended = std::iter::from_fn(|| rig.engine().completed()).filter(|end| end.result.is_ok()).count();
        assert_eq!(ended, 16);
        for tag in 0..16u64 {
            let at = (tag * 131_072 + 512) as usize;
            rig.model[at..at + 65536].copy_from_slice(&pattern(1, 65536));
        }
        rig.close();
    });
}

/// A file that ends inside of a cluster, as some tools leave them.
#[test]
fn clusters_beyond_the_end_of_the_file_read_as_zeros() {
    on_each(Access::default(), plain, |rig| {
        rig.write(0, &pattern(1, 65536)).unwrap();
        (rig.engine, rig.disk) = (None, None);
        let file = File::options().read(true).write(true).open(&rig.path).unwrap();
        let len = file.metadata().unwrap().len();
        let mut last = vec![0; 65536];
        file.read_exact_at(&mut last, len - 65536).unwrap();
        assert_eq!(last, pattern(1, 65536), "the data are last in the file");
        file.set_len(len - 32768).unwrap();
        rig.model[32768..65536].fill(0);
        rig.open();
        let model = rig.model[..MIB as usize].to_vec();
        assert!(rig.read(0, MIB) == model);
    });
}
