//! Switches as tables.

use serde_json::{Value, json};

use crate::cli::verbs::{listing, uptime};
use crate::control::RunningMachine;
use crate::spec::PortOptions;
use crate::switch::{Direction, PortInfo, SwitchInfo};

const LIST: [&str; 5] = ["NAME", "PID", "UPTIME", "PORTS", "ADDRESSES"];
const PORTS: [&str; 9] =
    ["PORT", "LINK", "VLAN", "ADDRESS", "FRAMES IN", "OUT", "DROPPED IN", "OUT", "OPTIONS"];
const STATIONS: [&str; 5] = ["VLAN", "ADDRESS", "PORT", "AGE", "DHCP"];

/// The switches that run, each with its answer if it gave one.
pub(super) fn list(infos: &[(RunningMachine, Option<Value>)]) -> String {
    let rows = infos.iter().map(|(running, info)| {
        let count = |key: &str| info.as_ref().and_then(|info| info.get(key)?.as_array().map(Vec::len));
        let count = |key: &str| count(key).map_or("-".into(), |count| count.to_string());
        let since = info.as_ref().and_then(|info| info.get("uptime")?.as_f64());
        let pid = running.pid.map_or("-".into(), |pid| pid.to_string());
        vec![running.name.to_string(), pid, since.map_or("-".into(), uptime), count("ports"), count("table")]
    });
    listing(LIST, rows)
}

/// One of them as JSON.
pub(super) fn list_entry(running: &RunningMachine, info: Option<&Value>) -> Value {
    info.cloned()
        .unwrap_or_else(|| json!({ "name": running.name.as_str(), "pid": running.pid, "ports": null }))
}

/// A switch with its ports, what they dropped, and its addresses.
pub(super) fn switch(info: &SwitchInfo) -> String {
    let kept = if info.kept { ", kept" } else { "" };
    let head = format!("switch {}, process {}, up {}{kept}", info.name, info.pid, uptime(info.uptime));
    let mut parts = vec![head];
    if !info.ports.is_empty() {
        parts.push(listing(PORTS, info.ports.iter().map(port)));
    }
    let drops: Vec<_> = info.ports.iter().flat_map(drops).collect();
    if !drops.is_empty() {
        parts.push(drops.join("\n"));
    }
    let forwards: Vec<_> =
        info.ports.iter().flat_map(|port| &port.forwards).map(|forward| forward.to_string()).collect();
    if !forwards.is_empty() {
        parts.push(forwards.join("\n"));
    }
    if !info.table.is_empty() {
        let rows = info.table.iter().map(|station| {
            let age = uptime(std::time::Duration::from_secs(station.age).as_secs_f64());
            let ip = station.ip.map_or_else(|| "-".into(), |ip| ip.to_string());
            vec![station.vlan.to_string(), station.mac.clone(), station.port.clone(), age, ip]
        });
        parts.push(listing(STATIONS, rows));
    }
    parts.join("\n\n")
}

fn port(port: &PortInfo) -> Vec<String> {
    let (to, from) = (&port.to_guest, &port.from_guest);
    vec![
        port.name.clone(),
        if port.link { "up" } else { "down" }.into(),
        vlan(&port.options),
        port.mac.map_or_else(|| port.kind.word().to_owned(), |mac| mac.to_string()),
        to.frames.to_string(),
        from.frames.to_string(),
        to.dropped().to_string(),
        from.dropped().to_string(),
        options(&port.options),
    ]
}

fn vlan(options: &PortOptions) -> String {
    match (&options.trunk, options.vlan) {
        (Some(trunk), _) => format!("trunk {trunk}"),
        (None, Some(vlan)) => vlan.to_string(),
        (None, None) => "1".into(),
    }
}

/// The options beside the VLAN.
fn options(all: &PortOptions) -> String {
    let mut rest = all.clone();
    (rest.vlan, rest.trunk) = (None, None);
    rest.to_string()
}

/// A line for each direction of a port that dropped frames.
fn drops(port: &PortInfo) -> Vec<String> {
    let line = |way: &str, direction: &Direction| {
        let reasons: Vec<_> =
            direction.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        (!reasons.is_empty()).then(|| format!("{} dropped {way}: {}", port.name, reasons.join(", ")))
    };
    [line("in", &port.to_guest), line("out", &port.from_guest)].into_iter().flatten().collect()
}
