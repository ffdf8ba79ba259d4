//! What the two ends of a migration say to each other.
//!
//! ```text
//! source                                  target
//! Hello, Machine                  ->
//!                                 <-      Accepted, or Refused
//! Pages and Zeros, as they come,
//! and those of disks              ->
//! (the machine is paused)
//! the last of them, Section ...,
//! Complete                        ->
//!                                 <-      Ready, or Refused: all of the machine is made, and rests
//! (from here the source stays paused)
//! Go                              ->
//!                                 <-      Running, or Refused: its guest has not run, and never will
//! ```
//!
//! # Never two, never none
//!
//! Of two ends that may lose each other none can know whether its last message came. So one message decides, `Go`: before it the machine is
//! the source's, behind it the target's.
//!
//! - Before `Go` is sent, whatever fails or is silent for too long, the source goes on. The target's guest does not run without `Go`: the
//!   target ends then.
//! - The target is as much of a machine as it will ever be before it says `Ready`: threads, control socket and pidfile are there, and it
//!   rests. From `Go` on nothing that may fail is left but the processors' going on, and neither the end of the source, of the stream, nor of
//!   the process that started it ends it.
//! - `Go` is good for so long as `Ready` says, by the target's clock. What comes later, out of a buffer on the way, is as nothing: the target
//!   ends.
//! - The source that has sent `Go` goes on only if it is told `Refused`: of an end whose guest has not run. If it hears nothing, it rests
//!   until that time is over in any case, and nobody can let it go on meanwhile. Then the target runs or has ended, for good, and the source
//!   stays paused with a sentence: a person can look, and no `Go` on its way makes what they see untrue.
//!
//! - Disks go the same way. The source gives up its locks, when all is on the medium and its guest rests, before it says `Complete`; the target
//!   opens the images behind that, and only if they are as the source has left them. If the machine goes on at the source, it takes the locks
//!   first; while the target, or anybody else, has one, it rests. A person who lets it go on, because it does not run at the target, can only
//!   do so if the images are as they were: a guest that has run somewhere else has changed them.
//!
//! - A disk that is copied with its machine has no such way: each end has an image of its own. That of the target is gone unless its guest has
//!   come to run, and that of the source stays as it is.
//!
//! So there are never two; and none only in that a machine may rest until somebody has looked, which no protocol over a stream that breaks
//! can spare them.
//!
//! # Silence
//!
//! The source sends `Alive` whenever it has nothing else, so that a target hears something all the time, however little the source may send
//! and however long the pause takes. The target answers each time within the time that it takes to make a machine. Either end gives up when
//! the other is silent for longer than its limit; what then is said above.

use std::io::{self, Read, Write};

use devices::component::State;
use serde::{Deserialize, Serialize};

use super::frame::{self, Frame, invalid};
use crate::host::disk::DiskMark;
use crate::kvm::CpuBaseline;
use crate::machine::{CopyProgress, CopyReport};
use crate::saved::{MOST_COST, MOST_STATE, cost};
use crate::spec::Spec;

/// Version of all this.
pub(super) const PROTOCOL: u32 = 2;

const MESSAGE: u32 = 1;
const PAGES: u32 = 2;
const ZEROS: u32 = 3;
/// For the verb that carries the stream, not for the other end.
const LOCAL: u32 = 4;
const DISK_BYTES: u32 = 5;
const DISK_ZEROS: u32 = 6;
/// The beginning of a message that is too long for one frame.
const PART: u32 = 7;
/// Bytes of a part.
const PART_BYTES: usize = 8 << 20;

/// Most bytes of the first frame, which says who speaks.
pub(crate) const MOST_HELLO: usize = 4096;

/// A message.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) enum Message {
    /// Who speaks.
    Hello {
        protocol: u32,
        program: String,
    },
    /// What is to come: checked before a byte of memory is sent.
    Machine {
        spec: Box<Spec>,
        memory: u64,
        cpu: CpuBaseline,
        /// Of each disk that comes with it, its bytes.
        disks: Vec<Option<u64>>,
    },
    Accepted,
    /// Nothing is to be said just now.
    Alive,
    /// In a sentence.
    Refused(String),
    /// One component's state.
    Section {
        id: String,
        state: State,
    },
    /// All was sent.
    Complete {
        version: u16,
        panic_timeout: i64,
        /// What the disks are known by, in their order; those that the guest can write to are the target's from now on.
        marks: Vec<Option<DiskMark>>,
    },
    /// Waits for so many milliseconds for what comes next.
    Ready {
        limit: u64,
    },
    Go,
    Running,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Next {
    Message(Message),
    /// Bytes of memory, from an offset on.
    Pages(u64, Vec<u8>),
    /// So many zeros, from an offset on.
    Zeros(u64, u64),
    /// Bytes of the disk of this number, from an offset on.
    DiskBytes(u32, u64, Vec<u8>),
    /// So many zeros of the disk of this number, from an offset on.
    DiskZeros(u32, u64, u64),
}

