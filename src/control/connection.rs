//! One client's connection, from its first request to its end.

use std::time::{Duration, Instant};

use serde_json::json;

use super::answer::Answer;
use super::console_stream;
use super::request_reader::RequestReader;
use super::routes::{self, Reply};
use super::server::Ending;
use super::target::{ControlTarget, NextEvent};
use super::wire::{Wire, is_timeout};
use super::{Limits, MAX_DISCARD};

/// How often a stream checks that its client is still connected.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long one read of a client that waits for the machine's end may block.
const READ_LIMIT: Duration = Duration::from_secs(3600);

/// What a connection is doing. In the first four phases the server may close it to make room for a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// It has its last answer, and its client has not closed it yet.
    Leaving,
    /// Before a request.
    Idle,
    /// Reading a request.
    Reading,
    /// Writing an answer.
    Writing,
    /// The machine carries out the request.
    Acting,
    /// The client waits for the machine's end.
    Waiting,
    /// The client reads events or the console.
    Streaming,
}

/// A connection's entry in the server's table.
pub(super) trait Registration {
    /// Records the new phase; false if the limit on streams forbids it.
    fn enter(&self, phase: Phase) -> bool;
    /// How the machine has ended, if it has.
    fn ending(&self) -> Option<Ending>;
    /// Whether the server stops now or within `limit`. No [`Ending`] is published after that.
    fn stops_within(&self, limit: Duration) -> bool;
}

/// Answers requests until the client disconnects, makes a mistake or is too slow, or the machine has ended.
pub(super) fn serve_connection(
    wire: &mut impl Wire,
    registration: &impl Registration,
    target: &dyn ControlTarget,
    limits: &Limits,
) {
    let mut reader = RequestReader::default();
    loop {
        registration.enter(Phase::Idle);
        let request = match reader.next(wire, registration, limits) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(refusal) => return send_last(wire, registration, &refusal, limits),
        };
        registration.enter(Phase::Acting);
        match routes::answer(target, &request) {
            Reply::Wait => return wait(wire, registration, limits),
            Reply::Console if !registration.enter(Phase::Streaming) => {
                return send_last(wire, registration, &too_many_streams(limits), limits);
            }
            Reply::Console => return console_stream::serve(wire, target, limits, request.head.upgrades),
            Reply::Events => return events(wire, registration, target, limits),
            Reply::Answer(answer) if request.head.keep_alive && registration.ending().is_none() => {
                registration.enter(Phase::Writing);
                if wire.write(&answer.bytes(true), Instant::now() + limits.write).is_err() {
                    return;
                }
            }
            Reply::Answer(answer) => return send_last(wire, registration, &answer, limits),
        }
    }
}

/// Sends the last answer of a connection. Reads on for a while: a socket that is closed with unread bytes is
/// reset, and the client may lose the answer.
fn send_last(wire: &mut impl Wire, registration: &impl Registration, answer: &Answer, limits: &Limits) {
    registration.enter(Phase::Writing);
    if wire.write(&answer.bytes(false), Instant::now() + limits.write).is_err() {
        return;
    }
    // Before the client sees the end: it may come again at once.
    registration.enter(Phase::Leaving);
    wire.finish();
    let until = Instant::now() + limits.linger;
    let (mut bytes, mut discarded) = ([0; 4096], 0);
    while let Ok(n @ 1..) = wire.read(&mut bytes, until) {
        discarded += n;
        if discarded >= MAX_DISCARD {
            return;
        }
    }
}

fn too_many_streams(limits: &Limits) -> Answer {
    Answer::refusal(
        503,
        format!("{} clients wait for this machine already; end one of them.", limits.streams),
    )
}

/// Answers when the machine has ended.
fn wait(wire: &mut impl Wire, registration: &impl Registration, limits: &Limits) {
    if !registration.enter(Phase::Waiting) {
        return send_last(wire, registration, &too_many_streams(limits), limits);
    }
    let mut discarded = 0;
    loop {
        if let Some(Ending { status, text }) = registration.ending() {
            let answer = Answer::json(json!({ "status": status, "text": text }));
            return send_last(wire, registration, &answer, limits);
        }
        // The server shuts down this read when the machine ends.
        let is_connected = match poll_client(wire, &mut discarded, READ_LIMIT) {
            ClientState::Open => true,
            ClientState::Closed => false,
            // A half-closed connection has nothing to read, so wait for the server itself.
            ClientState::HalfClosed => !registration.stops_within(CHECK_INTERVAL) && !wire.is_closed(),
        };
        if !is_connected && registration.ending().is_none() {
            return;
        }
    }
}

/// Sends one line per event until the last.
fn events(
    wire: &mut impl Wire,
    registration: &impl Registration,
    target: &dyn ControlTarget,
    limits: &Limits,
) {
    if !registration.enter(Phase::Streaming) {
        return send_last(wire, registration, &too_many_streams(limits), limits);
    }
    let mut events = target.events();
    if wire.write(&Answer::stream_head("application/x-ndjson"), Instant::now() + limits.write).is_err() {
        return;
    }
    let mut discarded = 0;
    loop {
        match events.next(CHECK_INTERVAL) {
            NextEvent::Event(event) => {
                let line = serde_json::to_string(&event).unwrap_or_default() + "\n";
                if wire.write(line.as_bytes(), Instant::now() + limits.write).is_err() {
                    return;
                }
            }
            NextEvent::Nothing if is_connected(wire, &mut discarded) => {}
            NextEvent::Nothing | NextEvent::Ended => return,
        }
    }
}

/// The state of a client that sends no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClientState {
    /// Connected.
    Open,
    /// The client has closed its writing half and still reads: `nc -N`, `socat -`, a pipe into `nc`.
    HalfClosed,
    /// The client has disconnected, or has sent more than [`MAX_DISCARD`].
    Closed,
}

/// Reads for at most `limit` and discards the bytes.
fn poll_client(wire: &mut impl Wire, discarded: &mut usize, limit: Duration) -> ClientState {
    let until = Instant::now() + limit;
    while *discarded < MAX_DISCARD {
        match wire.read(&mut [0; 4096], until) {
            Ok(0) if wire.is_closed() => return ClientState::Closed,
            Ok(0) => return ClientState::HalfClosed,
            Ok(n) => *discarded += n,
            Err(error) if is_timeout(&error) => return ClientState::Open,
            Err(_) => return ClientState::Closed,
        }
    }
    ClientState::Closed
}

/// Whether the client of a stream is still connected. Its bytes are discarded.
pub(super) fn is_connected(wire: &mut impl Wire, discarded: &mut usize) -> bool {
    poll_client(wire, discarded, Duration::from_millis(1)) != ClientState::Closed
}
