//! The host's end of the stream to the agent: one reader thread sorts frames to the processes they belong to.

use crate::error::Tail;
use crate::wire;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A reader on the other side that takes nothing for this long is broken.
const WRITE_LIMIT: Duration = Duration::from_secs(60);
/// How long the console may go on after the stream has broken.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often a machine is woken that may have lost its timer.
const BEAT: Duration = Duration::from_secs(1);
/// The console keeps its last bytes only.
const CONSOLE_MAX: usize = 64 * 1024;

/// `MINIVMM_PATIENCE=N` makes every limit N times as long, for a host that is busy with other work.
fn patience() -> u32 {
    static PATIENCE: OnceLock<u32> = OnceLock::new();
    let asked = || std::env::var("MINIVMM_PATIENCE").ok().and_then(|text| text.parse().ok());
    *PATIENCE.get_or_init(|| asked().unwrap_or(1).clamp(1, 100))
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It exited with this status.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl Status {
    /// As a shell says it: 128 more than the signal's number.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }
}

/// How a process, or all of them, came to an end.
#[derive(Debug, Clone)]
pub(crate) enum End {
    Status(Status),
    Failed(String),
    /// The stream broke: the machine has gone.
    Lost,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) out: Vec<u8>,
    pub(crate) err: Vec<u8>,
    pub(crate) end: Option<End>,
}

/// What is known of one process; `changed` is told of every change.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }

    fn change(&self, with: impl FnOnce(&mut State)) {
        with(&mut self.state());
        self.changed.notify_all();
    }

    /// Waits until `done` finds something in the state, or time is up.
    pub(crate) fn wait<T>(&self, limit: Duration, mut done: impl FnMut(&State) -> Option<T>) -> Option<T> {
        let until = Instant::now() + limit * patience();
        let mut state = self.state();
        loop {
            if let Some(found) = done(&state) {
                return Some(found);
            }
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The last of what the machine's serial console (and QEMU) said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Console(Arc<(Mutex<Kept>, Condvar)>);

#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    open: u32,
}

impl Console {
    /// Keeps what comes from this stream until it ends.
    pub(crate) fn gather(&self, mut from: impl Read + Send + 'static) {
        locked(&self.0.0).open += 1;
        let console = self.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = from.read(&mut buffer) {
                console.add(buffer.get(..len).unwrap_or_default());
            }
            locked(&console.0.0).open -= 1;
            console.0.1.notify_all();
        });
    }

    fn add(&self, bytes: &[u8]) {
        let kept = &mut locked(&self.0.0).bytes;
        kept.extend_from_slice(bytes);
        let excess = kept.len().saturating_sub(CONSOLE_MAX);
        kept.drain(..excess);
    }

    /// Waits until all streams have ended: the last words are the ones that matter.
    fn wait_for_end(&self, limit: Duration) {
        let (kept, changed) = &*self.0;
        drop(changed.wait_timeout_while(locked(kept), limit, |kept| kept.open > 0));
    }

    pub(crate) fn tail(&self) -> Tail {
        Tail::of(&locked(&self.0.0).bytes)
    }
}

type Processes = Arc<Mutex<HashMap<u32, Arc<Shared>>>>;

/// The stream.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: Mutex<UnixStream>,
    processes: Processes,
    ready: Arc<Shared>,
    next: AtomicU32,
    pub(crate) console: Console,
}

impl Channel {
    pub(crate) fn new(stream: UnixStream, console: Console) -> std::io::Result<Self> {
        stream.set_write_timeout(Some(WRITE_LIMIT))?;
        let ready = Arc::new(Shared::default());
        let processes = Processes::default();
        locked(&processes).insert(0, ready.clone());
        let (from, known, last_words) = (stream.try_clone()?, processes.clone(), console.clone());
        thread::Builder::new().name("lab-reader".into()).spawn(move || sort(from, &known, &last_words))?;
        Ok(Self { stream: Mutex::new(stream), processes, ready, next: AtomicU32::new(1), console })
    }

    /// Wakes the agent's machine again and again, for as long as there is a channel. An emulated machine has been seen
    /// halted for minutes, its timers due, until something else interrupted it: QEMU lost the timer's interrupt.
    pub(crate) fn keep_awake(self: &Arc<Self>) -> std::io::Result<()> {
        let channel = Arc::downgrade(self);
        let beat = move || {
            loop {
                thread::sleep(BEAT);
                let Some(channel) = channel.upgrade() else { return };
                if channel.send(wire::WAKE, 0, &[]).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("lab-beat".into()).spawn(beat).map(drop)
    }

    /// Waits until the agent says that it is there; false when time is up or the stream broke.
    pub(crate) fn ready(&self, limit: Duration) -> bool {
        matches!(self.ready.wait(limit, |s| s.end.clone()), Some(End::Status(_)))
    }

    pub(crate) fn open(&self, request: &[u8]) -> std::io::Result<(u32, Arc<Shared>)> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(Shared::default());
        locked(&self.processes).insert(id, shared.clone());
        self.send(wire::SPAWN, id, request).inspect_err(|_| self.forget(id))?;
        Ok((id, shared))
    }

    pub(crate) fn forget(&self, id: u32) {
        locked(&self.processes).remove(&id);
    }

    pub(crate) fn send(&self, kind: u8, id: u32, body: &[u8]) -> std::io::Result<()> {
        wire::write_frame(&mut *locked(&self.stream), kind, id, body)
    }

    /// Ends the stream: the agent takes it as the order to kill everything and leave.
    pub(crate) fn close(&self) {
        let mut stream = locked(&self.stream);
        drop(stream.flush());
        drop(stream.shutdown(std::net::Shutdown::Both));
    }
}

/// Runs until the stream breaks; then every process is lost.
fn sort(mut from: UnixStream, processes: &Processes, console: &Console) {
    while let Ok(frame) = wire::read_frame(&mut from) {
        let Some(shared) = locked(processes).get(&frame.id).cloned() else { continue };
        shared.change(|state| match frame.kind {
            wire::STDOUT => state.out.extend_from_slice(&frame.body),
            wire::STDERR => state.err.extend_from_slice(&frame.body),
            wire::READY => state.end = Some(End::Status(Status::Exited(0))),
            wire::EXITED => state.end = Some(End::Status(Status::Exited(wire::number(&frame.body)))),
            wire::SIGNALED => state.end = Some(End::Status(Status::Signaled(wire::number(&frame.body)))),
            wire::FAILED => state.end = Some(End::Failed(String::from_utf8_lossy(&frame.body).into())),
            _ => {}
        });
    }
    console.wait_for_end(LAST_WORDS);
    for shared in locked(processes).values() {
        shared.change(|state| state.end = state.end.take().or(Some(End::Lost)));
    }
}
