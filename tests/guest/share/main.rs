//! A guest that speaks FUSE to its first share, and does what it is told on the console, a letter each, and says what came of it.
//! Errors are numbers of errno(3), 0 for none:
//!
//! - `m`: mounts: `mounted=ERROR`. It does so once at its start, too, and says `ready` then.
//! - `w`: makes the file `from-guest` and writes `hello` into it: `wrote=ERROR bytes=N`.
//! - `o`: looks `from-host` up, opens it and keeps it open: `opened=ERROR`.
//! - `r`: reads the file that it has open: `read=ERROR TEXT`.
//! - `n`: reads its first byte a thousand times, each time waiting for the answer: `reads=1000`.
//! - `h`: forges requests of every kind, with numbers, names and lengths as they come, and tries to get out of the folder by name:
//!   `forged=N out=0`, out of N requests how many names outside were answered. The file stays open.
//! - `l`: leaves its share and mounts the last of all: `mounted=ERROR of=N`.
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

use device::{Arena, Device, FOR_EVER, Kind, NEXT, WRITE, at, describe, offer, used};
use platform::{Chance, peek, poke, power_off, ticks};

const ARENA: Arena = Arena(4 << 20);
const QUEUE: u16 = 1;
const HEADER: u64 = 40;
/// Room for an answer.
const ROOM: u32 = 0x1000;
/// Requests of `h`.
const FORGED: u64 = 20_000;

const LOOKUP: u32 = 1;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITES: u32 = 16;
const INIT: u32 = 26;
const CREATE: u32 = 35;

struct Share {
    device: Device,
    unique: u64,
    /// The file that is open.
    handle: u64,
}

fn request() -> u64 {
    ARENA.buffer()
}

fn answer() -> u64 {
    ARENA.buffer() + 0x4000
}

/// What follows the answer's header.
fn answered(at: u64) -> u64 {
    peek(answer() + 16 + at)
}

fn put(at: u64, bytes: &[u8]) -> u64 {
    (at..).zip(bytes).for_each(|(at, byte)| poke::<u8>(request() + HEADER + at, *byte));
    at + bytes.len() as u64
}

fn put_words(at: u64, words: &[u32]) -> u64 {
    words.iter().fold(at, |at, word| put(at, &word.to_le_bytes()))
}

impl Share {
    /// Sends the request whose `body` bytes lie behind the header; its error.
    fn ask(&mut self, opcode: u32, node: u64, body: u64) -> u32 {
        let len = HEADER + body;
        self.send(len as u32, opcode, node, len as u32, ROOM)
    }

    /// The same with any lengths: that of the header, that of the readable and of the writable part.
    fn send(&mut self, claimed: u32, opcode: u32, node: u64, readable: u32, room: u32) -> u32 {
        self.unique += 1;
        poke::<u32>(request(), claimed);
        poke::<u32>(request() + 4, opcode);
        poke::<u64>(request() + 8, self.unique);
        poke::<u64>(request() + 16, node);
        poke::<u64>(request() + 24, 0);
        poke::<u64>(request() + 32, 0);
        poke::<u32>(answer() + 4, 0);
        describe(ARENA.descriptors(QUEUE), request(), readable, NEXT, 1);
        describe(ARENA.descriptors(QUEUE) + 16, answer(), room, WRITE, 0);
        let seen = used(ARENA, QUEUE);
        fence(Ordering::SeqCst);
        offer(ARENA, QUEUE, 0);
        fence(Ordering::SeqCst);
        self.device.kick(QUEUE);
        let start = ticks();
        while used(ARENA, QUEUE) == seen {
            assert!(ticks() - start < FOR_EVER, "no answer to {opcode}, status {:#x}", self.device.status());
        }
        fence(Ordering::SeqCst);
        peek::<u32>(answer() + 4).wrapping_neg()
    }

    /// Its driver, from the beginning.
    fn of(device: Device) -> Share {
        device.negotiate(0);
        device.place_well(0, ARENA);
        device.place_well(QUEUE, ARENA);
        // No interrupt for what is used (§2.7.6).
        poke::<u16>(ARENA.avail(QUEUE), 1);
        device.set(at::STATUS, 0xfu8);
        Share { device, unique: 0, handle: 0 }
    }

    fn mount(&mut self) -> u32 {
        let end = put_words(0, &[7, 38, 0, 0]);
        (end..64).for_each(|at| poke::<u8>(request() + HEADER + at, 0));
        self.ask(INIT, 0, 64)
    }

