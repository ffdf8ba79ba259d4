//! `minivmm save`: writes a machine to a folder, and ends it or lets it run on. One that ends has ended, and its name is free, when this
//! returns.

use std::fmt::Display;
use std::path::Path;
use std::time::{Duration, Instant};

use diskimage::Progress;
use serde::Deserialize;
use serde_json::Value;

use super::show::size;
use super::wait::EndWaiter;
use super::{ANSWER_LIMIT, MachineClient, SaveArgs, VerbError};
use crate::cli::disk::progress::Bar;
use crate::cli::exit::Status;
use crate::cli::{print, report};
use crate::control::client::{ClientError, PendingRequest};
use crate::control::save_routes::{CopyName, save_body};
use crate::machine::{CopyLimits, CopyProgress, CopyReport};
use crate::saved::summary;
use crate::shown::path as shown;

/// How long memory and disks may take: at the speed of a slow disk, what a large machine has.
const COPY_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// How long the machine may then take to end.
const END_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks at how far it is.
const TICK: Duration = Duration::from_millis(100);
const SAVE: &str = "/v1/save";

pub(super) fn save(args: &SaveArgs) -> Result<Status, VerbError> {
    let client = MachineClient::find(&args.name)?;
    let folder = std::path::absolute(&args.folder)
        .map_err(|source| VerbError::Path { path: args.folder.clone(), source })?;
    let Some(text) = folder.to_str() else { return Err(VerbError::NotUtf8(folder)) };
    if args.keep_running {
        let mut limits = CopyLimits { bandwidth: args.bandwidth, ..CopyLimits::default() };
        limits.downtime = args.downtime.unwrap_or(limits.downtime);
        let report = follow(&client, SAVE, &save_body(text, Some(limits), args.with_disks))?;
        if !args.json {
            say_saved(args, &folder);
        }
        return Ok(print(&words(&report, args.json)?, Status::Done));
    }
    // Sent before, so that an end that comes at once is not missed.
    let mut waiter = EndWaiter::start(&client)?;
    follow(&client, SAVE, &save_body(text, None, args.with_disks))?;
    match waiter.end(END_LIMIT)? {
        Some(_) => {
            say_saved(args, &folder);
            Ok(Status::Done)
        }
        None => Err(client.failed(ClientError::TimedOut(END_LIMIT))),
    }
}

/// Says where the machine is, and what lets it go on.
fn say_saved(args: &SaveArgs, folder: &Path) {
    let word = diskimage::shell_word(&args.folder);
    let disks = if args.with_disks { " --disks NEW-FOLDER" } else { "" };
    say(&format_args!(
        "{} is saved in {}{}; `minivmm restore {word}{disks}` lets it go on",
        args.name,
        shown(folder),
        contents(folder)
    ));
}

/// What there is in a folder that was written just now, as far as that can be seen, and how large it is.
pub(super) fn contents(folder: &Path) -> String {
    summary(folder).map_or_else(
        |_| String::new(),
        |summary| {
            let disks: String = summary.disks.iter().map(|disk| format!(", {disk}")).collect();
            format!(" (memory{disks}: {} on the host)", size(summary.size))
        },
    )
}

/// A message beside the output.
pub(super) fn say(what: &dyn Display) {
    report::message(&format_args!("minivmm: {what}\n"));
}

/// What it has cost.
fn words(report: &Value, json: bool) -> Result<String, VerbError> {
    if json {
        return Ok(serde_json::to_string_pretty(report)?);
    }
    let CopyReport { rounds, sent, total_ms, paused_ms, .. } = CopyReport::deserialize(report)?;
    Ok(format!(
        "saved in {total_ms} ms: {} MiB in {rounds} rounds; paused for {paused_ms} ms",
        sent.div_ceil(1 << 20)
    ))
}

/// Sends a request that copies a machine, and follows it with a bar; a signal cancels it.
pub(super) fn follow(client: &MachineClient, path: &str, body: &Value) -> Result<Value, VerbError> {
    let mut bar = Bar::begin().map_err(VerbError::Terminal)?;
    let asked = ask_at(client, path, body, &mut bar, &|| false);
    asked.map_err(|error| bar.interrupted().map_or(error, VerbError::Interrupted))
}

/// Sends the request to save a machine and shows how far it is; a signal cancels it, or `is_given_up`.
pub(in crate::cli) fn ask(
    client: &MachineClient,
    body: &Value,
    bar: &mut Bar,
    is_given_up: &dyn Fn() -> bool,
) -> Result<Value, VerbError> {
    ask_at(client, SAVE, body, bar, is_given_up)
}

/// The same for any request that copies a machine.
fn ask_at(
    client: &MachineClient,
    path: &str,
    body: &Value,
    bar: &mut Bar,
    is_given_up: &dyn Fn() -> bool,
) -> Result<Value, VerbError> {
    let failed = |source| client.failed(source);
    let name = CopyName::new();
    let body = name.with(body.clone());
    let pending = PendingRequest::send(&client.0.socket, "POST", path, Some(&body), ANSWER_LIMIT);
    let (mut pending, until) = (pending.map_err(failed)?, Instant::now() + COPY_LIMIT);
    loop {
        match pending.answer(TICK) {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) if client.is_stopped() || Instant::now() > until => {
                return Err(client.failed(ClientError::TimedOut(COPY_LIMIT)));
            }
            Ok(None) => {}
            Err(source) => return Err(client.failed(source)),
        }
        // What these requests come to does not matter: a machine that has just ended takes no more, and its answer is on the way.
        if bar.interrupted().is_some() || is_given_up() {
            // Again and again: before the copy has begun there is nothing to cancel.
            let _ = client.send("DELETE", "/v1/copy", Some(&name.alone()), ANSWER_LIMIT);
        } else if bar.is_shown()
            && let Ok(answer) = client.send("GET", "/v1/copy", None, ANSWER_LIMIT)
            && let Ok(progress @ CopyProgress { total: 1.., .. }) = CopyProgress::deserialize(answer)
        {
            let _ = bar.at(progress.total - progress.left.min(progress.total), progress.total);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cost_is_said_in_words_or_as_json() {
        let report = serde_json::json!({ "rounds": 3, "sent": 5 << 20 | 1, "total-ms": 70, "paused-ms": 12 });
        assert_eq!(words(&report, false).unwrap(), "saved in 70 ms: 6 MiB in 3 rounds; paused for 12 ms");
        assert_eq!(serde_json::from_str::<Value>(&words(&report, true).unwrap()).unwrap(), report);
        assert!(words(&Value::Null, false).is_err());
    }
}
