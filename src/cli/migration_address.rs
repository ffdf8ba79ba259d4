//! Where a migration's stream goes or comes from, besides a program's standard streams.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::host::connect::connect;
use crate::host::lock::user;
use crate::host::patient::Patient;
use crate::host::peer::Peer;
use crate::migration::Stream;

const CONNECT: Duration = Duration::from_secs(10);
/// How long either end may be silent unless it is said.
pub(super) const SILENCE: Duration = Duration::from_secs(30);

/// How long either end may be silent.
pub(super) fn silence(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.strip_suffix('s').unwrap_or(text).parse().ok();
    let seconds = seconds.filter(|seconds| (1..=3600).contains(seconds));
    seconds.map(Duration::from_secs).ok_or("give seconds, such as 30s, 1s to 3600s")
}

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
    /// `limit` is how long the other end may take nothing. It may say nothing for as long as it likes, as a target does while all comes: the
    /// machine has its own limits for what it waits for.
    pub(super) fn connect(&self, limit: Duration) -> io::Result<Stream> {
        match self {
            MigrationAddress::Unix(path) => {
                let stream = connect(path, Instant::now() + CONNECT)?;
                to_target(stream.try_clone()?, stream, limit)
            }
            MigrationAddress::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, CONNECT)?;
                stream.set_nodelay(true)?;
                to_target(stream.try_clone()?, stream, limit)
            }
        }
    }

    /// Waits for one that connects. `listening` is called when somebody can.
    pub(super) fn accept(&self, limit: Duration, listening: impl FnOnce(&Self)) -> io::Result<Stream> {
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
                of_unix(stream, limit)
            }
            MigrationAddress::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listening(&MigrationAddress::Tcp(listener.local_addr()?));
                of_tcp(listener.accept()?.0, limit)
            }
        }
    }
}

fn of_unix(stream: UnixStream, limit: Duration) -> io::Result<Stream> {
    of(stream.try_clone()?, stream, limit)
}

fn of_tcp(stream: TcpStream, limit: Duration) -> io::Result<Stream> {
    stream.set_nodelay(true)?;
    of(stream.try_clone()?, stream, limit)
}

/// Both directions of a stream to a target.
pub(super) fn to_target<R, W>(reader: R, writer: W, limit: Duration) -> io::Result<Stream>
where
    R: Read + Send + 'static,
    W: Write + AsRawFd + Send + 'static,
{
    Ok(Stream { reader: Box::new(reader), writer: Box::new(Patient::writer(writer, limit)?) })
}

/// Both directions of a stream whose other end is silent no longer than that.
pub(super) fn of<R, W>(reader: R, writer: W, limit: Duration) -> io::Result<Stream>
where
    R: Read + AsRawFd + Send + 'static,
    W: Write + AsRawFd + Send + 'static,
{
    let reader = BufReader::with_capacity(64 << 10, Patient::reader(reader, limit)?);
    Ok(Stream { reader: Box::new(reader), writer: Box::new(Patient::writer(writer, limit)?) })
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

    /// A target that takes memory for a minute says nothing for a minute.
    #[test]
    fn a_target_may_be_silent_for_longer_than_it_may_take_nothing() {
        const SHORT: Duration = Duration::from_millis(10);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("target");
        let listeners = (UnixListener::bind(&path).unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let tcp = MigrationAddress::Tcp(listeners.1.local_addr().unwrap());
        for (address, is_unix) in [(MigrationAddress::Unix(path), true), (tcp, false)] {
            let mut stream = address.connect(SHORT).unwrap();
            let mut target: Box<dyn Write> = match is_unix {
                true => Box::new(listeners.0.accept().unwrap().0),
                false => Box::new(listeners.1.accept().unwrap().0),
            };
            let (said, heard) = std::sync::mpsc::channel();
            let reader = std::thread::spawn(move || {
                let mut word = [0; 5];
                said.send(stream.reader.read_exact(&mut word).map(|()| word)).unwrap();
            });
            // It has heard nothing, and not that it would hear nothing.
            assert!(heard.recv_timeout(20 * SHORT).is_err(), "{address}");
            target.write_all(b"ready").unwrap();
            assert_eq!(&heard.recv().unwrap().unwrap(), b"ready");
            reader.join().unwrap();
        }
    }

    #[test]
    fn silence_is_in_whole_seconds() {
        assert_eq!([silence("1"), silence("3600s")], [1, 3600].map(|s| Ok(Duration::from_secs(s))));
        for bad in ["", "s", "0s", "3601s", "1ss", "1.5s", "-1s", "500ms"] {
            assert!(silence(bad).is_err(), "{bad}");
        }
    }
}
