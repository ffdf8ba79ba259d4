//! The requests that save a machine, take it back to a snapshot or have it migrate, and tell how far that is.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;

use super::net_routes::clean;
use super::request::MIGRATION;
use super::router::{Call, Reply, Upgrade};
use super::target::ControlTarget;
use crate::machine::{Asker, CopyLimits, PauseError, SaveError, SaveOptions};
use crate::migration::Patience;

/// Limit for the machine to come to rest.
const PAUSE: Duration = Duration::from_secs(30);
/// Milliseconds for which a target may be silent, unless the request says so.
const SILENCE: u64 = 30_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Save {
    folder: PathBuf,
    /// With copies of the disks.
    #[serde(default)]
    disks: bool,
    /// Save it while it runs, and do not end it.
    #[serde(default)]
    keep_running: bool,
    /// Milliseconds.
    downtime: Option<u64>,
    /// Bytes in a second.
    bandwidth: Option<u64>,
    /// What `DELETE /v1/copy` calls it.
    copy: Option<String>,
}

/// What a client calls a copy that it asks for, so that it cancels no other one.
#[derive(Debug, Clone)]
pub(crate) struct CopyName(String);

impl CopyName {
    /// One that no other client uses.
    pub(crate) fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        CopyName(format!("{}-{}", std::process::id(), now.as_nanos()))
    }

    /// The body of a request for a copy, which is called so.
    pub(crate) fn with(&self, mut body: Value) -> Value {
        if let Some(fields) = body.as_object_mut() {
            fields.insert("copy".into(), self.0.as_str().into());
        }
        body
    }

    /// The body of `DELETE /v1/copy`.
    pub(crate) fn alone(&self) -> Value {
        self.with(serde_json::json!({}))
    }
}

/// The body of `POST /v1/save`; with limits the machine runs on.
pub(crate) fn save_body(folder: &str, keep_running: Option<CopyLimits>, disks: bool) -> Value {
    match keep_running {
        None => serde_json::json!({ "folder": folder, "disks": disks }),
        Some(CopyLimits { downtime, bandwidth, .. }) => serde_json::json!({
            "folder": folder, "keep-running": true, "downtime": millis(downtime), "bandwidth": bandwidth,
            "disks": disks,
        }),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn save(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    let Save { folder, disks, keep_running, downtime, bandwidth, copy } =
        match serde_json::from_slice(call.body()) {
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
    if !keep_running && (downtime.is_some() || bandwidth.is_some()) {
        return Reply::refusal(
            400,
            "A downtime and a bandwidth are for a machine that runs on: add \"keep-running\": true.",
        );
    }
    let (options, asker) = (options(disks), call.asker().calls(copy));
    answer(if keep_running {
        let mut limits = CopyLimits { bandwidth, ..CopyLimits::default() };
        limits.downtime = downtime.map_or(limits.downtime, Duration::from_millis);
        target.save_running(&asker, &folder, options, limits, PAUSE).map(|report| Reply::json(&report))
    } else {
        target.save_and_end(&asker, &folder, options, PAUSE).map(|()| Reply::done())
    })
}

fn options(disks: bool) -> SaveOptions {
    if disks { SaveOptions::new().with_disks() } else { SaveOptions::new() }
}

/// A folder of the host, for a snapshot.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Snapshot {
    folder: PathBuf,
    /// What `DELETE /v1/copy` calls it.
    copy: Option<String>,
}

/// The body of `POST /v1/snapshot` and `POST /v1/revert`.
pub(crate) fn snapshot_body(folder: &str) -> Value {
    serde_json::json!({ "folder": folder })
}

fn snapshot_folder(call: &Call<'_>) -> Result<(Asker, PathBuf), Reply> {
    match serde_json::from_slice(call.body()) {
        Ok(Snapshot { folder, copy }) if folder.is_absolute() => Ok((call.asker().calls(copy), folder)),
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
        Ok((asker, folder)) => answer(target.snapshot(&asker, &folder, PAUSE).map(|()| Reply::done())),
        Err(refusal) => refusal,
    }
}

pub(super) fn revert(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    match snapshot_folder(call).map(|(asker, folder)| target.revert(&asker, &folder)) {
        Ok(Ok(())) => Reply::done(),
        Ok(Err(error)) => Reply::refusal(409, error.to_string()),
        Err(refusal) => refusal,
    }
}

fn answer(saved: Result<Reply, SaveError>) -> Reply {
    match saved {
        Ok(reply) => reply,
        Err(error @ SaveError::Pause(PauseError::TimedOut(_))) => Reply::refusal(504, error.to_string()),
        Err(error) => Reply::refusal(409, error.to_string()),
    }
}

/// How far a save is.
pub(super) fn progress(target: &dyn ControlTarget, _: &Call<'_>) -> Reply {
    target.copy_progress().map_or_else(Reply::done, |progress| Reply::json(&progress))
}

/// What `DELETE /v1/copy` takes, unless it is about all copies.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cancel {
    copy: Option<String>,
}

/// Ends copies that are under way.
pub(super) fn cancel(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    let body = call.body();
    let asked = if body.is_empty() { Ok(Cancel::default()) } else { serde_json::from_slice(body) };
    match asked {
        Ok(Cancel { copy }) => {
            target.cancel_copy(copy.as_deref());
            Reply::done()
        }
        Err(error) => {
            Reply::refusal(400, format!("Send nothing, or {{\"copy\": \"NAME\"}}: {}.", clean(&error)))
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Migrate {
    /// Copies the disks, too.
    #[serde(default)]
    disks: bool,
    /// Milliseconds.
    downtime: Option<u64>,
    /// Bytes in a second.
    bandwidth: Option<u64>,
    /// Milliseconds until the target answers for the first time.
    greeting: Option<u64>,
    /// Milliseconds for which it may be silent afterwards.
    silence: Option<u64>,
    /// What `DELETE /v1/copy` calls it.
    copy: Option<String>,
}

/// The body of `POST /v1/migrate`.
pub(crate) fn migrate_body(disks: bool, limits: CopyLimits, patience: Patience) -> Value {
    serde_json::json!({
        "disks": disks,
        "downtime": millis(limits.downtime), "bandwidth": limits.bandwidth,
        "greeting": millis(patience.greeting), "silence": millis(patience.silence),
    })
}

/// The connection becomes the stream to the target, carried by the client.
pub(super) fn migrate(target: &dyn ControlTarget, call: &Call<'_>) -> Reply {
    if !call.upgrades_to(MIGRATION) {
        let how = format!(
            "A machine migrates over a connection with `Connection: Upgrade` and `Upgrade: {MIGRATION}`; `minivmm migrate` carries it."
        );
        return Reply::refusal(400, how);
    }
    let Migrate { disks, downtime, bandwidth, greeting, silence, copy } =
        match serde_json::from_slice(call.body()) {
            Ok(migrate) => migrate,
            Err(error) => {
                return Reply::refusal(400, format!("Send {{\"downtime\": 300}}: {}.", clean(&error)));
            }
        };
    let mut limits = CopyLimits { bandwidth, ..CopyLimits::default() };
    limits.downtime = downtime.map_or(limits.downtime, Duration::from_millis);
    // No limit is no limit of a socket.
    let time = |millis: Option<u64>| Duration::from_millis(millis.unwrap_or(SILENCE).max(1));
    let patience = Patience { greeting: time(greeting), silence: time(silence) };
    Reply::Upgrade(Upgrade {
        to: MIGRATION,
        fields: Vec::new(),
        then: target.migrate(&call.asker().calls(copy), options(disks), limits, patience),
    })
}
