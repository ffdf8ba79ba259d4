//! The requests of a switch's control socket: one table, which docs/networking.md describes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::command::{Command, Commands, End};
use super::refusal::Refusal;
use crate::control::net_routes::{PCAPNG, capture_limits};
use crate::control::router::{self, Call, Reply, Route, Upgrade};
use crate::control::{Request, Service};
use crate::host::switch_port::{FRAMES, PortRequest};
use crate::spec::PortOptions;

/// See the module.
#[derive(Debug)]
pub(super) struct SwitchService(pub(super) Commands);

/// All requests.
pub(super) static ROUTES: [Route<SwitchService>; 7] = [
    Route {
        method: "GET",
        path: "/v1/switch",
        summary: "What the switch is: its ports and what they have counted, and the addresses that it has learned",
        statuses: &[200, 503, 504],
        run: |switch, _| match switch.0.ask(Command::Show) {
            Ok(info) => Reply::json(&info),
            Err(refusal) => refuse(refusal),
        },
    },
    Route {
        method: "POST",
        path: "/v1/ports",
        summary: "A port for a machine; with an upgrade to `minivmm-frames` the connection carries its frames",
        statuses: &[101, 400, 409, 503],
        run: attach,
    },
    Route {
        method: "PATCH",
        path: "/v1/ports/{name}",
        summary: "Change options of a port; those that are not said stay",
        statuses: &[204, 400, 404, 503, 504],
        run: set,
    },
    Route {
        method: "POST",
        path: "/v1/ports/{name}/capture",
        summary: "The frames of a port from now on, as pcapng",
        statuses: &[200, 400, 404, 503, 504],
        run: capture,
    },
    Route {
        method: "POST",
        path: "/v1/hold",
        summary: "Do not end before a port has come, for a minute",
        statuses: &[204, 503, 504],
        run: |switch, _| done(switch.0.ask(Command::Hold)),
    },
    Route {
        method: "POST",
        path: "/v1/stop",
        summary: "End the switch",
        statuses: &[204],
        run: |switch, _| {
            switch.0.end(End::Stopped);
            Reply::done()
        },
    },
    Route {
        method: "GET",
        path: "/v1/wait",
        summary: "How the switch ended, answered when it has",
        statuses: &[200, 503],
        run: |_, _| Reply::Wait,
    },
];

impl Service for SwitchService {
    fn noun(&self) -> &'static str {
        "switch"
    }

    fn answer(&self, request: &Request) -> Reply {
        router::answer(&ROUTES, self, request)
    }
}

fn refuse(refusal: Refusal) -> Reply {
    Reply::refusal(refusal.status, refusal.sentence)
}

fn done(result: Result<(), Refusal>) -> Reply {
    result.map_or_else(refuse, |()| Reply::done())
}

/// Reads a body.
fn read<'a, T: Deserialize<'a>>(call: &Call<'a>, example: &str) -> Result<T, Refusal> {
    serde_json::from_slice(call.body()).map_err(|error| Refusal::new(400, format!("send {example}: {error}")))
}

/// A change to a port. An option that there is not would go unnoticed.
fn change(call: &Call<'_>) -> Result<PortOptions, Refusal> {
    const EXAMPLE: &str = "options of a port, such as {\"delay\": \"20ms\"}";
    let options: BTreeMap<String, Value> = read(call, EXAMPLE)?;
    for (name, value) in options {
        let one = serde_json::from_value::<PortOptions>(json!({ name.as_str(): value }));
        if one.is_ok_and(|one| one.is_empty()) {
            return Err(Refusal::new(400, format!("a port has no option `{}`", name.escape_debug())));
        }
    }
    read(call, EXAMPLE)
}

fn set(switch: &SwitchService, call: &Call<'_>) -> Reply {
    done(change(call).and_then(|change| {
        let port = call.parameter(0).to_owned();
        switch.0.ask(|answer| Command::Set { port, change, answer })?
    }))
}

fn capture(switch: &SwitchService, call: &Call<'_>) -> Reply {
    let limits = match capture_limits(call) {
        Ok(limits) => limits,
        Err(refusal) => return refusal,
    };
    let port = call.parameter(0).to_owned();
    match switch.0.ask(|answer| Command::Capture { port, limits, answer }) {
        Ok(Ok(stream)) => Reply::Bytes(PCAPNG, Box::new(stream)),
        Ok(Err(refusal)) | Err(refusal) => refuse(refusal),
    }
}

fn attach(switch: &SwitchService, call: &Call<'_>) -> Reply {
    if !call.upgrades_to(FRAMES) {
        return Reply::refusal(
            400,
            format!("a port is had with `Connection: Upgrade` and `Upgrade: {FRAMES}`"),
        );
    }
    let request = read::<PortRequest>(
        call,
        "{\"machine\": NAME, \"interface\": \"net0\", \"mac\": ADDRESS, \"mtu\": 1500} and options of the port",
    );
    let reserved = request.and_then(|request| switch.0.ask(|answer| Command::Reserve(request, answer))?);
    let reserved = match reserved {
        Ok(reserved) => reserved,
        Err(refusal) => return refuse(refusal),
    };
    let place = Place { commands: switch.0.clone(), ticket: Some(reserved.ticket) };
    Reply::Upgrade(Upgrade {
        to: FRAMES,
        fields: vec![("Port-Name", reserved.name)],
        then: Box::new(move |stream, begun| place.take(stream, begun)),
    })
}

/// A reserved port, released on drop.
#[derive(Debug)]
struct Place {
    commands: Commands,
    ticket: Option<u64>,
}

impl Place {
    fn take(mut self, stream: std::os::unix::net::UnixStream, begun: Vec<u8>) {
        if let Some(ticket) = self.ticket.take() {
            self.commands.send(Command::Attach(ticket, stream, begun));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.commands.send(Command::Release(ticket));
        }
    }
}
