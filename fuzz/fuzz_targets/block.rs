//! A guest that does anything to a disk: requests of every kind and shape, raw descriptors and indices, kicks, resets, pauses
//! and restores, while completions come late, in any order, or as errors.
//!
//! Promises: no panic and no hang; no operation reaches the engine that is not on the disk and covered by its segments;
//! after all of it and a reset, a sector is read.
//!
//! Input: two bytes of features, then steps of 8 bytes: what, queue, and three 16-bit numbers.
#![no_main]

#[path = "checked.rs"]
mod checked;

use std::num::NonZeroU16;

use checked::{SECTORS, checked};
use libfuzzer_sys::fuzz_target;
use virtio::block::{AnyEngine, Block, Disk, Topology};
use virtio::testing::{Guest, RawDescriptor};

const SIZE: u16 = 16;

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn step(guest: &mut Guest<AnyEngine>, what: u8, queue: u8, [a, b, c]: [u16; 3]) {
    let queue = usize::from(queue) % guest.rings.len();
    let (sector, len) = (u64::from(a), usize::from(b) % 5000 + 1);
    match what % 14 {
        0 => drop(guest.add(queue, &[&header(0, sector)], &[len.next_multiple_of(512), 1])),
        1 => drop(guest.add(queue, &[&header(0, sector << (c % 64))], &[len, usize::from(c) + 1])),
        2 => drop(guest.add(queue, &[&header(1, sector), &vec![c as u8; len.next_multiple_of(512)]], &[1])),
        3 => drop(guest.add(queue, &[&header(u32::from(c) % 16, sector), &vec![c as u8; len]], &[len, 1])),
        4 | 5 => {
            let flags = u32::from(c) % 5;
            let one = [&sector.to_le_bytes()[..], &u32::from(b).to_le_bytes(), &flags.to_le_bytes()].concat();
            let kind = if what % 14 == 4 { 11 } else { 13 };
            guest.add(queue, &[&header(kind, 0), &one.repeat(usize::from(c >> 3) % 20 + 1)], &[1]);
        }
        6 => guest.rings[queue].set_descriptor(
            a % SIZE,
            RawDescriptor { address: u64::from(b) << 12, len: c.into(), flags: b & 7, next: c % (SIZE + 1) },
        ),
        7 => guest.rings[queue].make_available(a % (SIZE + 1)),
        8 => guest.rings[queue].set_available_index(a),
        9 => guest.kick(queue),
        10 => guest.set_config(32, &[a as u8]),
        11 => drop(guest.add(queue, &[&header(4, sector)[..usize::from(a) % 17]], &[1])),
        12 => guest.set_status(a as u8),
        _ => {
            guest.start(u64::from(b) << 5 | u64::from(c) << 24, SIZE);
        }
    }
    if guest.rings.is_empty() || guest.status() & 4 == 0 {
        guest.start(u64::MAX, SIZE);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((features, steps)) = data.split_first_chunk::<2>() else { return };
    let disk = Disk {
        sectors: SECTORS,
        read_only: features[0] & 1 != 0,
        serial: "fuzz".into(),
        queues: NonZeroU16::new(2).unwrap(),
        topology: Topology::default(),
        discard: (features[0] & 2 == 0).then_some(4096),
    };
    let mut guest = Guest::new(Box::new(Block::new("blk0", disk)), Box::new(checked));
    guest.start(u64::from(u16::from_le_bytes(*features)) << 4 | 1 << 29, SIZE);
    for chunk in steps.chunks_exact(8).take(256) {
        let number = |at: usize| u16::from_le_bytes([chunk[at], chunk[at + 1]]);
        step(&mut guest, chunk[0], chunk[1], [number(2), number(4), number(6)]);
    }
    guest.start(0, SIZE);
    let (used, out) = guest.request(0, &[&header(8, 0)], &[20, 1]);
    assert_eq!((used.len, out[1][0]), (21, 0), "after a reset it works");
});
