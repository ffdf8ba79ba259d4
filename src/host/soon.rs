//! Patience for what another one is about to let go of: a copy that nobody wants any more takes a moment to end, and has its folder until then;
//! a process that was killed has its files until the kernel has freed its memory; a program that begins has copies of what was open here.

use std::fs;
use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

/// How long what is known to end is waited for.
const LIMIT: Duration = Duration::from_secs(5);
/// The same for what may be free again in a moment: nobody is seen to have it.
pub(crate) const MOMENT: Duration = Duration::from_millis(500);
/// Between two attempts at most; the first one comes again after a millisecond.
const LONGEST_WAIT: Duration = Duration::from_millis(16);

/// Has `attempt` again and again until it succeeds, as long as it fails by what `is_ending` says is about to end, for 5 s at most. It blocks: never
/// call it on a thread that a guest waits for.
pub(crate) fn soon<T, E>(
    attempt: impl FnMut() -> Result<T, E>,
    is_ending: impl Fn(&E) -> bool,
) -> Result<T, E> {
    soon_by(attempt, |error| if is_ending(error) { LIMIT } else { Duration::ZERO })
}

/// The same as long as it has not taken what `patience` says of the last error, none if that is zero. Whoever is seen to end may have let go by
/// the time that nobody is seen any more, so a patience that is less than the one before begins then.
pub(crate) fn soon_by<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    patience: impl Fn(&E) -> Duration,
) -> Result<T, E> {
    let first = Instant::now();
    let (mut begun, mut before, mut wait) = (first, Duration::ZERO, Duration::from_millis(1));
    loop {
        match attempt() {
            Err(error) => {
                let patience = patience(&error);
                if patience < before {
                    begun = Instant::now();
                }
                before = patience;
                if begun.elapsed() >= patience || first.elapsed() >= 2 * LIMIT {
                    return Err(error);
                }
                thread::sleep(wait);
            }
            done => return done,
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// How long to wait for what `pid` is seen to have: not at all, unless it is about to lose it.
pub(crate) fn patience_for(pid: u32) -> Duration {
    // It was there a moment ago.
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(error) if error.kind() == ErrorKind::NotFound => return MOMENT,
        stat => stat.unwrap_or_default(),
    };
    // The name, in parentheses, may hold any of them. Then come state, parent, group, session, terminal, its group, flags (proc_pid_stat(5)).
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace()).into_iter().flatten();
    let (parent, flags) = (fields.clone().nth(1), fields.clone().nth(6));
    let number = |field: Option<&str>| field.and_then(|field| field.parse::<u32>().ok());
    if number(flags).is_some_and(|flags| flags & PF_EXITING != 0) || is_killed(pid) {
        LIMIT
    } else if number(parent) == Some(std::process::id()) {
        // It may be on its way to another program, and lose what it has open when that begins.
        MOMENT
    } else {
        Duration::ZERO
    }
}

/// Flag of a process that ends (linux/sched.h). It has its files until all of its memory is free, and for a parent that does not look
/// it stays so.
const PF_EXITING: u32 = 0x4;

/// Whether a SIGKILL is on its way to `pid`.
fn is_killed(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mut pending = status
        .lines()
        .filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")))
        .filter_map(|signals| u64::from_str_radix(signals.trim(), 16).ok());
    pending.any(|signals| signals >> (libc::SIGKILL - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    use super::*;
    use crate::host::testing::starting;

    #[test]
    fn what_ends_is_waited_for_and_what_does_not_is_an_error() {
        let mut attempts = 0;
        let free_at_third = || {
            attempts += 1;
            if attempts < 3 { Err("busy") } else { Ok(attempts) }
        };
        assert_eq!(soon(free_at_third, |error| *error == "busy"), Ok(3));
        let mut attempts = 0;
        let fails = || {
            attempts += 1;
            Err::<(), _>("broken")
        };
        assert_eq!(soon(fails, |error| *error == "busy"), Err("broken"));
        assert_eq!(attempts, 1);
        let stays = || Err::<(), _>("busy");
        assert_eq!(soon_by(stays, |_| Duration::from_millis(20)), Err("busy"));
        // It let go just before it was looked for.
        let begun = Instant::now();
        let mut looks = 0;
        let goes = || {
            if begun.elapsed() < Duration::from_millis(100) {
                return Err("ends");
            }
            looks += 1;
            if looks == 1 { Err("nobody has it") } else { Ok(()) }
        };
        let patience = |error: &&str| if *error == "ends" { LIMIT } else { Duration::from_millis(50) };
        assert_eq!(soon_by(goes, patience), Ok(()));
    }

    #[test]
    fn process_that_ends_is_waited_for_and_one_that_runs_is_not() {
        assert_eq!(patience_for(std::process::id()), Duration::ZERO);
        assert_eq!(patience_for(1), Duration::ZERO);
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // It is the program by now.
        child.stdin.as_mut().unwrap().write_all(b"!").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        assert_eq!(patience_for(child.id()), MOMENT);
        // Whatever it does at this moment, or its parent, who does not look yet.
        child.kill().unwrap();
        let begun = Instant::now();
        while patience_for(child.id()) != LIMIT {
            // The signal is taken just before the flag is set.
            assert!(begun.elapsed() < Duration::from_secs(60));
        }
        child.wait().unwrap();
        assert_eq!(patience_for(child.id()), MOMENT);
    }

    #[test]
    fn program_that_begins_may_let_go() {
        let (child, mut begun, mut end) = starting();
        begun.read_exact(&mut [0]).unwrap();
        let own = std::process::id().to_string();
        let children = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            (stat.rsplit_once(')')?.1.split_whitespace().nth(1)? == own).then_some(pid)
        });
        assert!(children.map(patience_for).any(|patience| patience == MOMENT));
        end.write_all(&[0]).unwrap();
        child.join().unwrap();
    }
}
