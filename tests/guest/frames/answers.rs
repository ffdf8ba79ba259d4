//! The service on port 7: echo (RFC 862), over TCP without a memory of any connection. A peer's acknowledgement says what comes
//! next, and its segment what to acknowledge.

use crate::packet::{Received, TCP, get16, get32, put16, put32, wrap};

const ECHO: u16 = 7;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// The first sequence number of each connection.
const FIRST: u32 = 0x1000;
const WINDOW: u16 = 16_384;

/// Writes the answer to a received frame; its length, 0 if there is none.
pub fn answer(received: &[u8], frame: &mut [u8]) -> usize {
    let Some(Received { ends, protocol, transport }) = Received::parse(received) else { return 0 };
    if get16(transport, 2) != ECHO {
        return 0;
    }
    let start = ends.1.transport();
    let into = &mut frame[start..];
    let len = if protocol == TCP { stream(transport, into) } else { datagram(transport, into) };
    if len == 0 { 0 } else { wrap(frame, ends, protocol, len) }
}

/// Ports, turned round.
fn ports(from: &[u8], into: &mut [u8]) {
    put16(into, 0, get16(from, 2));
    put16(into, 2, get16(from, 0));
}

fn datagram(from: &[u8], into: &mut [u8]) -> usize {
    into[..from.len()].copy_from_slice(from);
    ports(from, into);
    from.len()
}

fn stream(from: &[u8], into: &mut [u8]) -> usize {
    let (flags, header) = (from[13], usize::from(from[12] >> 4) * 4);
    let payload = from.get(header..).unwrap_or_default();
    let takes = payload.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
    if flags & RST != 0 || takes == 0 {
        return 0;
    }
    into[..20].fill(0);
    ports(from, into);
    put32(into, 4, if flags & SYN != 0 { FIRST } else { get32(from, 8) });
    put32(into, 8, get32(from, 4).wrapping_add(takes));
    into[12] = 5 << 4;
    into[13] = ACK | flags & (SYN | FIN);
    put16(into, 14, WINDOW);
    into[20..20 + payload.len()].copy_from_slice(payload);
    20 + payload.len()
}
