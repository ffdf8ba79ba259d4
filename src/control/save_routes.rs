//! The request that saves a machine.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::net_routes::clean;
use super::router::{Call, Reply};
use super::target::ControlTarget;
use crate::machine::{PauseError, SaveError};

/// Limit for the machine to come to rest.
const PAUSE: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Save {
    folder: PathBuf,
}

/// The body of `POST /v1/save`.
pub(crate) fn save_body(folder: &str) -> Value {
    serde_json::json!({ "folder": folder })
}

pub(super) fn save(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    let Save { folder } = match serde_json::from_slice(call.body()) {
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
    match target.save_and_end(&folder, PAUSE) {
        Ok(()) => Reply::done(),
        Err(error @ SaveError::Pause(PauseError::TimedOut(_))) => Reply::refusal(504, error.to_string()),
        Err(error) => Reply::refusal(409, error.to_string()),
    }
}
