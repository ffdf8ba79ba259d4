//! The machine that comes.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::protocol::{self, Message, Next, PROTOCOL};
use crate::image::printable;
use crate::kvm::KvmDevice;
use crate::machine::SavedState;
use crate::machine::StartError;
use crate::machine::files::Restore;
use crate::machine::incoming::{Handover, Incoming};
use crate::spec::Spec;

/// Most sections, as a saved machine has.
const MOST_SECTIONS: usize = 4096;
/// Most bytes of all their frames: a vCPU has some 30 KiB.
const MOST_STATE: u64 = 256 << 20;

/// Both directions of the stream to the source.
pub(crate) struct Stream {
    pub(crate) reader: Box<dyn Read + Send>,
    pub(crate) writer: Box<dyn Write + Send>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

/// A machine that has come, but for its leave to run.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) spec: Spec,
    pub(crate) restore: Restore,
}

/// Why no machine came. The source has been told, if it still listens.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("the stream of the migration broke off: {0}; the machine runs on where it was")]
    Stream(#[from] io::Error),
    #[error("the machine is refused: {0}")]
    Refused(String),
    #[error("the machine cannot be made here: {0}")]
    Start(#[from] StartError),
}

/// Takes a machine. `check` says in a sentence what is wrong with its spec here, where its name may be changed.
pub(crate) fn receive(
    mut stream: Stream,
    check: impl FnOnce(&mut Spec) -> Result<(), String>,
) -> Result<Received, ReceiveError> {
    match take(&mut stream, check) {
        Ok((spec, incoming, state)) => {
            let handover = Arc::new(Leave(Mutex::new(Phase::Waiting(stream))));
            Ok(Received { spec, restore: Restore::received(state, incoming, handover)? })
        }
        Err(error) => {
            let _ = protocol::send(&mut stream.writer, &Message::Refused(error.to_string()));
            Err(error)
        }
    }
}

fn take(
    stream: &mut Stream,
    check: impl FnOnce(&mut Spec) -> Result<(), String>,
) -> Result<(Spec, Incoming, SavedState), ReceiveError> {
    let refused = |sentence: String| ReceiveError::Refused(printable(&sentence));
    let confused = || ReceiveError::Stream(io::Error::other("the source says what it should not"));
    match protocol::receive(&mut stream.reader)? {
        Next::Message(Message::Hello { protocol: PROTOCOL, .. }) => {}
        Next::Message(Message::Hello { protocol, program }) => {
            return Err(refused(format!(
                "minivmm {program} speaks version {protocol} of migrations, and this one, {}, version {PROTOCOL}; use the same on both hosts",
                env!("CARGO_PKG_VERSION")
            )));
        }
        _ => return Err(confused()),
    }
    let Next::Message(Message::Machine { spec, memory, cpu }) = protocol::receive(&mut stream.reader)? else {
        return Err(confused());
    };
    let mut spec = spec.settled().map_err(|error| refused(error.to_string()))?;
    if spec.mem().bytes() != memory {
        return Err(refused(format!(
            "it has {memory} bytes of memory, and its description says {}",
            spec.mem()
        )));
    }
    check(&mut spec).map_err(refused)?;
    let fits = KvmDevice::open().and_then(|kvm| cpu.check_host(&kvm));
    let fits = fits.map_err(|error| refused(error.to_string()))?;
    fits.map_err(|mismatch| refused(format!("the machine cannot run on this host: {mismatch}")))?;
    let incoming = Incoming::new(&spec)?;
    protocol::send(&mut stream.writer, &Message::Accepted)?;
    let (mut states, mut bytes) = (Vec::new(), 0u64);
    loop {
        match protocol::receive(&mut stream.reader)? {
            Next::Pages(offset, data) => incoming.data(offset, &data)?,
            Next::Zeros(offset, len) => incoming.zeros(offset, len)?,
            Next::Message(Message::Section { id, state }) => {
                bytes += state.data.to_string().len() as u64;
                states.push((id, state));
                if states.len() > MOST_SECTIONS || bytes > MOST_STATE {
                    return Err(refused("its state is larger than that of any machine".into()));
                }
            }
            Next::Message(Message::Complete { version, panic_timeout }) => {
                return Ok((spec, incoming, SavedState::from_states(version, panic_timeout, states)));
            }
            Next::Message(_) => return Err(confused()),
        }
    }
}

/// What is left of the stream once all has come.
struct Leave(Mutex<Phase>);

enum Phase {
    /// The machine is being made.
    Waiting(Stream),
    /// It may run.
    Allowed(Stream),
    /// It runs.
    Over,
}

impl fmt::Debug for Leave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leave").finish_non_exhaustive()
    }
}

impl Leave {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handover for Leave {
    fn ask(&self) -> io::Result<()> {
        let mut phase = self.phase();
        let Phase::Waiting(stream) = std::mem::replace(&mut *phase, Phase::Over) else {
            return Err(io::Error::other("the machine was made twice"));
        };
        let mut stream = stream;
        let answer = protocol::send(&mut stream.writer, &Message::Ready)
            .and_then(|()| protocol::receive(&mut stream.reader));
        match answer {
            Ok(Next::Message(Message::Go)) => {
                *phase = Phase::Allowed(stream);
                Ok(())
            }
            Ok(_) => Err(io::Error::other("the source says what it should not")),
            Err(error) => Err(error),
        }
    }

    fn runs(&self) {
        if let Phase::Allowed(mut stream) = std::mem::replace(&mut *self.phase(), Phase::Over) {
            // It runs in any case: the source stays paused if it does not hear of it.
            let _ = protocol::send(&mut stream.writer, &Message::Running);
        }
    }
}

/// A machine that could not be made, or may not run: its guest has not run, and the source is told so.
impl Drop for Leave {
    fn drop(&mut self) {
        if let Phase::Waiting(mut stream) | Phase::Allowed(mut stream) =
            std::mem::replace(&mut *self.phase(), Phase::Over)
        {
            let sentence = "it could not be made there; what minivmm has printed there says why";
            let _ = protocol::send(&mut stream.writer, &Message::Refused(sentence.into()));
        }
    }
}
