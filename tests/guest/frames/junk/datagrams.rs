//! Everything but TCP: datagrams, echo requests, errors, neighbours.

use super::Junk;
use crate::packet::{Address, ETHERNET, GATEWAY, HEADER, ICMP, ICMPV6, OWN, OWN_MAC, OWN6, UDP, put16, wrap};

impl Junk {
    pub(super) fn datagram(&mut self, frame: &mut [u8]) -> usize {
        let (ends, port, own) = (self.ends(), self.port(), self.own_port());
        let payload = self.chance.of(&[0, 1, 64, 512, 1472, 9000]);
        self.udp(frame, ends, (own, port), payload)
    }

    /// Ports and length in front of a payload that is there, and the rest.
    fn udp(
        &mut self,
        frame: &mut [u8],
        ends: (Address, Address),
        ports: (u16, u16),
        payload: usize,
    ) -> usize {
        let into = &mut frame[ends.1.transport()..];
        put16(into, 0, ports.0);
        put16(into, 2, ports.1);
        put16(into, 4, 8 + payload as u16);
        let len = wrap(frame, ends, UDP, 8 + payload);
        if self.chance.once_in(8) {
            // No sum, or a wrong one.
            frame[0] = 0;
            put16(frame, ends.1.transport() + 6, self.chance.0 as u16 & 1);
        }
        len
    }

    pub(super) fn dhcp(&mut self, frame: &mut [u8]) -> usize {
        let from = self.chance.of(&[[0; 4], [0; 4], OWN, [9; 4]]);
        let ends = (Address::V4(from), Address::V4(self.chance.of(&[[255; 4], GATEWAY])));
        let into = &mut frame[ends.1.transport() + 8..];
        into[..236].fill(0);
        into[..4].copy_from_slice(&[1, 1, 6, 0]);
        self.fill(&mut into[4..44]);
        into[28..34].copy_from_slice(&OWN_MAC);
        into[236..244].copy_from_slice(&[0x63, 0x82, 0x53, 0x63, 53, 1, 1 + self.chance.below(9) as u8, 255]);
        let options = 244 + self.chance.below(100) as usize;
        if self.chance.once_in(2) {
            self.fill(&mut into[243..options]);
        }
        self.udp(frame, ends, (68, 67), options)
    }

    pub(super) fn dns(&mut self, frame: &mut [u8]) -> usize {
        let (mut ends, own) = (self.ends(), self.own_port());
        if let Address::V4(to) = &mut ends.1 {
            *to = [10, 0, 2, 3];
        }
        let len = 13 + self.chance.below(600) as usize;
        let into = &mut frame[ends.1.transport() + 8..];
        self.fill(&mut into[..len]);
        into[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        self.udp(frame, ends, (own, 53), len)
    }

    pub(super) fn echo(&mut self, frame: &mut [u8]) -> usize {
        let ends = self.ends();
        let len = 8 + self.chance.of(&[0, 1, 56, 1400, 20_000]);
        let into = &mut frame[ends.1.transport()..];
        self.fill(&mut into[..len]);
        let (kind, protocol) = if matches!(ends.1, Address::V4(_)) { (8, ICMP) } else { (128, ICMPV6) };
        (into[0], into[1], into[4]) = (kind, 0, 0);
        wrap(frame, ends, protocol, len)
    }

    /// Errors and other messages, of the other family's protocol, too.
    pub(super) fn icmp(&mut self, frame: &mut [u8]) -> usize {
        let ends = self.ends();
        let len = self.chance.below(120) as usize;
        let into = &mut frame[ends.1.transport()..];
        self.fill(&mut into[..len.max(2)]);
        into[0] = self.chance.of(&[0, 3, 5, 8, 11, 12, 13, 17, 1, 2, 4, 128, 129, into[0]]);
        let protocol = self.chance.of(&[ICMP, ICMPV6, 2, 0, 43, 44, 60, 132]);
        wrap(frame, ends, protocol, len)
    }

    /// Neighbour discovery and groups, with options.
    pub(super) fn neighbour(&mut self, frame: &mut [u8]) -> usize {
        let mut group = [0; 16];
        (group[0], group[1], group[15]) = (0xff, 2, 1 + self.chance.below(3) as u8);
        let mut own = [0; 16];
        (own[0], own[1], own[15]) = (0xfe, 0x80, 0x15);
        let from = self.chance.of(&[own, own, OWN6, [0; 16]]);
        let mut ends = (Address::V6(from), Address::V6(group));
        if self.chance.once_in(4) {
            ends.1 = Address::V6(OWN6);
        }
        let len = 8 + self.chance.below(10) as usize * 8;
        let into = &mut frame[ends.1.transport()..];
        self.fill(&mut into[..len]);
        into[0] = self.chance.of(&[133, 133, 134, 135, 135, 136, 137, 143, 130]);
        into[1] = 0;
        if len >= 24 && self.chance.once_in(2) {
            into[8..24].copy_from_slice(&OWN6);
            into[23] = self.chance.below(4) as u8;
        }
        if len >= 32 {
            (into[24], into[25]) = (1, self.chance.of(&[0, 1, 1, 1, 255]));
        }
        wrap(frame, ends, ICMPV6, len)
    }

    pub(super) fn arp(&mut self, frame: &mut [u8]) -> usize {
        frame[..HEADER].fill(0);
        let into = &mut frame[HEADER..];
        into[..6].fill(0xff);
        into[6..12].copy_from_slice(&OWN_MAC);
        self.fill(&mut into[12..ETHERNET + 28]);
        into[12..20].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4]);
        put16(into, 20, 1 + self.chance.below(3) as u16);
        into[22..28].copy_from_slice(&OWN_MAC);
        let (from, to) =
            (self.chance.of(&[OWN, OWN, GATEWAY, [0; 4]]), self.chance.of(&[GATEWAY, [10, 0, 2, 3], OWN]));
        into[28..32].copy_from_slice(&from);
        into[38..42].copy_from_slice(&to);
        HEADER + ETHERNET + 28
    }
}
