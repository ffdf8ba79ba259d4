//! `machine.json`: what the machine is, and where the sections of `state` are.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use devices::component::State;
use diskimage::Format;
use serde::{Deserialize, Serialize};

use super::SavedMachineError;
use crate::host::disk::DiskMark;
use crate::image::printable;
use crate::kvm::CpuBaseline;
use crate::machine::{SavedState, disk_id};
use crate::spec::{DiskSpec, Spec};

/// Layout of the folder.
pub(super) const FORMAT: u64 = 1;
/// Most sections: a machine has 255 vCPUs and some hundred devices at most.
pub(crate) const MOST_SECTIONS: usize = 4096;
/// Most [`cost`] of all sections. Some hundred megabytes of memory; a machine with 255 vCPUs has some three million.
pub(crate) const MOST_COST: u64 = 8 << 20;
/// What an object costs more than a number: the map of a single field has room for eleven.
const OBJECT_COST: u64 = 20;

/// Most bytes of `state`: a vCPU has some 30 KiB, a device a few hundred bytes and what its queues hold, a share some hundred bytes for each file
/// that its guest knows.
pub(crate) const MOST_STATE: u64 = 256 << 20;

/// How much memory a text takes once it is read, counted in values, before it is read. Commas and brackets in strings count too.
pub(crate) fn cost(json: &[u8]) -> u64 {
    let of = |byte: &u8| match byte {
        b',' | b'[' => 1,
        b'{' => OBJECT_COST,
        _ => 0,
    };
    json.iter().map(of).sum()
}

/// See the module.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Manifest {
    format: u64,
    /// Version of minivmm that wrote it.
    program: String,
    /// Seconds since 1970.
    pub(super) saved_at: u64,
    pub(super) spec: Spec,
    /// Of each disk of the spec: its mark, if it has one, or the name of its copy in the folder.
    pub(super) disks: Vec<Option<SavedDisk>>,
    /// Version of the list of components.
    version: u16,
    panic_timeout: i64,
    /// What the guest was told of its processor, for those who read this file; a restore goes by the vCPUs' states.
    cpu: Option<CpuBaseline>,
    /// Bytes of `memory`.
    pub(super) memory: u64,
    /// Its guest waits for a command on the ports of `minivmm run`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) takes_commands: bool,
    /// In the order of `state`.
    sections: Vec<Section>,
}

/// What the folder says of a disk that the guest writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum SavedDisk {
    /// It stays where it is, and looked so.
    Mark(DiskMark),
    /// A file of the folder has what was in it.
    Copy(String),
}

/// One component's place in `state`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Section {
    id: String,
    kind: Cow<'static, str>,
    version: u16,
    /// Bytes; the section begins where the one before ends.
    length: u64,
    /// CRC-32 (IEEE 802.3) of these bytes.
    crc32: u32,
}

/// The format alone: other fields need not be known in another one.
#[derive(Deserialize)]
struct FormatOnly {
    format: u64,
}

impl Manifest {
    /// The description of a saved machine, and the contents of `state`.
    pub(super) fn new(
        spec: Spec,
        disks: Vec<Option<SavedDisk>>,
        saved_at: u64,
        memory: u64,
        saved: &SavedState,
    ) -> io::Result<(Self, Vec<u8>)> {
        let (mut sections, mut bytes) = (Vec::new(), Vec::new());
        for (id, State { kind, version, data }) in saved.states() {
            let section = serde_json::to_vec(data)?;
            let (id, kind, length) = (id.clone(), kind.clone(), section.len() as u64);
            let crc32 = crc32fast::hash(&section);
            sections.push(Section { id, kind, version: *version, length, crc32 });
            bytes.extend(section);
        }
        // What is refused when it is read shall not be what is left of a machine.
        if bytes.len() as u64 > MOST_STATE || cost(&bytes) > MOST_COST {
            return Err(io::Error::other("its devices have more state than a saved machine can hold"));
        }
        let (version, panic_timeout) = (saved.version(), saved.panic_timeout());
        let program = env!("CARGO_PKG_VERSION").to_owned();
        Ok((
            Manifest {
                format: FORMAT,
                program,
                saved_at,
                spec,
                disks,
                version,
                panic_timeout,
                cpu: saved.cpu(),
                memory,
                takes_commands: false,
                sections,
            },
            bytes,
        ))
    }

