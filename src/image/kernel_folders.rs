//! Folders with kernels, and their files by the names that distributions use.

use std::collections::HashSet;

use super::disk::{ReadError, TEXT_BYTE_COST};
use super::explore::{Explored, INITRD_MAX, ImageFile, KERNEL_MAX};
use super::filesystem::{FileKind, FileSystem, Node};
use super::names;
use super::printable::printable;
use super::volumes::{Rank, Volume};

/// Maximum kernels to consider in a folder.
const NAMES: usize = 1024;
/// Maximum length of a boot loader's file.
const TEXT_MAX: u64 = 1 << 20;

/// A folder that may have kernels.
#[derive(Clone, Copy)]
pub(super) struct KernelFolder<'a> {
    pub(super) volume: &'a Volume<'a>,
    pub(super) folder: &'static str,
}

/// A file that was found; its content has not been read.
pub(super) struct Candidate<'a> {
    fs: &'a FileSystem<'a>,
    path: String,
    node: Node,
}

impl Candidate<'_> {
    pub(super) fn size(&self) -> u64 {
        self.node.size()
    }

    /// Maps its blocks. A file that is longer than `max` has no runs.
    pub(super) fn locate(&self, max: u64) -> Result<ImageFile, ReadError> {
        let size = self.size();
        let runs = if size > max { Vec::new() } else { self.fs.runs(&self.node, max)? };
        Ok(ImageFile { path: printable(&self.path), size, runs })
    }
}

/// Folders that may have kernels, the best first.
pub(super) fn kernel_folders<'a>(
    root: Option<&'a Volume<'a>>,
    boot: Option<&'a Volume<'a>>,
    volumes: &'a [Volume<'a>],
) -> Vec<KernelFolder<'a>> {
    let mut kernel_folders: Vec<_> =
        boot.map(|volume| KernelFolder { volume, folder: "" }).into_iter().collect();
    kernel_folders.extend(root.map(|volume| KernelFolder { volume, folder: "/boot" }));
    // A separate partition for /boot has the same files at its top. Another installed system is not searched.
    let other = |volume: &&Volume<'_>| {
        volume.rank < Rank::Installed && root.is_none_or(|root| !std::ptr::eq(root, *volume))
    };
    kernel_folders.extend(volumes.iter().filter(other).map(|volume| KernelFolder { volume, folder: "" }));
    // Debian's oldest convention: links at the top of the root.
    kernel_folders.extend(root.map(|volume| KernelFolder { volume, folder: "" }));
    kernel_folders
}

/// The file system that the root's fstab mounts over its /boot.
pub(super) fn mounted_boot<'a>(
    root: &Volume<'_>,
    volumes: &'a [Volume<'a>],
    notes: &mut Vec<String>,
) -> Result<Option<&'a Volume<'a>>, ReadError> {
    let fstab = KernelFolder { volume: root, folder: "" }.text("/etc/fstab")?.unwrap_or_default();
    let device = fstab.lines().filter(|line| !line.trim_start().starts_with('#')).find_map(|line| {
        let mut fields = line.split_whitespace();
        let device = fields.next()?;
        (fields.next()?.trim_end_matches('/') == "/boot").then_some(device)
    });
    let Some(device) = device else { return Ok(None) };
    let found = volumes.iter().find(|volume| volume.is_called(device));
    if found.is_none() {
        notes.push(format!("/etc/fstab mounts {} over /boot, which cannot be read here", printable(device)));
    }
    Ok(found)
}

