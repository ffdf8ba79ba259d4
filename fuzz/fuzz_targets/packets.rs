//! Packets of a guest with right headers, and the rules that packets to a guest keep.

use std::net::IpAddr;

use usernet::{Accepts, Checksum, Config, GsoKind, Offload};

pub const ETHERNET: usize = 14;
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

pub type Ends = (IpAddr, IpAddr);

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// RFC 1071.
pub fn sum(bytes: &[u8], sum: u64) -> u64 {
    let words = bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0)));
    let mut all = words.fold(sum, |all, word| all + word);
    while all > 0xffff {
        all = (all & 0xffff) + (all >> 16);
    }
    all
}

fn pseudo(ends: Ends, protocol: u8, len: usize) -> u64 {
    sum(&octets(ends.1), sum(&octets(ends.0), u64::from(protocol) + len as u64))
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) << 16 | u32::from(u16_at(bytes, at + 2))
}

fn checksum_at(protocol: u8) -> usize {
    match protocol {
        TCP => 16,
        UDP => 6,
        _ => 2,
    }
}

pub fn ethernet(from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    [&Config::default().gateway_mac[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// A frame around a transport's header and payload, with all sums; or with the last one left to the network.
pub fn wrap(
    mac: [u8; 6],
    ends: Ends,
    protocol: u8,
    hops: u8,
    mut payload: Vec<u8>,
    partial: bool,
) -> (Vec<u8>, Offload) {
    payload.truncate(65_000);
    let at = checksum_at(protocol);
    let headers = ETHERNET + if ends.1.is_ipv4() { 20 } else { 40 };
    let mut offload = Offload::default();
    if matches!(protocol, TCP | UDP | ICMP | ICMPV6) && payload.len() >= at + 2 {
        payload[at..at + 2].fill(0);
        let head = if protocol == ICMP { 0 } else { pseudo(ends, protocol, payload.len()) };
        let value = if partial && protocol != ICMP {
            offload.checksum = Checksum::Partial { start: headers as u16, offset: at as u16 };
            head as u16
        } else {
            !(sum(&payload, head) as u16)
        };
        payload[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }
    let mut packet = Vec::new();
    match ends.1 {
        IpAddr::V4(_) => {
            packet.extend([0x45, 0]);
            packet.extend((20 + payload.len() as u16).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, hops, protocol, 0, 0]);
        }
        IpAddr::V6(_) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((payload.len() as u16).to_be_bytes());
            packet.extend([protocol, hops]);
        }
    }
    packet.extend(octets(ends.0));
    packet.extend(octets(ends.1));
    if ends.1.is_ipv4() {
        let value = !(sum(&packet, 0) as u16);
        packet[10..12].copy_from_slice(&value.to_be_bytes());
    }
    packet.extend(payload);
    (ethernet(mac, if ends.1.is_ipv4() { 0x0800 } else { 0x86dd }, &packet), offload)
}

/// An IP packet to a guest.
pub struct Read<'a> {
    pub ends: Ends,
    pub protocol: u8,
    pub payload: &'a [u8],
}

/// Reads a frame for a guest, which has to be as the standards say, and as the guest takes it. `None`: it is ARP, or a fragment.
pub fn read<'a>(frame: &'a [u8], offload: Offload, accepts: Accepts, mtu: u16) -> Option<Read<'a>> {
    assert!(frame[6..12] == Config::default().gateway_mac && frame[0..6] != frame[6..12]);
    let large = frame.len() > usize::from(mtu) + ETHERNET;
    assert!(!large || offload.gso.is_some(), "a packet of {} bytes", frame.len() - ETHERNET);
    let ip = &frame[ETHERNET..];
    let array4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).expect("4 bytes"));
    let array6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).expect("16 bytes"));
    let (ends, protocol, payload) = match u16_at(frame, 12) {
        0x0806 => {
            assert!(ip.len() == 28 && offload == Offload::default());
            return None;
        }
        0x0800 => {
            assert!(ip[0] == 0x45 && usize::from(u16_at(ip, 2)) == ip.len() && sum(&ip[..20], 0) == 0xffff);
            if u16_at(ip, 6) & 0x3fff != 0 {
                return None;
            }
            ((array4(12), array4(16)), ip[9], &ip[20..])
        }
        0x86dd => {
            assert!(ip[0] >> 4 == 6 && usize::from(u16_at(ip, 4)) + 40 == ip.len());
            if ip[6] == 44 {
                return None;
            }
            ((array6(8), array6(24)), ip[6], &ip[40..])
        }
        other => panic!("a frame of kind {other:#x}"),
    };
    let start = frame.len() - payload.len();
    let head = if protocol == ICMP { 0 } else { pseudo(ends, protocol, payload.len()) };
    match offload.checksum {
        Checksum::Complete if protocol == UDP && u16_at(payload, 6) == 0 => assert!(ends.0.is_ipv4()),
        Checksum::Complete => assert!(sum(payload, head) == 0xffff, "a wrong sum of {protocol}"),
        Checksum::Partial { start: from, offset } => {
            let at = usize::from(offset);
            assert!(accepts.checksum && usize::from(from) == start && at == checksum_at(protocol));
            assert!(u64::from(u16_at(payload, at)) == head, "a wrong sum of the pseudo header");
        }
    }
    if let Some(gso) = offload.gso {
        let taken = if gso.kind == GsoKind::Tcp4 { accepts.tso4 } else { accepts.tso6 };
        assert!(taken && offload.checksum != Checksum::Complete && protocol == TCP && gso.size > 0);
        assert!((gso.kind == GsoKind::Tcp4) == ends.1.is_ipv4());
        assert!(usize::from(gso.headers) == start + usize::from(payload[12] >> 4) * 4);
        let segment = usize::from(gso.headers) + usize::from(gso.size);
        assert!(segment <= usize::from(mtu) + ETHERNET, "segments of {segment} bytes");
    }
    Some(Read { ends, protocol, payload })
}
