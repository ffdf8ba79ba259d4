//! The machine that leaves.

use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use devices::thread::{Role, spawn_scoped};

use super::protocol::{self, Local, Message, Next, PROTOCOL};
use crate::host::patient::silent;
use crate::kvm::{CpuBaseline, KvmDevice};
use crate::machine::precopy::{Copy, Leaving, Sink};
use crate::machine::{Controls, CopyLimits, CopyReport, MachineState, Otherwise, SaveError, SaveOptions};
use crate::saved::with_absolute_paths;

/// Limit for the machine to come to rest.
const PAUSE: Duration = Duration::from_secs(30);
/// Between two words to the verb.
const TICK: Duration = Duration::from_millis(100);
/// Between two signs of life.
const ALIVE: Duration = Duration::from_millis(250);
/// The longest that a target may say it waits for its leave to run.
const MOST_WAIT: Duration = Duration::from_secs(3600);
/// How long the last that a target has said may be on its way, when nothing can be sent to it any more.
const LAST_WORD: Duration = Duration::from_secs(1);
/// A target that gets its leave at the last moment may take so long to say that it runs.
const MARGIN: Duration = Duration::from_secs(1);

/// How long the other end may be silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Before it has accepted the machine: somebody may have to type a password.
    pub greeting: Duration,
    /// Afterwards: the longest that it may take to make the machine, which is paused meanwhile.
    pub silence: Duration,
}

/// Why a machine did not migrate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MigrateError {
    #[error("{0}; it runs on here")]
    Source(SaveError),
    #[error("the machine was ended here before it had left, and does not run there")]
    Ended,
    #[error("the stream to the target broke off: {0}; the machine runs on here")]
    Stream(#[from] io::Error),
    #[error("the target refuses the machine: {0}; it runs on here")]
    Refused(String),
    #[error("the target has answered what no `minivmm receive` does; the machine runs on here")]
    Confused,
    #[error(
        "what answers there is not `minivmm receive`, to which --to has to lead, such as --to 'ssh host2 minivmm receive'; the machine runs on here"
    )]
    Stranger,
    #[error(
        "the target was told to let the machine run, and has not said that it does ({0}): the machine is paused here, because it must not run \
         twice; look whether it runs there; if it does not, `minivmm resume` lets it go on here, and if it does, `minivmm kill` ends it here"
    )]
    Unknown(String),
    #[error(
        "the machine was ended here when the target had been told to let it run, and the target has not said that it does ({0}); look whether it \
         runs there"
    )]
    UnknownAndEnded(String),
    #[error("{why}; {disk}; `minivmm resume` tries again")]
    Disks { why: Box<MigrateError>, disk: SaveError },
}

impl MigrateError {
    /// Whether the verb that carries the stream may know more of it. The machine runs on.
    fn is_of_the_way(&self) -> bool {
        matches!(self, MigrateError::Stream(_) | MigrateError::Source(SaveError::Cancelled))
    }
}

impl From<SaveError> for MigrateError {
    fn from(error: SaveError) -> Self {
        match error {
            SaveError::Ended => MigrateError::Ended,
            error => MigrateError::Source(error),
        }
    }
}

/// How the last exchange has failed.
enum Failed {
    /// The guest has not run there, and never will.
    Here(MigrateError),
    /// Nobody can know.
    Unknown(String),
}

impl<T: Into<MigrateError>> From<T> for Failed {
    fn from(error: T) -> Self {
        Failed::Here(error.into())
    }
}

/// Sends the machine over `stream`, of which `begun` was read already, and ends it when the target has said that it runs.
/// What comes of it is said at the end of the stream, for the verb that carries it.
pub(crate) fn migrate(
    controls: &Controls,
    stream: &UnixStream,
    begun: &[u8],
    options: SaveOptions,
    mut limits: CopyLimits,
    patience: Patience,
) {
    limits.otherwise = Otherwise::GiveUp;
    let timed = stream.set_write_timeout(Some(patience.silence));
    let writer = Writer::new(stream);
    let mut source = Source { stream, writer: &writer, reader: Box::new(begun.chain(stream)), patience };
    let result = timed.map_err(MigrateError::from).and_then(|()| source.send(controls, options, limits));
    let local = match result {
        Ok(report) => Local::Migrated(report),
        Err(error) => {
            log::warn!("migration: {error}");
            let sentence = error.to_string();
            if error.is_of_the_way() { Local::Broken(sentence) } else { Local::Failed(sentence) }
        }
    };
    // The verb may be gone.
    let _ = protocol::tell(&mut *writer.lock(), &local);
}

