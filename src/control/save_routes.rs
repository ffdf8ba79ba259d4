//! The requests that save a machine, and take it back to a snapshot.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::net_routes::clean;
use super::router::{Call, Reply};
use super::target::ControlTarget;
use crate::machine::{PauseError, SaveError, SaveOptions};

/// Limit for the machine to come to rest.
const PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Save {
    folder: PathBuf,
    /// With copies of the disks.
    #[serde(default)]
    disks: bool,
}

/// The body of `POST /v1/save`.
pub(crate) fn save_body(folder: &str, disks: bool) -> Value {
    serde_json::json!({ "folder": folder, "disks": disks })
}

pub(super) fn save(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    let Save { folder, disks } = match serde_json::from_slice(call.body()) {
        Ok(save) => save,
        Err(error) => {
            return Reply::refusal(400, format!("Send {{\"folder\": \"/FOLDER\"}}: {}.", clean(&error)));
        }
    };
    if !folder.is_absolute() {
        return Reply::refusal(
            400,
            "The path of the folder begins with `/` here: the machine has a folder of its own.",
        );
    }
    let options = if disks { SaveOptions::new().with_disks() } else { SaveOptions::new() };
    answer(target.save_and_end(&folder, options, PAUSE))
}

/// A folder of the host, for a snapshot.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    folder: PathBuf,
}

/// The body of `POST /v1/snapshot` and `POST /v1/revert`.
pub(crate) fn snapshot_body(folder: &str) -> Value {
    serde_json::json!({ "folder": folder })
}

fn snapshot_folder(call: &Call<'_>) -> Result<PathBuf, Reply> {
    match serde_json::from_slice(call.body()) {
        Ok(Snapshot { folder }) if folder.is_absolute() => Ok(folder),
        Ok(_) => Err(Reply::refusal(
            400,
            "The path of the folder begins with `/` here: the machine has a folder of its own.",
        )),
        Err(error) => {
            Err(Reply::refusal(400, format!("Send {{\"folder\": \"/FOLDER\"}}: {}.", clean(&error))))
        }
    }
}

pub(super) fn snapshot(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    match snapshot_folder(call) {
        Ok(folder) => answer(target.snapshot(&folder, PAUSE)),
        Err(refusal) => refusal,
    }
}

pub(super) fn revert(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    match snapshot_folder(call).map(|folder| target.revert(&folder)) {
        Ok(Ok(())) => Reply::done(),
        Ok(Err(error)) => Reply::refusal(409, error.to_string()),
        Err(refusal) => refusal,
    }
}

fn answer(saved: Result<(), SaveError>) -> Reply {
    match saved {
        Ok(()) => Reply::done(),
        Err(error @ SaveError::Pause(PauseError::TimedOut(_))) => Reply::refusal(504, error.to_string()),
        Err(error) => Reply::refusal(409, error.to_string()),
    }
}
