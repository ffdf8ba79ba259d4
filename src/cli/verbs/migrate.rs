//! `minivmm migrate`: carries the stream between a machine and the process that takes it over.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use devices::thread::{Role, spawn};
use diskimage::Progress;

use super::wait::EndWaiter;
use super::{ANSWER_LIMIT, MachineClient, MigrateArgs, VerbError};
use crate::cli::disk::progress::Bar;
use crate::cli::exit::Status;
use crate::cli::migration_address::{MigrationWay, SILENCE, to_target};
use crate::cli::print;
use crate::control::client::MigrationConnection;
use crate::control::save_routes::{CopyName, migrate_body};
use crate::machine::{CopyLimits, CopyReport};
use crate::migration::{Frame, Local, Patience, Stream};

/// How long the machine may take to end, and the target's program.
const END_LIMIT: Duration = Duration::from_secs(20);

/// How long the last that a target has said may be on its way, when nothing can be sent to it any more.
const LAST_WORD: Duration = Duration::from_secs(5);

/// How long a command may take until the target answers: somebody may have to type a password.
const GREETING: Duration = Duration::from_secs(300);

/// The target, and the program that leads there.
struct Target {
    stream: Stream,
    child: Option<Child>,
}

impl Target {
    fn connect(to: &MigrationWay, limit: Duration) -> io::Result<Self> {
        let command = match to {
            MigrationWay::At(address) => {
                return Ok(Target { stream: address.connect(limit)?, child: None });
            }
            MigrationWay::Command(command) => command,
        };
        let mut child =
            Command::new("sh").args(["-c", command]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(writer), Some(reader)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(ErrorKind::BrokenPipe.into());
        };
        Ok(Target { stream: to_target(reader, writer, limit)?, child: Some(child) })
    }
}

/// Waits for the program that leads to the target, but not for ever. Its status, if it has ended by itself.
fn wait_for(child: Option<Child>) -> Option<ExitStatus> {
    let mut child = child?;
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if begun.elapsed() <= END_LIMIT => thread::sleep(Duration::from_millis(10)),
            Ok(None) => {
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            Ok(Some(status)) => return Some(status),
            Err(_) => return None,
        }
    }
}

/// Why no target was reached.
fn unreached(to: &MigrationWay, source: &io::Error) -> String {
    match (to, source.kind()) {
        (MigrationWay::At(_), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            format!(
                "nobody waits at {to}; start `minivmm receive --listen {to}` first; the machine runs on here"
            )
        }
        _ => format!("{to}: {source}; the machine runs on here"),
    }
}

pub(super) fn migrate(args: &MigrateArgs) -> Result<Status, VerbError> {
    let client = MachineClient::find(&args.name)?;
    let mut limits = CopyLimits { bandwidth: args.bandwidth, ..CopyLimits::default() };
    limits.downtime = args.downtime.unwrap_or(limits.downtime);
    let silence = args.timeout.unwrap_or(SILENCE);
    let greeting = match &args.to {
        MigrationWay::At(_) => SILENCE,
        MigrationWay::Command(_) => GREETING,
    };
    let patience = Patience { greeting: args.timeout.unwrap_or(greeting), silence };
    // Sent before, so that an end that comes at once is not missed.
    let mut waiter = EndWaiter::start(&client)?;
    let copy = CopyName::new();
    let body = copy.with(migrate_body(args.with_disks, limits, patience));
    let connection = MigrationConnection::open(&client.0.socket, &body);
    let MigrationConnection { stream, received } = connection.map_err(|source| client.failed(source))?;
    let mut frames = received.as_slice().chain(&stream);
    let failed = |why: String| VerbError::Migration { name: args.name.clone(), why };
    // A machine that cannot migrate says so before anybody types a password.
    let first = next(&mut frames).map_err(failed)?;
    if let Some(Local::Failed(why) | Local::Broken(why)) = local(&first).map_err(failed)? {
        return Err(failed(why));
    }
    let target = Target::connect(&args.to, silence).map_err(|source| failed(unreached(&args.to, &source)))?;
    let answered = Arc::new(AtomicBool::new(false));
    // Behind the start of the command, which is to hear signals as always: ssh, that asks for a password.
    let mut bar =
        Bar::begin_with(cancel(&client, &stream, &copy, &answered)?).map_err(VerbError::Terminal)?;
    let Target { stream: Stream { reader, writer }, child } = target;
    let replies = stream.try_clone().map_err(VerbError::Terminal)?;
    let (over, said_all) = mpsc::channel();
    let answers = answered.clone();
    spawn(Role::Cli, "replies", move || carry_back(reader, &replies, &answers, over))
        .map_err(VerbError::Terminal)?;
    let mut way =
        Way { client: &client, copy: &copy, stream: &stream, writer: Some(writer), said_all, lost: None };
    let outcome = way.carry(first, &mut frames, &mut bar);
    // Closed, so that the command ends.
    let lost = way.lost.take();
    drop(way);
    let interrupted = bar.interrupted().map(|signal| VerbError::Stays { name: args.name.clone(), signal });
    // Its line is free for what is said.
    drop(bar);
    let status = wait_for(child).filter(|status| !status.success());
    let report = outcome.map_err(|undone| match (undone, status) {
        (Undone::Broken(_), _) if interrupted.is_some() => {
            interrupted.unwrap_or_else(|| failed(String::new()))
        }
        (_, Some(status)) if !answered.load(Ordering::Relaxed) => failed(format!(
            "the command of --to {} before a target answered: it has to lead to `minivmm receive`, such as \
             --to 'ssh host2 minivmm receive'; the machine runs on here",
            ended(status)
        )),
        (Undone::Said(why), _) => failed(why),
        (Undone::Broken(why), status) => failed(broken(why, lost.as_ref(), status)),
    })?;
    waiter.end(END_LIMIT)?;
    let text = if args.json { serde_json::to_string_pretty(&report)? } else { words(&report) };
    Ok(print(&text, Status::Done))
}

