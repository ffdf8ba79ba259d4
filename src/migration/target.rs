//! The machine that comes.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use super::disks::{IncomingDisks, ReceivedDisks};
use super::protocol::{self, Message, Next, PROTOCOL};
use crate::host::disk::DiskMark;
use crate::host::open_now::open_now;
use crate::image::printable;
use crate::kvm::KvmDevice;
use crate::machine::SavedState;
use crate::machine::StartError;
use crate::machine::files::Restore;
use crate::machine::incoming::Incoming;
use crate::saved::{MOST_COST, MOST_SECTIONS, MOST_STATE};
use crate::shown::path as shown;
use crate::spec::Spec;

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

/// How a machine is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceiveOptions<'a> {
    /// How long it waits for its leave to run; the stream has its own limit for each read and write.
    pub(crate) limit: Duration,
    /// The folder for disks that come with it.
    pub(crate) disks: Option<&'a Path>,
}

/// A machine that has come, but for its leave to run.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) spec: Spec,
    pub(crate) restore: Restore,
    pub(crate) leave: Leave,
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
    #[error(
        "the leave to run came later than {0:?}, and is good no more; the machine is where it was, and may be paused there"
    )]
    TooLate(Duration),
}

/// Takes a machine. `check` says in a sentence what is wrong with its spec here, where its name may be changed; it is told which disks come
/// with the machine.
pub(crate) fn receive(
    mut stream: Stream,
    options: ReceiveOptions<'_>,
    check: impl FnOnce(&mut Spec, &dyn Fn(usize) -> bool) -> Result<(), String>,
) -> Result<Received, ReceiveError> {
    match take(&mut stream, options.disks, check) {
        Ok(Taken { spec, incoming, state, disks }) => {
            let leave = Leave { stream, limit: options.limit, over: false, disks };
            Ok(Received { spec, restore: Restore::received(state, incoming)?, leave })
        }
        Err(error) => {
            // The source says itself that it is refused.
            let sentence = match &error {
                ReceiveError::Refused(sentence) => sentence.clone(),
                ReceiveError::Stream(error) => format!("the stream broke off there: {error}"),
                error => error.to_string(),
            };
            let _ = protocol::send(&mut stream.writer, &Message::Refused(sentence));
            Err(error)
        }
    }
}

/// All of a machine.
struct Taken {
    spec: Spec,
    incoming: Incoming,
    state: SavedState,
    disks: ReceivedDisks,
}

fn take(
    stream: &mut Stream,
    folder: Option<&Path>,
    check: impl FnOnce(&mut Spec, &dyn Fn(usize) -> bool) -> Result<(), String>,
) -> Result<Taken, ReceiveError> {
    let refused = |sentence: String| ReceiveError::Refused(printable(&sentence));
    // The stream is whole, and this host has not taken what it carries.
    let of_disk = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => error.into(),
        _ => refused(error.to_string()),
    };
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
    let Next::Message(Message::Machine { spec, memory, cpu, disks: lens }) =
        protocol::receive(&mut stream.reader)?
    else {
        return Err(confused());
    };
    let mut spec = spec.settled().map_err(|error| refused(error.to_string()))?;
    if spec.mem().bytes() != memory {
        return Err(refused(format!(
            "it has {memory} bytes of memory, and its description says {}",
            spec.mem()
        )));
    }
    check(&mut spec, &|index| matches!(lens.get(index), Some(Some(_)))).map_err(refused)?;
    let fits = KvmDevice::open().and_then(|kvm| cpu.check_host(&kvm));
    let fits = fits.map_err(|error| refused(error.to_string()))?;
    fits.map_err(|mismatch| refused(format!("the machine cannot run on this host: {mismatch}")))?;
    let mut disks = IncomingDisks::create(&spec, &lens, folder).map_err(refused)?;
    let incoming = Incoming::new(&spec)?;
    protocol::send(&mut stream.writer, &Message::Accepted)?;
    let (mut states, mut bytes, mut values) = (Vec::new(), 0u64, 0u64);
    loop {
        let (next, weight) = protocol::receive_long(&mut stream.reader)?;
        match next {
            Next::Pages(offset, data) => incoming.data(offset, &data)?,
            Next::Zeros(offset, len) => incoming.zeros(offset, len)?,
            Next::DiskBytes(disk, offset, bytes) => disks.data(disk, offset, &bytes).map_err(of_disk)?,
            Next::DiskZeros(disk, offset, len) => disks.zeros(disk, offset, len).map_err(of_disk)?,
            Next::Message(Message::Section { id, state }) => {
                // As in a saved machine.
                (bytes, values) = (bytes + weight.bytes, values + weight.values);
                states.push((id, state));
                if states.len() > MOST_SECTIONS || bytes > MOST_STATE || values > MOST_COST {
                    return Err(refused("its state is larger than that of any machine".into()));
                }
            }
            Next::Message(Message::Complete { version, panic_timeout, marks }) => {
                check_disks(&spec, &marks, |index| disks.has(index)).map_err(refused)?;
                let disks = disks.finish(&mut spec).map_err(of_disk)?;
                let state = SavedState::from_states(version, panic_timeout, states);
                return Ok(Taken { spec, incoming, state, disks });
            }
            Next::Message(_) => return Err(confused()),
        }
    }
}

