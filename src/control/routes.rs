//! The requests of a machine's control socket: one table, which a test compares with resources/openapi.yaml.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use virtio::console::TerminalSize;

use super::connection::Service;
use super::request::CONSOLE;
use super::request_reader::Request;
use super::router::{self, Call, Reply, Route, Typing};
use super::target::{ControlTarget, ResetError};
use super::{disk_routes, net_routes, save_routes};
use crate::machine::{BalloonError, MachineState, PauseError};

/// Limit for a reset: the machine reads its kernel, and may search a disk for it.
const RESET: Duration = Duration::from_secs(30);
/// Default limit for a pause, in seconds.
const PAUSE: u64 = 30;
/// Maximum limit for a pause.
const MAX_PAUSE: u64 = 600;

/// All requests.
pub static ROUTES: [Route<dyn ControlTarget>; 28] = [
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
        run: resume,
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
        path: "/v1/save",
        summary: "Save the machine to a folder of the host, and end it unless it shall run on",
        statuses: &[200, 204, 400, 409, 504],
        run: save_routes::save,
    },
    Route {
        method: "POST",
        path: "/v1/migrate",
        summary: "Send the machine to another process over this connection, and end it when it runs there",
        statuses: &[101, 400],
        run: save_routes::migrate,
    },
    Route {
        method: "GET",
        path: "/v1/copy",
        summary: "How far a save or migration of the machine is",
        statuses: &[200, 204],
        run: save_routes::progress,
    },
    Route {
        method: "DELETE",
        path: "/v1/copy",
        summary: "Cancel the copies of the machine that are under way, or one of them",
        statuses: &[204, 400],
        run: save_routes::cancel,
    },
    Route {
        method: "POST",
        path: "/v1/snapshot",
        summary: "Save the machine with its disks to a folder of the host, and let it go on",
        statuses: &[204, 400, 409, 504],
        run: save_routes::snapshot,
    },
    Route {
        method: "POST",
        path: "/v1/revert",
        summary: "Take memory, devices and disks back to a snapshot",
        statuses: &[204, 400, 409],
        run: save_routes::revert,
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
        run: |target, _| Reply::json(&target.balloon()),
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
        path: "/v1/disks",
        summary: "The disks of the machine as they are now",
        statuses: &[200],
        run: disk_routes::list,
    },
    Route {
        method: "PATCH",
        path: "/v1/disks/{id}",
        summary: "Grow a disk, or set its limits",
        statuses: &[200, 400, 404, 409, 504],
        run: disk_routes::change,
    },
    Route {
        method: "POST",
        path: "/v1/disks/{id}/eject",
        summary: "Take a read-only disk out of its drive, and answer when its file is closed",
        statuses: &[200, 404, 409, 504],
        run: disk_routes::eject,
    },
    Route {
        method: "POST",
        path: "/v1/disks/{id}/insert",
        summary: "Put a read-only disk into an empty drive",
        statuses: &[200, 400, 404, 409, 504],
        run: disk_routes::insert,
    },
    Route {
        method: "GET",
        path: "/v1/forwards",
        summary: "The ports of the host that lead to the guest",
        statuses: &[200],
        run: |target, _| Reply::json(&target.forwards()),
    },
    Route {
        method: "GET",
        path: "/v1/nets/{id}/forwards",
        summary: "The ports of the host that lead to the guest through one user network",
        statuses: &[200, 404, 409],
        run: net_routes::forwards,
    },
    Route {
        method: "POST",
        path: "/v1/nets/{id}/forwards",
        summary: "Open a port of the host that leads to the guest",
        statuses: &[200, 400, 404, 409],
        run: net_routes::add_forward,
    },
    Route {
        method: "DELETE",
        path: "/v1/nets/{id}/forwards",
        summary: "Close a port of the host that leads to the guest; connections go on",
        statuses: &[200, 400, 404, 409],
        run: net_routes::remove_forward,
    },
    Route {
        method: "POST",
        path: "/v1/nets/{id}/capture",
        summary: "The frames of a network interface from now on, as pcapng",
        statuses: &[200, 400, 404, 409, 503],
        run: net_routes::capture,
    },
    Route {
        method: "GET",
        path: "/v1/events",
        summary: "What happens to the machine from now on, a line of JSON each, until it ends",
        statuses: &[200, 503],
        run: |target, _| Reply::Events(target.events()),
    },
    Route {
        method: "GET",
        path: "/v1/console",
        summary: "The last 64 KiB that the guest has said and all it says from now on, and with an upgrade its keyboard",
        statuses: &[101, 200, 503],
        run: |target, call| {
            let typing = if call.upgrades_to(CONSOLE) { Typing::Yes } else { Typing::No };
            Reply::Console(target.console(), typing)
        },
    },
    Route {
        method: "PUT",
        path: "/v1/console/size",
        summary: "Tell the guest the size of the terminal that has its console",
        statuses: &[204, 400],
        run: set_terminal_size,
    },
    Route {
        method: "GET",
        path: "/v1/wait",
        summary: "How the machine ended, answered when it has",
        statuses: &[200, 503],
        run: |_, _| Reply::Wait,
    },
];

