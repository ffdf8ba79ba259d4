//! What is behind a port, as the loop uses it.

use std::io;
use std::os::fd::RawFd;

use vswitch::HEADER_LEN;

use super::info::PortKind;
use super::socket_uplink::SocketUplink;
use super::user_uplink::UserUplink;
use crate::host::frame_link::FrameStream;
use crate::host::tap::TapPort;

/// See the module.
#[derive(Debug)]
pub(super) enum Link {
    /// A machine's connection.
    Machine(FrameStream),
    /// A TAP of the host.
    Tap(TapPort),
    /// A socket of ours, and the program that has connected to it.
    Socket(SocketUplink),
    /// A network behind the host's sockets.
    User(Box<UserUplink>),
}

impl Link {
    pub(super) fn kind(&self) -> PortKind {
        match self {
            Link::Machine(_) => PortKind::Machine,
            Link::Tap(_) => PortKind::Tap,
            Link::Socket(_) => PortKind::Socket,
            Link::User(_) => PortKind::User,
        }
    }

    /// Its stream, where there is one.
    pub(super) fn stream(&mut self) -> Option<&mut FrameStream> {
        match self {
            Link::Machine(stream) => Some(stream),
            Link::Socket(uplink) => uplink.peer_mut(),
            Link::Tap(_) | Link::User(_) => None,
        }
    }

    /// Whether frames pass.
    pub(super) fn is_up(&self) -> bool {
        match self {
            Link::Machine(_) | Link::Tap(_) | Link::User(_) => true,
            Link::Socket(uplink) => uplink.peer().is_some(),
        }
    }

    /// The descriptor that frames come from, if there is one now.
    pub(super) fn fd(&self) -> io::Result<Option<RawFd>> {
        match self {
            Link::Machine(stream) => Ok(Some(stream.fd())),
            Link::Tap(tap) => tap.fd().map(Some),
            Link::User(user) => Ok(Some(user.fd())),
            Link::Socket(uplink) => Ok(uplink.peer().map(FrameStream::fd)),
        }
    }

    /// Sends a frame, now or at the end of the batch. False if there is no room.
    pub(super) fn send(&mut self, header: &[u8; HEADER_LEN], parts: &[&[u8]], received: &[u8]) -> bool {
        match self {
            Link::Tap(tap) => tap.send(header, parts),
            Link::User(user) => user.send(header, parts),
            Link::Machine(_) | Link::Socket(_) => {
                self.stream().is_some_and(|stream| stream.send(header, parts, received).is_ok())
            }
        }
    }
}
