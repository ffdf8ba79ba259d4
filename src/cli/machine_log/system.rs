//! The host's log, by the protocol that all of them accept: one datagram per line, as in RFC 3164.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use log::Level;

use crate::host::clock::LocalTime;

/// Facility "daemon" (RFC 3164, table 1), shifted.
const FACILITY: u8 = 3 << 3;

/// A socket that accepts messages.
#[derive(Debug)]
pub(super) struct SystemLog {
    path: PathBuf,
    socket: UnixDatagram,
}

impl SystemLog {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // Checks that a daemon listens. The socket is not connected: the daemon may be restarted.
        UnixDatagram::unbound()?.connect(path)?;
        let socket = UnixDatagram::unbound()?;
        // A log that is blocked must not block the machine.
        socket.set_nonblocking(true)?;
        Ok(SystemLog { path: path.into(), socket })
    }

    pub(super) fn write(&self, level: Level, line: &str) {
        let message = format!("<{}>{} {line}", FACILITY + severity(level), LocalTime::now().rfc3164());
        let _ = self.socket.send_to(message.as_bytes(), &self.path);
    }
}

/// RFC 3164, table 2.
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_what_a_log_expects_and_reach_one_that_was_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        assert!(SystemLog::open(&path).is_err());
        let host = UnixDatagram::bind(&path).unwrap();
        let log = SystemLog::open(&path).unwrap();
        let receive = |host: &UnixDatagram| {
            let mut bytes = [0; 256];
            let n = host.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..n].to_vec()).unwrap()
        };
        log.write(Level::Warn, "minivmm[1]: vm0: beware");
        let said = receive(&host);
        // <PRI>, then the time in 15 characters.
        assert!(said.starts_with("<28>") && &said[19..] == " minivmm[1]: vm0: beware", "{said}");
        drop(host);
        log.write(Level::Error, "lost");
        std::fs::remove_file(&path).unwrap();
        let host = UnixDatagram::bind(&path).unwrap();
        log.write(Level::Error, "minivmm[1]: vm0: gone");
        assert!(receive(&host).starts_with("<27>"));
        // No reader, and no blocked writer.
        (0..10_000).for_each(|_| log.write(Level::Info, "minivmm[1]: more"));
    }
}
