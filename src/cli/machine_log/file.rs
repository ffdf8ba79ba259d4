//! A log file that may be rotated in any way, and shared by machines.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::host::clock::LocalTime;
use crate::host::identity::identity;

/// A file that lines are appended to.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    writer: Mutex<Writer>,
}

/// The open file.
#[derive(Debug)]
struct Writer {
    file: File,
    /// The last line may be incomplete, on a full disk.
    partial_line: bool,
}

impl LogFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(LogFile {
            path: path.into(),
            writer: Mutex::new(Writer { file: open(path)?, partial_line: false }),
        })
    }

    /// Appends a line with its time. Without space the line is lost, and the next one is tried again.
    pub(super) fn write(&self, line: &str) -> io::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // Lines are rare, so the check may cost a stat; no signal is needed after a rotation.
        if !self.is_current(&writer.file)
            && let Ok(new) = open(&self.path)
        {
            writer.file = new;
        }
        // In one write, so that machines may share a file.
        let start = if writer.partial_line { "\n" } else { "" };
        let text = format!("{start}{} {line}\n", LocalTime::now().rfc3339());
        let written = writer.file.write_all(text.as_bytes());
        writer.partial_line = written.is_err();
        written
    }

    fn is_current(&self, file: &File) -> bool {
        match (file.metadata(), fs::metadata(&self.path)) {
            (Ok(ours), Ok(current)) => identity(&ours) == identity(&current),
            _ => false,
        }
    }
}

/// Opens the file in append mode, so that it may be truncated by others. O_NONBLOCK: a FIFO without a reader
/// must not block the machine.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o644).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn log_goes_on_after_both_ways_of_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("log"), folder.path().join("log.1"));
        fs::write(&path, "before\n").unwrap();
        let log = LogFile::open(&path).unwrap();
        log.write("one").unwrap();
        assert!(fs::read_to_string(&path).unwrap().starts_with("before\n20"));
        fs::rename(&path, &old).unwrap();
        log.write("two").unwrap();
        assert_eq!(said(&path), ["two"]);
        fs::copy(&path, &old).unwrap();
        File::options().write(true).truncate(true).open(&path).unwrap();
        log.write("three").unwrap();
        assert_eq!(said(&path), ["three"]);
    }

    #[test]
    fn machines_share_a_log_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::thread::scope(|scope| {
            for number in 0..4 {
                let log = LogFile::open(&path).unwrap();
                scope.spawn(move || {
                    (0..100).for_each(|_| log.write(&number.to_string().repeat(100)).unwrap())
                });
            }
        });
        let said = said(&path);
        assert_eq!(said.len(), 400);
        assert!(
            said.iter().all(|line| line.len() == 100 && line.bytes().all(|byte| byte == line.as_bytes()[0]))
        );
    }
}
