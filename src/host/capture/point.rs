//! Where captures are attached to an interface, and a capture.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::output::{CaptureError, CaptureFile};
use super::pcapng::Direction;
use super::queue::Queue;
use super::stream::{CaptureLimits, CaptureStream};
use super::writer::Writer;

/// Most captures of one interface at once.
pub(crate) const MOST_CAPTURES: usize = 8;

/// Where captures are attached to an interface. Clones are of the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct CapturePoint {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// There is a capture. A frame around the moment of attaching may be missed.
    active: AtomicBool,
    captures: Mutex<Captures>,
}

#[derive(Debug, Default)]
struct Captures {
    queues: Vec<Arc<Queue>>,
    /// No frame comes any more.
    closed: bool,
}

/// Why no capture could be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There are as many as there may be.
    TooMany(usize),
    /// No frame comes any more.
    Closed,
}

impl CapturePoint {
    /// Writes the frames of `interface` to `file` until the capture is dropped.
    pub(crate) fn attach(&self, file: CaptureFile, interface: &str) -> Result<Capture, CaptureError> {
        let queue = Arc::new(Queue::default());
        let path = file.path().to_owned();
        let writer = Writer::start(file.begin()?, queue.clone(), interface)
            .map_err(|source| CaptureError::host(&path, source))?;
        // It is the first one of its interface.
        let _ = self.register(&queue);
        Ok(Capture { point: self.clone(), queue, _writer: writer })
    }

    /// A capture of the frames of `interface` for a reader.
    pub(crate) fn stream(&self, interface: &str, limits: CaptureLimits) -> Result<CaptureStream, Refused> {
        let queue = Arc::new(Queue::with_most(limits.frames));
        self.register(&queue)?;
        Ok(CaptureStream::new(self.clone(), queue, interface, limits.time))
    }

    fn captures(&self) -> MutexGuard<'_, Captures> {
        self.shared.captures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, queue: &Arc<Queue>) -> Result<(), Refused> {
        let mut captures = self.captures();
        match captures.queues.len() {
            _ if captures.closed => return Err(Refused::Closed),
            count @ MOST_CAPTURES.. => return Err(Refused::TooMany(count)),
            _ => captures.queues.push(queue.clone()),
        }
        self.shared.active.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn detach(&self, queue: &Arc<Queue>) {
        let mut captures = self.captures();
        captures.queues.retain(|other| !Arc::ptr_eq(other, queue));
        self.shared.active.store(!captures.queues.is_empty(), Ordering::Relaxed);
    }

    /// Ends all captures: no frame comes any more.
    pub(crate) fn close(&self) {
        let mut captures = self.captures();
        captures.closed = true;
        captures.queues.iter().for_each(|queue| queue.close());
    }

    /// Copies a frame of `len` bytes, which `fill` appends, to each capture.
    pub(crate) fn frame(&self, direction: Direction, len: usize, fill: impl Fn(&mut Vec<u8>)) {
        if self.shared.active.load(Ordering::Relaxed) {
            self.captures().queues.iter().for_each(|queue| queue.push(direction, len, &fill));
        }
    }
}

/// A capture in progress. Dropping it ends it: what waits is written if the output takes it.
#[derive(Debug)]
pub(crate) struct Capture {
    point: CapturePoint,
    queue: Arc<Queue>,
    _writer: Writer,
}

impl Capture {
    /// Frames that were seen, and those of them that were lost because the output is slow.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.queue.counts()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.point.detach(&self.queue);
        // The writer ends behind this, and is waited for when it is dropped.
        self.queue.close();
    }
}
