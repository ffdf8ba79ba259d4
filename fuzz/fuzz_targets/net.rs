//! A guest that does anything to a network device: frames and headers, buffers, commands, raw descriptors and indices,
//! kicks, resets, pauses and restores, while frames come from the wire.
//!
//! Promises: no panic and no hang; a frame is only sent behind a header that the host's kernel can rely on; after all of
//! it and a reset, frames pass both ways.
//!
//! Input: two bytes of features, then steps of 8 bytes: what, queue, and three 16-bit numbers.
#![no_main]

use std::time::{Duration, Instant};

use devices::component::Component;
use libfuzzer_sys::fuzz_target;
use virtio::net::testing::{Frame, Wire};
use virtio::net::{HEADER_LEN, Net, Offloads};
use virtio::poll::Epoll;
use virtio::testing::{Guest, RawDescriptor};

const LONGEST: usize = 65_535 + 18;
const SIZE: u16 = 16;

fn frame(len: usize) -> Frame {
    Frame { header: [0; HEADER_LEN], bytes: vec![0x5a; len] }
}

/// What the kernel is told of a frame is true of it.
fn check(sent: &Frame) {
    let field = |at: usize| usize::from(u16::from_le_bytes([sent.header[at], sent.header[at + 1]]));
    let (flags, gso, len) = (sent.header[0], sent.header[1], sent.bytes.len());
    assert!((14..=LONGEST).contains(&len) && flags & !1 == 0 && field(10) == 0);
    assert!(flags == 1 || (field(6), field(8)) == (0, 0));
    assert!(flags == 0 || (field(6) >= 14 && field(6) + field(8) + 2 <= len));
    assert!(matches!(gso, 0 | 1 | 3 | 4 | 5 | 0x81 | 0x84));
    assert!(if gso == 0 {
        (field(2), field(4)) == (0, 0)
    } else {
        flags == 1 && field(4) > 0 && field(2) <= len
    });
}

fn step(guest: &mut Guest<Epoll>, wire: &Wire, what: u8, queue: u8, [a, b, c]: [u16; 3]) {
    let queue = usize::from(queue) % guest.rings.len();
    let room = usize::from(a) % 70_000 + 1;
    match what % 14 {
        0 => drop(guest.add(queue, &[], &[room])),
        1 => drop(guest.add(queue, &[], &[room, usize::from(b) % 5000 + 1])),
        2 => {
            let mut header = [0; HEADER_LEN];
            header[..2].copy_from_slice(&b.to_le_bytes());
            for (at, value) in [(2, c), (4, b ^ c), (6, c.wrapping_mul(7)), (8, a ^ b)] {
                header[at..at + 2].copy_from_slice(&(value & (a | 0x3f)).to_le_bytes());
            }
            guest.add(queue, &[&header, &vec![1; room]], &[]);
        }
        3 => drop(guest.add(queue, &[&[0; HEADER_LEN], &vec![1; room % 2000 + 1]], &[])),
        4 => drop(guest.add(queue, &[&[a as u8, b as u8], &c.to_le_bytes(), &[0; 6]], &[1])),
        5 => wire.give(queue as u16 / 2 % 2, [frame(room.min(LONGEST + 9)), frame(usize::from(b) % 2000)]),
        6 => guest.rings[queue].set_descriptor(
            a % SIZE,
            RawDescriptor { address: u64::from(b) << 12, len: c.into(), flags: b & 7, next: c % (SIZE + 1) },
        ),
        7 => guest.rings[queue].make_available(a % (SIZE + 2)),
        8 => guest.rings[queue].set_available_index(a),
        9 => guest.rings[queue].set_used_event(a),
        10 => wire.ends().credit = (a % 3 != 0).then_some(usize::from(b) % 50),
        11 => wire.plug(a & 1 == 0),
        12 => {
            guest.function.quiesce();
            let state = guest.function.save().expect("its thread lives");
            if a & 1 != 0 {
                guest.function.load(&state).expect("its own state");
            }
            guest.function.go();
        }
        _ => {
            guest.start(u64::MAX ^ (u64::from(a) << 1), SIZE);
        }
    }
    if c & 3 != 0 {
        guest.kick(queue);
    }
}

/// Whatever happened, a driver that begins anew finds a device that works.
fn works(guest: &mut Guest<Epoll>, wire: &Wire) {
    guest.reset();
    {
        let mut ends = wire.ends();
        ends.from_guest.drain(..).for_each(|(_, frame)| check(&frame));
        ends.to_guest.iter_mut().for_each(|frames| frames.clear());
        ends.credit = None;
    }
    guest.start(u64::MAX, SIZE);
    guest.request(1, &[&[0; HEADER_LEN], &[7; 60]], &[]);
    assert_eq!(wire.ends().from_guest.pop().map(|(_, frame)| frame.bytes), Some(vec![7; 60]));
    guest.add(0, &[], &[1526]);
    guest.kick(0);
    wire.give(0, [frame(60)]);
    assert_eq!(guest.rings[0].wait_used().len as usize, HEADER_LEN + 60);
}

fuzz_target!(|input: &[u8]| {
    let Some((features, steps)) = input.split_at_checked(2) else { return };
    let wire = Wire::new(2, Offloads::all());
    let device = Net::<Epoll>::new("net0", [2, 0, 0, 0, 0, 1], Box::new(wire.clone()), 2);
    let mut guest = Guest::new(Box::new(device), Box::new(Epoll::new));
    let refused = u64::from(u16::from_le_bytes([features[0], features[1]]));
    guest.start(u64::MAX ^ (refused << 7), SIZE);
    let begin = Instant::now();
    for raw in steps.chunks_exact(8).take(64) {
        let number = |at: usize| u16::from_le_bytes([raw[at], raw[at + 1]]);
        step(&mut guest, &wire, raw[0], raw[1], [number(2), number(4), number(6)]);
    }
    works(&mut guest, &wire);
    // It takes milliseconds; the host may have other things to do.
    assert!(begin.elapsed() < Duration::from_secs(20), "something held the device up");
});
