//! Where captures are attached to an interface, and a capture.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::output::{CaptureError, CaptureTarget, Output};
use super::pcapng::Direction;
use super::queue::Queue;
use super::writer::Writer;

/// Where captures are attached to an interface. Clones are of the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct CapturePoint {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// There is a capture. A frame around the moment of attaching may be missed.
    active: AtomicBool,
    queues: Mutex<Vec<Arc<Queue>>>,
}

impl CapturePoint {
    /// Opens `target` and writes the frames of `interface` to it until the capture is dropped.
    pub(crate) fn attach(&self, target: &CaptureTarget, interface: &str) -> Result<Capture, CaptureError> {
        let queue = Arc::new(Queue::default());
        let writer = Writer::start(Output::open(target)?, queue.clone(), interface)
            .map_err(|source| CaptureError::host(target, source))?;
        self.queues().push(queue.clone());
        self.shared.active.store(true, Ordering::Relaxed);
        Ok(Capture { point: self.clone(), queue, _writer: writer })
    }

    fn queues(&self) -> MutexGuard<'_, Vec<Arc<Queue>>> {
        self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn detach(&self, queue: &Arc<Queue>) {
        let mut queues = self.queues();
        queues.retain(|other| !Arc::ptr_eq(other, queue));
        self.shared.active.store(!queues.is_empty(), Ordering::Relaxed);
    }

    /// Copies a frame of `len` bytes, which `fill` appends, to each capture.
    pub(super) fn frame(&self, direction: Direction, len: usize, fill: impl Fn(&mut Vec<u8>)) {
        if self.shared.active.load(Ordering::Relaxed) {
            self.queues().iter().for_each(|queue| queue.push(direction, len, &fill));
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
