//! Finds the process with a lock on a file. fcntl(2) does not report it for open-file-description locks, as
//! their owner is an open file; /proc does, as far as this user may read it.

use std::fmt;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::host::identity::identity;

/// A process that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskHolder {
    /// Its pid.
    pub pid: u32,
    /// Its name, if readable.
    pub command: Option<String>,
}

impl fmt::Display for DiskHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid;
        match &self.command {
            _ if pid == std::process::id() => write!(f, "this very process (pid {pid}); is it given twice?"),
            Some(command) => write!(f, "{command} (pid {pid})"),
            None => write!(f, "process {pid}"),
        }
    }
}

/// A process that holds a lock on `file`.
pub(crate) fn find(file: &File) -> Option<DiskHolder> {
    let own = file.metadata().ok()?;
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.into_iter().find(|pid| holds(*pid, &own))?;
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    Some(DiskHolder { pid, command: command.map(|command| command.trim_end().to_owned()) })
}

/// Whether `pid` has `file` open and locked.
fn holds(pid: u32, file: &Metadata) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    // Other users' processes are not readable, and processes may end meanwhile.
    let Ok(open) = fs::read_dir(process.join("fd")) else { return false };
    open.flatten().any(|fd| {
        fs::metadata(fd.path()).is_ok_and(|other| is_same(&other, file))
            && fs::read_to_string(process.join("fdinfo").join(fd.file_name()))
                .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
    })
}

/// Whether they are of one file or one block device.
pub(super) fn is_same(one: &Metadata, other: &Metadata) -> bool {
    identity(one) == identity(other) || (one.file_type().is_block_device() && one.rdev() == other.rdev())
}
