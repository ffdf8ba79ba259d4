//! The control socket at work: a thread that accepts, and one for each connection.

mod door;
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

use super::conversation::{Keeper, Phase};
use super::subject::Subject;
use super::{Claim, Limits};
use door::Door;

/// How long a connection that has to go may take until the new one is refused.
const EVICTION: Duration = Duration::from_secs(1);
/// How long answers may still take to be sent once the machine has ended.
const FAREWELL: Duration = Duration::from_secs(2);

/// How a machine ended, for those who wait for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Exit status of its command.
    pub status: u8,
    /// The same in words.
    pub text: String,
}

/// Serves a machine's control socket until it is finished or dropped.
#[derive(Debug)]
pub struct ControlServer {
    connections: Arc<Connections>,
    stop: EventFd,
    /// Gives the name back, which is free before anybody is told of the end.
    thread: Option<JoinHandle<Claim>>,
}

/// Those who are connected.
#[derive(Debug)]
struct Connections {
    limits: Limits,
    state: Mutex<State>,
    /// One has gone.
    left: Condvar,
    /// All are told that the server stops.
    told: Condvar,
}

#[derive(Debug, Default)]
struct State {
    open: BTreeMap<u64, Connection>,
    next: u64,
    /// The last ones are let in; nobody has to go for them.
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
    /// Begins to serve what connects to the claimed socket; those who have connected before are waiting there.
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub fn serve(claim: Claim, subject: Arc<dyn Subject>) -> io::Result<Self> {
        Self::serve_within(claim, subject, Limits::DEFAULT)
    }

    pub(super) fn serve_within(claim: Claim, subject: Arc<dyn Subject>, limits: Limits) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let connections = Arc::new(Connections {
            limits,
            state: Mutex::default(),
            left: Condvar::new(),
            told: Condvar::new(),
        });
        let door = Door::open(claim, &stop, connections.clone(), subject)?;
        let thread = thread::spawn(Role::Control, "control", move || door.accept())?;
        Ok(ControlServer { connections, stop, thread: Some(thread) })
    }

    /// The machine has ended: gives its name back, tells those who wait, lets answers that are on their way arrive, closes
    /// the rest. Who is told may start the next machine of this name at once.
    pub fn finish(mut self, ending: Ending) {
        self.stop(Some(ending));
    }

    fn stop(&mut self, ending: Option<Ending>) {
        let Some(thread) = self.thread.take() else { return };
        self.connections.state().closing = true;
        // Its counter has room for 2^64 of these.
        let _ = self.stop.write(1);
        // It cannot have panicked without having been seen on stderr.
        drop(thread.join());
        self.connections.say_goodbye(ending);
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

    /// A place for a new connection. Where all are taken, the one goes that has been at the same thing for longest, unless
    /// the machine is at work for it: of those who ask and listen none is ever that one.
    fn seat(self: &Arc<Self>, stream: &Arc<UnixStream>) -> Option<Seat> {
        let mut state = self.state();
        if state.open.len() >= self.limits.connections {
            if state.closing {
                return None;
            }
            let may_go = state.open.values().filter(|one| one.phase <= Phase::Writing);
            let victim = may_go.min_by_key(|one| one.since)?;
            // Its thread sees the end of its stream, whatever it is waiting for there.
            let _ = victim.stream.shutdown(Shutdown::Both);
            let full = |state: &mut State| state.open.len() >= self.limits.connections;
            (state, _) =
                self.left.wait_timeout_while(state, EVICTION, full).unwrap_or_else(PoisonError::into_inner);
            if full(&mut state) {
                return None;
            }
        }
        let number = state.next;
        state.next += 1;
        let connection = Connection { stream: stream.clone(), phase: Phase::Idle, since: Instant::now() };
        state.open.insert(number, connection);
        Some(Seat { connections: self.clone(), number })
    }

    /// Wakes those who wait for a request or for the end. Others see it when they are done with what they do.
    fn say_goodbye(&self, ending: Option<Ending>) {
        let mut state = self.state();
        state.stopping = true;
        let told = ending.is_some();
        state.ending = ending;
        self.told.notify_all();
        for one in state.open.values() {
            let how = match one.phase {
                Phase::Idle | Phase::Reading | Phase::Waiting => Shutdown::Read,
                // Without an end of the machine nothing would end it.
                Phase::Streaming if !told => Shutdown::Both,
                Phase::Writing | Phase::Acting | Phase::Streaming => continue,
            };
            let _ = one.stream.shutdown(how);
        }
    }

    fn wait_until_gone(&self) {
        let some = |state: &mut State| !state.open.is_empty();
        let (state, _) = self
            .left
            .wait_timeout_while(self.state(), FAREWELL, some)
            .unwrap_or_else(PoisonError::into_inner);
        for one in state.open.values() {
            let _ = one.stream.shutdown(Shutdown::Both);
        }
    }
}

/// One connection's place, given back with this value.
#[derive(Debug)]
struct Seat {
    connections: Arc<Connections>,
    number: u64,
}

impl Keeper for Seat {
    fn enter(&self, phase: Phase) -> bool {
        let mut state = self.connections.state();
        let is_stream = |phase| phase >= Phase::Waiting;
        let streams = state.open.values().filter(|one| is_stream(one.phase)).count();
        let refused = match phase {
            Phase::Waiting | Phase::Streaming => {
                streams >= self.connections.limits.streams || (state.stopping && state.ending.is_none())
            }
            Phase::Idle | Phase::Reading | Phase::Writing | Phase::Acting => false,
        };
        let stopping = state.stopping;
        if let Some(own) = state.open.get_mut(&self.number).filter(|_| !refused) {
            (own.phase, own.since) = (phase, Instant::now());
            if stopping && phase == Phase::Idle {
                // What has come is still read and answered, then the stream is at its end.
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
        let told = &self.connections.told;
        let waited = told.wait_timeout_while(self.connections.state(), limit, goes_on);
        waited.unwrap_or_else(PoisonError::into_inner).0.stopping
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.state().open.remove(&self.number);
        self.connections.left.notify_all();
    }
}
