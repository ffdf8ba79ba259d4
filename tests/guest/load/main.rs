//! A guest that keeps a disk busy and looks at every answer: several requests in flight, each completed once, with its
//! own head, status, length and content. It halts for interrupts, so that a lost one stops it, and kicks only when asked to.
//!
//! Freestanding, as the hostile guest, of which it has its platform. It says `ready`, then `at=N` now and then; when it
//! hears a byte it ends what is in flight, says `finished writes=N reads=N flushes=N waits=N interrupts=N kicks=N`, waits
//! for another byte and powers off; or `failed: ...`. With `bad=N` on the command line it first says `asking`, waits for
//! a byte, does N times what no driver may, in turn in a chain and in a ring, and resets the disk after each: `mended`.
//! With `frames=1` numbered frames pass in both directions of the network card besides (`wire.rs`).
#![no_std]
#![no_main]

#[path = "../hostile/platform.rs"]
#[macro_use]
#[allow(dead_code, reason = "the hostile guest uses the rest")]
mod platform;
#[path = "../hostile/device.rs"]
#[allow(dead_code, reason = "the hostile guest uses the rest")]
mod device;
mod wire;

use core::sync::atomic::{Ordering, fence};

use device::{Arena, Device, FOR_EVER, Kind, NEEDS_RESET, NEXT, SIZE, WRITE, at, describe, offer, used};
use platform::{Chance, interrupts, peek, poke, power_off, ticks};
use wire::Wire;

const ARENA: Arena = Arena(4 << 20);
/// Bytes of a block, and blocks that are written one after the other, again and again: 8 MiB.
const BLOCK: u64 = 4096;
const BLOCKS: u64 = 2048;
/// Requests in flight: a chain has three descriptors.
const SLOTS: usize = SIZE as usize / 3;
/// Numbers between two lines, and between two flushes.
const LINE: u64 = 512;
const FLUSH: u64 = 100;

/// What stands in a block: see `load_word` in this crate's library.
fn word(number: u64, word: u64) -> u64 {
    let mixed = (number << 16 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29) ^ number
}

/// VIRTIO_BLK_T_*.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Request {
    Read = 0,
    Write = 1,
    Flush = 4,
}

#[derive(Clone, Copy)]
struct Slot {
    number: u64,
    in_flight: Option<Request>,
}

#[derive(Default)]
struct Done {
    reads: u64,
    writes: u64,
    flushes: u64,
    waits: u64,
    kicks: u64,
}

struct Load {
    disk: Device,
    slots: [Slot; SLOTS],
    next: u64,
    /// Indices: of the available ring when it was last decided on a kick, of the used ring as far as it was looked at.
    offered: u16,
    seen: u16,
    chance: Chance,
    done: Done,
}

fn header(slot: usize) -> u64 {
    ARENA.buffer() + 64 * slot as u64
}

fn status(slot: usize) -> u64 {
    header(slot) + 32
}

/// What is written.
fn data(slot: usize) -> u64 {
    ARENA.buffer() + (1 + slot as u64) * BLOCK
}

/// What is read. The disk alone writes there: whoever copies memory has to know of its writes.
fn answer(slot: usize) -> u64 {
    data(SLOTS + slot)
}

impl Load {
    fn ask(&mut self, slot: usize, request: Request) {
        let number = self.slots[slot].number;
        poke::<u64>(header(slot), request as u64);
        let sector = if request == Request::Flush { 0 } else { number % BLOCKS * (BLOCK / 512) };
        poke::<u64>(header(slot) + 8, sector);
        poke::<u8>(status(slot), 0xff);
        let head = 3 * slot as u16;
        let ring = ARENA.descriptors(0) + 16 * u64::from(head);
        describe(ring, header(slot), 16, NEXT, head + 1);
        match request {
            Request::Flush => describe(ring + 16, status(slot), 1, WRITE, 0),
            Request::Write => {
                (0..BLOCK / 8).for_each(|n| poke::<u64>(data(slot) + 8 * n, word(number, n)));
                describe(ring + 16, data(slot), BLOCK as u32, NEXT, head + 2);
            }
            // Another number was read there before, so that one that is not read is noticed.
            Request::Read => describe(ring + 16, answer(slot), BLOCK as u32, NEXT | WRITE, head + 2),
        }
        describe(ring + 32, status(slot), 1, WRITE, 0);
        self.slots[slot].in_flight = Some(request);
        fence(Ordering::SeqCst);
        offer(ARENA, 0, head);
    }

    /// The next number, which is in a block that nobody else is at.
    fn begin(&mut self, slot: usize) {
        self.next += 1;
        let block = self.next % BLOCKS;
        assert!(self.slots.iter().all(|slot| slot.in_flight.is_none() || slot.number % BLOCKS != block));
        self.slots[slot].number = self.next;
        self.ask(slot, Request::Write);
        if self.next.is_multiple_of(LINE) {
            say!("at={}", self.next);
        }
    }

    /// §2.7.10: kicks if the device asked for one of what was offered.
    fn kick(&mut self) {
        fence(Ordering::SeqCst);
        let new = peek::<u16>(ARENA.avail(0) + 2);
        let event = peek::<u16>(ARENA.used(0) + 4 + 8 * u64::from(SIZE));
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(self.offered) {
            self.done.kicks += 1;
            self.disk.kick(0);
        }
        self.offered = new;
    }

    fn in_flight(&self) -> usize {
        self.slots.iter().filter(|slot| slot.in_flight.is_some()).count()
    }

