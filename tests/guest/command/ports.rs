//! Named ports of the virtio console (virtio 1.3 §5.3), polled.

use core::sync::atomic::{Ordering, fence};

use crate::device::{Arena, Device, SIZE, WRITE, at, describe, offer, used};
use crate::platform::{peek, poke};

pub const OUT: &[u8] = b"minivmm.out";
pub const ERR: &[u8] = b"minivmm.err";
pub const RUN: &[u8] = b"minivmm.run";
/// Not every machine has these.
pub const IN: &[u8] = b"minivmm.in";
pub const GENERATION: &[u8] = b"org.minivmm.generation";
pub const FILES: &[u8] = b"minivmm.files";
const NAMES: [&[u8]; 6] = [OUT, ERR, RUN, IN, GENERATION, FILES];
/// How many of them every machine has.
const EVERY: usize = 3;

const ARENA: Arena = Arena(4 << 20);
/// A page for each descriptor of each queue; a line.
const PAGES: u64 = 6 << 20;
const PAGE: u64 = 4096;
const LINE: u64 = 8 << 20;
pub const LINE_MAX: usize = 1 << 20;
/// The words of the command.
pub const WORDS: u64 = 9 << 20;
const MULTIPORT: u64 = 2;
const HEAR: u16 = 2;
const SAY: u16 = 3;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;
const QUEUES: u16 = 16;

pub struct Ports {
    device: Device,
    /// The number of each of [`NAMES`].
    numbers: [Option<u16>; NAMES.len()],
    /// The number of the second console.
    terminal: Option<u16>,
    /// How far the used ring of each queue was looked at.
    seen: [u16; QUEUES as usize],
    /// The host's end of the input is closed.
    input_ended: bool,
}

fn page(queue: u16, slot: u16) -> u64 {
    PAGES + (u64::from(queue) * u64::from(SIZE) + u64::from(slot)) * PAGE
}

pub fn bytes(address: u64, len: usize) -> &'static mut [u8] {
    // SAFETY: memory that nothing else of this program is in; the device has it only while it is offered, and nobody looks at it
    // then.
    unsafe { core::slice::from_raw_parts_mut(address as *mut u8, len) }
}

impl Ports {
    /// Waits until those are there that every machine has; a further one that the machine has is there before.
    pub fn open(device: Device) -> Self {
        device.negotiate(MULTIPORT);
        let queues = device.get::<u16>(at::QUEUES).min(QUEUES);
        for queue in 0..queues {
            device.place_well(queue, ARENA);
            // No interrupt for what is used (§2.7.6).
            poke::<u16>(ARENA.avail(queue), 1);
        }
        device.set(at::STATUS, 0xfu8);
        let (numbers, seen) = ([None; NAMES.len()], [0; QUEUES as usize]);
        let mut ports = Ports { device, numbers, terminal: None, seen, input_ended: false };
        for queue in (0..queues).filter(|queue| queue % 2 == 0) {
            for slot in 0..SIZE {
                ports.give_room(queue, slot);
            }
        }
        // DEVICE_READY is 0.
        ports.say(0, 0);
        while ports.numbers[..EVERY].iter().any(Option::is_none) {
            ports.hear();
        }
        ports
    }

    fn give_room(&self, queue: u16, slot: u16) {
        describe(ARENA.descriptors(queue) + 16 * u64::from(slot), page(queue, slot), PAGE as u32, WRITE, 0);
        fence(Ordering::SeqCst);
        offer(ARENA, queue, slot);
        fence(Ordering::SeqCst);
        self.device.kick(queue);
    }

    /// The slot and length of what the device has used next, if it has.
    fn take(&mut self, queue: u16) -> Option<(u16, usize)> {
        let seen = &mut self.seen[usize::from(queue)];
        if used(ARENA, queue) == *seen {
            return None;
        }
        fence(Ordering::SeqCst);
        let element = ARENA.used(queue) + 4 + 8 * u64::from(*seen % SIZE);
        *seen = seen.wrapping_add(1);
        Some((peek::<u32>(element) as u16 % SIZE, (peek::<u32>(element + 4) as usize).min(PAGE as usize)))
    }

    /// Sends bytes, and waits until the device has them.
    fn transmit(&mut self, queue: u16, text: &[u8]) {
        for part in text.chunks(PAGE as usize) {
            bytes(page(queue, 0), part.len()).copy_from_slice(part);
            describe(ARENA.descriptors(queue), page(queue, 0), part.len() as u32, 0, 0);
            fence(Ordering::SeqCst);
            offer(ARENA, queue, 0);
            fence(Ordering::SeqCst);
            self.device.kick(queue);
            while self.take(queue).is_none() {
                core::hint::spin_loop();
            }
        }
    }

