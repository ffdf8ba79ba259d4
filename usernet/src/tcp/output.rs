//! Segments to the guest.

use super::Outgoing;
use super::connection::{Connection, Phase};
use super::ring::Pool;
use super::segment::{HEADER, Header, SynOptions};
use super::sender::Piece;
use crate::host::Host;

impl<H: Host> Connection<H> {
    /// Whether [`Connection::output`] has a segment.
    pub(super) fn has_output(&self) -> bool {
        match self.phase {
            Phase::Connecting => false,
            Phase::SynReceived | Phase::SynSent if self.sender.syn_is_due() => true,
            Phase::SynSent => false,
            Phase::SynReceived | Phase::Open => {
                self.acks.due || self.acks.probe || self.acks.duplicates > 0 || self.sender.piece(1).is_some()
            }
        }
    }

    /// Builds the next segment in `room`, with a payload of up to `most`, or of the MSS if that is more.
    pub(super) fn output(&mut self, room: &mut [u8], most: usize, pool: &Pool) -> Option<Outgoing> {
        if !self.has_output() {
            return None;
        }
        if self.phase != Phase::Open && self.sender.syn_is_due() {
            return self.syn(room, pool);
        }
        if self.acks.probe {
            self.acks.probe = false;
            // An old number: the guest answers with what it expects and its window (RFC 9293 §3.8.4).
            let seq = self.sender.una().back(1);
            return self.bare(seq, room, pool);
        }
        if self.acks.duplicates > 0 {
            self.acks.duplicates -= 1;
            return self.bare(self.sender.nxt(), room, pool);
        }
        let mss = usize::from(self.sender.mss());
        let most = most.min(room.len().saturating_sub(HEADER));
        let most = if most >= 2 * mss { most - most % mss } else { mss };
        match self.sender.piece(most) {
            Some(piece) => self.data(piece, room, pool),
            None => self.bare(self.sender.nxt(), room, pool),
        }
    }

    fn syn(&mut self, room: &mut [u8], pool: &Pool) -> Option<Outgoing> {
        let answers = self.phase == Phase::SynReceived;
        let shift = if answers { self.receiver.shift() } else { Some(super::receiver::SHIFT) };
        let header = Header {
            syn: Some(SynOptions { mss: self.mss, shift }),
            window: self.receiver.advertise(pool, false),
            ..Header::bare(self.flow, self.sender.una(), answers.then(|| self.receiver.nxt()))
        };
        let len = header.write(room)?;
        self.sender.syn_sent();
        self.acks.due = false;
        Some(Outgoing { flow: self.flow, len, header: len, gso: None })
    }

    fn bare(&mut self, seq: super::seq::Seq, room: &mut [u8], pool: &Pool) -> Option<Outgoing> {
        self.acks.due = false;
        let window = self.receiver.advertise(pool, true);
        let header = Header { window, ..Header::bare(self.flow, seq, Some(self.receiver.nxt())) };
        let len = header.write(room)?;
        Some(Outgoing { flow: self.flow, len, header: len, gso: None })
    }

    fn data(&mut self, piece: Piece, room: &mut [u8], pool: &Pool) -> Option<Outgoing> {
        let header = Header {
            window: self.receiver.advertise(pool, true),
            fin: piece.fin,
            push: piece.last,
            ..Header::bare(self.flow, piece.seq, Some(self.receiver.nxt()))
        };
        let len = header.write(room)?;
        let payload = room.get_mut(len..len + piece.len)?;
        self.sender.ring.copy(piece.offset, payload);
        self.sender.sent(piece);
        self.acks.due = false;
        let gso = (piece.len > usize::from(self.sender.mss())).then(|| self.sender.mss());
        Some(Outgoing { flow: self.flow, len: len + piece.len, header: len, gso })
    }
}
