//! Numbered frames in both directions, in between: each that is sent says how many came and which was the last; each that comes is looked at.
//!
//! It asks for no interrupts, so that the disk's stay the only ones that wake the processor.

use core::sync::atomic::{Ordering, fence};

use crate::device::{Arena, Device, SIZE, WRITE, at, describe, offer, used};
use crate::platform::{Chance, peek, poke};

const ARENA: Arena = Arena(8 << 20);
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Before a frame: the virtio header (§5.1.6), and its beginning of addresses and kind.
const HEADER: u64 = 12;
const ETHERNET: u64 = 14;
/// Of this guest, of the peer, and a kind for experiments.
const ADDRESSES: [u8; 14] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0x15, 0x88, 0xb5];
/// Room for a frame.
const ROOM: u64 = 2048;
/// Words of eight bytes in front of those that follow from the number: the number, how many came, the last that came.
const FIRST: u64 = 3;
/// Words of the longest frame.
const MOST: u64 = 180;

pub struct Wire {
    device: Device,
    /// Frames that were sent, and those of them that the device has read.
    sent: u64,
    read: u64,
    seen: u16,
    came: u64,
    last: u64,
    chance: Chance,
}

fn room(queue: u16, slot: u16) -> u64 {
    ARENA.buffer() + (u64::from(queue) * u64::from(SIZE) + u64::from(slot)) * ROOM
}

/// A place for a word: frames begin anywhere.
fn place(frame: u64, word: u64) -> *mut u64 {
    (frame + HEADER + ETHERNET + 8 * word) as *mut u64
}

impl Wire {
    pub fn start(device: Device, seed: u64) -> Self {
        device.start(ARENA, u64::MAX);
        for queue in 0..device.queues {
            device.set(at::SELECT, queue);
            device.set(at::VECTOR, 0xffffu16);
        }
        for slot in 0..SIZE {
            let ring = ARENA.descriptors(RECEIVE) + 16 * u64::from(slot);
            describe(ring, room(RECEIVE, slot), ROOM as u32, WRITE, 0);
            offer(ARENA, RECEIVE, slot);
        }
        device.kick(RECEIVE);
        Wire { device, sent: 0, read: 0, seen: 0, came: 0, last: 0, chance: Chance(seed) }
    }

    /// Looks at what came, and sends some.
    pub fn turn(&mut self) {
        let before = self.came;
        while used(ARENA, RECEIVE) != self.seen {
            self.take();
        }
        if self.came != before {
            self.device.kick(RECEIVE);
        }
        self.collect();
        let before = self.sent;
        for _ in 0..self.chance.below(4) {
            if self.sent - self.read < u64::from(SIZE) {
                self.send();
            }
        }
        if self.sent != before {
            self.device.kick(TRANSMIT);
        }
    }

    fn take(&mut self) {
        fence(Ordering::SeqCst);
        let element = ARENA.used(RECEIVE) + 4 + 8 * u64::from(self.seen % SIZE);
        let (slot, len) = (peek::<u32>(element), u64::from(peek::<u32>(element + 4)));
        // The device has one buffer after the other, and gives them back so.
        assert!(slot == u32::from(self.seen % SIZE), "buffer {slot} instead of {} came", self.seen % SIZE);
        let frame = room(RECEIVE, slot as u16);
        // SAFETY: memory of this program, which the device has not.
        let word = |at| unsafe { place(frame, at).read_unaligned() };
        let (number, before) = (word(0), self.last);
        assert!(number > before, "frame {number} came after {before}");
        let words = (len - HEADER - ETHERNET) / 8;
        assert!(len == HEADER + ETHERNET + 8 * words && words == 100, "frame {number} has {len} bytes");
        for at in FIRST..words {
            assert!(word(at) == crate::word(number, at), "word {at} of frame {number} is another one");
        }
        self.came += 1;
        self.last = number;
        self.seen = self.seen.wrapping_add(1);
        // What is not overwritten is no frame.
        // SAFETY: as above.
        unsafe { place(frame, 0).write_unaligned(0) };
        offer(ARENA, RECEIVE, slot as u16);
    }

    /// Counts frames that the device has read.
    fn collect(&mut self) {
        let ahead = used(ARENA, TRANSMIT).wrapping_sub(self.read as u16);
        let waiting = self.sent - self.read;
        assert!(u64::from(ahead) <= waiting, "{ahead} of {waiting} frames were read");
        for _ in 0..ahead {
            let element = ARENA.used(TRANSMIT) + 4 + 8 * (self.read % u64::from(SIZE));
            let (slot, expected) = (u64::from(peek::<u32>(element)), self.read % u64::from(SIZE));
            assert!(slot == expected, "frame in {slot} was read instead of that in {expected}");
            self.read += 1;
        }
    }

    fn send(&mut self) {
        let slot = (self.sent % u64::from(SIZE)) as u16;
        let frame = room(TRANSMIT, slot);
        (0..HEADER).for_each(|at| poke::<u8>(frame + at, 0));
        (0..).zip(ADDRESSES).for_each(|(at, byte)| poke::<u8>(frame + HEADER + at, byte));
        self.sent += 1;
        let words = FIRST + self.chance.below(MOST - FIRST);
        for at in 0..words {
            let word = match at {
                0 => self.sent,
                1 => self.came,
                2 => self.last,
                _ => crate::word(self.sent, at),
            };
            // SAFETY: memory of this program, which the device has read.
            unsafe { place(frame, at).write_unaligned(word) };
        }
        let len = HEADER + ETHERNET + 8 * words;
        describe(ARENA.descriptors(TRANSMIT) + 16 * u64::from(slot), frame, len as u32, 0, 0);
        fence(Ordering::SeqCst);
        offer(ARENA, TRANSMIT, slot);
    }
}