    /// Looks at the next completion, if there is one: its slot and what it was.
    fn take(&mut self) -> Option<(usize, Request)> {
        let ahead = used(ARENA, 0).wrapping_sub(self.seen);
        assert!(usize::from(ahead) <= self.in_flight(), "{ahead} completions of {}", self.in_flight());
        if ahead == 0 {
            return None;
        }
        fence(Ordering::SeqCst);
        let element = ARENA.used(0) + 4 + 8 * u64::from(self.seen % SIZE);
        let (head, len) = (peek::<u32>(element), peek::<u32>(element + 4));
        self.seen = self.seen.wrapping_add(1);
        let slot = head as usize / 3;
        assert!(head % 3 == 0 && slot < SLOTS, "head {head} was never offered");
        let Slot { number, in_flight } = &mut self.slots[slot];
        let request = in_flight.take().unwrap_or_else(|| panic!("head {head} is completed twice"));
        let status = peek::<u8>(status(slot));
        let expected = if request == Request::Read { BLOCK as u32 + 1 } else { 1 };
        assert!(status == 0 && len == expected, "{request:?} {number}: status {status}, length {len}");
        if request == Request::Read {
            for n in 0..BLOCK / 8 {
                let found = peek::<u64>(answer(slot) + 8 * n);
                assert!(found == word(*number, n), "word {n} of {number} reads {found:#x}");
            }
        }
        Some((slot, request))
    }

    /// Serves completions; each write is read back, and then comes the next number, unless all is to end.
    fn turn(&mut self, ending: bool) {
        while let Some((slot, request)) = self.take() {
            match request {
                Request::Write => {
                    self.done.writes += 1;
                    self.ask(slot, Request::Read);
                }
                Request::Read => {
                    self.done.reads += 1;
                    match self.slots[slot].number.is_multiple_of(FLUSH) {
                        true => self.ask(slot, Request::Flush),
                        false if !ending => self.begin(slot),
                        false => {}
                    }
                }
                Request::Flush => {
                    self.done.flushes += 1;
                    if !ending {
                        self.begin(slot);
                    }
                }
            }
        }
        self.kick();
    }

    /// Halts until one of those in flight is completed, or several (EVENT_IDX, §2.7.7.1).
    fn wait(&mut self) {
        let Some(most) = (self.in_flight() as u64).checked_sub(1) else { return };
        let more = self.chance.below(most + 1) as u16;
        poke::<u16>(ARENA.avail(0) + 4 + 2 * u64::from(SIZE), self.seen.wrapping_add(more));
        fence(Ordering::SeqCst);
        if used(ARENA, 0).wrapping_sub(self.seen) <= more {
            self.done.waits += 1;
            platform::wait_for_interrupt();
        }
    }
}

/// What no driver may, and a reset.
fn mistreat(disk: &Device, times: u64) {
    for time in 0..times {
        if time.is_multiple_of(2) {
            disk.start(ARENA, u64::MAX);
            describe(ARENA.descriptors(0), ARENA.buffer(), 16, NEXT, 0);
            offer(ARENA, 0, 0);
            disk.kick(0);
        } else {
            disk.negotiate(u64::MAX);
            disk.place(0, 3, [ARENA.descriptors(0), ARENA.avail(0), ARENA.used(0)]);
            disk.set(at::STATUS, 0xfu8);
        }
        let start = ticks();
        while disk.status() & NEEDS_RESET == 0 {
            assert!(ticks() - start < FOR_EVER, "the disk takes it, status {:#x}", disk.status());
        }
    }
    disk.reset();
}

/// Where ring 3 begins.
#[unsafe(no_mangle)]
extern "C" fn ring3(boot_params: u64) -> ! {
    let find = |kind| (0..32).filter_map(Device::find).find(|device| device.kind == kind);
    let disk = find(Kind::Block).unwrap_or_else(|| panic!("there is no disk"));
    if let Some(times) = platform::option(boot_params, b"bad=") {
        say!("asking");
        platform::wait_for_input();
        platform::take_input();
        mistreat(&disk, times);
        say!("mended");
    }
    platform::take_interrupts();
    platform::listen();
    disk.start(ARENA, u64::MAX);
    let slots = [Slot { number: 0, in_flight: None }; SLOTS];
    let seed = platform::option(boot_params, b"seed=").unwrap_or(1);
    let mut wire = platform::option(boot_params, b"frames=").map(|_| {
        let card = find(Kind::Network).unwrap_or_else(|| panic!("there is no network card"));
        Wire::start(card, seed)
    });
    let chance = Chance(seed);
    let mut load = Load { disk, slots, next: 0, offered: 0, seen: 0, chance, done: Done::default() };
    say!("ready");
    (0..SLOTS).for_each(|slot| load.begin(slot));
    let mut turns = 0u64;
    loop {
        turns += 1;
        let ending = turns.is_multiple_of(32) && platform::input_waits();
        load.turn(ending);
        if let Some(wire) = &mut wire {
            wire.turn();
        }
        if ending {
            break;
        }
        load.wait();
    }
    while load.in_flight() > 0 {
        load.wait();
        load.turn(true);
    }
    let Done { reads, writes, flushes, waits, kicks } = load.done;
    let interrupts = interrupts();
    say!(
        "finished writes={writes} reads={reads} flushes={flushes} waits={waits} interrupts={interrupts} kicks={kicks}"
    );
    platform::take_input();
    platform::wait_for_input();
    power_off()
}