    /// Reads `machine.json` of a folder.
    pub(super) fn parse(folder: &Path, text: &[u8]) -> Result<Self, SavedMachineError> {
        let damaged = |error: &serde_json::Error| damaged(folder, format!("machine.json: {error}"));
        let FormatOnly { format } = serde_json::from_slice(text).map_err(|error| damaged(&error))?;
        if format != FORMAT {
            return Err(SavedMachineError::Format { folder: folder.into(), found: format });
        }
        let manifest: Self = serde_json::from_slice(text).map_err(|error| damaged(&error))?;
        manifest.check_copies().map_err(|reason| self::damaged(folder, reason))?;
        Ok(manifest)
    }

    /// A copy has the one name that it can have, so that nothing outside of the folder is opened for one.
    fn check_copies(&self) -> Result<(), String> {
        if !self.disks.is_empty() && self.disks.len() != self.spec.disk.len() {
            return Err(format!(
                "machine.json has {} disks and says something of {}",
                self.spec.disk.len(),
                self.disks.len()
            ));
        }
        for (index, (disk, saved)) in self.spec.disk.iter().zip(&self.disks).enumerate() {
            let expected = copy_name(index, copied_format(disk));
            if matches!(saved, Some(SavedDisk::Copy(name)) if *name != expected) {
                return Err(format!("the copy of disk {index} is not called {expected}"));
            }
        }
        Ok(())
    }

    /// The state that `bytes`, the contents of `state`, hold.
    pub(super) fn sections(&self, folder: &Path, bytes: &[u8]) -> Result<SavedState, SavedMachineError> {
        let damaged = |reason: String| damaged(folder, reason);
        if self.sections.len() > MOST_SECTIONS {
            return Err(damaged(format!("machine.json lists more than {MOST_SECTIONS} sections")));
        }
        if cost(bytes) > MOST_COST {
            return Err(damaged("state has more values in it than a machine can have".to_owned()));
        }
        let (mut states, mut rest) = (Vec::new(), bytes);
        for Section { id, kind, version, length, crc32 } in &self.sections {
            let split = usize::try_from(*length).ok().and_then(|length| rest.split_at_checked(length));
            let Some((section, behind)) = split else {
                return Err(damaged(format!("state ends in section {id:?}")));
            };
            if crc32fast::hash(section) != *crc32 {
                return Err(damaged(format!("section {id:?} of state has a wrong checksum")));
            }
            let data = serde_json::from_slice(section)
                .map_err(|error| damaged(format!("section {id:?} of state: {error}")))?;
            states.push((id.clone(), State { kind: kind.clone(), version: *version, data }));
            rest = behind;
        }
        if !rest.is_empty() {
            return Err(damaged(format!("state has {} bytes behind its last section", rest.len())));
        }
        let count = states.len();
        let saved = SavedState::from_states(self.version, self.panic_timeout, states);
        if saved.states().count() < count {
            return Err(damaged("machine.json lists a section twice".to_owned()));
        }
        Ok(saved)
    }
}

/// The name of the copy of disk `index` in the folder.
pub(crate) fn copy_name(index: usize, format: Format) -> String {
    format!("{}.{}", disk_id(index), format.name())
}

/// The format of the file that the guest's writes change, and so of its copy.
pub(crate) fn copied_format(disk: &DiskSpec) -> Format {
    if disk.overlay.is_some() { Format::Qcow2 } else { disk.format() }
}

/// The reason may repeat what a hostile file holds.
fn damaged(folder: &Path, reason: String) -> SavedMachineError {
    SavedMachineError::Damaged { folder: folder.into(), reason: printable(&reason) }
}
