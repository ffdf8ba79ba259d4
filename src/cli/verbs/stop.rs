//! `minivmm stop` presses the power button, and kills the machine if that does not help; `minivmm kill` kills
//! it at once. Both return when the machine has ended and its name is free, and both use SIGKILL for a
//! process that does not answer.

use std::thread;
use std::time::{Duration, Instant};

use super::force::{by_signals, end_by_force};
use super::wait::EndWaiter;
use super::{MachineClient, NameArgs, StopArgs, VerbError};
use crate::cli::report;
use crate::cli::session::PRESS_INTERVAL;
use crate::control::client::{ClientError, PendingRequest};
use crate::control::find;

/// Poll interval for a machine that cannot report its end.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Limit for a machine to accept a request.
const ACCEPT_LIMIT: Duration = Duration::from_secs(5);
/// The same where its process is stopped: it may be continued at this moment.
const STOPPED: Duration = Duration::from_millis(500);
/// How long it may then take to end: twice the limit for the final flush of its console.
const END_LIMIT: Duration = Duration::from_secs(10);
/// The minimum limit for an answer.
const MIN_LIMIT: Duration = Duration::from_secs(1);
/// The machine has ended (RFC 9110 §15.5.10).
const CONFLICT: u16 = 409;

pub(super) fn stop(args: &StopArgs) -> Result<(), VerbError> {
    let client = MachineClient::find(&args.name)?;
    let limit = args.timeout;
    let until = Instant::now() + limit;
    if !client.0.has_socket() {
        return by_signals(&client, Some(limit));
    }
    // Sent before, so that an end that comes at once is not missed.
    let mut waiter = EndWaiter::start_within(&client, limit.max(MIN_LIMIT)).ok();
    let press = || {
        let left = || until.saturating_duration_since(Instant::now()).max(MIN_LIMIT);
        // A paused guest would not see the button.
        let pressed =
            post(&client, "/v1/resume", left()).and_then(|_| post(&client, "/v1/power-button", left()));
        pressed.map(drop).map_err(|source| client.failed(source))
    };
    if press_until(press, |limit| has_ended(&mut waiter, &client, limit), limit, PRESS_INTERVAL)? {
        return Ok(());
    }
    let Some(waiter) = waiter else { return end_by_force(&client, limit) };
    report::message(&format_args!(
        "minivmm: the guest of {} did not shut down within {} s; the machine is ended\n",
        args.name,
        limit.as_secs_f64()
    ));
    kill_machine(&client, Some(waiter))
}

pub(super) fn kill(args: &NameArgs) -> Result<(), VerbError> {
    let client = MachineClient::find(&args.name)?;
    if !client.0.has_socket() {
        return by_signals(&client, None);
    }
    let waiter = EndWaiter::start_within(&client, ACCEPT_LIMIT).ok();
    kill_machine(&client, waiter)
}

/// Kills the machine.
fn kill_machine(client: &MachineClient, mut waiter: Option<EndWaiter<'_>>) -> Result<(), VerbError> {
    let limit = if client.is_stopped() { STOPPED } else { ACCEPT_LIMIT };
    let begin = Instant::now();
    let accepted = post(client, "/v1/kill", limit).map_err(|source| client.failed(source))?;
    if accepted && has_ended(&mut waiter, client, END_LIMIT)? {
        return Ok(());
    }
    end_by_force(client, begin.elapsed())
}

/// Sends a request; whether it was accepted within `limit`. A machine that is ending counts as accepting.
fn post(client: &MachineClient, path: &str, limit: Duration) -> Result<bool, ClientError> {
    let answered = PendingRequest::send(&client.0.socket, "POST", path, None, limit)
        .and_then(|mut pending| pending.answer(limit));
    match answered {
        Ok(answer) => Ok(answer.is_some()),
        Err(ClientError::TimedOut(_)) => Ok(false),
        // The wait for the end will notice it.
        Err(ClientError::Unreachable(_)) => Ok(client.0.has_socket()),
        Err(ClientError::Refused { status: CONFLICT, .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Presses the button now and at every `interval` until it `has_ended`; false after `limit`.
fn press_until<E>(
    mut press: impl FnMut() -> Result<(), E>,
    mut has_ended: impl FnMut(Duration) -> Result<bool, E>,
    limit: Duration,
    interval: Duration,
) -> Result<bool, E> {
    let until = Instant::now() + limit;
    loop {
        press()?;
        let left = until.saturating_duration_since(Instant::now());
        if has_ended(left.min(interval))? {
            return Ok(true);
        }
        if left <= interval {
            return Ok(false);
        }
    }
}

/// Whether the machine ends within `limit`. If it cannot report that (too many clients wait, or its process
/// was killed), its lock shows it.
fn has_ended(
    waiter: &mut Option<EndWaiter<'_>>,
    client: &MachineClient,
    limit: Duration,
) -> Result<bool, VerbError> {
    let until = Instant::now() + limit;
    match waiter.as_mut().map(|waiter| waiter.end(limit)) {
        None
        | Some(Err(
            VerbError::Machine { source: ClientError::Unreachable(_) | ClientError::Refused { .. }, .. }
            | VerbError::SocketGone { .. },
        )) => {}
        Some(ended) => return ended.map(|ending| ending.is_some()),
    }
    while is_there(client) {
        if Instant::now() >= until {
            return Ok(false);
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(true)
}

/// Whether the name still belongs to that machine, not to a new one.
pub(super) fn is_there(MachineClient(machine): &MachineClient) -> bool {
    let same = |pid: Option<u32>| pid.is_none() || machine.pid.is_none() || pid == machine.pid;
    find(&machine.name).is_some_and(|now| same(now.pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    /// How often the button of a machine is pressed that ends at press `ends_at`, and whether it ended.
    fn pressed(ends_at: usize, limit: Duration) -> (usize, bool) {
        let presses = std::cell::Cell::new(0);
        let ended = press_until::<()>(
            || {
                presses.set(presses.get() + 1);
                Ok(())
            },
            |limit| {
                let ended = presses.get() >= ends_at;
                if !ended {
                    thread::sleep(limit);
                }
                Ok(ended)
            },
            limit,
            SHORT,
        );
        (presses.get(), ended.unwrap())
    }

    #[test]
    fn the_button_is_pressed_again_until_the_guest_hears_it_or_its_time_is_over() {
        assert_eq!(pressed(1, 100 * SHORT), (1, true));
        assert_eq!(pressed(3, 100 * SHORT), (3, true));
        assert_eq!(pressed(9, Duration::ZERO), (1, false));
        let (presses, ended) = pressed(99, 3 * SHORT);
        assert!(!ended && (1..=3).contains(&presses), "{presses}");
    }
}
