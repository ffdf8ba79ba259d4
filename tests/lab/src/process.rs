//! One command in the lab: what to run, and the handle on it while it runs.

use crate::channel::{Channel, End, Shared, Status};
use crate::error::{Tail, seconds};
use crate::host::say;
use crate::{LabError, wire};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A command to run in the lab. It runs in the directory that holds the lab's files.
#[derive(Debug, Clone)]
pub struct Cmd {
    argv: Vec<String>,
    pub(crate) tty: bool,
    pub(crate) stdin: Vec<u8>,
    pub(crate) limit: Duration,
}

impl Cmd {
    /// A program, found in PATH or by its path (`./minivmm` is the lab's file `minivmm`).
    pub fn new(program: impl Into<String>) -> Self {
        Self { argv: vec![program.into()], tty: false, stdin: Vec::new(), limit: Duration::from_secs(60) }
    }

    /// A line for the shell.
    pub fn sh(line: impl Into<String>) -> Self {
        Self::new("sh").arg("-c").arg(line)
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.argv.push(arg.into());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(args.into_iter().map(Into::into));
        self
    }

    /// Gives it a terminal of its own: standard output and error are then one.
    #[must_use]
    pub fn tty(mut self) -> Self {
        self.tty = true;
        self
    }

    /// What `exec` writes to its standard input; nothing unless said.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// How long `exec` waits; a minute unless said.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub(crate) fn request(&self) -> Vec<u8> {
        let mut request = vec![u8::from(self.tty)];
        for arg in &self.argv {
            request.extend_from_slice(arg.as_bytes());
            request.push(0);
        }
        request
    }

    pub(crate) fn line(&self) -> String {
        self.argv.join(" ")
    }
}

/// What a command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output, or all that went to its terminal.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub status: Status,
}

impl Output {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn err_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// New output of a process, for whoever passes it on.
#[derive(Debug, Default)]
pub struct News {
    /// New bytes of standard output.
    pub stdout: Vec<u8>,
    /// New bytes of standard error.
    pub stderr: Vec<u8>,
    /// Set when it has ended and all its output has been given.
    pub ended: bool,
}

/// A command that runs in the lab. Dropping it kills it, with its process group.
#[derive(Debug)]
pub struct Process {
    channel: Arc<Channel>,
    shared: Arc<Shared>,
    id: u32,
    line: String,
    seen: usize,
    passed: (usize, usize),
}

impl Process {
    pub(crate) fn start(channel: &Arc<Channel>, cmd: &Cmd) -> Result<Self, LabError> {
        let started = channel.open(&cmd.request());
        let (id, shared) =
            started.map_err(LabError::io(format!("cannot start `{}` in the lab", cmd.line())))?;
        Ok(Self { channel: channel.clone(), shared, id, line: cmd.line(), seen: 0, passed: (0, 0) })
    }

    /// Sends bytes to its standard input or terminal.
    pub fn send(&self, bytes: impl AsRef<[u8]>) -> Result<(), LabError> {
        self.input().send(bytes)
    }

    /// Ends its standard input. On a terminal send the byte 4 (Ctrl-D) instead.
    pub fn close_stdin(&self) -> Result<(), LabError> {
        self.input().close()
    }

    /// Its standard input alone, for another thread.
    #[must_use]
    pub fn input(&self) -> Input {
        Input { channel: self.channel.clone(), id: self.id, line: self.line.clone() }
    }

    /// Sends it a signal, such as 15 (SIGTERM).
    pub fn signal(&self, signal: i32) -> Result<(), LabError> {
        let what = format!("cannot signal `{}` in the lab", self.line);
        self.channel.send(wire::SIGNAL, self.id, &signal.to_le_bytes()).map_err(LabError::io(what))
    }

    /// Waits for a text in standard output (or on the terminal) after the last one that was expected. Gives what
    /// stood between the two, and the text.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String, LabError> {
        self.expect_any(&[text], limit).map(|(_, before)| before)
    }

