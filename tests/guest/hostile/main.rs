//! A hostile guest: does to every virtio device what no driver may, and looks whether the others go on.
//!
//! Freestanding, compiled for the host's own target by `build.rs`. It prints what it does on the first serial port, and
//! `done` if every device kept its promises, and then waits for a byte to power off; else `failed: ...`. `clock=TICKS` lines tie its ticks to the host's time.
//! The command line chooses: `seed=N`, `ops=N` (random operations a device); or `lines=N`, and it only writes so many lines on
//! `hvc0`.
#![no_std]
#![no_main]

mod attacks;
#[macro_use]
mod platform;
mod device;
mod flood;
mod storm;
mod work;

use core::ops::RangeInclusive;

use device::{Arena, Device};
use platform::{Chance, power_off, ticks};
use storm::Storm;

const MOST_DEVICES: usize = 8;
/// Pieces of a storm, after each of which all others must serve; and those of the first round, a tenth. What the process
/// holds after that round, it may hold.
const PIECES: u64 = 20;
const FIRST: u64 = PIECES / 10;

/// All devices, each at work in an arena of its own.
struct Fleet {
    devices: [Option<Device>; MOST_DEVICES],
    /// The longest answer, in ticks.
    longest: u64,
}

fn arena(index: usize) -> Arena {
    Arena((4 << 20) + ((index as u64) << 18))
}

impl Fleet {
    fn find() -> Self {
        let mut fleet = Fleet { devices: [None; MOST_DEVICES], longest: 0 };
        let found = (0..32).filter_map(Device::find);
        for (index, (place, device)) in fleet.devices.iter_mut().zip(found).enumerate() {
            device.start(arena(index), u64::MAX);
            *place = Some(device);
        }
        fleet
    }

    /// Everyone but `victim` serves.
    fn others_serve(&mut self, victim: usize) {
        for (index, device) in self.devices.iter().enumerate() {
            if let Some(device) = device.as_ref().filter(|_| index != victim) {
                self.longest = self.longest.max(work::serves(device, arena(index)));
            }
        }
    }

    /// Everyone in turn: one of the others is enough between two attacks.
    fn next_serves(&mut self, victim: usize, turn: usize) {
        let index = (victim + 1 + turn % (MOST_DEVICES - 1)) % MOST_DEVICES;
        if let Some(device) = &self.devices[index] {
            self.longest = self.longest.max(work::serves(device, arena(index)));
        }
    }
}

/// Where ring 3 begins.
#[unsafe(no_mangle)]
extern "C" fn ring3(boot_params: u64) -> ! {
    let end = platform::end_of_ram(boot_params);
    assert!(end == 16 << 20, "this guest wants 16 MiB and has {end:#x}");
    if let Some(lines) = platform::option(boot_params, b"lines=") {
        flood::hvc0(lines);
        power_off();
    }
    let seed = platform::option(boot_params, b"seed=").unwrap_or(1);
    let operations = platform::option(boot_params, b"ops=").unwrap_or(1_000_000);
    let mut fleet = Fleet::find();
    say!("clock={} seed={seed} devices={}", ticks(), fleet.devices.iter().flatten().count());
    fleet.others_serve(MOST_DEVICES);
    for pieces in [1..=FIRST, FIRST + 1..=PIECES] {
        for victim in 0..MOST_DEVICES {
            if let Some(device) = fleet.devices[victim] {
                attack(&device, victim, end, &mut fleet);
                let chance = Chance(seed + ((victim as u64) << 32) + (pieces.start() << 48));
                let storm = Storm { device: &device, chance, end, longest: 0, slowest: 0, restarts: 0 };
                rage(storm, victim, operations / PIECES, pieces.clone(), &mut fleet);
                device.start(arena(victim), u64::MAX);
                fleet.others_serve(MOST_DEVICES);
            }
        }
    }
    say!("clock={} answer={}", ticks(), fleet.longest);
    say!("done");
    // Whoever watches may look at the machine once more.
    platform::wait_for_input();
    power_off()
}

fn attack(device: &Device, victim: usize, end: u64, fleet: &mut Fleet) {
    let mut turn = 0;
    let mut next = || {
        turn += 1;
        fleet.next_serves(victim, turn);
    };
    attacks::bad_chains(device, end, &mut next);
    attacks::long_chains(device, &mut next);
    attacks::bad_rings(device, end, &mut next);
    attacks::read_only(device);
    attacks::resets_in_flight(device, &mut next);
    say!("attacked {:?}", device.kind);
}

fn rage(mut storm: Storm, victim: usize, operations: u64, pieces: RangeInclusive<u64>, fleet: &mut Fleet) {
    let device = storm.device;
    device.start(attacks::ARENA, u64::MAX);
    storm.prepare();
    for piece in pieces {
        storm.run(operations);
        fleet.others_serve(victim);
        let Storm { longest, slowest, restarts, .. } = storm;
        say!(
            "clock={} {:?} {piece}/{PIECES} longest={longest} by={slowest} restarts={restarts}",
            ticks(),
            device.kind
        );
    }
    // Whatever the storm left of its vectors.
    platform::poke::<u16>(device.function + 4, 6);
    device.open_vectors();
}
