//! The ports of the host that lead to the guest: a list that outlives the machine's boots and changes while it runs.
//!
//! Whoever asks for a port opens it, and learns at once whether that is possible; the thread of the network only gets the open
//! socket. So a port takes connections even while its guest boots or rests.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::Duration;

use usernet::{Forward, Protocol};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::sockets::BoundSocket;
use super::wire::Wire;
use crate::host::lock_soon::free_soon;
use crate::host::port_owner;
use crate::host::soon::{MOMENT, patience_for};
use crate::spec;

/// How long the thread of a network may take to let go of a port.
const LET_GO: Duration = Duration::from_secs(1);

/// The open ports. Clones are of the same ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ports(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    open: Vec<(Forward, BoundSocket)>,
    /// The network of the present boot.
    network: Weak<Changes>,
}

impl Ports {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a port, and returns its address.
    pub(crate) fn open(&self, forward: Forward) -> io::Result<SocketAddr> {
        let mut state = self.state();
        let network = state.network.upgrade();
        let kept = network.as_ref().and_then(|network| network.take_kept(forward.protocol, forward.bind));
        let socket = match kept {
            Some(socket) => socket,
            None => open_soon(&forward, || BoundSocket::open(forward.protocol, forward.bind))?,
        };
        let address = socket.address();
        if let Some(network) = network {
            network.push(Change::Add(socket.try_clone()?, forward))?;
        }
        state.open.push((forward, socket));
        Ok(address)
    }

    /// Closes the port at `address`; connections go on. False: it is not open. A port of UDP stays taken while the thread of
    /// the network rests, but can be opened again.
    pub(crate) fn close(&self, protocol: Protocol, address: SocketAddr) -> bool {
        let mut state = self.state();
        let is_it = |(forward, socket): &(Forward, BoundSocket)| {
            (forward.protocol, socket.address()) == (protocol, address)
        };
        let Some(index) = state.open.iter().position(is_it) else { return false };
        let (_, socket) = state.open.remove(index);
        let network = state.network.upgrade();
        drop(state);
        if let Some(answered) = network.and_then(|network| network.remove(protocol, socket)) {
            // An error: that network is gone, and its sockets with it, or its thread rests.
            let _ = answered.recv_timeout(LET_GO);
        }
        true
    }

    /// Closes all of them.
    pub(crate) fn close_all(&self) {
        let mut state = self.state();
        state.open.clear();
        state.network = Weak::new();
    }

    /// What was asked for, and the address that each has.
    pub(super) fn list(&self) -> Vec<(Forward, SocketAddr)> {
        self.state().open.iter().map(|(forward, socket)| (*forward, socket.address())).collect()
    }

    /// Has all ports lead to `wire`, and those that are opened later to whoever looks at the changes.
    pub(super) fn attach(&self, wire: &mut Wire) -> io::Result<Arc<Changes>> {
        let mut state = self.state();
        for (forward, socket) in &state.open {
            wire.forward(socket.try_clone()?, *forward)?;
        }
        let changes = Arc::new(Changes::new()?);
        wire.watch(changes.fd())?;
        state.network = Arc::downgrade(&changes);
        Ok(changes)
    }
}

/// Has `open` open a port, again for a short time if it is taken: one that this process has closed just now stays open in a program that one
/// of its threads starts, until that runs.
fn open_soon<T>(forward: &Forward, mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut opened = None;
    let attempt = || match open() {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            opened = Some(Err(error));
            Ok(false)
        }
        result => {
            opened = Some(result);
            Ok(true)
        }
    };
    free_soon(attempt, || patience_with(forward))?;
    opened.unwrap_or_else(|| Err(ErrorKind::AddrInUse.into()))
}

/// How long to wait for the port.
fn patience_with(forward: &Forward) -> Duration {
    let protocol = match forward.protocol {
        Protocol::Tcp => spec::Protocol::Tcp,
        Protocol::Udp => spec::Protocol::Udp,
    };
    let owners = port_owner::find_all(Path::new("/proc"), protocol, forward.bind);
    owners.map(|owner| patience_for(owner.pid)).min().unwrap_or(MOMENT)
}

/// What has changed since the network of a boot looked last.
#[derive(Debug)]
pub(super) struct Changes {
    queue: Mutex<Vec<Change>>,
    /// There are some.
    waiting: AtomicBool,
    wake: EventFd,
}

