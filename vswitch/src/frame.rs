//! Reads a frame's Ethernet header and its VLAN tag (IEEE 802.1Q §9), and changes the tag on the way.

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Bytes of the two addresses: a tag comes behind them.
pub(crate) const ADDRESSES: usize = 12;
/// Bytes of a tag.
pub(crate) const TAG: usize = 4;
/// The largest IP packet.
const LONGEST_PACKET: usize = 65535;

/// EtherType of a tag.
pub(crate) const TPID: [u8; 2] = [0x81, 0x00];
/// Bits of a tag that name the VLAN.
const VID: u16 = 0xfff;

/// A frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) destination: [u8; 6],
    pub(crate) source: [u8; 6],
    /// Priority and VLAN of its outermost tag.
    pub(crate) tci: Option<u16>,
    /// A second tag is behind the first one.
    pub(crate) tagged_twice: bool,
}

impl<'a> Frame<'a> {
    /// Reads a frame: one that has no station's address as its source, or a length that no frame has, is none.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<ETHERNET>()?;
        let [destination @ .., _, _, _, _, _, _, t0, t1] = *header;
        let [_, _, _, _, _, _, source @ .., _, _] = *header;
        let tagged = [t0, t1] == TPID;
        let most = ETHERNET + LONGEST_PACKET + if tagged { TAG } else { 0 };
        let group = source.first().is_none_or(|first| first & 1 != 0);
        if bytes.len() > most || group || source == [0; 6] {
            return None;
        }
        let (tci, tagged_twice) = match (tagged, rest) {
            (false, _) => (None, false),
            (true, [high, low, inner @ ..]) => {
                let inner = inner.first_chunk::<2>()?;
                (Some(u16::from_be_bytes([*high, *low])), *inner == TPID)
            }
            (true, _) => return None,
        };
        Some(Frame { bytes, destination, source, tci, tagged_twice })
    }

    /// To a group of stations, or to all.
    pub(crate) fn is_group(&self) -> bool {
        self.destination.first().is_some_and(|first| first & 1 != 0)
    }

    /// To an address that no switch forwards (IEEE 802.1Q, table 8-1).
    pub(crate) fn is_reserved(&self) -> bool {
        matches!(self.destination, [0x01, 0x80, 0xc2, 0x00, 0x00, 0x00..=0x0f])
    }

    /// The VLAN that its tag names: 0 is none, a tag with a priority only.
    pub(crate) fn vid(&self) -> Option<u16> {
        self.tci.map(|tci| tci & VID)
    }

    /// What gives the frame a tag of VLAN `vid`, with the priority that it has.
    pub(crate) fn with_tag(&self, vid: u16) -> Edit {
        let tag = |tci: u16| {
            let ([a, b], [c, d]) = (TPID, tci.to_be_bytes());
            [a, b, c, d]
        };
        match self.tci {
            None => Edit::Push(tag(vid)),
            Some(tci) if tci & VID == vid => Edit::Keep,
            Some(tci) => Edit::Replace(tag(tci & !VID | vid)),
        }
    }

    /// What takes the frame's tag off.
    pub(crate) fn without_tag(&self) -> Edit {
        if self.tci.is_some() { Edit::Pop } else { Edit::Keep }
    }
}

/// A change of a frame's outermost tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edit {
    /// None.
    Keep,
    /// Its tag goes.
    Pop,
    /// A tag comes.
    Push([u8; TAG]),
    /// Another tag.
    Replace([u8; TAG]),
}

