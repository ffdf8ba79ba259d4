//! What a verb is for: a file, or a disk of a machine that runs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::spec::MachineName;

/// A disk of a running machine, as `vm0:vda`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineDisk {
    /// The machine.
    pub machine: MachineName,
    /// As the guest's kernel calls it.
    pub id: String,
}

/// What a verb is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DiskTarget {
    /// An image or a block device.
    File(PathBuf),
    /// A disk of a running machine.
    Machine(MachineDisk),
}

impl DiskTarget {
    /// The target of this word. A file that is there has it before a machine; `./vm0:vda` is a file in any case.
    pub(super) fn of(word: &OsStr) -> Self {
        match word.to_str().and_then(MachineDisk::parse) {
            Some(disk) if !Path::new(word).exists() => DiskTarget::Machine(disk),
            _ => DiskTarget::File(word.into()),
        }
    }
}

impl MachineDisk {
    /// `MACHINE:ID`; `None` for a text of any other form.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (machine, id) = text.split_once(':')?;
        let known = |id: &str| {
            !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        Some(MachineDisk { machine: machine.parse().ok()?, id: Some(id).filter(|id| known(id))?.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_of_a_machine_has_its_name_and_its_id() {
        let disk = |machine: &str, id: &str| {
            DiskTarget::Machine(MachineDisk { machine: machine.parse().unwrap(), id: id.into() })
        };
        assert_eq!(DiskTarget::of("vm0:vda".as_ref()), disk("vm0", "vda"));
        assert_eq!(DiskTarget::of("web-1:disk30".as_ref()), disk("web-1", "disk30"));
        for file in
            ["vm0.raw", "./vm0:vda", "/a:b/c", "vm0:", ":vda", "vm0:vda:1", "a b:vda", "nbd:localhost"]
        {
            let target = DiskTarget::of(file.as_ref());
            let is_file = matches!(&target, DiskTarget::File(path) if path == Path::new(file));
            assert!(is_file || file == "nbd:localhost", "{target:?}");
        }
    }

    #[test]
    fn file_that_is_there_is_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm0:vda");
        std::fs::write(&path, "").unwrap();
        assert_eq!(DiskTarget::of(path.as_os_str()), DiskTarget::File(path));
    }
}
