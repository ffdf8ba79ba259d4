//! Bytes towards the guest: what it has acknowledged, what is on its way, what its window lets through.
//!
//! The wire to a guest of its own is a queue in memory, so there is no congestion to control: only what the guest dropped is sent
//! again, one hole after the other (RFC 6582 without its window). Several guests are behind a switch, which may be full.

use super::congestion::Congestion;
use super::ring::Ring;
use super::seq::Seq;

/// Duplicate acknowledgements that mean a loss (RFC 5681 §3.2).
const DUPLICATES: u8 = 3;
/// Payload of a segment if the guest names none (RFC 9293 §3.7.1), and the least that is believed.
pub(super) const DEFAULT_MSS: u16 = 536;
const LEAST_MSS: u16 = 64;

/// What an acknowledgement says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Acked {
    /// Of something that was never sent.
    Beyond,
    /// Less than one before.
    Old,
    /// Nothing new.
    Same,
    /// Something new.
    More,
}

/// A piece of the stream that goes into one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) seq: Seq,
    /// In the ring.
    pub(super) offset: usize,
    pub(super) len: usize,
    pub(super) fin: bool,
    /// No byte follows it now.
    pub(super) last: bool,
}

/// The stream towards the guest.
#[derive(Debug)]
pub(super) struct Sender {
    /// The oldest number that is not acknowledged: that of the ring's first byte, once our SYN is.
    una: Seq,
    /// The next number that is new.
    nxt: Seq,
    /// What the guest takes from `una` on.
    window: usize,
    /// Sequence number and acknowledgement that `window` came with: an older segment does not change it.
    window_at: (Seq, Seq),
    shift: u8,
    mss: u16,
    pub(super) ring: Ring,
    /// The number of our FIN, once the host's stream has ended.
    end: Option<Seq>,
    duplicates: u8,
    recovery: Recovery,
    congestion: Option<Congestion>,
}

/// Sending again.
#[derive(Debug, Clone, Copy)]
struct Recovery {
    /// A hole is known and the guest has not acknowledged all up to `until`.
    active: bool,
    /// What was on its way when the first hole was seen.
    until: Seq,
    /// Up to here it was sent again: an acknowledgement of less says nothing about the next hole.
    resent: Seq,
    /// `una` is to be sent again now.
    due: bool,
}

impl Sender {
    /// `first` is the number of our SYN. `shared`: the wire is one that may be full.
    pub(super) fn new(first: Seq, shared: bool) -> Self {
        Sender {
            una: first,
            nxt: first,
            window: 0,
            window_at: (Seq(0), first),
            shift: 0,
            mss: DEFAULT_MSS,
            ring: Ring::default(),
            end: None,
            duplicates: 0,
            recovery: Recovery { active: false, until: first, resent: first, due: false },
            congestion: shared.then(Congestion::new),
        }
    }

    /// What the guest's SYN says.
    pub(super) fn set_options(&mut self, mss: Option<u16>, most: u16, shift: Option<u8>) {
        self.mss = mss.unwrap_or(DEFAULT_MSS).clamp(LEAST_MSS, most.max(LEAST_MSS));
        self.shift = shift.unwrap_or(0);
    }

    /// Payload of a segment.
    pub(super) fn mss(&self) -> u16 {
        self.mss
    }

    pub(super) fn shift(&self) -> u8 {
        self.shift
    }

    pub(super) fn una(&self) -> Seq {
        self.una
    }

    pub(super) fn nxt(&self) -> Seq {
        self.nxt
    }

    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// Sequence numbers on their way, of SYN and FIN too.
    pub(super) fn in_flight(&self) -> usize {
        self.nxt.beyond(self.una)
    }

    /// Bytes that were not sent.
    pub(super) fn unsent(&self) -> usize {
        self.ring.len().saturating_sub(self.in_flight())
    }

    /// Bytes wait, and the window keeps them back.
    pub(super) fn is_stuck(&self) -> bool {
        self.window == 0 && self.unsent() > 0
    }

    /// The stream ends after what is in the ring.
    pub(super) fn finish(&mut self) {
        self.end.get_or_insert(self.una + self.ring.len());
    }

    pub(super) fn is_finished(&self) -> bool {
        self.end.is_some()
    }

    /// The guest has acknowledged all, our FIN too.
    pub(super) fn is_done(&self) -> bool {
        self.end.is_some_and(|end| end.before(self.una))
    }

