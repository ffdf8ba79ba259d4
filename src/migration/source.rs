//! The machine that leaves.

use std::cell::RefCell;
use std::io::{self, BufWriter, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::protocol::{self, Local, Message, Next, PROTOCOL};
use crate::kvm::{CpuBaseline, KvmDevice};
use crate::machine::precopy::{Copy, Sink};
use crate::machine::{Controls, CopyLimits, CopyReport, Otherwise, SaveError};
use crate::saved::with_absolute_paths;

/// How long the other end may take nothing, and how long it may take to make the machine, which is paused meanwhile.
const STALL: Duration = Duration::from_secs(30);
/// Limit for the machine to come to rest.
const PAUSE: Duration = Duration::from_secs(30);
/// Between two words to the verb.
const TICK: Duration = Duration::from_millis(100);

/// Why a machine did not migrate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MigrateError {
    #[error("{0}; it runs on here")]
    Source(#[from] SaveError),
    #[error("the stream to the target broke off: {0}; the machine runs on here")]
    Stream(#[from] io::Error),
    #[error("the target refuses the machine: {0}; it runs on here")]
    Refused(String),
    #[error("the target says what it should not; the machine runs on here")]
    Confused,
    #[error(
        "the target was told to let the machine run, and has not said that it does ({0}): the machine is paused here, because it must not run \
         twice; look whether it runs there; if it does not, `minivmm resume` lets it go on here, and if it does, `minivmm kill` ends it here"
    )]
    Unknown(String),
}

/// Sends the machine over `stream`, of which `begun` was read already, and ends it when the target has said that it runs.
/// What comes of it is said at the end of the stream, for the verb that carries it.
pub(crate) fn migrate(controls: &Controls, stream: &UnixStream, begun: &[u8], mut limits: CopyLimits) {
    limits.otherwise = Otherwise::GiveUp;
    let timed = stream.set_write_timeout(Some(STALL));
    let writer = RefCell::new(BufWriter::with_capacity(256 << 10, stream));
    let mut reader = begun.chain(stream);
    let result =
        timed.map_err(MigrateError::from).and_then(|()| send(controls, stream, &writer, &mut reader, limits));
    let local = match result {
        Ok(report) => Local::Migrated(report),
        Err(error) => {
            log::warn!("migration: {error}");
            Local::Failed(error.to_string())
        }
    };
    // The verb may be gone.
    let _ = protocol::tell(&mut *writer.borrow_mut(), &local);
}

type Writer<'a> = RefCell<BufWriter<&'a UnixStream>>;

fn send(
    controls: &Controls,
    stream: &UnixStream,
    writer: &Writer<'_>,
    reader: &mut dyn Read,
    limits: CopyLimits,
) -> Result<CopyReport, MigrateError> {
    let say = |message| protocol::send(&mut *writer.borrow_mut(), &message);
    controls.check_disks_stay()?;
    let copy = Copy::begin(controls)?;
    let spec = with_absolute_paths(copy.spec().clone())?;
    let cpu = KvmDevice::open().and_then(|kvm| CpuBaseline::of(&kvm)).map_err(io::Error::other)?;
    say(Message::Hello { protocol: PROTOCOL, program: env!("CARGO_PKG_VERSION").into() })?;
    say(Message::Machine { spec: spec.into(), memory: copy.size(), cpu })?;
    // For as long as somebody types a password.
    expect(reader, |message| matches!(message, Message::Accepted))?;
    let mut told = Instant::now();
    let mut watch = |progress: &_| {
        if told.elapsed() >= TICK {
            told = Instant::now();
            if protocol::tell(&mut *writer.borrow_mut(), &Local::Progress(*progress)).is_err() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    };
    let copied = copy.run(&mut StreamSink(writer), limits, PAUSE, &mut watch);
    let paused = copied.map_err(|error| why(error, stream, reader))?;
    // From here on the machine is paused, and runs on when `paused` is dropped.
    stream.set_read_timeout(Some(STALL))?;
    let state = paused.state();
    for (id, state) in state.states() {
        say(Message::Section { id: id.clone(), state: state.clone() })?;
    }
    say(Message::Complete { version: state.version(), panic_timeout: state.panic_timeout() })?;
    expect(reader, |message| matches!(message, Message::Ready))?;
    let leaving = paused.leave()?;
    let answer = say(Message::Go).map_err(MigrateError::from);
    match answer.and_then(|()| expect(reader, |message| matches!(message, Message::Running))) {
        Ok(()) => Ok(leaving.left()?),
        // It says so only if its guest has not run.
        Err(refused @ MigrateError::Refused(_)) => {
            leaving.come_back();
            Err(refused)
        }
        Err(error) => {
            leaving.stay_paused();
            Err(MigrateError::Unknown(match error {
                MigrateError::Stream(error) => error.to_string(),
                _ => "it said something else".into(),
            }))
        }
    }
}

/// Waits for a message of this kind.
fn expect(reader: &mut dyn Read, wanted: impl Fn(&Message) -> bool) -> Result<(), MigrateError> {
    match protocol::receive(reader)? {
        Next::Message(Message::Refused(sentence)) => {
            Err(MigrateError::Refused(crate::image::printable(&sentence)))
        }
        Next::Message(message) if wanted(&message) => Ok(()),
        _ => Err(MigrateError::Confused),
    }
}

/// A target that closes the stream may have said why before.
fn why(error: SaveError, stream: &UnixStream, reader: &mut dyn Read) -> MigrateError {
    match error {
        error @ (SaveError::Memory { .. } | SaveError::Cancelled) => {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            match expect(reader, |_| false) {
                Err(refused @ MigrateError::Refused(_)) => refused,
                _ => error.into(),
            }
        }
        error => error.into(),
    }
}

/// The stream as it takes memory.
struct StreamSink<'a, 'b>(&'a Writer<'b>);

impl Sink for StreamSink<'_, '_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        protocol::pages(&mut *self.0.borrow_mut(), offset, bytes)
    }

    fn zeros(&mut self, offset: u64, len: usize) -> io::Result<()> {
        protocol::zeros(&mut *self.0.borrow_mut(), offset, len as u64)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.borrow_mut().flush()
    }
}
