//! Locks on files that this process itself may have closed just now, and what else an open file keeps, such as the queue of a TAP.
//!
//! A program that any thread starts has copies of all open files between fork(2) and execve(2), and so a part in their locks: a file that was
//! closed here stays locked until the program runs. A process that was killed has its locks until its memory is free. So a lock that is
//! refused is tried again for a short time, unless a process is seen to have it that goes on. That blocks: call it where a file is
//! opened, never on a thread that a guest waits for.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::time::Duration;

use super::disk::find_holder;
use super::lock::{Kind, try_lock, try_lock_range};
use super::soon::{MOMENT, patience_for, soon_by};

/// As [`try_lock`].
pub(crate) fn lock_soon(file: &File, kind: Kind) -> io::Result<bool> {
    free_soon(|| try_lock(file, kind), || patience_with(file))
}

/// As [`try_lock_range`].
pub(crate) fn lock_range_soon(file: &File, kind: Kind, range: &Range<u64>) -> io::Result<bool> {
    free_soon(|| try_lock_range(file, kind, range), || patience_with(file))
}

/// How long to wait for the lock of `file`.
fn patience_with(file: &File) -> Duration {
    find_holder(file).map_or(MOMENT, |holder| patience_for(holder.pid))
}

/// Has `attempt` until it is true, for as long as there is `patience` with what is in its way; false in the end.
pub(super) fn free_soon(
    mut attempt: impl FnMut() -> io::Result<bool>,
    patience: impl Fn() -> Duration,
) -> io::Result<bool> {
    let attempt = || match attempt() {
        Ok(true) => Ok(()),
        Ok(false) => Err(None),
        Err(error) => Err(Some(error)),
    };
    let done = soon_by(attempt, |error| if error.is_none() { patience() } else { Duration::ZERO });
    done.map(|()| true).or_else(|error| error.map_or(Ok(false), Err))
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
        assert_eq!(patience_with(&second), MOMENT, "a child that begins is no other process");
        let mut refused = 0;
        let attempt = || {
            let locked = try_lock(&second, Kind::Exclusive)?;
            refused += u32::from(!locked);
            if !locked && refused == 2 {
                end.write_all(&[0])?;
            }
            Ok(locked)
        };
        assert!(free_soon(attempt, || patience_with(&second)).unwrap());
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
        assert!(!free_soon(attempt, || patience_with(&second)).unwrap());
        assert_eq!(attempts, 1, "who has it is known");
        let never = || Ok(false);
        assert!(
            !free_soon(never, || Duration::from_millis(20)).unwrap(),
            "nobody is known to have it, and it is not waited for without end"
        );
    }
}