/// What a signal does: the machine stays here, unless it has left.
fn cancel(
    client: &MachineClient,
    stream: &UnixStream,
    copy: &CopyName,
    answered: &Arc<AtomicBool>,
) -> Result<impl FnOnce() + Send + 'static, VerbError> {
    let stream = stream.try_clone().map_err(VerbError::Terminal)?;
    let (client, body, answered) = (client.clone(), copy.alone(), answered.clone());
    Ok(move || {
        // Until the target answers the machine waits for that, and copies nothing.
        if !answered.load(Ordering::Relaxed) {
            let _ = stream.shutdown(Shutdown::Write);
        }
        let _ = client.send("DELETE", "/v1/copy", Some(&body), ANSWER_LIMIT);
    })
}

/// How a program ended.
fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
    }
}

/// Why the stream broke off: the machine knows that it did, the verb what it met there.
fn broken(why: String, lost: Option<&io::Error>, command: Option<ExitStatus>) -> String {
    match (lost, command) {
        (Some(error), _) if error.kind() == ErrorKind::TimedOut => {
            format!("the stream to the target broke off: {error}; the machine runs on here")
        }
        (_, Some(status)) => {
            format!(
                "the command of --to {} before the machine ran there; the machine runs on here",
                ended(status)
            )
        }
        _ => why,
    }
}

fn words(report: &CopyReport) -> String {
    let CopyReport { rounds, sent, total_ms, paused_ms, .. } = report;
    let mib = sent.div_ceil(1 << 20);
    format!("migrated in {total_ms} ms: {mib} MiB in {rounds} rounds; paused for {paused_ms} ms")
}

/// From the target to the machine. `over` is hung up behind the last that the target has said.
fn carry_back(mut from: Box<dyn Read + Send>, to: &UnixStream, answered: &AtomicBool, over: Sender<()>) {
    let mut first = [0];
    if from.read_exact(&mut first).is_ok() {
        answered.store(true, Ordering::Relaxed);
        let _ = (&*to).write_all(&first).and_then(|()| io::copy(&mut from, &mut &*to));
    }
    let _ = to.shutdown(Shutdown::Write);
    drop(over);
}

/// Why a machine has not migrated, in a sentence.
enum Undone {
    Said(String),
    /// The stream broke off, or somebody has cancelled the copy. The machine runs on.
    Broken(String),
}

/// From the machine to the target.
struct Way<'a> {
    client: &'a MachineClient,
    /// What the machine calls it.
    copy: &'a CopyName,
    stream: &'a UnixStream,
    /// Gone with the target.
    writer: Option<Box<dyn Write + Send>>,
    /// Hung up when the target says nothing more.
    said_all: Receiver<()>,
    /// Why nothing can be sent to the target any more.
    lost: Option<io::Error>,
}

impl Way<'_> {
    /// Carries all until the machine has said what has come of it.
    fn carry(&mut self, first: Frame, frames: &mut dyn Read, bar: &mut Bar) -> Result<CopyReport, Undone> {
        let mut frame = first;
        loop {
            match local(&frame).map_err(Undone::Said)? {
                Some(Local::Progress(progress)) => {
                    let _ = bar.at(progress.total - progress.left.min(progress.total), progress.total);
                }
                Some(Local::Migrated(report)) => return Ok(report),
                Some(Local::Failed(why)) => return Err(Undone::Said(why)),
                Some(Local::Broken(why)) => return Err(Undone::Broken(why)),
                None => self.send(&frame),
            }
            frame = next(frames).map_err(Undone::Said)?;
        }
    }

    fn send(&mut self, frame: &Frame) {
        let Some(writer) = &mut self.writer else { return };
        let Err(error) = frame.write(writer).and_then(|()| writer.flush()) else { return };
        self.writer = None;
        // What it has said before it went tells more, and is at hand. One that is silent says nothing.
        if error.kind() != ErrorKind::TimedOut {
            let _ = self.said_all.recv_timeout(LAST_WORD);
        }
        self.lost = Some(error);
        // In this order the machine knows that nobody wanted this.
        let _ = self.stream.shutdown(Shutdown::Write);
        // It copies no more, if it still does, and says what has come of it.
        let _ = self.client.send("DELETE", "/v1/copy", Some(&self.copy.alone()), ANSWER_LIMIT);
    }
}

fn next(frames: &mut dyn Read) -> Result<Frame, String> {
    match Frame::read(frames) {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) => {
            Err("its process has ended, or lets go of the stream; `minivmm info` shows whether it runs"
                .into())
        }
        Err(error) => Err(error.to_string()),
    }
}

fn local(frame: &Frame) -> Result<Option<Local>, String> {
    Local::of(frame).transpose().map_err(|error| error.to_string())
}