    fn write(&mut self) {
        let end = put_words(0, &[1, 0o644, 0, 0]);
        let end = put(end, b"from-guest\0");
        let made = self.ask(CREATE, 1, end);
        let (node, handle) = (answered(0), answered(128));
        let end = put_words(0, &[handle as u32, (handle >> 32) as u32, 0, 0, 5, 0, 0, 0, 0, 0]);
        let end = put(end, b"hello");
        let error = if made == 0 { self.ask(WRITES, node, end) } else { made };
        say!("wrote={error} bytes={}", if error == 0 { answered(0) } else { 0 });
    }

    fn open(&mut self) {
        let end = put(0, b"from-host\0");
        let mut error = self.ask(LOOKUP, 1, end);
        if error == 0 {
            let node = answered(0);
            let end = put_words(0, &[0, 0]);
            error = self.ask(OPEN, node, end);
            self.handle = answered(0);
        }
        say!("opened={error}");
    }

    fn read(&mut self, size: u32) -> u32 {
        let handle = self.handle;
        let end = put_words(0, &[handle as u32, (handle >> 32) as u32, 0, 0, size, 0, 0, 0, 0, 0]);
        self.ask(READ, 1, end)
    }

    fn say_read(&mut self) {
        let error = self.read(64);
        let len = u64::from(peek::<u32>(answer())) - 16;
        let mut text = [0; 64];
        text.iter_mut().zip(answer() + 16..).for_each(|(to, from)| *to = peek(from));
        let text = if error == 0 { text.get(..len as usize) } else { None };
        say!("read={error} {}", text.and_then(|text| core::str::from_utf8(text).ok()).unwrap_or("?"));
    }

    fn forge(&mut self) {
        let mut out = 0;
        let mut chance = Chance(7);
        for _ in 0..FORGED {
            let opcode = match chance.below(56) as u32 {
                // Its open file stays: that is what the test looks at afterwards.
                INIT | 18 | 38 => LOOKUP,
                opcode => opcode,
            };
            let word = |chance: &mut Chance| match chance.below(8) {
                0 => chance.next(),
                1 => u64::MAX,
                2 => chance.below(4) << 32 | chance.below(4),
                _ => chance.below(8),
            };
            let mut end = 0;
            // Behind a few of them names are what they are.
            let most = chance.of(&[4, 12]);
            for _ in 0..chance.below(most) {
                let next = word(&mut chance);
                end = put(end, &next.to_le_bytes());
            }
            let names: [&[u8]; 8] =
                [b"..\0", b".\0", b"../secret\0", b"/etc/passwd\0", b"a\0", b"out\0", b"\0", b"no end"];
            let name = chance.of(&names);
            end = put(end, name);
            end = put(end, chance.of(&names));
            let node = word(&mut chance);
            let len = (HEADER + end) as u32;
            let wrong = chance.once_in(16);
            let claimed = if wrong { chance.next() as u32 } else { len };
            let room = chance.of(&[ROOM, ROOM, ROOM, 16, 8, 200]);
            let error = self.send(claimed, opcode, node, len, room);
            let is_outside = name.contains(&b'/') || name.starts_with(b"..");
            if opcode == LOOKUP && error == 0 && is_outside && room >= 16 && end == name.len() as u64 {
                out += 1;
            }
        }
        // By names alone, from the root.
        for name in [b"..\0".as_slice(), b"../secret\0", b"/etc/passwd\0", b"./..\0", b"out/passwd\0"] {
            let end = put(0, name);
            out += u32::from(self.ask(LOOKUP, 1, end) == 0);
        }
        say!("forged={FORGED} out={out}");
    }
}

/// Where ring 3 begins.
#[unsafe(no_mangle)]
extern "C" fn ring3(_: u64) -> ! {
    let shares = || (0..256).filter_map(Device::at).filter(|device| device.kind == Kind::FileSystem);
    let mut share = Share::of(shares().next().unwrap_or_else(|| panic!("there is no share")));
    say!("mounted={}", share.mount());
    say!("ready");
    loop {
        platform::wait_for_input();
        match platform::take_input() {
            b'm' => say!("mounted={}", share.mount()),
            b'l' => {
                share.device.reset();
                share = Share::of(shares().last().unwrap_or_else(|| panic!("there is no share")));
                say!("mounted={} of={}", share.mount(), shares().count());
            }
            b'w' => share.write(),
            b'o' => share.open(),
            b'r' => share.say_read(),
            b'n' => {
                (0..1000).for_each(|_| assert!(share.read(1) == 0, "a read failed"));
                say!("reads=1000");
            }
            b'h' => share.forge(),
            b'b' => platform::boot_again(),
            b'q' => power_off(),
            _ => {}
        }
    }
}
