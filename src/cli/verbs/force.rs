//! Machines that do not answer: their process is ended by signals.

use std::time::{Duration, Instant};

use super::stop::is_there;
use super::{MachineClient, VerbError};
use crate::cli::report;
use crate::control::{all, process_of};
use crate::host::pidfd::PidFd;

/// How long a process may take to end after SIGTERM, and the kernel after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// A machine's process counts signals within a shorter time as one.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(1100);

/// Ends the process of a machine that has not ended within `after`.
pub(super) fn end_by_force(client: &MachineClient, after: Duration) -> Result<(), VerbError> {
    let Some((pid, target)) = hold_process(client)? else { return Ok(()) };
    let stopped = client.is_stopped();
    kill_process(client, pid, &target)?;
    let name = &client.0.name;
    let why =
        if stopped { "is stopped".to_owned() } else { format!("did not end within {} s", after.as_secs()) };
    report::message(&format_args!("minivmm: {name}: its process {pid} {why}; it was ended with SIGKILL\n"));
    Ok(())
}

/// `minivmm stop`, or `minivmm kill` without a `limit`, for a machine whose socket is gone. SIGTERM presses
/// its power button, and its process repeats that by itself; the second SIGTERM, at least [`SIGNAL_INTERVAL`]
/// later, ends the machine in order.
pub(super) fn by_signals(client: &MachineClient, limit: Option<Duration>) -> Result<(), VerbError> {
    let Some((pid, target)) = hold_process(client)? else { return Ok(()) };
    let send_term =
        || target.signal(libc::SIGTERM).map_err(|error| cannot_end(client, Some(pid), error.to_string()));
    send_term()?;
    if target.exits_within(limit.unwrap_or_default().max(SIGNAL_INTERVAL)) {
        return Ok(());
    }
    let name = &client.0.name;
    if let Some(limit) = limit {
        report::message(&format_args!(
            "minivmm: the guest of {name} did not shut down within {} s; the machine is ended\n",
            limit.as_secs()
        ));
    }
    send_term()?;
    if !client.is_stopped() && target.exits_within(KILL_LIMIT) {
        return Ok(());
    }
    end_by_force(client, KILL_LIMIT)
}

/// The machine's process by a pidfd, so that its pid cannot be reused; `None` if the machine has ended.
fn hold_process(client: &MachineClient) -> Result<Option<(u32, PidFd)>, VerbError> {
    let machine = &client.0;
    let Some(pid) = machine.pid.or_else(|| process_of(machine)) else {
        return if is_there(client) {
            Err(cannot_end(client, None, "it is in another PID namespace".to_owned()))
        } else {
            Ok(None)
        };
    };
    let target = PidFd::open(pid);
    // Read after the pidfd is open: the process that the kernel reports as the listener, as the file may be
    // wrong.
    let listener = process_of(machine);
    match (is_there(client), target, listener) {
        (false, ..) => Ok(None),
        (true, Ok(target), Some(listener)) if listener == pid => Ok(Some((pid, target))),
        (true, Err(error), _) => Err(cannot_end(client, Some(pid), error.to_string())),
        (true, Ok(_), _) => {
            let why = "the kernel does not name it as the process that listens for this machine".to_owned();
            Err(cannot_end(client, Some(pid), why))
        }
    }
}

/// Sends SIGKILL, and removes the files that a machine removes when it ends by itself.
fn kill_process(client: &MachineClient, pid: u32, target: &PidFd) -> Result<(), VerbError> {
    target.signal(libc::SIGKILL).map_err(|error| cannot_end(client, Some(pid), error.to_string()))?;
    let until = Instant::now() + KILL_LIMIT;
    if !target.exits_within(KILL_LIMIT) {
        return Err(VerbError::SurvivedKill { name: client.0.name.clone(), limit: KILL_LIMIT, pid });
    }
    // The kernel closes its files a moment before or after that.
    while is_there(client) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Listing removes stale files.
    drop(all());
    Ok(())
}

fn cannot_end(client: &MachineClient, pid: Option<u32>, why: String) -> VerbError {
    VerbError::CannotEnd { name: client.0.name.clone(), pid, why }
}
