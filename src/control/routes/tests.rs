use std::collections::BTreeMap;

use super::*;

const FILE: &str = include_str!("../../../resources/openapi.yaml");

/// Summary and statuses of each operation in the OpenAPI file, by method and path. Parses only this file's
/// subset of YAML.
fn operations() -> BTreeMap<(String, String), (String, Vec<u16>)> {
    let (_, paths) = FILE.split_once("\npaths:\n").unwrap();
    let mut operations = BTreeMap::new();
    let (mut path, mut method) = (String::new(), String::new());
    for line in paths.lines().take_while(|line| line.is_empty() || line.starts_with(' ')) {
        let word = line.trim().trim_end_matches(':').trim_matches('"');
        match line.len() - line.trim_start().len() {
            2 => path = word.into(),
            // Of all methods of a path.
            4 if word == "parameters" => {}
            4 => {
                method = word.to_uppercase();
                operations.insert((method.clone(), path.clone()), (String::new(), Vec::new()));
            }
            6 => {
                if let Some(summary) = word.strip_prefix("summary: ") {
                    operations.get_mut(&(method.clone(), path.clone())).unwrap().0 = summary.into();
                }
            }
            8 => {
                if let Ok(status) = word.parse() {
                    operations.get_mut(&(method.clone(), path.clone())).unwrap().1.push(status);
                }
            }
            _ => {}
        }
    }
    operations
}

#[test]
fn the_openapi_file_describes_each_route_and_no_other() {
    let table = ROUTES.iter().map(|route| {
        let key = (route.method.to_owned(), route.path.to_owned());
        (key, (route.summary.to_owned(), route.statuses.to_vec()))
    });
    assert_eq!(operations(), table.collect());
}

#[test]
fn the_openapi_file_names_every_field_of_the_answers() {
    let target = super::super::testing::Fake::default();
    let forward = target.add_forward(None, "0:22".parse().unwrap()).unwrap();
    let said = [
        serde_json::to_value(forward).unwrap(),
        serde_json::to_value(target.info()).unwrap(),
        serde_json::to_value(target.balloon()).unwrap(),
        serde_json::to_value(target.disks().first().unwrap()).unwrap(),
        serde_json::to_value(target.stats().unwrap()).unwrap(),
        serde_json::to_value(crate::VcpuStats::default()).unwrap(),
        serde_json::to_value(crate::MemoryStats::default()).unwrap(),
        serde_json::to_value(target.stats().unwrap().devices.first().unwrap()).unwrap(),
    ];
    for field in said.iter().flat_map(|value| value.as_object().unwrap().keys()) {
        assert!(FILE.contains(&format!(" {field}:")), "{field}");
    }
}

#[test]
fn the_openapi_file_says_of_each_operation_that_it_can_be_refused() {
    let (_, paths) = FILE.split_once("\npaths:\n").unwrap();
    let defaults =
        paths.matches("\n        default:\n          $ref: \"#/components/responses/Refused\"\n").count();
    assert_eq!(defaults, ROUTES.len());
    let (_, refused) = FILE.split_once("\n    Refused:\n").unwrap();
    let (refused, _) = refused.split_once("content:").unwrap();
    for status in [400, 404, 405, 408, 411, 413, 431, 500, 503, 505] {
        assert!(refused.contains(&status.to_string()), "{status}");
    }
}

#[test]
fn the_openapi_file_names_the_limits_that_are_kept() {
    use super::super::{Limits, MAX_BODY, MAX_HEAD};
    use crate::host::capture::{MOST_CAPTURES, MOST_WAITING};
    let Limits { connections, streams, request, write, .. } = Limits::DEFAULT;
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    for limit in [
        format!("at most {} KiB, its body {} KiB", MAX_HEAD >> 10, MAX_BODY >> 10),
        format!("must be there within {} seconds", request.as_secs()),
        format!("must be taken within {} seconds", write.as_secs()),
        format!("There are {connections} connections at most, of which {streams} may wait"),
        format!("Where all {connections} are taken"),
        format!("maximum: {MAX_PAUSE} default: {PAUSE}"),
        format!("{} MiB wait for it", MOST_WAITING >> 20),
        format!("There are {MOST_CAPTURES} captures of an interface at most"),
    ] {
        assert!(words(FILE).contains(&limit), "{limit}");
    }
}

