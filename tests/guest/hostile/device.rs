//! A virtio function and its driver: registers (virtio 1.3 §4.1.4) and rings (§2.7), used well or not.

use crate::platform::{peek, poke, ticks};

const ECAM: u64 = 0xe000_0000;
/// Descriptors of a ring.
pub const SIZE: u16 = 16;
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
pub const NEEDS_RESET: u8 = 64;
pub const MOST_QUEUES: u16 = 8;
/// Answers take microseconds; a device that takes so long is dead. More than ten seconds on any processor there is: the
/// host may be busy, and the test that started this judges the times.
pub const FOR_EVER: u64 = 60_000_000_000;

/// Offsets in the common configuration.
pub mod at {
    pub const FEATURE_SELECT: u64 = 0;
    pub const FEATURES: u64 = 4;
    pub const DRIVER_SELECT: u64 = 8;
    pub const DRIVER_FEATURES: u64 = 12;
    pub const CONFIG_VECTOR: u64 = 0x10;
    pub const QUEUES: u64 = 0x12;
    pub const STATUS: u64 = 0x14;
    pub const GENERATION: u64 = 0x15;
    pub const SELECT: u64 = 0x16;
    pub const SIZE: u64 = 0x18;
    pub const VECTOR: u64 = 0x1a;
    pub const ENABLE: u64 = 0x1c;
    pub const DESCRIPTORS: u64 = 0x20;
    pub const DRIVER: u64 = 0x28;
    pub const DEVICE: u64 = 0x30;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Network = 0x1041,
    Block = 0x1042,
    Console = 0x1043,
    Entropy = 0x1044,
    Balloon = 0x1045,
    FileSystem = 0x105a,
}

/// Memory for rings and buffers.
#[derive(Clone, Copy)]
pub struct Arena(pub u64);

impl Arena {
    pub fn descriptors(self, queue: u16) -> u64 {
        self.0 + u64::from(queue) * 0x1000
    }
    pub fn avail(self, queue: u16) -> u64 {
        self.descriptors(queue) + 0x400
    }
    pub fn used(self, queue: u16) -> u64 {
        self.descriptors(queue) + 0x800
    }
    /// Behind the rings.
    pub fn table(self) -> u64 {
        self.0 + 0x10_000
    }
    pub fn buffer(self) -> u64 {
        self.0 + 0x20_000
    }
}

/// A function.
#[derive(Clone, Copy)]
pub struct Device {
    pub kind: Kind,
    pub function: u64,
    pub bar: u64,
    common: u64,
    pub config: u64,
    notify: u64,
    stride: u64,
    /// Configuration space offsets of MSI-X and of the window into the BAR.
    pub msix: u64,
    pub window: u64,
    pub queues: u16,
}

impl Device {
    /// The function in `slot`, if it is one of ours.
    pub fn find(slot: u64) -> Option<Device> {
        Device::at(slot << 3)
    }

    /// The same of function `number`: eight of them a slot.
    pub fn at(number: u64) -> Option<Device> {
        let function = ECAM + (number << 12);
        let kind = match peek::<u32>(function) {
            0x1041_1af4 => Kind::Network,
            0x1042_1af4 => Kind::Block,
            0x1043_1af4 => Kind::Console,
            0x1044_1af4 => Kind::Entropy,
            0x1045_1af4 => Kind::Balloon,
            0x105a_1af4 => Kind::FileSystem,
            _ => return None,
        };
        let low = peek::<u32>(function + 0x10);
        let bar = u64::from(low & !0xf) | u64::from(peek::<u32>(function + 0x14)) << 32;
        let mut device = Device {
            kind,
            function,
            bar,
            common: 0,
            config: 0,
            notify: 0,
            stride: 0,
            msix: 0,
            window: 0,
            queues: 0,
        };
        let mut at = u64::from(peek::<u8>(function + 0x34));
        while at != 0 {
            let structure = bar + u64::from(peek::<u32>(function + at + 8));
            match (peek::<u8>(function + at), peek::<u8>(function + at + 3)) {
                (0x11, _) => device.msix = at,
                (9, 1) => device.common = structure,
                (9, 2) => {
                    device.notify = structure;
                    device.stride = u64::from(peek::<u32>(function + at + 16));
                }
                (9, 4) => device.config = structure,
                (9, 5) => device.window = at,
                _ => {}
            }
            at = u64::from(peek::<u8>(function + at + 1));
        }
        // Memory decoding, bus mastering.
        poke::<u16>(function + 4, 6);
        device.queues = device.get::<u16>(at::QUEUES).min(MOST_QUEUES);
        device.open_vectors();
        Some(device)
    }

