//! What the two ends of a migration say to each other.
//!
//! ```text
//! source                                  target
//! Hello, Machine                  ->
//!                                 <-      Accepted, or Refused
//! Pages and Zeros, as they come   ->
//! (the machine is paused)
//! the last of them, Section ...,
//! Complete                        ->
//!                                 <-      Ready, or Refused: all of the machine is made
//! (from here the source stays paused)
//! Go                              ->
//!                                 <-      Running, or Refused: its guest has not run
//! ```
//!
//! Of two ends that may lose each other none can know whether its last message came. So the target runs once it has `Go`, and the
//! source, which has sent it, never goes on by itself unless it is told that the target did not run. There are never two of the machine.

use std::io::{self, Read, Write};

use devices::component::State;
use serde::{Deserialize, Serialize};

use super::frame::{self, Frame, invalid};
use crate::kvm::CpuBaseline;
use crate::machine::{CopyProgress, CopyReport};
use crate::spec::Spec;

/// Version of all this.
pub(super) const PROTOCOL: u32 = 1;

const MESSAGE: u32 = 1;
const PAGES: u32 = 2;
const ZEROS: u32 = 3;
/// For the verb that carries the stream, not for the other end.
const LOCAL: u32 = 4;

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
    },
    Accepted,
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
    },
    Ready,
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
}

pub(super) fn send(to: &mut dyn Write, message: &Message) -> io::Result<()> {
    frame::write(to, MESSAGE, &[&serde_json::to_vec(message)?])?;
    to.flush()
}

pub(super) fn pages(to: &mut dyn Write, offset: u64, bytes: &[u8]) -> io::Result<()> {
    frame::write(to, PAGES, &[&offset.to_le_bytes(), bytes])
}

pub(super) fn zeros(to: &mut dyn Write, offset: u64, len: u64) -> io::Result<()> {
    frame::write(to, ZEROS, &[&offset.to_le_bytes(), &len.to_le_bytes()])
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

/// Reads what comes next.
pub(super) fn receive(from: &mut dyn Read) -> io::Result<Next> {
    let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "the other end has closed the stream");
    let Frame { kind, body } = Frame::read(from)?.ok_or_else(ended)?;
    match (kind, body.split_first_chunk::<8>()) {
        (MESSAGE, _) => {
            serde_json::from_slice(&body).map(Next::Message).map_err(|_| invalid("a message is unknown"))
        }
        (PAGES, Some((offset, bytes))) => Ok(Next::Pages(u64::from_le_bytes(*offset), bytes.to_vec())),
        (ZEROS, Some((offset, len))) => match len.try_into() {
            Ok(len) => Ok(Next::Zeros(u64::from_le_bytes(*offset), u64::from_le_bytes(len))),
            Err(_) => Err(invalid("a range of zeros has no length")),
        },
        _ => Err(invalid("a frame is of no known kind")),
    }
}
