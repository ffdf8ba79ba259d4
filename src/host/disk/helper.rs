//! Operations that may take long and have no asynchronous form: they run one by one on a thread of their own,
//! so that reads and writes of the disk continue.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, current};

use devices::thread::{self, Role};
use virtio::block::{Completion, Extent, Operation, Tag};
use virtio::poll::Token;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::file::{DiskFile, mode};
use super::transfer::Transfer;

/// The thread and its completions. Dropping it waits for the operations in flight.
#[derive(Debug)]
pub(super) struct Helper<J = Job> {
    /// `None` during the drop.
    requests: Option<Sender<(Tag, J)>>,
    completed_operations: Arc<Completed>,
    thread: Option<JoinHandle<()>>,
    in_flight: usize,
}

/// What to do, without guest data, and where.
pub(super) type Job = (Operation, Extent);

#[derive(Debug)]
struct Completed {
    completions: Mutex<VecDeque<Completion>>,
    /// Both are notified of each completion.
    more: Condvar,
    event: EventFd,
}

impl Completed {
    fn completions(&self) -> MutexGuard<'_, VecDeque<Completion>> {
        self.completions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, completion: Completion) {
        self.completions().push_back(completion);
        self.more.notify_all();
        // The counter is never read, it only grows.
        let _ = self.event.write(1);
    }
}

impl Helper {
    /// Starts a thread for `file`, named after the disk's thread and `what`: `blk0-flush`.
    ///
    /// # Errors
    /// The host has no thread or no descriptor left.
    pub(super) fn new(what: &str, file: Arc<DiskFile>) -> io::Result<Self> {
        Self::with(what, move |(operation, extent)| run(&file, operation, extent))
    }
}

impl<J: Send + 'static> Helper<J> {
    /// Starts a thread that does `work` for each job.
    pub(super) fn with(
        what: &str,
        mut work: impl FnMut(J) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let completed_operations =
            Arc::new(Completed { completions: Mutex::default(), more: Condvar::new(), event });
        let (requests, incoming) = mpsc::channel::<(Tag, J)>();
        let shared = completed_operations.clone();
        let name = format!("{}-{what}", current().name().unwrap_or("disk"));
        let thread = thread::spawn(Role::Helper, &name, move || {
            for (tag, job) in incoming {
                // A job that panics must not leave its disk waiting: formats of images are other people's code.
                let result = catch_unwind(AssertUnwindSafe(|| work(job)));
                let result = result.unwrap_or_else(|_| Err(io::Error::other("the work on it panicked")));
                shared.push(Completion { tag, result });
            }
        })?;
        Ok(Helper { requests: Some(requests), completed_operations, thread: Some(thread), in_flight: 0 })
    }

    /// Submits a job. It completes with an error at once if the thread has ended.
    pub(super) fn submit(&mut self, tag: Tag, job: J) {
        self.in_flight += 1;
        let sent = self.requests.as_ref().is_some_and(|requests| requests.send((tag, job)).is_ok());
        if !sent {
            let result = Err(io::Error::other("the thread for this has ended"));
            self.completed_operations.push(Completion { tag, result });
        }
    }

    /// The next completion, if any.
    pub(super) fn completed(&mut self) -> Option<Completion> {
        let completion = self.completed_operations.completions().pop_front()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        Some(completion)
    }

    /// Waits until every operation has completed; [`Helper::completed`] returns them then.
    pub(super) fn drain(&self) {
        let mut completed_operations = self.completed_operations.completions();
        while completed_operations.len() < self.in_flight {
            completed_operations = self
                .completed_operations
                .more
                .wait(completed_operations)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Becomes readable at each completion; watch it edge-triggered.
    pub(super) fn event(&self) -> RawFd {
        self.completed_operations.event.as_raw_fd()
    }
}

/// The token of [`Helper::event`] in an engine; no device has it.
pub(super) const HELPER_EVENT: Token = Token::MAX;

impl<J> Drop for Helper<J> {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // An error is a panic, which was printed already.
            let _ = thread.join();
        }
    }
}

/// Executes an operation without guest data, and blocks.
pub(super) fn run(file: &DiskFile, operation: Operation, extent: Extent) -> io::Result<()> {
    match operation {
        Operation::Discard if file.discards_by_ioctl() => file.discard_device(extent),
        Operation::Discard => allocate(file, mode::HOLE, extent),
        Operation::WriteZeroes { unmap } => {
            match allocate(file, if unmap { mode::HOLE } else { mode::ZERO }, extent) {
                Err(error) if file.is_zeroing_unsupported(&error) => {
                    let mut transfer = Transfer::default();
                    transfer.zeros(extent);
                    transfer.run(file, Operation::Write)
                }
                result => result,
            }
        }
        Operation::Flush => {
            #[cfg(test)]
            file.flushes.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            // SAFETY: a call on an open descriptor, without memory.
            let synced = checked(|| unsafe { libc::fdatasync(file.fd()) });
            synced.map_err(diskimage::flush_failed)
        }
        Operation::Read | Operation::Write => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn allocate(file: &DiskFile, mode: i32, extent: Extent) -> io::Result<()> {
    let offset = i64::try_from(extent.offset).map_err(io::Error::other)?;
    let len = i64::try_from(extent.len).map_err(io::Error::other)?;
    // SAFETY: a call on an open descriptor, without memory.
    checked(|| unsafe { libc::fallocate(file.fd(), mode, offset, len) })
}

/// Repeats the call after a signal.
fn checked(mut call: impl FnMut() -> i32) -> io::Result<()> {
    loop {
        if call() >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_that_panics_is_an_error_and_the_next_one_is_done() {
        let work = |number: u32| -> io::Result<()> {
            assert_ne!(number, 1, "as an image may make it");
            Ok(())
        };
        let mut helper = Helper::with("test", work).unwrap();
        (1..3u16).for_each(|tag| helper.submit(tag, tag.into()));
        helper.drain();
        let ended: Vec<_> = std::iter::from_fn(|| helper.completed()).collect();
        assert_eq!(
            ended.iter().map(|one| (one.tag, one.result.is_ok())).collect::<Vec<_>>(),
            [(1, false), (2, true)]
        );
    }
}
