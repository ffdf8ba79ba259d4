//! `struct virtio_net_hdr` (virtio 1.3 §5.1.6), checked against its frame: only a checksum and segments that can be made are
//! taken. All positions are in the frame as it came.

use crate::HEADER_LEN;
use crate::frame::{ADDRESSES, ETHERNET, TAG, TPID};
use crate::ports::Accepts;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

/// All headers of a large packet: Ethernet with tags, IP with options or extensions, TCP with options.
pub(crate) const MOST_HEADERS: usize = 256;
/// Segments of a large packet. With fewer bytes than 128 in each, a packet of 64 KiB has more.
const MOST_SEGMENTS: usize = 512;
/// Tags in front of an IP packet.
const MOST_TAGS: usize = 3;
/// Extension headers of IPv6.
const MOST_EXTENSIONS: usize = 8;

const SERVICE_TPID: [u8; 2] = [0x88, 0xa8];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;
/// Where TCP's checksum is in its header.
pub(crate) const TCP_CHECKSUM: usize = 16;

/// A checksum that holds the sum of the pseudo header only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partial {
    /// Where the sum begins.
    pub(crate) start: usize,
    /// Where the checksum is, from there.
    pub(crate) offset: usize,
}

/// Which large packet it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// A large packet of TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gso {
    pub(crate) kind: GsoKind,
    /// It carries congestion notification.
    pub(crate) ecn: bool,
    /// Payload of each segment but the last.
    pub(crate) size: usize,
    /// Where the IP header begins.
    pub(crate) ip: usize,
    /// Where the TCP header begins.
    pub(crate) tcp: usize,
    /// Where the payload begins.
    pub(crate) payload: usize,
}

/// What is left to do for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Offload {
    pub(crate) checksum: Option<Partial>,
    pub(crate) gso: Option<Gso>,
}

impl Offload {
    /// Reads a header. `None`: it asks for what cannot be done.
    pub(crate) fn parse(header: &[u8; HEADER_LEN], frame: &[u8]) -> Option<Self> {
        let [flags, gso_type, _, _, s0, s1, c0, c1, o0, o1, ..] = *header;
        // §5.1.6.2.2: other flags are ignored. That a checksum is good (DATA_VALID) is no guest's to say.
        if flags & NEEDS_CSUM == 0 {
            // §5.1.6.2.1: segmentation needs checksums.
            return (gso_type == GSO_NONE).then_some(Offload::default());
        }
        let number = |low, high| usize::from(u16::from_le_bytes([low, high]));
        let checksum = Partial { start: number(c0, c1), offset: number(o0, o1) };
        let tagged = frame.get(ADDRESSES..ETHERNET) == Some(&TPID);
        let headers = ETHERNET + if tagged { TAG } else { 0 };
        let end = checksum.start + checksum.offset + 2;
        // A tag that comes may not move the position beyond what its field can say.
        if checksum.start < headers || end > frame.len() || checksum.start + TAG > usize::from(u16::MAX) {
            return None;
        }
        if gso_type == GSO_NONE {
            return Some(Offload { checksum: Some(checksum), gso: None });
        }
        let kind = match gso_type & !GSO_ECN {
            GSO_TCPV4 => GsoKind::Tcp4,
            GSO_TCPV6 => GsoKind::Tcp6,
            _ => return None,
        };
        let gso = Gso::parse(kind, gso_type & GSO_ECN != 0, number(s0, s1), frame)?;
        let matches = checksum == Partial { start: gso.tcp, offset: TCP_CHECKSUM };
        matches.then_some(Offload { checksum: Some(checksum), gso: Some(gso) })
    }

