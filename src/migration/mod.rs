//! A running machine moves to another process, here or on another host. `frame.rs` and `protocol.rs` are the stream, `source.rs` is the
//! machine that leaves, `target.rs` the one that comes. Who carries the stream is somebody else's matter.

mod frame;
mod protocol;
mod source;
mod target;

pub(crate) use frame::Frame;
pub(crate) use protocol::Local;
pub(crate) use source::{Patience, migrate};
pub(crate) use target::{Leave, ReceiveError, Received, Stream, receive};
