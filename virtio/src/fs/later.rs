//! Calls that may take long (fsync, syncfs, fallocate, copies): a few threads make them, and the other requests of the share go on.
//!
//! The device's thread owns the requests, and gives each thread one call at a time. Requests in flight have no order (§5.11.6.1), so
//! each is answered when its call has ended.
//!
//! A sync that is left to itself may be the one to which the host tells that data are lost, as it tells that once for an open file
//! (errseq_t of Linux). So other syncs wait for it, and its request, which is made again, is told what it was told.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

use devices::thread::{self, Role};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::errno::Errno;
use super::filesystem::{Answer, Work};
use crate::queue::Chain;

/// Most threads of a share, and so calls at once. Others wait for their turn.
pub(super) const MOST_THREADS: usize = 4;

/// A request whose call is made elsewhere.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) queue: u16,
    pub(super) unique: u64,
    pub(super) chain: Chain,
    /// Its answer is the number that the call returns.
    pub(super) says_count: bool,
}

/// A thread, which ends with its channel.
#[derive(Debug)]
struct Thread {
    calls: Sender<Work>,
    is_busy: bool,
    /// Whose call it makes; `None`, while it is busy, if nobody waits for it any more.
    request: Option<Request>,
    /// The number of the request that it had then.
    left: u64,
    /// The call is one that can be left to itself.
    can_be_left: bool,
    handle: JoinHandle<()>,
}

/// What a thread needs to say that a call has ended.
#[derive(Debug, Clone)]
struct Report {
    ended: Sender<(usize, Answer<u64>)>,
    event: Arc<EventFd>,
    stops: Arc<AtomicBool>,
}

/// See the module. Its threads begin with the calls that need them.
#[derive(Debug)]
pub(super) struct Later {
    name: String,
    threads: Vec<Thread>,
    queued: VecDeque<(Request, Work)>,
    /// What syncs were told that nobody waited for any more, by the numbers of their requests, which are made again.
    untold: Vec<(u64, Errno)>,
    ended: Receiver<(usize, Answer<u64>)>,
    report: Report,
}