    fn say(&mut self, port: u16, event: u16) {
        let [p0, p1] = port.to_le_bytes();
        let [e0, e1] = event.to_le_bytes();
        self.transmit(SAY, &[p0, p1, 0, 0, e0, e1, 1, 0]);
    }

    /// Takes what the host says of its ports.
    fn hear(&mut self) {
        let Some((slot, len)) = self.take(HEAR) else { return };
        let mut message = [0; 64];
        let len = len.min(message.len());
        message[..len].copy_from_slice(bytes(page(HEAR, slot), len));
        self.give_room(HEAR, slot);
        let word = |at: usize| u16::from_le_bytes([message[at], message[at + 1]]);
        let (port, event, value) = (word(0), word(4), word(6));
        match event {
            PORT_ADD => self.say(port, PORT_READY),
            PORT_NAME => {
                if let Some(index) = NAMES.iter().position(|name| *name == &message[8..len]) {
                    self.numbers[index] = Some(port);
                    self.say(port, PORT_OPEN);
                }
            }
            CONSOLE if port != 0 => {
                self.terminal = Some(port);
                self.say(port, PORT_OPEN);
            }
            PORT_OPEN if Some(port) == self.numbers[3] => self.input_ended = value == 0,
            _ => {}
        }
    }

    /// The queue for what comes from the port; the next one is for what goes there.
    fn queue(&self, name: &[u8]) -> u16 {
        let index = NAMES.iter().position(|known| *known == name).unwrap_or_else(|| panic!("no such port"));
        2 * self.numbers[index].unwrap_or(0) + 2
    }

    pub fn send(&mut self, name: &[u8], text: &[u8]) {
        let queue = self.queue(name) + 1;
        self.transmit(queue, text);
    }

    /// Says that the command has ended.
    pub fn exit(&mut self, status: u8) {
        let digits = [b'0' + status / 100, b'0' + status / 10 % 10, b'0' + status % 10, b'\n'];
        self.send(RUN, b"exit ");
        self.send(RUN, &digits);
    }

    /// The next line, without its end.
    pub fn line(&mut self) -> &'static [u8] {
        let (queue, mut len) = (self.queue(RUN), 0);
        loop {
            self.hear();
            let Some((slot, count)) = self.take(queue) else { continue };
            let part = &*bytes(page(queue, slot), count);
            assert!(len + count <= LINE_MAX, "the line is too long");
            bytes(LINE + len as u64, count).copy_from_slice(part);
            len += count;
            self.give_room(queue, slot);
            if bytes(LINE, len).ends_with(b"\n") {
                return bytes(LINE, len - 1);
            }
        }
    }

    /// Copies to the output what comes next from the machine's own port.
    pub fn copy_generation(&mut self) {
        let (from, to) = (self.queue(GENERATION), self.queue(OUT) + 1);
        loop {
            if let Some((slot, count)) = self.take(from) {
                self.transmit(to, bytes(page(from, slot), count));
                return self.give_room(from, slot);
            }
            core::hint::spin_loop();
        }
    }

    /// Shows what is typed at the terminal, and each line of the host's, until a `q`.
    pub fn show(&mut self) {
        let (keys, run) = (self.keys(), self.queue(RUN));
        self.transmit(keys + 1, b"shows\r\n");
        loop {
            self.hear();
            for from in [keys, run] {
                let Some((slot, count)) = self.take(from) else { continue };
                let text = &*bytes(page(from, slot), count);
                self.transmit(keys + 1, text);
                let last = from == keys && text.contains(&b'q');
                self.give_room(from, slot);
                if last {
                    return;
                }
            }
        }
    }

    /// Writes so many pages to the terminal.
    pub fn pour(&mut self, count: u32) {
        let keys = self.keys();
        for _ in 0..count {
            self.transmit(keys + 1, &[b'x'; PAGE as usize]);
        }
    }

    /// The queue of what is typed at the terminal; that of what is shown is the next one.
    fn keys(&mut self) -> u16 {
        while self.terminal.is_none() {
            self.hear();
        }
        2 * self.terminal.unwrap_or(0) + 2
    }

    /// Copies the input to a port.
    pub fn copy_input(&mut self, to: &[u8]) {
        while self.numbers[3].is_none() || to == FILES && self.numbers[NAMES.len() - 1].is_none() {
            self.hear();
        }
        let (from, to) = (self.queue(IN), self.queue(to) + 1);
        loop {
            // In this order: what was sent before the end is there.
            self.hear();
            let ended = self.input_ended;
            match self.take(from) {
                Some((slot, count)) => {
                    self.transmit(to, bytes(page(from, slot), count));
                    self.give_room(from, slot);
                }
                None if ended => return,
                None => core::hint::spin_loop(),
            }
        }
    }
}