/// What the machine tells the verb.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Local {
    Progress(CopyProgress),
    /// It runs there.
    Migrated(CopyReport),
    /// In a sentence; it is the last that is said.
    Failed(String),
    /// The same of a stream that broke off, or of a copy that was cancelled: the verb may know more. The machine runs on.
    Broken(String),
}

pub(super) fn send(to: &mut dyn Write, message: &Message) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let mut parts = text.chunks(PART_BYTES).peekable();
    while let Some(part) = parts.next() {
        let kind = if parts.peek().is_some() { PART } else { MESSAGE };
        frame::write(to, kind, &[part])?;
    }
    to.flush()
}

pub(super) fn pages(to: &mut dyn Write, offset: u64, bytes: &[u8]) -> io::Result<()> {
    frame::write(to, PAGES, &[&offset.to_le_bytes(), bytes])
}

pub(super) fn zeros(to: &mut dyn Write, offset: u64, len: u64) -> io::Result<()> {
    frame::write(to, ZEROS, &[&offset.to_le_bytes(), &len.to_le_bytes()])
}

pub(super) fn disk_bytes(to: &mut dyn Write, disk: usize, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let disk = u32::try_from(disk).map_err(io::Error::other)?;
    frame::write(to, DISK_BYTES, &[&disk.to_le_bytes(), &offset.to_le_bytes(), bytes])
}

pub(super) fn disk_zeros(to: &mut dyn Write, disk: usize, offset: u64, len: u64) -> io::Result<()> {
    let disk = u32::try_from(disk).map_err(io::Error::other)?;
    frame::write(to, DISK_ZEROS, &[&disk.to_le_bytes(), &offset.to_le_bytes(), &len.to_le_bytes()])
}

pub(super) fn tell(to: &mut dyn Write, local: &Local) -> io::Result<()> {
    frame::write(to, LOCAL, &[&serde_json::to_vec(local)?])?;
    to.flush()
}

impl Local {
    /// If this frame is for the verb.
    pub(crate) fn of(frame: &Frame) -> Option<Result<Self, serde_json::Error>> {
        (frame.kind == LOCAL).then(|| serde_json::from_slice(&frame.body))
    }
}

/// Whether a stream that begins with these bytes is a migration's; `None` if too few have come.
pub(crate) fn is_begun(bytes: &[u8]) -> Option<bool> {
    let expected = MESSAGE.to_le_bytes();
    if bytes.iter().zip(expected).any(|(found, expected)| *found != expected) {
        return Some(false);
    }
    let len = frame::whole_length(bytes)?;
    if len > MOST_HELLO {
        return Some(false);
    }
    let frame = Frame::read(&mut bytes.get(..len)?);
    let body = frame.ok().flatten().map(|frame| frame.body).unwrap_or_default();
    Some(matches!(serde_json::from_slice(&body), Ok(Message::Hello { .. })))
}

/// What the text of a message comes to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Weight {
    pub(super) bytes: u64,
    /// By [`cost`].
    pub(super) values: u64,
}

/// Reads what comes next, but for signs of life.
pub(super) fn receive(from: &mut dyn Read) -> io::Result<Next> {
    receive_but_alive(from, false).map(|(next, _)| next)
}

/// The same, where a message may be long, and how much it is.
pub(super) fn receive_long(from: &mut dyn Read) -> io::Result<(Next, Weight)> {
    receive_but_alive(from, true)
}

fn receive_but_alive(from: &mut dyn Read, may_be_long: bool) -> io::Result<(Next, Weight)> {
    loop {
        match receive_frame(from, may_be_long)? {
            (Next::Message(Message::Alive), _) => {}
            next => return Ok(next),
        }
    }
}

/// Reads what comes next.
pub(super) fn receive_any(from: &mut dyn Read) -> io::Result<Next> {
    receive_frame(from, false).map(|(next, _)| next)
}

fn receive_frame(from: &mut dyn Read, may_be_long: bool) -> io::Result<(Next, Weight)> {
    let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "the other end has closed the stream");
    let Frame { kind, body } = Frame::read(from)?.ok_or_else(ended)?;
    if kind == PART && may_be_long {
        return read_parts(from, body);
    }
    if kind == MESSAGE {
        return parse(&body);
    }
    let next = match (kind, body.split_first_chunk::<8>()) {
        (DISK_BYTES | DISK_ZEROS, _) => {
            of_disk(kind, &body).ok_or_else(|| invalid("a piece of a disk has no place"))
        }
        (PAGES, Some((offset, bytes))) => Ok(Next::Pages(u64::from_le_bytes(*offset), bytes.to_vec())),
        (ZEROS, Some((offset, len))) => match len.try_into() {
            Ok(len) => Ok(Next::Zeros(u64::from_le_bytes(*offset), u64::from_le_bytes(len))),
            Err(_) => Err(invalid("a range of zeros has no length")),
        },
        _ => Err(invalid("a frame is of no known kind")),
    };
    Ok((next?, Weight::default()))
}

