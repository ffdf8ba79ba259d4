//! Locks on files that this process itself may have closed just now, and what else an open file keeps, such as the queue of a TAP.
//!
//! A program that any thread starts has copies of all open files between fork(2) and execve(2), and so a part in their locks: a file that was
//! closed here stays locked until the program runs. So a lock that is refused is tried again for a short time, unless another process
//! is seen to have it. That blocks: call it where a file is opened, never on a thread that a guest waits for.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::thread;
use std::time::Duration;

use super::disk::is_held_by_another;
use super::lock::{Kind, try_lock, try_lock_range};

/// The waits between the attempts are 1, 2, 4 ms and so on: half a second together.
const WAITS: u32 = 9;

/// As [`try_lock`].
pub(crate) fn lock_soon(file: &File, kind: Kind) -> io::Result<bool> {
    soon(|| try_lock(file, kind), || is_held_by_another(file))
}

/// As [`try_lock_range`].
pub(crate) fn lock_range_soon(file: &File, kind: Kind, range: &Range<u64>) -> io::Result<bool> {
    soon(|| try_lock_range(file, kind, range), || is_held_by_another(file))
}

/// Has `attempt` until it is true, or `is_another` process is seen to be in its way; false in the end.
pub(super) fn soon(
    mut attempt: impl FnMut() -> io::Result<bool>,
    is_another: impl Fn() -> bool,
) -> io::Result<bool> {
    for wait in 0..WAITS {
        if attempt()? {
            return Ok(true);
        }
        if is_another() {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(1 << wait));
    }
    attempt()
}

/// Whether `pid` is a child of this process: one may be on its way to another program, and lose what it has open when that begins.
pub(super) fn is_own_child(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name, in parentheses, may hold any of them.
    let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
    parent == Some(std::process::id())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::host::testing::starting;

    #[test]
    fn a_lock_of_a_file_that_was_closed_is_had_when_a_program_that_begins_lets_go_of_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let first = open();
        assert!(try_lock(&first, Kind::Exclusive).unwrap());
        let (child, mut begun, mut end) = starting();
        begun.read_exact(&mut [0]).unwrap();
        drop(first);
        let second = open();
        assert!(
            !try_lock(&second, Kind::Exclusive).unwrap(),
            "the child has a copy of {}",
            second.as_raw_fd()
        );
        assert!(!is_held_by_another(&second), "a child that begins is no other process");
        let mut refused = 0;
        let attempt = || {
            let locked = try_lock(&second, Kind::Exclusive)?;
            refused += u32::from(!locked);
            if !locked && refused == 2 {
                end.write_all(&[0])?;
            }
            Ok(locked)
        };
        assert!(soon(attempt, || is_held_by_another(&second)).unwrap());
        assert!(refused >= 2);
        child.join().unwrap();
    }

    #[test]
    fn a_lock_that_is_held_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (first, second) = (open(), open());
        assert!(lock_soon(&first, Kind::Exclusive).unwrap());
        let mut attempts = 0;
        let attempt = || {
            attempts += 1;
            try_lock(&second, Kind::Exclusive)
        };
        assert!(!soon(attempt, || is_held_by_another(&second)).unwrap());
        assert_eq!(attempts, 1, "who has it is known");
        let never = || Ok(false);
        assert!(
            !soon(never, || false).unwrap(),
            "nobody is known to have it, and it is not waited for without end"
        );
    }
}
