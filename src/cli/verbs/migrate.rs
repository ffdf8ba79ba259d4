//! `minivmm migrate`: carries the stream between a machine and the process that takes it over.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
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
use crate::cli::migration_address::{MigrationAddress, SILENCE, to_target};
use crate::cli::print;
use crate::control::client::MigrationConnection;
use crate::control::save_routes::migrate_body;
use crate::machine::{CopyLimits, CopyReport};
use crate::migration::{Frame, Local, Patience, Stream};

/// How long the machine may take to end, and the target's program.
const END_LIMIT: Duration = Duration::from_secs(20);

/// How long what a target has said before it has gone may be on its way to the machine.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How long a command may take until the target answers: somebody may have to type a password.
const GREETING: Duration = Duration::from_secs(300);

fn is_address(to: &str) -> bool {
    to.starts_with("unix:") || to.starts_with("tcp:")
}

/// The target, and the program that leads there.
struct Target {
    stream: Stream,
    child: Option<Child>,
}

impl Target {
    fn connect(to: &str, limit: Duration) -> io::Result<Self> {
        if is_address(to) {
            let address: MigrationAddress = to.parse().map_err(io::Error::other)?;
            return Ok(Target { stream: address.connect(limit)?, child: None });
        }
        let mut child =
            Command::new("sh").args(["-c", to]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(writer), Some(reader)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(ErrorKind::BrokenPipe.into());
        };
        Ok(Target { stream: to_target(reader, writer, limit)?, child: Some(child) })
    }
}

/// Waits for the program that leads to the target, but not for ever. Its status, if it has ended by itself.
fn wait_for(child: Option<Child>) -> Option<i32> {
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
            Ok(Some(status)) => return status.code(),
            Err(_) => return None,
        }
    }
}

/// Why no target was reached.
fn unreached(to: &str, source: &io::Error) -> String {
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused if is_address(to) => {
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
    let greeting = if is_address(&args.to) { SILENCE } else { GREETING };
    let patience = Patience { greeting: args.timeout.unwrap_or(greeting), silence };
    // Sent before, so that an end that comes at once is not missed.
    let mut waiter = EndWaiter::start(&client)?;
    let connection =
        MigrationConnection::open(&client.0.socket, &migrate_body(args.with_disks, limits, patience));
    let MigrationConnection { stream, received } = connection.map_err(|source| client.failed(source))?;
    let mut frames = received.as_slice().chain(&stream);
    let failed = |why: String| VerbError::Migration { name: args.name.clone(), why };
    // A machine that cannot migrate says so before anybody types a password.
    let first = next(&mut frames).map_err(failed)?;
    if let Some(Local::Failed(why)) = local(&first).map_err(failed)? {
        return Err(failed(why));
    }
    let target = Target::connect(&args.to, silence).map_err(|source| failed(unreached(&args.to, &source)))?;
    let Target { stream: Stream { reader, writer }, child } = target;
    let replies = stream.try_clone().map_err(VerbError::Terminal)?;
    let answered = Arc::new(AtomicBool::new(false));
    let answers = answered.clone();
    // Hung up when all is carried back.
    let (over, is_over) = mpsc::channel();
    let work = move || {
        carry_back(reader, &replies, &answers);
        drop::<Sender<()>>(over);
    };
    spawn(Role::Cli, "replies", work).map_err(VerbError::Terminal)?;
    let outcome = carry(&client, &stream, first, &mut frames, (writer, &is_over));
    let status = wait_for(child).filter(|status| *status != 0 && !answered.load(Ordering::Relaxed));
    let report = outcome.map_err(|why| match status {
        Some(status) => failed(format!(
            "the command of --to ended with status {status} before a target answered: it has to lead to `minivmm receive`, such as \
             --to 'ssh host2 minivmm receive'; the machine runs on here"
        )),
        None => failed(why),
    })?;
    waiter.end(END_LIMIT)?;
    let text = if args.json { serde_json::to_string_pretty(&report)? } else { words(&report) };
    Ok(print(&text, Status::Done))
}

fn words(report: &CopyReport) -> String {
    let CopyReport { rounds, sent, total_ms, paused_ms, .. } = report;
    let mib = sent.div_ceil(1 << 20);
    format!("migrated in {total_ms} ms: {mib} MiB in {rounds} rounds; paused for {paused_ms} ms")
}

/// From the target to the machine.
fn carry_back(mut from: Box<dyn Read + Send>, to: &UnixStream, answered: &AtomicBool) {
    let mut first = [0];
    if from.read_exact(&mut first).is_ok() {
        answered.store(true, Ordering::Relaxed);
        let _ = (&*to).write_all(&first).and_then(|()| io::copy(&mut from, &mut &*to));
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// From the machine to the target, until the machine has said what has come of it. `is_over` is hung up when all is carried back.
fn carry(
    client: &MachineClient,
    stream: &UnixStream,
    first: Frame,
    frames: &mut dyn Read,
    (writer, is_over): (Box<dyn Write + Send>, &Receiver<()>),
) -> Result<CopyReport, String> {
    let (mut frame, mut writer, mut bar) = (first, Some(writer), Bar::without_signals());
    loop {
        match local(&frame)? {
            Some(Local::Progress(progress)) => {
                let _ = bar.at(progress.total - progress.left.min(progress.total), progress.total);
            }
            Some(Local::Migrated(report)) => return Ok(report),
            Some(Local::Failed(why)) => return Err(why),
            None => {
                let written = writer.as_mut().map_or(Ok(()), |to| frame.write(to).and_then(|()| to.flush()));
                if let Err(error) = written {
                    // The machine copies no more, if it still does, and says what the target has said.
                    writer = None;
                    let _ = client.send("DELETE", "/v1/copy", None, ANSWER_LIMIT);
                    if error.kind() != ErrorKind::TimedOut {
                        let _ = is_over.recv_timeout(LAST_WORDS);
                    }
                    let _ = stream.shutdown(Shutdown::Write);
                }
            }
        }
        frame = next(frames)?;
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
