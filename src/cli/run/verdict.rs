//! The result of a run: in words, and as an exit status.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use diskimage::shell_word;

use super::session::Run;
use crate::cli::exit::Status;
use crate::cli::report;
use crate::machine::Exit;
use crate::shown::path as shown;

/// Why a run has ended.
#[derive(Debug)]
pub(super) enum RunEnd {
    /// The command has exited, and all its output is written.
    Done(u8),
    /// The machine has ended.
    MachineEnded,
    /// The guest does not have the directory for the command.
    NoDirectory,
    /// The files of the command are not here, for this reason.
    NoFiles(String),
    /// The host could not write the output.
    OutputFailed,
    /// The host could not read the input.
    InputFailed(io::Error),
    /// The machine did not come up.
    BootTimeout,
    /// `--timeout`.
    Timeout,
    /// A signal.
    Signal(libc::c_int),
    /// Ctrl-] `q`.
    Quit,
}

impl RunEnd {
    /// Whether the guest's console may explain it.
    pub(super) fn is_caused_by_guest(&self) -> bool {
        !matches!(
            self,
            RunEnd::Signal(_)
                | RunEnd::Quit
                | RunEnd::OutputFailed
                | RunEnd::InputFailed(_)
                | RunEnd::NoDirectory
                | RunEnd::NoFiles(_)
        )
    }
}

/// The status of a shell whose command is not there.
const NOT_FOUND: Status = Status::Command(127);

/// What may be meant by a command that is not there: an image, which podman has in this place.
pub(super) fn advice(status: Status, command: &[OsString]) -> Option<String> {
    let (first, rest) = command.split_first().filter(|_| status == NOT_FOUND)?;
    let first = Some(Path::new(first)).filter(|first| first.is_dir())?;
    let rest = rest.first().map_or_else(|| "COMMAND".to_owned(), |word| shell_word(Path::new(word)));
    let (name, word) = (shown(first), shell_word(first));
    Some(format!("`{name}` is a directory here: for its files write `--root {word} -- {rest}`"))
}

/// The message for output that could not be written.
pub(super) fn output_error(index: usize, error: &io::Error) -> String {
    let stream = if index == 0 { "standard output" } else { "standard error" };
    format!("the command's {stream} could not be written, so the run was ended: {error}")
}

