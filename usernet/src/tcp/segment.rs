//! Segments on the wire: what the guest's say, and headers of ours.

use smoltcp::wire::{TcpOption, TcpPacket, TcpSeqNumber};

use super::seq::Seq;
use crate::flow::Flow;

/// Bytes of a header without options.
pub(super) const HEADER: usize = 20;
/// Bytes of the options of a SYN: MSS and window scale.
const SYN_OPTIONS: usize = 8;
/// RFC 7323 §2.3.
const LARGEST_SHIFT: u8 = 14;

/// A segment of the guest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<'a> {
    pub(super) seq: Seq,
    /// The acknowledgement, if there is one.
    pub(super) ack: Option<Seq>,
    /// Unscaled.
    pub(super) window: u16,
    pub(super) syn: bool,
    pub(super) fin: bool,
    pub(super) rst: bool,
    /// Of a SYN.
    pub(super) mss: Option<u16>,
    /// Of a SYN.
    pub(super) shift: Option<u8>,
    pub(super) payload: &'a [u8],
}

impl<'a> Segment<'a> {
    /// `None`: its lengths contradict each other.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let packet = TcpPacket::new_checked(bytes).ok()?;
        let mut segment = Segment {
            seq: seq(packet.seq_number()),
            ack: packet.ack().then(|| seq(packet.ack_number())),
            window: packet.window_len(),
            syn: packet.syn(),
            fin: packet.fin(),
            rst: packet.rst(),
            mss: None,
            shift: None,
            payload: bytes.get(usize::from(packet.header_len())..)?,
        };
        if segment.syn {
            segment.parse_options(bytes.get(HEADER..usize::from(packet.header_len()))?);
        }
        Some(segment)
    }

    /// What cannot be read ends the options.
    fn parse_options(&mut self, mut options: &[u8]) {
        while !options.is_empty() {
            match TcpOption::parse(options) {
                Ok((_, TcpOption::EndOfList)) | Err(_) => break,
                Ok((rest, option)) => {
                    match option {
                        TcpOption::MaxSegmentSize(size) => self.mss = Some(size),
                        TcpOption::WindowScale(shift) => self.shift = Some(shift.min(LARGEST_SHIFT)),
                        _ => {}
                    }
                    options = rest;
                }
            }
        }
    }

    /// How much of the sequence space it takes.
    pub(super) fn len(&self) -> usize {
        self.payload.len() + usize::from(self.syn) + usize::from(self.fin)
    }
}

#[expect(clippy::cast_sign_loss, reason = "the crate keeps the 32 bits signed")]
fn seq(number: TcpSeqNumber) -> Seq {
    Seq(number.0 as u32)
}

/// Options of our SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SynOptions {
    pub(super) mss: u16,
    pub(super) shift: Option<u8>,
}

/// A header of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flow: Flow,
    pub(super) seq: Seq,
    pub(super) ack: Option<Seq>,
    pub(super) window: u16,
    pub(super) syn: Option<SynOptions>,
    pub(super) fin: bool,
    pub(super) rst: bool,
    pub(super) push: bool,
}

impl Header {
    /// A header that only acknowledges.
    pub(super) fn bare(flow: Flow, seq: Seq, ack: Option<Seq>) -> Self {
        Header { flow, seq, ack, window: 0, syn: None, fin: false, rst: false, push: false }
    }

    /// The answer to a segment that belongs to no connection (RFC 9293 §3.10.7.1), if it gets one.
    pub(super) fn reset(flow: Flow, segment: &Segment<'_>) -> Option<Self> {
        let (seq, ack) = match segment.ack {
            _ if segment.rst => return None,
            Some(ack) => (ack, None),
            None => (Seq(0), Some(segment.seq + segment.len())),
        };
        Some(Header { rst: true, ..Header::bare(flow, seq, ack) })
    }

    pub(super) fn len(&self) -> usize {
        HEADER + if self.syn.is_some() { SYN_OPTIONS } else { 0 }
    }