fn parse(message: &[u8]) -> io::Result<(Next, Weight)> {
    let weight = Weight { bytes: message.len() as u64, values: cost(message) };
    if weight.values > MOST_COST {
        return Err(invalid("a message has more in it than any can have"));
    }
    let message = serde_json::from_slice(message).map_err(|_| invalid("a message is unknown"))?;
    Ok((Next::Message(message), weight))
}

/// Reads the rest of a message of several frames.
fn read_parts(from: &mut dyn Read, mut message: Vec<u8>) -> io::Result<(Next, Weight)> {
    loop {
        let Some(Frame { kind, body }) = Frame::read(from)? else {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream ends inside a message"));
        };
        if !matches!(kind, PART | MESSAGE) || body.is_empty() {
            return Err(invalid("a message is not whole"));
        }
        if (message.len() + body.len()) as u64 > MOST_STATE {
            return Err(invalid("a message is longer than any can be"));
        }
        message.extend(body);
        if kind == MESSAGE {
            return parse(&message);
        }
    }
}

fn of_disk(kind: u32, body: &[u8]) -> Option<Next> {
    let (disk, body) = body.split_first_chunk()?;
    let (offset, body) = body.split_first_chunk()?;
    let (disk, offset) = (u32::from_le_bytes(*disk), u64::from_le_bytes(*offset));
    match kind {
        DISK_BYTES => Some(Next::DiskBytes(disk, offset, body.to_vec())),
        _ => Some(Next::DiskZeros(disk, offset, u64::from_le_bytes(body.try_into().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_begins_otherwise_is_known_by_its_first_bytes() {
        let mut hello = Vec::new();
        send(&mut hello, &Message::Hello { protocol: 7, program: "9.9".into() }).unwrap();
        for at in 0..hello.len() {
            assert_eq!(is_begun(&hello[..at]), None, "{at}");
            let mut bad = hello.clone();
            bad[at] ^= 1;
            assert_ne!(is_begun(&bad), Some(true), "{at}");
        }
        assert_eq!(is_begun(&hello), Some(true));
        hello.extend(b"what comes behind it");
        assert_eq!(is_begun(&hello), Some(true));
        let mut other = Vec::new();
        send(&mut other, &Message::Go).unwrap();
        let mut long = hello;
        long[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
        for bad in [&b"GET / HTTP/1.1\r\n"[..], b"\0", &other, &long] {
            assert_eq!(is_begun(bad), Some(false), "{bad:?}");
        }
    }

    #[test]
    fn a_state_that_is_too_long_for_a_frame_comes_in_parts() {
        let data = serde_json::Value::from("x".repeat(2 * PART_BYTES + 5));
        let state = State { kind: "share".into(), version: 1, data };
        let mut stream = Vec::new();
        send(&mut stream, &Message::Section { id: "fs0".into(), state: state.clone() }).unwrap();
        send(&mut stream, &Message::Go).unwrap();
        let mut from = stream.as_slice();
        let (read, weight) = receive_long(&mut from).unwrap();
        assert!(
            weight.bytes > 2 * PART_BYTES as u64 && weight.values > 0 && weight.values < 100,
            "{weight:?}"
        );
        assert!(matches!(read, Next::Message(Message::Section { state: read, .. }) if read == state));
        assert!(matches!(receive(&mut from).unwrap(), Next::Message(Message::Go)));
        // Cut, mixed with something else, or without an end.
        let first = 16 + PART_BYTES;
        assert!(receive_long(&mut &stream[..first]).is_err());
        // Nor where none can be so long.
        assert!(receive(&mut stream.as_slice()).is_err());
        let mut mixed = stream[..first].to_vec();
        pages(&mut mixed, 0, b"page").unwrap();
        assert!(receive_long(&mut mixed.as_slice()).is_err());
        let endless = stream[..first].repeat(33);
        assert!(receive_long(&mut endless.as_slice()).is_err());
        // Few bytes, many values.
        let data = serde_json::from_str(&format!("[{}0]", "0,".repeat(9 << 20))).unwrap();
        let mut many = Vec::new();
        send(&mut many, &Message::Section { id: "fs0".into(), state: State { data, ..state } }).unwrap();
        assert!(receive_long(&mut many.as_slice()).is_err());
    }

    #[test]
    fn pieces_of_disks_are_read_as_they_were_written() {
        let mut stream = Vec::new();
        disk_bytes(&mut stream, 3, 1 << 40, b"some").unwrap();
        disk_zeros(&mut stream, 25, 512, u64::MAX).unwrap();
        let mut from = stream.as_slice();
        assert!(
            matches!(receive(&mut from).unwrap(), Next::DiskBytes(3, at, bytes) if at == 1 << 40 && bytes == b"some")
        );
        assert!(matches!(receive(&mut from).unwrap(), Next::DiskZeros(25, 512, u64::MAX)));
        for (kind, len) in [(DISK_BYTES, 11), (DISK_ZEROS, 19), (DISK_ZEROS, 21), (DISK_ZEROS, 0), (8, 20)] {
            let mut short = Vec::new();
            frame::write(&mut short, kind, &[&vec![0; len]]).unwrap();
            assert_eq!(
                receive(&mut short.as_slice()).unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "{kind} {len}"
            );
        }
    }
}
