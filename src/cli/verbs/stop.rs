//! `minivmm stop`: as a person switches a computer off: the power button, and the plug if that does not help.

use std::time::Duration;

use super::wait::Waiting;
use super::{ORDER, Speaker, StopArgs, VerbError};
use crate::cli::report;
use crate::control::client::ClientError;

pub(super) fn stop(args: &StopArgs) -> Result<(), VerbError> {
    let speaker = Speaker::to(&args.name)?;
    // Asked before, so that an end that comes at once is not missed.
    let mut waiting = Waiting::begin(&speaker)?;
    let info = speaker.get("/v1/machine")?;
    let press = || {
        if info.get("state").is_some_and(|state| state == "paused") {
            // At rest it would not hear the button.
            speaker.say("POST", "/v1/resume", None, ORDER)?;
        }
        speaker.say("POST", "/v1/power-button", None, ORDER)
    };
    // It may end by itself meanwhile.
    unless_ended(press())?;
    if waiting.end(Duration::from_secs(args.timeout.into()))?.is_some() {
        return Ok(());
    }
    report::say(&format_args!(
        "minivmm: the guest of {} did not shut down within {} s; the machine is ended\n",
        args.name, args.timeout
    ));
    unless_ended(speaker.say("POST", "/v1/kill", None, ORDER))?;
    match waiting.end(ORDER)? {
        Some(_) => Ok(()),
        None => Err(speaker.failed(ClientError::Late(ORDER))),
    }
}

fn unless_ended<T>(said: Result<T, VerbError>) -> Result<(), VerbError> {
    match said {
        Ok(_) => Ok(()),
        // Who waits for the end hears of it.
        Err(VerbError::Machine { source: ClientError::Gone(_) | ClientError::Refused(_), .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
