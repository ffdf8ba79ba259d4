//! A client that reads bytes as they come. It may be slow for as long as it likes: its source decides what becomes of bytes that
//! find no room, and nobody else waits.

use std::time::{Duration, Instant};

use super::Limits;
use super::answer::Answer;
use super::connection::{ClientState, poll_client};
use super::target::{ByteSource, NextBytes};
use super::wire::{Wire, is_timeout};

/// How often to look whether the client is still there.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Sends what comes from `source`. A client that closes its writing half ends it, and gets the rest, if it reads some of
/// it within `limits.write` each time.
pub(super) fn serve(
    wire: &mut impl Wire,
    kind: &'static str,
    mut source: Box<dyn ByteSource>,
    limits: &Limits,
) {
    if wire.write(&Answer::stream_head(kind), Instant::now() + limits.write).is_err() {
        return;
    }
    let (mut client, mut buffer) = (Client { wire, discarded: 0, ending: None }, Vec::new());
    loop {
        match source.next(&mut buffer, CHECK_INTERVAL) {
            NextBytes::Bytes if client.send(&buffer, &mut *source, limits) => {}
            NextBytes::Nothing if client.look(&mut *source, limits) => {}
            NextBytes::Bytes | NextBytes::Nothing => return,
            NextBytes::Ended => return client.wire.finish(),
        }
    }
}

struct Client<'a, W> {
    wire: &'a mut W,
    discarded: usize,
    /// When the next bytes of the rest have to be read by.
    ending: Option<Instant>,
}

impl<W: Wire> Client<'_, W> {
    /// Sends `bytes`; false if the client has gone.
    fn send(&mut self, bytes: &[u8], source: &mut dyn ByteSource, limits: &Limits) -> bool {
        let mut rest = bytes;
        loop {
            if rest.is_empty() {
                return self.ending.is_some() || self.look(source, limits);
            }
            match self.wire.write_some(rest, Instant::now() + CHECK_INTERVAL) {
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    self.ending = self.ending.map(|_| Instant::now() + limits.write);
                }
                Err(error) if is_timeout(&error) && self.look(source, limits) => {}
                Err(_) => return false,
            }
        }
    }

    /// Looks at the client; false if it has gone, or its time is over.
    fn look(&mut self, source: &mut dyn ByteSource, limits: &Limits) -> bool {
        if let Some(until) = self.ending {
            return Instant::now() < until && !self.wire.is_closed();
        }
        if !self.wire.is_readable() {
            return true;
        }
        match poll_client(self.wire, &mut self.discarded, Duration::from_millis(1)) {
            ClientState::Open => true,
            ClientState::Closed => false,
            ClientState::HalfClosed => {
                source.finish();
                self.ending = Some(Instant::now() + limits.write);
                true
            }
        }
    }
}
