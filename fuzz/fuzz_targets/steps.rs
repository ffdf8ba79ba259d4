//! What any guest can do to any device: the steps that the targets of small devices share.

use std::time::{Duration, Instant};

use devices::component::Component;
use virtio::poll::Epoll;
use virtio::testing::{Guest, RawDescriptor};

/// Descriptors of a ring.
pub const SIZE: u16 = 16;
/// Bytes of a step in the input: what, queue, and three 16-bit numbers.
const STEP: usize = 8;

/// A step of the device's own; `true` if it was one.
pub type Own<'a> = &'a mut dyn FnMut(&mut Guest<Epoll>, u8, usize, [u16; 3]) -> bool;

fn step(guest: &mut Guest<Epoll>, own: Own<'_>, what: u8, queue: u8, numbers: [u16; 3]) {
    let queue = usize::from(queue) % guest.rings.len();
    let [a, b, c] = numbers;
    let room = usize::from(a) % 70_000 + 1;
    match what % 16 {
        0 => drop(guest.add(queue, &[], &[room])),
        1 => drop(guest.add(queue, &[&vec![b as u8; room]], &[usize::from(c) % 5000 + 1])),
        2 => drop(guest.add(queue, &[&a.to_le_bytes(), &b.to_le_bytes(), &c.to_le_bytes(), &[1, 0]], &[])),
        3 => guest.rings[queue].set_descriptor(
            a % SIZE,
            RawDescriptor {
                address: u64::from(b) << 9,
                len: u32::from(c) << (a >> 12),
                flags: b & 7,
                next: c % (SIZE + 1),
            },
        ),
        4 => guest.rings[queue].make_available(a % (SIZE + 2)),
        5 => guest.rings[queue].set_available_index(a),
        6 => guest.rings[queue].set_used_event(a),
        7 => guest.set_config(u64::from(a % 40), &b.to_le_bytes()),
        8 => drop(guest.config(u64::from(a % 40), usize::from(b % 40))),
        9 => {
            guest.function.quiesce();
            let state = guest.function.save().expect("its thread lives");
            if a & 1 != 0 {
                guest.function.load(&state).expect("its own state");
            }
            guest.function.go();
        }
        10 => {
            guest.start(u64::MAX ^ (u64::from(a) << (b % 30)), SIZE);
        }
        _ => {
            if !own(guest, what, queue, numbers) {
                guest.kick(queue);
            }
        }
    }
    if c & 3 != 0 {
        guest.kick(queue);
    }
}

/// Does what `input` says, begins anew, and lets `works` see whether the device still does its part.
pub fn run(guest: &mut Guest<Epoll>, input: &[u8], own: Own<'_>, works: impl FnOnce(&mut Guest<Epoll>)) {
    let begin = Instant::now();
    guest.start(u64::MAX, SIZE);
    for raw in input.chunks_exact(STEP).take(64) {
        let number = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        step(guest, own, raw[0], raw[1], [number(2), number(4), number(6)]);
    }
    guest.start(u64::MAX, SIZE);
    works(guest);
    assert!(begin.elapsed() < Duration::from_secs(30), "something held the device up");
}