    /// A message a vector, and MSI-X on. The processor takes no interrupts: they end in its local APIC.
    pub fn open_vectors(&self) {
        for vector in 0..=u64::from(self.queues) {
            let entry = self.bar + 0x4000 + 16 * vector;
            poke::<u64>(entry, 0xfee0_0000);
            poke::<u64>(entry + 8, 0x40 + vector);
        }
        poke::<u16>(self.function + self.msix + 2, 0x8000);
    }

    pub fn get<T: Copy>(&self, register: u64) -> T {
        peek(self.common + register)
    }

    pub fn set<T: Copy>(&self, register: u64, value: T) {
        poke(self.common + register, value);
    }

    pub fn status(&self) -> u8 {
        self.get(at::STATUS)
    }

    pub fn kick(&self, queue: u16) {
        poke::<u16>(self.notify + self.stride * u64::from(queue), queue);
    }

    pub fn features(&self) -> u64 {
        self.set(at::FEATURE_SELECT, 0u32);
        let low: u32 = self.get(at::FEATURES);
        self.set(at::FEATURE_SELECT, 1u32);
        u64::from(low) | u64::from(self.get::<u32>(at::FEATURES)) << 32
    }

    pub fn reset(&self) {
        let start = ticks();
        self.set(at::STATUS, 0u8);
        while self.status() != 0 {
            assert!(ticks() - start < FOR_EVER, "{:?} never ends its reset", self.kind);
        }
    }

    /// Resets it and takes what it offers of `wanted`.
    pub fn negotiate(&self, wanted: u64) {
        self.reset();
        self.set(at::STATUS, 3u8);
        let features = self.features() & (wanted | 1 << 32);
        self.set(at::DRIVER_SELECT, 0u32);
        self.set(at::DRIVER_FEATURES, features as u32);
        self.set(at::DRIVER_SELECT, 1u32);
        self.set(at::DRIVER_FEATURES, (features >> 32) as u32);
        self.set(at::STATUS, 0xbu8);
    }

    /// Tells it of queue `queue`, wherever that is.
    pub fn place(&self, queue: u16, size: u16, places: [u64; 3]) {
        self.set(at::SELECT, queue);
        self.set(at::SIZE, size);
        self.set(at::VECTOR, queue + 1);
        self.set(at::DESCRIPTORS, places[0]);
        self.set(at::DRIVER, places[1]);
        self.set(at::DEVICE, places[2]);
        self.set(at::ENABLE, 1u16);
    }

    /// From whatever it was in to work, with empty rings in `arena`.
    pub fn start(&self, arena: Arena, wanted: u64) {
        self.negotiate(wanted);
        for queue in 0..self.queues {
            self.place_well(queue, arena);
        }
        self.set(at::STATUS, 0xfu8);
    }

    pub fn place_well(&self, queue: u16, arena: Arena) {
        for at in (0..0x1000).step_by(8) {
            poke::<u64>(arena.descriptors(queue) + at, 0);
        }
        self.place(queue, SIZE, [arena.descriptors(queue), arena.avail(queue), arena.used(queue)]);
    }
}

/// Writes a descriptor.
pub fn describe(at: u64, address: u64, len: u32, flags: u16, next: u16) {
    poke::<u64>(at, address);
    poke::<u64>(at + 8, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48);
}

/// Makes the chain at `head` available.
pub fn offer(arena: Arena, queue: u16, head: u16) {
    let avail = arena.avail(queue);
    let index = peek::<u16>(avail + 2);
    poke::<u16>(avail + 4 + 2 * u64::from(index % SIZE), head);
    poke::<u16>(avail + 2, index.wrapping_add(1));
}

pub fn used(arena: Arena, queue: u16) -> u16 {
    peek(arena.used(queue) + 2)
}