    /// Our SYN is to be sent, once or again.
    pub(super) fn syn_is_due(&self) -> bool {
        self.in_flight() == 0 || self.recovery.due
    }

    pub(super) fn syn_sent(&mut self) {
        self.nxt = self.una + 1;
        self.recovery.due = false;
    }

    /// Sends `una` again.
    pub(super) fn resend(&mut self) {
        let flight = self.in_flight();
        // More than our SYN or FIN.
        if let Some(congestion) = self.congestion.as_mut().filter(|_| flight > 1) {
            congestion.lost(flight, self.mss.into());
        }
        self.recovery = Recovery { active: true, until: self.nxt, resent: self.una, due: true };
    }

    /// Takes an acknowledgement. `bare`: the segment holds nothing else.
    pub(super) fn acknowledge(&mut self, ack: Seq, bare: bool) -> Acked {
        if self.nxt.before(ack) {
            return Acked::Beyond;
        }
        if ack.before(self.una) {
            return Acked::Old;
        }
        if ack == self.una {
            if bare && self.in_flight() > 0 {
                self.duplicate();
            }
            return Acked::Same;
        }
        let flight = self.in_flight();
        if let Some(congestion) = &mut self.congestion {
            congestion.acknowledged(ack.beyond(self.una), flight, self.mss.into());
        }
        // SYN and FIN are not in the ring, which takes no more off than it has.
        self.ring.consume(ack.beyond(self.una));
        self.una = ack;
        self.duplicates = 0;
        self.recovery.due = false;
        if self.recovery.active {
            if ack.before(self.recovery.until) {
                self.recovery.due = !ack.before(self.recovery.resent);
            } else {
                self.recovery.active = false;
            }
        }
        Acked::More
    }

    fn duplicate(&mut self) {
        self.duplicates = self.duplicates.saturating_add(1);
        if self.duplicates == DUPLICATES && !self.recovery.active && !self.una.before(self.recovery.until) {
            self.resend();
        }
    }

    /// Takes a window, unless `seq` and `ack` say that it is old (RFC 9293 §3.10.7.4). True: the guest takes bytes again after it
    /// took none. `scaled` is false for a SYN.
    pub(super) fn set_window(&mut self, window: u16, seq: Seq, ack: Seq, scaled: bool) -> bool {
        let (at_seq, at_ack) = self.window_at;
        if seq.before(at_seq) || (seq == at_seq && ack.before(at_ack)) {
            return false;
        }
        let was = self.window;
        self.window = usize::from(window) << if scaled { self.shift } else { 0 };
        self.window_at = (seq, ack);
        if self.window != was {
            self.duplicates = 0;
        }
        was == 0 && self.window > 0
    }

    /// Where the guest's numbers begin, for [`Sender::set_window`].
    pub(super) fn begin_window(&mut self, seq: Seq) {
        self.window_at = (seq, self.una);
    }

    /// What comes next, of at most `most` bytes: what is to be sent again before what is new.
    pub(super) fn piece(&self, most: usize) -> Option<Piece> {
        if self.recovery.due {
            let flight = self.in_flight();
            let len = self.ring.len().min(flight).min(most);
            let fin = len < flight && self.end == Some(self.una + len);
            return (len > 0 || fin).then_some(Piece { seq: self.una, offset: 0, len, fin, last: true });
        }
        if self.end.is_some_and(|end| end.before(self.nxt)) {
            return None;
        }
        let offset = self.in_flight();
        let unsent = self.unsent();
        let most_on_way = self.congestion.as_ref().map_or(usize::MAX, Congestion::window);
        let open = unsent.min(self.window.min(most_on_way).saturating_sub(offset));
        // Silly window (RFC 9293 §3.8.6.2.1): no crumbs while something is on its way.
        if open < unsent && (open == 0 || (open < usize::from(self.mss) && offset > 0)) {
            return None;
        }
        let mut len = open.min(most);
        if len < unsent && len > usize::from(self.mss) {
            len -= len % usize::from(self.mss);
        }
        let fin = self.end == Some(self.nxt + len);
        (len > 0 || fin).then_some(Piece { seq: self.nxt, offset, len, fin, last: len == unsent })
    }

