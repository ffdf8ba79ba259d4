//! The uplink `socket=PATH`: a socket with QEMU's bytes that one program at a time connects to, such as QEMU, passt or gvproxy.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::host::frame_link::{FrameStream, Framing};
use crate::host::socket_address::SocketKind;
use crate::host::socket_file::{SocketFault, SocketFile};

/// Most clients that are skipped in one go because they have gone before they were accepted.
const MAX_BROKEN: usize = 64;

/// See the module. The socket is removed on drop.
#[derive(Debug)]
pub(crate) struct SocketUplink {
    listener: UnixListener,
    peer: Option<FrameStream>,
    _file: SocketFile,
}

impl SocketUplink {
    /// Makes the socket.
    pub(crate) fn listen(path: &Path) -> Result<Self, SocketFault> {
        let (socket, file) = SocketFile::bind(path, SocketKind::Stream)?;
        Ok(SocketUplink { listener: UnixListener::from(socket), peer: None, _file: file })
    }

    pub(super) fn listener(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    pub(super) fn peer(&self) -> Option<&FrameStream> {
        self.peer.as_ref()
    }

    pub(super) fn peer_mut(&mut self) -> Option<&mut FrameStream> {
        self.peer.as_mut()
    }

    /// The peer has gone.
    pub(super) fn disconnect(&mut self) {
        self.peer = None;
    }

    /// Whether the peer has closed its end.
    pub(super) fn is_peer_gone(&self) -> bool {
        self.peer.as_ref().is_some_and(FrameStream::is_hung_up)
    }

    /// The next client that waits, if there is one.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        for _ in 0..MAX_BROKEN {
            match self.listener.accept() {
                Ok((client, _)) => return Ok(Some(client)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// `client` is the peer from now on.
    pub(super) fn connect(&mut self, client: UnixStream) -> io::Result<()> {
        self.peer = Some(FrameStream::new(client, Framing::Bare, Vec::new())?);
        Ok(())
    }
}