impl Run<'_> {
    /// The message, if any, and the exit status. Without an `exit` the machine is still there.
    pub(super) fn verdict(&self, end: &RunEnd, exit: Option<&Exit>) -> (Option<String>, Status) {
        match end {
            RunEnd::Done(_) | RunEnd::MachineEnded | RunEnd::OutputFailed if self.output_error.is_some() => {
                (self.output_error.clone(), Status::RunFailed)
            }
            RunEnd::Done(status) => (None, Status::Command(*status)),
            RunEnd::MachineEnded | RunEnd::OutputFailed => match self.done() {
                Some(status) => (None, Status::Command(status)),
                None => self.machine_ended(exit),
            },
            RunEnd::InputFailed(error) => {
                let text =
                    format!("standard input could not be read to its end, so the run was ended: {error}");
                (Some(text), Status::RunFailed)
            }
            RunEnd::NoFiles(text) => (Some(text.clone()), Status::RunFailed),
            RunEnd::NoDirectory => {
                let folder = self.args.workdir.as_deref().unwrap_or(Path::new("/"));
                // A path may contain any byte, also control sequences for a terminal.
                let folder = shown(folder);
                (Some(format!("the guest has no directory {folder} (--workdir)")), Status::RunFailed)
            }
            RunEnd::BootTimeout => {
                let limit = self.args.boot_limit().as_secs();
                let text = format!("the machine did not come up within {limit} s (--boot-timeout)");
                (Some(text), Status::RunNeverUp)
            }
            RunEnd::Timeout => {
                let limit = self.args.limit().unwrap_or_default().as_secs();
                let what = match (self.up, self.ended) {
                    (false, _) => "the machine was not up",
                    (true, None) => "the command had not ended",
                    (true, Some(_)) if self.has_all_output() => "the files for --out had not come",
                    (true, Some(_)) => "the command's output had not been read",
                };
                (Some(format!("{what} after {limit} s (--timeout)")), Status::RunTimedOut)
            }
            RunEnd::Signal(number) => {
                let status = Status::Signal(u8::try_from(*number).unwrap_or(0));
                (Some(format!("ended by signal {number}")), status)
            }
            // As SIGTERM ends it.
            RunEnd::Quit => (Some("ended with Ctrl-] q".to_owned()), Status::Signal(15)),
        }
    }

    fn machine_ended(&self, exit: Option<&Exit>) -> (Option<String>, Status) {
        let before = if self.up { "before its command had ended" } else { "before it was up" };
        let status = if self.up { Status::RunGuestEnded } else { Status::RunNeverUp };
        let (what, status) = match exit {
            Some(Exit::Panicked) => ("the guest's kernel panicked".to_owned(), Status::RunPanicked),
            Some(Exit::GaveUp(why)) => (why.to_string(), Status::RunPanicked),
            Some(Exit::PoweredOff) => (format!("the guest switched itself off {before}"), status),
            Some(Exit::Rebooted) => (format!("the guest rebooted {before}"), status),
            Some(Exit::Crashed(crash)) => (format!("the guest crashed {before}: {crash}"), status),
            Some(Exit::Failed(error)) => (report::chain(error), Status::RunFailed),
            // Every other killer has set a reason before.
            Some(Exit::Killed | Exit::Saved | Exit::Migrated) | None => {
                (format!("the machine was killed, with `minivmm kill` or `stop`, {before}"), status)
            }
        };
        (Some(what), status)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use clap::Parser;

    use super::super::args::RunArgs;
    use super::super::ports::RunEvent;
    use super::*;
    use crate::machine::commands::{CommandPorts, MorePorts};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    #[test]
    fn command_is_done_when_its_status_and_both_ends_of_its_output_are_there() {
        let args = Line::parse_from(["run", "true"]).args;
        let mut run =
            Run::new(&args, CommandPorts::with(MorePorts::default()), mpsc::channel().0, String::new());
        for said in [
            RunEvent::Up,
            RunEvent::StreamComplete(0, true),
            RunEvent::CommandExited(3),
            RunEvent::StreamComplete(0, false),
            RunEvent::StreamComplete(1, true),
        ] {
            let told = format!("{said:?}");
            assert!(run.handle(said).unwrap().is_none(), "{told}");
        }
        // A second status is ignored.
        assert!(run.handle(RunEvent::CommandExited(4)).unwrap().is_none());
        assert!(matches!(run.handle(RunEvent::StreamComplete(0, true)).unwrap(), Some(RunEnd::Done(3))));
        assert_eq!(run.verdict(&RunEnd::MachineEnded, Some(&Exit::PoweredOff)).1, Status::Command(3));
        run.ended = None;
        assert_eq!(run.verdict(&RunEnd::MachineEnded, Some(&Exit::PoweredOff)).1, Status::RunGuestEnded);
        assert_eq!(run.verdict(&RunEnd::MachineEnded, Some(&Exit::Panicked)).1, Status::RunPanicked);
        run.up = false;
        assert_eq!(run.verdict(&RunEnd::MachineEnded, Some(&Exit::Rebooted)).1, Status::RunNeverUp);
    }

    #[test]
    fn end_is_said_in_the_words_of_who_asked_for_it() {
        let args = Line::parse_from(["run", "true"]).args;
        let mut run =
            Run::new(&args, CommandPorts::with(MorePorts::default()), mpsc::channel().0, String::new());
        let end = run.handle(RunEvent::Quit).unwrap().unwrap();
        assert!(!end.is_caused_by_guest());
        assert_eq!(run.verdict(&end, None), (Some("ended with Ctrl-] q".into()), Status::Signal(15)));
        run.up = true;
        let (text, status) = run.verdict(&RunEnd::MachineEnded, Some(&Exit::Killed));
        let said = "the machine was killed, with `minivmm kill` or `stop`, before its command had ended";
        assert_eq!((text.as_deref(), status), (Some(said), Status::RunGuestEnded));
    }

    #[test]
    fn image_in_the_place_of_the_command_is_told_where_it_belongs() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().to_str().unwrap();
        for (line, status, advised) in [
            (&[image, "ls", "-l"][..], 127, Some("ls`")),
            (&[image], 127, Some("COMMAND`")),
            (&[image, "ls"], 1, None),
            (&["none", "ls"], 127, None),
        ] {
            let command: Vec<_> = line.iter().map(OsString::from).collect();
            let wanted = advised.map(|rest| {
                format!("`{image}` is a directory here: for its files write `--root {image} -- {rest}")
            });
            assert_eq!(advice(Status::Command(status), &command), wanted, "{line:?}");
        }
    }

    #[test]
    fn output_that_the_host_does_not_take_is_a_failure_whatever_the_command_ended_with() {
        let args = Line::parse_from(["run", "true"]).args;
        let mut run =
            Run::new(&args, CommandPorts::with(MorePorts::default()), mpsc::channel().0, String::new());
        for said in [RunEvent::Up, RunEvent::CommandExited(0), RunEvent::StreamComplete(1, true)] {
            assert!(run.handle(said).unwrap().is_none());
        }
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        assert!(matches!(run.handle(RunEvent::OutputFailed(0, full())).unwrap(), Some(RunEnd::OutputFailed)));
        // Also if it is reported last.
        run.handle(RunEvent::StreamComplete(0, true)).unwrap();
        for end in [RunEnd::OutputFailed, RunEnd::MachineEnded, RunEnd::Done(0)] {
            let (text, status) = run.verdict(&end, Some(&Exit::Killed));
            assert_eq!((status, status.code()), (Status::RunFailed, 125));
            let text = text.unwrap();
            assert!(text.contains("standard output") && text.contains("No space left"), "{text}");
        }
        // The signal came first.
        assert_eq!(run.verdict(&RunEnd::Signal(2), None).1.code(), 130);
    }
}
