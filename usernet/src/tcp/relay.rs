//! Bytes between a connection and the host's stream.
//!
//! What the host's stream takes at once is never copied. It is read only while there is room, and watched only for what is
//! wanted, so that no event repeats for nothing.

use std::io;

use super::connection::{Connection, Context, Fate, Phase};
use super::ring::Pool;
use crate::flow::Unreachable;
use crate::host::{Host, Ready};

/// Reads of one event: others come first after that.
const READS: u32 = 16;
/// Reading goes on when there is as much room, or half of the ring.
const WORTH_READING: usize = 64 << 10;

impl<H: Host> Connection<H> {
    /// The host's stream is ready.
    pub(super) fn ready(&mut self, ready: Ready, context: &mut Context<'_, H>) -> Fate {
        if self.phase == Phase::Connecting {
            return self.connected(context);
        }
        let mut result = Ok(());
        if ready.write || ready.closed {
            result = self.drain(context);
        }
        if result.is_ok() && self.phase == Phase::Open && (ready.read || ready.closed) {
            result = self.fill(context);
        }
        // Nothing was asked for, or nothing came of it: the error itself says why the host told us.
        if result.is_ok() && ready.closed && !self.is_over() {
            result = match context.host.connected(&self.stream) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
                _ => Ok(()),
            };
        }
        self.settle(result, context)
    }

    fn connected(&mut self, context: &mut Context<'_, H>) -> Fate {
        match context.host.connected(&self.stream) {
            Ok(()) => {
                self.phase = Phase::SynReceived;
                self.timer.restart(context.now);
                self.settle(Ok(()), context)
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected => Fate::Lives,
                _ => failure(&error),
            },
        }
    }

    /// Asks the host for what is wanted now, and ends the connection on an error.
    pub(super) fn settle(&mut self, result: io::Result<()>, context: &mut Context<'_, H>) -> Fate {
        let result = result.and_then(|()| {
            let working = self.phase == Phase::Open && self.watch.broken.is_none();
            let read = working && !self.sender.is_finished() && !self.watch.held && !self.watch.starved;
            let write = self.phase == Phase::Connecting || !self.receiver.ring.is_empty();
            if self.watch.asked != Some((read, write)) {
                context.host.watch(&self.stream, self.token.to_bits(), read, write)?;
                self.watch.asked = Some((read, write));
            }
            Ok(())
        });
        match result {
            Ok(()) => Fate::Lives,
            Err(error) if self.salvages(error.kind(), context) => Fate::Lives,
            Err(_) => Fate::ResetGuest,
        }
    }

    /// The stream failed. As a kernel does, the guest is given what came before that: a server that answers and closes without
    /// reading a request to its end is understood. True: there is something to give.
    fn salvages(&mut self, error: io::ErrorKind, context: &mut Context<'_, H>) -> bool {
        if self.phase != Phase::Open {
            return false;
        }
        if self.watch.broken.is_none() {
            self.watch.broken = Some(error);
            context.pool.release(&mut self.receiver.ring);
            let _ = context.host.watch(&self.stream, self.token.to_bits(), false, false);
            self.watch.asked = Some((false, false));
            let _ = self.fill(context);
        }
        self.sender.unsent() > 0
    }

    /// Another connection gave memory back.
    pub(super) fn feed(&mut self, context: &mut Context<'_, H>) -> Fate {
        self.watch.starved = false;
        let result = self.fill(context);
        self.settle(result, context)
    }

    /// Lets the ring grow if it is what bounds the bytes on their way: all of it was sent, the host has more, and the guest's
    /// window is larger.
    pub(super) fn widen(&mut self, pool: &mut Pool) {
        let capacity = self.sender.ring.capacity();
        if self.watch.held && self.sender.unsent() == 0 && self.sender.window() > capacity {
            pool.grow(&mut self.sender.ring);
        }
    }

    /// The guest acknowledged something: reads on if that was waited for.
    pub(super) fn refill(&mut self, context: &mut Context<'_, H>) -> io::Result<()> {
        let ring = &self.sender.ring;
        let room = ring.room();
        if self.watch.held {
            let is_worth_it = ring.is_empty() || room >= WORTH_READING || room >= ring.capacity() / 2;
            return if is_worth_it { self.fill(context) } else { Ok(()) };
        }
        if self.watch.broken.is_some() && self.sender.unsent() == 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if self.sender.ring.is_empty() {
            context.pool.release(&mut self.sender.ring);
        }
        Ok(())
    }

    /// Reads from the host what there is room for.
    fn fill(&mut self, context: &mut Context<'_, H>) -> io::Result<()> {
        self.watch.held = false;
        for _ in 0..READS {
            if self.sender.is_finished() || !self.make_room(context) {
                break;
            }
            let space = self.sender.ring.space();
            let asked = space.len();
            match context.host.read(&self.stream, space) {
                // A kernel tells an error once, and then an end. It is one only if the peer had sent it before: EPIPE.
                Ok(0) if self.watch.broken.is_some_and(|error| error != io::ErrorKind::BrokenPipe) => {
                    return Err(io::ErrorKind::ConnectionReset.into());
                }
                Ok(0) => self.sender.finish(),
                Ok(count) => {
                    self.sender.ring.commit(count);
                    if count < asked {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if self.sender.ring.is_empty() {
            context.pool.release(&mut self.sender.ring);
        }
        Ok(())
    }

    /// Room for bytes of the host.
    fn make_room(&mut self, context: &mut Context<'_, H>) -> bool {
        let ring = &mut self.sender.ring;
        if ring.room() > 0 {
            return true;
        }
        if ring.capacity() == 0 {
            self.watch.starved = !context.pool.grow(ring);
            return !self.watch.starved;
        }
        self.watch.held = true;
        false
    }

    /// Gives bytes of the guest to the host, and keeps what it does not take at once. Returns how many were taken.
    pub(super) fn deliver(&mut self, mut bytes: &[u8], context: &mut Context<'_, H>) -> io::Result<usize> {
        if self.watch.broken.is_some() {
            return Ok(bytes.len());
        }
        let mut taken = 0;
        while self.receiver.ring.is_empty() && !bytes.is_empty() {
            let Some(count) = write(context.host, &self.stream, bytes)? else { break };
            taken += count;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        if !bytes.is_empty() {
            taken += self.receiver.keep(bytes, context.pool);
        }
        Ok(taken)
    }

    /// Gives the host what it did not take, then the end of the guest's stream.
    pub(super) fn drain(&mut self, context: &mut Context<'_, H>) -> io::Result<()> {
        while !self.receiver.ring.is_empty() {
            let Some(count) = write(context.host, &self.stream, self.receiver.ring.front())? else { break };
            self.receiver.ring.consume(count);
        }
        if self.receiver.ring.is_empty() {
            context.pool.release(&mut self.receiver.ring);
            if self.receiver.has_ended() && !self.receiver.shut {
                shut(context.host.shutdown_write(&self.stream))?;
                self.receiver.shut = true;
            }
        }
        if self.receiver.has_news(context.pool) && self.phase == Phase::Open {
            self.acks.due = true;
        }
        Ok(())
    }
}

/// What a failure to connect means for the guest.
pub(super) fn failure(error: &io::Error) -> Fate {
    match Unreachable::of(error) {
        // A real network is silent then, too.
        _ if error.kind() == io::ErrorKind::TimedOut => Fate::Over,
        None | Some(Unreachable::Port) => Fate::ResetGuest,
        Some(why) => Fate::Failed(why),
    }
}

/// `None`: the host takes nothing now.
fn write<H: Host>(host: &mut H, stream: &H::Stream, bytes: &[u8]) -> io::Result<Option<usize>> {
    loop {
        return match host.write(stream, bytes) {
            Ok(0) => Ok(None),
            Ok(count) => Ok(Some(count.min(bytes.len()))),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => continue,
                io::ErrorKind::WouldBlock => Ok(None),
                _ => Err(error),
            },
        };
    }
}

/// A peer that has closed needs no end of the stream.
fn shut(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other,
    }
}
