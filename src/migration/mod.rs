//! A running machine moves to another process, here or on another host. `frame.rs` and `protocol.rs` are the stream, `source.rs` is the
//! machine that leaves, `target.rs` the one that comes, `disks.rs` the disks that come with it. Who carries the stream is somebody else's matter.

mod disks;
mod frame;
mod protocol;
mod source;
mod target;

use std::time::Duration;

pub(crate) use disks::remove_received;
pub(crate) use frame::Frame;
pub(crate) use protocol::{Local, MOST_HELLO, is_begun};
pub(crate) use source::{Patience, migrate};
pub(crate) use target::{Leave, ReceiveError, ReceiveOptions, Received, Stream, receive};

/// Takes the machine that a stream of these bytes carries, if it does, with its leave to run, and makes none of it; else the sentence that
/// is said of it. For the fuzzer.
#[doc(hidden)]
pub fn receive_bytes(stream: &[u8]) -> Result<(), String> {
    /// What a fuzzer's process has for one.
    const MOST_MEMORY: u64 = 64 << 20;
    let reader = Box::new(std::io::Cursor::new(stream.to_vec()));
    let check = |spec: &mut crate::spec::Spec, _: &dyn Fn(usize) -> bool| match spec.mem().bytes() {
        ..=MOST_MEMORY => Ok(()),
        _ => Err("it has too much memory".to_owned()),
    };
    let stream = Stream { reader, writer: Box::new(std::io::sink()) };
    // Disks that come with it are gone at the end, and have no names until then, as far as the file system can.
    let folder = std::env::temp_dir().join(format!("minivmm-fuzz-{}", std::process::id()));
    let made = std::fs::create_dir_all(&folder);
    let options = ReceiveOptions { limit: Duration::from_secs(1), disks: made.is_ok().then_some(&*folder) };
    let received = receive(stream, options, check);
    let asked = received.and_then(|Received { mut leave, .. }| leave.ask());
    let _ = std::fs::remove_dir(folder);
    asked.map_err(|error| error.to_string())
}