impl Later {
    /// For the device `name`.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let event = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let (sender, ended) = mpsc::channel();
        let report = Report { ended: sender, event, stops: Arc::default() };
        Ok(Later {
            name: name.to_owned(),
            threads: Vec::new(),
            queued: VecDeque::new(),
            untold: Vec::new(),
            ended,
            report,
        })
    }

    /// Becomes readable at each end of a call; watch it edge-triggered.
    pub(super) fn event(&self) -> RawFd {
        self.report.event.as_raw_fd()
    }

    /// Has a call made. It comes back if the host gives no thread for it.
    pub(super) fn submit(&mut self, request: Request, work: Work) -> Result<(), (Request, Work)> {
        self.queued.push_back((request, work));
        self.hand_out();
        if self.threads.is_empty() { self.queued.pop_back().map_or(Ok(()), Err) } else { Ok(()) }
    }

    /// The next request whose call has ended, and what it returned.
    pub(super) fn ended(&mut self) -> Option<(Request, Answer<u64>)> {
        let ended = self.next_ended();
        self.hand_out();
        ended
    }

    /// Takes out the request of this number, unless its call is being made.
    pub(super) fn cancel(&mut self, unique: u64) -> Option<Request> {
        let at = self.queued.iter().position(|(request, _)| request.unique == unique)?;
        self.queued.remove(at).map(|(request, _)| request)
    }

    /// Another guest comes: what requests of this one were told is nobody's.
    pub(super) fn forget(&mut self) {
        self.untold.clear();
        // No request of Linux has this number.
        self.threads.iter_mut().for_each(|thread| thread.left = 0);
    }

    /// Ends the work: all requests, those with an answer that have one. The others are to be begun again later. No call changes
    /// data any more then; a sync that the host is slow with is left to itself.
    pub(super) fn stop(&mut self) -> Vec<(Request, Option<Answer<u64>>)> {
        self.report.stops.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        while let Some((request, answer)) = self.next_ended() {
            all.push((request, Some(answer)));
        }
        all.extend(self.queued.drain(..).map(|(request, _)| (request, None)));
        for thread in self.threads.iter_mut().filter(|thread| thread.can_be_left) {
            let Some(request) = thread.request.take() else { continue };
            thread.left = request.unique;
            all.push((request, None));
        }
        while self.threads.iter().any(|thread| thread.request.is_some()) {
            // This holds a sender too, so that there is always an answer.
            let Ok((at, answer)) = self.ended.recv() else { break };
            if let Some((request, answer)) = self.free(at, answer) {
                all.push((request, Some(answer).filter(|answer| *answer != Err(Errno::INTR))));
            }
        }
        self.report.stops.store(false, Ordering::Relaxed);
        all
    }

    fn next_ended(&mut self) -> Option<(Request, Answer<u64>)> {
        loop {
            let (at, answer) = self.ended.try_recv().ok()?;
            if let Some(ended) = self.free(at, answer) {
                return Some(ended);
            }
        }
    }

    /// A thread has ended its call: whose it was, if anybody waits for it, and the answer.
    fn free(&mut self, at: usize, answer: Answer<u64>) -> Option<(Request, Answer<u64>)> {
        let thread = self.threads.get_mut(at)?;
        thread.is_busy = false;
        let Some(request) = thread.request.take() else {
            self.untold.extend(answer.err().map(|error| (thread.left, error)));
            return None;
        };
        let told = self.untold.iter().position(|(unique, _)| *unique == request.unique);
        let answer = told.map_or(answer, |at| Err(self.untold.swap_remove(at).1));
        Some((request, answer))
    }

    /// Gives calls to idle threads, and to new ones, in their order.
    fn hand_out(&mut self) {
        let is_one_left = self.threads.iter().any(|thread| thread.is_busy && thread.request.is_none());
        let may_begin = |(_, work): &(Request, Work)| !(is_one_left && work.can_be_left());
        while let Some(next) = self.queued.iter().position(may_begin) {
            let idle = self.threads.iter().position(|thread| !thread.is_busy).or_else(|| self.begin_thread());
            let Some(thread) = idle.and_then(|at| self.threads.get_mut(at)) else { return };
            let Some((request, work)) = self.queued.remove(next) else { return };
            (thread.is_busy, thread.can_be_left) = (true, work.can_be_left());
            thread.request = Some(request);
            // It lives as long as its channel.
            let _ = thread.calls.send(work);
        }
    }

    fn begin_thread(&mut self) -> Option<usize> {
        let at = self.threads.len();
        if at == MOST_THREADS {
            return None;
        }
        let (calls, incoming) = mpsc::channel::<Work>();
        let report = self.report.clone();
        let handle = thread::spawn(Role::Helper, &format!("{}-later{at}", self.name), move || {
            for work in incoming {
                let result = catch_unwind(AssertUnwindSafe(|| work.run(&report.stops)));
                if report.ended.send((at, result.unwrap_or(Err(Errno::IO)))).is_err() {
                    return;
                }
                // The counter is never read, it only grows.
                let _ = report.event.write(1);
            }
        });
        match handle {
            Ok(handle) => {
                self.threads.push(Thread {
                    calls,
                    is_busy: false,
                    request: None,
                    left: 0,
                    can_be_left: false,
                    handle,
                });
                Some(at)
            }
            Err(error) => {
                // At a guest's pace, so not more than that.
                log::debug!("{}: no thread for calls that take long: {error}", self.name);
                None
            }
        }
    }
}

/// Threads that are busy are left to themselves: what they sync is nobody's wish any more.
impl Drop for Later {
    fn drop(&mut self) {
        for Thread { calls, is_busy, handle, .. } in self.threads.drain(..) {
            drop(calls);
            if !is_busy {
                let _ = handle.join();
            }
        }
    }
}
