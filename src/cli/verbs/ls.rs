//! `minivmm ls`: the machines that run.

use std::thread;
use std::time::Duration;

use devices::thread::{Role, spawn_scoped};
use serde_json::{Value, json};

use super::VerbError;
use super::show::columns;
use crate::control::client::request;
use crate::control::{RunningMachine, all};

/// A machine that does not answer by then is shown without what it would have said.
const PATIENCE: Duration = Duration::from_secs(2);
const HEADINGS: [&str; 6] = ["NAME", "STATE", "PID", "UPTIME", "MEM", "CPUS"];

/// The list, as a table or as JSON. No machines are the headings alone.
pub(super) fn list(as_json: bool) -> Result<String, VerbError> {
    let infos = ask_all(&all(), info);
    if as_json {
        return Ok(serde_json::to_string_pretty(&infos)?);
    }
    Ok(table(&infos))
}

/// What each of `places` says, in their order. All are asked at the same time: some may not answer.
fn ask_all<T: Send>(places: &[RunningMachine], ask: impl Fn(&RunningMachine) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let ask = &ask;
        let asked: Vec<_> = places
            .iter()
            .map(|place| (place, spawn_scoped(scope, Role::Cli, "ls", move || ask(place))))
            .collect();
        // Who gets no thread, or one that broke down, is asked by this one.
        let told = asked.into_iter().map(|(place, thread)| {
            thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_else(|| ask(place))
        });
        told.collect()
    })
}

fn info(place: &RunningMachine) -> Value {
    request(&place.socket, "GET", "/v1/machine", None, PATIENCE).unwrap_or_else(
        // It is about to start or to end, or its process is stopped.
        |_| json!({ "name": place.name.as_str(), "pid": place.pid, "state": null }),
    )
}

fn table(infos: &[Value]) -> String {
    let rows = infos.iter().map(|info| {
        let text = |key: &str| match info.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => "-".to_owned(),
        };
        let uptime = info.get("uptime").and_then(Value::as_f64).map_or("-".into(), uptime);
        let mem = info.get("mem").and_then(Value::as_u64).map_or("-".into(), |mib| format!("{mib} MiB"));
        vec![text("name"), text("state"), text("pid"), uptime, mem, text("cpus")]
    });
    columns(&std::iter::once(HEADINGS.map(String::from).into()).chain(rows).collect::<Vec<_>>())
}

/// In its two largest units.
pub(super) fn uptime(seconds: f64) -> String {
    // Whole seconds; a machine that has run for longer than a u64 holds is not to be expected.
    let seconds = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_a_line_for_each_machine_also_for_one_that_does_not_answer() {
        let infos = [
            json!({ "name": "web", "pid": 12345, "state": "paused", "uptime": 61.5, "mem": 512, "cpus": 2 }),
            json!({ "name": "a-longer-name", "pid": 7, "state": null }),
        ];
        let expected = "\
NAME           STATE   PID    UPTIME  MEM      CPUS
web            paused  12345  1m01s   512 MiB  2
a-longer-name  -       7      -       -        -";
        assert_eq!(table(&infos), expected);
    }

    #[test]
    fn those_that_do_not_answer_are_waited_for_together_and_stand_in_their_order() {
        let place = |number: u32| RunningMachine {
            name: format!("vm{number}").parse().unwrap(),
            socket: "s".into(),
            pid: Some(number),
        };
        let places: Vec<_> = (0..10).map(place).collect();
        let all_there = std::sync::Barrier::new(places.len());
        let said = ask_all(&places, |place| {
            // None goes on before all are asked.
            all_there.wait();
            place.pid
        });
        assert_eq!(said, (0..10).map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn uptime_has_the_units_that_suit() {
        let shown = [0.9, 59.0, 3599.0, 3600.0, 90000.0, -1.0].map(uptime);
        assert_eq!(shown, ["0s", "59s", "59m59s", "1h00m", "1d01h", "0s"]);
    }
}