    /// The header for a frame whose positions are changed by `moved`.
    pub(crate) fn header(&self, moved: impl Fn(usize) -> usize) -> [u8; HEADER_LEN] {
        let Some(checksum) = self.checksum else { return [0; HEADER_LEN] };
        let bytes = |number| u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes();
        let ([c0, c1], [o0, o1]) = (bytes(moved(checksum.start)), bytes(checksum.offset));
        let (kind, [h0, h1], [s0, s1]) = match self.gso {
            None => (GSO_NONE, [0; 2], [0; 2]),
            Some(gso) => {
                let kind = match gso.kind {
                    GsoKind::Tcp4 => GSO_TCPV4,
                    GsoKind::Tcp6 => GSO_TCPV6,
                };
                let ecn = if gso.ecn { GSO_ECN } else { 0 };
                (kind | ecn, bytes(moved(gso.payload)), bytes(gso.size))
            }
        };
        [NEEDS_CSUM, kind, h0, h1, s0, s1, c0, c1, o0, o1, 0, 0]
    }
}

impl Gso {
    /// Whether a port takes the packet as it is.
    pub(crate) fn fits(&self, accepts: Accepts) -> bool {
        let kind = match self.kind {
            GsoKind::Tcp4 => accepts.tso4,
            GsoKind::Tcp6 => accepts.tso6,
        };
        accepts.checksum && kind && (accepts.ecn || !self.ecn)
    }

    fn parse(kind: GsoKind, ecn: bool, size: usize, frame: &[u8]) -> Option<Self> {
        let (ethertype, ip) = network_header(frame)?;
        let packet = frame.get(ip..)?;
        let header = match (kind, ethertype) {
            (GsoKind::Tcp4, IPV4) => ipv4_header(packet)?,
            (GsoKind::Tcp6, IPV6) => ipv6_header(packet)?,
            _ => return None,
        };
        let tcp = ip + header;
        // RFC 9293 §3.1: the length of the TCP header is in 32-bit words.
        let words = frame.get(tcp..)?.get(12)? >> 4;
        let payload = tcp + usize::from(words) * 4;
        let len = frame.len().checked_sub(payload)?;
        let possible =
            words >= 5 && payload <= MOST_HEADERS && size > 0 && len.div_ceil(size) <= MOST_SEGMENTS;
        possible.then_some(Gso { kind, ecn, size, ip, tcp, payload })
    }
}

/// The type and the place of what is behind a frame's tags.
fn network_header(frame: &[u8]) -> Option<([u8; 2], usize)> {
    let mut at = ADDRESSES;
    for _ in 0..=MOST_TAGS {
        let ethertype = *frame.get(at..)?.first_chunk::<2>()?;
        if ethertype != TPID && ethertype != SERVICE_TPID {
            return Some((ethertype, at + 2));
        }
        at += TAG;
    }
    None
}

/// The length of the IPv4 header of a TCP packet that is the whole of `packet` (RFC 791 §3.1).
fn ipv4_header(packet: &[u8]) -> Option<usize> {
    let [version, _, len0, len1, _, _, f0, f1, _, protocol, ..] = *packet.first_chunk::<20>()?;
    let header = usize::from(version & 0xf) * 4;
    let whole = usize::from(u16::from_be_bytes([len0, len1])) == packet.len();
    let fragment = u16::from_be_bytes([f0, f1]) & 0x3fff != 0;
    (version >> 4 == 4 && header >= 20 && whole && !fragment && protocol == TCP).then_some(header)
}

/// The length of the IPv6 headers of a TCP packet that is the whole of `packet` (RFC 8200 §3, §4).
fn ipv6_header(packet: &[u8]) -> Option<usize> {
    let [version, _, _, _, len0, len1, next, ..] = *packet.first_chunk::<40>()?;
    let whole = usize::from(u16::from_be_bytes([len0, len1])) + 40 == packet.len();
    if version >> 4 != 6 || !whole {
        return None;
    }
    let (mut next, mut at) = (next, 40);
    for _ in 0..=MOST_EXTENSIONS {
        match next {
            TCP => return Some(at),
            HOP_BY_HOP | DESTINATION_OPTIONS => {
                let [following, len] = *packet.get(at..)?.first_chunk::<2>()?;
                (next, at) = (following, at + (usize::from(len) + 1) * 8);
            }
            _ => return None,
        }
    }
    None
}