/// Whether the images that have not come with it are those of the source, as it has left them.
fn check_disks(
    spec: &Spec,
    marks: &[Option<DiskMark>],
    has_come: impl Fn(usize) -> bool,
) -> Result<(), String> {
    for (index, (disk, mark)) in spec.disk.iter().zip(marks).enumerate() {
        let (path, Some(mark)) = (disk.image(), mark.filter(|_| !has_come(index))) else { continue };
        // Opened, so that a file server is asked.
        let here = open_now(path, OpenOptions::new().read(true), 0).and_then(|file| DiskMark::of_file(&file));
        let here = here.map_err(|error| format!("{} cannot be used there: {error}", shown(path)))?;
        if here != mark {
            return Err(format!(
                "{} is another file there, or not as the machine has left it; both hosts need the same one, on shared storage",
                shown(path)
            ));
        }
    }
    Ok(())
}

/// What is left of the stream once all has come: a machine that is made asks for its leave to run, which is given once. Dropped before, it
/// tells the source that the guest has not run and never will. So drop it when the machine has ended and has let go of all it had.
pub(crate) struct Leave {
    stream: Stream,
    limit: Duration,
    /// The guest may have run.
    over: bool,
    /// Those that have come with it.
    disks: ReceivedDisks,
}

impl fmt::Debug for Leave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leave").finish_non_exhaustive()
    }
}

impl Leave {
    /// Says that all of the machine is there, and waits for its leave to run. Nothing that may fail is to come behind it.
    ///
    /// # Errors
    /// It may not run.
    pub(crate) fn ask(&mut self) -> Result<(), ReceiveError> {
        // Before the source can know of it.
        let asked = Instant::now();
        let limit = u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX);
        let Stream { reader, writer } = &mut self.stream;
        protocol::send(writer, &Message::Ready { limit })?;
        loop {
            match protocol::receive_any(reader)? {
                // The source may have told somebody by now that it does not run here.
                Next::Message(Message::Go | Message::Alive) if asked.elapsed() > self.limit => {
                    return Err(ReceiveError::TooLate(self.limit));
                }
                Next::Message(Message::Alive) => {}
                Next::Message(Message::Go) => return Ok(()),
                _ => return Err(io::Error::other("the source says what it should not").into()),
            }
        }
    }

    /// It runs. This end of the stream is closed.
    pub(crate) fn runs(mut self) {
        self.over = true;
        self.disks.keep();
        // It runs in any case: the source stays paused if it does not hear of it.
        let _ = protocol::send(&mut self.stream.writer, &Message::Running);
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        if !self.over {
            self.disks.remove();
            let sentence = "it could not be started there; what minivmm has printed there says why";
            let _ = protocol::send(&mut self.stream.writer, &Message::Refused(sentence.into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_machine_runs_on_with_its_disks_where_the_source_does_not_hear_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("vda.raw");
        std::fs::write(&disk, "disk").unwrap();
        for is_told in [true, false] {
            let (here, there) = UnixStream::pair().unwrap();
            let mut there = Some(there).filter(|_| is_told);
            let stream = Stream { reader: Box::new(io::empty()), writer: Box::new(here) };
            let mut disks = ReceivedDisks::default();
            disks.add(disk.clone());
            Leave { stream, limit: Duration::ZERO, over: false, disks }.runs();
            assert!(disk.exists());
            if let Some(there) = &mut there {
                assert!(matches!(protocol::receive(there), Ok(Next::Message(Message::Running))));
                assert!(protocol::receive(there).is_err(), "that was all");
            }
        }
    }
}
