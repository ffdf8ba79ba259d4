//! What each device is for: one request, answered, and the answer looked at.

use crate::device::{Arena, Device, FOR_EVER, Kind, NEXT, WRITE, describe, offer, used};
use crate::platform::{peek, poke, ticks};

/// Where the answer of a request goes, in the buffers of its arena.
const ANSWER: u64 = 0x1000;
/// After so long a frame is taken for lost on its way, as frames may be, and sent again.
const LOST: u64 = 100_000_000;
/// The sector that is written and read.
const SECTOR: u64 = 100;

/// The queue whose work is tried.
pub fn queue(kind: Kind) -> u16 {
    match kind {
        Kind::Entropy | Kind::Block => 0,
        Kind::Network | Kind::Balloon | Kind::FileSystem => 1,
        // The control queue: data wait for a reader on the host.
        Kind::Console => 3,
    }
}

/// Puts a request into `arena`'s ring of [`queue`], and kicks.
pub fn ask(device: &Device, arena: Arena) {
    let queue = queue(device.kind);
    let (ring, buffer) = (arena.descriptors(queue), arena.buffer());
    match device.kind {
        Kind::Entropy => {
            poke::<u64>(buffer, 0);
            poke::<u64>(buffer + 8, 0);
            describe(ring, buffer, 16, WRITE, 0);
        }
        Kind::Block => return disk(device, arena, 0),
        Kind::Network => {
            receive(device, arena, 0);
            who_has(buffer);
            describe(ring, buffer, 12 + 60, 0, 0);
        }
        Kind::Console => {
            // VIRTIO_CONSOLE_DEVICE_READY.
            poke::<u32>(buffer, 0);
            poke::<u32>(buffer + 4, 1 << 16);
            describe(ring, buffer, 8, 0, 0);
        }
        Kind::Balloon => {
            poke::<u32>(buffer, (arena.0 >> 12) as u32);
            describe(ring, buffer, 4, 0, 0);
        }
        Kind::FileSystem => mount(ring, buffer),
    }
    offer(arena, queue, 0);
    device.kick(queue);
}

/// FUSE_INIT of protocol 7.38; its error is behind the answer's length.
fn mount(ring: u64, buffer: u64) {
    (0..104).step_by(8).for_each(|at| poke::<u64>(buffer + at, 0));
    poke::<u64>(buffer, 104 | 26 << 32);
    poke::<u64>(buffer + 40, 7 | 38 << 32);
    poke::<u64>(buffer + ANSWER, !0);
    describe(ring, buffer, 104, NEXT, 1);
    describe(ring + 16, buffer + ANSWER, 80, WRITE, 0);
}

/// VIRTIO_BLK_T_IN (0) or VIRTIO_BLK_T_OUT (1) of a sector; the status is the last byte.
fn disk(device: &Device, arena: Arena, kind: u64) {
    let (ring, buffer) = (arena.descriptors(0), arena.buffer());
    poke::<u64>(buffer, kind);
    poke::<u64>(buffer + 8, SECTOR);
    poke::<u8>(buffer + ANSWER, 0xff);
    let data = if kind == 0 { NEXT | WRITE } else { NEXT };
    describe(ring, buffer, 16, NEXT, 1);
    describe(ring + 16, buffer + 0x200, 512, data, 2);
    describe(ring + 32, buffer + ANSWER, 1, WRITE, 0);
    offer(arena, 0, 0);
    device.kick(0);
}

/// ARP's question for 10.9.0.1, of 10.9.0.2, behind a header of zeros.
fn who_has(buffer: u64) {
    (0..72).for_each(|at| poke::<u8>(buffer + at, 0));
    let words: [u64; 6] = [
        0x0002_ffff_ffff_ffff,
        0x0100_0608_0100_0000,
        0x0002_0100_0406_0008,
        0x0200_090a_0100_0000,
        0x090a_0000_0000_0000,
        0x0000_0000_0000_0100,
    ];
    for (at, word) in (12..).step_by(8).zip(words) {
        (0..8).for_each(|byte| poke::<u8>(buffer + at + byte, (word >> (8 * byte)) as u8));
    }
}

/// Gives `queue` a buffer to fill, unless it has one.
fn receive(device: &Device, arena: Arena, queue: u16) {
    if peek::<u16>(arena.avail(queue) + 2) == used(arena, queue) {
        describe(arena.descriptors(queue), arena.buffer() + ANSWER, 2048, WRITE, 0);
        offer(arena, queue, 0);
        device.kick(queue);
    }
}

/// Something that comes in through `queue` is the answer.
fn heard(device: &Device, arena: Arena, queue: u16, answer: impl Fn(u64) -> bool) -> bool {
    if peek::<u16>(arena.avail(queue) + 2) != used(arena, queue) {
        return false;
    }
    let found = answer(arena.buffer() + ANSWER);
    if !found {
        receive(device, arena, queue);
    }
    found
}

/// Waits until `done`.
fn wait(device: &Device, start: u64, what: &str, mut done: impl FnMut() -> bool) {
    while !done() {
        let (kind, status) = (device.kind, device.status());
        assert!(ticks() - start < FOR_EVER, "{kind:?} serves no more, {what}, status {status:#x}");
        core::hint::spin_loop();
    }
}

/// A device that has been started in `arena` serves a request; ticks that it took.
pub fn serves(device: &Device, arena: Arena) -> u64 {
    let queue = queue(device.kind);
    let start = ticks();
    let asked = |ask: &dyn Fn()| {
        let before = used(arena, queue);
        ask();
        wait(device, start, "no request", || used(arena, queue) != before);
    };
    let buffer = arena.buffer();
    if device.kind == Kind::Block {
        poke::<u64>(buffer + 0x200, start);
        asked(&|| disk(device, arena, 1));
        assert!(peek::<u8>(buffer + ANSWER) == 0, "the disk cannot be written");
        poke::<u64>(buffer + 0x200, 0);
    }
    asked(&|| ask(device, arena));
    match device.kind {
        Kind::Block => {
            let (status, found): (u8, u64) = (peek(buffer + ANSWER), peek(buffer + 0x200));
            assert!(
                status == 0 && found == start,
                "the disk reads {found:#x}, not {start:#x}, status {status}"
            );
        }
        Kind::Entropy => {
            assert!(peek::<u64>(buffer) | peek::<u64>(buffer + 8) != 0, "16 bytes of entropy are 0")
        }
        Kind::Network => {
            let reply = |frame: u64| peek::<u16>(frame + 24) == 0x0608 && peek::<u16>(frame + 32) == 0x0200;
            let mut sent = start;
            wait(device, start, "no frame comes", || {
                if ticks() - sent > LOST {
                    sent = ticks();
                    asked(&|| ask(device, arena));
                }
                heard(device, arena, 0, reply)
            });
        }
        Kind::FileSystem => assert!(peek::<u64>(buffer + ANSWER) == 80, "the share cannot be mounted"),
        Kind::Console | Kind::Balloon => {}
    }
    ticks() - start
}
