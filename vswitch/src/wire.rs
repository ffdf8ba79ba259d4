//! The impaired wires: one direction of a port each. Frames are lost, wait for their turn and are on their way; they keep their
//! order. A wire that is perfect does not exist.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::HEADER_LEN;
use crate::config::{Impairment, Limits};
use crate::counters::{DropReason, Tally};
use crate::packet::Packet;
use crate::ports::PortId;
use crate::random::Random;
use crate::segment;

/// What a frame has on a wire beside its bytes (IEEE 802.3 §3.1.1, §4.4.2): preamble and start, checksum, gap.
const AROUND: usize = 8 + 4 + 12;
/// A shorter frame is padded.
const SHORTEST: usize = 60;
/// A longer delay or jitter counts as this one.
const LONGEST_DELAY: Duration = Duration::from_secs(3600);
/// Frames that may wait however slow the wire is: TCP needs a few.
const ALWAYS_QUEUED: usize = 16;
const MILLION: u64 = 1_000_000;

/// One direction of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    FromPort,
    ToPort,
}

/// Whose wire it is.
pub(crate) type WireId = (PortId, Direction);

/// A frame on a wire.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) header: [u8; HEADER_LEN],
    pub(crate) frame: Vec<u8>,
    arrived: Instant,
    plan: Plan,
}

/// When a frame does what on its wire.
#[derive(Debug, Clone, Copy)]
struct Plan {
    /// It begins to be sent.
    begins: Instant,
    /// The sender is ready for the next frame.
    sent: Instant,
    /// It leaves the wire, if those before it have.
    due: Instant,
}

/// What becomes of a frame that comes to a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entered {
    /// It is through already.
    Passes,
    /// It waits, or was lost and counted.
    Stays,
}

/// An impaired wire.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    impairment: Impairment,
    queue: VecDeque<Waiting>,
    bytes: usize,
    /// When the sender is ready for the next frame.
    free: Option<Instant>,
}

/// What all wires share.
#[derive(Debug)]
pub(crate) struct Wires {
    /// When each wire's first frame is due.
    due: BTreeSet<(Instant, WireId)>,
    pub(crate) random: Random,
    pub(crate) limits: Limits,
}

impl Wire {
    /// Frames on it.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Plans a frame of `len` bytes that comes at `arrived`.
    fn plan(&self, arrived: Instant, len: usize, random: &mut Random) -> Plan {
        let Impairment { delay, jitter, rate, .. } = self.impairment;
        let begins = self.free.map_or(arrived, |free| free.max(arrived));
        let sent = after(begins, rate.map_or(Duration::ZERO, |rate| time_to_send(len, rate.get())));
        let (delay, jitter) = (delay.min(LONGEST_DELAY), jitter.min(LONGEST_DELAY));
        let spread = u64::try_from(jitter.as_nanos() * 2).unwrap_or(u64::MAX);
        let late = Duration::from_nanos(random.below(spread.saturating_add(1)));
        let due = after(sent, (delay + late).saturating_sub(jitter));
        Plan { begins, sent, due }
    }

    fn first_due(&self) -> Option<Instant> {
        self.queue.front().map(|first| first.plan.due)
    }

    /// Plans what is on the wire anew. What is before the first frame has been sent.
    fn set(&mut self, impairment: Impairment, random: &mut Random) {
        self.impairment = impairment;
        self.free = self.queue.front().map(|first| first.plan.begins);
        let mut queue = std::mem::take(&mut self.queue);
        for waiting in &mut queue {
            waiting.plan = self.plan(waiting.arrived, waiting.frame.len(), random);
            self.free = Some(waiting.plan.sent);
        }
        self.queue = queue;
    }
}

/// How long a frame occupies a wire.
fn time_to_send(len: usize, bits_per_second: u64) -> Duration {
    let bits = (len.max(SHORTEST) + AROUND) as u64 * 8;
    // At most 64 KiB: far from an overflow.
    Duration::from_nanos(bits * 1_000_000_000 / bits_per_second.max(1))
}

fn after(time: Instant, duration: Duration) -> Instant {
    time.checked_add(duration).unwrap_or(time)
}

impl Wires {
    pub(crate) fn new(limits: Limits, seed: u64) -> Self {
        Wires { due: BTreeSet::new(), random: Random::new(seed), limits }
    }

