//! `minivmm capture`: frames of a running machine's network interface, in a file or on standard output.

mod blocks;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use devices::thread::{self, Role};

use super::{CaptureArgs, MachineClient, VerbError};
use crate::cli::report;
use crate::control::client::ByteStream;
use crate::control::net_routes::{ONLY, capture_body};
use crate::host::capture::CaptureFile;
use crate::host::ready::wait_for_hangup;
use crate::host::signals::{Signal, Signals};
use crate::host::stdio::Output;
use crate::spec::NetId;
use blocks::Blocks;

/// How long what is waiting may take to be written once the capture is to end.
const REST_LIMIT: Duration = Duration::from_secs(5);

pub(super) fn capture(args: &CaptureArgs) -> Result<(), VerbError> {
    let client = MachineClient::find(&args.name)?;
    let path = format!("/v1/nets/{}/capture", args.net.as_ref().map_or(ONLY, NetId::as_str));
    let body = capture_body(args.count, args.seconds);
    let open =
        || ByteStream::open(&client.0.socket, "POST", &path, &body).map_err(|source| client.failed(source));
    write_to(args.write.as_deref(), open)
}

/// Writes what `open` opens to `target`, a file or `-`.
fn write_to(
    target: Option<&Path>,
    open: impl FnOnce() -> Result<ByteStream, VerbError>,
) -> Result<(), VerbError> {
    // Before any thread exists, so that all of them have the signals blocked.
    let signals = Signals::block().map_err(VerbError::Terminal)?;
    let target = match target.filter(|path| *path != Path::new("-")) {
        // Opened before, and replaced when there is something to write.
        Some(path) => Target::File(CaptureFile::open(path)?),
        None if Output::standard().is_terminal() => return Err(VerbError::CaptureTerminal),
        None => Target::Standard,
    };
    let ByteStream { stream, received } = open()?;
    let stream = Arc::new(stream);
    let (events, happens) = mpsc::channel();
    if let Target::Standard = target {
        let events = events.clone();
        spawn("reader", move || {
            if wait_for_hangup(&Output::standard()).is_ok() {
                let _ = events.send(Event::Finish);
            }
        })?;
    }
    let listener = events.clone();
    spawn("signals", move || {
        while let Ok(signal) = signals.wait(None) {
            match signal {
                Some(Signal::End(_)) if listener.send(Event::Finish).is_ok() => {}
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
    let copied = wait(&happens, &stream);
    let Copied { blocks, output_ended } = copied?;
    summary(&blocks, output_ended)
}

/// Waits for the end; somebody may ask for it.
fn wait(happens: &mpsc::Receiver<Event>, stream: &UnixStream) -> Result<Copied, VerbError> {
    let mut until: Option<Instant> = None;
    loop {
        let limit = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
        match happens.recv_timeout(limit) {
            Ok(Event::Copied(copied)) => return copied,
            Ok(Event::Finish) if until.is_none() => {
                until = Some(Instant::now() + REST_LIMIT);
                // The machine sends what is waiting, and the statistics.
                let _ = stream.shutdown(Shutdown::Write);
            }
            // The second time, or the output does not take the rest.
            Ok(Event::Finish) | Err(_) => return Err(VerbError::CaptureStuck),
        }
    }
}

enum Event {
    /// A signal, or the reader of standard output has gone.
    Finish,
    Copied(Result<Copied, VerbError>),
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), VerbError> {
    thread::spawn(Role::Cli, name, work).map(drop).map_err(VerbError::Terminal)
}

/// Where the frames go.
enum Target {
    File(CaptureFile),
    Standard,
}

impl Target {
    /// A FIFO is waited for.
    fn open(self) -> Result<Box<dyn Write>, VerbError> {
        Ok(match self {
            Target::File(file) => Box::new(file.begin_blocking()?) as Box<dyn Write>,
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
fn copy(mut stream: &UnixStream, received: &[u8], mut output: Box<dyn Write>) -> Result<Copied, VerbError> {
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
            Err(error) => return Err(VerbError::CaptureOutput(error)),
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
fn summary(blocks: &Blocks, output_ended: bool) -> Result<(), VerbError> {
    let frames = blocks.frames;
    match blocks.lost {
        Some(lost) => report::notice(false, &format!("{frames} frames, {lost} lost")),
        // It goes on without an end where the reader has gone.
        None if output_ended => report::notice(false, &format!("{frames} frames")),
        None => return Err(VerbError::CaptureBroken { frames }),
    }
    Ok(())
}
