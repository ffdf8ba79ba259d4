//! The uplink `socket=PATH`: a socket with QEMU's bytes that one program at a time connects to, such as QEMU, passt or gvproxy.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::host::frame_link::{FrameStream, Framing};
use crate::host::socket_address::{SocketKind, has_hung_up};
use crate::host::socket_file::{SocketFault, SocketFile};

/// Most clients that are looked at in one go.
const MAX_ACCEPTED: usize = 64;

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

    /// Accepts clients. The first one is the peer if there is none; the others are disconnected. True if there is a new peer.
    pub(super) fn accept(&mut self) -> io::Result<bool> {
        let mut is_new = false;
        for _ in 0..MAX_ACCEPTED {
            match self.listener.accept() {
                Ok((stream, _)) if self.peer.is_none() && !has_hung_up(&stream) => {
                    self.peer = Some(FrameStream::new(stream, Framing::Bare, Vec::new())?);
                    is_new = true;
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(is_new)
    }
}
