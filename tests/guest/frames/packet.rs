//! Frames as they should be: a virtio header, Ethernet, IP and the sums.

/// Bytes of the virtio header, and of Ethernet's.
pub const HEADER: usize = 12;
pub const ETHERNET: usize = 14;
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;

pub const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x15];
pub const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0, 2, 2];
pub const OWN: [u8; 4] = [10, 0, 2, 15];
pub const GATEWAY: [u8; 4] = [10, 0, 2, 2];
/// The last half of addresses in the network's prefix fd62:6164:2::/64.
pub const OWN6: [u8; 16] = [0xfd, 0x62, 0x61, 0x64, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x15];

/// An address of either kind.
#[derive(Clone, Copy)]
pub enum Address {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl Address {
    fn bytes(&self) -> &[u8] {
        match self {
            Address::V4(bytes) => bytes,
            Address::V6(bytes) => bytes,
        }
    }

    /// Where a transport begins in a frame, with its header, to this address.
    pub fn transport(&self) -> usize {
        HEADER + ETHERNET + if matches!(self, Address::V4(_)) { 20 } else { 40 }
    }
}

pub fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

pub fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from(get16(bytes, at)) << 16 | u32::from(get16(bytes, at + 2))
}

/// The sum of RFC 1071 over `bytes`, continued from `sum`.
pub fn sum(bytes: &[u8], sum: u32) -> u32 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let all = words.fold(u64::from(sum), |all, word| all + u64::from(word));
    let once = (all & 0xffff) + (all >> 16);
    ((once & 0xffff) + (once >> 16)) as u32
}

/// Puts all headers in front of `len` bytes of `protocol`; its own sum is left to the network (VIRTIO_NET_HDR_F_NEEDS_CSUM),
/// which ICMP cannot do. Returns the length of all.
pub fn wrap(frame: &mut [u8], ends: (Address, Address), protocol: u8, len: usize) -> usize {
    let (from, to) = ends;
    let start = to.transport();
    frame[..HEADER].fill(0);
    frame[HEADER..HEADER + 6].copy_from_slice(&GATEWAY_MAC);
    frame[HEADER + 6..HEADER + 12].copy_from_slice(&OWN_MAC);
    let ip = &mut frame[HEADER + ETHERNET..start];
    ip.fill(0);
    match to {
        Address::V4(_) => {
            (ip[0], ip[8], ip[9]) = (0x45, 64, protocol);
            put16(ip, 2, (20 + len) as u16);
            ip[12..16].copy_from_slice(from.bytes());
            ip[16..20].copy_from_slice(to.bytes());
            let sum = !(sum(ip, 0) as u16);
            put16(ip, 10, sum);
        }
        Address::V6(_) => {
            (ip[0], ip[6], ip[7]) = (0x60, protocol, 255);
            put16(ip, 4, len as u16);
            ip[8..24].copy_from_slice(from.bytes());
            ip[24..40].copy_from_slice(to.bytes());
        }
    }
    put16(frame, HEADER + 12, if matches!(to, Address::V4(_)) { 0x0800 } else { 0x86dd });
    let pseudo = sum(to.bytes(), sum(from.bytes(), u32::from(protocol) + len as u32));
    let at = match protocol {
        TCP => 16,
        UDP => 6,
        _ => 2,
    };
    if len >= at + 2 && matches!(protocol, TCP | UDP | ICMPV6) {
        put16(frame, start + at, pseudo as u16);
        frame[0] = 1;
        frame[6..8].copy_from_slice(&((start - HEADER) as u16).to_le_bytes());
        frame[8..10].copy_from_slice(&(at as u16).to_le_bytes());
    }
    if len >= at + 2 && protocol == ICMP {
        put16(frame, start + 2, 0);
        let sum = !(sum(&frame[start..start + len], 0) as u16);
        put16(frame, start + 2, sum);
    }
    start + len
}

/// An echo request to the gateway: it learns the card's address.
pub fn hello(frame: &mut [u8]) -> usize {
    let ends = (Address::V4(OWN), Address::V4(GATEWAY));
    let start = ends.1.transport();
    frame[start..start + 8].copy_from_slice(&[8, 0, 0, 0, 0, 1, 0, 1]);
    wrap(frame, ends, ICMP, 8)
}

/// A TCP or UDP packet that was received: what an answer needs of it.
pub struct Received<'a> {
    /// Its addresses, turned round.
    pub ends: (Address, Address),
    pub protocol: u8,
    /// Header and payload.
    pub transport: &'a [u8],
}

impl<'a> Received<'a> {
    /// Reads a frame behind its header. What is odd about it is none of this program's business.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let ip = frame.get(HEADER + ETHERNET..)?;
        let (ends, protocol, start, end) = match get16(frame, HEADER + 12) {
            0x0800 if ip.len() >= 20 && ip[0] == 0x45 => {
                let address = |at: usize| Address::V4([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
                ((address(16), address(12)), ip[9], 20, usize::from(get16(ip, 2)))
            }
            0x86dd if ip.len() >= 40 => {
                let address = |at: usize| {
                    let mut bytes = [0; 16];
                    bytes.copy_from_slice(&ip[at..at + 16]);
                    Address::V6(bytes)
                };
                ((address(24), address(8)), ip[6], 40, 40 + usize::from(get16(ip, 4)))
            }
            _ => return None,
        };
        let transport = ip.get(start..end)?;
        let least = if protocol == TCP { 20 } else { 8 };
        (matches!(protocol, TCP | UDP) && transport.len() >= least).then_some(Received {
            ends,
            protocol,
            transport,
        })
    }
}
