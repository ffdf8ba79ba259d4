//! `minivmm info` and `minivmm stats`: what a machine says of itself.

use serde_json::Value;

use super::ls::uptime;
use super::{ShowArgs, Speaker, VerbError};

pub(super) fn info(args: &ShowArgs) -> Result<String, VerbError> {
    let info = Speaker::to(&args.name)?.get("/v1/machine")?;
    if args.json { Ok(serde_json::to_string_pretty(&info)?) } else { Ok(facts(&info)) }
}

pub(super) fn stats(args: &ShowArgs) -> Result<String, VerbError> {
    let stats = Speaker::to(&args.name)?.get("/v1/stats")?;
    if args.json { Ok(serde_json::to_string_pretty(&stats)?) } else { Ok(flat(&stats)) }
}

/// The facts, and what was asked for as it could stand in a machine's file.
fn facts(info: &Value) -> String {
    let mut lines = Vec::new();
    for (key, value) in info.as_object().into_iter().flatten().filter(|(key, _)| *key != "spec") {
        let text = match (key.as_str(), value) {
            ("uptime", value) => value.as_f64().map(uptime).unwrap_or_default(),
            ("mem", value) => format!("{value} MiB"),
            (_, Value::String(text)) => text.clone(),
            (_, other) => other.to_string(),
        };
        lines.push(format!("{key:<8} {text}"));
    }
    if let Some(file) = info.get("spec").and_then(|spec| toml::to_string(spec).ok()) {
        lines.push(String::new());
        lines.push(file.trim_end().to_owned());
    }
    lines.join("\n")
}

/// A line for each number, then a table for each list.
fn numbers(stats: &Value) -> String {
    let mut parts = vec![String::new()];
    for (name, value) in stats.as_object().into_iter().flatten() {
        match value {
            Value::Array(items) => parts.push(table(name, items)),
            other => flatten(name, other, &mut parts[0]),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts.join("\n").trim_end().to_owned()
}

fn flatten(path: &str, value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| flatten(&format!("{path}.{key}"), value, text));
        }
        other => *text += &format!("{path} {}\n", cell(other)),
    }
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
    fn every_number_has_a_line() {
        let text = flat(&json!({ "vcpus": [{ "port-in": 1 }, { "port-in": 2 }], "memory": { "size": 3 } }));
        assert_eq!(text, "memory.size 3\nvcpus.0.port-in 1\nvcpus.1.port-in 2");
    }
}
