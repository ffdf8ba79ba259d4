//! A guest that writes to a disk, flushes, and then notes on a second disk, the witness, which flush has been
//! acknowledged: `plan.rs` says what it writes.
//!
//! Freestanding, as the hostile guest, of which it has its platform. The disk is the first function, the witness the second.
//! Words of its command line: `seed=N`, `rounds=N`, `space=1` (zeroing and discards too), `through=1` (without the
//! driver's part in flushes: each write is durable when it is completed, and no flush is sent), `errors=1` (a flush may fail:
//! then it says `flush N failed`, and goes on without a note). It says `done`, or `failed: ...`, and powers off.
#![no_std]
#![no_main]

#[path = "../hostile/platform.rs"]
#[macro_use]
#[allow(dead_code, reason = "the hostile guest uses the rest")]
mod platform;
#[path = "../hostile/device.rs"]
#[allow(dead_code, reason = "the hostile guest uses the rest")]
mod device;
#[allow(dead_code, reason = "the test uses the rest")]
mod plan;

use core::sync::atomic::{Ordering, fence};

use device::{Arena, Device, Kind, NEXT, SIZE, WRITE, describe, offer, used};
use plan::{LONGEST, MAGIC, MOST, Operation, SECTOR, WORDS, content};
use platform::{peek, poke, power_off};

const DISK: Arena = Arena(4 << 20);
const WITNESS: Arena = Arena(6 << 20);
/// Requests in flight: the operations of a round and its flush, of two descriptors each.
const SLOTS: usize = MOST + 1;
const _: () = assert!(2 * SLOTS <= SIZE as usize);
const PAGE: u64 = 4096;

/// VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_F_EVENT_IDX.
const FLUSH: u64 = 1 << 9;
const CONFIG_WCE: u64 = 1 << 11;
const EVENT_IDX: u64 = 1 << 29;

/// VIRTIO_BLK_T_*.
mod request {
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const DISCARD: u32 = 11;
    pub const ZEROES: u32 = 13;
}

/// A disk, and which of its slots are in flight. The chain of slot N begins at descriptor 2 N: header and data in one, then
/// the status.
struct Disk {
    device: Device,
    arena: Arena,
    in_flight: [bool; SLOTS],
    seen: u16,
    /// A flush may fail, and whether one did.
    errors: bool,
    flush_failed: bool,
}

impl Disk {
    /// A page with the status at its begin and the header at its end, and behind it the data.
    fn slot(&self, slot: usize) -> u64 {
        self.arena.buffer() + slot as u64 * (PAGE + LONGEST * SECTOR)
    }

    fn header(&self, slot: usize) -> u64 {
        self.data(slot) - 16
    }

    fn data(&self, slot: usize) -> u64 {
        self.slot(slot) + PAGE
    }

    fn ask(&mut self, slot: usize, request: u32, sector: u64, len: u64) {
        let (header, status) = (self.header(slot), self.slot(slot));
        poke::<u64>(header, request.into());
        poke::<u64>(header + 8, sector);
        poke::<u8>(status, 0xff);
        let head = 2 * slot as u16;
        let ring = self.arena.descriptors(0) + 16 * u64::from(head);
        describe(ring, header, 16 + len as u32, NEXT, head + 1);
        describe(ring + 16, status, 1, WRITE, 0);
        self.in_flight[slot] = true;
        fence(Ordering::SeqCst);
        offer(self.arena, 0, head);
        fence(Ordering::SeqCst);
        self.device.kick(0);
    }

    fn begin(&mut self, slot: usize, operation: &Operation) {
        let Operation { kind, id, sector, sectors } = *operation;
        let data = self.data(slot);
        match kind {
            plan::Kind::Write => {
                for n in 0..sectors {
                    (0..WORDS).for_each(|word| {
                        poke::<u64>(data + n * SECTOR + 8 * word, content(id, sector + n, word));
                    });
                }
                self.ask(slot, request::OUT, sector, sectors * SECTOR);
            }
            plan::Kind::Zeroes | plan::Kind::Discard => {
                poke::<u64>(data, sector);
                poke::<u64>(data + 8, sectors);
                let request = if kind == plan::Kind::Zeroes { request::ZEROES } else { request::DISCARD };
                self.ask(slot, request, 0, 16);
            }
        }
    }

    /// Halts until `slot` is completed, well.
    fn wait(&mut self, slot: usize) {
        while self.in_flight[slot] {
            while self.seen == used(self.arena, 0) {
                platform::wait_for_interrupt();
            }
            fence(Ordering::SeqCst);
            let head = peek::<u32>(self.arena.used(0) + 4 + 8 * u64::from(self.seen % SIZE));
            self.seen = self.seen.wrapping_add(1);
            let ended = head as usize / 2;
            assert!(head % 2 == 0 && ended < SLOTS && self.in_flight[ended], "head {head} was not offered");
            self.in_flight[ended] = false;
            let (request, status) = (peek::<u32>(self.header(ended)), peek::<u8>(self.slot(ended)));
            self.flush_failed |= request == request::FLUSH && status != 0;
            // A device need not discard.
            let may_fail = request == request::DISCARD || request == request::FLUSH && self.errors;
            assert!(status == 0 || may_fail, "request {request}: status {status}");
        }
    }
}

/// Where ring 3 begins.
#[unsafe(no_mangle)]
extern "C" fn ring3(boot_params: u64) -> ! {
    let option = |key: &[u8]| platform::option(boot_params, key);
    let (seed, rounds) = (option(b"seed=").unwrap_or(1), option(b"rounds=").unwrap_or(1));
    let errors = option(b"errors=") == Some(1);
    let (space, through) = (option(b"space=") == Some(1), option(b"through=") == Some(1));
    let mut disks = (0..32).filter_map(Device::find).filter(|device| device.kind == Kind::Block);
    let mut find = |arena| {
        let device = disks.next().unwrap_or_else(|| panic!("there are fewer than two disks"));
        Disk { device, arena, in_flight: [false; SLOTS], seen: 0, errors, flush_failed: false }
    };
    let (mut disk, mut witness) = (find(DISK), find(WITNESS));
    platform::take_interrupts();
    let unwanted = if through { FLUSH | CONFIG_WCE | EVENT_IDX } else { EVENT_IDX };
    disk.device.start(disk.arena, !unwanted);
    witness.device.start(witness.arena, !EVENT_IDX);
    for number in 1..=rounds {
        let round = plan::round(seed, number, space);
        let before = round.before();
        before.iter().enumerate().for_each(|(slot, operation)| disk.begin(slot, operation));
        (0..before.len()).for_each(|slot| disk.wait(slot));
        if let Some(beside) = round.beside() {
            disk.begin(MOST - 1, beside);
        }
        if !through {
            disk.ask(MOST, request::FLUSH, 0, 0);
            disk.wait(MOST);
        }
        if core::mem::take(&mut disk.flush_failed) {
            say!("flush {number} failed");
        } else {
            let data = witness.data(0);
            poke::<u64>(data, MAGIC);
            poke::<u64>(data + 8, number);
            witness.ask(0, request::OUT, 0, SECTOR);
            witness.wait(0);
        }
        disk.wait(MOST - 1);
    }
    say!("done");
    power_off()
}
