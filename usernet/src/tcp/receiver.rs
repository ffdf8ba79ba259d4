//! Bytes of the guest: what has come in order, and what its window is.

use super::ring::{LARGEST, Pool, Ring};
use super::seq::Seq;

/// The window shift that we offer: 65,535 << 7 is more than the largest window.
pub(super) const SHIFT: u8 = 7;
/// Window while nothing waits for the host, however little of the budget is left: most bytes then need no buffer.
const LEAST_WINDOW: usize = 64 << 10;
/// A window that opens by less is no news.
const LEAST_NEWS: usize = 8 << 10;

/// Where a segment lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It begins with what is expected; so many of its first bytes are known.
    Next(usize),
    /// Something is missing before it.
    Early,
    /// It holds nothing new, or lies behind the window.
    Outside,
}

/// The stream of the guest.
#[derive(Debug)]
pub(super) struct Receiver {
    /// The next number of the guest.
    nxt: Seq,
    /// The window that it knows ends here.
    edge: Seq,
    shift: u8,
    /// What the host's socket has not taken.
    pub(super) ring: Ring,
    /// The guest's FIN has come.
    ended: bool,
    /// The host's socket knows that.
    pub(super) shut: bool,
}

impl Receiver {
    /// `nxt`: the number behind the guest's SYN.
    pub(super) fn new(nxt: Seq) -> Self {
        Receiver { nxt, edge: nxt, shift: 0, ring: Ring::default(), ended: false, shut: false }
    }

    /// The guest's SYN has come: `scaled` if it scales windows.
    pub(super) fn begin(&mut self, nxt: Seq, scaled: bool) {
        self.nxt = nxt;
        self.edge = nxt;
        self.shift = if scaled { SHIFT } else { 0 };
    }

    pub(super) fn nxt(&self) -> Seq {
        self.nxt
    }

    pub(super) fn shift(&self) -> Option<u8> {
        (self.shift > 0).then_some(self.shift)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn place(&self, seq: Seq, len: usize) -> Place {
        let ahead = seq.since(self.nxt);
        if ahead == 0 {
            return Place::Next(0);
        }
        if ahead > 0 {
            return if seq.before(self.edge) { Place::Early } else { Place::Outside };
        }
        let known = self.nxt.beyond(seq);
        if known < len { Place::Next(known) } else { Place::Outside }
    }

    /// Bytes that it may send from `nxt` on.
    pub(super) fn open(&self) -> usize {
        self.edge.beyond(self.nxt)
    }

    /// So many bytes were taken.
    pub(super) fn took(&mut self, bytes: usize) {
        self.nxt += bytes;
        self.edge = self.edge.max(self.nxt);
    }

    /// Its FIN was.
    pub(super) fn end(&mut self) {
        self.took(1);
        self.ended = true;
    }

    /// Appends to the ring what it and the budget have room for.
    pub(super) fn keep(&mut self, bytes: &[u8], pool: &mut Pool) -> usize {
        while self.ring.room() < bytes.len() && pool.grow(&mut self.ring) {}
        self.ring.push(bytes)
    }

    fn room(&self, pool: &Pool) -> usize {
        let room = self.ring.room() + pool.available() / 4;
        let most = LARGEST - self.ring.len();
        let least = if self.ring.is_empty() { LEAST_WINDOW } else { 0 };
        room.min(most).max(least)
    }

    /// The window for a header. It never takes back what it promised (RFC 9293 §3.8.6).
    pub(super) fn advertise(&mut self, pool: &Pool, scaled: bool) -> u16 {
        let shift = if scaled { self.shift } else { 0 };
        let room = self.room(pool).max(self.open());
        let window = u16::try_from(room >> shift).unwrap_or(u16::MAX);
        self.edge = self.edge.max(self.nxt + (usize::from(window) << shift));
        window
    }

    /// The guest knows a window so small beside what it could have that it should be told (RFC 9293 §3.8.6.2.2).
    pub(super) fn has_news(&self, pool: &Pool) -> bool {
        let most = usize::from(u16::MAX) << self.shift;
        let room = self.room(pool).min(most);
        !self.ended && self.open() < room / 2 && room - self.open() >= LEAST_NEWS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun() -> (Receiver, Pool) {
        let pool = Pool::new(64 << 20, 1);
        let mut receiver = Receiver::new(Seq(0));
        receiver.begin(Seq(u32::MAX), true);
        (receiver, pool)
    }

    #[test]
    fn window_of_a_syn_is_not_scaled() {
        let (mut receiver, pool) = begun();
        assert_eq!(receiver.advertise(&pool, false), u16::MAX);
        assert_eq!(receiver.open(), usize::from(u16::MAX));
        assert_eq!(usize::from(receiver.advertise(&pool, true)) << SHIFT, LARGEST);
        assert_eq!(receiver.open(), LARGEST);
    }

    #[test]
    fn window_keeps_its_promise_and_tells_when_there_is_room() {
        let (mut receiver, mut pool) = begun();
        receiver.advertise(&pool, true);
        let bytes = vec![1; LARGEST];
        assert_eq!(receiver.keep(&bytes, &mut pool), LARGEST);
        receiver.took(LARGEST);
        assert_eq!((receiver.open(), receiver.advertise(&pool, true)), (0, 0));
        assert!(!receiver.has_news(&pool));
        receiver.ring.consume(LEAST_NEWS - 1);
        assert!(!receiver.has_news(&pool), "a crumb");
        receiver.ring.consume(LARGEST);
        assert!(receiver.has_news(&pool));
        receiver.advertise(&pool, true);
        assert!(!receiver.has_news(&pool));
    }

    #[test]
    fn spent_budget_leaves_a_window_for_what_needs_no_buffer() {
        let (mut receiver, _) = begun();
        let mut pool = Pool::new(0, 1);
        assert_eq!(receiver.keep(b"abc", &mut pool), 0);
        assert_eq!(usize::from(receiver.advertise(&pool, true)) << SHIFT, LEAST_WINDOW);
    }

    #[test]
    fn places() {
        let (mut receiver, pool) = begun();
        receiver.advertise(&pool, true);
        let next = receiver.nxt();
        assert_eq!(receiver.place(next, 10), Place::Next(0));
        assert_eq!(receiver.place(next, 0), Place::Next(0));
        assert_eq!(receiver.place(next.back(3), 10), Place::Next(3));
        assert_eq!(receiver.place(next.back(10), 10), Place::Outside);
        assert_eq!(receiver.place(next.back(1), 0), Place::Outside, "a keep-alive");
        assert_eq!(receiver.place(next + 1, 10), Place::Early);
        assert_eq!(receiver.place(next + LARGEST, 1), Place::Outside);
    }
}
