//! The exit statuses of the command, in one table.

use std::process::ExitCode;

use log::Level;

use crate::machine::Exit;

/// The result of a run of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The guest powered off, or the verb did its work.
    Done,
    /// The machine could not be started, or the host failed.
    Failed,
    /// The command line or the machine's file is wrong.
    Usage,
    /// The guest rebooted, and `--on-reboot exit` was given.
    Rebooted,
    /// The guest's kernel panicked.
    Panicked,
    /// The guest crashed: a triple fault, or something that KVM cannot carry on from.
    Crashed,
    /// Quit from the console's menu (Ctrl-] `q`), or killed over the control socket.
    Quit,
    /// `minivmm run`: the guest's kernel panicked.
    RunPanicked,
    /// `minivmm run`: the guest ended before its command.
    RunGuestEnded,
    /// `minivmm run`: the machine did not come up.
    RunNeverUp,
    /// `minivmm run`: the time limit.
    RunTimedOut,
    /// `minivmm run`: the command was not run, because the command line, a file or the host is wrong; or the
    /// output could not be written.
    RunFailed,
    /// Ended by this signal.
    Signal(u8),
    /// `minivmm run`: the exit status of its command.
    Command(u8),
}

/// Signal statuses start here, as in shells.
const SIGNAL_BASE: u8 = 128;

impl Status {
    /// The status of a machine that ended by itself; `None` if it was killed, which only the killer can
    /// explain.
    pub(crate) fn of(exit: &Exit) -> Option<Status> {
        Some(match exit {
            Exit::PoweredOff | Exit::Saved | Exit::Migrated => Status::Done,
            Exit::Rebooted => Status::Rebooted,
            Exit::Panicked | Exit::GaveUp(_) => Status::Panicked,
            Exit::Crashed(_) => Status::Crashed,
            Exit::Failed(_) => Status::Failed,
            Exit::Killed => return None,
        })
    }

    /// One of each, in the order of their numbers. `Signal(0)` stands for any signal; a command's own status
    /// is not included.
    pub const ALL: [Status; 13] = [
        Status::Done,
        Status::Failed,
        Status::Usage,
        Status::Rebooted,
        Status::Panicked,
        Status::Crashed,
        Status::Quit,
        Status::RunPanicked,
        Status::RunGuestEnded,
        Status::RunNeverUp,
        Status::RunTimedOut,
        Status::RunFailed,
        Status::Signal(0),
    ];

    /// The number for the shell.
    pub fn code(self) -> u8 {
        match self {
            Status::Done => 0,
            Status::Failed => 1,
            Status::Usage => 2,
            Status::Rebooted => 3,
            Status::Panicked => 4,
            Status::Crashed => 5,
            Status::Quit => 6,
            // Below timeout(1)'s 124, and with 125 as in docker(1): few commands end with these.
            Status::RunPanicked => 121,
            Status::RunGuestEnded => 122,
            Status::RunNeverUp => 123,
            Status::RunTimedOut => 124,
            Status::RunFailed => 125,
            Status::Command(code) => code,
            Status::Signal(number) => SIGNAL_BASE.saturating_add(number),
        }
    }

