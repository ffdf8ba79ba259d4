//! The server of the control socket: one thread that accepts, and one per connection.

mod acceptor;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::thread::{self, Role};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::connection::{Phase, Registration, Service};
use super::routes::MachineService;
use super::target::ControlTarget;
use super::{Claim, Limits};
use acceptor::Acceptor;

/// How long a connection that is replaced may take to close before the new one is refused.
const REPLACE_LIMIT: Duration = Duration::from_secs(1);
/// How long answers may take to be sent once the machine has ended.
const END_LIMIT: Duration = Duration::from_secs(2);

/// How a machine ended, for clients that wait for its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Exit status of the machine's command.
    pub status: u8,
    /// The same in words.
    pub text: String,
}

/// Serves a machine's control socket until it is finished or dropped.
#[derive(Debug)]
pub struct ControlServer {
    connections: Arc<Connections>,
    stop: EventFd,
    /// Returns the claim, so that the name is released before any client is told of the end.
    thread: Option<JoinHandle<Claim>>,
}

/// The table of connections.
#[derive(Debug)]
struct Connections {
    limits: Limits,
    state: Mutex<State>,
    /// Signalled when a connection is removed.
    removed: Condvar,
    /// Signalled when the server stops.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<u64, Connection>,
    next: u64,
    /// The last pending connections are accepted; none is closed to make room for them.
    closing: bool,
    stopping: bool,
    ending: Option<Ending>,
}

#[derive(Debug)]
struct Connection {
    stream: Arc<UnixStream>,
    phase: Phase,
    since: Instant,
}

impl ControlServer {
    /// Starts to serve the claimed socket; clients that have connected before are in its backlog.
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub fn serve(claim: Claim, target: Arc<dyn ControlTarget>) -> io::Result<Self> {
        Self::serve_requests(claim, Arc::new(MachineService(target)), Limits::DEFAULT)
    }

    /// The same for requests to another `service`.
    pub(crate) fn serve_requests(
        claim: Claim,
        service: Arc<dyn Service>,
        limits: Limits,
    ) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let connections = Arc::new(Connections {
            limits,
            state: Mutex::default(),
            removed: Condvar::new(),
            ended: Condvar::new(),
        });
        let acceptor = Acceptor::new(claim, &stop, connections.clone(), service)?;
        let thread = thread::spawn(Role::Control, "control", move || acceptor.accept())?;
        Ok(ControlServer { connections, stop, thread: Some(thread) })
    }

    /// The machine has ended: releases its name, answers clients that wait for the end, completes answers
    /// that are being written, and closes the rest. A client may start the next machine of this name as soon
    /// as it has its answer.
    pub fn finish(mut self, ending: Ending) {
        self.stop(Some(ending));
    }

    fn stop(&mut self, ending: Option<Ending>) {
        let Some(thread) = self.thread.take() else { return };
        self.connections.state().closing = true;
        // The counter of an eventfd has room for 2^64 of these.
        let _ = self.stop.write(1);
        // A panic of the thread was already printed on stderr.
        drop(thread.join());
        self.connections.announce_end(ending);
        self.connections.wait_until_gone();
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop(None);
    }
}

impl Connections {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An entry for a new connection. When all are in use, it replaces one that has its last answer, or else the one that has been
    /// in its phase for longest, unless the machine is working for that one; an active client is never that one.
    fn register(self: &Arc<Self>, stream: &Arc<UnixStream>) -> Option<Registered> {
        let mut state = self.state();
        if state.open.len() >= self.limits.connections {
            if state.closing {
                return None;
            }
            let may_go = state.open.values().filter(|one| one.phase <= Phase::Writing);
            let victim = may_go.min_by_key(|one| (one.phase != Phase::Leaving, one.since))?;
            // Its thread sees the end of its stream, whatever it is waiting for there.
            let _ = victim.stream.shutdown(Shutdown::Both);
            let full = |state: &mut State| state.open.len() >= self.limits.connections;
            (state, _) = self
                .removed
                .wait_timeout_while(state, REPLACE_LIMIT, full)
                .unwrap_or_else(PoisonError::into_inner);
            if full(&mut state) {
                return None;
            }
        }
        let number = state.next;
        state.next += 1;
        let connection = Connection { stream: stream.clone(), phase: Phase::Idle, since: Instant::now() };
        state.open.insert(number, connection);
        Some(Registered { connections: self.clone(), number })
    }

    /// Wakes connections that read a request or wait for the end. The others see it when their work is done.
    fn announce_end(&self, ending: Option<Ending>) {
        let mut state = self.state();
        state.stopping = true;
        let ended = ending.is_some();
        state.ending = ending;
        self.ended.notify_all();
        for one in state.open.values() {
            let how = match one.phase {
                Phase::Leaving | Phase::Idle | Phase::Reading | Phase::Waiting => Shutdown::Read,
                // Without an ending the stream of events does not end by itself.
                Phase::Streaming if !ended => Shutdown::Both,
                Phase::Writing | Phase::Acting | Phase::Streaming => continue,
            };
            let _ = one.stream.shutdown(how);
        }
    }

    fn wait_until_gone(&self) {
        let some = |state: &mut State| !state.open.is_empty();
        let (state, _) = self
            .removed
            .wait_timeout_while(self.state(), END_LIMIT, some)
            .unwrap_or_else(PoisonError::into_inner);
        for one in state.open.values() {
            let _ = one.stream.shutdown(Shutdown::Both);
        }
    }
}

/// One connection's entry in the table, removed on drop.
#[derive(Debug)]
struct Registered {
    connections: Arc<Connections>,
    number: u64,
}

impl Registration for Registered {
    fn enter(&self, phase: Phase) -> bool {
        let mut state = self.connections.state();
        let is_stream = |phase| phase >= Phase::Waiting;
        let streams = state.open.values().filter(|one| is_stream(one.phase)).count();
        let refused = match phase {
            Phase::Waiting | Phase::Streaming => {
                streams >= self.connections.limits.streams || (state.stopping && state.ending.is_none())
            }
            Phase::Leaving | Phase::Idle | Phase::Reading | Phase::Writing | Phase::Acting => false,
        };
        let stopping = state.stopping;
        if let Some(own) = state.open.get_mut(&self.number).filter(|_| !refused) {
            (own.phase, own.since) = (phase, Instant::now());
            if stopping && phase <= Phase::Idle {
                // Requests that have arrived are still answered, then the stream is at its end.
                let _ = own.stream.shutdown(Shutdown::Read);
            }
        }
        !refused
    }

    fn ending(&self) -> Option<Ending> {
        self.connections.state().ending.clone()
    }

    fn stops_within(&self, limit: Duration) -> bool {
        let goes_on = |state: &mut State| !state.stopping;
        let ended = &self.connections.ended;
        let waited = ended.wait_timeout_while(self.connections.state(), limit, goes_on);
        waited.unwrap_or_else(PoisonError::into_inner).0.stopping
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.connections.state().open.remove(&self.number);
        self.connections.removed.notify_all();
    }
}