/// A machine as what a server's clients send requests to.
#[derive(Debug)]
pub(super) struct MachineService(pub(super) Arc<dyn ControlTarget>);

impl Service for MachineService {
    fn noun(&self) -> &'static str {
        "machine"
    }

    fn answer(&self, request: &Request) -> Reply {
        router::answer(&ROUTES, &*self.0, request)
    }
}

fn ended(target: &dyn ControlTarget) -> Option<Reply> {
    (target.state() == MachineState::Ended).then(|| Reply::refusal(409, "The machine has ended."))
}

/// Calls a function of the machine that returns nothing.
fn command(target: &dyn ControlTarget, run: fn(&dyn ControlTarget)) -> Reply {
    ended(target).unwrap_or_else(|| {
        run(target);
        Reply::done()
    })
}

fn resume(target: &dyn ControlTarget, _: &Call<'_>) -> Reply {
    ended(target).unwrap_or_else(|| match target.resume() {
        Ok(()) => Reply::done(),
        Err(error) => Reply::refusal(409, error.to_string()),
    })
}

fn reset(target: &dyn ControlTarget, _: &Call<'_>) -> Reply {
    if let Some(ended) = ended(target) {
        return ended;
    }
    match target.reset(RESET) {
        Ok(()) => Reply::done(),
        Err(error @ ResetError::TimedOut(_)) => Reply::refusal(504, sentence(&error)),
        Err(error @ (ResetError::Ended(_) | ResetError::CannotBoot(_))) => {
            Reply::refusal(409, sentence(&error))
        }
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

fn info(target: &dyn ControlTarget, _: &Call<'_>) -> Reply {
    Reply::json(&target.info())
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

fn pause(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    let body = call.body();
    let asked = if body.is_empty() { Ok(Pause::default()) } else { serde_json::from_slice(body) };
    let timeout = match asked {
        Ok(Pause { timeout }) if timeout <= MAX_PAUSE => timeout,
        Ok(_) => return Reply::refusal(400, format!("A machine is waited for {MAX_PAUSE} seconds at most.")),
        Err(error) => {
            return Reply::refusal(400, format!("Send nothing, or {{\"timeout\": SECONDS}}: {error}."));
        }
    };
    match target.pause(Duration::from_secs(timeout)) {
        Ok(()) => Reply::done(),
        Err(PauseError::TimedOut(_)) if timeout == 0 => {
            Reply::refusal(504, "The machine is being paused; a timeout of 0 does not wait for it.")
        }
        Err(error @ PauseError::TimedOut(_)) => {
            Reply::refusal(504, format!("{error}; it will be paused later"))
        }
        Err(error) => Reply::refusal(409, error.to_string()),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BalloonTarget {
    mib: u64,
}

fn set_balloon(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    let body = call.body();
    let mib = match serde_json::from_slice(body) {
        Ok(BalloonTarget { mib }) => mib,
        Err(error) => return Reply::refusal(400, format!("Send {{\"mib\": NUMBER}}: {error}.")),
    };
    match target.set_balloon(mib) {
        Ok(()) => Reply::done(),
        Err(error @ BalloonError::NothingLeft { .. }) => Reply::refusal(400, error.to_string()),
        Err(error) => Reply::refusal(409, error.to_string()),
    }
}

/// What `PUT /v1/console/size` takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TerminalSizeBody {
    columns: u16,
    rows: u16,
}

fn set_terminal_size(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    match serde_json::from_slice(call.body()) {
        Ok(TerminalSizeBody { columns, rows }) => {
            target.set_terminal_size(columns, rows);
            Reply::done()
        }
        Err(error) => {
            Reply::refusal(400, format!("Send {{\"columns\": NUMBER, \"rows\": NUMBER}}: {error}."))
        }
    }
}

fn stats(target: &dyn ControlTarget, _: &Call<'_>) -> Reply {
    match target.stats() {
        Some(stats) => Reply::json(&stats),
        None => ended(target)
            .unwrap_or_else(|| Reply::refusal(504, "The machine is being paused or boots; ask again.")),
    }
}

/// The body of `PUT /v1/console/size`.
pub(crate) fn terminal_size_body(size: TerminalSize) -> Value {
    serde_json::json!({ "columns": size.columns, "rows": size.rows })
}

/// The body of `PUT /v1/balloon`.
pub(crate) fn balloon_body(mib: u64) -> Value {
    serde_json::json!({ "mib": mib })
}
