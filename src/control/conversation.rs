//! One client's connection, from its first request to its end.

use std::time::{Duration, Instant};

use serde_json::json;

use super::answer::Answer;
use super::attached;
use super::inbox::Inbox;
use super::routes::{self, Reply};
use super::server::Ending;
use super::subject::{Next, Subject};
use super::wire::{Wire, is_late};
use super::{Limits, MAX_DISCARD};

/// How often a stream looks whether its client is still there.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// How long a client that waits is waited for before we look again.
const LONG: Duration = Duration::from_secs(3600);

/// What a connection does. In the first three it can be told to go when there is no place for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Between two requests, or behind the last one.
    Idle,
    /// A request is on its way.
    Reading,
    /// An answer is on its way.
    Writing,
    /// The machine does what was asked.
    Acting,
    /// The client waits for the machine's end.
    Waiting,
    /// The client hears of events.
    Streaming,
}

/// Who keeps the connections.
pub(super) trait Keeper {
    /// The connection does this from now on; false if it may not.
    fn enter(&self, phase: Phase) -> bool;
    /// How the machine has ended, if it has.
    fn ending(&self) -> Option<Ending>;
    /// Whether the server stops, now or within `limit`. After it, an ending that is not there will not come.
    fn stops_within(&self, limit: Duration) -> bool;
}

/// Answers requests until the client goes, errs or is too slow, or the machine has ended.
pub(super) fn converse(wire: &mut impl Wire, keeper: &impl Keeper, subject: &dyn Subject, limits: &Limits) {
    let mut inbox = Inbox::default();
    loop {
        keeper.enter(Phase::Idle);
        let request = match inbox.next(wire, keeper, limits) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(refusal) => return last(wire, keeper, &refusal, limits),
        };
        keeper.enter(Phase::Acting);
        match routes::answer(subject, &request) {
            Reply::Wait => return wait(wire, keeper, limits),
            Reply::Console if !keeper.enter(Phase::Streaming) => {
                return last(wire, keeper, &no_room(limits), limits);
            }
            Reply::Console => return attached::console(wire, subject, limits, request.head.upgrades),
            Reply::Events => return events(wire, keeper, subject, limits),
            Reply::Answer(answer) if request.head.keep_alive && keeper.ending().is_none() => {
                keeper.enter(Phase::Writing);
                if wire.write(&answer.bytes(true), Instant::now() + limits.write).is_err() {
                    return;
                }
            }
            Reply::Answer(answer) => return last(wire, keeper, &answer, limits),
        }
    }
}

/// Says the last thing. What the client still sends is read for a while, since a connection that is closed on unread bytes
/// is broken off, and a client that still writes may never see the answer.
fn last(wire: &mut impl Wire, keeper: &impl Keeper, answer: &Answer, limits: &Limits) {
    keeper.enter(Phase::Writing);
    if wire.write(&answer.bytes(false), Instant::now() + limits.write).is_err() {
        return;
    }
    wire.finish();
    keeper.enter(Phase::Idle);
    let until = Instant::now() + limits.linger;
    let (mut bytes, mut discarded) = ([0; 4096], 0);
    while let Ok(n @ 1..) = wire.read(&mut bytes, until) {
        discarded += n;
        if discarded >= MAX_DISCARD {
            return;
        }
    }
}

fn no_room(limits: &Limits) -> Answer {
    Answer::refusal(
        503,
        format!("{} clients wait for this machine already; end one of them.", limits.streams),
    )
}

/// Answers when the machine has ended.
fn wait(wire: &mut impl Wire, keeper: &impl Keeper, limits: &Limits) {
    if !keeper.enter(Phase::Waiting) {
        return last(wire, keeper, &no_room(limits), limits);
    }
    let mut discarded = 0;
    loop {
        if let Some(Ending { status, text }) = keeper.ending() {
            let answer = Answer::json(json!({ "status": status, "text": text }));
            return last(wire, keeper, &answer, limits);
        }
        // The server ends this read when the machine ends.
        let is_there = match hear(wire, &mut discarded, LONG) {
            Heard::Nothing => true,
            Heard::Left => false,
            // No read waits on this connection any more, so wait for the server itself.
            Heard::HalfClosed => !keeper.stops_within(LOOK) && !wire.has_left(),
        };
        if !is_there && keeper.ending().is_none() {
            return;
        }
    }
}

/// A line for each event until the last.
fn events(wire: &mut impl Wire, keeper: &impl Keeper, subject: &dyn Subject, limits: &Limits) {
    if !keeper.enter(Phase::Streaming) {
        return last(wire, keeper, &no_room(limits), limits);
    }
    let mut events = subject.events();
    if wire.write(&Answer::stream_head("application/x-ndjson"), Instant::now() + limits.write).is_err() {
        return;
    }
    let mut discarded = 0;
    loop {
        match events.next(LOOK) {
            Next::Event(event) => {
                let line = serde_json::to_string(&event).unwrap_or_default() + "\n";
                if wire.write(line.as_bytes(), Instant::now() + limits.write).is_err() {
                    return;
                }
            }
            Next::Nothing if is_there(wire, &mut discarded) => {}
            Next::Nothing | Next::Ended => return,
        }
    }
}

/// What came of listening to a client that has nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// It is still there.
    Nothing,
    /// It will say nothing more, and still reads: `nc -N`, `socat -`, a pipe into `nc`.
    HalfClosed,
    /// It has gone, or sends without end.
    Left,
}

/// Listens for `limit` at most. What comes is thrown away, up to a point.
fn hear(wire: &mut impl Wire, discarded: &mut usize, limit: Duration) -> Heard {
    let until = Instant::now() + limit;
    while *discarded < MAX_DISCARD {
        match wire.read(&mut [0; 4096], until) {
            Ok(0) if wire.has_left() => return Heard::Left,
            Ok(0) => return Heard::HalfClosed,
            Ok(n) => *discarded += n,
            Err(error) if is_late(&error) => return Heard::Nothing,
            Err(_) => return Heard::Left,
        }
    }
    Heard::Left
}

/// Whether the client of a stream still reads. What it sends is thrown away, up to a point.
pub(super) fn is_there(wire: &mut impl Wire, discarded: &mut usize) -> bool {
    hear(wire, discarded, Duration::from_millis(1)) != Heard::Left
}
