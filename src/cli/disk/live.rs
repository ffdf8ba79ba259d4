//! Disks of machines that run, by their machines' control sockets.

use std::path::PathBuf;
use std::str::FromStr;

use clap::ArgAction;
use serde_json::{Value, json};

use super::error::{DiskVerbError, shown};
use super::size::{Bytes, SizeChange};
use super::target::MachineDisk;
use crate::cli::verbs::{ACTION_LIMIT, MachineClient, VerbError};
use crate::control::disk_routes::{insert_body, limits_body};
use crate::spec::DiskLimitsChange;

/// Limits to set.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct DiskSetArgs {
    /// A disk of a running machine, such as vm0:vda
    #[arg(value_name = "MACHINE:DISK")]
    pub disk: MachineDisk,
    /// iops=N and bps=SIZE, or one of them, such as iops=500,bps=10M
    ///
    /// `iops`: most operations in a second. `bps`: most bytes that are read and written in a second. `off` lifts a limit. A limit that
    /// is not named stays as it is. They hold until the machine ends, across reboots of its guest.
    pub limits: DiskLimitsChange,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A disk to take out.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct DiskEjectArgs {
    /// A read-only disk of a running machine, such as vm0:vdb
    #[arg(value_name = "MACHINE:DISK")]
    pub disk: MachineDisk,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A disk to put in.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_help_flag = true)]
pub struct DiskInsertArgs {
    /// A disk of a running machine that was taken out, such as vm0:vdb
    #[arg(value_name = "MACHINE:DISK")]
    pub disk: MachineDisk,
    /// The image or block device; it is opened read-only
    pub file: PathBuf,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

impl FromStr for MachineDisk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        MachineDisk::parse(text).ok_or_else(|| "write a machine and its disk, such as vm0:vda".into())
    }
}

/// Has a machine change the size of its disk, and says what it is now.
pub(super) fn resize(disk: &MachineDisk, change: SizeChange) -> Result<String, VerbError> {
    let answer = send(disk, "PATCH", "", Some(&json!({ "size": change.json() })))?;
    Ok(format!("{} has {}", name(disk), size(&answer)))
}

/// Sets limits, and says all that there are now.
pub(super) fn set(args: &DiskSetArgs) -> Result<String, DiskVerbError> {
    let answer = send(&args.disk, "PATCH", "", Some(&limits_body(args.limits)))?;
    let number = |key: &str| answer.get(key).and_then(Value::as_u64);
    let iops = number("iops").map(|iops| format!("{iops} operations"));
    let bps = number("bps").map(|bps| Bytes(bps).to_string());
    let limits: Vec<_> = iops.into_iter().chain(bps).collect();
    Ok(match limits.as_slice() {
        [] => format!("{} has no limits", name(&args.disk)),
        limits => format!("{} has {} a second at most", name(&args.disk), limits.join(" and ")),
    })
}

/// Takes a disk out; its file is closed then.
pub(super) fn eject(args: &DiskEjectArgs) -> Result<String, DiskVerbError> {
    send(&args.disk, "POST", "/eject", None)?;
    Ok(format!("{} has no disk in it", name(&args.disk)))
}

/// Puts a disk in. Its path counts from the folder that the verb is called in.
pub(super) fn insert(args: &DiskInsertArgs) -> Result<String, DiskVerbError> {
    let path = std::path::absolute(&args.file)
        .map_err(|error| DiskVerbError::Io { path: args.file.clone(), error })?;
    let text = path.to_str().ok_or_else(|| DiskVerbError::NotText(args.file.clone()))?;
    let answer = send(&args.disk, "POST", "/insert", Some(&insert_body(text)))?;
    Ok(format!("{} has {} ({})", name(&args.disk), shown(&args.file), size(&answer)))
}

fn send(disk: &MachineDisk, method: &str, verb: &str, body: Option<&Value>) -> Result<Value, VerbError> {
    let path = format!("/v1/disks/{}{verb}", disk.id);
    MachineClient::find(&disk.machine)?.send(method, &path, body, ACTION_LIMIT)
}

fn name(disk: &MachineDisk) -> String {
    format!("{}:{}", disk.machine, disk.id)
}

fn size(answer: &Value) -> Bytes {
    Bytes(answer.get("size").and_then(Value::as_u64).unwrap_or_default())
}