impl Edit {
    /// The frame in parts: what is in front of the tag, the tag, and what is behind it.
    pub(crate) fn parts<'a>(&'a self, frame: &'a [u8]) -> [&'a [u8]; 3] {
        let behind = |at: usize| frame.get(at..).unwrap_or_default();
        let addresses = frame.get(..ADDRESSES).unwrap_or_default();
        match self {
            Edit::Keep => [frame, &[], &[]],
            Edit::Pop => [addresses, &[], behind(ADDRESSES + TAG)],
            Edit::Push(tag) => [addresses, tag, behind(ADDRESSES)],
            Edit::Replace(tag) => [addresses, tag, behind(ADDRESSES + TAG)],
        }
    }

    /// Where a byte behind the tag is after the change.
    pub(crate) fn moved(&self, at: usize) -> usize {
        match self {
            Edit::Keep | Edit::Replace(_) => at,
            Edit::Pop => at.saturating_sub(TAG),
            Edit::Push(_) => at + TAG,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(rest: &[u8]) -> Vec<u8> {
        [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], rest].concat()
    }

    #[test]
    fn a_frame_has_a_station_as_its_source_and_a_length_that_frames_have() {
        let plain = frame(&[8, 0]);
        assert_eq!(Frame::parse(&plain).unwrap().source, [2, 0, 0, 0, 0, 2]);
        assert!(Frame::parse(&plain[..13]).is_none());
        for source in [[0; 6], [0xff; 6], [1, 0, 0, 0, 0, 2]] {
            let mut bad = plain.clone();
            bad[6..12].copy_from_slice(&source);
            assert!(Frame::parse(&bad).is_none());
        }
        for len in 0..6 {
            assert_eq!(Frame::parse(&frame(&[0x81, 0, 0x20, 2, 8, 0][..len])).is_some(), len == 6, "{len}");
        }
        let longest = [frame(&[8, 0]), vec![0; 65535]].concat();
        assert!(Frame::parse(&longest).is_some());
        assert!(Frame::parse(&[longest, vec![0]].concat()).is_none());
        let longest = [frame(&[0x81, 0, 0, 2, 8, 0]), vec![0; 65535]].concat();
        assert!(Frame::parse(&longest).is_some());
        assert!(Frame::parse(&[longest, vec![0]].concat()).is_none());
    }

    #[test]
    fn only_the_sixteen_reserved_addresses_are_reserved() {
        let to = |last: [u8; 2]| {
            let mut bytes = frame(&[8, 0]);
            bytes[..4].copy_from_slice(&[1, 0x80, 0xc2, 0]);
            bytes[4..6].copy_from_slice(&last);
            Frame::parse(&bytes).unwrap().is_reserved()
        };
        assert!((0..16).all(|last| to([0, last])));
        assert!(!to([0, 16]) && !to([1, 0]));
    }

    #[test]
    fn tags_come_go_and_change_and_the_rest_stays() {
        let bytes = frame(&[8, 0, 42]);
        let plain = Frame::parse(&bytes).unwrap();
        let tagged_bytes = frame(&[0x81, 0, 0xa0, 2, 8, 0, 42]);
        let tagged = Frame::parse(&tagged_bytes).unwrap();
        assert_eq!((plain.vid(), tagged.vid()), (None, Some(2)));
        let done = |frame: &Frame<'_>, edit: Edit| edit.parts(frame.bytes).concat();
        assert_eq!(plain.without_tag(), Edit::Keep);
        assert_eq!(tagged.with_tag(2), Edit::Keep);
        assert_eq!(done(&plain, Edit::Keep), bytes);
        assert_eq!(done(&tagged, tagged.without_tag()), bytes);
        assert_eq!(done(&plain, plain.with_tag(2)), frame(&[0x81, 0, 0, 2, 8, 0, 42]));
        assert_eq!(done(&tagged, tagged.with_tag(3)), frame(&[0x81, 0, 0xa0, 3, 8, 0, 42]));
        for (frame, edit) in
            [(&plain, plain.with_tag(2)), (&tagged, Edit::Pop), (&tagged, tagged.with_tag(3))]
        {
            assert_eq!(done(frame, edit)[edit.moved(bytes_of(frame) - 1)], 42);
        }
    }

    fn bytes_of(frame: &Frame<'_>) -> usize {
        frame.bytes.len()
    }
}
