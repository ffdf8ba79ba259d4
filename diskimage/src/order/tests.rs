//! A power cut at any moment: what was flushed is there, nothing shows what belongs elsewhere, and the image is sound but for
//! clusters that nobody uses.

#![allow(clippy::cast_possible_truncation)]

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::process::Command;

use super::medium::log::{self, Event};
use crate::{CreateOptions, Format, Image, ImageOptions, NoProgress, UnlockedOpener, Verdict, check, create};

const SECTOR: usize = 512;

/// Numbers from a seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) ^ (self.0 >> 12 & 0xffff_ffff)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// The number in each sector of the disk. Each write has its own; 0 is zeroes.
type Disk = HashMap<u64, u64>;

struct Run {
    before: Vec<u8>,
    events: Vec<Event>,
    /// The disk after each flush, and the event that ended it.
    flushes: Vec<(usize, Disk)>,
    /// Every number that a sector had, with the event before which it was written.
    history: HashMap<u64, Vec<(usize, u64)>>,
}

fn sector(number: u64, index: u64) -> Vec<u8> {
    if number == 0 {
        vec![0; SECTOR]
    } else {
        [number.to_be_bytes(), index.to_be_bytes()].concat().repeat(SECTOR / 16)
    }
}

fn open(path: &Path) -> Image {
    Image::open(path, &ImageOptions::new(Format::Qcow2).write(true), &mut UnlockedOpener).unwrap()
}

/// Writes, discards, zeroes, growth and flushes on an image, recorded.
fn record(path: &Path, cluster: u32, numbers: &mut Numbers) -> Run {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    create(&file, path, &CreateOptions::new(Format::Qcow2, 1 << 20).cluster_size(cluster)).unwrap();
    let mut image = open(path);
    let mut disk = Disk::new();
    let mut run = Run {
        before: std::fs::read(path).unwrap(),
        events: vec![],
        flushes: vec![(0, Disk::new())],
        history: HashMap::new(),
    };
    log::start();
    for number in 1..120 {
        let sectors = image.size() / SECTOR as u64;
        let start = numbers.below(sectors);
        let count = (1 + numbers.below(40)).min(sectors - start);
        let (offset, length) = (start * SECTOR as u64, count * SECTOR as u64);
        let before = log::length();
        let written = match numbers.below(10) {
            0..5 => {
                let data: Vec<u8> = (start..start + count).flat_map(|index| sector(number, index)).collect();
                image.write_at(&data, offset).unwrap();
                Some(number)
            }
            5 | 6 => {
                image.discard(offset, length).unwrap();
                Some(0)
            }
            7 => {
                image.write_zeroes(offset, length).unwrap();
                Some(0)
            }
            8 => {
                image.flush().unwrap();
                None
            }
            _ => {
                if numbers.below(4) == 0 {
                    image.grow(image.size() + numbers.below(1 << 20) / 512 * 512).unwrap();
                    None
                } else {
                    image.flush().unwrap();
                    None
                }
            }
        };
        match written {
            Some(number) => {
                for index in start..start + count {
                    disk.insert(index, number);
                    run.history.entry(index).or_default().push((before, number));
                }
            }
            None => run.flushes.push((log::length(), disk.clone())),
        }
    }
    drop(image);
    run.events = log::take();
    run
}

/// When the power is cut: mostly when most is at stake, right before a sync.
fn moment(run: &Run, numbers: &mut Numbers) -> usize {
    let at = 1 + numbers.below(run.events.len() as u64) as usize;
    let next = run.events.iter().skip(at).position(|event| matches!(event, Event::Sync));
    if numbers.below(4) == 0 { at } else { next.map_or(at, |next| at + next) }
}

/// What a power cut after some events leaves: all that was synced, and of the rest any sectors.
fn cut(run: &Run, at: usize, numbers: &mut Numbers) -> Vec<u8> {
    let events = &run.events[..at];
    let synced = events.iter().rposition(|event| matches!(event, Event::Sync)).unwrap_or(0);
    let mode = numbers.below(4);
    let mut left = run.before.clone();
    for (index, event) in events.iter().enumerate() {
        let Event::Write { offset, bytes } = event else { continue };
        for (part, bytes) in bytes.chunks(SECTOR).enumerate() {
            let place = *offset as usize + part * SECTOR;
            let lost = index >= synced && if mode == 0 { true } else { numbers.below(mode + 1) == 0 };
            if !lost {
                left.resize(left.len().max(place + bytes.len()), 0);
                left[place..place + bytes.len()].copy_from_slice(bytes);
            }
        }
    }
    left
}

fn assert_survives(run: &Run, at: usize, left: &[u8], path: &Path) {
    std::fs::write(path, left).unwrap();
    // Our own check agrees with qemu-img's, and is quick; some are judged by both.
    let report = check(&File::open(path).unwrap(), path, Format::Qcow2, &mut NoProgress).unwrap();
    assert!(report.verdict() != Verdict::Corrupt, "cut after {at} of {}: {report:?}", run.events.len());
    if at.is_multiple_of(8) {
        let output = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            matches!(output.status.code(), Some(0 | 3)),
            "cut after {at} of {}: {said}",
            run.events.len()
        );
    }
    let image = open(path);
    let (_, flushed) = run.flushes.iter().rfind(|(end, _)| *end <= at).unwrap();
    let since = run.flushes.iter().rfind(|(end, _)| *end <= at).unwrap().0;
    let mut disk = vec![0xa5; image.size() as usize];
    image.read_at(&mut disk, 0).unwrap();
    for (index, found) in (0..).zip(disk.chunks_exact(SECTOR)) {
        let old = flushed.get(&index).copied().unwrap_or(0);
        let newer =
            run.history.get(&index).into_iter().flatten().filter(|(event, _)| (since..=at).contains(event));
        // Zeroes may be seen while a cluster is new.
        let mut allowed = newer.map(|(_, number)| *number).chain([old]);
        let is_allowed = allowed.any(|number| found[..] == sector(number, index));
        assert!(
            is_allowed,
            "cut after {at} of {}: sector {index} has {:?}, {old} was flushed",
            run.events.len(),
            &found[..16]
        );
    }
}

#[test]
fn a_power_cut_at_any_moment_leaves_what_was_flushed() {
    // Hundreds of syncs: in memory, if there is a file system there.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let mut numbers = Numbers(std::env::var("SEED").map_or(7, |seed| seed.parse().unwrap()));
    let cuts = std::env::var("CUTS").map_or(40, |cuts| cuts.parse().unwrap());
    for cluster in [512, 4096] {
        let path = folder.path().join(format!("{cluster}.qcow2"));
        let run = record(&path, cluster, &mut numbers);
        assert!(run.events.len() > 100, "{} events", run.events.len());
        for _ in 0..cuts {
            let at = moment(&run, &mut numbers);
            let left = cut(&run, at, &mut numbers);
            assert_survives(&run, at, &left, &folder.path().join("cut.qcow2"));
        }
        assert_survives(&run, run.events.len(), &std::fs::read(&path).unwrap(), &path);
    }
}
