//! Operations that may take long and have no asynchronous form: they run on a thread of their own, one after the other, so
//! that reads and writes of the disk go on meanwhile.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, current};

use devices::thread::{self, Role};
use virtio::block::{Completion, Extent, Operation, Tag};
use virtio::poll::Token;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::file::{DiskFile, mode};
use super::transfer::Transfer;

/// The thread, and what it has ended. Dropping it waits for what it has begun.
#[derive(Debug)]
pub(super) struct Helper {
    /// `None` while it is dropped.
    orders: Option<Sender<Order>>,
    ended: Arc<Ended>,
    thread: Option<JoinHandle<()>>,
    in_flight: usize,
}

type Order = (Tag, Operation, Extent);

#[derive(Debug)]
struct Ended {
    completions: Mutex<VecDeque<Completion>>,
    /// Both are told of each of them.
    more: Condvar,
    bell: EventFd,
}

impl Ended {
    fn completions(&self) -> MutexGuard<'_, VecDeque<Completion>> {
        self.completions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, completion: Completion) {
        self.completions().push_back(completion);
        self.more.notify_all();
        // The counter is never read: it just grows.
        let _ = self.bell.write(1);
    }
}

impl Helper {
    /// A thread for `file`, called `what` behind the name of the disk's own thread: `blk0-flush`.
    ///
    /// # Errors
    /// The host has no thread or no descriptor left.
    pub(super) fn new(what: &str, file: Arc<DiskFile>) -> io::Result<Self> {
        Self::with(what, move |operation, extent| run(&file, operation, extent))
    }

    /// A thread that does `work` for each operation.
    pub(super) fn with(
        what: &str,
        mut work: impl FnMut(Operation, Extent) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let bell = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let ended = Arc::new(Ended { completions: Mutex::default(), more: Condvar::new(), bell });
        let (orders, incoming) = mpsc::channel::<Order>();
        let shared = ended.clone();
        let name = format!("{}-{what}", current().name().unwrap_or("disk"));
        let thread = thread::spawn(Role::DiskHelper, &name, move || {
            for (tag, operation, extent) in incoming {
                let result = work(operation, extent);
                shared.push(Completion { tag, result });
            }
        })?;
        Ok(Helper { orders: Some(orders), ended, thread: Some(thread), in_flight: 0 })
    }

    /// Begins an operation. It ends with an error at once if the thread is gone.
    pub(super) fn submit(&mut self, tag: Tag, operation: Operation, extent: Extent) {
        self.in_flight += 1;
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send((tag, operation, extent)).is_ok());
        if !sent {
            let result = Err(io::Error::other("the thread for this has ended"));
            self.ended.push(Completion { tag, result });
        }
    }

    /// The next operation that has ended, if any has.
    pub(super) fn completed(&mut self) -> Option<Completion> {
        let completion = self.ended.completions().pop_front()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        Some(completion)
    }

    /// Waits until every operation has ended. They are given by [`Helper::completed`] then.
    pub(super) fn drain(&self) {
        let mut ended = self.ended.completions();
        while ended.len() < self.in_flight {
            ended = self.ended.more.wait(ended).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Becomes readable when an operation ends; to be watched at edges.
    pub(super) fn bell(&self) -> RawFd {
        self.ended.bell.as_raw_fd()
    }
}

/// The token of [`Helper::bell`] in an engine, which is of no device.
pub(super) const BELL: Token = Token::MAX;

impl Drop for Helper {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // An error is a panic, which it has told of itself.
            let _ = thread.join();
        }
    }
}

/// Does an operation that moves no data of the guest's, and waits for it.
pub(super) fn run(file: &DiskFile, operation: Operation, extent: Extent) -> io::Result<()> {
    match operation {
        Operation::Discard if file.discards_by_ioctl() => file.discard_device(extent),
        Operation::Discard => allocate(file, mode::HOLE, extent),
        Operation::WriteZeroes { unmap } => {
            match allocate(file, if unmap { mode::HOLE } else { mode::ZERO }, extent) {
                Err(error) if file.cannot_zero(&error) => {
                    let mut transfer = Transfer::default();
                    transfer.zeros(extent);
                    transfer.run(file, Operation::Write)
                }
                result => result,
            }
        }
        // SAFETY: a call on an open descriptor, without memory.
        Operation::Flush => checked(|| unsafe { libc::fdatasync(file.fd()) }),
        Operation::Read | Operation::Write => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn allocate(file: &DiskFile, mode: i32, extent: Extent) -> io::Result<()> {
    let offset = i64::try_from(extent.offset).map_err(io::Error::other)?;
    let len = i64::try_from(extent.len).map_err(io::Error::other)?;
    // SAFETY: a call on an open descriptor, without memory.
    checked(|| unsafe { libc::fallocate(file.fd(), mode, offset, len) })
}

/// Calls until no signal comes between.
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
