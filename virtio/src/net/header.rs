//! `struct virtio_net_hdr` (virtio 1.3 §5.1.6) as a guest sends it: checked before the host's kernel sees it.

use super::{HEADER_LEN, Offloads};

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// An Ethernet header: no frame is shorter.
const ETHERNET: u64 = 14;
/// Longest frame: an IP packet of 64 KiB behind an Ethernet header with a VLAN tag.
pub(super) const LONGEST_FRAME: u64 = 65535 + ETHERNET + 4;

/// What is wrong with a frame of the guest. It is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A buffer with no room for a header, or with a part that the device may write, or in too many pieces.
    #[error("its buffer is no frame behind a header")]
    Buffer,
    /// Shorter than an Ethernet header, or longer than any.
    #[error("it is {0} bytes long")]
    Length(u64),
    /// §5.1.6.2.1: only what was negotiated.
    #[error("it asks for a checksum or a segmentation that was not negotiated")]
    NotNegotiated,
    /// A segmentation that is not known.
    #[error("it asks for segmentation {0:#x}")]
    Segmentation(u8),
    /// The checksum would lie outside the frame.
    #[error("its checksum lies outside it")]
    Checksum,
    /// Segments of no size.
    #[error("its segments have no size")]
    SegmentSize,
}

fn u16_at(raw: &[u8; HEADER_LEN], at: usize) -> u16 {
    raw.get(at..at + 2).and_then(|field| field.try_into().ok()).map_or(0, u16::from_le_bytes)
}

/// The header to send before a frame of `frame_len` bytes whose header the guest gave as `raw`, which may use
/// `allowed`. It has only fields that were checked here.
pub(super) fn checked(
    raw: &[u8; HEADER_LEN],
    frame_len: u64,
    allowed: Offloads,
) -> Result<[u8; HEADER_LEN], FrameError> {
    if !(ETHERNET..=LONGEST_FRAME).contains(&frame_len) {
        return Err(FrameError::Length(frame_len));
    }
    let [flags, gso_type, ..] = *raw;
    // §5.1.6.2.2: flags that are not known are ignored; DATA_VALID is the device's to set.
    let needs_csum = flags & NEEDS_CSUM != 0;
    let (hdr_len, gso_size) = (u16_at(raw, 2), u16_at(raw, 4));
    let (csum_start, csum_offset) = (u16_at(raw, 6), u16_at(raw, 8));

    if needs_csum {
        if !allowed.contains(Offloads::CSUM) {
            return Err(FrameError::NotNegotiated);
        }
        // The checksum's two bytes are in the frame, and behind its Ethernet header.
        let end = u64::from(csum_start) + u64::from(csum_offset) + 2;
        if u64::from(csum_start) < ETHERNET || end > frame_len {
            return Err(FrameError::Checksum);
        }
    }
    let segmented = gso_type != GSO_NONE;
    if segmented {
        if !allowed.contains(needed(gso_type)?) {
            return Err(FrameError::NotNegotiated);
        }
        // §5.1.6.2.1: a request for segmentation includes one for checksums, which every segment needs.
        if !needs_csum {
            return Err(FrameError::Checksum);
        }
        if gso_size == 0 {
            return Err(FrameError::SegmentSize);
        }
    }

    let mut out = [0; HEADER_LEN];
    let mut put = |at: usize, value: u16| {
        if let Some(field) = out.get_mut(at..at + 2) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    };
    if segmented {
        // §5.1.6.2.2: a hint that is not to be relied on, and never more than there is.
        put(2, hdr_len.min(u16::try_from(frame_len).unwrap_or(u16::MAX)));
        put(4, gso_size);
    }
    if needs_csum {
        put(6, csum_start);
        put(8, csum_offset);
    }
    let [out_flags, out_type, ..] = &mut out;
    *out_flags = u8::from(needs_csum) * NEEDS_CSUM;
    *out_type = gso_type;
    Ok(out)
}

/// What has to be negotiated for a segmentation.
fn needed(gso_type: u8) -> Result<Offloads, FrameError> {
    let ecn = if gso_type & GSO_ECN != 0 { Offloads::ECN } else { Offloads::empty() };
    match gso_type & !GSO_ECN {
        GSO_TCPV4 => Ok(Offloads::TSO4 | ecn),
        GSO_TCPV6 => Ok(Offloads::TSO6 | ecn),
        // §5.1.6.2.1: ECN is TCP's.
        GSO_UDP if ecn.is_empty() => Ok(Offloads::UFO),
        GSO_UDP_L4 if ecn.is_empty() => Ok(Offloads::USO),
        _ => Err(FrameError::Segmentation(gso_type)),
    }
}

/// What the receiver of a frame behind this header has to take; `None` for a segmentation that is not known.
pub fn required(header: &[u8; HEADER_LEN]) -> Option<Offloads> {
    let [flags, gso_type, ..] = *header;
    let csum = if flags & NEEDS_CSUM != 0 { Offloads::CSUM } else { Offloads::empty() };
    if gso_type == GSO_NONE { Some(csum) } else { needed(gso_type).ok().map(|gso| csum | gso) }
}

