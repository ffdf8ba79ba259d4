//! The lab's agent: starts processes where /dev/kvm works, and carries their bytes, signals and exit statuses.
//!
//! It speaks frames on file descriptor 0: a virtio-serial port inside the emulated machine, a socket on a host
//! whose own KVM will do. It uses the standard library alone, because `build.rs` compiles it with a bare rustc.
//! When the stream ends it kills what it started and leaves.

#[path = "../src/wire.rs"]
mod wire;

mod sys;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long output may still arrive after a process has gone, when a child of it keeps its pipes open.
const DRAIN: Duration = Duration::from_secs(1);

type Port = Arc<Mutex<File>>;
type Processes = Arc<Mutex<HashMap<u32, Process>>>;

struct Process {
    pid: i32,
    stdin: Option<Sender<Vec<u8>>>,
}

fn main() -> io::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("check-kvm") {
        return sys::check_kvm();
    }
    serve(File::from(io::stdin().as_fd().try_clone_to_owned()?))
}

fn serve(mut from: File) -> io::Result<()> {
    let port: Port = Arc::new(Mutex::new(from.try_clone()?));
    let processes = Processes::default();
    tell(&port, wire::READY, 0, &[]);
    while let Ok(frame) = wire::read_frame(&mut from) {
        let known = locked(&processes).get_mut(&frame.id).map(|p| (p.pid, p.stdin.clone()));
        match (frame.kind, known) {
            (wire::SPAWN, _) => start(&port, &processes, frame.id, &frame.body),
            (wire::STDIN, Some((_, Some(stdin)))) => drop(stdin.send(frame.body)),
            (wire::STDIN_END, _) => drop(locked(&processes).get_mut(&frame.id).map(|p| p.stdin.take())),
            (wire::SIGNAL, Some((pid, _))) => sys::signal(pid, wire::number(&frame.body)),
            (wire::KILL, Some((pid, _))) => sys::signal(-pid, sys::SIGKILL),
            // To have come is all that it is for.
            (wire::WAKE, _) => {}
            // For a process that has ended.
            _ => {}
        }
    }
    for process in locked(&processes).values() {
        sys::signal(-process.pid, sys::SIGKILL);
    }
    // Each `finish` buries its own.
    let until = Instant::now() + 2 * DRAIN;
    while !locked(&processes).is_empty() && Instant::now() < until {
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lost stream is noticed by the reader in `serve`: a failed write needs no answer.
fn tell(port: &Port, kind: u8, id: u32, body: &[u8]) {
    drop(wire::write_frame(&mut *locked(port), kind, id, body));
}

fn start(port: &Port, processes: &Processes, id: u32, request: &[u8]) {
    let (on_tty, words) = request.split_first().unwrap_or((&0, &[]));
    let words: Vec<_> = words.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
    // Each argument is ended by NUL, so an empty piece follows the last.
    let argv = words.split_last().map_or(&[] as &[String], |(_, argv)| argv);
    let started = if *on_tty == 1 { on_terminal(argv) } else { on_pipes(argv) };
    let (child, stdin, outputs) = match started {
        Ok(all) => all,
        Err(error) => return tell(port, wire::FAILED, id, error.to_string().as_bytes()),
    };
    let (tx, rx) = mpsc::channel();
    // A process number fits: Linux's pid_max is 2^22.
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    locked(processes).insert(id, Process { pid, stdin: Some(tx) });
    thread::spawn(move || feed(stdin, &rx));
    let (done_tx, done) = mpsc::channel();
    for (kind, output) in outputs {
        let (port, done) = (port.clone(), done_tx.clone());
        thread::spawn(move || {
            carry(output, &port, kind, id);
            drop(done);
        });
    }
    let (port, processes) = (port.clone(), processes.clone());
    drop(done_tx);
    thread::spawn(move || finish(child, &done, &port, &processes, id));
}

type Started = (Child, Box<dyn Write + Send>, Vec<(u8, Box<dyn Read + Send>)>);

fn on_pipes(argv: &[String]) -> io::Result<Started> {
    let (program, args) = argv.split_first().ok_or_else(|| io::Error::other("no command was given"))?;
    let mut command = Command::new(program);
    command.args(args).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let gone = || io::Error::other("a pipe of the process is missing");
    let stdout: Box<dyn Read + Send> = Box::new(stdout.ok_or_else(gone)?);
    let stderr: Box<dyn Read + Send> = Box::new(stderr.ok_or_else(gone)?);
    Ok((child, Box::new(stdin.ok_or_else(gone)?), vec![(wire::STDOUT, stdout), (wire::STDERR, stderr)]))
}

/// `setsid -c` makes the process a session leader with the terminal as its own, and keeps its process number.
fn on_terminal(argv: &[String]) -> io::Result<Started> {
    let (master, terminal) = sys::open_pty()?;
    let mut command = Command::new("setsid");
    command.arg("-c").args(argv);
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    let child = command.spawn()?;
    Ok((child, Box::new(master.try_clone()?), vec![(wire::STDOUT, Box::new(master))]))
}

/// Writes what comes until the queue or the reader ends; the queue keeps a slow process from stopping the others.
fn feed(mut stdin: Box<dyn Write + Send>, queue: &Receiver<Vec<u8>>) {
    while let Ok(bytes) = queue.recv() {
        if stdin.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// A terminal's end is EIO, a pipe's is zero bytes.
fn carry(mut output: Box<dyn Read + Send>, port: &Port, kind: u8, id: u32) {
    let mut buffer = vec![0; wire::BODY_MAX];
    while let Ok(len @ 1..) = output.read(&mut buffer) {
        tell(port, kind, id, buffer.get(..len).unwrap_or_default());
    }
}

fn finish(mut child: Child, outputs: &Receiver<()>, port: &Port, processes: &Processes, id: u32) {
    let status = child.wait();
    // Nothing is ever sent: this ends when both readers have gone, or when time is up.
    let _ = outputs.recv_timeout(DRAIN);
    locked(processes).remove(&id);
    match status.map(|s| (s.code(), s.signal())) {
        Ok((Some(code), _)) => tell(port, wire::EXITED, id, &code.to_le_bytes()),
        Ok((None, signal)) => tell(port, wire::SIGNALED, id, &signal.unwrap_or(-1).to_le_bytes()),
        Err(error) => tell(port, wire::FAILED, id, error.to_string().as_bytes()),
    }
}
