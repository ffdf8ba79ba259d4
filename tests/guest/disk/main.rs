//! A guest that does with its last disk what it is told on the console, a letter each, and says what came of it:
//!
//! - `c`: `capacity=N`, in sectors. It says that once at its start, too.
//! - `w`: the same, when it differs from the last one said; until then it halts, so that only the interrupt for a change wakes it.
//! - `f` and `l`: reads the first or the last sector that the disk had when its capacity was said: `status=N word=X`, the first
//!   eight bytes.
//! - `b`: boots again. `q`: powers off.
//!
//! Freestanding, as the hostile guest, of which it has its platform.
#![no_std]
#![no_main]

#[path = "../hostile/platform.rs"]
#[macro_use]
#[allow(dead_code, reason = "the hostile guest uses the rest")]
mod platform;
#[path = "../hostile/device.rs"]
#[allow(dead_code, reason = "the hostile guest uses the rest")]
mod device;

use core::sync::atomic::{Ordering, fence};

use device::{Arena, Device, FOR_EVER, Kind, NEXT, SIZE, WRITE, at, describe, offer, used};
use platform::{peek, poke, power_off, ticks};

const ARENA: Arena = Arena(4 << 20);
/// The vector whose interrupts are counted: see `start.s`.
const COUNTED: u16 = 1;

struct Disk {
    device: Device,
    /// As it was said.
    capacity: u64,
}

impl Disk {
    /// §2.5.3: read again if it changed meanwhile.
    fn capacity(&self) -> u64 {
        loop {
            let before: u8 = self.device.get(at::GENERATION);
            let capacity = u64::from(peek::<u32>(self.device.config))
                | u64::from(peek::<u32>(self.device.config + 4)) << 32;
            if self.device.get::<u8>(at::GENERATION) == before {
                return capacity;
            }
        }
    }

    fn say_capacity(&mut self) {
        self.capacity = self.capacity();
        say!("capacity={}", self.capacity);
    }

    fn wait_for_change(&mut self) {
        while self.capacity() == self.capacity {
            platform::wait_for_interrupt();
        }
        self.say_capacity();
    }

    /// Reads a sector, polling.
    fn read(&self, sector: u64) {
        let (header, data, status) = (ARENA.buffer(), ARENA.buffer() + 512, ARENA.buffer() + 1024);
        poke::<u64>(header, 0);
        poke::<u64>(header + 8, sector);
        poke::<u64>(data, !0);
        poke::<u8>(status, 0xff);
        describe(ARENA.descriptors(0), header, 16, NEXT, 1);
        describe(ARENA.descriptors(0) + 16, data, 512, NEXT | WRITE, 2);
        describe(ARENA.descriptors(0) + 32, status, 1, WRITE, 0);
        // No interrupt for what is used (§2.7.6).
        poke::<u16>(ARENA.avail(0), 1);
        let seen = used(ARENA, 0);
        fence(Ordering::SeqCst);
        offer(ARENA, 0, 0);
        fence(Ordering::SeqCst);
        self.device.kick(0);
        let start = ticks();
        while used(ARENA, 0) == seen {
            assert!(ticks() - start < FOR_EVER, "the disk does not answer");
        }
        fence(Ordering::SeqCst);
        say!("status={} word={:x}", peek::<u8>(status), peek::<u64>(data));
    }
}

/// Where ring 3 begins.
#[unsafe(no_mangle)]
extern "C" fn ring3(_: u64) -> ! {
    let disks = (0..32).filter_map(Device::find).filter(|device| device.kind == Kind::Block);
    let device = disks.last().unwrap_or_else(|| panic!("there is no disk"));
    platform::take_interrupts();
    device.negotiate(0);
    device.set(at::CONFIG_VECTOR, COUNTED);
    device.place_well(0, ARENA);
    device.set(at::STATUS, 0xfu8);
    assert!(SIZE >= 3);
    let mut disk = Disk { device, capacity: 0 };
    disk.say_capacity();
    loop {
        platform::wait_for_input();
        match platform::take_input() {
            b'c' => disk.say_capacity(),
            b'w' => disk.wait_for_change(),
            b'f' => disk.read(0),
            b'l' => disk.read(disk.capacity.saturating_sub(1)),
            b'b' => platform::boot_again(),
            b'q' => power_off(),
            _ => {}
        }
    }
}
