//! The frames between a lab and its agent: one byte of kind, the process's number, a length, the body.
//!
//! The library and the agent both compile this file. One stream carries all processes of a lab; the agent
//! always reads and the host always reads, so neither can block the other for good.

use std::io::{self, Read, Write};

/// Host to agent: start a process; the body is a byte (1: on a terminal of its own), then the arguments, each ended by NUL.
pub(crate) const SPAWN: u8 = 1;
/// Host to agent: bytes for the process's standard input.
pub(crate) const STDIN: u8 = 2;
/// Host to agent: end of the process's standard input.
pub(crate) const STDIN_END: u8 = 3;
/// Host to agent: a signal (i32) for the process.
pub(crate) const SIGNAL: u8 = 4;
/// Host to agent: kill the process and its whole group.
pub(crate) const KILL: u8 = 5;
/// Host to agent: nothing to do. It is an interrupt, so that a machine which has lost its timer goes on.
pub(crate) const WAKE: u8 = 6;
/// Agent to host, once, before anything else: processes can be started.
pub(crate) const READY: u8 = 16;
/// Agent to host: the process wrote to its standard output (or terminal).
pub(crate) const STDOUT: u8 = 17;
/// Agent to host: the process wrote to its standard error.
pub(crate) const STDERR: u8 = 18;
/// Agent to host: the process exited with this status (i32).
pub(crate) const EXITED: u8 = 19;
/// Agent to host: this signal (i32) ended the process.
pub(crate) const SIGNALED: u8 = 20;
/// Agent to host: the process could not be started; the body says why.
pub(crate) const FAILED: u8 = 21;

/// The most that one frame carries.
pub(crate) const BODY_MAX: usize = 64 * 1024;
const HEADER: usize = 9;

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) id: u32,
    pub(crate) body: Vec<u8>,
}

/// Writes one frame with a single `write_all`, so that whoever holds the stream's lock keeps frames whole.
pub(crate) fn write_frame(to: &mut impl Write, kind: u8, id: u32, body: &[u8]) -> io::Result<()> {
    let len = u32::try_from(body.len()).ok().filter(|_| body.len() <= BODY_MAX);
    let len = len.ok_or_else(|| io::Error::other("a frame's body is too long"))?;
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.push(kind);
    frame.extend_from_slice(&id.to_le_bytes());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(body);
    to.write_all(&frame)?;
    to.flush()
}

/// Reads one frame; the end of the stream is an `UnexpectedEof` error.
pub(crate) fn read_frame(from: &mut impl Read) -> io::Result<Frame> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    let [kind, a, b, c, d, len @ ..] = header;
    let len = u32::from_le_bytes(len) as usize;
    if len > BODY_MAX {
        return Err(io::Error::other("a frame's length is out of range: the stream is damaged"));
    }
    let mut body = vec![0; len];
    from.read_exact(&mut body)?;
    Ok(Frame { kind, id: u32::from_le_bytes([a, b, c, d]), body })
}

/// The i32 that a signal or an exit status travels as.
pub(crate) fn number(body: &[u8]) -> i32 {
    body.try_into().map_or(-1, i32::from_le_bytes)
}
