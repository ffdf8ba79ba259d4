//! Packet capture: a copy of each frame of a network interface, written as pcapng for Wireshark and tcpdump.
//!
//! A [`CapturePoint`] belongs to an interface for the life of its machine; captures are attached and detached while it runs: a
//! [`Capture`] has a thread that writes it to a file, a [`CaptureStream`] is read by somebody else's.
//! A capture never holds up the guest: frames wait in a buffer of bounded size for a thread that writes them, and are lost and
//! counted when it is full. Without one, a frame costs the look at a flag.
//!
//! Frames are captured as they pass between guest and wire: a checksum that the guest leaves to the wire is not there yet, and
//! a large segment that the wire cuts is in one piece.

mod backend;
mod output;
mod pcapng;
mod point;
mod queue;
mod stream;
#[cfg(test)]
mod tests;
mod writer;

pub use output::CaptureError;
pub(crate) use output::CaptureFile;
pub(crate) use pcapng::Direction;
#[cfg(test)]
pub(crate) use point::MOST_CAPTURES;
pub(crate) use point::{Capture, CapturePoint, Refused};
#[cfg(test)]
pub(crate) use queue::MOST_WAITING;
pub use stream::CaptureLimits;
pub(crate) use stream::{CaptureStream, StreamState};
