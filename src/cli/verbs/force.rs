//! Machines that do not answer: their process is told by signals.

use std::time::{Duration, Instant};

use super::stop::is_there;
use super::{Speaker, VerbError};
use crate::cli::report;
use crate::control::{all, process_of};
use crate::host::target::Target;

/// How long a process may take to end that was told to, and the kernel for one that was sent SIGKILL.
const DIES: Duration = Duration::from_secs(5);
/// Signals that come closer together are one to a machine's process.
const APART: Duration = Duration::from_millis(1100);

/// Ends the process of a machine that has not ended `after` so long.
pub(super) fn force(speaker: &Speaker, after: Duration) -> Result<(), VerbError> {
    let Some((pid, target)) = find(speaker)? else { return Ok(()) };
    let stopped = speaker.is_stopped();
    end(speaker, pid, &target)?;
    let name = &speaker.0.name;
    let why =
        if stopped { "is stopped".to_owned() } else { format!("did not end within {} s", after.as_secs()) };
    report::say(&format_args!("minivmm: {name}: its process {pid} {why}; it was ended with SIGKILL\n"));
    Ok(())
}

/// `minivmm stop`, or `minivmm kill` without a `limit`, for a machine whose socket is gone. SIGTERM presses its power button, and
/// its process presses it again by itself; the second one, at least [`APART`] later, ends the machine in order.
pub(super) fn by_signals(speaker: &Speaker, limit: Option<Duration>) -> Result<(), VerbError> {
    let Some((pid, target)) = find(speaker)? else { return Ok(()) };
    let tell = || target.signal(libc::SIGTERM).map_err(|error| beyond(speaker, Some(pid), error.to_string()));
    tell()?;
    if target.ends_within(limit.unwrap_or_default().max(APART)) {
        return Ok(());
    }
    let name = &speaker.0.name;
    if let Some(limit) = limit {
        report::say(&format_args!(
            "minivmm: the guest of {name} did not shut down within {} s; the machine is ended\n",
            limit.as_secs()
        ));
    }
    tell()?;
    if !speaker.is_stopped() && target.ends_within(DIES) {
        return Ok(());
    }
    force(speaker, DIES)
}

/// The machine's process, held so that its number cannot become another's; `None` if the machine has ended.
fn find(speaker: &Speaker) -> Result<Option<(u32, Target)>, VerbError> {
    let place = &speaker.0;
    let Some(pid) = place.pid.or_else(|| process_of(place)) else {
        return if is_there(speaker) {
            Err(beyond(speaker, None, "it is in another PID namespace".to_owned()))
        } else {
            Ok(None)
        };
    };
    let target = Target::open(pid);
    // Asked after it is held: the process that the kernel says listens for the machine, which the file could say wrongly.
    let listens = process_of(place);
    match (is_there(speaker), target, listens) {
        (false, ..) => Ok(None),
        (true, Ok(target), Some(listens)) if listens == pid => Ok(Some((pid, target))),
        (true, Err(error), _) => Err(beyond(speaker, Some(pid), error.to_string())),
        (true, Ok(_), _) => {
            let why = "the kernel does not name it as the process that listens for this machine".to_owned();
            Err(beyond(speaker, Some(pid), why))
        }
    }
}

/// SIGKILL, and what a machine removes that ends by itself.
fn end(speaker: &Speaker, pid: u32, target: &Target) -> Result<(), VerbError> {
    target.signal(libc::SIGKILL).map_err(|error| beyond(speaker, Some(pid), error.to_string()))?;
    let until = Instant::now() + DIES;
    if !target.ends_within(DIES) {
        return Err(VerbError::Lives { name: speaker.0.name.clone(), limit: DIES, pid });
    }
    // The kernel closes its files a moment before or after that.
    while is_there(speaker) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Looking removes the files of the dead.
    drop(all());
    Ok(())
}

fn beyond(speaker: &Speaker, pid: Option<u32>, why: String) -> VerbError {
    VerbError::Beyond { name: speaker.0.name.clone(), pid, why }
}
