//! `minivmm save`: writes a machine to a folder and ends it. Returns when the machine has ended and its name is free.

use std::time::Duration;

use super::wait::EndWaiter;
use super::{MachineClient, SaveArgs, VerbError};
use crate::control::client::ClientError;
use crate::control::save_routes::save_body;

/// How long the memory may take: at the speed of a slow disk, what a large machine has.
const SAVE_LIMIT: Duration = Duration::from_secs(3600);
/// How long the machine may then take to end.
const END_LIMIT: Duration = Duration::from_secs(60);

pub(super) fn save(args: &SaveArgs) -> Result<(), VerbError> {
    let client = MachineClient::find(&args.name)?;
    let folder = std::path::absolute(&args.folder)
        .map_err(|source| VerbError::Path { path: args.folder.clone(), source })?;
    // Sent before, so that an end that comes at once is not missed.
    let mut waiter = EndWaiter::start(&client)?;
    let Some(text) = folder.to_str() else { return Err(VerbError::NotUtf8(folder)) };
    client.send("POST", "/v1/save", Some(&save_body(text, args.with_disks)), SAVE_LIMIT)?;
    match waiter.end(END_LIMIT)? {
        Some(_) => Ok(()),
        None => Err(client.failed(ClientError::TimedOut(END_LIMIT))),
    }
}
