//! `minivmm stop`: as a person switches a computer off: the power button, and the plug if that does not help. `minivmm
//! kill` is the plug alone. Both are done when the machine has ended and its name is free, and both end in SIGKILL for a
//! process that answers to nothing.

use std::thread;
use std::time::{Duration, Instant};

use super::force::{by_signals, force};
use super::wait::Waiting;
use super::{NameArgs, Speaker, StopArgs, VerbError};
use crate::cli::report;
use crate::cli::session::AGAIN;
use crate::control::client::{ClientError, PendingRequest};
use crate::control::find;

/// How often to look whether a machine is there that does not tell.
const LOOK: Duration = Duration::from_millis(100);
/// How long a machine may take to say that it has heard of its end.
const HEARD: Duration = Duration::from_secs(5);
/// The same where its process is stopped: it may go on at this moment.
const STOPPED: Duration = Duration::from_millis(500);
/// How long it may then take to end: twice what the console's last words may take.
const ENDS: Duration = Duration::from_secs(10);
/// The least that an answer is waited for.
const SOON: Duration = Duration::from_secs(1);
/// There is no machine any more (RFC 9110 §15.5.10).
const CONFLICT: u16 = 409;

pub(super) fn stop(args: &StopArgs) -> Result<(), VerbError> {
    let speaker = Speaker::to(&args.name)?;
    let limit = Duration::from_secs(args.timeout.into());
    let until = Instant::now() + limit;
    if !speaker.0.has_socket() {
        return by_signals(&speaker, Some(limit));
    }
    // Asked before, so that an end that comes at once is not missed.
    let mut waiting = Waiting::begin_within(&speaker, limit.max(SOON)).ok();
    let press = || {
        let left = || until.saturating_duration_since(Instant::now()).max(SOON);
        // At rest, or coming to rest, it would not hear the button.
        let pressed =
            order(&speaker, "/v1/resume", left()).and_then(|_| order(&speaker, "/v1/power-button", left()));
        pressed.map(drop).map_err(|source| speaker.failed(source))
    };
    if press_until(press, |limit| has_ended(&mut waiting, &speaker, limit), limit, AGAIN)? {
        return Ok(());
    }
    let Some(waiting) = waiting else { return force(&speaker, limit) };
    report::say(&format_args!(
        "minivmm: the guest of {} did not shut down within {} s; the machine is ended\n",
        args.name, args.timeout
    ));
    pull(&speaker, Some(waiting))
}

pub(super) fn kill(args: &NameArgs) -> Result<(), VerbError> {
    let speaker = Speaker::to(&args.name)?;
    if !speaker.0.has_socket() {
        return by_signals(&speaker, None);
    }
    let waiting = Waiting::begin_within(&speaker, HEARD).ok();
    pull(&speaker, waiting)
}

/// Ends the machine where it is.
fn pull(speaker: &Speaker, mut waiting: Option<Waiting<'_>>) -> Result<(), VerbError> {
    let patience = if speaker.is_stopped() { STOPPED } else { HEARD };
    let begin = Instant::now();
    let heard = order(speaker, "/v1/kill", patience).map_err(|source| speaker.failed(source))?;
    if heard && has_ended(&mut waiting, speaker, ENDS)? {
        return Ok(());
    }
    force(speaker, begin.elapsed())
}

/// Tells the machine; whether it has heard within `limit`. One that ends at the moment has.
fn order(speaker: &Speaker, path: &str, limit: Duration) -> Result<bool, ClientError> {
    let answered = PendingRequest::send(&speaker.0.socket, "POST", path, None, limit)
        .and_then(|mut asked| asked.answer(limit));
    match answered {
        Ok(answer) => Ok(answer.is_some()),
        Err(ClientError::TimedOut(_)) => Ok(false),
        // Whoever waits for the end hears of it, or sees it.
        Err(ClientError::Unreachable(_)) => Ok(speaker.0.has_socket()),
        Err(ClientError::Refused { status: CONFLICT, .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Presses until it `has_ended`, now and every `again`; whether that came within `limit`.
fn press_until<E>(
    mut press: impl FnMut() -> Result<(), E>,
    mut has_ended: impl FnMut(Duration) -> Result<bool, E>,
    limit: Duration,
    again: Duration,
) -> Result<bool, E> {
    let until = Instant::now() + limit;
    loop {
        press()?;
        let left = until.saturating_duration_since(Instant::now());
        if has_ended(left.min(again))? {
            return Ok(true);
        }
        if left <= again {
            return Ok(false);
        }
    }
}

/// Whether the machine ends within `limit`. One that cannot tell (others wait in all of its places, or its process was
/// killed) shows it by its lock.
fn has_ended(
    waiting: &mut Option<Waiting<'_>>,
    speaker: &Speaker,
    limit: Duration,
) -> Result<bool, VerbError> {
    let until = Instant::now() + limit;
    match waiting.as_mut().map(|waiting| waiting.end(limit)) {
        None
        | Some(Err(
            VerbError::Machine { source: ClientError::Unreachable(_) | ClientError::Refused { .. }, .. }
            | VerbError::Unreachable { .. },
        )) => {}
        Some(told) => return told.map(|ending| ending.is_some()),
    }
    while is_there(speaker) {
        if Instant::now() >= until {
            return Ok(false);
        }
        thread::sleep(LOOK);
    }
    Ok(true)
}

/// Whether the name is still that machine's, and not the next one's.
pub(super) fn is_there(Speaker(place): &Speaker) -> bool {
    let same = |pid: Option<u32>| pid.is_none() || place.pid.is_none() || pid == place.pid;
    find(&place.name).is_some_and(|now| same(now.pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    /// How often a machine is pressed that ends once it was so many times, and whether it did.
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