/// The way to the target; signs of life come between.
struct Writer<'a>(Mutex<BufWriter<&'a UnixStream>>);

impl<'a> Writer<'a> {
    fn new(stream: &'a UnixStream) -> Self {
        Writer(Mutex::new(BufWriter::with_capacity(256 << 10, stream)))
    }

    fn lock(&self) -> MutexGuard<'_, BufWriter<&'a UnixStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, message: &Message) -> io::Result<()> {
        protocol::send(&mut *self.lock(), message)
    }
}

struct Source<'a, 'b> {
    stream: &'a UnixStream,
    writer: &'a Writer<'b>,
    reader: Box<dyn Read + 'a>,
    patience: Patience,
}

impl Source<'_, '_> {
    fn send(
        &mut self,
        controls: &Controls,
        options: SaveOptions,
        limits: CopyLimits,
    ) -> Result<CopyReport, MigrateError> {
        controls.check_disks_move(options)?;
        let mut copy = Copy::begin(controls)?;
        let disks = if options.copies_disks() { copy.add_disks()? } else { Vec::new() };
        let spec = with_absolute_paths(copy.spec().clone())?;
        let cpu = KvmDevice::open().and_then(|kvm| CpuBaseline::of(&kvm)).map_err(io::Error::other)?;
        self.say(Message::Hello { protocol: PROTOCOL, program: env!("CARGO_PKG_VERSION").into() })?;
        self.say(Message::Machine { spec: spec.into(), memory: copy.size(), cpu, disks })?;
        let greeting =
            self.expect(self.patience.greeting, |message| matches!(message, Message::Accepted).then_some(()));
        greeting.map_err(|error| match error {
            MigrateError::Confused => MigrateError::Stranger,
            MigrateError::Stream(error) if error.kind() == ErrorKind::InvalidData => MigrateError::Stranger,
            error => error,
        })?;
        let writer = self.writer;
        thread::scope(|scope| {
            // Hung up at the end.
            let (_over, until) = mpsc::channel::<()>();
            let work = move || {
                while until.recv_timeout(ALIVE) == Err(RecvTimeoutError::Timeout) {
                    // What is wrong with the stream shows when it is used.
                    let _ = writer.say(&Message::Alive);
                }
            };
            spawn_scoped(scope, Role::ControlClient, "alive", work)?;
            self.hand_over(controls, copy, limits)
        })
    }

