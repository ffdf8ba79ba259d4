//! Looks over a disk: which of its file systems is the root, and what there is to boot.

use std::fmt::Write;

use super::disk::{Disk, ReadError};
use super::filesystem::FileKind;
use super::kernel_folders::{kernel_folders, mounted_boot};
use super::loaders::Loader;
use super::names;
use super::runs::Run;
use super::volumes::{root, volumes};

/// Longest kernel and initrd. A longer one is found, and no place of its bytes is looked up.
pub(crate) const KERNEL_MAX: u64 = 256 << 20;
pub(crate) const INITRD_MAX: u64 = 1 << 30;

/// What is looked for besides the root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    /// A kernel and what goes with it.
    Kernel,
    /// The initrd of this release.
    Initrd(&'a str),
    /// Nothing.
    Nothing,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Explored {
    /// The root file system: what Linux takes as `root=`, and its name for people.
    pub(crate) root: Option<(String, String)>,
    pub(crate) kernel: Option<ImageFile>,
    pub(crate) initrd: Option<ImageFile>,
    /// The boot loader's entry that names the kernel: its file and title, and its options.
    pub(crate) entry: Option<(String, Option<String>)>,
    /// What of a boot loader's files was not followed, and why: a line each.
    pub(crate) notes: Vec<String>,
    /// A file system that could be read and could be a root, whether it is one or not.
    pub(crate) readable: bool,
    /// What was looked at and what is there, for an error's text.
    pub(crate) looked: String,
}

/// A file in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageFile {
    /// Its name in the guest's file system.
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) runs: Vec<Run>,
}

/// Looks over the disk.
pub(crate) fn explore(disk: &Disk<'_>, wanted: Wanted<'_>) -> Result<Explored, ReadError> {
    let mut explored = Explored::default();
    let volumes = volumes(disk, &mut explored.looked)?;
    explored.readable = volumes.iter().any(|volume| volume.fs.may_be_root());
    for volume in volumes.iter().filter(|volume| volume.fs.has_fast_commits()) {
        explored.notes.push(format!(
            "{} was not unmounted, and the fast commits in its journal are not read here: the guest's last changes may be \
             missing from what it boots",
            volume.name
        ));
    }
    let root = root(&volumes);
    explored.root = root.map(|volume| (volume.root(), volume.name.clone()));
    let boot = root.map_or(Ok(None), |root| mounted_boot(root, &volumes, &mut explored.notes))?;
    let folders = kernel_folders(root, boot, &volumes);
    if wanted == Wanted::Kernel {
        // A boot loader's file outranks bare names, wherever those are.
        for folder in &folders {
            Loader::new(*folder, &volumes).entry(&mut explored)?;
            if explored.kernel.is_some() {
                return Ok(explored);
            }
        }
    }
    for folder in folders {
        match wanted {
            Wanted::Nothing => break,
            Wanted::Initrd(release) => explored.initrd = folder.initrd(release)?,
            Wanted::Kernel => folder.kernel(&mut explored)?,
        }
        if explored.kernel.is_some() || explored.initrd.is_some() {
            break;
        }
        let names = match wanted {
            Wanted::Initrd(release) => names::initrds(release).join(", no "),
            Wanted::Kernel | Wanted::Nothing => "vmlinuz-VERSION".to_owned(),
        };
        let within = if folder.folder.is_empty() { "at its top" } else { "in its /boot" };
        let _ = write!(explored.looked, "; {} has no {names} {within}", folder.volume.name);
    }
    Ok(explored)
}

/// A whole file at a path of the disk's root file system, links followed, if it is at most so long.
pub(crate) fn read_file(disk: &Disk<'_>, path: &str, max: u64) -> Result<Option<Vec<u8>>, ReadError> {
    let volumes = volumes(disk, &mut String::new())?;
    let Some(root) = root(&volumes) else { return Ok(None) };
    match root.fs.find(path)? {
        Some(node) if node.kind() == FileKind::File => root.fs.read(&node, max).map(Some),
        _ => Ok(None),
    }
}