    /// The meaning, for the README and the manual.
    pub fn meaning(self) -> &'static str {
        match self {
            Status::Done => {
                "the guest powered off, or the machine was saved (for a verb: done, nothing wrong)"
            }
            Status::Failed => {
                "the machine could not be started, the host failed, or it did not take the output (for a verb: not done)"
            }
            Status::Usage => "the command line or the machine's file is wrong",
            Status::Rebooted => "the guest rebooted, with `--on-reboot exit`",
            Status::Panicked => {
                "the guest's kernel panicked, or it never came up: no root file system, boot after boot"
            }
            Status::Crashed => "the guest crashed: a triple fault, or KVM cannot go on",
            Status::Quit => "quit from the console's menu (Ctrl-] `q`), or by `minivmm kill`",
            Status::RunPanicked => "`run`: the guest's kernel panicked",
            Status::RunGuestEnded => {
                "`run`: the guest switched itself off, rebooted, crashed or was killed before its command had ended"
            }
            Status::RunNeverUp => "`run`: the machine did not come up",
            Status::RunTimedOut => "`run`: the time of `--timeout` was over",
            Status::RunFailed => {
                "`run`: nothing was run: the command line, a file or the host is wrong; or the output could not be written, or the input not be read"
            }
            Status::Signal(_) => "ended by signal n",
            Status::Command(_) => "`run`: its command ended with it",
        }
    }

    /// The log level of a machine's end with this status; `None` if it is not printed.
    pub(super) fn level(self) -> Option<Level> {
        match self {
            Status::Done => None,
            // Someone asked for it.
            Status::Rebooted | Status::Quit | Status::Signal(_) => Some(Level::Info),
            _ => Some(Level::Error),
        }
    }

    fn is_of_run(self) -> bool {
        use Status::{Command, RunFailed, RunGuestEnded, RunNeverUp, RunPanicked, RunTimedOut};
        matches!(self, RunPanicked | RunGuestEnded | RunNeverUp | RunTimedOut | RunFailed | Command(_))
    }

    fn number(self) -> String {
        match self {
            Status::Signal(_) => format!("{SIGNAL_BASE}+n"),
            other => other.code().to_string(),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Status::Done => "guest powered off",
            Status::Failed => "not started, or host failed",
            Status::Usage => "usage",
            Status::Rebooted => "rebooted",
            Status::Panicked => "panicked",
            Status::Crashed => "crashed",
            Status::Quit => "quit",
            Status::RunPanicked => "panic",
            Status::RunGuestEnded => "ended",
            Status::RunNeverUp => "not up",
            Status::RunTimedOut => "time",
            Status::RunFailed => "error",
            Status::Signal(_) => "signal n",
            Status::Command(_) => "the command's",
        }
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        status.code().into()
    }
}

/// The table for `--help`: the statuses of machines and of verbs other than `run`.
pub fn summary() -> String {
    let machine: Vec<_> = Status::ALL.into_iter().filter(|status| !status.is_of_run()).collect();
    let (first, second) = machine.split_at(3);
    format!("Exit status: {},\n             {}", words(first), words(second))
}

/// The table of `run`.
pub fn run_summary() -> String {
    let run: Vec<_> = Status::ALL.into_iter().filter(|status| status.is_of_run()).collect();
    format!("Exit status: command's; {}", words(&run))
}

fn words(part: &[Status]) -> String {
    part.iter().map(|s| format!("{} {}", s.number(), s.word())).collect::<Vec<_>>().join(", ")
}

/// The table: numbers as text, and their meaning.
pub fn rows() -> impl Iterator<Item = (String, &'static str)> {
    Status::ALL.into_iter().map(|status| (status.number(), status.meaning()))
}

/// The rows of a verb, or of a machine without a verb.
pub fn rows_of(verb: Option<&str>) -> Vec<(String, &'static str)> {
    if let Some(rows) = verb.and_then(super::verbs::exits) {
        return rows.into_iter().map(|(status, meaning)| (status.number(), meaning)).collect();
    }
    let own = |status: &Status| match verb {
        None => !status.is_of_run(),
        Some("run") => status.is_of_run() || matches!(status, Status::Signal(_)),
        // The status of the machine that it waits for.
        Some("wait") => !status.is_of_run(),
        Some(_) => matches!(status, Status::Done | Status::Failed | Status::Usage),
    };
    Status::ALL.into_iter().filter(own).map(|status| (status.number(), status.meaning())).collect()
}

/// The table in Markdown, as in the README.
pub fn markdown() -> String {
    let rows: String = rows().map(|(number, meaning)| format!("| {number} | {meaning} |\n")).collect();
    format!("| status | meaning |\n|---|---|\n{rows}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_all_different_and_ascend() {
        assert!(Status::ALL.windows(2).all(|pair| pair[0].code() < pair[1].code()));
        assert_eq!(Status::Signal(15).code(), 143);
    }

    #[test]
    fn table_has_a_row_for_each_status() {
        assert_eq!(markdown().lines().count(), 2 + Status::ALL.len());
        assert!(markdown().contains("| 4 | the guest's kernel panicked, or it never came up"));
        assert!(markdown().contains("| 128+n |"));
    }
}
