//! The exit statuses of the command, in one table.

use std::process::ExitCode;

/// How a run of the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The guest switched itself off, or the verb did what it was asked.
    Done,
    /// The machine could not be started, or the host failed under it.
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
    /// Ended by this signal.
    Signal(u8),
}

/// Signal statuses start here, as in shells.
const SIGNAL_BASE: u8 = 128;

impl Status {
    /// One of each, in the order of their numbers; the signal's number stands for any.
    pub const ALL: [Status; 8] = [
        Status::Done,
        Status::Failed,
        Status::Usage,
        Status::Rebooted,
        Status::Panicked,
        Status::Crashed,
        Status::Quit,
        Status::Signal(0),
    ];

    /// The number that the shell sees.
    pub fn code(self) -> u8 {
        match self {
            Status::Done => 0,
            Status::Failed => 1,
            Status::Usage => 2,
            Status::Rebooted => 3,
            Status::Panicked => 4,
            Status::Crashed => 5,
            Status::Quit => 6,
            Status::Signal(number) => SIGNAL_BASE.saturating_add(number),
        }
    }

    /// What it means, for the README and the manual.
    pub fn meaning(self) -> &'static str {
        match self {
            Status::Done => "the guest powered off (for a verb: done, nothing wrong)",
            Status::Failed => "the machine could not be started, or the host failed",
            Status::Usage => "the command line or the machine's file is wrong",
            Status::Rebooted => "the guest rebooted, with `--on-reboot exit`",
            Status::Panicked => "the guest's kernel panicked",
            Status::Crashed => "the guest crashed: a triple fault, or KVM cannot go on",
            Status::Quit => "quit from the console's menu (Ctrl-] `q`), or by `minivmm kill`",
            Status::Signal(_) => "ended by signal n",
        }
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
            Status::Signal(_) => "signal n",
        }
    }
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        status.code().into()
    }
}

/// The table as two lines for `--help`.
pub fn summary() -> String {
    let [first, second] = [&Status::ALL[..3], &Status::ALL[3..]].map(|part| {
        part.iter().map(|s| format!("{} {}", s.number(), s.word())).collect::<Vec<_>>().join(", ")
    });
    format!("Exit status: {first},\n             {second}")
}

/// The table in Markdown, as the README has it.
pub fn markdown() -> String {
    let rows = Status::ALL.map(|s| format!("| {} | {} |\n", s.number(), s.meaning()));
    format!("| status | meaning |\n|---|---|\n{}", rows.concat())
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
        assert!(markdown().contains("| 4 | the guest's kernel panicked |"));
        assert!(markdown().contains("| 128+n |"));
    }
}