    /// The piece was sent.
    pub(super) fn sent(&mut self, piece: Piece) {
        let behind = piece.seq + piece.len + usize::from(piece.fin);
        self.recovery.due = false;
        if self.recovery.active {
            self.recovery.resent = self.recovery.resent.max(behind);
        }
        self.nxt = self.nxt.max(behind);
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::Pool;
    use super::*;

    fn open(bytes: usize, window: u16) -> Sender {
        let mut pool = Pool::new(64 << 20, 1);
        let mut sender = Sender::new(Seq(u32::MAX - 100), false);
        sender.syn_sent();
        sender.set_options(Some(1000), 1460, Some(0));
        assert_eq!(sender.acknowledge(sender.nxt(), true), Acked::More);
        sender.set_window(window, Seq(1), sender.una(), true);
        while sender.ring.room() < bytes {
            assert!(pool.grow(&mut sender.ring));
        }
        sender.ring.push(&vec![7; bytes]);
        sender
    }

    /// Sends until nothing more can be; returns the lengths.
    fn send(sender: &mut Sender, most: usize) -> Vec<usize> {
        let mut lens = Vec::new();
        while let Some(piece) = sender.piece(most) {
            sender.sent(piece);
            lens.push(piece.len);
        }
        lens
    }

    #[test]
    fn window_bounds_what_is_on_its_way() {
        let mut sender = open(10_000, 2500);
        assert_eq!(send(&mut sender, 1000), [1000, 1000], "the rest is a crumb");
        let half = sender.una() + 1000;
        assert_eq!(sender.acknowledge(half, true), Acked::More);
        sender.set_window(2500, Seq(1), half, true);
        assert_eq!(send(&mut sender, 1000), [1000]);
        // An older segment comes late: its window is not believed.
        assert!(!sender.set_window(60_000, Seq(1), half.back(1000), true));
        assert_eq!(sender.window(), 2500);
    }

    #[test]
    fn large_piece_is_whole_segments() {
        let mut sender = open(10_500, 65_535);
        assert_eq!(send(&mut sender, 4999), [4000, 4000, 2500]);
    }

    #[test]
    fn fin_follows_the_last_byte_and_is_sent_once() {
        let mut sender = open(1500, 65_535);
        sender.finish();
        let first = sender.piece(1000).unwrap();
        assert!(!first.fin);
        sender.sent(first);
        let second = sender.piece(1000).unwrap();
        assert!(second.fin && second.len == 500);
        sender.sent(second);
        assert_eq!(sender.piece(1000), None);
        assert!(!sender.is_done());
        assert_eq!(sender.acknowledge(sender.nxt(), true), Acked::More);
        assert!(sender.is_done());
    }

    #[test]
    fn lone_fin_passes_a_closed_window() {
        let mut sender = open(100, 100);
        send(&mut sender, 1000);
        let all = sender.nxt();
        sender.acknowledge(all, true);
        sender.set_window(0, Seq(1), all, true);
        sender.finish();
        assert_eq!(sender.piece(1000).map(|piece| (piece.len, piece.fin)), Some((0, true)));
    }

    #[test]
    fn three_duplicates_send_the_hole_again_once() {
        let mut sender = open(5000, 65_535);
        assert_eq!(send(&mut sender, 1000).len(), 5);
        let una = sender.una();
        for _ in 0..2 {
            sender.acknowledge(una, true);
        }
        assert_eq!(sender.piece(1000), None);
        sender.acknowledge(una, true);
        let piece = sender.piece(1000).unwrap();
        assert_eq!((piece.seq, piece.len), (una, 1000));
        sender.sent(piece);
        for _ in 0..10 {
            sender.acknowledge(una, true);
        }
        assert_eq!(sender.piece(1000), None);
        // The acknowledgement stops at a second hole, which is sent at once; an earlier one would not be.
        sender.acknowledge(una + 500, true);
        assert_eq!(sender.piece(1000), None);
        sender.acknowledge(una + 2000, true);
        assert_eq!(sender.piece(1000).map(|piece| piece.seq), Some(una + 2000));
    }

    #[test]
    fn acknowledgement_of_the_unsent_is_told_apart() {
        let mut sender = open(1000, 65_535);
        let una = sender.una();
        assert_eq!(sender.acknowledge(una + 1, true), Acked::Beyond);
        assert_eq!(sender.acknowledge(una.back(1), true), Acked::Old);
        assert_eq!(sender.acknowledge(una, true), Acked::Same);
        assert_eq!(sender.ring.len(), 1000);
    }
}
