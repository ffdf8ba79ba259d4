//! Requests that the host had no room for, where the machine is paused for that: they are not answered, and begin again when the
//! device starts the next time.
//!
//! Of such a request only the first descriptor is kept. It is read and checked again when it begins again, as after a restore into
//! a new process, and done from its start: writing, zeroing and flushing twice does what once does.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::component::StateError;
use serde::{Deserialize, Serialize};

use super::config::QUEUE_SIZE;
use super::engine::{Operation, Tag};
use super::{AnyEngine, Block, KIND};
use crate::device::Context;
use crate::queue::{Chain, Queue, QueueFault};
use crate::shared_registers::Failures;

/// A request that waits for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stalled {
    queue: u16,
    /// Its first descriptor.
    head: u16,
}

/// The stalled requests of a disk. While none of its threads is at work they are all in `kept`.
#[derive(Debug, Default)]
pub(super) struct StalledRequests {
    /// Is told when there are any; without it a request that the host has no room for ends with an error.
    when_full: Option<Arc<dyn Failures>>,
    /// Those of all threads of the disk, as each stopped or may do.
    kept: Arc<Mutex<Vec<Stalled>>>,
    /// Those of this thread that begin again, each before what is new in its queue.
    again: VecDeque<Stalled>,
    /// One has stalled since the start: the device begins nothing more.
    is_full: bool,
}

impl StalledRequests {
    /// Has requests wait for room from now on, and `when_full` told of it.
    pub(super) fn enable(&mut self, when_full: Arc<dyn Failures>) {
        self.when_full = Some(when_full);
    }

    /// Those of the same disk, for another of its threads.
    pub(super) fn for_another_thread(&self) -> Self {
        StalledRequests {
            when_full: self.when_full.clone(),
            kept: self.kept.clone(),
            ..StalledRequests::default()
        }
    }

    /// Whether the host had no room since the start.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Takes over what waits in those of `queues` that are here.
    pub(super) fn start(&mut self, queues: &[Option<Queue>]) {
        self.is_full = false;
        let is_here = |stalled: &Stalled| matches!(queues.get(usize::from(stalled.queue)), Some(Some(_)));
        let mut again = std::mem::take(&mut self.again);
        again.extend(self.kept().extract_if(.., |stalled| is_here(stalled)));
        self.again = again;
    }

    /// Keeps those that have not begun again.
    pub(super) fn stop(&mut self) {
        let again = std::mem::take(&mut self.again);
        self.kept().extend(again);
    }

    /// The driver has given up on all of them.
    pub(super) fn reset(&mut self) {
        self.again.clear();
        self.is_full = false;
        self.kept().clear();
    }

    /// The next chain to serve of `queue`: one that stalled, or what its driver made available.
    pub(super) fn next(&mut self, queue: &mut Queue) -> Result<Option<Chain>, QueueFault> {
        if !self.again.is_empty()
            && let Some(at) = self.again.iter().position(|stalled| stalled.queue == queue.index())
            && let Some(Stalled { head, .. }) = self.again.remove(at)
        {
            return queue.take_up(head).map(Some);
        }
        queue.pop()
    }

    /// Those of a stopped disk.
    pub(super) fn save(&self) -> Vec<Stalled> {
        self.kept().clone()
    }

    /// Takes over those of a saved disk with `queues` queues.
    pub(super) fn load(&mut self, saved: Vec<Stalled>, queues: u16) -> Result<(), StateError> {
        let most = usize::from(queues) * usize::from(QUEUE_SIZE.get());
        let fits = |stalled: &Stalled| stalled.queue < queues && stalled.head < QUEUE_SIZE.get();
        if saved.len() > most || !saved.iter().all(fits) {
            return Err(StateError::damaged(KIND, "requests that wait for room are in no queue"));
        }
        *self.kept() = saved;
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Stalled>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the host has no room, or its user none left of a quota.
fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

impl Block {
    /// Has writes, zeroing and flushes that the host has no room for wait until the device was stopped and started again, and
    /// `when_full` told of it. Otherwise they end with an I/O error.
    #[must_use]
    pub fn waiting_when_full(mut self, when_full: Arc<dyn Failures>) -> Self {
        self.stalled.enable(when_full);
        self
    }

    /// Whether a request whose `operation` ended with `error` waits for room.
    pub(super) fn waits_for_room(&self, operation: Operation, error: &io::Error) -> bool {
        let may_wait =
            matches!(operation, Operation::Write | Operation::Flush | Operation::WriteZeroes { .. });
        may_wait && is_full(error) && self.stalled.when_full.is_some()
    }

    /// Sets the request of `tag` aside, which moves `bytes` bytes. Bounded by what is in flight: nothing more begins.
    pub(super) fn stall(&mut self, tag: Tag, bytes: u64, error: &io::Error, cx: &mut Context<'_, AnyEngine>) {
        let index = self.slots.get(tag).map_or(0, |slot| slot.queue);
        let Some((chain, ..)) = self.slots.release(tag) else { return };
        // A queue that broke meanwhile has no driver that waits.
        let Some(Some(queue)) = cx.queues.get_mut(usize::from(index)) else { return };
        let head = queue.set_aside(chain);
        self.stalled.kept().push(Stalled { queue: index, head });
        if !std::mem::replace(&mut self.stalled.is_full, true)
            && let Some(when_full) = &self.stalled.when_full
        {
            when_full.full(&self.name, bytes, error);
        }
    }
}
