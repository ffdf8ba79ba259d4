//! Operations at random: descriptors, rings, kicks, registers, resets. Most are as a driver's, so that devices get deep
//! into their work; the rest are anything.

use crate::attacks::ARENA;
use crate::device::{Device, INDIRECT, Kind, NEEDS_RESET, NEXT, SIZE, WRITE, describe};
use crate::platform::{Chance, peek, poke, ticks};

/// What the devices read and write: 2 MiB each, in the upper half of memory, where nothing of this program lies.
const CONTENT: u64 = 12 << 20;
const ANSWERS: u64 = 14 << 20;

/// A driver gone mad.
pub struct Storm<'a> {
    pub device: &'a Device,
    pub chance: Chance,
    pub end: u64,
    /// The longest operation, in ticks.
    pub longest: u64,
    /// Which that was, by its number of 1024.
    pub slowest: u64,
    pub restarts: u64,
}

impl Storm<'_> {
    /// What was left by another device's storm is not for this one: a balloon would give away this program.
    pub fn prepare(&mut self) {
        for at in (CONTENT..ANSWERS).step_by(16) {
            self.fill(at);
        }
        for at in (ANSWERS..self.end).chain(ARENA.table()..ARENA.buffer()).step_by(8) {
            poke::<u64>(at, 0);
        }
    }

    pub fn run(&mut self, operations: u64) {
        for _ in 0..operations {
            let start = ticks();
            let what = self.chance.below(1024);
            self.operation(what);
            let took = ticks() - start;
            if took > self.longest {
                (self.longest, self.slowest) = (took, what);
            }
        }
    }

    fn operation(&mut self, what: u64) {
        let queue = self.chance.below(self.device.queues.into()) as u16;
        match what {
            0..400 => self.descriptor(queue),
            400..600 => self.content(),
            600..700 => self.table_entry(),
            700..950 => self.make_available(queue),
            950..980 => self.ring_word(queue),
            980..1006 => self.device.kick(queue),
            1006..1018 => self.register(),
            1018..1021 => self.look(),
            _ => self.rare(),
        }
    }

    fn address(&mut self, writable: bool) -> u64 {
        // Whatever a balloon reads are pages to give back: only those that were made for it.
        let align = if self.device.kind == Kind::Balloon { !3 } else { !0 };
        let at = self.chance.below(0x1f_0000) & align;
        match self.chance.below(400) {
            0 => self.end - self.chance.below(64),
            1 => self.chance.next(),
            2 if writable => ARENA.0 + at % 0x11_000,
            _ if writable => ANSWERS + at,
            _ => CONTENT + at,
        }
    }

    fn len(&mut self) -> u32 {
        let len = match self.chance.below(256) {
            0 => 0,
            1 => 0x8000,
            2..100 => self.chance.of(&[1, 4, 8, 12, 16]),
            100..200 => 512,
            _ => self.chance.below(2048),
        };
        if self.chance.once_in(4000) {
            return self.chance.next() as u32;
        }
        // See `harmless`.
        if self.device.kind != Kind::Balloon || len == 0 { len as u32 } else { len as u32 & !3 | 0x900 }
    }

    /// A word for a ring. A balloon may take any for a page's number, while descriptors are written: it shall
    /// be none of this program's.
    fn harmless(&mut self) -> u16 {
        let word = self.chance.next() as u16;
        if self.device.kind == Kind::Balloon { word | 0x900 } else { word }
    }

    /// A descriptor of a chain that goes upwards, readable in the lower half of the ring.
    fn descriptor(&mut self, queue: u16) {
        let index = self.chance.below(SIZE.into()) as u16;
        let writable = self.chance.below(8) < u64::from(index % 4) * 3;
        let mut flags = if writable { WRITE } else { 0 };
        let mut next = index + 1;
        if index % 4 != 3 && next < SIZE {
            flags |= NEXT;
        }
        let (mut address, mut len) = (self.address(writable), self.len());
        match self.chance.below(300) {
            0 => flags = self.chance.next() as u16,
            1 => next = self.chance.below(20) as u16,
            2..12 => {
                (flags, address) = (INDIRECT, ARENA.table() + 16 * self.chance.below(8));
                len = 16 * self.chance.of(&[0, 1, 2, 3, 4, 64, 1024]);
            }
            _ => {}
        }
        describe(ARENA.descriptors(queue) + 16 * u64::from(index), address, len, flags, next);
    }

    fn table_entry(&mut self) {
        let index = self.chance.below(12) as u16;
        let writable = index % 4 > 1;
        let (address, len) = (self.address(writable), self.len());
        let mut flags = if writable { WRITE | NEXT } else { NEXT };
        if index % 4 == 3 || self.chance.once_in(64) {
            flags = if self.chance.once_in(16) { self.chance.next() as u16 & 7 } else { WRITE };
        }
        describe(ARENA.table() + 16 * u64::from(index), address, len, flags, index + 1);
    }

    fn content(&mut self) {
        let at = CONTENT + (self.chance.below(0x1f_0000) & !0xf);
        self.fill(at);
    }

    /// Headers and payloads as the device's kind has them.
    fn fill(&mut self, at: u64) {
        let word = self.chance.next();
        let (first, second) = match self.device.kind {
            Kind::Block => (
                self.chance.of(&[0, 0, 1, 1, 4, 8, 11, 13, 0xffff]),
                word >> self.chance.of(&[1, 32, 52, 56]),
            ),
            // A header before a frame; or a command: so many pairs (class 4), offloads (class 5).
            Kind::Network => {
                let pairs = 4 | (word & 3) << 16;
                (self.chance.of(&[word & 0x0007_00ff_00ff_05ff, pairs, 5 | word << 16]), word >> 16)
            }
            Kind::Console => (word & 0x0003_0007_0000_0007, word & 0x0001_0007_0000_0001),
            Kind::Balloon => (self.pages(), self.pages()),
            // A header whose length may be right, and any request.
            Kind::FileSystem => (self.chance.of(&[40, 56, 64, 104]) | (word & 0x3f) << 32, word >> 60),
            Kind::Entropy => (word, word),
        };
        poke::<u64>(at, first);
        poke::<u64>(at + 8, second);
    }

    /// Two page numbers, of memory that holds nothing of this program, or of none.
    fn pages(&mut self) -> u64 {
        let mut page = || match self.chance.below(16) {
            0 => self.chance.next() & 0xffff_ffff | 1 << 31,
            _ => 0x900 + self.chance.below(0x700),
        };
        page() | page() << 32
    }

    fn make_available(&mut self, queue: u16) {
        let avail = ARENA.avail(queue);
        let index = peek::<u16>(avail + 2);
        let head = self.chance.of(&[0, 4, 8, 12, 1, 14]);
        let head = if self.chance.once_in(500) { self.harmless() } else { head };
        poke::<u16>(avail + 4 + 2 * u64::from(index % SIZE), head);
        // Seldom further than the ring is long.
        let used = peek::<u16>(ARENA.used(queue) + 2);
        if index.wrapping_sub(used) < SIZE - 1 || self.chance.once_in(2000) {
            poke::<u16>(avail + 2, index.wrapping_add(1));
        }
    }

    fn ring_word(&mut self, queue: u16) {
        let word = self.harmless();
        match self.chance.below(64) {
            0 => poke::<u16>(ARENA.avail(queue) + 2, word),
            1..20 => poke::<u16>(ARENA.avail(queue), word & 1),
            20..60 => poke::<u16>(ARENA.avail(queue) + 4 + 2 * u64::from(SIZE), word),
            _ => poke::<u16>(ARENA.used(queue) + u64::from(word & 0x7e), word),
        }
    }

    /// A register of any structure, read or written in any width.
    fn register(&mut self) {
        let value = self.chance.next() >> self.chance.of(&[0, 32, 48, 60]);
        let at = match self.chance.below(8) {
            0..3 => self.chance.below(0x40),
            3..6 => 0x2000 + self.chance.below(0x50),
            6 => 0x3000 + self.chance.below(0x40),
            _ => self.chance.of(&[0x1000, 0x7000, 0x7ff8, 0x0ff8, 0x6ff8]),
        };
        let (at, write) = (self.device.bar + at, self.chance.once_in(2));
        // Writing 0 to the status is for the restarts.
        match (self.chance.below(4), write && at != self.device.bar + 0x14) {
            (0, true) => poke(at, value as u8),
            (1, true) => poke(at & !1, value as u16),
            (2, true) => poke(at & !3, value as u32),
            (_, true) => poke(at & !7, value),
            (0, false) => drop(peek::<u8>(at)),
            (1, false) => drop(peek::<u16>(at & !1)),
            (2, false) => drop(peek::<u32>(at & !3)),
            (_, false) => drop(peek::<u64>(at & !7)),
        }
    }

    /// A broken device does nothing any more: it is started again.
    fn look(&mut self) {
        let status = self.device.status();
        if status & NEEDS_RESET != 0 || status & 4 == 0 {
            self.restart();
        }
    }

    fn restart(&mut self) {
        self.restarts += 1;
        if self.chance.once_in(4) {
            // In the middle of it.
            (0..self.device.queues).for_each(|queue| self.device.kick(queue));
        }
        let wanted = if self.chance.once_in(4) { self.chance.next() } else { u64::MAX };
        self.device.start(ARENA, wanted);
    }

    /// What costs the host more, or everything before its turn.
    fn rare(&mut self) {
        let device = self.device;
        match self.chance.below(64) {
            // Messages of fixed delivery to this processor, which takes none; the address seldom one.
            0..4 => {
                let entry = device.bar + 0x4000 + 16 * self.chance.below(u64::from(device.queues) + 3);
                let address =
                    if self.chance.once_in(4) { self.chance.next() & 0xfff0_0000 } else { 0xfee0_0000 };
                poke::<u64>(entry, if address >> 20 == 0xfee { 0xfee0_0000 } else { address & 0x7fff_ffff });
                poke::<u64>(entry + 8, 0x40 + self.chance.below(0x80) | self.chance.below(2) << 32);
            }
            4..8 => poke::<u16>(device.function + device.msix + 2, self.chance.of(&[0, 0x8000, 0xc000])),
            8..10 => {
                poke::<u16>(device.function + 4, 0);
                poke::<u16>(device.function + 4, 6);
            }
            10..20 => {
                let window = device.function + device.window;
                poke::<u32>(window + 12, self.chance.of(&[1, 2, 4, 3]));
                poke::<u32>(
                    window + 8,
                    self.chance.of(&[0, 0x14, 0x18, 0x1000, 0x2000, 0x3000, 0x7ffc, 0x8000]),
                );
                poke::<u32>(window + 16, self.chance.next() as u32 | 1);
            }
            20..30 => self.restart(),
            _ => {}
        }
    }
}
