//! The receive buffer of a connection: splits bytes into requests, within their limits.

use std::time::Instant;

use super::answer::Answer;
use super::connection::{Phase, Registration};
use super::request::{Head, parse_head};
use super::wire::{Wire, is_timeout};
use super::{Limits, MAX_HEAD};
use crate::machine::Asker;

/// A complete request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
    /// Who sent it.
    pub(super) asker: Asker,
}

/// Bytes of an incomplete request, at most [`MAX_HEAD`] and a body.
#[derive(Debug, Default)]
pub(super) struct RequestReader(Vec<u8>);

/// The outcome of a read.
enum ReadOutcome {
    Bytes,
    /// The client has disconnected, or was silent for too long.
    End,
}

impl RequestReader {
    /// The next request; `None` at the end of the connection. An error is the answer to a malformed request.
    pub(super) fn next(
        &mut self,
        wire: &mut impl Wire,
        registration: &impl Registration,
        limits: &Limits,
    ) -> Result<Option<Request>, Answer> {
        let mut deadline = Deadline::Idle(Instant::now() + limits.idle);
        let (head, length) = loop {
            if !self.0.is_empty() {
                deadline.request(registration, limits);
                if let Some(found) = parse_head(&self.0)? {
                    break found;
                }
            }
            if let ReadOutcome::End = self.read(wire, &deadline, MAX_HEAD)? {
                return Ok(None);
            }
        };
        self.0.drain(..length);
        if head.expects_continue && self.0.len() < head.body {
            let sent = wire.write(b"HTTP/1.1 100 Continue\r\n\r\n", Instant::now() + limits.write);
            if sent.is_err() {
                return Ok(None);
            }
        }
        while self.0.len() < head.body {
            if let ReadOutcome::End = self.read(wire, &deadline, head.body)? {
                return Ok(None);
            }
        }
        let rest = self.0.split_off(head.body);
        let body = std::mem::replace(&mut self.0, rest);
        let asker = wire.shared_stream().map(Asker::at).unwrap_or_default();
        Ok(Some(Request { head, body, asker }))
    }

    /// What was read behind the last request.
    pub(super) fn rest(self) -> Vec<u8> {
        self.0
    }

    /// Reads more, up to `most` bytes altogether.
    fn read(
        &mut self,
        wire: &mut impl Wire,
        deadline: &Deadline,
        most: usize,
    ) -> Result<ReadOutcome, Answer> {
        let mut bytes = [0; 4096];
        let room = most.saturating_sub(self.0.len()).min(bytes.len());
        let room = bytes.get_mut(..room).unwrap_or_default();
        match (wire.read(room, deadline.instant()), deadline) {
            (Ok(n @ 1..), _) => {
                self.0.extend(room.iter().take(n));
                Ok(ReadOutcome::Bytes)
            }
            (Err(error), Deadline::Request(_)) if is_timeout(&error) => {
                Err(Answer::refusal(408, "The request did not come to its end in time."))
            }
            (Ok(0) | Err(_), _) => Ok(ReadOutcome::End),
        }
    }
}

/// When the next byte is due.
enum Deadline {
    Idle(Instant),
    Request(Instant),
}

impl Deadline {
    /// The request has begun.
    fn request(&mut self, registration: &impl Registration, limits: &Limits) {
        if let Deadline::Idle(_) = self {
            *self = Deadline::Request(Instant::now() + limits.request);
            registration.enter(Phase::Reading);
        }
    }

    fn instant(&self) -> Instant {
        match self {
            Deadline::Idle(instant) | Deadline::Request(instant) => *instant,
        }
    }
}