    /// Writes it, with a checksum of 0. `None`: `room` is too short.
    pub(super) fn write(&self, room: &mut [u8]) -> Option<usize> {
        let len = self.len();
        let room = room.get_mut(..len)?;
        room.fill(0);
        let mut packet = TcpPacket::new_unchecked(&mut *room);
        packet.set_src_port(self.flow.remote.port());
        packet.set_dst_port(self.flow.guest.port());
        packet.set_seq_number(TcpSeqNumber(self.seq.0.cast_signed()));
        packet.set_ack_number(TcpSeqNumber(self.ack.map_or(0, |ack| ack.0.cast_signed())));
        packet.set_header_len(u8::try_from(len).ok()?);
        packet.set_ack(self.ack.is_some());
        packet.set_syn(self.syn.is_some());
        packet.set_fin(self.fin);
        packet.set_rst(self.rst);
        packet.set_psh(self.push);
        packet.set_window_len(self.window);
        if let Some(options) = self.syn {
            let rest = TcpOption::MaxSegmentSize(options.mss).emit(packet.options_mut());
            // Without a shift the room stays 0, which ends the options.
            if let Some(shift) = options.shift {
                let rest = TcpOption::WindowScale(shift).emit(rest);
                TcpOption::NoOperation.emit(rest);
            }
        }
        Some(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        Flow { guest: "10.0.2.15:4000".parse().unwrap(), remote: "93.184.216.34:80".parse().unwrap() }
    }

    #[test]
    fn header_is_read_back() {
        let syn = Header {
            syn: Some(SynOptions { mss: 1460, shift: Some(7) }),
            window: 65_000,
            ..Header::bare(flow(), Seq(0xffff_fff0), Some(Seq(5)))
        };
        let mut room = [0xee; 64];
        let len = syn.write(&mut room).unwrap();
        let seen = Segment::parse(&room[..len]).unwrap();
        assert_eq!((seen.seq, seen.ack, seen.window), (Seq(0xffff_fff0), Some(Seq(5)), 65_000));
        assert_eq!((seen.mss, seen.shift, seen.syn, seen.len()), (Some(1460), Some(7), true, 1));
        assert_eq!(
            (u16::from_be_bytes([room[0], room[1]]), u16::from_be_bytes([room[2], room[3]])),
            (80, 4000)
        );
        assert!(syn.write(&mut room[..27]).is_none());
    }

    #[test]
    fn contradicting_lengths_are_no_segment() {
        let mut room = [0; 40];
        let len = Header::bare(flow(), Seq(1), None).write(&mut room).unwrap();
        for cut in 0..len {
            assert!(Segment::parse(&room[..cut]).is_none(), "{cut}");
        }
        // A header longer than the segment, and one shorter than a header.
        for words in [11, 4, 0] {
            room[12] = words << 4;
            assert!(Segment::parse(&room).is_none(), "{words}");
        }
    }

    #[test]
    fn junk_options_end_the_options() {
        let mut room = [0; 28];
        let syn =
            Header { syn: Some(SynOptions { mss: 1460, shift: None }), ..Header::bare(flow(), Seq(1), None) };
        syn.write(&mut room).unwrap();
        room[24..28].copy_from_slice(&[3, 0, 200, 1]);
        let seen = Segment::parse(&room).unwrap();
        assert_eq!((seen.mss, seen.shift), (Some(1460), None));
        room[24..28].copy_from_slice(&[3, 3, 200, 0]);
        assert_eq!(Segment::parse(&room).unwrap().shift, Some(LARGEST_SHIFT));
    }

    #[test]
    fn reset_answers_what_was_sent() {
        let mut room = [0; 20];
        let probe = |ack, rst, room: &mut [u8; 20]| {
            Header { rst, ..Header::bare(flow(), Seq(7), ack) }.write(room).unwrap();
            Header::reset(flow(), &Segment::parse(room).unwrap())
        };
        let to_ack = probe(Some(Seq(99)), false, &mut room).unwrap();
        assert_eq!((to_ack.seq, to_ack.ack, to_ack.rst), (Seq(99), None, true));
        let to_data = probe(None, false, &mut room).unwrap();
        assert_eq!((to_data.seq, to_data.ack), (Seq(0), Some(Seq(7))));
        assert!(probe(Some(Seq(99)), true, &mut room).is_none(), "a reset is not answered");
    }
}
