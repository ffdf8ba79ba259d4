//! `minivmm capture`: frames of a running machine's network interface, in a file or on standard output.

mod blocks;

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use devices::thread::{self, Role};
use serde_json::Value;

use super::{CaptureArgs, CaptureOutput, MachineClient, VerbError};
use crate::cli::report;
use crate::control::client::ByteStream;
use crate::control::net_routes::{ONLY, capture_body};
use crate::host::capture::{CaptureError, CaptureFile};
use crate::host::ready::wait_for_hangup;
use crate::host::signals::{Signal, Signals};
use crate::host::stdio::Output;
use crate::spec::NetId;
use blocks::Blocks;

/// How long what is waiting may take to be written once the capture is to end.
const REST_LIMIT: Duration = Duration::from_secs(30);

pub(super) fn capture(args: &CaptureArgs) -> Result<(), VerbError> {
    let client = MachineClient::find(&args.name)?;
    let path = format!("/v1/nets/{}/capture", args.net.as_ref().map_or(ONLY, NetId::as_str));
    write_frames(&args.output, |body| {
        ByteStream::open(&client.0.socket, "POST", &path, body).map_err(|source| client.failed(source))
    })
}

/// Why frames could not be captured.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum CaptureFailure {
    /// Frames are not for people.
    #[error(
        "frames are not written to a terminal: send them to a program (`-w - | wireshark -k -i -`), or name a file (`-w FILE`)"
    )]
    Terminal,
    /// The file.
    #[error(transparent)]
    File(#[from] CaptureError),
    /// The host has no thread left, or its signals cannot be had.
    #[error("frames cannot be captured here: {0}")]
    Host(#[source] io::Error),
    /// Frames cannot be written.
    #[error("frames cannot be written, and the capture has ended: {0}")]
    Output(#[source] io::Error),
    /// The output does not take what is left.
    #[error("the capture has no end: its output did not take the rest in time")]
    Stuck,
    /// The connection ended in the middle.
    #[error(
        "the capture broke off behind {frames} frames: the other process has gone, or closed the connection"
    )]
    Broken { frames: u64 },
}

/// Writes frames where `output` says. `open` gets the body of the request for them.
pub(in crate::cli) fn write_frames<E: From<CaptureFailure>>(
    output: &CaptureOutput,
    open: impl FnOnce(&Value) -> Result<ByteStream, E>,
) -> Result<(), E> {
    let body = capture_body(output.count, output.seconds);
    // Before any thread exists, so that all of them have the signals blocked.
    let signals = Signals::block().map_err(CaptureFailure::Host)?;
    // A file is opened, and an earlier capture replaced, when there is something to write.
    let target = Target::find(output.write.as_deref())?;
    let stream = open(&body)?;
    Ok(copy_all(target, stream, signals)?)
}

fn copy_all(target: Target, stream: ByteStream, signals: Signals) -> Result<(), CaptureFailure> {
    let ByteStream { stream, received } = stream;
    let stream = Arc::new(stream);
    let (events, happens) = mpsc::channel();
    if let Target::Standard = target {
        let events = events.clone();
        spawn("reader", move || {
            if wait_for_hangup(&Output::standard()).is_ok() {
                let _ = events.send(Event::ReaderGone);
            }
        })?;
    }
    let listener = events.clone();
    spawn("signals", move || {
        while let Ok(signal) = signals.wait(None) {
            match signal {
                Some(Signal::End(_)) if listener.send(Event::Signal).is_ok() => {}
                Some(Signal::End(number)) => std::process::exit(128 + number),
                _ => {}
            }
        }
    })?;
    let source = stream.clone();
    spawn("frames", move || {
        let copied = target.open().and_then(|output| copy(&source, &received, output));
        let _ = events.send(Event::Copied(copied));
    })?;
    let Copied { blocks, output_ended } = wait(&happens, &stream)?;
    summary(&blocks, output_ended)
}

/// Waits for the end; somebody may ask for it.
fn wait(happens: &mpsc::Receiver<Event>, stream: &UnixStream) -> Result<Copied, CaptureFailure> {
    let (mut until, mut is_interrupted): (Option<Instant>, _) = (None, false);
    loop {
        let limit = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
        match happens.recv_timeout(limit) {
            Ok(Event::Copied(copied)) => return copied,
            Ok(Event::Signal) if is_interrupted => return Err(CaptureFailure::Stuck),
            Ok(event) => {
                is_interrupted |= matches!(event, Event::Signal);
                until = until.or_else(|| Some(Instant::now() + REST_LIMIT));
                // The machine sends what is waiting, and the statistics.
                let _ = stream.shutdown(Shutdown::Write);
            }
            Err(_) => return Err(CaptureFailure::Stuck),
        }
    }
}

enum Event {
    /// Ctrl-C and the like; the second time it is not waited for what is left.
    Signal,
    /// The reader of standard output.
    ReaderGone,
    Copied(Result<Copied, CaptureFailure>),
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), CaptureFailure> {
    thread::spawn(Role::Cli, name, work).map(drop).map_err(CaptureFailure::Host)
}

/// Where the frames go.
enum Target {
    File(PathBuf),
    Standard,
}

impl Target {
    fn find(path: Option<&Path>) -> Result<Self, CaptureFailure> {
        match path.filter(|path| *path != Path::new("-")) {
            Some(path) => Ok(Target::File(path.to_owned())),
            None if Output::standard().is_terminal() => Err(CaptureFailure::Terminal),
            None => Ok(Target::Standard),
        }
    }

    /// A FIFO is waited for.
    fn open(self) -> Result<Box<dyn Write>, CaptureFailure> {
        Ok(match self {
            Target::File(path) => Box::new(CaptureFile::open(&path)?.begin_blocking()?) as Box<dyn Write>,
            Target::Standard => Box::new(Output::standard()),
        })
    }
}

/// What was copied.
struct Copied {
    blocks: Blocks,
    /// The output takes no more: its reader has gone.
    output_ended: bool,
}

/// Copies the stream to its end. An output that ends before ends the capture.
fn copy(
    mut stream: &UnixStream,
    received: &[u8],
    mut output: Box<dyn Write>,
) -> Result<Copied, CaptureFailure> {
    let mut copied = Copied { blocks: Blocks::default(), output_ended: false };
    let mut bytes = vec![0; 64 << 10];
    let mut part = received;
    loop {
        copied.blocks.pass(part);
        match if copied.output_ended { Ok(()) } else { output.write_all(part) } {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                copied.output_ended = true;
                // What is waiting still comes, and is counted.
                let _ = stream.shutdown(Shutdown::Write);
            }
            Err(error) => return Err(CaptureFailure::Output(error)),
        }
        part = match stream.read(&mut bytes) {
            Ok(0) => return Ok(copied),
            Ok(count) => bytes.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => &[],
            // The machine's process was killed.
            Err(_) => return Ok(copied),
        };
    }
}

/// Says what there was.
fn summary(blocks: &Blocks, output_ended: bool) -> Result<(), CaptureFailure> {
    let frames = blocks.frames;
    match blocks.lost {
        Some(lost) => report::notice(false, &format!("{frames} frames, {lost} lost")),
        // It goes on without an end where the reader has gone.
        None if output_ended => report::notice(false, &format!("{frames} frames")),
        None => return Err(CaptureFailure::Broken { frames }),
    }
    Ok(())
}
