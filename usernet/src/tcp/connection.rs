//! One connection: the guest's TCP on one side, a stream of the host on the other.
//!
//! This file holds its state and what a segment of the guest does to it; `relay` moves bytes from and to the host, `output`
//! builds segments, `timer` knows what is due.

use std::io;
use std::time::Instant;

use super::receiver::{Place, Receiver};
use super::ring::Pool;
use super::segment::{Header, Segment};
use super::sender::{Acked, Sender};
use super::seq::Seq;
use super::timer::Timer;
use crate::flow::{Flow, Unreachable};
use crate::host::Host;
use crate::token::Token;

/// Acknowledgements of what came out of order that may wait: three make the guest send again (RFC 5681 §3.2).
const MOST_DUPLICATES: u8 = 4;

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest's SYN has come, and the host connects.
    Connecting,
    /// The host has connected; our SYN is or will be on its way.
    SynReceived,
    /// A connection from outside; our SYN is or will be on its way.
    SynSent,
    /// Both SYNs are acknowledged.
    Open,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// It goes on, and this segment is sent.
    Answers(Header),
    /// It is over, and nobody needs to be told.
    Over,
    /// The guest is to see a reset.
    ResetGuest,
    /// The host's peer is.
    ResetHost,
    /// Both are.
    ResetBoth,
    /// There was no way to the peer.
    Failed(Unreachable),
}

/// What a connection needs of the others.
#[derive(Debug)]
pub(super) struct Context<'a, H> {
    pub(super) host: &'a mut H,
    pub(super) pool: &'a mut Pool,
    pub(super) now: Instant,
}

/// Acknowledgements that the guest is to get.
#[derive(Debug, Default)]
pub(super) struct Acks {
    /// One, which any segment carries.
    pub(super) due: bool,
    /// So many that nothing else carries.
    pub(super) duplicates: u8,
    /// The guest is asked for one of its own.
    pub(super) probe: bool,
}

/// What is asked of the host's socket.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Read and write, as the host knows it. `None`: it knows nothing yet.
    pub(super) asked: Option<(bool, bool)>,
    /// There is no room for what may be read: reading goes on when the guest acknowledges.
    pub(super) held: bool,
    /// There is no memory for it: reading goes on when another connection gives some back.
    pub(super) starved: bool,
    /// It failed: what was read before that still goes to the guest, then a reset.
    pub(super) broken: Option<io::ErrorKind>,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection<H: Host> {
    pub(super) flow: Flow,
    pub(super) token: Token,
    pub(super) stream: H::Stream,
    pub(super) phase: Phase,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) acks: Acks,
    pub(super) watch: Watch,
    pub(super) timer: Timer,
    /// Largest payload that the MTU allows.
    pub(super) mss: u16,
    /// It is in the list of those with something to send.
    pub(super) queued: bool,
}

impl<H: Host> Connection<H> {
    /// A connection of the guest, whose SYN has come; the host's stream connects. `numbers`: our first one, the largest payload,
    /// and whether the wire to the guest may be full.
    pub(super) fn outbound(
        (flow, token, stream): (Flow, Token, H::Stream),
        numbers: (Seq, u16, bool),
        syn: &Segment<'_>,
        now: Instant,
    ) -> Self {
        let mut connection = Self::new((flow, token, stream), numbers, Phase::Connecting, now);
        connection.watch.asked = Some((false, true));
        connection.take_syn(syn);
        connection
    }

    /// A connection from outside.
    pub(super) fn inbound(ends: (Flow, Token, H::Stream), numbers: (Seq, u16, bool), now: Instant) -> Self {
        Self::new(ends, numbers, Phase::SynSent, now)
    }

    fn new(
        (flow, token, stream): (Flow, Token, H::Stream),
        (first, mss, shared): (Seq, u16, bool),
        phase: Phase,
        now: Instant,
    ) -> Self {
        Connection {
            flow,
            token,
            stream,
            phase,
            sender: Sender::new(first, shared),
            receiver: Receiver::new(Seq(0)),
            acks: Acks::default(),
            watch: Watch::default(),
            timer: Timer::new(now),
            mss,
            queued: false,
        }
    }

