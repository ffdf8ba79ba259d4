//! The requests of the control socket: one table, which a test compares with resources/openapi.yaml.

#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::answer::Answer;
use super::request_reader::Request;
use super::target::{ControlTarget, ResetError};
use crate::machine::{BalloonError, MachineState, PauseError};

/// Limit for a reset: the machine reads its kernel, and may search a disk for it.
const RESET: Duration = Duration::from_secs(30);
/// Default limit for a pause, in seconds.
const PAUSE: u64 = 30;
/// Maximum limit for a pause.
const MAX_PAUSE: u64 = 600;

/// One kind of request.
#[derive(Debug)]
pub struct Route {
    /// HTTP method.
    pub method: &'static str,
    /// Path, with its leading slash.
    pub path: &'static str,
    /// Summary in one line.
    pub summary: &'static str,
    /// Statuses of its answers, besides those of every request: see `default` in the OpenAPI file.
    pub statuses: &'static [u16],
    run: fn(&dyn ControlTarget, &[u8]) -> Reply,
}

/// The outcome of a request.
#[derive(Debug)]
pub(super) enum Reply {
    /// An answer.
    Answer(Answer),
    /// An answer once the machine has ended.
    Wait,
    /// Events until the machine has ended.
    Events,
    /// The console until the machine has ended or the client disconnects.
    Console,
}

/// All requests.
pub static ROUTES: [Route; 12] = [
    Route {
        method: "GET",
        path: "/v1/machine",
        summary: "What the machine is, and whether it runs",
        statuses: &[200],
        run: info,
    },
    Route {
        method: "POST",
        path: "/v1/pause",
        summary: "Bring the machine to rest, and answer when it does rest",
        statuses: &[204, 400, 409, 504],
        run: pause,
    },
    Route {
        method: "POST",
        path: "/v1/resume",
        summary: "Resume a paused machine",
        statuses: &[204, 409],
        run: |target, _| command(target, |it| it.resume()),
    },
    Route {
        method: "POST",
        path: "/v1/reset",
        summary: "Stop the guest where it is and boot it again, and answer when it boots",
        statuses: &[204, 409, 504],
        run: reset,
    },
    Route {
        method: "POST",
        path: "/v1/power-button",
        summary: "Press the power button; what comes of it is up to the guest",
        statuses: &[204, 409],
        run: |target, _| command(target, |it| it.power_button()),
    },
    Route {
        method: "POST",
        path: "/v1/kill",
        summary: "End the machine where it is",
        statuses: &[204, 409],
        run: |target, _| command(target, |it| it.kill()),
    },
    Route {
        method: "GET",
        path: "/v1/balloon",
        summary: "How much memory the guest shall leave to the host, and how much it does",
        statuses: &[200],
        run: |target, _| json(&target.balloon()),
    },
    Route {
        method: "PUT",
        path: "/v1/balloon",
        summary: "Set how much memory the guest shall leave to the host",
        statuses: &[204, 400, 409],
        run: set_balloon,
    },
    Route {
        method: "GET",
        path: "/v1/stats",
        summary: "What the machine has done since its guest booted last",
        statuses: &[200, 409, 504],
        run: stats,
    },
    Route {
        method: "GET",
        path: "/v1/events",
        summary: "What happens to the machine from now on, a line of JSON each, until it ends",
        statuses: &[200, 503],
        run: |_, _| Reply::Events,
    },
    Route {
        method: "GET",
        path: "/v1/console",
        summary: "The last 64 KiB that the guest has said and all it says from now on, and with an upgrade its keyboard",
        statuses: &[101, 200, 503],
        run: |_, _| Reply::Console,
    },
    Route {
        method: "GET",
        path: "/v1/wait",
        summary: "How the machine ended, answered when it has",
        statuses: &[200, 503],
        run: |_, _| Reply::Wait,
    },
];

