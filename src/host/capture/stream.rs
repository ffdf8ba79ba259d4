//! A capture whose reader asks for it: another process behind a socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pcapng;
use super::point::CapturePoint;
use super::queue::{Queue, Taken};

/// When a capture ends by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CaptureLimits {
    /// Behind so many frames.
    pub(crate) frames: Option<u64>,
    /// After this time.
    pub(crate) time: Option<Duration>,
}

/// What [`CaptureStream::next`] gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamState {
    /// Bytes.
    Bytes,
    /// None within the limit.
    Nothing,
    /// The capture has ended, and all of it was taken.
    Ended,
}

/// A capture in progress: whole blocks of pcapng, the statistics last. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct CaptureStream {
    point: CapturePoint,
    queue: Arc<Queue>,
    /// The header, as long as it was not taken.
    header: Option<Vec<u8>>,
    until: Option<Instant>,
    ended: bool,
}

impl CaptureStream {
    /// The frames of `interface` in `queue`, for so long.
    pub(super) fn new(
        point: CapturePoint,
        queue: Arc<Queue>,
        interface: &str,
        time: Option<Duration>,
    ) -> Self {
        let mut header = Vec::new();
        pcapng::header(interface, &mut header);
        // A time that no clock can say is none.
        let until = time.and_then(|time| Instant::now().checked_add(time));
        CaptureStream { point, queue, header: Some(header), until, ended: false }
    }

    /// Exchanges `buffer` for the next bytes, if there are any within `limit`.
    pub(crate) fn next(&mut self, buffer: &mut Vec<u8>, limit: Duration) -> StreamState {
        if let Some(header) = self.header.take() {
            *buffer = header;
            return StreamState::Bytes;
        }
        if self.ended {
            return StreamState::Ended;
        }
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            self.finish();
        }
        match self.queue.take(buffer, Some(left.map_or(limit, |left| left.min(limit)))) {
            Taken::Blocks => StreamState::Bytes,
            Taken::Nothing => StreamState::Nothing,
            Taken::End { seen, lost } => {
                self.ended = true;
                pcapng::statistics(buffer, pcapng::now(), seen, lost);
                StreamState::Bytes
            }
        }
    }

    /// Ends the capture: what is waiting is the rest.
    pub(crate) fn finish(&mut self) {
        self.queue.close();
    }
}

impl Drop for CaptureStream {
    fn drop(&mut self) {
        self.point.detach(&self.queue);
        self.queue.close();
    }
}
