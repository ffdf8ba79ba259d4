//! The kernel's own link to a descriptor of this process, for calls that take a path.

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

/// What leads to the file of `fd`, whatever name that has now, if it has one (proc(5)).
pub(super) fn proc_path(fd: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).into()
}
