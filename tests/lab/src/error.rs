//! What can go wrong in the lab, said so that a person can mend it.

use std::{fmt, io, path::Path, time::Duration};

/// Why the lab could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A program or package that the lab is made of is not there.
    #[error("the lab needs {what}, which is not there; this mends it: {mend}")]
    Missing {
        /// What is missing.
        what: String,
        /// The command that brings it.
        mend: String,
    },
    /// A file or a process of the host could not be used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with its path.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A command of the host failed.
    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// A file is not what it should be.
    #[error("{path} cannot be used: {reason}")]
    Format {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The machine of the lab did not come up, or went away.
    #[error("{reason}; the end of the lab's console:\n{console}")]
    Machine {
        /// What happened.
        reason: String,
        /// The console's tail.
        console: Tail,
    },
    /// A command in the lab did not do what was expected of it in time.
    #[error(
        "{reason}; the end of what `{command}` wrote:\n{output}\n(the end of the lab's console:\n{console})"
    )]
    Process {
        /// What happened.
        reason: String,
        /// The command.
        command: String,
        /// The tail of its output.
        output: Tail,
        /// The console's tail.
        console: Tail,
    },
}

impl LabError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn path(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::io(format!("cannot {what} {}", path.display()))
    }

    pub(crate) fn format(path: &Path, reason: impl Into<String>) -> Self {
        Self::Format { path: path.display().to_string(), reason: reason.into() }
    }
}

/// The last lines of a text, each indented by a bar; from the last kernel panic on where there was one, as a trace can have
/// more lines, and what it was about stands above it.
#[derive(Clone, Default)]
pub struct Tail(String);

impl Tail {
    const LINES: usize = 40;

    pub(crate) fn of(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let lines: Vec<&str> = text.lines().collect();
        let panic = lines.iter().rposition(|line| line.contains("Kernel panic")).unwrap_or(lines.len());
        let last = lines.get(panic.min(lines.len().saturating_sub(Self::LINES))..).unwrap_or_default();
        Self(last.iter().map(|l| format!("  | {}\n", l.trim_end().escape_debug())).collect())
    }
}

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "  | (nothing)\n" } else { &self.0 })
    }
}

/// `unwrap` on a failed lab should print the sentences, not one escaped line.
impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{self}")
    }
}

/// Seconds as a person says them.
pub(crate) fn seconds(limit: Duration) -> String {
    format!("{:.1} s", limit.as_secs_f32())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_is_the_last_lines_and_all_of_a_panic() {
        let frames = "frame\n".repeat(2 * Tail::LINES);
        let (plain, panic) =
            (Tail::of(frames.as_bytes()), Tail::of(format!("a\nKernel panic - b\n{frames}").as_bytes()));
        assert_eq!(plain.0.lines().count(), Tail::LINES);
        assert!(panic.0.starts_with("  | Kernel panic - b\n"), "{panic}");
        assert_eq!(panic.0.lines().count(), 2 * Tail::LINES + 1);
    }
}
