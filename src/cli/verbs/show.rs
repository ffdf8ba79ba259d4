//! `minivmm info` and `minivmm stats`: a machine's description and counters.

use serde_json::Value;

use super::ls::uptime;
use super::{MachineClient, ShowArgs, VerbError};
use crate::image::printable;

pub(super) fn info(args: &ShowArgs) -> Result<String, VerbError> {
    let info = MachineClient::find(&args.name)?.get("/v1/machine")?;
    if args.json { Ok(serde_json::to_string_pretty(&info)?) } else { Ok(facts(&info)) }
}

pub(super) fn stats(args: &ShowArgs) -> Result<String, VerbError> {
    let stats = MachineClient::find(&args.name)?.get("/v1/stats")?;
    if args.json { Ok(serde_json::to_string_pretty(&stats)?) } else { Ok(numbers(&stats)) }
}

/// The facts, the banner, and the spec as in a machine's file.
fn facts(info: &Value) -> String {
    let mut lines = Vec::new();
    for (key, value) in
        info.as_object().into_iter().flatten().filter(|(key, _)| {
            !["spec", "made-of", "forwards", "full-disks", "disks"].contains(&key.as_str())
        })
    {
        let text = match (key.as_str(), value) {
            ("uptime", value) => value.as_f64().map(uptime).unwrap_or_default(),
            ("mem", value) => format!("{value} MiB"),
            ("state", _) => state(info),
            (_, Value::String(text)) => text.clone(),
            (_, other) => other.to_string(),
        };
        lines.push(format!("{key:<8} {text}"));
    }
    let made_of: Vec<_> = info.get("made-of").and_then(Value::as_array).into_iter().flatten().collect();
    if !made_of.is_empty() {
        lines.push(String::new());
        let text =
            |fact: &Value, key: &str| fact.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let rows: Vec<_> =
            made_of.iter().map(|fact| vec![text(fact, "name").to_lowercase(), text(fact, "value")]).collect();
        lines.push(columns(&rows));
    }
    let disks = info.get("disks").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if !disks.is_empty() {
        lines.push(String::new());
        lines.push(disk_table(disks));
    }
    if let Some(file) = info.get("spec").and_then(|spec| toml::to_string(spec).ok()) {
        lines.push(String::new());
        lines.push(file.trim_end().to_owned());
    }
    lines.join("\n")
}

/// Whether it runs, and why it does not.
pub(super) fn state(info: &Value) -> String {
    let state =
        info.get("state").map_or_else(|| "-".to_owned(), |state| state.as_str().unwrap_or("-").to_owned());
    let full: Vec<_> =
        info.get("full-disks").and_then(Value::as_array).into_iter().flatten().map(cell).collect();
    if full.is_empty() { state } else { format!("{state} (no room for {})", full.join(", ")) }
}

/// The disks as they are now; a limit that there is not is a dash.
fn disk_table(disks: &[Value]) -> String {
    let rows = disks.iter().map(|disk| {
        let field = |key: &str| disk.get(key).filter(|value| !value.is_null());
        let text = |key: &str| field(key).map_or_else(|| "-".into(), cell);
        let in_bytes = |key: &str| field(key).map_or_else(|| "-".into(), |value| amount("bytes-", value));
        let path = field("path").map_or_else(|| "no disk in it".into(), |path| printable(&cell(path)));
        vec![text("id"), in_bytes("size"), text("iops"), in_bytes("bps"), path]
    });
    listing(["disk", "size", "iops", "bps", "path"], rows)
}

/// A line for each number, then a table for each list.
fn numbers(stats: &Value) -> String {
    let (mut single, mut tables) = (String::new(), Vec::new());
    for (name, value) in stats.as_object().into_iter().flatten() {
        match value {
            Value::Array(items) => tables.push(table(name, items)),
            other => flatten(name, other, &mut single),
        }
    }
    let parts: Vec<_> = std::iter::once(single).chain(tables).filter(|part| !part.is_empty()).collect();
    parts.join("\n").trim_end().to_owned()
}

fn flatten(path: &str, value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| flatten(&format!("{path}.{key}"), value, text));
        }
        other => *text += &format!("{path} {}\n", amount(path, other)),
    }
}

/// A line for each of `items`, by its name or its index; texts before numbers.
fn table(name: &str, items: &[Value]) -> String {
    let fields = items.first().and_then(Value::as_object).into_iter().flatten();
    let mut keys: Vec<_> =
        fields.filter(|(key, _)| *key != "name").map(|(key, value)| (!value.is_string(), key)).collect();
    keys.sort();
    let heading = std::iter::once(name.to_owned()).chain(keys.iter().map(|(_, key)| (*key).clone()));
    let mut rows = vec![heading.collect::<Vec<_>>()];
    for (at, item) in items.iter().enumerate() {
        let label = item.get("name").map_or_else(|| at.to_string(), cell);
        let cells =
            keys.iter().map(|(_, key)| item.get(key.as_str()).map_or("-".into(), |value| amount(key, value)));
        rows.push(std::iter::once(label).chain(cells).collect());
    }
    columns(&rows) + "\n"
}

