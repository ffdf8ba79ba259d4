//! Unix sockets as the wire of a virtio-net device, with the bytes of QEMU's `-netdev stream` and `-netdev dgram`: another
//! machine, QEMU, passt or a switch is at the other end.
//!
//! A machine opens its sockets once and keeps them for all its boots; each boot uses them through a backend of its own. No
//! call blocks. No offloads are offered: every frame is complete, its checksums included.

mod dgram;
mod error;
mod inbox;
mod stream;
mod stream_link;
#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
mod watch;

pub(crate) use dgram::DgramSocket;
pub use error::NetSocketError;
pub(super) use stream::StreamBackend;
pub(crate) use stream::StreamSocket;
pub(super) use stream_link::{Link, Side};

use std::io;
use std::time::Duration;

use super::frame_link::{ETHERNET, LONGEST_FRAME};

/// Pause between attempts to reach a peer.
const RETRY: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 1000 });
/// Most frames from before a boot that are dropped at its beginning.
const MAX_DRAINED: usize = 16 << 10;

/// The role of this process on a stream socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerRole {
    /// The peer listens.
    Connect,
    /// This process listens, to one peer at a time.
    Listen,
}

/// The answer to a frame that is dropped: the caller continues with the next one, within its budget.
fn dropped<T>() -> io::Result<T> {
    Err(io::ErrorKind::Interrupted.into())
}

/// Nothing now.
fn would_block<T>() -> io::Result<T> {
    Err(io::ErrorKind::WouldBlock.into())
}

/// There is no peer.
fn no_peer<T>() -> io::Result<T> {
    Err(io::ErrorKind::NotConnected.into())
}
