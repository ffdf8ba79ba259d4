//! What each device is for: one request, answered.

use crate::device::{Arena, Device, FOR_EVER, Kind, NEXT, WRITE, describe, offer, used};
use crate::platform::{peek, poke, ticks};

/// The queue whose work is tried.
pub fn queue(kind: Kind) -> u16 {
    match kind {
        Kind::Entropy | Kind::Block => 0,
        Kind::Network | Kind::Balloon => 1,
        // The control queue: data wait for a reader on the host.
        Kind::Console => 3,
    }
}

/// Puts a request into `arena`'s ring of [`queue`], and kicks.
pub fn ask(device: &Device, arena: Arena) {
    let queue = queue(device.kind);
    let (ring, buffer) = (arena.descriptors(queue), arena.buffer());
    match device.kind {
        Kind::Entropy => describe(ring, buffer, 16, WRITE, 0),
        Kind::Block => {
            // VIRTIO_BLK_T_IN of the first sector; the status is the last byte.
            poke::<u64>(buffer, 0);
            poke::<u64>(buffer + 8, 0);
            poke::<u8>(buffer + 0x800, 0xff);
            describe(ring, buffer, 16, NEXT, 1);
            describe(ring + 16, buffer + 0x200, 512, NEXT | WRITE, 2);
            describe(ring + 32, buffer + 0x800, 1, WRITE, 0);
        }
        Kind::Network => {
            for at in (0..80).step_by(8) {
                poke::<u64>(buffer + at, 0);
            }
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
    }
    offer(arena, queue, 0);
    device.kick(queue);
}

/// A device that has been started in `arena` serves a request; ticks that it took.
pub fn serves(device: &Device, arena: Arena) -> u64 {
    let queue = queue(device.kind);
    let (start, before) = (ticks(), used(arena, queue));
    ask(device, arena);
    while used(arena, queue) == before {
        assert!(ticks() - start < FOR_EVER, "{:?} serves no more, status {:#x}", device.kind, device.status());
        core::hint::spin_loop();
    }
    if device.kind == Kind::Block {
        assert!(peek::<u8>(arena.buffer() + 0x800) == 0, "the disk cannot be read");
    }
    ticks() - start
}
