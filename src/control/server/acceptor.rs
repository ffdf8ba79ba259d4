//! The thread that accepts connections, and checks that the socket still exists.

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
use super::super::connection::{Service, serve_connection};
use super::{Connections, END_LIMIT};
use crate::shown::path as shown;

/// Pause when the host has no descriptor or thread left.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// How often to check that the socket still exists: its folder may be removed.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

const LISTENER: u64 = 0;
const STOP: u64 = 1;
const ABSTRACT_NAME: u64 = 2;

/// State of the accepting thread.
#[derive(Debug)]
pub(super) struct Acceptor {
    claim: Claim,
    epoll: Epoll,
    connections: Arc<Connections>,
    service: Arc<dyn Service>,
    /// Closed for a moment to refuse a client with a message when the process has no descriptor left.
    spare: Option<File>,
    last_check: Instant,
    /// A warning that the socket cannot be made again was logged.
    warned: bool,
}

impl Acceptor {
    pub(super) fn new(
        claim: Claim,
        stop: &EventFd,
        connections: Arc<Connections>,
        service: Arc<dyn Service>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let mut watched = vec![(claim.listener().as_raw_fd(), LISTENER), (stop.as_raw_fd(), STOP)];
        watched.extend(claim.abstract_name().map(|socket| (socket.fd(), ABSTRACT_NAME)));
        for (fd, token) in watched {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, token))?;
        }
        claim.listener().set_nonblocking(true)?;
        let (spare, last_check) = (spare(), Instant::now());
        Ok(Acceptor { claim, epoll, connections, service, spare, last_check, warned: false })
    }

    /// Accepts connections until the server stops. Returns the claim.
    pub(super) fn accept(mut self) -> Claim {
        let mut events = [EpollEvent::default(); 3];
        let mut until = None;
        loop {
            let limit = i32::try_from(CHECK_INTERVAL.as_millis()).unwrap_or(i32::MAX);
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
            // Connections that were made before the end are accepted, up to a deadline.
            if stop && Instant::now() >= *until.get_or_insert_with(|| Instant::now() + END_LIMIT) {
                return self.claim;
            }
            if has(ABSTRACT_NAME) && self.claim.abstract_name().is_some_and(|socket| !socket.drain()) {
                thread::sleep(RETRY_DELAY);
            }
            if has(LISTENER) || stop {
                match self.claim.listener().accept() {
                    Ok((stream, _)) => start_connection(stream, &self.connections, &self.service),
                    Err(_) if stop => return self.claim,
                    Err(error) => self.accept_failed(&error),
                }
            }
            if !stop && self.last_check.elapsed() >= CHECK_INTERVAL {
                self.check_socket();
            }
        }
    }

    /// Handles an error of accept.
    fn accept_failed(&mut self, error: &io::Error) {
        match error.raw_os_error() {
            // The client has disconnected already.
            Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => {}
            // The listener would be readable again at once.
            Some(libc::EMFILE | libc::ENFILE) if self.spare.take().is_some() => {
                if let Ok((stream, _)) = self.claim.listener().accept() {
                    let noun = self.service.noun();
                    let sentence =
                        format!("The {noun}'s process has no file descriptor left; raise its `ulimit -n`.");
                    send(&stream, &Answer::refusal(503, sentence));
                }
                self.spare = spare();
                thread::sleep(RETRY_DELAY);
            }
            _ => {
                self.spare = self.spare.take().or_else(spare);
                thread::sleep(RETRY_DELAY);
            }
        }
    }

    /// Makes the socket again if its folder was removed.
    fn check_socket(&mut self) {
        self.last_check = Instant::now();
        match self.claim.renew() {
            Ok(false) => self.warned = false,
            Ok(true) => {
                self.warned = false;
                log::info!("the control socket {} had vanished and is there again", shown(self.claim.path()));
                let listener = self.claim.listener();
                let event = EpollEvent::new(EventSet::IN, LISTENER);
                let listens = listener
                    .set_nonblocking(true)
                    .and_then(|()| self.epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), event));
                if let Err(error) = listens {
                    log::error!("the control socket answers no more: {error}");
                }
            }
            Err(error) if !self.warned => {
                self.warned = true;
                log::warn!(
                    "the control socket has vanished, so that the {} hears signals only: {error}",
                    self.service.noun()
                );
            }
            Err(_) => {}
        }
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Starts a thread for a connection, within the limits.
fn start_connection(stream: UnixStream, connections: &Arc<Connections>, service: &Arc<dyn Service>) {
    let stream = Arc::new(stream);
    let Some(register) = connections.register(&stream) else {
        return refuse(&stream, &**service);
    };
    let (served, kept) = (service.clone(), stream.clone());
    let spawned = spawn(Role::ControlClient, "control-client", move || {
        let mut wire = &*kept;
        serve_connection(&mut wire, &register, &*served, &register.connections.limits);
    });
    if spawned.is_err() {
        refuse(&stream, &**service);
        thread::sleep(RETRY_DELAY);
    }
}

/// Never blocks: a new connection has room for this answer, or does not get it.
fn refuse(stream: &UnixStream, service: &dyn Service) {
    let noun = service.noun();
    send(stream, &Answer::refusal(503, format!("This {noun} has as many clients as it can; try again.")));
}

fn send(stream: &UnixStream, answer: &Answer) {
    if stream.set_nonblocking(true).is_ok() {
        let mut stream = stream;
        let _ = stream.write(&answer.bytes(false));
    }
}
