//! The verbs for switches that run.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::show;
use super::{SwitchCaptureArgs, SwitchNameArgs, SwitchSetArgs, SwitchShowArgs, SwitchVerb};
use crate::cli::exit::Status;
use crate::cli::verbs::{CaptureFailure, ListArgs, write_frames};
use crate::cli::{print, report_error};
use crate::control::client::{ByteStream, ClientError, request};
use crate::control::{RunningMachine, all_switches, find_switch};
use crate::host::lock::pid_clause;
use crate::spec::{DeviceError, PortOptions, SwitchName};
use crate::switch::SwitchInfo;

/// Limit for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The same for each switch of a list.
const LIST_LIMIT: Duration = Duration::from_secs(2);
/// Limit for the end of a switch.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks at a switch that ends.
const END_DELAY: Duration = Duration::from_millis(10);

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
enum VerbError {
    #[error("no switch called {name} runs here{}", running(.others, .name))]
    NoSwitch { name: SwitchName, others: Vec<String> },
    #[error("the switch {name} runs{}, and {}", pid_clause(.pid), reason(.error))]
    Unreachable { name: SwitchName, pid: Option<u32>, error: ClientError },
    #[error("the switch {name} has no port `{port}`; `minivmm switch show {name}` lists its ports")]
    NoPort { name: SwitchName, port: String },
    #[error("{0}")]
    Refused(String),
    #[error("the switch {name}{} has not ended within {} s; `kill -9` ends it in any case", pid_clause(.pid), END_LIMIT.as_secs())]
    NotEnded { name: SwitchName, pid: Option<u32> },
    #[error(transparent)]
    Capture(#[from] CaptureFailure),
    #[error(transparent)]
    Option(#[from] DeviceError),
    #[error("the answer of the switch cannot be shown")]
    Json(#[from] serde_json::Error),
}

/// Why a switch has not done what it was asked for.
pub(super) fn reason(error: &ClientError) -> String {
    match error {
        ClientError::Unreachable(error) => format!("its socket does not answer ({error})"),
        ClientError::TimedOut(limit) => {
            let seconds = limit.as_secs();
            format!("it did not answer within {seconds} s: its process is stopped, or the host is overloaded")
        }
        ClientError::Protocol(_) | ClientError::Refused { .. } => error.to_string(),
    }
}

/// What runs in place of a switch that was not found.
fn running(others: &[String], name: &SwitchName) -> String {
    match others {
        [] => format!(", nor any other; `minivmm switch {name}` starts it"),
        names => format!("; those that do are {}, and `minivmm switch {name}` starts it", names.join(", ")),
    }
}

/// Where a port is among a switch's resources. Other letters than those of a port's name would make another request.
fn port_path(name: &SwitchName, port: &str) -> Result<String, VerbError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if port.is_empty() || !port.bytes().all(allowed) {
        return Err(VerbError::NoPort { name: name.clone(), port: port.to_owned() });
    }
    Ok(format!("/v1/ports/{port}"))
}

/// Runs a verb; an error is printed and is a failure.
pub(super) fn run(verb: &SwitchVerb) -> Status {
    let done = match verb {
        SwitchVerb::Ls(ListArgs { json, .. }) => list(*json).map(Some),
        SwitchVerb::Show(SwitchShowArgs { name, json, .. }) => show(name, *json).map(Some),
        SwitchVerb::Set(args) => set(args).map(|()| None),
        SwitchVerb::Capture(args) => capture(args).map(|()| None),
        SwitchVerb::Stop(SwitchNameArgs { name, .. }) => stop(name).map(|()| None),
    };
    match done {
        Ok(Some(text)) => print(&text, Status::Done),
        Ok(None) => Status::Done,
        Err(error @ VerbError::Option(_)) => report_error(&error, Status::Usage),
        Err(error) => report_error(&error, Status::Failed),
    }
}

fn find(name: &SwitchName) -> Result<RunningMachine, VerbError> {
    find_switch(name).ok_or_else(|| VerbError::NoSwitch {
        name: name.clone(),
        others: all_switches().iter().map(|other| other.name.to_string()).collect(),
    })
}

fn send(name: &SwitchName, method: &str, path: &str, body: Option<&Value>) -> Result<Value, VerbError> {
    let running = find(name)?;
    request(&running.socket, method, path, body, ANSWER_LIMIT).map_err(|error| failed(&running, name, error))
}

/// Why a request to a switch that was found has no answer.
fn failed(running: &RunningMachine, name: &SwitchName, error: ClientError) -> VerbError {
    let unreachable = |error| VerbError::Unreachable { name: name.clone(), pid: running.pid, error };
    match error {
        ClientError::Refused { reason, .. } => VerbError::Refused(reason),
        // It may have ended since it was found.
        error @ ClientError::Unreachable(_) => find(name).err().unwrap_or_else(|| unreachable(error)),
        error => unreachable(error),
    }
}

fn capture(args: &SwitchCaptureArgs) -> Result<(), VerbError> {
    let running = find(&args.name)?;
    let path = format!("{}/capture", port_path(&args.name, &args.port)?);
    write_frames(&args.output, |body| {
        ByteStream::open(&running.socket, "POST", &path, body)
            .map_err(|error| failed(&running, &args.name, error))
    })
}

fn list(as_json: bool) -> Result<String, VerbError> {
    let infos = all_switches().into_iter().map(|running| {
        let answer = request(&running.socket, "GET", "/v1/switch", None, LIST_LIMIT);
        (running, answer.ok())
    });
    let infos: Vec<_> = infos.collect();
    if as_json {
        let all = infos.iter().map(|(running, info)| show::list_entry(running, info.as_ref()));
        return Ok(serde_json::to_string_pretty(&all.collect::<Vec<_>>())?);
    }
    Ok(show::list(&infos))
}

fn show(name: &SwitchName, as_json: bool) -> Result<String, VerbError> {
    let info = send(name, "GET", "/v1/switch", None)?;
    if as_json {
        return Ok(serde_json::to_string_pretty(&info)?);
    }
    Ok(show::switch(&serde_json::from_value::<SwitchInfo>(info)?))
}

fn set(args: &SwitchSetArgs) -> Result<(), VerbError> {
    let change: PortOptions = args.options.join(",").parse()?;
    let path = port_path(&args.name, &args.port)?;
    send(&args.name, "PATCH", &path, Some(&serde_json::to_value(change)?)).map(drop)
}

fn stop(name: &SwitchName) -> Result<(), VerbError> {
    let running = find(name)?;
    send(name, "POST", "/v1/stop", None)?;
    let until = Instant::now() + END_LIMIT;
    // The name is free when its process has let go of the lock.
    while find_switch(name).is_some_and(|now| now.pid == running.pid) {
        if Instant::now() >= until {
            return Err(VerbError::NotEnded { name: name.clone(), pid: running.pid });
        }
        thread::sleep(END_DELAY);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_that_cannot_be_is_refused_before_a_request_is_made_of_it() {
        let lab = "lab".parse().unwrap();
        assert_eq!(port_path(&lab, "vm-0.net_0").unwrap(), "/v1/ports/vm-0.net_0");
        for port in ["", "a b", "a/b", "a?b", "a\r\nb", "ö"] {
            let error = port_path(&lab, port).unwrap_err().to_string();
            assert!(
                error.contains(&format!("no port `{port}`"))
                    && error.contains("`minivmm switch show lab` lists"),
                "{error}"
            );
        }
    }
}
