//! Requests about the disks of a machine: growth, limits, and the disks in its drives.

use std::path::PathBuf;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::net_routes::clean;
use super::router::{Call, Reply};
use super::target::ControlTarget;
use crate::machine::{DiskChangeError, ResizeError};
use crate::spec::{DiskBps, DiskGrowth, DiskIops, DiskLimitsChange};

/// The body of `PATCH /v1/disks/{id}`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Patch {
    size: Option<DiskGrowth>,
    limits: Limits,
}

/// A limit that is absent stays; null or 0 lifts it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    #[serde(deserialize_with = "limit")]
    iops: Option<Option<DiskIops>>,
    #[serde(deserialize_with = "limit")]
    bps: Option<Option<DiskBps>>,
}

impl Limits {
    fn change(&self) -> DiskLimitsChange {
        DiskLimitsChange { iops: self.iops, bps: self.bps }
    }
}

fn limit<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    if value.is_null() || value == 0 {
        return Ok(Some(None));
    }
    serde_json::from_value(value).map(|limit| Some(Some(limit))).map_err(D::Error::custom)
}

/// The body that sets a disk's limits.
pub(crate) fn limits_body(change: DiskLimitsChange) -> Value {
    let mut limits = serde_json::Map::new();
    if let Some(iops) = change.iops {
        limits.insert("iops".into(), serde_json::json!(iops.map(DiskIops::get)));
    }
    if let Some(bps) = change.bps {
        limits.insert("bps".into(), serde_json::json!(bps.map(DiskBps::get)));
    }
    serde_json::json!({ "limits": limits })
}

/// The body that puts a disk into a drive.
pub(crate) fn insert_body(path: &str) -> Value {
    serde_json::json!({ "path": path })
}

pub(super) fn list(target: &dyn ControlTarget, _: &Call<'_>) -> Reply {
    Reply::json(&target.disks())
}

pub(super) fn change(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    let Patch { size, limits } = match serde_json::from_slice(call.body()) {
        Ok(patch) => patch,
        Err(error) => {
            let sentence = format!(
                "Send {{\"size\": BYTES or \"+20G\", \"limits\": {{\"iops\": NUMBER, \"bps\": BYTES}}}}, or a part of it: {}.",
                clean(&error)
            );
            return Reply::refusal(400, sentence);
        }
    };
    let id = call.parameter(0);
    let limits = limits.change();
    if limits != DiskLimitsChange::default()
        && let Err(error) = target.set_disk_limits(id, limits)
    {
        return refuse(&error);
    }
    // What is asked for without a change asks for the disk's state.
    match size.map_or(Ok(0), |growth| target.grow_disk(id, growth)) {
        Ok(_) => state(target, id),
        Err(error) => refuse_size(&error),
    }
}

pub(super) fn eject(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    let id = call.parameter(0);
    target.eject_disk(id).map_or_else(|error| refuse(&error), |()| state(target, id))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Insert {
    path: PathBuf,
}

pub(super) fn insert(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    let Insert { path } = match serde_json::from_slice(call.body()) {
        Ok(insert) => insert,
        Err(error) => {
            return Reply::refusal(400, format!("Send {{\"path\": \"/FILE\"}}: {}.", clean(&error)));
        }
    };
    if !path.is_absolute() {
        return Reply::refusal(
            400,
            "The path of a disk begins with `/` here: the machine has a folder of its own.",
        );
    }
    target
        .insert_disk(call.parameter(0), &path)
        .map_or_else(|error| refuse(&error), |disk| Reply::json(&disk))
}

fn state(target: &dyn ControlTarget, id: &str) -> Reply {
    let disks = target.disks();
    match disks.iter().find(|disk| disk.id == id) {
        Some(disk) => Reply::json(disk),
        None if disks.is_empty() => refuse(&DiskChangeError::Ended),
        None => {
            let ids = disks.into_iter().map(|disk| disk.id).collect();
            refuse(&DiskChangeError::NoDisk { id: id.into(), ids })
        }
    }
}

fn refuse_size(error: &ResizeError) -> Reply {
    let status = match error {
        ResizeError::NoDisk { .. } => 404,
        ResizeError::Smaller { .. } | ResizeError::TooLarge { .. } => 400,
        ResizeError::ReadOnly { .. }
        | ResizeError::Device { .. }
        | ResizeError::Host { .. }
        | ResizeError::Ended => 409,
    };
    Reply::refusal(status, error.to_string())
}

fn refuse(error: &DiskChangeError) -> Reply {
    let status = match error {
        DiskChangeError::NoDisk { .. } => 404,
        DiskChangeError::InFlight { .. } | DiskChangeError::Unanswered { .. } => 504,
        DiskChangeError::Fixed { .. }
        | DiskChangeError::Empty { .. }
        | DiskChangeError::Full { .. }
        | DiskChangeError::Disk(_)
        | DiskChangeError::Threads { .. }
        | DiskChangeError::Host { .. }
        | DiskChangeError::Ended => 409,
    };
    Reply::refusal(status, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<DiskLimitsChange, String> {
        serde_json::from_str::<Patch>(text)
            .map(|patch| patch.limits.change())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn limits_are_left_lifted_or_set() {
        for text in ["iops=500,bps=10M", "iops=off", "bps=0", "iops=1,bps=off"] {
            let change = text.parse::<DiskLimitsChange>().unwrap();
            assert_eq!(read(&limits_body(change).to_string()).unwrap(), change, "{text}");
        }
        let lifted = DiskLimitsChange { iops: Some(None), bps: Some(None) };
        assert_eq!(read("{\"limits\": {\"iops\": null, \"bps\": 0}}").unwrap(), lifted);
        let set = read("{\"limits\": {\"bps\": \"10M\"}}").unwrap();
        assert_eq!(set, "bps=10M".parse().unwrap());
        assert_eq!(read("{}").unwrap(), DiskLimitsChange::default());
        for wrong in [
            "{\"limits\": 5}",
            "{\"limits\": {\"iops\": -1}}",
            "{\"limits\": {\"speed\": 1}}",
            "{\"iops\": 1}",
            "",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
