//! Looks over a disk: its file systems, which of them is the root, and what there is to boot.

use std::fmt::Write;

use boot::read::ReadAt;

use super::disk::{Disk, ReadError};
use super::entries::{self, Entry};
use super::ext::{ExtFs, FileKind, Run};
use super::partitions::{self, Kind};
use super::sniff::{LVM, sniff};
use super::version::compare;

/// Most names of kernels and of loader entries that are looked at in a folder.
const NAMES: usize = 1024;
const ENTRIES: usize = 64;
/// Longest file of a boot loader that is read.
const TEXT_MAX: u64 = 1 << 20;
/// Longest kernel or initrd.
const FILE_MAX: u64 = 1 << 30;
/// Programs that make a file system a root: without one the kernel has nothing to start.
const INITS: [&str; 5] =
    ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/bin/init", "/etc/init"];

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
    /// The boot loader's entry that names the kernel: its file, and its options if they are plain.
    pub(crate) entry: Option<(String, Option<String>)>,
    /// A file system that could be read, root or not.
    pub(crate) readable: bool,
    /// What was looked at and what is there, for the error of whoever wanted more.
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

/// A file system that can be read.
struct Volume<'a> {
    fs: ExtFs<'a>,
    name: String,
    root: String,
    has_init: bool,
}

/// A folder where kernels lie.
#[derive(Clone, Copy)]
struct Place<'a> {
    volume: &'a Volume<'a>,
    folder: &'static str,
}

/// Looks over the disk.
pub(crate) fn explore(source: &dyn ReadAt, wanted: Wanted<'_>) -> Result<Explored, ReadError> {
    let disk = Disk::new(source)?;
    let mut explored = Explored::default();
    let volumes = volumes(&disk, &mut explored.looked)?;
    explored.readable = !volumes.is_empty();
    let root = volumes.iter().find(|volume| volume.has_init);
    explored.root = root.map(|volume| (volume.root.clone(), volume.name.clone()));
    let mut places: Vec<_> = root.map(|volume| Place { volume, folder: "/boot" }).into_iter().collect();
    // A partition of its own for /boot has the same at its top.
    places
        .extend(volumes.iter().filter(|volume| !volume.has_init).map(|volume| Place { volume, folder: "" }));
    // Links at the root's top are Debian's oldest custom.
    places.extend(root.map(|volume| Place { volume, folder: "" }));
    for place in places {
        match wanted {
            Wanted::Nothing => break,
            Wanted::Initrd(release) => explored.initrd = place.initrd(release)?,
            Wanted::Kernel => place.kernel(&mut explored)?,
        }
        if explored.kernel.is_some() || explored.initrd.is_some() {
            break;
        }
        let names = match wanted {
            Wanted::Initrd(release) => initrd_names(release).join(", no "),
            Wanted::Kernel | Wanted::Nothing => "vmlinuz-VERSION".to_owned(),
        };
        let folder = if place.folder.is_empty() { "at its top" } else { "in its /boot" };
        let _ = write!(explored.looked, "; {} has no {names} {folder}", place.volume.name);
    }
    Ok(explored)
}

/// A whole file at a path of the disk's root file system, links followed, if it is at most so long.
pub(crate) fn read_file(source: &dyn ReadAt, path: &str, max: u64) -> Result<Option<Vec<u8>>, ReadError> {
    let disk = Disk::new(source)?;
    let volumes = volumes(&disk, &mut String::new())?;
    let Some(root) = volumes.iter().find(|volume| volume.has_init) else { return Ok(None) };
    match root.fs.find(path)? {
        Some(inode) if inode.kind == FileKind::File => root.fs.read(&inode, max).map(Some),
        _ => Ok(None),
    }
}

/// The file systems that can be read, in the order of their partitions. What else there is goes into `looked`.
fn volumes<'a>(disk: &'a Disk<'a>, looked: &mut String) -> Result<Vec<Volume<'a>>, ReadError> {
    let mut volumes = Vec::new();
    if let Some((table, partitions)) = partitions::read(disk)? {
        let _ = write!(looked, "it has {} partitions ({table})", partitions.len());
        for partition in partitions {
            let name = format!("partition {}", partition.number);
            let opened = ExtFs::open(disk, partition.window);
            let root = format!("PARTUUID={}", partition.uuid);
            let kind = match partition.kind {
                Kind::Lvm => LVM,
                Kind::Efi => "the EFI system partition",
                Kind::Other => sniff(disk, partition.window),
            };
            volumes.extend(volume(opened, name, root, kind, looked)?);
        }
    }
    if volumes.is_empty() {
        let opened = ExtFs::open(disk, disk.whole());
        let kind = sniff(disk, disk.whole());
        let name = "the whole disk".to_owned();
        // Behind a table of partitions, whatever else the disk holds is unknown by design.
        if looked.is_empty() || matches!(opened, Ok(Some(_))) {
            volumes.extend(volume(opened, name, "/dev/vda".to_owned(), kind, looked)?);
        }
    }
    Ok(volumes)
}

/// Takes a file system, if it is one that can be read; else says in `looked` what it is.
fn volume<'a>(
    opened: Result<Option<ExtFs<'a>>, ReadError>,
    name: String,
    root: String,
    kind: &str,
    looked: &mut String,
) -> Result<Option<Volume<'a>>, ReadError> {
    let separator = if looked.is_empty() { "" } else { "; " };
    // A damaged file system does not hide the others.
    let (fs, has_init) = match opened.and_then(|fs| fs.map(|fs| Ok((has_init(&fs)?, fs))).transpose()) {
        Ok(Some((has_init, fs))) => (fs, has_init),
        Ok(None) => {
            let _ = write!(looked, "{separator}{name} is {kind}");
            return Ok(None);
        }
        Err(error @ (ReadError::Io(_) | ReadError::Endless)) => return Err(error),
        Err(error) => {
            let _ = write!(looked, "{separator}{name} is ext4, and {error}");
            return Ok(None);
        }
    };
    let what = if has_init { "a root file system" } else { "no root file system (it has no /sbin/init)" };
    let _ = write!(looked, "{separator}{name} is ext4 with {what}");
    Ok(Some(Volume { fs, name, root, has_init }))
}

