//! Finds the process that has a TAP open, if this process may see it: the driver shows the interface of each
//! of its files in fdinfo.

use std::fs;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

/// A process that has a TAP open.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TapHolder {
    /// Its pid.
    pub pid: u32,
    /// The name of its program.
    pub program: String,
}

/// The first process that has `interface` open in another file than `except`.
pub(super) fn find(proc: &Path, interface: &str, except: Option<&impl AsRawFd>) -> Option<TapHolder> {
    let wanted = format!("iff:\t{interface}");
    let own = except.map(AsRawFd::as_raw_fd);
    fs::read_dir(proc).ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        holds(&entry.path(), &wanted, own.filter(|_| pid == std::process::id())).then(|| TapHolder {
            pid,
            program: fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned(),
        })
    })
}

fn holds(process: &Path, wanted: &str, except: Option<RawFd>) -> bool {
    // Other users' descriptors are not readable; the error message says so.
    let Ok(files) = fs::read_dir(process.join("fd")) else { return false };
    files.flatten().any(|file| {
        let number = file.file_name();
        let own = number.to_str().and_then(|text| text.parse().ok()) == except && except.is_some();
        !own && fs::read_link(file.path()).is_ok_and(|to| to.ends_with("net/tun"))
            && fs::read_to_string(process.join("fdinfo").join(&number))
                .is_ok_and(|info| info.lines().any(|line| line == wanted))
    })
}