/// The header for the driver: the host's header, less what the driver did not accept (§5.1.6.4.1), with the number of
/// buffers that the frame lies in.
pub(super) fn received(mut raw: [u8; HEADER_LEN], offloads: Offloads, buffers: u16) -> [u8; HEADER_LEN] {
    if !offloads.contains(Offloads::CSUM) {
        // Neither "needs a checksum" nor "its checksum is good", and no segmentation without the first.
        raw = [0; HEADER_LEN];
    }
    if let Some(field) = raw.get_mut(10..) {
        field.copy_from_slice(&buffers.to_le_bytes());
    }
    raw
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, gso_type: u8, rest: [u16; 5]) -> [u8; HEADER_LEN] {
        let mut raw = [flags, gso_type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (to, from) in raw[2..].chunks_mut(2).zip(rest) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        raw
    }

    #[test]
    fn a_plain_frame_has_a_header_of_zeros_whatever_the_guest_wrote_into_unused_fields() {
        let raw = header(0x86, 0, [7, 8, 9, 10, 11]);
        assert_eq!(checked(&raw, 60, Offloads::all()), Ok([0; HEADER_LEN]));
    }

    #[test]
    fn a_frame_shorter_than_ethernet_or_longer_than_ip_is_refused() {
        let plain = [0; HEADER_LEN];
        assert_eq!(checked(&plain, 13, Offloads::all()), Err(FrameError::Length(13)));
        assert!(checked(&plain, 14, Offloads::all()).is_ok());
        assert!(checked(&plain, LONGEST_FRAME, Offloads::all()).is_ok());
        assert!(checked(&plain, LONGEST_FRAME + 1, Offloads::all()).is_err());
        assert!(checked(&plain, u64::MAX, Offloads::all()).is_err());
    }

    #[test]
    fn a_checksum_outside_the_frame_is_refused() {
        let at = |start, offset, len| checked(&header(1, 0, [0, 0, start, offset, 0]), len, Offloads::CSUM);
        assert!(at(34, 16, 52).is_ok());
        assert_eq!(at(34, 16, 51), Err(FrameError::Checksum));
        assert_eq!(at(13, 16, 60), Err(FrameError::Checksum));
        assert_eq!(at(0xffff, 0xffff, 60), Err(FrameError::Checksum));
        assert_eq!(at(34, 0xffff, 60), Err(FrameError::Checksum));
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        let csum = header(1, 0, [0, 0, 34, 16, 0]);
        assert_eq!(checked(&csum, 100, Offloads::empty()), Err(FrameError::NotNegotiated));
        for (kind, offload) in [
            (GSO_TCPV4, Offloads::TSO4),
            (GSO_TCPV6, Offloads::TSO6),
            (GSO_UDP, Offloads::UFO),
            (GSO_UDP_L4, Offloads::USO),
            (GSO_TCPV4 | GSO_ECN, Offloads::TSO4 | Offloads::ECN),
        ] {
            let raw = header(1, kind, [54, 1448, 34, 16, 0]);
            assert_eq!(checked(&raw, 3000, Offloads::CSUM | offload), Ok(raw));
            let without = Offloads::all().difference(offload);
            assert_eq!(checked(&raw, 3000, without), Err(FrameError::NotNegotiated), "{kind}");
        }
    }

    #[test]
    fn segmentation_is_refused_without_checksum_or_size_or_if_unknown() {
        let all = Offloads::all();
        assert_eq!(checked(&header(0, 1, [54, 1448, 34, 16, 0]), 3000, all), Err(FrameError::Checksum));
        assert_eq!(checked(&header(1, 1, [54, 0, 34, 16, 0]), 3000, all), Err(FrameError::SegmentSize));
        for kind in [2, 6, 0x40, 0x7f, GSO_ECN, GSO_ECN | GSO_UDP, GSO_ECN | GSO_UDP_L4, 0xff] {
            let raw = header(1, kind, [54, 1448, 34, 16, 0]);
            assert_eq!(checked(&raw, 3000, all), Err(FrameError::Segmentation(kind)));
        }
    }

    #[test]
    fn a_header_length_past_the_frame_is_cut_to_it_and_the_number_of_buffers_is_dropped() {
        let sent = checked(&header(1, 1, [0xffff, 1448, 34, 16, 9]), 3000, Offloads::all()).unwrap();
        assert_eq!(sent, header(1, 1, [3000, 1448, 34, 16, 0]));
    }

    #[test]
    fn receiver_has_to_take_what_the_header_leaves_to_it() {
        for (flags, gso_type, needed) in [
            (0, 0, Some(Offloads::empty())),
            (2, 0, Some(Offloads::empty())),
            (1, 0, Some(Offloads::CSUM)),
            (1, GSO_TCPV6 | GSO_ECN, Some(Offloads::CSUM | Offloads::TSO6 | Offloads::ECN)),
            (1, 2, None),
        ] {
            assert_eq!(required(&header(flags, gso_type, [0; 5])), needed, "{flags} {gso_type}");
        }
    }

    #[test]
    fn a_driver_without_checksum_offload_hears_nothing_of_checksums() {
        let raw = header(2, 0, [0, 0, 0, 0, 0]);
        assert_eq!(received(raw, Offloads::empty(), 3), header(0, 0, [0, 0, 0, 0, 3]));
        assert_eq!(received(raw, Offloads::CSUM, 1), header(2, 0, [0, 0, 0, 0, 1]));
    }
}
