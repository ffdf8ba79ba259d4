//! Where a migration's stream goes or comes from, besides a program's standard streams.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Cursor, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::host::connect::connect;
use crate::host::lock::user;
use crate::host::patient::Patient;
use crate::host::peer::Peer;
use crate::host::signals::{Signal, Signals};
use crate::host::socket_address::SocketKind;
use crate::host::socket_file::{SocketFault, SocketFile};
use crate::migration::{MOST_HELLO, Stream, is_begun};

const CONNECT: Duration = Duration::from_secs(10);
/// How long one that has connected may take to say that it is a source: it does so at once.
const FIRST_WORD: Duration = Duration::from_secs(3);
/// Between two that are none.
const PACE: Duration = Duration::from_millis(20);
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

/// What leads to the target of a migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MigrationWay {
    /// Its address.
    At(MigrationAddress),
    /// A command of the shell, with the stream on its standard input and output.
    Command(String),
}

impl FromStr for MigrationWay {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text.split_once(':') {
            Some(("unix" | "tcp", _)) => text.parse().map(MigrationWay::At),
            _ if text.trim().is_empty() => Err("give a command, unix:PATH or tcp:127.0.0.1:PORT"),
            _ => Ok(MigrationWay::Command(text.into())),
        }
    }
}

impl fmt::Display for MigrationWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MigrationWay::At(address) => address.fmt(f),
            MigrationWay::Command(command) => f.write_str(command),
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

    /// Waits for a source that connects. `listening` is called when one can, and `refused` of each connection that is none: that is closed,
    /// and the next one is waited for.
    pub(super) fn accept(
        &self,
        limit: Duration,
        listening: impl FnOnce(&Self),
        refused: impl Fn(&str),
    ) -> Result<Stream, NobodyCame> {
        let (listener, _file, at) = Listener::bind(self)?;
        let signals = Signals::block()?;
        listening(&at);
        let waits = Waits { signals: &signals, came: signals.descriptor()? };
        let stream = loop {
            waits.is_readable(listener.as_fd(), None)?;
            match listener.accept().and_then(|(socket, peer)| source(socket, peer, limit, &waits)) {
                Ok(stream) => break stream,
                Err(Unaccepted::Refused(why)) => refused(&why),
                Err(Unaccepted::Over(error)) => return Err(error),
            }
            // However fast somebody tries, this process and whoever reads what it says have little to do.
            thread::sleep(PACE);
        };
        // From here on a signal ends this as before it has waited.
        signals.unblock();
        Ok(stream)
    }
}

/// Why nobody came.
#[derive(Debug)]
pub(super) enum NobodyCame {
    Io(io::Error),
    /// A signal of this number has ended it.
    Ended(u8),
}

/// Why a connection is none of a source, or why nobody can come any more.
#[derive(Debug)]
enum Unaccepted {
    Refused(String),
    Over(NobodyCame),
}

impl From<io::Error> for NobodyCame {
    fn from(error: io::Error) -> Self {
        NobodyCame::Io(error)
    }
}

impl<T: Into<NobodyCame>> From<T> for Unaccepted {
    fn from(error: T) -> Self {
        Unaccepted::Over(error.into())
    }
}

