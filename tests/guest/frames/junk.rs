//! Frames that no guest in its right mind sends: noise, floods, and streams that begin well.

mod datagrams;

use crate::packet::{
    Address, GATEWAY, GATEWAY_MAC, HEADER, OWN, OWN6, Received, TCP, get16, get32, put16, put32, wrap,
};
use crate::platform::Chance;

/// Segments that were received last, which are answered in some way.
const KEPT: usize = 16;
const SEGMENT: usize = 20;

#[derive(Clone, Copy)]
struct Kept {
    ends: (Address, Address),
    segment: [u8; SEGMENT],
    /// Numbers that it takes.
    takes: u32,
}

pub struct Junk {
    chance: Chance,
    /// A port at which something answers.
    port: u16,
    kept: [Option<Kept>; KEPT],
    next: usize,
}

impl Junk {
    pub fn new(chance: Chance, port: u16) -> Self {
        Junk { chance, port, kept: [None; KEPT], next: 0 }
    }

    /// Keeps what is needed to go on with a stream.
    pub fn see(&mut self, received: &[u8]) {
        let Some(received) = Received::parse(received).filter(|received| received.protocol == TCP) else {
            return;
        };
        let mut segment = [0; SEGMENT];
        segment.copy_from_slice(&received.transport[..SEGMENT]);
        let payload = received.transport.len().saturating_sub(usize::from(segment[12] >> 4) * 4);
        let takes = payload as u32 + u32::from(segment[13] & 1) + u32::from(segment[13] >> 1 & 1);
        self.kept[self.next % KEPT] = Some(Kept { ends: received.ends, segment, takes });
        self.next += 1;
    }

    /// Most peers are answered as they should be, or their connections would stay half-open.
    pub fn is_polite(&mut self) -> bool {
        !self.chance.once_in(4)
    }

