//! The log of a machine besides standard error: the file of `--log`, or the host's log for a machine in the
//! background.

mod file;
mod system;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io, process};

use log::Level;

use self::file::LogFile;
use self::system::SystemLog;
use super::report;
use crate::host::identity::identity;
use crate::shown::path as shown;
use crate::spec::MachineName;

/// The socket of the host's log: journald and every syslog daemon listen there.
const SYSTEM: &str = "/dev/log";

static LOG: OnceLock<MachineLog> = OnceLock::new();

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    /// The file of `--log`.
    #[error("the log {path} cannot be written: {source}; name a file that you may write with `--log`", path = shown(path))]
    File {
        /// The file.
        path: PathBuf,
        /// The host's error.
        source: io::Error,
    },
    /// The host has none.
    #[error(
        "what happens to this machine is logged nowhere, as the host has no {SYSTEM} ({0}); name a file with `--log`"
    )]
    System(io::Error),
}

/// A log that is a file for frames too.
#[derive(Debug, thiserror::Error)]
#[error("the log and the frames of a network interface have the same file {}; give each a file of its own", shown(.0))]
pub(super) struct LogIsCapture(PathBuf);

/// A log with the name of its machine.
#[derive(Debug)]
pub(super) struct MachineLog {
    /// The prefix of each line: the machine.
    machine: String,
    /// A warning that the log cannot be written was printed.
    warned: AtomicBool,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    File(LogFile),
    System(SystemLog),
}

impl MachineLog {
    /// Opens this file, created if needed, or else the host's log.
    pub(super) fn open(path: Option<&Path>, name: Option<&MachineName>) -> Result<Self, LogError> {
        let sink = match path {
            Some(path) => LogFile::open(path)
                .map(Sink::File)
                .map_err(|source| LogError::File { path: path.into(), source }),
            None => SystemLog::open(Path::new(SYSTEM)).map(Sink::System).map_err(LogError::System),
        };
        Ok(MachineLog {
            machine: name.map(|name| format!("{name}: ")).unwrap_or_default(),
            warned: AtomicBool::new(false),
            sink: sink?,
        })
    }

    /// Records all messages from now on, including panics.
    pub(super) fn install(self) {
        if LOG.set(self).is_ok() {
            std::panic::set_hook(Box::new(|panic| {
                report::message_at(Level::Error, &format_args!("minivmm: {panic}\n"));
            }));
        }
    }

    fn record(&self, level: Level, text: &str) {
        for line in text.lines() {
            let line = line.strip_prefix("minivmm: ").unwrap_or(line).trim();
            if line.is_empty() {
                continue;
            }
            // One message is one line, whatever it contains.
            let line = line.replace(char::is_control, " ");
            let line = format!("minivmm[{}]: {}{line}", process::id(), self.machine);
            match &self.sink {
                Sink::File(file) => {
                    if let Err(error) = file.write(&line) {
                        self.warn_once(&error);
                    }
                }
                Sink::System(log) => log.write(level, &line),
            }
        }
    }
}

/// Refuses a log that is one of `captures` too, the files for the machine's frames.
pub(super) fn refuse_captures<'a>(
    log: &Path,
    mut captures: impl Iterator<Item = &'a Path>,
) -> Result<(), LogIsCapture> {
    if captures.any(|other| may_be_same(log, other)) { Err(LogIsCapture(log.into())) } else { Ok(()) }
}

/// Whether both are one file, or will be when they are made.
fn may_be_same(one: &Path, other: &Path) -> bool {
    let place = |path: &Path| {
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        let folder = fs::canonicalize(folder.unwrap_or(Path::new("."))).ok()?;
        Some((folder, path.file_name()?.to_owned()))
    };
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => identity(&one) == identity(&other),
        _ => one == other || place(one).is_some_and(|one| place(other) == Some(one)),
    }
}

impl MachineLog {
    /// Warns once: a log on a full disk stays as it is.
    fn warn_once(&self, error: &io::Error) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            report::stderr_only(&format!(
                "minivmm: warning: the file of `--log` cannot be written: {error}\n"
            ));
        }
    }
}

/// Records a message, if there is a log.
pub(super) fn record(level: Level, text: &str) {
    if let Some(machine_log) = LOG.get() {
        machine_log.record(level, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_log_say_whose_they_are_and_are_what_was_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let log = MachineLog::open(Some(&path), Some(&"vm0".parse().unwrap())).unwrap();
        log.record(Level::Info, "~> RAM         : 4 MiB\n~> Processors  : 1\n");
        log.record(Level::Info, "\r\nminivmm: quit\u{1b}[2J\tnow\r\n");
        let text = fs::read_to_string(&path).unwrap();
        let said: Vec<_> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        let own = format!("minivmm[{}]: vm0: ", process::id());
        let expected = ["~> RAM         : 4 MiB", "~> Processors  : 1", "quit [2J now"];
        assert_eq!(said, expected.map(|line| own.clone() + line));
    }

    #[test]
    fn a_log_that_cannot_be_written_is_an_error_with_its_path() {
        let error = MachineLog::open(Some(Path::new("/nonexistent/log")), None).unwrap_err().to_string();
        assert!(error.starts_with("the log /nonexistent/log cannot be written: "), "{error}");
    }

    #[test]
    fn a_log_that_is_a_machines_capture_too_is_refused_before_either_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("f"), folder.path().join("link"));
        let refused = |log: &Path, capture: &Path| refuse_captures(log, [capture].into_iter()).is_err();
        assert!(refused(&path, &path) && refused(&folder.path().join("./f"), &path) && !path.exists());
        fs::write(&path, "").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(refused(&link, &path) && !refused(&path, &folder.path().join("g")));
    }
}
