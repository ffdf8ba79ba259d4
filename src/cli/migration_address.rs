//! Where a migration's stream goes or comes from, besides a program's standard streams.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::host::connect::connect;
use crate::host::lock::user;
use crate::host::peer::Peer;
use crate::migration::Stream;

const CONNECT: Duration = Duration::from_secs(10);

/// `unix:PATH`, or `tcp:ADDRESS:PORT` of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigrationAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// A port of the loopback interface.
    Tcp(SocketAddr),
}

impl FromStr for MigrationAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "give unix:PATH, or tcp:127.0.0.1:PORT";
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(MigrationAddress::Unix(path.into())),
            Some(("tcp", address)) => {
                let address: SocketAddr = address.parse().map_err(|_| FORM)?;
                if address.ip().is_loopback() {
                    return Ok(MigrationAddress::Tcp(address));
                }
                Err(
                    "the stream is neither encrypted nor authenticated, so that it does not leave the host; use ssh to another one: \
                     --to 'ssh HOST minivmm receive'",
                )
            }
            _ => Err(FORM),
        }
    }
}

impl fmt::Display for MigrationAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MigrationAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            MigrationAddress::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl MigrationAddress {
    pub(super) fn connect(&self) -> io::Result<Stream> {
        match self {
            MigrationAddress::Unix(path) => of_unix(connect(path, Instant::now() + CONNECT)?),
            MigrationAddress::Tcp(address) => of_tcp(TcpStream::connect_timeout(address, CONNECT)?),
        }
    }

    /// Waits for one that connects. `listening` is called when somebody can.
    pub(super) fn accept(&self, listening: impl FnOnce(&Self)) -> io::Result<Stream> {
        match self {
            MigrationAddress::Unix(path) => {
                let listener = UnixListener::bind(path)?;
                listening(self);
                let accepted = listener.accept();
                let _ = std::fs::remove_file(path);
                let (stream, _) = accepted?;
                let peer = Peer::of(&stream)?.user;
                if peer != user() && peer != 0 {
                    return Err(io::Error::other(format!(
                        "user {peer} has connected, who may not send this user a machine"
                    )));
                }
                of_unix(stream)
            }
            MigrationAddress::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listening(&MigrationAddress::Tcp(listener.local_addr()?));
                of_tcp(listener.accept()?.0)
            }
        }
    }
}

fn of_unix(stream: UnixStream) -> io::Result<Stream> {
    Ok(Stream { reader: Box::new(stream.try_clone()?), writer: Box::new(stream) })
}

fn of_tcp(stream: TcpStream) -> io::Result<Stream> {
    stream.set_nodelay(true)?;
    Ok(Stream { reader: Box::new(stream.try_clone()?), writer: Box::new(stream) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_stay_on_this_host() {
        let parse = |text: &str| text.parse::<MigrationAddress>();
        for good in ["unix:/run/vm0", "unix:vm0", "tcp:127.0.0.1:4444", "tcp:[::1]:1"] {
            assert_eq!(parse(good).unwrap().to_string(), good);
        }
        assert!(parse("tcp:192.0.2.1:4444").unwrap_err().contains("ssh"));
        for bad in ["", "unix:", "tcp:localhost:1", "tcp:127.0.0.1", "vm0", "ssh host2"] {
            assert!(parse(bad).unwrap_err().contains("give unix:"), "{bad}");
        }
    }
}
