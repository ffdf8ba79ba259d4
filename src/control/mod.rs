//! The control socket: HTTP/1.1 with JSON over a Unix socket, so that other processes can speak to a machine.
//!
//! Whoever can connect may do anything with the machine, so that the socket is its owner's alone. What comes over it is
//! not trusted all the same: every request has a size and a time in which it must be there, every answer a time in which it
//! must be taken, connections are counted, and the machine never waits for any of them.
//!
//! [`routes::ROUTES`] is the one table of what can be asked; resources/openapi.yaml describes it for clients.

mod answer;
mod attached;
mod bytes;
pub(crate) mod client;
mod conversation;
mod guard;
mod inbox;
mod request;
pub mod routes;
mod runtime_dir;
mod server;
mod subject;
#[cfg(test)]
mod testing;
mod wire;

pub use bytes::converse_bytes;
pub use runtime_dir::{Claim, PlaceError};
pub(crate) use runtime_dir::{RunningMachine, all, find, own_folder, process_of};
pub use server::{ControlServer, Ending};
pub use subject::{Balloon, Console, EventSource, Fact, Info, Keyboard, Next, ResetError, Running, Subject};

use std::time::Duration;

/// What a client may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at once. Beyond it the one that has done nothing for longest goes.
    pub(crate) connections: usize,
    /// Of these, such as wait for the machine. The others are for requests that are answered at once.
    pub(crate) streams: usize,
    /// How long a connection may be without a request.
    pub(crate) idle: Duration,
    /// From a request's first byte to its last.
    pub(crate) request: Duration,
    /// Until an answer is taken.
    pub(crate) write: Duration,
    /// How long what is still coming is read after the last answer, so that the client gets to see it.
    pub(crate) linger: Duration,
}

impl Limits {
    pub(crate) const DEFAULT: Limits = Limits {
        connections: 32,
        streams: 16,
        idle: Duration::from_secs(60),
        request: Duration::from_secs(5),
        write: Duration::from_secs(5),
        linger: Duration::from_secs(1),
    };
}

/// Bytes of a request up to its body.
const MAX_HEAD: usize = 8 << 10;
/// Bytes of a body.
const MAX_BODY: usize = 64 << 10;
/// Bytes that are read and thrown away before a connection is closed on a client that goes on sending.
const MAX_DISCARD: usize = 1 << 20;
