//! A process of its own: away from who started it, its session, its terminal and its open files.

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

/// Which of the two processes this is, with its end of the line to the other one.
#[derive(Debug)]
pub(crate) enum Side {
    /// Who asked.
    Caller(UnixStream),
    /// The new process: in a session without a terminal that it does not lead, so that it never gets one.
    Detached(UnixStream),
}

/// Makes a detached process that goes on from here as this one does.
///
/// # Errors
/// The host has no process left, or this one has other threads: they would be missing in the new one, with whatever they
/// have locked.
pub(crate) fn detach() -> io::Result<Side> {
    if !is_alone()? {
        return Err(io::Error::other("other threads run already"));
    }
    let (here, there) = UnixStream::pair()?;
    // SAFETY: there is no other thread, so that the new process has all that this one has.
    let between = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            drop(here);
            // SAFETY: takes nothing, and cannot fail in a process that leads no group, as a new one does not.
            unsafe { libc::setsid() };
            // SAFETY: as the first.
            match unsafe { libc::fork() } {
                0 => return Ok(Side::Detached(there)),
                -1 => leave(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EAGAIN)),
                _ => leave(0),
            }
        }
        between => between,
    };
    drop(there);
    match wait_for(between) {
        0 => Ok(Side::Caller(here)),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// What our child left with.
fn wait_for(child: libc::pid_t) -> libc::c_int {
    let mut status = 0;
    // SAFETY: `status` is valid for writing; the process is our child, and nobody else waits for it.
    while unsafe { libc::waitpid(child, &mut status, 0) } == -1 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            // Whoever has us ignore SIGCHLD leaves us no status to see. The line will tell.
            return 0;
        }
    }
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { libc::EINTR }
}

/// Ends the process in between, which has nothing to tidy up.
fn leave(status: libc::c_int) -> ! {
    // SAFETY: takes a number and never returns.
    unsafe { libc::_exit(status) }
}

/// Closes what whoever started us had open, but for the standard streams. Nothing of our own may be open by now but
/// `keep`.
pub(crate) fn close_others(keep: &impl AsRawFd) -> io::Result<()> {
    let keep = u32::try_from(keep.as_raw_fd()).unwrap_or_default();
    for (first, last) in [(3, keep.saturating_sub(1)), (keep.saturating_add(1), u32::MAX)] {
        // SAFETY: takes numbers; nobody in this process has these descriptors. By number, as the C library may be older
        // than the kernel.
        if first <= last && unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Puts /dev/null in the place of these standard streams.
pub(crate) fn silence(streams: &[RawFd]) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for stream in streams {
        // SAFETY: takes two numbers. Whoever uses a standard stream does so by its number, which stays that of an open file.
        if unsafe { libc::dup2(null.as_raw_fd(), *stream) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reads a variable that is meant for this process alone, and takes it out of the surroundings while nobody else can be
/// reading them.
pub(crate) fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    if is_alone().unwrap_or(false) {
        // SAFETY: there is no other thread.
        unsafe { std::env::remove_var(name) };
    }
    Some(value)
}

/// Lets this process open as many files as the host lets it (`ulimit -Hn`): 64 processors with 8 disks need more than the usual
/// 1,024. See [`with_usual_limits`].
pub(crate) fn raise_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writing one rlimit.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 || limit.rlim_cur >= limit.rlim_max {
        return;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: reads one rlimit. What the host refuses leaves the limit as it was.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        let _ = USUAL.set(limit);
    }
}

/// What the limit was before it was raised.
static USUAL: OnceLock<libc::rlimit> = OnceLock::new();

/// Gives a program the limit that this process was started with: programs that use select(2) cannot take more.
pub(crate) fn with_usual_limits(command: &mut Command) -> &mut Command {
    let Some(usual) = USUAL.get() else { return command };
    // SAFETY: between fork and exec only setrlimit(2) is called, which is async-signal-safe, on a value that stays.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NOFILE, usual) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    }
}

/// Whether the calling thread is the only one.
///
/// # Errors
/// Neither the kernel nor /proc says it.
fn is_alone() -> io::Result<bool> {
    // SAFETY: takes a number. Of a process with one thread the call changes nothing; of another it does not work (unshare(2)).
    if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EINVAL) {
        return Ok(false);
    }
    // A container's filter may forbid the call, whatever it asks for.
    match fs::read_dir("/proc/self/task") {
        Ok(tasks) => Ok(tasks.count() == 1),
        Err(_) => Err(io::Error::other(format!(
            "whether other threads run cannot be known: unshare(2) is not permitted ({error}) and /proc is not mounted"
        ))),
    }
}

/// Whether this user may read `path`, which is not opened for that.
pub(crate) fn may_read(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: `path` ends with a zero and lives through the call.
    unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::R_OK, libc::AT_EACCESS) == 0 }
}

/// The group that files made by this process belong to.
pub(crate) fn group() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::getegid() }
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