/// What can be connected to.
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    /// With the socket in the file system, which is gone with it, and the address that it has. A socket there that nobody has open is replaced.
    fn bind(at: &MigrationAddress) -> io::Result<(Self, Option<SocketFile>, MigrationAddress)> {
        match at {
            MigrationAddress::Unix(path) => {
                let made = SocketFile::bind(path, SocketKind::Stream).map_err(|fault| match fault {
                    SocketFault::InUse => io::Error::other("another process waits there; give another path"),
                    SocketFault::NoSocket => {
                        io::Error::other("there is a file that is no socket; give another path")
                    }
                    SocketFault::Host(error) => error,
                });
                let (listener, file) = made?;
                Ok((Listener::Unix(listener.into()), Some(file), at.clone()))
            }
            MigrationAddress::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                let at = MigrationAddress::Tcp(listener.local_addr()?);
                Ok((Listener::Tcp(listener), None, at))
            }
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }

    /// A connection, and its user if that is known.
    fn accept(&self) -> Result<(OwnedFd, Option<u32>), Unaccepted> {
        // Whoever has gone again is nobody.
        let gone = |error: io::Error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::ConnectionAborted => {
                Unaccepted::Refused("it has gone again".into())
            }
            _ => error.into(),
        };
        match self {
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().map_err(gone)?;
                let user = Peer::of(&stream)?.user;
                Ok((stream.into(), Some(user)))
            }
            Listener::Tcp(listener) => {
                let (stream, _) = listener.accept().map_err(gone)?;
                stream.set_nodelay(true)?;
                Ok((stream.into(), None))
            }
        }
    }
}

/// Waits for descriptors and for signals.
struct Waits<'a> {
    signals: &'a Signals,
    /// Can be read when a signal has come.
    came: OwnedFd,
}

impl Waits<'_> {
    /// Whether there is something to read until `deadline`.
    fn is_readable(&self, from: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<bool, NobodyCame> {
        let epoll = Epoll::new()?;
        for (number, descriptor) in [(0, from.as_raw_fd()), (1, self.came.as_raw_fd())] {
            epoll.ctl(ControlOperation::Add, descriptor, EpollEvent::new(EventSet::IN, number))?;
        }
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let limit = left.map_or(-1, |left| i32::try_from(left.as_millis()).unwrap_or(i32::MAX));
            let mut event = [EpollEvent::default()];
            match epoll.wait(limit, &mut event) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            }
            if event.iter().all(|event| event.data() == 0) {
                return Ok(true);
            }
            if let Some(Signal::End(number)) = self.signals.wait(Some(Instant::now()))? {
                return Err(NobodyCame::Ended(u8::try_from(number).unwrap_or_default()));
            }
        }
    }
}

/// The stream of a connection that has said, within a limit, that it is a source.
fn source(
    socket: OwnedFd,
    peer: Option<u32>,
    limit: Duration,
    waits: &Waits<'_>,
) -> Result<Stream, Unaccepted> {
    let refused = |why: &str| Err(Unaccepted::Refused(why.to_owned()));
    if let Some(peer) = peer.filter(|peer| *peer != user() && *peer != 0) {
        return Err(Unaccepted::Refused(format!("user {peer} may not send this user a machine")));
    }
    let mut socket = File::from(socket);
    let (mut begun, deadline) = (Vec::new(), Instant::now() + limit.min(FIRST_WORD));
    loop {
        match is_begun(&begun) {
            Some(true) => break,
            Some(false) => return refused("what it says is no migration of minivmm"),
            None if !waits.is_readable(socket.as_fd(), Some(deadline))? => {
                return refused("it does not say what it wants");
            }
            None => {}
        }
        // What comes is there, so that this does not wait.
        let mut bytes = [0; MOST_HELLO];
        match socket.read(&mut bytes) {
            Ok(0) | Err(_) => return refused("it was closed before it had said what it wants"),
            Ok(count) => begun.extend_from_slice(bytes.get(..count).unwrap_or_default()),
        }
    }
    let Stream { reader, writer } = of(socket.try_clone()?, socket, limit)?;
    Ok(Stream { reader: Box::new(Cursor::new(begun).chain(reader)), writer })
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
        let way = |text: &str| text.parse::<MigrationWay>();
        assert_eq!(way("unix:vm0"), Ok(MigrationWay::At(MigrationAddress::Unix("vm0".into()))));
        assert_eq!(way("ssh host2"), Ok(MigrationWay::Command("ssh host2".into())));
        for bad in ["", " ", "unix:", "tcp:192.0.2.1:4444"] {
            way(bad).unwrap_err();
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
            let reader = thread::spawn(move || {
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
