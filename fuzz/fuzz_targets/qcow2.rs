//! Any bytes as a qcow2 image, on any other: either it is refused, or it is read and written without harm to anything else.
//!
//! A random file is hardly ever an image. The input changes one that is sound, eight bytes at a time, and then works on it. An
//! image that was not changed must hold what is written to it. The work is that of the verbs, or what a machine runs on its disk.
//!
//! `cargo +nightly fuzz run qcow2 fuzz/corpus/qcow2 fuzz/seeds/qcow2`
#![no_main]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use diskimage::{
    Access, CreateOptions, Format, Image, ImageError, ImageOptions, NoProgress, Opener, UnlockedOpener,
    Verdict, check, commit, create,
};
use libfuzzer_sys::fuzz_target;
use minivmm::RunningImage;
use virtio::block::{Extent, Operation};
use virtio::memory::Memory;
use virtio::testing;
use vm_memory::{Bytes, GuestAddress};

/// A step of the input: what, and a place, a length and a value, or the bytes of a change.
const STEP: usize = 12;
/// No image is read or written further than this.
const REACH: u64 = 8 << 20;
const SIZE: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// In the kind: a machine works on the image.
const MACHINE: u8 = 0x20;
/// What a whole input may take of a processor.
const LONGEST: Duration = Duration::from_secs(4);

/// Opens files of one folder, and complains about all others.
struct Folder<'a>(&'a Path);

impl Opener for Folder<'_> {
    fn open(&mut self, path: &Path, access: Access) -> Result<File, ImageError> {
        assert_eq!(path.parent(), Some(self.0), "{}", path.display());
        assert!(path.file_name().is_some() && (access.named || !access.write));
        UnlockedOpener.open(path, access)
    }
}

/// The time that this thread ran, however busy the machine is.
fn now() -> Duration {
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(times.split(' ').next().and_then(|time| time.parse().ok()).unwrap_or(0))
}

fn make(path: &Path, options: &CreateOptions) {
    let _ = std::fs::remove_file(path);
    let file =
        File::options().read(true).write(true).create_new(true).open(path).expect("a folder in memory");
    create(&file, path, options).expect("these options are possible");
}

/// Makes the images: three cluster sizes, with a backing file or without, and something in them.
fn prepare(folder: &Path, kind: u8) -> (PathBuf, Vec<u8>) {
    let (base, top) = (folder.join("base.qcow2"), folder.join("top.qcow2"));
    let cluster = [512, 4096, 65536][usize::from(kind % 3)];
    make(&base, &CreateOptions::new(Format::Qcow2, SIZE / 2).cluster_size(cluster));
    let mut options = CreateOptions::new(Format::Qcow2, SIZE).cluster_size(cluster);
    let mut disk = vec![0; SIZE as usize];
    if kind & 4 != 0 {
        let image = Image::open(&base, &ImageOptions::new(Format::Qcow2).write(true), &mut Folder(folder))
            .expect("new");
        image.write_at(&[0xbb; 3000], 9000).expect("room");
        disk[9000..12000].fill(0xbb);
        options = options.backing("base.qcow2", Format::Qcow2);
    }
    make(&top, &options);
    if kind & 8 != 0 {
        let image = Image::open(&top, &ImageOptions::new(Format::Qcow2).write(true), &mut Folder(folder))
            .expect("new");
        image.write_at(&[0x77; 70_000], 10_000).expect("room");
        disk[10_000..80_000].fill(0x77);
    }
    (top, disk)
}

fn walk(image: &Image, from: u64) {
    let mut offset = from;
    for _ in 0..300 {
        let Ok((_, length)) = image.access().get_mapping(offset, image.size().saturating_sub(offset)) else {
            break;
        };
        if length == 0 {
            break;
        }
        offset += length;
    }
    let _ = image.read_at(&mut vec![0; 100_000], from);
}

fn assert_holds(folder: &Path, path: &Path, disk: &[u8]) {
    let image =
        Image::open(path, &ImageOptions::new(Format::Qcow2), &mut Folder(folder)).expect("a sound image");
    assert_eq!(image.size(), disk.len() as u64);
    let mut found = vec![1; disk.len()];
    image.read_at(&mut found, 0).expect("a sound image is read");
    assert!(found == disk, "{} holds what was written to it", path.display());
}

