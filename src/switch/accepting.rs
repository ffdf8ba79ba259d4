//! The programs that connect to a socket of a switch's uplink.

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, EpollEvent, EventSet};

use super::link::Link;
use super::run_loop::{Closed, SwitchLoop, Token};
use crate::host::socket_address::has_hung_up;

/// Clients of an uplink's socket in one turn.
const MAX_ACCEPTED: usize = 64;
/// Reads of a peer that has gone. A socket holds less.
const LAST_READS: usize = 64;
/// How long clients are left alone that the host does not let us accept.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// Time between two messages about them.
const COMPLAINT: Duration = Duration::from_secs(60);

/// The listeners that are not watched for now.
#[derive(Debug, Default)]
pub(super) struct Unwatched {
    slots: BTreeSet<usize>,
    /// When they are again.
    pub(super) until: Option<Instant>,
    /// When the last message about them was.
    complained: Option<Instant>,
}

impl SwitchLoop {
    /// Clients of an uplink's socket. One is the peer where there is none; the others are disconnected.
    pub(super) fn accept(&mut self, slot: usize) {
        for _ in 0..MAX_ACCEPTED {
            let Some(uplink) = self.ports.socket(slot) else { return };
            let client = match uplink.accept() {
                Ok(Some(client)) => client,
                Ok(None) => return,
                Err(error) => {
                    self.ignore(slot, &error, Instant::now());
                    return;
                }
            };
            // For each client anew: a program that comes again has closed its old connection before.
            self.finish_if_gone(slot);
            let Some(uplink) = self.ports.socket(slot) else { return };
            if uplink.peer().is_some() || has_hung_up(&client) {
                continue;
            }
            if let Err(error) = uplink.connect(client).and_then(|()| self.link_up(slot)) {
                let name = self.ports.get(slot).map(|port| port.name.as_str()).unwrap_or_default();
                log::warn!("a program on the uplink {name} is disconnected: {error}");
                self.close(slot, &error.into());
            }
        }
    }

    /// Leaves the clients of an uplink's socket alone for a while: the host does not let us accept them, and they go on to wait.
    pub(super) fn ignore(&mut self, slot: usize, error: &io::Error, now: Instant) {
        let Some(port) = self.ports.get(slot) else { return };
        if self.unwatched.complained.is_none_or(|at| now.saturating_duration_since(at) >= COMPLAINT) {
            let cure = match error.raw_os_error() {
                Some(libc::EMFILE) => "; raise `ulimit -n`",
                _ => "",
            };
            log::error!("a program on the uplink {} cannot be accepted yet: {error}{cure}", port.name);
            self.unwatched.complained = Some(now);
        }
        if let Link::Socket(uplink) = &port.link {
            let _ = self.epoll.ctl(ControlOperation::Delete, uplink.listener(), EpollEvent::default());
            self.unwatched.slots.insert(slot);
            self.unwatched.until = Some(now + PAUSE);
        }
    }

    /// Looks at the clients again that were left alone.
    pub(super) fn listen_again(&mut self) {
        self.unwatched.until = None;
        for slot in std::mem::take(&mut self.unwatched.slots) {
            if let Err(error) = self.listen(slot) {
                self.ignore(slot, &error, Instant::now());
            }
        }
    }

    /// Watches the listener of an uplink's socket.
    pub(super) fn listen(&self, slot: usize) -> io::Result<()> {
        let Some(Link::Socket(uplink)) = self.ports.get(slot).map(|port| &port.link) else { return Ok(()) };
        let event = EpollEvent::new(EventSet::IN, Token::Listener(slot).number());
        self.epoll.ctl(ControlOperation::Add, uplink.listener(), event)
    }

    /// Switches what the peer of an uplink's socket sent before it went, and disconnects it.
    fn finish_if_gone(&mut self, slot: usize) {
        for _ in 0..LAST_READS {
            if !self.ports.socket(slot).is_some_and(|uplink| uplink.is_peer_gone()) {
                return;
            }
            self.serve(slot, EventSet::IN);
        }
        self.close(slot, &Closed::End);
    }
}
