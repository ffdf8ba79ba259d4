//! Any bytes as a qcow2 image, on any other: either it is refused, or it is read and written without harm to anything else.
//!
//! A random file is hardly ever an image. The input changes one that is sound, eight bytes at a time, and then works on it. An
//! image that was not changed must hold what is written to it.
//!
//! `cargo +nightly fuzz run qcow2 fuzz/corpus/qcow2 fuzz/seeds/qcow2`
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use diskimage::{
    Access, CreateOptions, Format, Image, ImageError, ImageOptions, NoProgress, Opener, UnlockedOpener,
    Verdict, check, commit, create,
};
use libfuzzer_sys::fuzz_target;

/// A step of the input: what, and a place, a length and a value, or the bytes of a change.
const STEP: usize = 12;
/// No image is read or written further than this.
const REACH: u64 = 8 << 20;
const SIZE: u64 = 1 << 20;
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
        let image = Image::open(top, &ImageOptions::new(Format::Qcow2), &mut Folder(folder))
            .expect("a sound overlay");
        let mut found = vec![1; disk.len()];
        image.read_at(&mut found, 0).expect("a sound image is read");
        assert!(found == disk, "the overlay holds what it held before the commit");
    }
}

/// One change of the disk, done to the image and to what it should hold.
fn work(image: &mut Image, disk: &mut Vec<u8>, step: &[u8]) {
    let number = |at: usize| u64::from(u16::from_le_bytes([step[at], step[at + 1]]));
    let size = image.size().min(REACH);
    let offset = (number(2) << (step[4] % 12)) % size.max(1);
    let length = (number(6) * if step[4] & 0x80 != 0 { 8 } else { 1 }).min(size - offset.min(size));
    let range = offset as usize..(offset + length) as usize;
    let mut fill = |value: u8| {
        if let Some(place) = disk.get_mut(range.clone()) {
            place.fill(value);
        }
    };
    match step[0] % 8 {
        1 if image.write_zeroes(offset, length).is_ok() => fill(0),
        2 if image.discard(offset, length).is_ok() => fill(0),
        3 => drop(image.flush()),
        4 => {
            if image.resize((number(8) << (step[4] % 10)).min(REACH), true).is_ok() {
                disk.resize(image.size() as usize, 0);
            }
        }
        5 => walk(image, offset),
        _ if image.write_at(&vec![step[10]; length as usize], offset).is_ok() => fill(step[10]),
        _ => {}
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