/// The values of the enum under `schema` and `field`.
fn values(schema: &str, field: &str) -> Vec<String> {
    let (_, schema) = FILE.split_once(&format!("\n    {schema}:\n")).unwrap();
    let field = schema.split(&format!(" {field}:\n")).nth(1).unwrap();
    let (_, list) = field.split_once("enum: [").unwrap();
    list.split_once(']').unwrap().0.split(", ").map(str::to_owned).collect()
}

fn text(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).unwrap().as_str().unwrap().to_owned()
}

#[test]
fn the_openapi_file_names_every_value_of_an_answers_enums() {
    use crate::{MachineEvent, MachineState};
    let states = [MachineState::Running, MachineState::Paused, MachineState::Ended];
    let (device, reason) = ("vda".to_owned(), "it is away".to_owned());
    let nets = crate::machine::NetHandles::default();
    let bound = nets.add_forward(None, "0:22".parse().unwrap()).unwrap();
    let events = [
        MachineEvent::Booted,
        MachineEvent::Paused,
        MachineEvent::Resumed,
        MachineEvent::Reset,
        MachineEvent::Reverted,
        MachineEvent::Panicked,
        MachineEvent::DeviceFailed { device, reason },
        MachineEvent::DiskFull { disk: "vda".to_owned(), path: "vm0.raw".to_owned() },
        MachineEvent::ForwardAdded(bound.clone()),
        MachineEvent::ForwardRemoved(bound.clone()),
        MachineEvent::DiskResized { disk: "vda".into(), size: 4096 },
        MachineEvent::DiskEjected { disk: "vdb".into() },
        MachineEvent::DiskInserted { disk: "vdb".into() },
        MachineEvent::Missed(1),
        MachineEvent::Exited,
    ];
    // A new variant fails to compile here: add it to the file and to the list above.
    for state in states {
        match state {
            MachineState::Running | MachineState::Paused | MachineState::Ended => {}
        }
    }
    for event in &events {
        match event {
            MachineEvent::Booted | MachineEvent::Paused | MachineEvent::Resumed | MachineEvent::Reset => {}
            MachineEvent::Reverted => {}
            MachineEvent::Panicked | MachineEvent::DeviceFailed { .. } => {}
            MachineEvent::DiskFull { .. } => {}
            MachineEvent::ForwardAdded(_) | MachineEvent::ForwardRemoved(_) => {}
            MachineEvent::DiskResized { .. } => {}
            MachineEvent::DiskEjected { .. } | MachineEvent::DiskInserted { .. } => {}
            MachineEvent::Missed(_) | MachineEvent::Exited => {}
        }
    }
    assert_eq!(values("Machine", "state"), states.map(text));
    let said = events.map(|event| text(serde_json::to_value(event).unwrap().get("event").unwrap()));
    assert_eq!(values("Event", "event"), said);
    // The error message lists them all: expected one of `network`, ...
    let kinds = serde_json::from_str::<virtio::DeviceKind>("\"?\"").unwrap_err().to_string();
    let (_, kinds) = kinds.split_once("one of ").unwrap();
    let kinds: Vec<_> = kinds.split('`').skip(1).step_by(2).collect();
    assert_eq!(values("Stats", "kind"), kinds);
}

#[test]
fn the_openapi_file_names_every_status_that_a_machine_can_end_with() {
    use crate::cli::exit::Status;
    let (_, ending) = FILE.split_once("\n    Ending:\n").unwrap();
    let ending: Vec<_> = ending.split(|byte: char| byte.is_whitespace() || byte == ',').collect();
    for status in
        [Status::Done, Status::Failed, Status::Rebooted, Status::Panicked, Status::Crashed, Status::Quit]
    {
        assert!(ending.contains(&status.code().to_string().as_str()), "{status:?}");
    }
    assert!(ending.contains(&"128+n"));
}
