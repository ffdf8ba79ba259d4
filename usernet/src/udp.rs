//! UDP headers.

use std::net::IpAddr;

use crate::offload::Offload;
use crate::packet::{Drop, Packet, UDP, put_u16, u16_at};
use crate::sum::Sum;

/// Bytes of a header.
pub(crate) const HEADER: usize = 8;
/// Where the checksum is.
pub(crate) const CHECKSUM_AT: u16 = 6;

/// The payload of the datagram in `packet`.
pub(crate) fn parse<'a>(packet: &Packet<'a>, offload: Offload) -> Result<&'a [u8], Drop> {
    let bytes = packet.payload;
    let field = |at| u16_at(bytes, at).ok_or(Drop::Malformed);
    let (len, checksum) = (usize::from(field(4)?), field(6)?);
    let payload = bytes.get(HEADER..len).ok_or(Drop::Malformed)?;
    if checksum != 0 {
        Packet { payload: bytes.get(..len).unwrap_or_default(), ..*packet }.verify(offload)?;
    } else if packet.source.is_ipv6() {
        // RFC 8200 §8.1: only IPv4 can do without.
        return Err(Drop::Malformed);
    }
    Ok(payload)
}

/// Writes the header in front of a payload: `bytes` is both. `partial`: its checksum is left to the guest.
pub(crate) fn write_header(
    ends: (IpAddr, IpAddr),
    (source, destination): (u16, u16),
    bytes: &mut [u8],
    partial: bool,
) {
    put_u16(bytes, 0, source);
    put_u16(bytes, 2, destination);
    put_u16(bytes, 4, u16::try_from(bytes.len()).unwrap_or(u16::MAX));
    put_u16(bytes, 6, 0);
    let sum = Sum::pseudo(ends.0, ends.1, UDP, bytes.len());
    let checksum = match partial {
        true => sum.folded(),
        // RFC 768: 0 says that there is none.
        false => Some(sum.add(bytes).checksum()).filter(|sum| *sum != 0).unwrap_or(u16::MAX),
    };
    put_u16(bytes, 6, checksum);
}

/// A datagram with its header.
pub(crate) fn datagram(ends: (IpAddr, IpAddr), ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend(payload);
    write_header(ends, ports, &mut bytes, false);
    bytes
}
