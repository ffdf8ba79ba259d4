//! The control socket: HTTP/1.1 with JSON over a Unix socket, for other processes that control a machine.
//!
//! Anyone who can connect to the socket controls the machine, so only its owner may. The server does not
//! trust clients all the same: each request has a maximum size and a deadline, each answer has a deadline,
//! connections are limited, and the machine never waits for a client.
//!
//! [`routes::ROUTES`] is the one table of a machine's requests; resources/openapi.yaml describes it for clients. The server does
//! not know it: whatever implements `Service` with a table of `router::Route`s can be served.

mod abstract_name;
mod answer;
mod byte_stream;
pub(crate) mod client;
mod connection;
mod console_stream;
pub(crate) mod disk_routes;
mod in_memory;
pub(crate) mod net_routes;
mod request;
mod request_reader;
pub(crate) mod router;
pub mod routes;
mod runtime_dir;
pub(crate) mod save_routes;
mod server;
mod target;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod wire;

pub use crate::host::capture::CaptureLimits;
pub(crate) use connection::Service;
pub use in_memory::serve_bytes;
pub(crate) use request_reader::Request;
pub use runtime_dir::{Claim, ClaimError};
pub(crate) use runtime_dir::{
    RunningMachine, all, all_switches, find, find_lasting, find_switch, own_folder, process_of,
};
pub use server::{ControlServer, Ending};
pub use target::{
    Balloon, BannerLine, ByteSource, Console, ControlTarget, EventSource, Info, Keyboard, NextBytes,
    NextEvent, ResetError, RunningTarget,
};

use std::time::Duration;

/// Limits for clients.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at once. When all are in use, a new one replaces the one that has been idle for longest.
    pub(crate) connections: usize,
    /// How many of the connections may wait for the machine. The rest stays free for short requests.
    pub(crate) streams: usize,
    /// How long a connection may be idle between requests.
    pub(crate) idle: Duration,
    /// Limit from a request's first byte to its last.
    pub(crate) request: Duration,
    /// Limit for writing an answer.
    pub(crate) write: Duration,
    /// How long to read on after the last answer, so that the client receives it.
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

/// Maximum length of a request's head.
const MAX_HEAD: usize = 8 << 10;
/// Maximum length of a body.
const MAX_BODY: usize = 64 << 10;
/// Bytes that are discarded before a connection is closed on a client that keeps sending.
const MAX_DISCARD: usize = 1 << 20;
