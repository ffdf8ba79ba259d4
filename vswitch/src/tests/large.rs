//! Large packets and checksums that a port leaves to the network.

use proptest::prelude::*;

use super::*;
use crate::{DropReason, Impairment};

/// A large packet of TCP with right headers, partial checksum and CWR, PSH, FIN set.
#[derive(Debug, Clone)]
pub(super) struct Large {
    v6: bool,
    /// Of the frame: VLANs.
    tags: Vec<u16>,
    /// An extension header of IPv6.
    extension: bool,
    payload: Vec<u8>,
    size: u16,
    ecn: bool,
}

/// A sum as slow as RFC 1071 says it.
fn sum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let words = bytes.chunks(2);
    let sum: u64 = words.map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0))).sum();
    (0..4).fold(sum, |sum, _| (sum & 0xffff) + (sum >> 16)) as u16
}

fn be(number: usize) -> [u8; 2] {
    u16::try_from(number).unwrap().to_be_bytes()
}

impl Large {
    pub(super) fn new(v6: bool, len: usize) -> Self {
        let payload = (0..len).map(|index| (index * 7 + index / 256) as u8).collect();
        Large { v6, tags: Vec::new(), extension: false, payload, size: 1448, ecn: false }
    }

    fn ip_at(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    fn tcp_at(&self) -> usize {
        self.ip_at() + if !self.v6 { 20 } else { 40 + if self.extension { 16 } else { 0 } }
    }

    pub(super) fn frame(&self) -> Vec<u8> {
        let tcp = 32 + self.payload.len();
        let extension: &[u8] =
            if self.v6 && self.extension { &[6, 1, 1, 4, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0] } else { &[] };
        let mut bytes = frame(mac(2), mac(1), &self.tags, &[]);
        bytes.truncate(bytes.len() - 2);
        let addresses: Vec<u8> =
            if self.v6 { (0..32).map(|byte| byte | 0x20).collect() } else { vec![10, 0, 0, 1, 10, 0, 0, 2] };
        if self.v6 {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend(be(extension.len() + tcp));
            bytes.extend([if extension.is_empty() { 6 } else { 60 }, 64]);
        } else {
            bytes.extend([8, 0, 0x45, 0]);
            bytes.extend(be(20 + tcp));
            bytes.extend([0xff, 0xfe, 0x40, 0, 64, 6, 0, 0]);
        }
        bytes.extend(&addresses);
        bytes.extend(extension);
        bytes.extend([0x12, 0x34, 0, 80, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 9, 0x80, 0b1001_1001, 1, 0]);
        bytes.extend(sum(&[&addresses, &[0, 6], &be(tcp)]).to_be_bytes());
        bytes.extend([0, 0, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
        bytes.extend(&self.payload);
        bytes
    }

    pub(super) fn header(&self) -> [u8; HEADER_LEN] {
        let kind = if self.v6 { 4 } else { 1 } | if self.ecn { 0x80 } else { 0 };
        let [s0, s1] = self.size.to_le_bytes();
        let [h0, h1] = u16::try_from(self.tcp_at() + 32).unwrap().to_le_bytes();
        let [c0, c1] = u16::try_from(self.tcp_at()).unwrap().to_le_bytes();
        [1, kind, h0, h1, s0, s1, c0, c1, 16, 0, 0, 0]
    }

    /// Checks that frames are the segments of this packet behind `tags`, and puts their payload together.
    fn check(&self, frames: &[(PortId, [u8; HEADER_LEN], Vec<u8>)], tags: &[u16], partial: bool) {
        let there = Large { tags: tags.to_vec(), ..self.clone() };
        let (ip, tcp) = (there.ip_at(), there.tcp_at());
        let mut payload: Vec<u8> = Vec::new();
        let count = frames.len();
        assert_eq!(count, self.payload.len().div_ceil(self.size.into()).max(1));
        for (index, (_, header, bytes)) in frames.iter().enumerate() {
            let segment = &bytes[tcp..];
            let pseudo = if self.v6 { &bytes[ip + 8..ip + 40] } else { &bytes[ip + 12..ip + 20] };
            let pseudo = [pseudo, &[0, 6], &be(segment.len())];
            assert_eq!(bytes[..12], frame(mac(2), mac(1), &[], &[])[..12]);
            let tag: Vec<_> =
                tags.iter().flat_map(|tag| [&[0x81, 0], &tag.to_be_bytes()[..]].concat()).collect();
            assert_eq!(bytes[12..ip - 2], tag);
            if self.v6 {
                assert_eq!(bytes[ip + 4..ip + 6], be(bytes.len() - ip - 40));
            } else {
                assert_eq!(bytes[ip + 2..ip + 4], be(bytes.len() - ip));
                assert_eq!(bytes[ip + 4..ip + 6], 0xfffeu16.wrapping_add(index as u16).to_be_bytes());
                assert_eq!(sum(&[&bytes[ip..ip + 20]]), 0xffff, "IPv4's checksum");
            }
            if partial {
                let [c0, c1] = u16::try_from(tcp).unwrap().to_le_bytes();
                assert_eq!(*header, [1, 0, 0, 0, 0, 0, c0, c1, 16, 0, 0, 0]);
                assert_eq!(segment[16..18], sum(&pseudo).to_be_bytes());
            } else {
                assert_eq!(*header, PLAIN);
                assert_eq!(sum(&[pseudo[0], pseudo[1], pseudo[2], segment]), 0xffff, "TCP's checksum");
            }
            let sequence = u32::from_be_bytes(segment[4..8].try_into().unwrap());
            assert_eq!(sequence, 0xffff_ff00u32.wrapping_add(payload.len() as u32));
            let flags =
                0b0001_0000 | if index == 0 { 0x80 } else { 0 } | if index + 1 == count { 9 } else { 0 };
            assert_eq!(segment[13], flags, "segment {index}");
            assert_eq!(segment[18..32], self.frame()[self.tcp_at() + 18..][..14]);
            payload.extend(&segment[32..]);
        }
        assert!(payload == self.payload, "the payload is another one");
    }
}

fn all() -> Accepts {
    Accepts { checksum: true, tso4: true, tso6: true, ecn: true }
}

/// A switch with two ports.
fn two(from: PortConfig, to: PortConfig) -> (Lab, PortId, PortId) {
    let mut lab = Lab::new();
    let (a, b) = (lab.port(from), lab.port(to));
    (lab, a, b)
}

fn trunk() -> PortConfig {
    PortConfig { vlan: VlanMode::trunk([vlan(2)]), ..PortConfig::default() }
}

#[test]
fn large_packets_are_cut_where_a_port_does_not_take_them() {
    for v6 in [false, true] {
        for extension in [false, true] {
            for (checksum, len) in [(false, 10_000), (true, 10_000), (false, 1448 * 3), (false, 1), (true, 0)]
            {
                let (mut lab, a, _) = two(access(2), access(2));
                lab.outside.accepts = Accepts { checksum, ..Accepts::default() };
                let large = Large { extension, ..Large::new(v6, len) };
                let frames = lab.send_large(a, &large.header(), &large.frame());
                large.check(&frames, &[], checksum);
            }
        }
    }
}

#[test]
fn large_packets_get_and_lose_tags_before_they_are_cut() {
    for v6 in [false, true] {
        for checksum in [false, true] {
            let large = Large::new(v6, 5000);
            let (mut lab, a, t) = two(access(2), trunk());
            lab.outside.accepts.checksum = checksum;
            large.check(&lab.send_large(a, &large.header(), &large.frame()), &[2], checksum);
            let tagged = Large { tags: vec![2], ..large.clone() };
            large.check(&lab.send_large(t, &tagged.header(), &tagged.frame()), &[], checksum);
            // A tag behind the first one is payload.
            let twice = Large { tags: vec![2, 9], ..large.clone() };
            large.check(&lab.send_large(t, &twice.header(), &twice.frame()), &[9], checksum);
        }
    }
}

#[test]
fn large_packets_pass_as_they_are_where_a_port_takes_them() {
    for v6 in [false, true] {
        let large = Large::new(v6, 60_000);
        let (mut lab, a, t) = two(access(2), trunk());
        lab.outside.accepts = all();
        let tagged = Large { tags: vec![2], ..large.clone() };
        let sent = lab.send_large(a, &large.header(), &large.frame());
        assert_eq!(sent, [(t, tagged.header(), tagged.frame())]);
        let sent = lab.send_large(t, &tagged.header(), &tagged.frame());
        assert_eq!(sent, [(a, large.header(), large.frame())]);
        // Not by a port that takes another kind.
        lab.outside.accepts = Accepts { tso4: v6, tso6: !v6, ..all() };
        tagged.check(&lab.send_large(a, &large.header(), &large.frame()), &[2], true);
        lab.outside.accepts = Accepts { ecn: false, ..all() };
        assert_eq!(lab.send_large(a, &large.header(), &large.frame()).len(), 1);
        let ecn = Large { ecn: true, ..large };
        ecn.check(&lab.send_large(a, &ecn.header(), &ecn.frame()), &[2], true);
        lab.outside.accepts = Accepts { checksum: false, ..all() };
        ecn.check(&lab.send_large(a, &ecn.header(), &ecn.frame()), &[2], false);
    }
}

#[test]
fn loss_and_rate_count_the_frames_that_a_wire_would_carry_and_delay_does_not() {
    let large = Large::new(false, 14_480);
    for (impairment, most) in [
        (Impairment { loss_ppm: 500_000, ..Impairment::default() }, 9),
        (Impairment { rate: std::num::NonZeroU64::new(1_000_000_000), ..Impairment::default() }, 10),
        (Impairment { delay: Duration::from_millis(1), ..Impairment::default() }, 1),
    ] {
        for (from, to) in [
            (PortConfig { from_port: impairment, ..access(2) }, trunk()),
            (access(2), PortConfig { to_port: impairment, ..trunk() }),
        ] {
            let (mut lab, a, t) = two(from, to);
            lab.outside.accepts = all();
            lab.switch.input(a, &large.header(), &large.frame(), lab.now, &mut lab.outside);
            let passed = std::mem::take(&mut lab.outside.sent).len() + lab.wait(Duration::from_secs(1)).len();
            assert!((1..=most).contains(&passed) && (most < 10 || passed == 10), "{impairment:?} {passed}");
            let [from, to] = [a, t].map(|port| lab.switch.counters(port).unwrap());
            let lost = from.from_port.dropped(DropReason::Loss) + to.to_port.dropped(DropReason::Loss);
            assert_eq!(lost > 0, impairment.loss_ppm > 0);
        }
    }
}

#[test]
fn segments_that_waited_are_complete_where_they_leave() {
    let rate = Impairment { rate: std::num::NonZeroU64::new(1_000_000_000), ..Impairment::default() };
    for v6 in [false, true] {
        let large = Large::new(v6, 10_000);
        let (mut lab, a, _) =
            two(PortConfig { from_port: rate, ..access(2) }, PortConfig { to_port: rate, ..trunk() });
        lab.switch.input(a, &large.header(), &large.frame(), lab.now, &mut lab.outside);
        lab.now += Duration::from_secs(1);
        lab.switch.timeout(lab.now, &mut lab.outside);
        large.check(&std::mem::take(&mut lab.outside.sent), &[2], false);
    }
}

/// A header that leaves a checksum.
fn partial(start: u16, offset: u16) -> [u8; HEADER_LEN] {
    let ([c0, c1], [o0, o1]) = (start.to_le_bytes(), offset.to_le_bytes());
    [1, 0, 0, 0, 0, 0, c0, c1, o0, o1, 0, 0]
}

#[test]
fn a_checksum_is_completed_where_a_port_does_not_take_it_partial() {
    let bytes = frame(mac(2), mac(1), &[], &[1, 2, 3, 4, 0xab, 0xcd, 7, 8, 9]);
    let tagged = |bytes: &[u8]| [&bytes[..12], &[0x81, 0, 0, 2], &bytes[12..]].concat();
    let (mut lab, a, t) = two(access(2), trunk());
    let mut right = bytes.clone();
    right[18..20].copy_from_slice(&(!sum(&[&bytes[16..]])).to_be_bytes());
    assert_eq!(lab.send_large(a, &partial(16, 2), &bytes), [(t, PLAIN, tagged(&right))]);
    assert_eq!(lab.send_large(t, &partial(20, 2), &tagged(&bytes)), [(a, PLAIN, right)]);
    lab.outside.accepts.checksum = true;
    assert_eq!(lab.send_large(a, &partial(16, 2), &bytes), [(t, partial(20, 2), tagged(&bytes))]);
    assert_eq!(lab.send_large(t, &partial(20, 2), &tagged(&bytes)), [(a, partial(16, 2), bytes)]);
}

#[test]
fn a_checksum_lies_behind_the_ethernet_header_and_in_the_frame() {
    let (plain, tagged) = (frame(mac(2), mac(1), &[], &[0; 8]), frame(mac(2), mac(1), &[2], &[0; 8]));
    let (mut lab, a, t) = two(access(2), trunk());
    for (from, bytes, first) in [(a, &plain, 14), (t, &tagged, 18)] {
        let mut passes = |start, offset| !lab.send_large(from, &partial(start, offset), bytes).is_empty();
        assert!(passes(first, 0) && passes(first, 6) && passes(first + 6, 0));
        assert!(!passes(first - 1, 4) && !passes(0, 20) && !passes(first, 7) && !passes(first + 7, 0));
        assert!(!passes(0xffff, 0xffff) && !passes(first, 0xffff));
    }
}

#[test]
fn a_checksum_of_zero_is_the_other_zero_since_udp_has_none_otherwise() {
    let bytes = frame(mac(2), mac(1), &[], &[0xff, 0xff, 0, 0]);
    let (mut lab, a, b) = two(access(2), access(2));
    let right = frame(mac(2), mac(1), &[], &[0xff, 0xff, 0xff, 0xff]);
    assert_eq!(lab.send_large(a, &partial(14, 2), &bytes), [(b, PLAIN, right)]);
}

/// Changes a virtio header or its frame.
type Change<'a> = &'a dyn Fn(&mut [u8; HEADER_LEN], &mut Vec<u8>);

#[test]
fn a_header_that_does_not_fit_its_frame_drops_it() {
    let large = Large::new(false, 5000);
    let changed = |change: Change| {
        let (mut header, mut bytes) = (large.header(), large.frame());
        change(&mut header, &mut bytes);
        (header, bytes)
    };
    let cases: &[(&str, Change)] = &[
        ("no checksum", &|header, _| header[0] = 0),
        ("no size", &|header, _| header[4..6].fill(0)),
        ("a segment a byte", &|header, _| header[4..6].copy_from_slice(&[1, 0])),
        ("the other family", &|header, _| header[1] = 4),
        ("fragmentation of UDP", &|header, _| header[1] = 3),
        ("segmentation of UDP", &|header, _| header[1] = 5),
        ("another checksum", &|header, _| header[8] = 6),
        ("another start", &|header, _| header[6] += 2),
        ("a start beyond the frame", &|header, _| header[6..8].fill(0xff)),
        ("a start in the addresses", &|header, _| header[6] = 2),
        ("not IP", &|_, bytes| bytes[12] = 9),
        ("another version", &|_, bytes| bytes[14] = 0x65),
        ("a short IP header", &|_, bytes| bytes[14] = 0x44),
        ("a long IP header", &|_, bytes| bytes[14] = 0x4f),
        ("a length less", &|_, bytes| bytes[17] -= 1),
        ("a byte too few", &|_, bytes| bytes.truncate(bytes.len() - 1)),
        ("a byte too many", &|_, bytes| bytes.push(0)),
        ("a fragment", &|_, bytes| bytes[21] = 1),
        ("more fragments", &|_, bytes| bytes[20] = 0x20),
        ("not TCP", &|_, bytes| bytes[23] = 17),
        ("a short TCP header", &|_, bytes| bytes[46] = 0x40),
        ("only the addresses", &|_, bytes| bytes.truncate(14)),
    ];
    for (name, change) in cases {
        let (mut lab, a, _) = two(access(2), access(2));
        lab.outside.accepts = all();
        let (header, bytes) = changed(*change);
        assert_eq!(lab.send_large(a, &header, &bytes), [], "{name}");
        assert_eq!(lab.switch.counters(a).unwrap().from_port.dropped(DropReason::Offload), 1, "{name}");
    }
}

#[test]
fn headers_longer_than_there_is_room_for_drop_a_packet() {
    for (more, frames) in [(16, 1), (25, 0)] {
        let large = Large { extension: true, ..Large::new(true, 100) };
        let (mut header, mut bytes) = (large.header(), large.frame());
        // More padding in the extension header, in units of 8 bytes.
        let end = large.tcp_at();
        bytes.splice(end..end, vec![0; 8 * more]);
        bytes[14 + 41] += more as u8;
        let len = bytes.len() - 14 - 40;
        bytes[18..20].copy_from_slice(&be(len));
        header[6..8].copy_from_slice(&u16::try_from(end + 8 * more).unwrap().to_le_bytes());
        let (mut lab, a, _) = two(access(2), access(2));
        assert_eq!(lab.send_large(a, &header, &bytes).len(), frames, "{more}");
        let dropped = lab.switch.counters(a).unwrap().from_port.dropped(DropReason::Offload);
        assert_eq!(frames + dropped as usize, 1);
    }
}

#[test]
fn a_tcp_header_longer_than_the_packet_drops_it() {
    let mut large = Large::new(true, 0);
    large.size = 1;
    let mut bytes = large.frame();
    bytes[large.tcp_at() + 12] = 0xf0;
    let (mut lab, a, _) = two(access(2), access(2));
    assert_eq!(lab.send_large(a, &large.header(), &bytes), []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_large_packet_is_cut_into_segments_that_make_it_again(
        v6 in any::<bool>(),
        extension in any::<bool>(),
        ecn in any::<bool>(),
        checksum in any::<bool>(),
        inner in 0usize..3,
        to_trunk in any::<bool>(),
        len in 0usize..20_000,
        size in 128u16..9000,
    ) {
        let (mut lab, t, _) = two(trunk(), if to_trunk { trunk() } else { access(2) });
        lab.outside.accepts.checksum = checksum;
        let mut tags = vec![7; inner];
        tags.insert(0, 2);
        let large = Large { extension, ecn, size, tags, ..Large::new(v6, len) };
        let frames = lab.send_large(t, &large.header(), &large.frame());
        large.check(&frames, if to_trunk { &large.tags } else { &large.tags[1..] }, checksum);
    }

    #[test]
    fn a_header_and_a_frame_changed_anywhere_do_no_harm(
        v6 in any::<bool>(),
        tagged in any::<bool>(),
        changes in proptest::collection::vec((0usize..120, any::<u8>()), 0..4),
        cut in 0usize..400,
    ) {
        let (mut lab, t, _) = two(trunk(), access(2));
        let large = Large { tags: vec![2; usize::from(tagged)], size: 100, ..Large::new(v6, 300) };
        let mut all = [&large.header()[..], &large.frame()].concat();
        changes.into_iter().for_each(|(at, value)| all[at] = value);
        all.truncate((all.len() - cut.min(300)).max(HEADER_LEN));
        let (header, bytes) = all.split_first_chunk().unwrap();
        let frames = lab.send_large(t, header, bytes);
        let out: usize = frames.iter().map(|(.., frame)| frame.len()).sum();
        // Each segment has its own headers, and nothing else is new.
        prop_assert!(out <= bytes.len() + frames.len() * 260);
        prop_assert!(frames.iter().all(|(_, header, _)| *header == PLAIN));
        prop_assert!(frames.len() <= 512);
    }
}
