//! A detached process: without the caller's session, terminal and open files.

use std::ffi::{CString, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The process after the fork, with its end of a socket pair.
#[derive(Debug)]
pub(crate) enum Fork {
    /// The calling process.
    Parent(UnixStream),
    /// The new process: in a session without a terminal. It is not the session leader, so it never gets one.
    Child(UnixStream),
}

/// Forks a detached process that continues from here.
///
/// # Errors
/// The host has no process left, or this process has other threads: the new one would lack them, with the
/// locks that they hold.
pub(crate) fn detach() -> io::Result<Fork> {
    if !is_single_threaded()? {
        return Err(io::Error::other("other threads run already"));
    }
    let (here, there) = UnixStream::pair()?;
    // SAFETY: there is no other thread, so the new process is a complete copy.
    let middle = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            drop(here);
            // SAFETY: takes nothing, and cannot fail in a process that leads no group, as a new one does not.
            unsafe { libc::setsid() };
            // SAFETY: as the first.
            match unsafe { libc::fork() } {
                0 => return Ok(Fork::Child(there)),
                -1 => exit(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN)),
                _ => exit(0),
            }
        }
        middle => middle,
    };
    drop(there);
    match wait_for(middle) {
        0 => Ok(Fork::Parent(here)),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Exit status of our child.
fn wait_for(child: libc::pid_t) -> libc::c_int {
    let mut status = 0;
    // SAFETY: `status` is valid for writing; the process is our child, and nobody else waits for it.
    while unsafe { libc::waitpid(child, &mut status, 0) } == -1 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            // A parent that ignores SIGCHLD leaves no status; the socket pair reports the result.
            return 0;
        }
    }
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { libc::EINTR }
}

/// Exits the intermediate process without any cleanup.
fn exit(status: libc::c_int) -> ! {
    // SAFETY: takes a number and never returns.
    unsafe { libc::_exit(status) }
}

/// Closes inherited descriptors, except for the standard streams and those in `keep`. This process must not have
/// opened others yet.
pub(crate) fn close_others(keep: &[RawFd]) -> io::Result<()> {
    let mut keep: Vec<u32> =
        keep.iter().filter_map(|fd| u32::try_from(*fd).ok()).filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let firsts = std::iter::once(3).chain(keep.iter().map(|fd| fd.saturating_add(1)));
    let lasts = keep.iter().map(|fd| fd.saturating_sub(1)).chain([u32::MAX]);
    for (first, last) in firsts.zip(lasts) {
        // SAFETY: takes numbers; no code in this process uses these descriptors. By number, as the C library
        // may be older than the kernel.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Replaces these standard streams by /dev/null.
pub(crate) fn redirect_to_null(streams: &[RawFd]) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for stream in streams {
        // SAFETY: takes two numbers. Standard streams are used by number, and each number stays that of an
        // open file.
        if unsafe { libc::dup2(null.as_raw_fd(), *stream) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reads a variable that is meant for this process alone, and removes it from the environment if no other
/// thread can be reading that.
pub(crate) fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    if is_single_threaded().unwrap_or(false) {
        // SAFETY: there is no other thread.
        unsafe { std::env::remove_var(name) };
    }
    Some(value)
}

/// Has all threads allocate from one heap. glibc gives each a heap of its own, by four system calls, of which most threads here
/// use a few pages: they allocate little, and nothing for a request of the guest. For the command only.
pub(crate) fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of malloc's; no thread exists yet that has another heap.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Raises the limit of open files to the hard limit (`ulimit -Hn`): 64 processors with 8 disks need more than
/// the usual 1,024. See [`with_original_fd_limit`].
pub(crate) fn raise_fd_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writing one rlimit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 || limit.rlim_cur >= limit.rlim_max {
        return;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: reads one rlimit. If the host refuses, the limit stays as it was.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        let _ = ORIGINAL_LIMIT.set(limit);
    }
}

/// The limit before it was raised.
static ORIGINAL_LIMIT: OnceLock<libc::rlimit> = OnceLock::new();

/// Gives a child program the original limit: programs that use select(2) cannot handle more.
pub(crate) fn with_original_fd_limit(command: &mut Command) -> &mut Command {
    let Some(original) = ORIGINAL_LIMIT.get() else { return command };
    // SAFETY: between fork and exec only setrlimit(2) is called, which is async-signal-safe, on a static
    // value.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, original) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    }
}

/// Whether the calling thread is the only one.
///
/// # Errors
/// Neither the kernel nor /proc reports it.
fn is_single_threaded() -> io::Result<bool> {
    // SAFETY: takes a number. In a process with one thread the call changes nothing; otherwise it fails
    // (unshare(2)).
    if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINVAL) {
        return Ok(false);
    }
    // A container's seccomp filter may forbid the call.
    match fs::read_dir("/proc/self/task") {
        Ok(tasks) => Ok(tasks.count() == 1),
        Err(_) => Err(io::Error::other(format!(
            "whether other threads run cannot be known: unshare(2) is not permitted ({error}) and /proc is not mounted"
        ))),
    }
}

/// Whether this user may read `path`, without opening it.
pub(crate) fn may_read(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: `path` ends with a zero and lives through the call.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::R_OK, libc::AT_EACCESS) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_other_threads_is_not_doubled() {
        std::thread::scope(|scope| {
            let (go, wait) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || wait.recv());
            assert!(detach().unwrap_err().to_string().contains("other threads"));
            drop(go);
        });
    }
}
