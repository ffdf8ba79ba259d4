//! The one thread of a machine that makes calls which may wait for the host: a disk that hangs, a file system that is away, a
//! search in a guest's own disk. It does one job after the other: first those of the start, for which [`deadline`](super::deadline)
//! waits, then those of the supervisor, to which it reports each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use devices::thread::{self, Role};

use super::StartError;
use super::supervisor::Event;

type Job = Box<dyn FnOnce() + Send>;

/// See the module. Dropping it waits for the jobs that it was given.
#[derive(Debug)]
pub(crate) struct BlockingThread {
    /// `None` while it is dropped.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl BlockingThread {
    pub(crate) fn spawn() -> Result<Self, StartError> {
        let (jobs, incoming) = mpsc::channel::<Job>();
        let thread =
            thread::spawn(Role::Blocking, "blocking", move || incoming.into_iter().for_each(|job| job()))
                .map_err(StartError::Thread)?;
        Ok(BlockingThread { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Does `job` when all jobs before it are done. The job catches its panics.
    pub(super) fn execute(&self, job: impl FnOnce() + Send + 'static) {
        // The thread takes jobs until this is dropped.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(Box::new(job)));
    }

    /// Does `work` when all jobs before it are done, and sends what it returns. One that panics is [`Event::JobPanicked`].
    pub(super) fn run(&self, report: &Sender<Event>, work: impl FnOnce() -> Event + Send + 'static) {
        let report = report.clone();
        self.execute(move || {
            let event = catch_unwind(AssertUnwindSafe(work)).unwrap_or(Event::JobPanicked);
            // The supervisor does not wait for a machine that was killed.
            let _ = report.send(event);
        });
    }

    /// Leaves the thread to its job; it ends behind it.
    pub(super) fn leave(mut self) {
        self.thread = None;
    }
}

impl Drop for BlockingThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // Panics of jobs are caught.
            let _ = thread.join();
        }
    }
}