    /// Writes a header and a frame; their length.
    pub fn frame(&mut self, frame: &mut [u8]) -> usize {
        let mut len = match self.chance.below(20) {
            0 => self.noise(frame),
            1 => self.arp(frame),
            2..6 => self.segment(frame, 2),
            6..11 => self.go_on(frame),
            11 => {
                let flags = self.chance.next() as u8;
                self.segment(frame, flags)
            }
            12 => self.dhcp(frame),
            13 => self.dns(frame),
            14..17 => self.datagram(frame),
            17 => self.echo(frame),
            18 => self.icmp(frame),
            _ => self.neighbour(frame),
        };
        if self.chance.once_in(6) {
            len = self.spoil(frame, len);
        }
        if self.chance.once_in(12) {
            self.header(frame);
        }
        len
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.chance.next().to_le_bytes()[..part.len()]);
        }
    }

    fn noise(&mut self, frame: &mut [u8]) -> usize {
        let len = HEADER + self.chance.below(200) as usize;
        frame[..HEADER].fill(0);
        self.fill(&mut frame[HEADER..len]);
        if self.chance.once_in(2) {
            frame[HEADER..HEADER + 6].copy_from_slice(&GATEWAY_MAC);
            let kind = self.chance.of(&[0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8, 40]);
            put16(frame, HEADER + 12, kind);
        }
        len
    }

    /// Random bytes in random places, another length, or another sender.
    fn spoil(&mut self, frame: &mut [u8], len: usize) -> usize {
        for _ in 0..self.chance.below(4) {
            frame[HEADER + self.chance.below((len - HEADER).max(1) as u64) as usize] =
                self.chance.next() as u8;
        }
        if self.chance.once_in(4) {
            self.fill(&mut frame[HEADER + 6..HEADER + 12]);
        }
        match self.chance.below(8) {
            // What is behind is of an earlier frame.
            0 => HEADER + self.chance.below(0x1_0100) as usize,
            1 => self.chance.below(len as u64 + 1) as usize,
            2 => len + self.chance.below(64) as usize,
            _ => len,
        }
    }

    /// A virtio header of any kind.
    fn header(&mut self, frame: &mut [u8]) {
        let mut raw = [0; HEADER];
        self.fill(&mut raw);
        raw[0] = self.chance.of(&[0, 1, 1, 1, 2, raw[0]]);
        raw[1] = self.chance.of(&[0, 1, 4, 0x81, 3, 5, raw[1]]);
        if self.chance.once_in(2) {
            (raw[3], raw[5], raw[7], raw[9]) = (0, raw[5] & 7, 0, 0);
        }
        frame[..HEADER].copy_from_slice(&raw);
    }

    /// An address of this card and one of a peer, perhaps foreign or forbidden ones.
    fn ends(&mut self) -> (Address, Address) {
        let word = self.chance.next().to_le_bytes();
        let (odd, near) = (self.chance.once_in(12), 1 + word[0] % 8);
        if self.chance.once_in(4) {
            let mut gateway = OWN6;
            gateway[15] = 2 + word[1] % 2;
            let world = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, near];
            let mut mapped = [0; 16];
            mapped[10..].copy_from_slice(&[0xff, 0xff, 127, 0, 0, 1]);
            let mut group = [0; 16];
            (group[0], group[1], group[15]) = (0xff, 2, 1);
            let to = self.chance.of(&[gateway, gateway, world, world, world, mapped, group, [word[2]; 16]]);
            let from = if odd { self.chance.of(&[gateway, world, group, [0; 16]]) } else { OWN6 };
            return (Address::V6(from), Address::V6(to));
        }
        let (world, nowhere, noise) =
            ([198, 51, 100, near], [203, 0, 113, near], [word[1], 9, word[2], word[3]]);
        let dns = [10, 0, 2, 3];
        let to = match self.chance.below(12) {
            0..4 => GATEWAY,
            4..7 => world,
            7 => nowhere,
            8 => dns,
            9 => [10, 0, 2, word[1]],
            10 => self.chance.of(&[[127, 0, 0, 1], [255; 4], [224, 0, 0, 1], [0; 4], [169, 254, 169, 254]]),
            _ => noise,
        };
        let from =
            if odd { self.chance.of(&[GATEWAY, dns, world, [127, 0, 0, 1], [0; 4], [255; 4]]) } else { OWN };
        (Address::V4(from), Address::V4(to))
    }

    /// The port behind which something answers, the one behind it, and others.
    fn port(&mut self) -> u16 {
        match self.chance.below(8) {
            0..4 => self.port,
            4 => self.port + 1,
            5 => self.chance.of(&[0, 7, 53, 67, 80, 65535]),
            _ => self.chance.next() as u16,
        }
    }

    fn own_port(&mut self) -> u16 {
        1024 + self.chance.below(if self.chance.0 & 1 == 0 { 1024 } else { 0xf000 }) as u16
    }

    fn segment(&mut self, frame: &mut [u8], flags: u8) -> usize {
        let ends = self.ends();
        let (port, own) = (self.port(), self.own_port());
        let options = self.chance.below(11) as usize * 4;
        let into = &mut frame[ends.1.transport()..];
        self.fill(&mut into[..20 + options + 8]);
        put16(into, 0, own);
        put16(into, 2, port);
        into[12] = (5 + options as u8 / 4) << 4;
        into[13] = flags;
        if options >= 8 && self.chance.once_in(2) {
            // MSS and window scaling, of any value.
            let mss = self.chance.of(&[0, 1, 48, 536, 1460, 65535]);
            into[20..24].copy_from_slice(&[2, 4, 0, 0]);
            put16(into, 22, mss);
            into[24..28].copy_from_slice(&[3, 3, self.chance.0 as u8 % 20, 0]);
        }
        let payload = if self.chance.once_in(4) { 8 } else { 0 };
        wrap(frame, ends, TCP, 20 + options + payload)
    }

    /// The next segment of a stream that exists, more or less.
    fn go_on(&mut self, frame: &mut [u8]) -> usize {
        let Some(Kept { ends, segment, takes }) = self.kept[self.chance.below(KEPT as u64) as usize] else {
            return self.segment(frame, 2);
        };
        let payload = self.chance.of(&[0, 0, 1, 100, 1000, 1400, 9000]);
        let into = &mut frame[ends.1.transport()..];
        self.fill(&mut into[..20 + payload]);
        let mut odd = || {
            if self.chance.once_in(6) {
                (self.chance.next() >> self.chance.of(&[32, 48, 60])) as u32
            } else {
                0
            }
        };
        let (sequence, acknowledged) =
            (get32(&segment, 8).wrapping_sub(odd()), get32(&segment, 4).wrapping_add(takes));
        put32(into, 4, sequence);
        put32(into, 8, acknowledged.wrapping_sub(odd()));
        put16(into, 0, get16(&segment, 2));
        put16(into, 2, get16(&segment, 0));
        into[12] = 5 << 4;
        into[13] = self
            .chance
            .of(&[0x10, 0x10, 0x10, 0x18, 0x18, 0x18, 0x11, 0x19, 0x04, 0x14, 0x02, 0x12, 0x30, 0]);
        let window = self.chance.of(&[0, 1, 100, 1000, 65535]);
        put16(into, 14, window);
        wrap(frame, ends, TCP, 20 + payload)
    }
}
