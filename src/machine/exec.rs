//! Commands in clones of a template: [`Template::exec`].

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::commands::{self, InitLines, Missed, Said, Task, is_variable};
use super::template::Template;
use super::{Exit, StartError};

/// A command for [`Template::exec`].
///
/// ```
/// # use minivmm::GuestCommand;
/// let command = GuestCommand::new(["sh", "-c", "read -r line; echo \"$GREETING, $line\""])
///     .env("GREETING", "hello")
///     .input("world\n");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestCommand {
    words: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    input: Option<Vec<u8>>,
    most_output: usize,
}

/// What a command of [`Template::exec`] has left.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CommandOutput {
    /// Its exit status: 127 if there is no such command, 128+n if signal n ended it.
    pub status: u8,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

/// Why a command has not run to its end. Its machine is gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// The template is of a guest that runs, and takes no command.
    #[error(
        "the guest of this template takes no commands; make one with `Template::boot`, or from what `minivmm run --warm` has saved"
    )]
    TakesNone,
    /// There is no command.
    #[error("the command has no words; its first one is the program")]
    Empty,
    /// A zero is the end of a word.
    #[error("{0:?} has a zero byte in it, which no word and no variable can have")]
    Zero(OsString),
    /// The guest's shell does not take it.
    #[error("{0:?} is no name of a variable: those have A-Z a-z 0-9 _ and begin with no digit")]
    Name(OsString),
    /// The machine could not be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The machine ended before its command.
    #[error("the machine ended before its command: {0}")]
    Ended(Arc<Exit>),
    /// The limit was over.
    #[error("the command had not ended after {0:?}")]
    TimedOut(Duration),
    /// The command says more than is kept.
    #[error("the command's output is longer than {0} bytes; `GuestCommand::most_output` sets the limit")]
    TooMuchOutput(usize),
    /// The host has no random bytes.
    #[error("the host gave no random bytes: {0}")]
    Random(io::Error),
}

impl GuestCommand {
    /// The program, which is searched in the guest's PATH, and its arguments.
    pub fn new(words: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        let words = words.into_iter().map(Into::into).collect();
        GuestCommand { words, environment: Vec::new(), input: None, most_output: 16 << 20 }
    }

    /// With a variable of its environment, which has PATH and HOME otherwise.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// With these bytes on its standard input, and then its end. Without them its standard input is /dev/null.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Some(bytes.into());
        self
    }

    /// Keeps so many bytes of standard output, and as many of standard error; a command that says more is ended by
    /// [`ExecError::TooMuchOutput`]. 16 MiB if this is not called.
    #[must_use]
    pub fn most_output(self, bytes: usize) -> Self {
        GuestCommand { most_output: bytes, ..self }
    }

    fn check(&self) -> Result<(), ExecError> {
        if self.words.is_empty() {
            return Err(ExecError::Empty);
        }
        let all = self.words.iter().chain(self.environment.iter().flat_map(|(name, value)| [name, value]));
        if let Some(word) = all.into_iter().find(|word| word.as_bytes().contains(&0)) {
            return Err(ExecError::Zero(word.clone()));
        }
        match self.environment.iter().find(|(name, _)| !is_variable(name)) {
            Some((name, _)) => Err(ExecError::Name(name.clone())),
            None => Ok(()),
        }
    }
}

/// One of the command's streams, with the token behind its last byte.
#[derive(Debug)]
struct Collected {
    bytes: Vec<u8>,
    token: Vec<u8>,
    most: usize,
}

impl Collected {
    /// Whether there is room for more.
    fn fits(&self) -> bool {
        self.bytes.len() <= self.most.saturating_add(self.token.len())
    }

    fn push(&mut self, bytes: &[u8]) {
        // What no longer fits is the end of it.
        if self.fits() {
            self.bytes.extend(bytes);
        }
    }

    fn is_complete(&self) -> bool {
        self.bytes.ends_with(&self.token)
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.truncate(self.bytes.len() - self.token.len().min(self.bytes.len()));
        self.bytes
    }
}

