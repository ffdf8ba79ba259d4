//! Who uses an image.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::target::MachineDisk;
use crate::control::client::request;
use crate::control::{RunningMachine, all};
use crate::host::disk::DiskHolder;
use crate::host::identity::identity;
use crate::machine::disk_id;

/// Limit for a machine to say what its disks are.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A user of an image.
#[derive(Debug)]
pub(super) enum User {
    /// A machine with a name.
    Machine(RunningMachine),
    /// A machine without a name, or another program.
    Process(DiskHolder),
    /// Another user's process.
    Unknown,
}

impl User {
    /// The user behind a lock.
    pub(super) fn of(holder: Option<&DiskHolder>) -> Self {
        match holder {
            Some(holder) => {
                let machine = all().into_iter().find(|machine| machine.pid == Some(holder.pid));
                machine.map_or_else(|| User::Process(holder.clone()), User::Machine)
            }
            None => User::Unknown,
        }
    }

    /// How to end the use.
    pub(super) fn cure(&self) -> String {
        match self {
            User::Machine(machine) => format!("`minivmm stop {}` ends it", machine.name),
            User::Process(_) => "end it first".into(),
            User::Unknown => "end it first (`sudo lslocks` lists what is locked)".into(),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Machine(RunningMachine { name, pid, .. }) => {
                write!(f, "the machine {name}")?;
                pid.map_or(Ok(()), |pid| write!(f, " (process {pid})"))
            }
            User::Process(DiskHolder { pid, command: Some(command), .. }) => {
                write!(f, "{command} (process {pid})")
            }
            User::Process(DiskHolder { pid, .. }) => write!(f, "process {pid}"),
            User::Unknown => f.write_str("another user's process"),
        }
    }
}

/// The disk of a running machine that is on this file; `None` if the machine does not say so.
pub(super) fn disk_on(machine: &RunningMachine, path: &Path) -> Option<MachineDisk> {
    let wanted = identity(&fs::metadata(path).ok()?);
    let info = request(&machine.socket, "GET", "/v1/machine", None, ANSWER_LIMIT).ok()?;
    // A machine counts its paths from its own folder.
    let folder = PathBuf::from(format!("/proc/{}/cwd", machine.pid?));
    let is_wanted =
        |path: &str| fs::metadata(folder.join(path)).is_ok_and(|there| identity(&there) == wanted);
    let index = disks(&info).iter().position(|disk| disk.as_deref().is_some_and(is_wanted))?;
    Some(MachineDisk { machine: machine.name.clone(), id: disk_id(index) })
}

/// The file that each disk writes to, where it can be known: the overlay of a disk that has one.
fn disks(info: &Value) -> Vec<Option<String>> {
    let disks = info.get("spec").and_then(|spec| spec.get("disk")).and_then(Value::as_array);
    let text = |disk: &Value, key: &str| disk.get(key).and_then(Value::as_str).map(str::to_owned);
    disks.into_iter().flatten().map(|disk| text(disk, "overlay").or_else(|| text(disk, "path"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Spec;

    #[test]
    fn disk_writes_to_its_overlay_if_it_has_one() {
        let spec =
            Spec::new("/k").with_disk("a.raw".parse().unwrap()).with_disk("/d/b.raw,ro".parse().unwrap());
        let mut info = serde_json::json!({ "spec": spec });
        assert_eq!(disks(&info), [Some("a.raw".into()), Some("/d/b.raw".into())]);
        info["spec"]["disk"][0]["overlay"] = "student1.qcow2".into();
        assert_eq!(disks(&info)[0].as_deref(), Some("student1.qcow2"));
        assert!(disks(&serde_json::json!({})).is_empty());
    }

    #[test]
    fn users_are_named_with_the_command_that_ends_them() {
        let machine = RunningMachine { name: "vm0".parse().unwrap(), socket: "s".into(), pid: Some(12) };
        let machine = User::Machine(machine);
        assert_eq!(machine.to_string(), "the machine vm0 (process 12)");
        assert!(machine.cure().contains("`minivmm stop vm0`"));
        assert!(matches!(User::of(None), User::Unknown));
    }
}
