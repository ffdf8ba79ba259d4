//! One client's connection, from its first request to its end.

use std::fmt;
use std::time::{Duration, Instant};

use serde_json::json;

use super::answer::Answer;
use super::request_reader::{Request, RequestReader};
use super::router::{Reply, Typing, Upgrade};
use super::server::Ending;
use super::target::{EventSource, NextEvent};
use super::wire::{Wire, is_timeout};
use super::{Limits, MAX_DISCARD, byte_stream, console_stream};

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
    /// The client reads events, the console or other bytes.
    Streaming,
}

/// What a server's clients send their requests to. Calls come from several threads.
pub(crate) trait Service: Send + Sync + fmt::Debug {
    /// What it is, in messages: a `machine` or a `switch`.
    fn noun(&self) -> &'static str;
    /// Carries out a request.
    fn answer(&self, request: &Request) -> Reply;
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
    service: &dyn Service,
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
        let reply = service.answer(&request);
        let keep_alive = request.head.keep_alive;
        // It has a descriptor, which a stream does not need.
        drop(request);
        match reply {
            Reply::Wait => return wait(wire, registration, service, limits),
            Reply::Upgrade(upgrade) => return hand_over(wire, reader, upgrade, limits),
            Reply::Events(_) | Reply::Console(..) | Reply::Bytes(..)
                if !registration.enter(Phase::Streaming) =>
            {
                return send_last(wire, registration, &too_many_streams(service, limits), limits);
            }
            Reply::Console(console, typing) => {
                return console_stream::serve(wire, console, limits, typing == Typing::Yes);
            }
            Reply::Bytes(kind, source) => return byte_stream::serve(wire, kind, source, limits),
            Reply::Events(source) => return events(wire, source, limits),
            Reply::Answer(answer) if keep_alive && registration.ending().is_none() => {
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

fn too_many_streams(service: &dyn Service, limits: &Limits) -> Answer {
    let (count, noun) = (limits.streams, service.noun());
    Answer::refusal(503, format!("{count} clients wait for this {noun} already; end one of them."))
}

/// Hands the connection over.
fn hand_over(wire: &mut impl Wire, reader: RequestReader, upgrade: Upgrade, limits: &Limits) {
    let Upgrade { to, fields, then } = upgrade;
    if wire.write(&Answer::upgrade_head(to, &fields), Instant::now() + limits.write).is_err() {
        return;
    }
    let Some(stream) = wire.shared_stream().and_then(|stream| stream.try_clone().ok()) else { return };
    if stream.set_read_timeout(None).and_then(|()| stream.set_write_timeout(None)).is_ok() {
        then(stream, reader.rest());
    }
}

/// Answers when the machine has ended.
fn wait(wire: &mut impl Wire, registration: &impl Registration, service: &dyn Service, limits: &Limits) {
    if !registration.enter(Phase::Waiting) {
        return send_last(wire, registration, &too_many_streams(service, limits), limits);
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
fn events(wire: &mut impl Wire, mut events: Box<dyn EventSource>, limits: &Limits) {
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
pub(super) enum ClientState {
    /// Connected.
    Open,
    /// The client has closed its writing half and still reads: `nc -N`, `socat -`, a pipe into `nc`.
    HalfClosed,
    /// The client has disconnected, or has sent more than [`MAX_DISCARD`].
    Closed,
}

/// Reads for at most `limit` and discards the bytes.
pub(super) fn poll_client(wire: &mut impl Wire, discarded: &mut usize, limit: Duration) -> ClientState {
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