impl Template {
    /// Runs a command in a clone of its own, which is gone when this returns: nothing that the command does is seen by another one. Waits
    /// for the command until `limit`. Many threads can do this with one template, each with as many clones as it likes.
    ///
    /// The template is of a guest that waits for a command: [`Template::boot`] makes one, and [`Template::from_saved`] takes what
    /// `minivmm run --warm` has saved. Before the command begins, the clone's random pool gets bytes of the host's, and its clock is the
    /// host's. What else clones of a template share, and what they must not share, is said at [`Template`].
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use minivmm::{GuestCommand, SavedMachine, Template};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let template = Template::from_saved(SavedMachine::open("warm/python")?)?;
    /// let command = GuestCommand::new(["sh", "-c", "sha256sum | cut -c 1-8"]).input("a request");
    /// let output = template.exec(&command, Duration::from_secs(10))?;
    /// println!("status {}: {}", output.status, String::from_utf8_lossy(&output.stdout));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`ExecError`]. An exit status other than 0 is none.
    pub fn exec(&self, command: &GuestCommand, limit: Duration) -> Result<CommandOutput, ExecError> {
        if !self.takes_commands() {
            return Err(ExecError::TakesNone);
        }
        command.check()?;
        let GuestCommand { words, environment, input, most_output } = command;
        let token = commands::token().map_err(ExecError::Random)?;
        let (ports, collect) = (self.command_ports(), || Collected {
            bytes: Vec::new(),
            token: token.clone().into_bytes(),
            most: *most_output,
        });
        let task = Task {
            words,
            environment,
            directory: None,
            terminal: None,
            input: input.is_some(),
            token: &token,
        };
        ports.give(&task.line().map_err(ExecError::Random)?);
        let machine = self.spawn_on(Some(&ports), |builder| builder)?;
        let (mut lines, mut status) = (InitLines::default(), None);
        let (mut out, mut err) = (collect(), collect());
        let mut rest = input.as_deref().unwrap_or_default();
        let done = commands::wait_for(&machine, limit, |waker| {
            while !rest.is_empty() {
                match ports.input.poll_push(waker, rest) {
                    Poll::Ready(Ok(count)) => rest = rest.get(count..).unwrap_or_default(),
                    Poll::Ready(Err(_)) => rest = &[],
                    Poll::Pending => break,
                }
            }
            if rest.is_empty() {
                ports.input.close();
            }
            for (stream, queue) in [&mut out, &mut err].into_iter().zip(&ports.output) {
                commands::drain(queue, waker, |bytes| stream.push(bytes));
            }
            commands::drain(&ports.run, waker, |bytes| {
                lines.push(bytes, |said| match said {
                    Said::Exited(with) => status = status.or(Some(with)),
                    Said::Ready | Said::Up | Said::NoDirectory | Said::Init(_) | Said::Packed(_) => {}
                });
            });
            match status {
                _ if !out.fits() || !err.fits() => Some(None),
                Some(status) if out.is_complete() && err.is_complete() => Some(Some(status)),
                _ => None,
            }
        });
        // At once: nothing of it is waited for.
        machine.kill();
        match done {
            Ok(Some(status)) => Ok(CommandOutput { status, stdout: out.finish(), stderr: err.finish() }),
            Ok(None) => Err(ExecError::TooMuchOutput(*most_output)),
            Err(Missed::Ended(exit)) => Err(ExecError::Ended(exit)),
            Err(Missed::TimedOut) => Err(ExecError::TimedOut(limit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[test]
    fn command_that_no_guest_can_take_is_refused() {
        let refused = |command: GuestCommand| command.check().unwrap_err().to_string();
        assert!(refused(GuestCommand::new([""; 0])).contains("no words"));
        assert!(refused(GuestCommand::new(["a\0b"])).contains("a zero byte"));
        for name in ["", "1A", "A-B", "A=B", "A;reboot"] {
            assert!(refused(GuestCommand::new(["env"]).env(name, "x")).contains("is no name"), "{name}");
        }
        let bytes = OsString::from_vec(vec![0xff, b'\n']);
        assert!(GuestCommand::new([bytes.clone()]).env("_A1", bytes).check().is_ok());
    }

    #[test]
    fn stream_is_complete_behind_its_token_and_keeps_no_more_than_it_shall() {
        let mut stream = Collected { bytes: Vec::new(), token: b"token".to_vec(), most: 6 };
        stream.push(b"output");
        assert!(!stream.is_complete() && stream.fits());
        stream.push(b"token");
        assert!(stream.is_complete() && stream.fits());
        stream.push(b"!");
        assert!(!stream.is_complete() && !stream.fits());
        stream.push(&[0; 1 << 20]);
        assert_eq!(stream.bytes.len(), 12);
        let stream = Collected { bytes: b"outputtoken".to_vec(), token: b"token".to_vec(), most: 6 };
        assert_eq!(stream.finish(), b"output");
    }
}
