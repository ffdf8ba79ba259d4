//! Searches a disk: for its root file system, and for what to boot.

use std::fmt::Write;

use super::disk::{Disk, ReadError};
use super::filesystem::FileKind;
use super::kernel_folders::{kernel_folders, mounted_boot};
use super::loaders::Loader;
use super::names;
use super::runs::Run;
use super::volumes::{Volume, root, volumes};

/// Maximum lengths of a kernel and an initrd. A longer file is found, but its blocks are not mapped.
pub(crate) const KERNEL_MAX: u64 = 256 << 20;
pub(crate) const INITRD_MAX: u64 = 1 << 30;

/// What to search for besides the root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    /// A kernel with its initrd and options.
    Kernel,
    /// The initrd of this release.
    Initrd(&'a str),
    /// Nothing.
    Nothing,
}

/// The findings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Explored {
    /// The root file system: the value of `root=`, and its name for people.
    pub(crate) root: Option<(String, String)>,
    pub(crate) kernel: Option<ImageFile>,
    pub(crate) initrd: Option<ImageFile>,
    /// The boot loader's entry that names the kernel: its file and title, and its options.
    pub(crate) entry: Option<(String, Option<String>)>,
    /// Parts of a boot loader's files that were not followed, and why: a line each.
    pub(crate) notes: Vec<String>,
    /// A file system that can be read and could be a root, whether it is one or not.
    pub(crate) readable: bool,
    /// The parts of the disk and their content, for an error message.
    pub(crate) looked: String,
}

/// A file in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageFile {
    /// Its path in the guest's file system.
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) runs: Vec<Run>,
}

/// Searches the disk.
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
    let mut searched: Vec<(&Volume<'_>, Vec<&str>)> = Vec::new();
    for folder in folders {
        match wanted {
            Wanted::Nothing => break,
            Wanted::Initrd(release) => explored.initrd = folder.initrd(release)?,
            Wanted::Kernel => folder.kernel(&mut explored)?,
        }
        if explored.kernel.is_some() || explored.initrd.is_some() {
            return Ok(explored);
        }
        let within = if folder.folder.is_empty() { "at its top" } else { "in its /boot" };
        match searched.iter_mut().find(|(volume, _)| std::ptr::eq(*volume, folder.volume)) {
            Some((_, places)) => places.push(within),
            None => searched.push((folder.volume, vec![within])),
        }
    }
    let names = match wanted {
        Wanted::Initrd(release) => names::initrds(release).join(", no "),
        Wanted::Kernel | Wanted::Nothing => format!("kernel ({})", names::kernels()),
    };
    for (volume, places) in searched {
        let name = if volume.number == 0 { "it" } else { &volume.name };
        let _ = write!(explored.looked, "; {name} has no {names} {}", places.join(" or "));
    }
    Ok(explored)
}

/// The content of a file on the disk's root file system, symbolic links followed, up to a maximum length.
pub(crate) fn read_file(disk: &Disk<'_>, path: &str, max: u64) -> Result<Option<Vec<u8>>, ReadError> {
    let volumes = volumes(disk, &mut String::new())?;
    let Some(root) = root(&volumes) else { return Ok(None) };
    match root.fs.find(path)? {
        Some(node) if node.kind() == FileKind::File => root.fs.read(&node, max).map(Some),
        _ => Ok(None),
    }
}