impl<'a> KernelFolder<'a> {
    /// The regular file at a path of the volume, symbolic links followed, even if it is empty.
    pub(super) fn regular(self, path: &str) -> Result<Option<Candidate<'a>>, ReadError> {
        let fs = &self.volume.fs;
        let found = fs.find(path)?.filter(|node| node.kind() == FileKind::File);
        Ok(found.map(|node| Candidate { fs, path: format!("/{}", path.trim_start_matches('/')), node }))
    }

    /// The regular file at a path of the volume that is not empty.
    pub(super) fn find(self, path: &str) -> Result<Option<Candidate<'a>>, ReadError> {
        Ok(self.regular(path)?.filter(|found| found.size() > 0))
    }

    /// The first of these names that is a file in the folder.
    fn first(self, names: &[impl AsRef<str>]) -> Result<Option<Candidate<'a>>, ReadError> {
        for name in names {
            if let Some(found) = self.find(&format!("{}/{}", self.folder, name.as_ref()))? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The content of a text file within the maximum length.
    pub(super) fn text(self, path: &str) -> Result<Option<String>, ReadError> {
        match self.regular(path)? {
            Some(file) if file.size() <= TEXT_MAX => {
                // A sparse file costs no reads, so charge its length.
                file.fs.charge(file.size().saturating_mul(TEXT_BYTE_COST))?;
                Ok(Some(String::from_utf8_lossy(&file.fs.read(&file.node, TEXT_MAX)?).into_owned()))
            }
            _ => Ok(None),
        }
    }

    /// The names in a folder, whose path is relative to this one.
    pub(super) fn names(
        self,
        folder: &str,
        max: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, ReadError> {
        let path = format!("{}{folder}", self.folder);
        match self.volume.fs.find(&path)? {
            Some(node) => self.volume.fs.list(&node, max, wanted),
            None => Ok(Vec::new()),
        }
    }

    pub(super) fn initrd(self, release: &str) -> Result<Option<ImageFile>, ReadError> {
        self.first(&names::initrds(release))?.map(|found| found.locate(INITRD_MAX)).transpose()
    }

    /// Takes the newest kernel, else the one without a version in its name, else one beside its modules.
    pub(super) fn kernel(self, explored: &mut Explored) -> Result<(), ReadError> {
        let found = match self.newest()? {
            Some(found) => Some(found),
            None => self
                .first(&names::PLAIN_KERNELS)?
                .map(|kernel| Ok::<_, ReadError>((kernel, self.first(&names::PLAIN_INITRDS)?)))
                .transpose()?,
        };
        if let Some((kernel, initrd)) = found {
            explored.kernel = Some(kernel.locate(KERNEL_MAX)?);
            explored.initrd = initrd.map(|initrd| initrd.locate(INITRD_MAX)).transpose()?;
            return Ok(());
        }
        if self.folder.is_empty() { self.beside_modules(explored) } else { Ok(()) }
    }

    /// The newest kernel that has an initrd, else the newest one. A name is looked up only if it can be
    /// chosen.
    fn newest(self) -> Result<Option<(Candidate<'a>, Option<Candidate<'a>>)>, ReadError> {
        let mut found = self.names("", NAMES, |name| names::release(name).is_some())?;
        found.sort_by(|one, other| names::order(one, other));
        let there: HashSet<String> =
            self.names("", NAMES, |name| name.starts_with("init"))?.into_iter().collect();
        let mut alone = None;
        for name in found {
            let mut initrds = names::initrds(names::release(&name).unwrap_or_default());
            initrds.retain(|name| there.contains(name));
            // Its installation may be incomplete: an older complete one starts.
            if initrds.is_empty() && alone.is_some() {
                continue;
            }
            let Some(kernel) = self.first(&[name])? else { continue };
            match self.first(&initrds)? {
                Some(initrd) => return Ok(Some((kernel, Some(initrd)))),
                None => alone = alone.or(Some(kernel)),
            }
        }
        Ok(alone.map(|kernel| (kernel, None)))
    }

    /// A kernel in the folder of its modules, whose initrd is in /boot.
    fn beside_modules(self, explored: &mut Explored) -> Result<(), ReadError> {
        let mut releases = self.names("/lib/modules", NAMES, |name| !name.starts_with('.'))?;
        releases.sort_by(|one, other| super::version::compare(other, one));
        for release in releases {
            if let Some(kernel) = self.find(&format!("/lib/modules/{release}/vmlinuz"))? {
                explored.kernel = Some(kernel.locate(KERNEL_MAX)?);
                explored.initrd = KernelFolder { folder: "/boot", ..self }.initrd(&release)?;
                return Ok(());
            }
        }
        Ok(())
    }
}