/// The check ends, and finds nothing but leaks in an image that was not changed from outside.
fn check_image(path: &Path, is_sound: bool) {
    let file = File::open(path).expect("made above");
    match check(&file, path, Format::Qcow2, &mut NoProgress) {
        Ok(report) => assert!(!is_sound || report.verdict() != Verdict::Corrupt, "{:?}", report.findings),
        Err(error) => assert!(!is_sound, "{error}"),
    }
}

/// The overlay goes to its backing file, and still holds what it held.
fn commit_image(folder: &Path, top: &Path, disk: &[u8], is_sound: bool) {
    let write = ImageOptions::new(Format::Qcow2).write(true);
    let file = File::options().read(true).write(true).open(top).expect("made above");
    let Ok(overlay) = Image::alone(file, top, Format::Qcow2, true) else { return };
    let Ok(base) = Image::open(&folder.join("base.qcow2"), &write, &mut Folder(folder)) else { return };
    let done = commit(overlay, &base, &mut NoProgress);
    drop(base);
    check_image(top, is_sound);
    if is_sound {
        done.expect("a sound overlay");
        assert_holds(folder, top, disk);
    }
}

/// A step of work: what it is, where, and with what.
struct Work {
    what: u8,
    offset: u64,
    length: u64,
    value: u8,
    size: u64,
}

impl Work {
    fn new(step: &[u8], size: u64) -> Self {
        let number = |at: usize| u64::from(u16::from_le_bytes([step[at], step[at + 1]]));
        let size = size.min(REACH);
        let offset = (number(2) << (step[4] % 12)) % size.max(1);
        let length = (number(6) * if step[4] & 0x80 != 0 { 8 } else { 1 }).min(size - offset.min(size));
        let size = (number(8) << (step[4] % 10)).min(REACH);
        Work { what: step[0], offset, length, value: step[10], size }
    }

    /// In whole sectors, as a guest can say it.
    fn in_sectors(self) -> Self {
        let down = |bytes| bytes / SECTOR * SECTOR;
        Work { offset: down(self.offset), length: down(self.length), size: down(self.size), ..self }
    }

    fn range(&self) -> Range<usize> {
        self.offset as usize..(self.offset + self.length) as usize
    }
}

fn fill(disk: &mut [u8], range: Range<usize>, value: u8) {
    if let Some(place) = disk.get_mut(range) {
        place.fill(value);
    }
}

/// One change of the disk, done to the image and to what it should hold.
fn work(image: &mut Image, disk: &mut Vec<u8>, step: &[u8]) {
    let work = Work::new(step, image.size());
    let Work { offset, length, value, .. } = work;
    match work.what % 8 {
        1 if image.write_zeroes(offset, length).is_ok() => fill(disk, work.range(), 0),
        2 if image.discard(offset, length).is_ok() => fill(disk, work.range(), 0),
        3 => drop(image.flush()),
        4 => {
            if image.resize(work.size, true).is_ok() {
                disk.resize(image.size() as usize, 0);
            }
        }
        5 => walk(image, offset),
        _ if image.write_at(&vec![value; length as usize], offset).is_ok() => fill(disk, work.range(), value),
        _ => {}
    }
}

/// What a machine does with its disk, and what it can rely on where `is_sound`.
struct Machine {
    image: RunningImage,
    memory: Memory,
    is_sound: bool,
}

impl Machine {
    /// Does the steps, and ends as a process that is killed: the copy of its file that it leaves is returned.
    fn run(self, top: &Path, disk: &mut Vec<u8>, steps: &[&[u8]]) -> Option<PathBuf> {
        steps.iter().for_each(|step| self.work(disk, Work::new(step, self.image.size()).in_sectors()));
        self.expect(self.run_one(Operation::Flush, 0, 0));
        let killed = top.with_file_name("killed.qcow2");
        // A hostile image may lie anywhere in its file.
        self.is_sound.then(|| std::fs::copy(top, &killed).map(|_| killed).expect("room"))
    }

    fn run_one(&self, operation: Operation, offset: u64, len: u64) -> io::Result<()> {
        self.image.run(operation, Extent { offset, len }, &self.memory)
    }

    /// Errors are for images that were changed.
    fn expect(&self, result: io::Result<()>) -> bool {
        assert!(!self.is_sound || result.is_ok(), "{result:?}");
        result.is_ok()
    }

