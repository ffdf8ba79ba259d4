//! A guest that does anything to a share, with a file system in memory behind it: any FUSE request, resets, pauses and restores in
//! between.
//!
//! Promises: no panic and no hang; after all of it and a reset, nothing is left of what the guest knew, and the share can be
//! mounted and its root be opened.
//!
//! Input: steps of 8 bytes, see `steps.rs`; a step of the device's own is a request: opcode, node, and two words that its fields
//! are made of.
#![no_main]

#[path = "steps.rs"]
mod steps;

use libfuzzer_sys::fuzz_target;
use virtio::fs::testing::{MemoryFs, init, request};
use virtio::fs::{Caching, Fs};
use virtio::poll::Epoll;
use virtio::testing::Guest;

const NAMES: [&[u8]; 6] = [b"a\0", b"b\0", b"..\0", b"a/b\0", b"\0", b"no end"];

/// Fields as most requests have them: small numbers, one that is not, and names.
fn body(b: u16, c: u16) -> Vec<u8> {
    let mut body = Vec::new();
    for n in 0..u32::from(c % 12) {
        let word = match b.rotate_left(n) % 7 {
            0 => u64::MAX,
            1 => u64::from(b) << 32 | u64::from(c),
            2 => 1 << (c % 64),
            small => u64::from(small),
        };
        body.extend(word.to_le_bytes());
    }
    body.extend(NAMES[usize::from(b) % NAMES.len()]);
    body.extend(NAMES[usize::from(c) % NAMES.len()]);
    body
}

fuzz_target!(|input: &[u8]| {
    let caching = [Caching::Auto, Caching::Always, Caching::Never][input.len() % 3];
    let fs = MemoryFs::new(caching);
    let mut guest = Guest::new(Box::new(Fs::new("fs0", "work", Box::new(fs.clone()))), Box::new(Epoll::new));
    let mut own = |guest: &mut Guest<Epoll>, what: u8, queue: usize, [a, b, c]: [u16; 3]| {
        if what % 16 == 11 {
            return false;
        }
        let (bytes, room) = match what % 16 {
            12 => (request(26, 1, 0, &init(u32::from(31 + a % 16), u32::from(b) << (c % 17))), 80),
            _ => (
                request(u32::from(a % 56), a.into(), u64::from(b % 6), &body(b, c)),
                16 + usize::from(c % 4096),
            ),
        };
        guest.add(queue, &[&bytes], &[room]);
        guest.kick(queue);
        true
    };
    steps::run(&mut guest, input, &mut own, |guest| {
        assert_eq!(fs.lookups(), 0, "a reset forgets everything");
        assert_eq!(guest.request(1, &[&request(26, 1, 0, &init(38, 0))], &[80]).0.len, 80);
        assert_eq!(guest.request(1, &[&request(27, 2, 1, &[0; 8])], &[32]).0.len, 32);
    });
});
