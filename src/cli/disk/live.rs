//! Disks of machines that run, by their machines' control sockets.

use serde_json::{Value, json};

use super::size::{Bytes, SizeChange};
use super::target::MachineDisk;
use crate::cli::verbs::{ACTION_LIMIT, MachineClient, VerbError};

/// Has a machine change the size of its disk, and says what it is now.
pub(super) fn resize(disk: &MachineDisk, change: SizeChange) -> Result<String, VerbError> {
    let MachineDisk { machine, id } = disk;
    let body = json!({ "size": change.json() });
    let answer =
        MachineClient::find(machine)?.send("PATCH", &format!("/v1/disks/{id}"), Some(&body), ACTION_LIMIT)?;
    let size = answer.get("size").and_then(Value::as_u64);
    Ok(size.map_or_else(
        || format!("{machine}:{id} has its new size"),
        |size| format!("{machine}:{id} has {}", Bytes(size)),
    ))
}
