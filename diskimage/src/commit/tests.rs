//! A power cut at any moment while an overlay is emptied: it reads what its backing file has, and is sound but for clusters that leak.

use std::fs::File;
use std::path::Path;

use super::empty::empty;
use crate::order::medium::log::{self, Event};
use crate::{CreateOptions, Format, Image, ImageOptions, NoProgress, UnlockedOpener, Verdict, check, create};

const SECTOR: usize = 512;
const SIZE: usize = 16 << 20;

/// Numbers from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

fn open_new(path: &Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}

fn open(path: &Path, write: bool) -> Image {
    Image::open(path, &ImageOptions::new(Format::Qcow2).write(write), &mut UnlockedOpener).unwrap()
}

/// What is left of writes: all that was synced, and of the rest any sectors.
fn left(before: &[u8], events: &[Event], numbers: &mut Numbers) -> Vec<u8> {
    let synced = events.iter().rposition(|event| matches!(event, Event::Sync)).unwrap_or(0);
    let keeps = numbers.below(3);
    let mut left = before.to_vec();
    for (index, event) in events.iter().enumerate() {
        let Event::Write { offset, bytes } = event else { continue };
        for (part, bytes) in bytes.chunks(SECTOR).enumerate() {
            let place = usize::try_from(*offset).unwrap() + part * SECTOR;
            if index < synced || numbers.below(3) < keeps {
                left[place..place + bytes.len()].copy_from_slice(bytes);
            }
        }
    }
    left
}

#[test]
fn power_cut_while_an_overlay_is_emptied_leaves_it_sound() {
    let folder = tempfile::tempdir().unwrap();
    let [base, overlay, cut] = ["base", "overlay.qcow2", "cut.qcow2"].map(|name| folder.path().join(name));
    let bytes: Vec<u8> = (0..SIZE).map(|at| u8::try_from(at / 700 % 251).unwrap()).collect();
    std::fs::write(&base, &bytes).unwrap();
    let options =
        CreateOptions::new(Format::Qcow2, SIZE as u64).cluster_size(512).backing("base", Format::Raw);
    create(&open_new(&overlay), &overlay, &options).unwrap();
    // Clusters of 512 bytes: many refcount blocks, and a refcount table of more than one sector.
    let image = open(&overlay, true);
    image.write_at(&bytes, 0).unwrap();
    image.flush().unwrap();
    drop(image);
    let before = std::fs::read(&overlay).unwrap();
    log::start();
    empty(&File::options().read(true).write(true).open(&overlay).unwrap(), &overlay, &mut || Ok(())).unwrap();
    let events = log::take();
    let is_sync = |event: &&Event| matches!(event, Event::Sync);
    assert!(events.iter().filter(is_sync).count() >= 4, "{} events", events.len());
    let mut numbers = Numbers(11);
    for at in (1..=events.len()).chain((0..20).map(|_| events.len())) {
        std::fs::write(&cut, left(&before, &events[..at], &mut numbers)).unwrap();
        let report = check(&File::open(&cut).unwrap(), &cut, Format::Qcow2, &mut NoProgress).unwrap();
        assert_ne!(
            report.verdict(),
            Verdict::Corrupt,
            "cut after {at} of {}: {:?}",
            events.len(),
            report.findings
        );
        let mut read = vec![0; SIZE];
        assert_eq!(open(&cut, false).read_at(&mut read, 0).unwrap(), SIZE);
        assert!(read == bytes, "cut after {at} of {}: other content", events.len());
    }
}