#[derive(Debug)]
enum Change {
    Add(BoundSocket, Forward),
    /// With a socket of UDP, which stays bound until the thread has let go of its own: who wants the port again gets this one.
    Remove(Protocol, SocketAddr, Option<BoundSocket>, mpsc::Sender<()>),
}

impl Changes {
    fn new() -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Changes { queue: Mutex::default(), waiting: AtomicBool::new(false), wake })
    }

    fn fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    fn queue(&self) -> MutexGuard<'_, Vec<Change>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, change: Change) -> io::Result<()> {
        self.queue().push(change);
        self.waiting.store(true, Ordering::Release);
        self.wake.write(1)
    }

    /// Has a port closed; the answer comes when it is. `None`: the thread does not have it.
    fn remove(&self, protocol: Protocol, socket: BoundSocket) -> Option<mpsc::Receiver<()>> {
        let address = socket.address();
        let is_added = |change: &Change| match change {
            Change::Add(socket, forward) => (forward.protocol, socket.address()) == (protocol, address),
            Change::Remove(..) => false,
        };
        let mut queue = self.queue();
        // One that rests for long has no more in its queue than there are ports.
        if let Some(index) = queue.iter().rposition(is_added) {
            queue.remove(index);
            // The thread may have the port of before.
            let before = queue.iter_mut().find_map(|change| match change {
                Change::Remove(kind, at, kept, _) if (*kind, *at) == (protocol, address) => Some(kept),
                Change::Remove(..) | Change::Add(..) => None,
            });
            if let Some(kept) = before.filter(|_| protocol == Protocol::Udp) {
                *kept = Some(socket);
            }
            return None;
        }
        drop(queue);
        // The thread still has a listener; it takes nothing any more.
        socket.refuse();
        let kept = Some(socket).filter(|_| protocol == Protocol::Udp);
        let (answer, answered) = mpsc::channel();
        self.push(Change::Remove(protocol, address, kept, answer)).ok().map(|()| answered)
    }

    /// The socket of a port that is about to be closed.
    fn take_kept(&self, protocol: Protocol, bind: SocketAddr) -> Option<BoundSocket> {
        self.queue().iter_mut().find_map(|change| match change {
            Change::Remove(kind, address, kept, _) if (*kind, *address) == (protocol, bind) => kept.take(),
            Change::Remove(..) | Change::Add(..) => None,
        })
    }

    /// Carries out what is waiting.
    pub(super) fn apply(&self, wire: &mut Wire) {
        if !self.waiting.load(Ordering::Relaxed) || !self.waiting.swap(false, Ordering::Acquire) {
            return;
        }
        for change in std::mem::take(&mut *self.queue()) {
            match change {
                Change::Add(socket, forward) => {
                    let address = socket.address();
                    if let Err(error) = wire.forward(socket, forward) {
                        log::warn!("port {address} does not lead to the guest: {error}");
                    }
                }
                Change::Remove(protocol, address, kept, answer) => {
                    wire.remove_forward(protocol, address);
                    drop(kept);
                    // Nobody waits any more if it took long.
                    let _ = answer.send(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::host::testing::starting;

    fn forward(bind: SocketAddr) -> Forward {
        Forward { protocol: Protocol::Tcp, bind, guest_port: 22 }
    }

    #[test]
    fn a_port_that_was_closed_is_had_when_a_program_that_begins_lets_go_of_it() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = first.local_addr().unwrap();
        let (child, mut begun, mut end) = starting();
        begun.read_exact(&mut [0]).unwrap();
        drop(first);
        assert_eq!(patience_with(&forward(address)), MOMENT, "a child that begins is no other process");
        let mut refused = 0;
        let open = || {
            let opened = TcpListener::bind(address);
            refused += u32::from(opened.is_err());
            if opened.is_err() && refused == 2 {
                end.write_all(&[0])?;
            }
            opened
        };
        assert_eq!(open_soon(&forward(address), open).unwrap().local_addr().unwrap(), address);
        assert!(refused >= 2);
        child.join().unwrap();
    }

    #[test]
    fn a_port_that_is_open_is_refused_at_once() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = first.local_addr().unwrap();
        let mut attempts = 0;
        let open = || {
            attempts += 1;
            TcpListener::bind(address)
        };
        let error = open_soon(&forward(address), open).unwrap_err();
        assert_eq!((error.kind(), attempts), (ErrorKind::AddrInUse, 1));
        let never = || Err::<(), _>(ErrorKind::AddrNotAvailable.into());
        assert_eq!(open_soon(&forward(address), never).unwrap_err().kind(), ErrorKind::AddrNotAvailable);
    }
}