    fn work(&self, disk: &mut Vec<u8>, work: Work) {
        let Work { offset, length, value, .. } = work;
        match work.what % 16 {
            1 | 9 => {
                if self.expect(self.run_one(Operation::WriteZeroes { unmap: value & 1 != 0 }, offset, length))
                {
                    fill(disk, work.range(), 0);
                }
            }
            2 => self.discard(disk, &work),
            3 => drop(self.expect(self.run_one(Operation::Flush, 0, 0))),
            4 if work.size > self.image.size() => {
                if self.expect(self.image.grow(work.size)) {
                    disk.resize(self.image.size() as usize, 0);
                }
            }
            5 | 13 => drop(self.read(offset, length)),
            11 => drop(self.expect(self.image.finish())),
            _ => {
                self.memory.write_slice(&vec![value; length as usize], GuestAddress(0)).expect("room");
                if self.expect(self.run_one(Operation::Write, offset, length)) {
                    fill(disk, work.range(), value);
                }
            }
        }
    }

    /// What is discarded reads as it was or as zeros.
    fn discard(&self, disk: &mut [u8], work: &Work) {
        if !self.expect(self.run_one(Operation::Discard, work.offset, work.length)) {
            return;
        }
        let Some(now) = self.read(work.offset, work.length) else { return };
        if let Some(was) = disk.get_mut(work.range()) {
            let fits = was.iter().zip(&now).all(|(was, now)| was == now || *now == 0);
            assert!(!self.is_sound || fits, "a discard leaves what was there, or zeros");
            was.copy_from_slice(&now);
        }
    }

    fn read(&self, offset: u64, length: u64) -> Option<Vec<u8>> {
        let read = self.expect(self.run_one(Operation::Read, offset, length));
        let mut bytes = vec![0; length as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).expect("room");
        read.then_some(bytes)
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, steps)) = input.split_first() else { return };
    let begin = now();
    let folder = PathBuf::from(format!("/dev/shm/minivmm-fuzz-qcow2-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a file system in memory");
    let (top, mut disk) = prepare(&folder, *kind);
    let is_sound = steps.first().is_none_or(|what| what & 0x80 == 0);
    let (changes, work_steps): (Vec<_>, Vec<_>) =
        steps.chunks_exact(STEP).take(48).partition(|step| step[0] & 0x80 != 0);
    if is_sound {
        assert!(Image::open(&top, &ImageOptions::new(Format::Qcow2), &mut Folder(&folder)).is_ok());
    } else {
        let names = [top.clone(), folder.join("base.qcow2")];
        for step in changes {
            let place =
                u64::from(u16::from_le_bytes([step[2], step[3]])) * if step[0] & 1 != 0 { 8 } else { 1 };
            let file =
                File::options().write(true).open(&names[usize::from(step[1] & 1)]).expect("made above");
            file.write_all_at(&step[4..STEP], place).expect("room");
        }
    }
    for write in [false, true] {
        let before = std::fs::read(&top).expect("made above");
        match Image::open(&top, &ImageOptions::new(Format::Qcow2).write(write), &mut Folder(&folder)) {
            Err(error) => {
                assert!(!is_sound, "{error}");
                assert!(!error.to_string().chars().any(char::is_control), "{error}");
            }
            Ok(image) if write && kind & MACHINE != 0 => {
                let image = match RunningImage::new(image) {
                    Ok(image) => image,
                    Err(error) if is_sound => panic!("{error}"),
                    Err(_) => continue,
                };
                let (memory, _) = testing::memory(1 << 20);
                let machine = Machine { image, memory, is_sound };
                let killed = machine.run(&top, &mut disk, &work_steps);
                for path in killed.iter().chain([&top]).filter(|_| is_sound) {
                    check_image(path, is_sound);
                    assert_holds(&folder, path, &disk);
                }
            }
            Ok(mut image) => {
                walk(&image, 0);
                if write {
                    work_steps.iter().for_each(|step| work(&mut image, &mut disk, step));
                    let _ = image.flush();
                }
                if is_sound {
                    let mut found = vec![1; disk.len()];
                    assert_eq!(image.size(), disk.len() as u64);
                    image.read_at(&mut found, 0).expect("a sound image is read");
                    assert!(!write || found == disk, "the image holds what was written to it");
                }
            }
        }
        assert!(write || before == std::fs::read(&top).expect("made above"), "reading changes nothing");
    }
    check_image(&top, is_sound);
    if kind & 0x14 == 0x14 {
        commit_image(&folder, &top, &disk, is_sound);
    }
    let _ = std::fs::remove_dir_all(&folder);
    let took = now() - begin;
    assert!(took < LONGEST, "{took:?}");
});
