//! Cuts a large packet of TCP into segments (virtio 1.3 §5.1.6.2.1), as a network card does.

use crate::HEADER_LEN;
use crate::frame::TAG;
use crate::offload::{Gso, GsoKind, MOST_HEADERS, Offload, TCP_CHECKSUM};
use crate::packet::Packet;
use crate::sum::Sum;

/// TCP's flags that only the last segment may have (RFC 9293 §3.1), and the one of only the first (RFC 3168 §6.1.2).
const LAST: u8 = FIN | PSH;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
const FLAGS: usize = 13;

const TCP: u64 = 6;
const IPV6: usize = 40;

/// Cuts a packet. Each segment has a header, all protocols' headers and its payload. Its checksum is partial or complete.
pub(crate) fn cut(
    packet: &Packet<'_>,
    gso: &Gso,
    partial: bool,
    mut each: impl FnMut(&[u8; HEADER_LEN], &[u8], &[u8]),
) {
    let (headers, payload) = packet.bytes.split_at_checked(gso.payload).unwrap_or_default();
    let mut room = [0; MOST_HEADERS + TAG];
    let mut len = 0;
    for part in packet.edit.parts(headers) {
        if let Some(place) = room.get_mut(len..len + part.len()) {
            place.copy_from_slice(part);
        }
        len += part.len();
    }
    let Some(head) = room.get_mut(..len) else { return };
    let moved = |at| packet.edit.moved(at);
    let checksum = packet.offload.checksum.filter(|_| partial);
    let header = Offload { checksum, gso: None }.header(moved);
    let writer = Writer::new(gso, moved, head, partial);
    let count = payload.len().div_ceil(gso.size).max(1);
    let mut rest = payload;
    for index in 0..count {
        let (this, later) = rest.split_at(rest.len().min(gso.size));
        rest = later;
        writer.write(head, index, index + 1 == count, this);
        each(&header, head, this);
    }
}

/// Writes what differs between the segments' headers.
struct Writer {
    kind: GsoKind,
    /// Where the IP and the TCP header begin.
    ip: usize,
    tcp: usize,
    size: usize,
    partial: bool,
    /// Of the packet: IPv4's identification, TCP's sequence number and flags, the sum of addresses and protocol.
    id: u16,
    sequence: u32,
    flags: u8,
    pseudo: Sum,
}

impl Writer {
    fn new(gso: &Gso, moved: impl Fn(usize) -> usize, head: &[u8], partial: bool) -> Self {
        let (ip, tcp) = (moved(gso.ip), moved(gso.tcp));
        let addresses = match gso.kind {
            GsoKind::Tcp4 => ip + 12..ip + 20,
            GsoKind::Tcp6 => ip + 8..ip + 40,
        };
        let [flags] = array(head, tcp + FLAGS);
        Writer {
            kind: gso.kind,
            ip,
            tcp,
            size: gso.size,
            partial,
            id: u16::from_be_bytes(array(head, ip + 4)),
            sequence: u32::from_be_bytes(array(head, tcp + 4)),
            flags,
            pseudo: Sum::default().add(head.get(addresses).unwrap_or_default()).add_number(TCP),
        }
    }

    fn write(&self, head: &mut [u8], index: usize, last: bool, payload: &[u8]) {
        let packet = head.len() - self.ip + payload.len();
        match self.kind {
            GsoKind::Tcp4 => {
                put(head, self.ip + 2, low16(packet).to_be_bytes());
                // RFC 6864 §4.1 allows any identification here, and older receivers want different ones.
                put(head, self.ip + 4, self.id.wrapping_add(low16(index)).to_be_bytes());
                put(head, self.ip + 10, [0; 2]);
                let sum = Sum::default().add(head.get(self.ip..self.tcp).unwrap_or_default());
                put(head, self.ip + 10, sum.checksum().to_be_bytes());
            }
            GsoKind::Tcp6 => put(head, self.ip + 4, low16(packet - IPV6).to_be_bytes()),
        }
        let sent = u32::try_from(index * self.size).unwrap_or(u32::MAX);
        put(head, self.tcp + 4, self.sequence.wrapping_add(sent).to_be_bytes());
        let not_here = if last { 0 } else { LAST } | if index == 0 { 0 } else { CWR };
        put(head, self.tcp + FLAGS, [self.flags & !not_here]);
        let segment = packet + self.ip - self.tcp;
        let pseudo = self.pseudo.add_number(segment as u64);
        let checksum = if self.partial {
            pseudo.folded()
        } else {
            put(head, self.tcp + TCP_CHECKSUM, [0; 2]);
            pseudo.add(head.get(self.tcp..).unwrap_or_default()).add(payload).checksum()
        };
        put(head, self.tcp + TCP_CHECKSUM, checksum.to_be_bytes());
    }
}

fn low16(number: usize) -> u16 {
    u16::try_from(number & 0xffff).unwrap_or_default()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *place = value;
    }
}
