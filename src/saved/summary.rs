//! What a saved folder has, without reading all of it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::manifest::{Manifest, SavedDisk};
use super::{MANIFEST, MOST_MANIFEST, SavedMachineError, open, read};
use crate::host::lock::is_locked;
use crate::machine::disk_id;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct SavedSummary {
    /// Seconds since 1970.
    pub(crate) saved_at: u64,
    /// Bytes that its files take on the host; shared blocks count in each.
    pub(crate) size: u64,
    /// Bytes of the guest's memory.
    pub(crate) memory: u64,
    /// The disks that it has copies of, such as `vda`.
    pub(crate) disks: Vec<String>,
}

fn copies(manifest: &Manifest) -> impl Iterator<Item = (usize, &String)> {
    manifest.disks.iter().enumerate().filter_map(|(index, saved)| match saved {
        Some(SavedDisk::Copy(name)) => Some((index, name)),
        _ => None,
    })
}

/// Reads the description of a saved machine.
pub(crate) fn summary(folder: &Path) -> Result<SavedSummary, SavedMachineError> {
    let manifest = Manifest::parse(folder, &read(folder, MANIFEST, MOST_MANIFEST)?)?;
    let entries = folder.read_dir().into_iter().flatten().flatten();
    // st_blocks counts units of 512 bytes, whatever the file system's block size.
    let size = entries.filter_map(|entry| Some(entry.metadata().ok()?.blocks().saturating_mul(512)));
    let disks = copies(&manifest).map(|(index, _)| disk_id(index)).collect();
    Ok(SavedSummary { saved_at: manifest.saved_at, size: size.sum(), memory: manifest.memory, disks })
}

/// The copy of a disk in the folder on which a machine runs, if there is one.
pub(crate) fn is_disk_in_use(folder: &Path) -> Option<PathBuf> {
    let text = read(folder, MANIFEST, MOST_MANIFEST).ok()?;
    let manifest = Manifest::parse(folder, &text).ok()?;
    let used = |name: &&String| open(folder, name).is_ok_and(|file| is_locked(&file).unwrap_or(false));
    copies(&manifest).map(|(_, name)| name).find(used).map(|name| folder.join(name))
}