    /// Half-open: it counts against a limit of its own.
    pub(super) fn is_embryonic(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Both directions have ended, and both sides know it.
    pub(super) fn is_over(&self) -> bool {
        self.receiver.shut && self.sender.is_done()
    }

    fn take_syn(&mut self, syn: &Segment<'_>) {
        self.sender.set_options(syn.mss, self.mss, syn.shift);
        self.sender.begin_window(syn.seq);
        self.sender.set_window(syn.window, syn.seq, self.sender.una(), false);
        self.receiver.begin(syn.seq + 1, syn.shift.is_some());
    }

    /// A segment of the guest.
    pub(super) fn segment(&mut self, segment: &Segment<'_>, context: &mut Context<'_, H>) -> Fate {
        self.timer.heard(context.now);
        match self.phase {
            Phase::Connecting => self.while_connecting(segment),
            Phase::SynSent => self.answer_to_syn(segment, context),
            Phase::SynReceived | Phase::Open => self.synchronized(segment, context),
        }
    }

    /// RFC 9293 §3.10.7.3, with all that we sent still unsent.
    fn while_connecting(&mut self, segment: &Segment<'_>) -> Fate {
        let expected = segment.seq == self.receiver.nxt() || segment.seq + 1 == self.receiver.nxt();
        if segment.rst && expected {
            return Fate::ResetHost;
        }
        // Not a repetition but another connection of a guest that has forgotten the first.
        if segment.syn && segment.ack.is_none() && !segment.rst && !expected {
            self.take_syn(segment);
        }
        Fate::Lives
    }

    /// RFC 9293 §3.10.7.3.
    fn answer_to_syn(&mut self, segment: &Segment<'_>, context: &mut Context<'_, H>) -> Fate {
        let Some(ack) = segment.ack else { return Fate::Lives };
        if self.sender.in_flight() == 0 || ack != self.sender.nxt() {
            return Header::reset(self.flow, segment).map_or(Fate::Lives, Fate::Answers);
        }
        if segment.rst {
            return Fate::ResetHost;
        }
        if !segment.syn {
            return Fate::Lives;
        }
        self.take_syn(segment);
        self.acks.due = true;
        self.open(ack, context)
    }

    /// Our SYN is acknowledged.
    fn open(&mut self, ack: Seq, context: &mut Context<'_, H>) -> Fate {
        self.sender.acknowledge(ack, false);
        self.timer.progress();
        self.phase = Phase::Open;
        self.settle(Ok(()), context)
    }

    /// RFC 9293 §3.10.7.4, RFC 5961.
    fn synchronized(&mut self, segment: &Segment<'_>, context: &mut Context<'_, H>) -> Fate {
        if segment.rst {
            return self.reset(segment);
        }
        if segment.syn {
            return self.late_syn(segment);
        }
        let Some(ack) = segment.ack else { return Fate::Lives };
        let place = self.receiver.place(segment.seq, segment.len());
        if place == Place::Outside {
            self.acknowledge_again();
            return Fate::Lives;
        }
        if self.phase == Phase::SynReceived {
            if self.sender.in_flight() == 0 || ack != self.sender.nxt() {
                return Header::reset(self.flow, segment).map_or(Fate::Lives, Fate::Answers);
            }
            self.sender.set_window(segment.window, segment.seq, ack, true);
            match self.open(ack, context) {
                Fate::Lives => {}
                other => return other,
            }
        }
        let result = self.take_ack(segment, ack, context).and_then(|valid| match place {
            Place::Next(known) if valid => self.take_data(segment, known, context),
            Place::Early if valid => {
                self.acknowledge_again();
                Ok(())
            }
            _ => Ok(()),
        });
        self.settle(result, context)
    }

    fn reset(&mut self, segment: &Segment<'_>) -> Fate {
        if segment.seq == self.receiver.nxt() {
            return Fate::ResetHost;
        }
        if self.receiver.place(segment.seq, 0) != Place::Outside {
            self.acknowledge_again();
        }
        Fate::Lives
    }

    fn late_syn(&mut self, segment: &Segment<'_>) -> Fate {
        let repeated = segment.seq + 1 == self.receiver.nxt();
        if self.phase == Phase::SynReceived && repeated && segment.ack.is_none() {
            self.sender.resend();
        } else {
            self.acknowledge_again();
        }
        Fate::Lives
    }

    pub(super) fn acknowledge_again(&mut self) {
        self.acks.duplicates = (self.acks.duplicates + 1).min(MOST_DUPLICATES);
    }

    /// False: the segment is not to be believed.
    fn take_ack(
        &mut self,
        segment: &Segment<'_>,
        ack: Seq,
        context: &mut Context<'_, H>,
    ) -> io::Result<bool> {
        let same_window = usize::from(segment.window) << self.sender.shift() == self.sender.window();
        let bare = segment.len() == 0 && same_window;
        self.widen(context.pool);
        match self.sender.acknowledge(ack, bare) {
            Acked::Beyond => {
                self.acknowledge_again();
                return Ok(false);
            }
            Acked::More => self.timer.progress(),
            Acked::Old | Acked::Same => {}
        }
        if !ack.before(self.sender.una()) && self.sender.set_window(segment.window, segment.seq, ack, true) {
            self.timer.progress();
        }
        self.refill(context)?;
        Ok(true)
    }

    /// Takes what is new of a segment whose first `known` numbers are not.
    fn take_data(
        &mut self,
        segment: &Segment<'_>,
        known: usize,
        context: &mut Context<'_, H>,
    ) -> io::Result<()> {
        if segment.len() == 0 {
            return Ok(());
        }
        self.acks.due = true;
        if self.receiver.has_ended() {
            return Ok(());
        }
        let data = segment.payload.get(known..).unwrap_or_default();
        let open = data.get(..data.len().min(self.receiver.open())).unwrap_or_default();
        let taken = self.deliver(open, context)?;
        self.receiver.took(taken);
        if taken == data.len() && segment.fin {
            self.receiver.end();
            self.drain(context)?;
        }
        Ok(())
    }
}
