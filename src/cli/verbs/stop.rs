//! `minivmm stop`: as a person switches a computer off: the power button, and the plug if that does not help.

use std::thread;
use std::time::{Duration, Instant};

use super::wait::Waiting;
use super::{ORDER, Speaker, StopArgs, VerbError};
use crate::cli::report;
use crate::control::client::ClientError;
use crate::control::find;
use crate::spec::MachineName;

/// How often to look whether a machine is there that does not tell.
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn stop(args: &StopArgs) -> Result<(), VerbError> {
    let speaker = Speaker::to(&args.name)?;
    // Asked before, so that an end that comes at once is not missed.
    let mut waiting = Waiting::begin(&speaker)?;
    let press = || {
        // At rest, or coming to rest, it would not hear the button.
        speaker.say("POST", "/v1/resume", None, ORDER)?;
        speaker.say("POST", "/v1/power-button", None, ORDER)
    };
    // It may end by itself meanwhile.
    unless_ended(press())?;
    if has_ended(&mut waiting, &args.name, Duration::from_secs(args.timeout.into()))? {
        return Ok(());
    }
    report::say(&format_args!(
        "minivmm: the guest of {} did not shut down within {} s; the machine is ended\n",
        args.name, args.timeout
    ));
    unless_ended(speaker.say("POST", "/v1/kill", None, ORDER))?;
    if has_ended(&mut waiting, &args.name, ORDER)? {
        return Ok(());
    }
    Err(speaker.failed(ClientError::Late(ORDER)))
}

/// Whether the machine ends within `limit`. One that cannot tell (others wait in all of its places, or its process was
/// killed) shows it by its lock.
fn has_ended(waiting: &mut Waiting<'_>, name: &MachineName, limit: Duration) -> Result<bool, VerbError> {
    let until = Instant::now() + limit;
    match waiting.end(limit) {
        Err(VerbError::Machine { source: ClientError::Gone(_) | ClientError::Refused(_), .. }) => {}
        told => return told.map(|ending| ending.is_some()),
    }
    while find(name).is_some() {
        if Instant::now() >= until {
            return Ok(false);
        }
        thread::sleep(LOOK);
    }
    Ok(true)
}

fn unless_ended<T>(said: Result<T, VerbError>) -> Result<(), VerbError> {
    match said {
        Ok(_) => Ok(()),
        // Who waits for the end hears of it, or sees it.
        Err(VerbError::Machine { source: ClientError::Gone(_) | ClientError::Refused(_), .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
