//! What a bad driver does, one thing after the other.

use crate::device::{
    Arena, Device, INDIRECT, MOST_QUEUES, NEEDS_RESET, NEXT, SIZE, WRITE, at, describe, offer, used,
};
use crate::platform::{peek, poke, ticks};
use crate::work;

/// Where a bad driver's rings and buffers are.
pub const ARENA: Arena = Arena(8 << 20);

type Raw = (u64, u32, u16, u16);

/// Chains, by what stands in the first descriptors and in the table; and how far the index goes.
fn chains() -> [(&'static [Raw], &'static [Raw], u16, u16); 30] {
    const B: u64 = ARENA.0 + 0x20_000;
    const T: u64 = ARENA.0 + 0x10_000;
    const R: u64 = ARENA.0;
    [
        // Cyclic.
        (&[(B, 8, NEXT, 0)], &[], 0, 1),
        (&[(B, 8, NEXT, 1), (B, 8, NEXT, 0)], &[], 0, 1),
        (&[(B, 8, NEXT | WRITE, 1), (B, 8, NEXT | WRITE, 1)], &[], 0, 1),
        (&[(B, 0, NEXT, 0)], &[], 0, 1),
        (&[(T, 32, INDIRECT, 0)], &[(B, 8, NEXT, 1), (B, 8, NEXT, 0)], 0, 1),
        // Out of its table.
        (&[(B, 8, NEXT, SIZE)], &[], 0, 1),
        (&[(B, 8, NEXT, u16::MAX)], &[], 0, 1),
        (&[(T, 16, INDIRECT, 0)], &[(B, 8, NEXT, 1)], 0, 1),
        // Out of memory.
        (&[(AT_END, 1, 0, 0)], &[], 0, 1),
        (&[(OVER_END, 4096, WRITE, 0)], &[], 0, 1),
        (&[(OVER_END, 4096, 0, 0)], &[], 0, 1),
        (&[(u64::MAX, 2, WRITE, 0)], &[], 0, 1),
        (&[(0, u32::MAX, 0, 0)], &[], 0, 1),
        (&[(AT_END, 16, INDIRECT, 0)], &[], 0, 1),
        (&[(OVER_END, 4096, INDIRECT, 0)], &[], 0, 1),
        // Tables that may not be.
        (&[(T, 0, INDIRECT, 0)], &[], 0, 1),
        (&[(T, 24, INDIRECT, 0)], &[], 0, 1),
        (&[(T, 16, INDIRECT | NEXT, 1), (B, 8, 0, 0)], &[(B, 8, 0, 0)], 0, 1),
        (&[(T, 16, INDIRECT, 0)], &[(T, 16, INDIRECT, 0)], 0, 1),
        (&[(T, 0x10_0000, INDIRECT, 0)], &[], 0, 1),
        // Overlong, of nothing, overlapping, all of it the rings.
        (&[(T, 16 * 1024, INDIRECT, 0)], &[(B, 1, NEXT, 1), (B, 1, NEXT, 2), (B, 1, 0, 0)], 0, 1),
        (&[(B, 0, 0, 0)], &[], 0, 1),
        (&[(B, 0, WRITE, 0)], &[], 0, 1),
        (&[(B, 4096, NEXT, 1), (B + 8, 4096, NEXT | WRITE, 2), (B, 4096, WRITE, 0)], &[], 0, 1),
        (&[(B, 16, NEXT, 1), (R, 0x1000, WRITE, 0)], &[], 0, 1),
        // The wrong way round; nothing to write an answer into.
        (&[(B, 16, WRITE | NEXT, 1), (B, 16, 0, 0)], &[], 0, 1),
        (&[(B, 16, NEXT, 1), (B, 512, NEXT, 2), (B, 1, 0, 0)], &[], 0, 1),
        // Heads and indices.
        (&[(B, 8, 0, 0)], &[], SIZE, 1),
        (&[(B, 8, 0, 0)], &[], 0, SIZE + 1),
        (&[(B, 8, 0, 0)], &[], 0, u16::MAX),
    ]
}

/// Stand for addresses at the end of memory, which is known at run time.
const AT_END: u64 = u64::MAX - 0x1_0000;
const OVER_END: u64 = u64::MAX - 0x2_0000;

fn translate(address: u64, end: u64) -> u64 {
    match address {
        AT_END => end,
        OVER_END => end - 2048,
        other => other,
    }
}

/// Every chain on every queue. `others` is asked after each one whether it still works.
pub fn bad_chains(device: &Device, end: u64, mut others: impl FnMut()) {
    for queue in 0..device.queues {
        for (ring, table, head, index) in chains() {
            device.start(ARENA, u64::MAX);
            for (n, (address, len, flags, next)) in (0u64..).zip(ring) {
                describe(ARENA.descriptors(queue) + 16 * n, translate(*address, end), *len, *flags, *next);
            }
            for (n, (address, len, flags, next)) in (0u64..).zip(table) {
                describe(ARENA.table() + 16 * n, translate(*address, end), *len, *flags, *next);
            }
            offer(ARENA, queue, head);
            poke::<u16>(ARENA.avail(queue) + 2, index);
            device.kick(queue);
            settle(device, queue);
            others();
        }
    }
    well(device);
}

