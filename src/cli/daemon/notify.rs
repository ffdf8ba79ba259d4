//! Notifications for the service manager: sd_notify(3), a datagram to the socket in NOTIFY_SOCKET.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::Level;

use crate::cli::report;
use crate::host::process::take_variable;

/// A service manager that reads nothing must not block the machine.
const LIMIT: Duration = Duration::from_secs(5);

/// The service manager, if there is one.
#[derive(Debug, Default)]
pub(in crate::cli) struct Notify {
    manager: Option<SocketAddr>,
    stopping: AtomicBool,
}

impl Notify {
    /// The manager in NOTIFY_SOCKET, which is removed from the environment: it is meant for this process
    /// only.
    pub(in crate::cli) fn take() -> Self {
        take_variable("NOTIFY_SOCKET").map_or_else(Notify::default, |address| Notify::new(&address))
    }

    fn new(address: &OsStr) -> Self {
        let manager = match address.as_bytes().split_first() {
            Some((b'@', name)) => SocketAddr::from_abstract_name(name),
            Some((b'/', _)) => SocketAddr::from_pathname(address),
            // sd_notify(3) defines no other address for this host.
            _ => Err(io::ErrorKind::InvalidInput.into()),
        };
        Notify { manager: manager.map_err(warn).ok(), stopping: AtomicBool::new(false) }
    }

    /// The machine runs in this process.
    pub(in crate::cli) fn ready(&self, pid: u32) {
        self.send(&format!("READY=1\nSTATUS=The machine runs.\nMAINPID={pid}\n"));
    }

    /// The machine will end, or has ended: sent once.
    pub(in crate::cli) fn stopping(&self, status: &str) {
        if !self.stopping.swap(true, Ordering::Relaxed) {
            self.send(&format!("STOPPING=1\nSTATUS={status}\n"));
        }
    }

    fn send(&self, text: &str) {
        let Some(manager) = &self.manager else { return };
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_write_timeout(Some(LIMIT))?;
            socket.send_to_addr(text.as_bytes(), manager)
        });
        if let Err(error) = sent {
            warn(error);
        }
    }
}

fn warn(error: io::Error) {
    let text = format_args!("minivmm: warning: the service manager in NOTIFY_SOCKET was not told: {error}\n");
    report::message_at(Level::Warn, &text);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        let n = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..n].to_vec()).unwrap()
    }

    #[test]
    fn manager_is_told_by_a_path_or_a_name_and_once_that_it_stops() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("@minivmm-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name[1..]).unwrap();
        let sockets = [UnixDatagram::bind(&path).unwrap(), UnixDatagram::bind_addr(&address).unwrap()];
        for (socket, address) in sockets.iter().zip([path.as_os_str(), OsStr::new(&name)]) {
            let notify = Notify::new(address);
            notify.ready(7);
            assert_eq!(receive(socket), "READY=1\nSTATUS=The machine runs.\nMAINPID=7\n");
            notify.stopping("It was asked to.");
            notify.stopping("It has ended.");
            assert_eq!(receive(socket), "STOPPING=1\nSTATUS=It was asked to.\n");
            socket.set_nonblocking(true).unwrap();
            assert!(socket.recv(&mut [0]).is_err());
        }
        for nowhere in ["", "relative", "/nonexistent/notify"] {
            Notify::new(OsStr::new(nowhere)).ready(7);
        }
    }
}