    /// Waits for whichever of these texts comes first; gives its index as well.
    pub fn expect_any(&mut self, texts: &[&str], limit: Duration) -> Result<(usize, String), LabError> {
        let from = self.seen;
        let _timed = Timed::new(|| format!("{texts:?} of `{}`", self.line));
        let found = self.shared.wait(limit, |state| {
            let new = state.out.get(from..).unwrap_or_default();
            let hits = texts
                .iter()
                .enumerate()
                .filter_map(|(i, t)| find(new, t.as_bytes()).map(|at| (at, i, t.len())));
            match hits.min() {
                Some((at, i, len)) => Some(Some((i, new.get(..at + len).unwrap_or_default().to_vec()))),
                None => state.end.is_some().then_some(None),
            }
        });
        match found {
            Some(Some((index, bytes))) => {
                self.seen += bytes.len();
                Ok((index, String::from_utf8_lossy(&bytes).into_owned()))
            }
            Some(None) => Err(self.error(format!("it ended ({}) before it wrote {texts:?}", self.how()))),
            None => Err(self.error(format!("it did not write {texts:?} within {}", seconds(limit)))),
        }
    }

    /// Waits for its end and gives all that it wrote.
    pub fn wait(&mut self, limit: Duration) -> Result<Output, LabError> {
        let _timed = Timed::new(|| format!("the end of `{}`", self.line));
        match self.shared.wait(limit, |s| s.end.clone()) {
            Some(End::Status(status)) => {
                let state = self.shared.state();
                Ok(Output { stdout: state.out.clone(), stderr: state.err.clone(), status })
            }
            Some(End::Failed(why)) => Err(self.error(format!("it could not be started: {why}"))),
            Some(End::Lost) => Err(self.error("the lab's machine went away".into())),
            None => Err(self.error(format!("it did not end within {}", seconds(limit)))),
        }
    }

    /// All that it wrote to standard output so far.
    #[must_use]
    pub fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.shared.state().out).into_owned()
    }

    /// What it wrote since the last call; waits for something to come, up to the limit.
    pub fn news(&mut self, limit: Duration) -> News {
        let (out, err) = self.passed;
        let news = self.shared.wait(limit, |state| {
            let new = |all: &[u8], from| all.get(from..).unwrap_or_default().to_vec();
            let news = News {
                stdout: new(&state.out, out),
                stderr: new(&state.err, err),
                ended: state.end.is_some(),
            };
            (news.ended || !news.stdout.is_empty() || !news.stderr.is_empty()).then_some(news)
        });
        let news = news.unwrap_or_default();
        self.passed = (out + news.stdout.len(), err + news.stderr.len());
        news
    }

    fn how(&self) -> String {
        match &self.shared.state().end {
            Some(End::Status(Status::Exited(code))) => format!("with status {code}"),
            Some(End::Status(Status::Signaled(signal))) => format!("by signal {signal}"),
            Some(End::Failed(why)) => format!("it could not be started: {why}"),
            Some(End::Lost) | None => "with the lab's machine".into(),
        }
    }

    fn error(&self, reason: String) -> LabError {
        let state = self.shared.state();
        let mut output = state.out.clone();
        output.extend_from_slice(&state.err);
        let console = self.channel.console.tail();
        LabError::Process { reason, command: self.line.clone(), output: Tail::of(&output), console }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.shared.state().end.is_none() {
            drop(self.channel.send(wire::KILL, self.id, &[]));
        }
        self.channel.forget(self.id);
    }
}

/// The standard input of a process.
#[derive(Debug)]
pub struct Input {
    channel: Arc<Channel>,
    id: u32,
    line: String,
}

impl Input {
    /// Sends bytes; a process that does not read keeps nobody waiting.
    pub fn send(&self, bytes: impl AsRef<[u8]>) -> Result<(), LabError> {
        let what = format!("cannot write to `{}` in the lab", self.line);
        let mut pieces = bytes.as_ref().chunks(wire::BODY_MAX);
        pieces.try_for_each(|b| self.channel.send(wire::STDIN, self.id, b)).map_err(LabError::io(what))
    }

    /// The end of the input.
    pub fn close(&self) -> Result<(), LabError> {
        let what = format!("cannot close the input of `{}` in the lab", self.line);
        self.channel.send(wire::STDIN_END, self.id, &[]).map_err(LabError::io(what))
    }
}

/// Says what was waited for and for how long, where `MINIVMM_LAB_TIMES=1` asks for that: where a test's time goes.
struct Timed(Option<(Instant, String)>);

impl Timed {
    fn new(what: impl FnOnce() -> String) -> Self {
        Self(std::env::var_os("MINIVMM_LAB_TIMES").map(|_| (Instant::now(), what())))
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        if let Some((begin, what)) = &self.0 {
            let what: String =
                what.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(160).collect();
            say(&format!("{:6.1} s for {what}", begin.elapsed().as_secs_f64()));
        }
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len().max(1)).position(|w| w == part)
}
