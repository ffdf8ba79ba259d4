//! The request that saves a machine.

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
    match target.save_and_end(&folder, options, PAUSE) {
        Ok(()) => Reply::done(),
        Err(error @ SaveError::Pause(PauseError::TimedOut(_))) => Reply::refusal(504, error.to_string()),
        Err(error) => Reply::refusal(409, error.to_string()),
    }
}
