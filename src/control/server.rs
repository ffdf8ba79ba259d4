//! The control socket at work: a thread that accepts, and one for each connection.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::answer::Answer;
use super::conversation::{Keeper, Phase, converse};
use super::subject::Subject;
use super::{Claim, Limits};

/// How long a connection that has to go may take until the new one is refused.
const EVICTION: Duration = Duration::from_secs(1);
/// How long answers may still take to be sent once the machine has ended.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long to leave a host alone that has no descriptor or thread left.
const EXHAUSTED: Duration = Duration::from_millis(100);
/// A connection's thread needs little: its buffers are on the heap, and small.
pub(super) const STACK: usize = 256 << 10;

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
    thread: Option<JoinHandle<()>>,
    /// The name, which is given back before anybody is told of the end.
    claim: Option<Claim>,
}

/// Those who are connected.
#[derive(Debug)]
struct Connections {
    limits: Limits,
    state: Mutex<State>,
    /// One has gone.
    left: Condvar,
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
        let listener = claim.listener().try_clone()?;
        listener.set_nonblocking(true)?;
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let epoll = Epoll::new()?;
        for (fd, token) in [(listener.as_raw_fd(), LISTENER), (stop.as_raw_fd(), STOP)] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))?;
        }
        let connections = Arc::new(Connections { limits, state: Mutex::default(), left: Condvar::new() });
        let shared = connections.clone();
        let thread = thread::Builder::new()
            .name("control".into())
            .stack_size(STACK)
            .spawn(move || accept(&listener, &epoll, &shared, &subject))?;
        Ok(ControlServer { connections, stop, thread: Some(thread), claim: Some(claim) })
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
        let _ = thread.join();
        drop(self.claim.take());
        self.connections.say_goodbye(ending);
        self.connections.wait_until_gone();
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop(None);
    }
}

const LISTENER: u64 = 0;
const STOP: u64 = 1;

/// Takes connections until it is told to stop.
fn accept(
    listener: &UnixListener,
    epoll: &Epoll,
    connections: &Arc<Connections>,
    subject: &Arc<dyn Subject>,
) {
    let mut events = [EpollEvent::default(); 2];
    let mut until = None;
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return log::error!("the control socket answers no more: {error}"),
        };
        let stop = events.iter().take(count).any(|event| event.data() == STOP);
        // Who connected before the end is heard, however many more come meanwhile.
        if stop && Instant::now() >= *until.get_or_insert_with(|| Instant::now() + FAREWELL) {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => admit(stream, connections, subject),
            Err(_) if stop => return,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // The client has gone already, or the host has no descriptor left.
            Err(_) => thread::sleep(EXHAUSTED),
        }
    }
}

/// Gives a connection its thread, if there is room.
fn admit(stream: UnixStream, connections: &Arc<Connections>, subject: &Arc<dyn Subject>) {
    let stream = Arc::new(stream);
    let Some(seat) = connections.seat(&stream) else {
        return refuse(&stream);
    };
    let (subject, kept) = (subject.clone(), stream.clone());
    let spawned = thread::Builder::new().name("control-client".into()).stack_size(STACK).spawn(move || {
        let mut wire = &*kept;
        converse(&mut wire, &seat, &*subject, &seat.connections.limits);
    });
    if spawned.is_err() {
        refuse(&stream);
        thread::sleep(EXHAUSTED);
    }
}

/// Never waits: a new connection has room for this, or is given up.
fn refuse(stream: &UnixStream) {
    let answer = Answer::refusal(503, "This machine has as many clients as it can; try again.");
    if stream.set_nonblocking(true).is_ok() {
        let mut stream = stream;
        let _ = stream.write(&answer.bytes(false));
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
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.state().open.remove(&self.number);
        self.connections.left.notify_all();
    }
}
