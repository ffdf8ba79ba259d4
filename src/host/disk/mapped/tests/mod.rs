//! Images under random operations, compared with what they should hold and checked by qemu-img.
#![allow(clippy::cast_possible_truncation, reason = "numbers of the tests are small")]

use std::fs;
use std::io;
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
use super::super::tests::or_skip;
use super::ImageDisk;
use super::engine::engine;

mod device;
mod full;
mod images;
mod promises;
mod random;
mod settle;

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
    /// `None` where the host has no such engine, and the environment allows that.
    fn new(
        folder: Arc<TempDir>,
        path: &Path,
        kind: EngineKind,
        access: Access,
        model: Vec<u8>,
    ) -> Option<Self> {
        let (memory, _) = testing::memory(16 << 20);
        let dice = Dice(0x9e37_79b9_7f4a_7c15);
        let (engine, disk) = (None, None);
        let mut rig =
            Rig { engine, disk, memory, kind, access, path: path.into(), model, dice, _folder: folder };
        rig.open();
        rig.engine.is_some().then_some(rig)
    }

    fn open(&mut self) {
        let options = ImageOptions::new(Format::Qcow2).write(!self.access.read_only);
        let image = Image::open(&self.path, &options, &mut UnlockedOpener).unwrap();
        let disk = Arc::new(ImageDisk::new(image, self.access).unwrap());
        let Some(mut made) = or_skip(engine(disk.clone(), self.kind), self.kind) else { return };
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
        if let Some(mut rig) = Rig::new(folder, &path, kind, access, model) {
            test(&mut rig);
        }
    }
}