/// Rows below headings.
pub(in crate::cli) fn listing<const N: usize>(
    headings: [&str; N],
    rows: impl Iterator<Item = Vec<String>>,
) -> String {
    columns(&std::iter::once(headings.map(String::from).into()).chain(rows).collect::<Vec<_>>())
}

/// Rows under each other, each column as wide as its widest cell.
fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().enumerate();
        let cells = cells.map(|(at, cell)| format!("{cell:<width$}", width = width(at).unwrap_or(0)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Bytes in words.
pub(in crate::cli) fn size(bytes: u64) -> String {
    amount("bytes-", &bytes.into())
}

/// A value for people: bytes in the largest unit that leaves a number before the point. `--json` is exact.
fn amount(path: &str, value: &Value) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let in_bytes = path.starts_with("memory.") || path.starts_with("bytes-");
    let Some(count) = value.as_u64().filter(|_| in_bytes) else { return cell(value) };
    let (mut count, mut rest, mut unit) = (count, 0, 0);
    while count >= 1024 && unit + 1 < UNITS.len() {
        (rest, count, unit) = (count % 1024, count / 1024, unit + 1);
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    match rest * 10 / 1024 {
        tenths @ 1.. if count < 100 => format!("{count}.{tenths} {name}"),
        _ => format!("{count} {name}"),
    }
}

fn cell(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn facts_are_followed_by_the_machines_file() {
        let spec = crate::spec::Spec::new("/k").with_mem("64".parse().unwrap());
        let spec = spec.with_disk("a.raw,ro".parse().unwrap());
        let text = facts(&json!({ "name": "vm0", "uptime": 5.0, "mem": 64, "spec": spec }));
        let (facts, file) = text.split_once("\n\n").unwrap();
        assert_eq!(facts.lines().collect::<Vec<_>>(), ["mem      64 MiB", "name     vm0", "uptime   5s"]);
        assert_eq!(toml::from_str::<crate::spec::Spec>(file).unwrap(), spec);
    }

    #[test]
    fn state_of_a_machine_without_room_says_so() {
        let full = json!({ "state": "paused", "full-disks": ["vda", "vdc"] });
        assert_eq!(facts(&full), "state    paused (no room for vda, vdc)");
        assert_eq!(state(&json!({ "state": "running", "full-disks": [] })), "running");
        assert_eq!(state(&json!({ "state": null })), "-");
    }

    #[test]
    fn disks_are_shown_as_they_are_now() {
        let text = facts(&json!({ "name": "vm0", "disks": [
            { "id": "vda", "path": "/vm0.raw", "size": 3 << 20, "ro": false, "iops": 500, "bps": 10 << 20 },
            { "id": "vdb", "path": null, "size": 0, "ro": true, "iops": null, "bps": null },
        ] }));
        let expected = "\
name     vm0

disk  size   iops  bps     path
vda   3 MiB  500   10 MiB  /vm0.raw
vdb   0 B    -     -       no disk in it";
        assert_eq!(text, expected);
    }

    #[test]
    fn every_number_has_a_place() {
        let text = numbers(&json!({
            "vcpus": [{ "mmio-read": 10, "port-in": 1 }, { "mmio-read": 0, "port-in": 2 }],
            "memory": { "size": 3 },
            "devices": [{ "errors": 0, "kind": "block", "name": "vda" }, { "errors": 5, "name": "net0" }],
        }));
        let expected = "\
memory.size 3 B

devices  kind   errors
vda      block  0
net0     -      5

vcpus  mmio-read  port-in
0      10         1
1      0          2";
        assert_eq!(text, expected);
        let real = numbers(&serde_json::to_value(crate::Stats::sample()).unwrap());
        let vda = real.lines().find(|line| line.starts_with("vda")).unwrap();
        let cells: Vec<_> = vda.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(cells, ["vda", "block", "4 KiB", "0 B", "0", "0", "0", "7", "0"]);
    }

    #[test]
    fn bytes_are_told_in_the_unit_that_suits() {
        let amounts = [0, 1023, 1024, 1536, 8 << 30, (8 << 30) + (1 << 29), u64::MAX];
        let said = amounts.map(|count| amount("memory.size", &json!(count)));
        assert_eq!(said, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "8 GiB", "8.5 GiB", "16383 PiB"]);
        assert_eq!(amount("requests", &json!(4096)), "4096");
    }
}