fn has_init(fs: &ExtFs<'_>) -> Result<bool, ReadError> {
    if fs.find("/etc")?.is_none_or(|etc| etc.kind != FileKind::Folder) {
        return Ok(false);
    }
    for init in INITS {
        if fs.find(init)?.is_some_and(|init| init.kind == FileKind::File) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What distributions call the initrd of a release.
fn initrd_names(release: &str) -> [String; 3] {
    [
        format!("initrd.img-{release}"),    // Debian, Ubuntu
        format!("initramfs-{release}.img"), // Fedora, Red Hat
        format!("initrd-{release}"),        // SUSE
    ]
}

impl Place<'_> {
    /// The regular file at a path of the volume, links followed.
    fn file(self, path: &str) -> Result<Option<ImageFile>, ReadError> {
        let fs = &self.volume.fs;
        match fs.find(path)? {
            Some(inode) if inode.kind == FileKind::File && inode.size > 0 => {
                let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
                Ok(Some(ImageFile { path, size: inode.size, runs: fs.runs(&inode, FILE_MAX)? }))
            }
            _ => Ok(None),
        }
    }

    fn text(self, path: &str) -> Result<Option<String>, ReadError> {
        let fs = &self.volume.fs;
        match fs.find(path)? {
            Some(inode) if inode.kind == FileKind::File && inode.size <= TEXT_MAX => {
                Ok(String::from_utf8(fs.read(&inode, TEXT_MAX)?).ok())
            }
            _ => Ok(None),
        }
    }

    fn names(
        self,
        folder: &str,
        max: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, ReadError> {
        let path = format!("{}{folder}", self.folder);
        match self.volume.fs.find(&path)? {
            Some(inode) => self.volume.fs.list(&inode, max, wanted),
            None => Ok(Vec::new()),
        }
    }

    fn initrd(self, release: &str) -> Result<Option<ImageFile>, ReadError> {
        for name in initrd_names(release) {
            if let Some(file) = self.file(&format!("{}/{name}", self.folder))? {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    /// The kernel that a boot loader would start, else the newest one, else the one that is linked to.
    fn kernel(self, explored: &mut Explored) -> Result<(), ReadError> {
        if let Some((name, entry)) = self.entry()? {
            let kernel = self.named(&entry.kernel)?;
            let initrd = entry.initrd.as_deref().map(|path| self.named(path)).transpose()?;
            // One that names what is not there is out of date.
            if let (Some(kernel), true) = (kernel, initrd.as_ref().is_none_or(Option::is_some)) {
                explored.kernel = Some(kernel);
                explored.initrd = initrd.flatten();
                explored.entry = Some((name, entry.options));
                return Ok(());
            }
        }
        let is_kernel = |name: &str| {
            let odd = [".old", ".bak", ".dpkg-new", ".dpkg-tmp", ".dpkg-bak"];
            name.starts_with("vmlinuz-") && !odd.iter().any(|end| name.ends_with(end))
        };
        let mut names = self.names("", NAMES, is_kernel)?;
        names.sort_by(|one, other| compare(other, one));
        let mut alone = None;
        for name in names {
            let Some(kernel) = self.file(&format!("{}/{name}", self.folder))? else { continue };
            explored.initrd = self.initrd(name.trim_start_matches("vmlinuz-"))?;
            if explored.initrd.is_some() {
                explored.kernel = Some(kernel);
                return Ok(());
            }
            // Perhaps one whose installation was cut short: an older one that is whole starts.
            alone = alone.or(Some(kernel));
        }
        if alone.is_some() {
            explored.kernel = alone;
            return Ok(());
        }
        explored.kernel = self.file(&format!("{}/vmlinuz", self.folder))?;
        if explored.kernel.is_some() {
            explored.initrd = self.file(&format!("{}/initrd.img", self.folder))?;
        }
        Ok(())
    }

    /// What a boot loader's files say.
    fn entry(self) -> Result<Option<(String, Entry)>, ReadError> {
        let folder = format!("{}/loader/entries", self.folder);
        let mut all = Vec::new();
        for name in self.names("/loader/entries", ENTRIES, |name| name.ends_with(".conf"))? {
            let path = format!("{folder}/{name}");
            all.extend(self.text(&path)?.and_then(|text| entries::bls(&text)).map(|entry| (path, entry)));
        }
        if let Some(entry) = entries::newest(all) {
            return Ok(Some(entry));
        }
        for name in ["/grub/grub.cfg", "/grub2/grub.cfg"] {
            let path = format!("{}{name}", self.folder);
            if let Some(entry) = self.text(&path)?.and_then(|text| entries::grub(&text)) {
                return Ok(Some((path, entry)));
            }
        }
        Ok(None)
    }

    /// A path as a boot loader writes it: from the top of the file system that it lies in, or of the folder that it
    /// takes for one.
    fn named(self, path: &str) -> Result<Option<ImageFile>, ReadError> {
        match self.file(path)? {
            Some(file) => Ok(Some(file)),
            None => self.file(&format!("{}/{}", self.folder, path.trim_start_matches('/'))),
        }
    }
}
