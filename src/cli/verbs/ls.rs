//! `minivmm ls`: the machines that run.

use std::thread;
use std::time::Duration;

use devices::thread::{Role, spawn_scoped};
use serde_json::{Value, json};

use super::VerbError;
use super::show::{listing, state};
use crate::control::client::request;
use crate::control::{RunningMachine, all};

/// Limit for an answer; a machine without one is listed without details.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
const HEADINGS: [&str; 6] = ["NAME", "STATE", "PID", "UPTIME", "MEM", "CPUS"];

/// The list, as a table or as JSON. Without machines the table has only its headings.
pub(super) fn list(as_json: bool) -> Result<String, VerbError> {
    let infos = request_all(&all(), info);
    if as_json {
        return Ok(serde_json::to_string_pretty(&infos)?);
    }
    Ok(table(&infos))
}

/// The answer of each machine, in their order. All are asked in parallel: some may not answer.
fn request_all<T: Send>(places: &[RunningMachine], fetch: impl Fn(&RunningMachine) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let fetch = &fetch;
        let threads: Vec<_> = places
            .iter()
            .map(|machine| (machine, spawn_scoped(scope, Role::Cli, "ls", move || fetch(machine))))
            .collect();
        // Without a thread, or after a panic of one, this thread asks.
        let answers = threads.into_iter().map(|(machine, thread)| {
            thread.ok().and_then(|thread| thread.join().ok()).unwrap_or_else(|| fetch(machine))
        });
        answers.collect()
    })
}

fn info(machine: &RunningMachine) -> Value {
    request(&machine.socket, "GET", "/v1/machine", None, ANSWER_LIMIT).unwrap_or_else(
        // The machine is starting or ending, or its process is stopped.
        |_| json!({ "name": machine.name.as_str(), "pid": machine.pid, "state": null }),
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
        vec![text("name"), state(info), text("pid"), uptime, mem, text("cpus")]
    });
    listing(HEADINGS, rows)
}

/// In its two largest units.
pub(in crate::cli) fn uptime(seconds: f64) -> String {
    // Whole seconds.
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
        let machine = |number: u32| RunningMachine {
            name: format!("vm{number}").parse().unwrap(),
            socket: "s".into(),
            pid: Some(number),
        };
        let places: Vec<_> = (0..10).map(machine).collect();
        let all_there = std::sync::Barrier::new(places.len());
        let said = request_all(&places, |machine| {
            // No answer is returned before all requests are sent.
            all_there.wait();
            machine.pid
        });
        assert_eq!(said, (0..10).map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn uptime_has_the_units_that_suit() {
        let shown = [0.9, 59.0, 3599.0, 3600.0, 90000.0, -1.0].map(uptime);
        assert_eq!(shown, ["0s", "59s", "59m59s", "1h00m", "1d01h", "0s"]);
    }
}