    /// When the next frame is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The wire with the next frame, if that is due.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<(Instant, WireId)> {
        self.due.first().filter(|(due, _)| *due <= now)?;
        self.due.pop_first()
    }

    /// Takes the first frame of a wire that [`Wires::take_due`] returned.
    pub(crate) fn take(&mut self, slot: &mut Option<Box<Wire>>, id: WireId) -> Option<Waiting> {
        let wire = slot.as_mut()?;
        let waiting = wire.queue.pop_front()?;
        wire.bytes -= waiting.frame.len();
        match wire.queue.front() {
            Some(next) => _ = self.due.insert((next.plan.due, id)),
            None if wire.impairment == Impairment::default() => *slot = None,
            None => {}
        }
        Some(waiting)
    }

    /// Changes a wire. What is on it is planned anew.
    pub(crate) fn set(&mut self, slot: &mut Option<Box<Wire>>, id: WireId, impairment: Impairment) {
        let perfect = impairment == Impairment::default();
        if slot.as_ref().map_or(perfect, |wire| wire.impairment == impairment) {
            return;
        }
        let wire = slot.get_or_insert_default();
        if let Some(due) = wire.first_due() {
            self.due.remove(&(due, id));
        }
        wire.set(impairment, &mut self.random);
        match wire.first_due() {
            Some(due) => _ = self.due.insert((due, id)),
            None if perfect => *slot = None,
            None => {}
        }
    }

    /// Drops all frames of a wire.
    pub(crate) fn clear(&mut self, slot: &mut Option<Box<Wire>>, id: WireId) -> usize {
        let Some(wire) = slot else { return 0 };
        if let Some(due) = wire.first_due() {
            self.due.remove(&(due, id));
        }
        let dropped = wire.queue.len();
        wire.queue = VecDeque::new();
        (wire.bytes, wire.free) = (0, None);
        if wire.impairment == Impairment::default() {
            *slot = None;
        }
        dropped
    }

    /// A frame comes to a wire. Where single frames count, for loss and for a rate, a large packet is cut before.
    pub(crate) fn enter(
        &mut self,
        wire: &mut Wire,
        id: WireId,
        tally: &mut Tally,
        packet: &Packet<'_>,
        now: Instant,
    ) -> Entered {
        let Impairment { loss_ppm, rate, .. } = wire.impairment;
        if let Some(gso) = packet.offload.gso.filter(|_| loss_ppm > 0 || rate.is_some()) {
            segment::cut(packet, &gso, true, |header, head, payload| {
                let len = head.len() + payload.len();
                if let Some(plan) = self.plan(wire, tally, len, now) {
                    self.queue(wire, id, (now, plan), header, &[head, payload]);
                }
            });
            return Entered::Stays;
        }
        match self.plan(wire, tally, packet.len(), now) {
            Some(plan) if plan.due <= now && wire.queue.is_empty() => return Entered::Passes,
            Some(plan) => self.queue(wire, id, (now, plan), &packet.header(), &packet.parts()),
            None => {}
        }
        Entered::Stays
    }

    /// Plans a frame that comes to a wire. `None`: it is lost.
    fn plan(&mut self, wire: &mut Wire, tally: &mut Tally, len: usize, now: Instant) -> Option<Plan> {
        if self.random.below(MILLION) < u64::from(wire.impairment.loss_ppm) {
            tally.drop(DropReason::Loss);
            return None;
        }
        let plan = wire.plan(now, len, &mut self.random);
        let waits_long = plan.begins.saturating_duration_since(now) > self.limits.backlog;
        if waits_long && wire.queue.len() >= ALWAYS_QUEUED
            || wire.queue.len() >= self.limits.waiting_frames
            || wire.bytes + len > self.limits.waiting_bytes
        {
            tally.drop(DropReason::QueueFull);
            return None;
        }
        wire.free = Some(plan.sent);
        Some(plan)
    }

    fn queue(
        &mut self,
        wire: &mut Wire,
        id: WireId,
        (arrived, plan): (Instant, Plan),
        header: &[u8; HEADER_LEN],
        parts: &[&[u8]],
    ) {
        let frame = parts.concat();
        if wire.queue.is_empty() {
            self.due.insert((plan.due, id));
        }
        wire.bytes += frame.len();
        wire.queue.push_back(Waiting { header: *header, frame, arrived, plan });
    }
}