    /// To a target that has accepted it.
    fn hand_over(
        &mut self,
        controls: &Controls,
        copy: Copy<'_>,
        limits: CopyLimits,
    ) -> Result<CopyReport, MigrateError> {
        let (writer, mut told, mut untold) = (self.writer, Instant::now(), None);
        let mut watch = |progress: &_| {
            if told.elapsed() >= TICK {
                told = Instant::now();
                if let Err(error) = protocol::tell(&mut *writer.lock(), &Local::Progress(*progress)) {
                    untold = Some(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        };
        let copied = copy.run(&mut StreamSink(writer), limits, PAUSE, &mut watch);
        let paused = copied.map_err(|error| self.why(error, untold))?;
        // From here on the machine is paused, and nobody lets it go on.
        let leaving = paused.leave()?;
        match self.last_exchange(controls, &leaving) {
            // It runs there, whatever has become of what is left of it here: it may have been killed meanwhile.
            Ok(()) => Ok(leaving.left()),
            // The target may have the disks until it has noticed.
            Err(Failed::Here(why)) => match leaving.come_back(self.patience.silence + MARGIN) {
                Ok(()) => Err(why),
                Err(SaveError::Ended) => Err(MigrateError::Ended),
                Err(disk) => Err(MigrateError::Disks { why: Box::new(why), disk }),
            },
            Err(Failed::Unknown(why)) if controls.state() == MachineState::Ended => {
                Err(MigrateError::UnknownAndEnded(why))
            }
            Err(Failed::Unknown(why)) => {
                leaving.stay_paused();
                Err(MigrateError::Unknown(why))
            }
        }
    }

    /// From the state of the machine to the target's word that it runs.
    fn last_exchange(&mut self, controls: &Controls, leaving: &Leaving<'_>) -> Result<(), Failed> {
        let state = leaving.state();
        for (id, state) in state.states() {
            self.say(Message::Section { id: id.clone(), state: state.clone() })?;
        }
        // They are on the medium since the machine was saved. The target opens them when it has heard of all.
        leaving.release_disks()?;
        let (version, panic_timeout) = (state.version(), state.panic_timeout());
        self.say(Message::Complete { version, panic_timeout, marks: leaving.marks() })?;
        let limit = self.expect(self.patience.silence, |message| match message {
            Message::Ready { limit } => Some(Duration::from_millis(limit)),
            _ => None,
        })?;
        // The target's time has begun before.
        let ready = Instant::now();
        if limit > MOST_WAIT {
            return Err(MigrateError::Confused.into());
        }
        // Who has ended the machine meanwhile wants it to run nowhere.
        if controls.state() == MachineState::Ended {
            return Err(SaveError::Ended.into());
        }
        let wait = self.patience.silence.max(limit + MARGIN);
        let answer = self
            .say(Message::Go)
            .and_then(|()| self.expect(wait, |message| matches!(message, Message::Running).then_some(())));
        match answer {
            Ok(()) => Ok(()),
            // It says so only if its guest has not run, and never will.
            Err(refused @ MigrateError::Refused(_)) => Err(refused.into()),
            Err(error) => {
                // `Go` may still be on its way, and be good until then.
                sleep((limit + MARGIN).saturating_sub(ready.elapsed()));
                Err(Failed::Unknown(match error {
                    MigrateError::Stream(error) => error.to_string(),
                    _ => "it said something else".into(),
                }))
            }
        }
    }

    fn say(&self, message: Message) -> Result<(), MigrateError> {
        self.writer.say(&message).map_err(|error| self.broken(error))
    }

    /// The error of a write.
    fn broken(&self, error: io::Error) -> MigrateError {
        MigrateError::Stream(match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => silent("has taken nothing", self.patience.silence),
            _ => error,
        })
    }

    /// Waits for a message of this kind.
    fn expect<T>(
        &mut self,
        limit: Duration,
        wanted: impl Fn(Message) -> Option<T>,
    ) -> Result<T, MigrateError> {
        self.stream.set_read_timeout(Some(limit))?;
        let next = protocol::receive(&mut self.reader).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => silent("has said nothing", limit),
            _ => error,
        })?;
        match next {
            Next::Message(Message::Refused(sentence)) => {
                Err(MigrateError::Refused(crate::image::printable(&sentence)))
            }
            Next::Message(message) => wanted(message).ok_or(MigrateError::Confused),
            _ => Err(MigrateError::Confused),
        }
    }

    /// Why a copy has ended; `untold` is what has kept its progress from being told. A target that closes the stream may have said why
    /// before. The verb cancels the copy when it has lost the target, and closes its end of the stream before; whoever else cancels it does not.
    fn why(&mut self, error: SaveError, untold: Option<io::Error>) -> MigrateError {
        let broken = match error {
            SaveError::Memory { source } | SaveError::DiskCopy { source, .. } => Some(source),
            SaveError::Cancelled => untold,
            error => return error.into(),
        };
        match (self.expect(LAST_WORD, |_| None::<()>), broken) {
            (Err(refused @ MigrateError::Refused(_)), _) => refused,
            (_, Some(error)) => self.broken(error),
            (Err(MigrateError::Stream(error)), None) if error.kind() != ErrorKind::TimedOut => error.into(),
            _ => MigrateError::Source(SaveError::Cancelled),
        }
    }
}

/// The stream as it takes memory.
struct StreamSink<'a, 'b>(&'a Writer<'b>);

impl Sink for StreamSink<'_, '_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        protocol::pages(&mut *self.0.lock(), offset, bytes)
    }

    fn zeros(&mut self, offset: u64, len: usize) -> io::Result<()> {
        protocol::zeros(&mut *self.0.lock(), offset, len as u64)
    }

    fn disk(&mut self, disk: usize, offset: u64, bytes: &[u8]) -> io::Result<()> {
        protocol::disk_bytes(&mut *self.0.lock(), disk, offset, bytes)
    }

    fn disk_zeros(&mut self, disk: usize, offset: u64, len: u64) -> io::Result<()> {
        protocol::disk_zeros(&mut *self.0.lock(), disk, offset, len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().flush()
    }
}