/// Tables as long as they may be, one longer, and one whose chain goes on behind its end.
pub fn long_chains(device: &Device, mut others: impl FnMut()) {
    for queue in 0..device.queues {
        for (entries, last) in [(1024, WRITE), (1025, WRITE), (1024, NEXT), (4096, WRITE)] {
            device.start(ARENA, u64::MAX);
            for n in 0..entries as u16 {
                let end = u32::from(n) + 1 == entries;
                let flags = if end { last } else { NEXT };
                describe(
                    ARENA.table() + 16 * u64::from(n),
                    ARENA.buffer(),
                    1 + u32::from(n) % 64,
                    flags,
                    n + 1,
                );
            }
            describe(ARENA.descriptors(queue), ARENA.table(), 16 * entries, INDIRECT, 0);
            offer(ARENA, queue, 0);
            device.kick(queue);
            settle(device, queue);
            others();
        }
    }
    // The table may have reached into the buffers.
    (ARENA.table()..ARENA.buffer() + 0x1000).step_by(8).for_each(|at| poke::<u64>(at, 0));
    well(device);
}

/// Some chains are served, some held, some break the queue.
fn settle(device: &Device, queue: u16) {
    let start = ticks();
    while used(ARENA, queue) == 0 && ticks() - start < 200_000 && device.status() & NEEDS_RESET == 0 {}
}

/// Sizes that are none, and places at and over the end of memory, for every queue: the device needs a reset then.
pub fn bad_rings(device: &Device, end: u64, mut others: impl FnMut()) {
    let (d, a, u) = (ARENA.descriptors(0), ARENA.avail(0), ARENA.used(0));
    let cases = [
        (0, [d, a, u]),
        (3, [d, a, u]),
        (65535, [d, a, u]),
        (SIZE, [end, a, u]),
        (SIZE, [end - 16, a, u]),
        (SIZE, [!0xf, a, u]),
        (SIZE, [d + 8, a, u]),
        (SIZE, [d, end, u]),
        (SIZE, [d, end - 16, u]),
        (SIZE, [d, !1, u]),
        (SIZE, [d, a, end]),
        (SIZE, [d, a, end - 16]),
        (SIZE, [d, a, !3]),
    ];
    for queue in 0..device.queues {
        for (size, places) in cases {
            device.negotiate(u64::MAX);
            device.place(queue, size, places);
            device.set(at::STATUS, 0xfu8);
            assert!(device.status() == 0x4f, "{:?} takes {size} at {places:x?}", device.kind);
            device.kick(queue);
            others();
        }
    }
    well(device);
}

/// Writes to what may only be read, in every width; and to a device that runs, of what it stands on.
pub fn read_only(device: &Device) {
    device.start(ARENA, u64::MAX);
    let facts = || {
        device.set(at::SELECT, 0u16);
        let (queues, status): (u16, u8) = (device.get(at::QUEUES), device.status());
        (device.features(), queues, status, device.get::<u64>(at::DESCRIPTORS), device.get::<u16>(at::SIZE))
    };
    let before = facts();
    for value in [0u64, u64::MAX, 0x5a5a_5a5a_5a5a_5a5a] {
        for register in [
            at::FEATURES,
            at::QUEUES,
            at::STATUS + 1,
            0x1e,
            at::DESCRIPTORS,
            at::DRIVER,
            at::DEVICE,
            at::SIZE,
        ] {
            device.set(register, value as u16);
            if register.is_multiple_of(4) {
                device.set(register, value as u32);
            }
        }
        device.set(at::ENABLE, 0u16);
        for offset in 0..64 {
            poke::<u8>(device.bar + 0x1000 + offset, value as u8);
            poke::<u8>(device.bar + 0x7000 + offset, value as u8);
            poke::<u8>(device.function + offset % 16, value as u8 & 6);
        }
        poke::<u16>(device.function + 4, 6);
    }
    assert!(facts() == before, "read-only registers of {:?} changed", device.kind);
    assert!(peek::<u16>(device.function) == 0x1af4);
    work::serves(device, ARENA);
}

/// Resets while requests are in flight.
pub fn resets_in_flight(device: &Device, mut others: impl FnMut()) {
    for round in 0..20u64 {
        device.start(ARENA, u64::MAX);
        for queue in 0..device.queues.min(MOST_QUEUES) {
            describe(ARENA.descriptors(queue), ARENA.buffer(), 64, NEXT, 1);
            describe(ARENA.descriptors(queue) + 16, ARENA.buffer() + 64, 64, WRITE, 0);
            (0..SIZE / 2).for_each(|_| offer(ARENA, queue, 0));
            device.kick(queue);
        }
        work::ask(device, ARENA);
        let start = ticks();
        while ticks() - start < round * 3000 {}
        device.reset();
        if round.is_multiple_of(4) {
            others();
        }
    }
    well(device);
}

/// After a reset it works as if nothing had been.
fn well(device: &Device) {
    device.start(ARENA, u64::MAX);
    work::serves(device, ARENA);
    device.reset();
}