/// Carries out a request.
pub(super) fn answer(target: &dyn ControlTarget, request: &Request) -> Reply {
    let (method, path) = (request.head.method.as_str(), request.head.path.as_str());
    let on_path = || ROUTES.iter().filter(|route| route.path == path);
    if let Some(route) = on_path().find(|route| route.method == method) {
        return (route.run)(target, &request.body);
    }
    let methods: Vec<_> = on_path().map(|route| route.method).collect();
    let answer = if methods.is_empty() {
        let mut paths: Vec<_> = ROUTES.iter().map(|route| route.path).collect();
        // Routes of one path stand next to each other.
        paths.dedup();
        Answer::refusal(404, format!("There is no such path here; there are {}.", paths.join(", ")))
    } else {
        let methods = methods.join(", ");
        Answer::refusal(405, format!("This path takes {methods}.")).allowing(methods)
    };
    Reply::Answer(answer)
}

fn refuse(status: u16, sentence: impl AsRef<str>) -> Reply {
    Reply::Answer(Answer::refusal(status, sentence))
}

fn json(value: &impl serde::Serialize) -> Reply {
    match serde_json::to_value(value) {
        Ok(value) => Reply::Answer(Answer::json(value)),
        Err(error) => refuse(500, format!("the answer cannot be written as JSON: {error}")),
    }
}

fn ended(target: &dyn ControlTarget) -> Option<Reply> {
    (target.state() == MachineState::Ended).then(|| refuse(409, "The machine has ended."))
}

/// Calls a function of the machine that returns nothing.
fn command(target: &dyn ControlTarget, run: fn(&dyn ControlTarget)) -> Reply {
    ended(target).unwrap_or_else(|| {
        run(target);
        Reply::Answer(Answer::done())
    })
}

fn reset(target: &dyn ControlTarget, _: &[u8]) -> Reply {
    if let Some(ended) = ended(target) {
        return ended;
    }
    match target.reset(RESET) {
        Ok(()) => Reply::Answer(Answer::done()),
        Err(error @ ResetError::TimedOut(_)) => refuse(504, sentence(&error)),
        Err(error @ ResetError::Ended(_)) => refuse(409, sentence(&error)),
    }
}

/// An error as a sentence of its own.
fn sentence(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    let end = if text.ends_with('.') { "" } else { "." };
    format!("{first}{}{end}", letters.as_str())
}

fn info(target: &dyn ControlTarget, _: &[u8]) -> Reply {
    json(&target.info())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Pause {
    /// In seconds.
    timeout: u64,
}

impl Default for Pause {
    fn default() -> Self {
        Pause { timeout: PAUSE }
    }
}

fn pause(target: &dyn ControlTarget, body: &[u8]) -> Reply {
    let asked = if body.is_empty() { Ok(Pause::default()) } else { serde_json::from_slice(body) };
    let timeout = match asked {
        Ok(Pause { timeout }) if timeout <= MAX_PAUSE => timeout,
        Ok(_) => return refuse(400, format!("A machine is waited for {MAX_PAUSE} seconds at most.")),
        Err(error) => return refuse(400, format!("Send nothing, or {{\"timeout\": SECONDS}}: {error}.")),
    };
    match target.pause(Duration::from_secs(timeout)) {
        Ok(()) => Reply::Answer(Answer::done()),
        Err(PauseError::TimedOut(_)) if timeout == 0 => {
            refuse(504, "The machine is being paused; a timeout of 0 does not wait for it.")
        }
        Err(error @ PauseError::TimedOut(_)) => refuse(504, format!("{error}; it will be paused later")),
        Err(error) => refuse(409, error.to_string()),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BalloonTarget {
    mib: u64,
}

fn set_balloon(target: &dyn ControlTarget, body: &[u8]) -> Reply {
    let mib = match serde_json::from_slice(body) {
        Ok(BalloonTarget { mib }) => mib,
        Err(error) => return refuse(400, format!("Send {{\"mib\": NUMBER}}: {error}.")),
    };
    match target.set_balloon(mib) {
        Ok(()) => Reply::Answer(Answer::done()),
        Err(error @ BalloonError::NothingLeft { .. }) => refuse(400, error.to_string()),
        Err(error) => refuse(409, error.to_string()),
    }
}

fn stats(target: &dyn ControlTarget, _: &[u8]) -> Reply {
    match target.stats() {
        Some(stats) => json(&stats),
        None => {
            ended(target).unwrap_or_else(|| refuse(504, "The machine is being paused or boots; ask again."))
        }
    }
}

/// The body of `PUT /v1/balloon`.
pub(crate) fn balloon_body(mib: u64) -> Value {
    serde_json::json!({ "mib": mib })
}
