//! The thread that accepts connections, and looks after the socket that they come to.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use devices::thread::{Role, spawn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::super::Claim;
use super::super::answer::Answer;
use super::super::conversation::converse;
use super::super::subject::Subject;
use super::{Connections, FAREWELL};

/// How long to wait when the host has no descriptor or thread left.
const EXHAUSTED: Duration = Duration::from_millis(100);
/// How often to look whether the socket is still there: its folder may be removed.
const LOOK: Duration = Duration::from_secs(2);

const LISTENER: u64 = 0;
const STOP: u64 = 1;
const GUARD: u64 = 2;

/// What the accepting thread has.
#[derive(Debug)]
pub(super) struct Door {
    claim: Claim,
    epoll: Epoll,
    connections: Arc<Connections>,
    subject: Arc<dyn Subject>,
    /// Given up for a moment to refuse a client in words when the process has no descriptor left.
    spare: Option<File>,
    looked: Instant,
    /// Why the socket could not be made again, once it was said.
    said: bool,
}

impl Door {
    pub(super) fn open(
        claim: Claim,
        stop: &EventFd,
        connections: Arc<Connections>,
        subject: Arc<dyn Subject>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let mut watched = vec![(claim.listener().as_raw_fd(), LISTENER), (stop.as_raw_fd(), STOP)];
        watched.extend(claim.guard().map(|guard| (guard.fd(), GUARD)));
        for (fd, token) in watched {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))?;
        }
        claim.listener().set_nonblocking(true)?;
        let (spare, looked) = (spare(), Instant::now());
        Ok(Door { claim, epoll, connections, subject, spare, looked, said: false })
    }

    /// Takes connections until it is told to stop. Gives the name back.
    pub(super) fn accept(mut self) -> Claim {
        let mut events = [EpollEvent::default(); 3];
        let mut until = None;
        loop {
            let limit = i32::try_from(LOOK.as_millis()).unwrap_or(i32::MAX);
            let count = match self.epoll.wait(limit, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("the control socket answers no more: {error}");
                    return self.claim;
                }
            };
            let has = |token| events.iter().take(count).any(|event| event.data() == token);
            let stop = has(STOP);
            // Who connected before the end is heard, however many more come meanwhile.
            if stop && Instant::now() >= *until.get_or_insert_with(|| Instant::now() + FAREWELL) {
                return self.claim;
            }
            if has(GUARD) && self.claim.guard().is_some_and(|guard| !guard.let_go()) {
                thread::sleep(EXHAUSTED);
            }
            if has(LISTENER) || stop {
                match self.claim.listener().accept() {
                    Ok((stream, _)) => admit(stream, &self.connections, &self.subject),
                    Err(_) if stop => return self.claim,
                    Err(error) => self.refused(&error),
                }
            }
            if !stop && self.looked.elapsed() >= LOOK {
                self.look();
            }
        }
    }

    /// What it means that nobody could be let in.
    fn refused(&mut self, error: &io::Error) {
        match error.raw_os_error() {
            // The client has gone already.
            Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => {}
            // It would come up again at once.
            Some(libc::EMFILE | libc::ENFILE) if self.spare.take().is_some() => {
                if let Ok((stream, _)) = self.claim.listener().accept() {
                    let sentence =
                        "The machine's process has no file descriptor left; raise its `ulimit -n`.";
                    send(&stream, &Answer::refusal(503, sentence));
                }
                self.spare = spare();
                thread::sleep(EXHAUSTED);
            }
            _ => {
                self.spare = self.spare.take().or_else(spare);
                thread::sleep(EXHAUSTED);
            }
        }
    }

    /// Makes the socket again if its folder was removed.
    fn look(&mut self) {
        self.looked = Instant::now();
        match self.claim.renew() {
            Ok(false) => self.said = false,
            Ok(true) => {
                self.said = false;
                log::info!(
                    "the control socket {} had vanished and is there again",
                    self.claim.path().display()
                );
                let listener = self.claim.listener();
                let event = EpollEvent::new(EventSet::IN, LISTENER);
                let listens = listener
                    .set_nonblocking(true)
                    .and_then(|()| self.epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), event));
                if let Err(error) = listens {
                    log::error!("the control socket answers no more: {error}");
                }
            }
            Err(error) if !self.said => {
                self.said = true;
                log::warn!(
                    "the control socket has vanished, so that the machine hears signals only: {error}"
                );
            }
            Err(_) => {}
        }
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Gives a connection its thread, if there is room.
fn admit(stream: UnixStream, connections: &Arc<Connections>, subject: &Arc<dyn Subject>) {
    let stream = Arc::new(stream);
    let Some(seat) = connections.seat(&stream) else {
        return refuse(&stream);
    };
    let (subject, kept) = (subject.clone(), stream.clone());
    let spawned = spawn(Role::ControlClient, "control-client", move || {
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
    send(stream, &Answer::refusal(503, "This machine has as many clients as it can; try again."));
}

fn send(stream: &UnixStream, answer: &Answer) {
    if stream.set_nonblocking(true).is_ok() {
        let mut stream = stream;
        let _ = stream.write(&answer.bytes(false));
    }
}
