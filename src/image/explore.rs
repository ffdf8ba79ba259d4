//! Looks over a disk: its file systems, which of them is the root, and what there is to boot.

use std::collections::HashSet;
use std::fmt::Write;

use super::bootloader::grub::Stop;
use super::bootloader::{Entry, Files, bls, grub, syslinux};
use super::disk::{Disk, ReadError};
use super::ext::{ExtFs, FileKind, Inode, Run};
use super::names;
use super::partitions::{self, Kind};
use super::sniff::{LVM, sniff};
use super::text::clean;

/// Most names of kernels and of loader entries that are looked at in a folder.
const NAMES: usize = 1024;
const ENTRIES: usize = 64;
/// Longest file of a boot loader that is read.
const TEXT_MAX: u64 = 1 << 20;
/// Longest kernel and initrd. A longer one is found, and no place of its bytes is looked up.
pub(crate) const KERNEL_MAX: u64 = 256 << 20;
pub(crate) const INITRD_MAX: u64 = 1 << 30;
/// Programs that make a file system a root: without one the kernel has nothing to start.
const INITS: [&str; 5] =
    ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/bin/init", "/etc/init"];
/// Programs that Linux would start as well, and that a rescue system or an unpacked initrd has too.
const LESSER_INITS: [&str; 3] = ["/init", "/bin/sh", "/usr/bin/sh"];

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

/// How much a file system looks like a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It has nothing to start.
    No,
    /// It has a program to start.
    Bare,
    /// It has an init and `/etc`.
    Installed,
}

/// A file system that can be read.
struct Volume<'a> {
    fs: ExtFs<'a>,
    name: String,
    root: String,
    rank: Rank,
    /// What its superblock calls it.
    uuid: String,
    label: String,
}

/// A folder where kernels lie.
#[derive(Clone, Copy)]
struct Place<'a> {
    volume: &'a Volume<'a>,
    folder: &'static str,
}

/// A file that was found and may be taken: nothing of its content was looked at.
struct Candidate<'a> {
    fs: &'a ExtFs<'a>,
    path: String,
    inode: Inode,
}

impl Candidate<'_> {
    /// Looks up where its bytes lie. A file that is longer than `max` has no runs.
    fn take(&self, max: u64) -> Result<ImageFile, ReadError> {
        let size = self.inode.size;
        let runs = if size > max { Vec::new() } else { self.fs.runs(&self.inode, max)? };
        Ok(ImageFile { path: clean(&self.path), size, runs })
    }
}

/// Looks over the disk.
pub(crate) fn explore(disk: &Disk<'_>, wanted: Wanted<'_>) -> Result<Explored, ReadError> {
    let mut explored = Explored::default();
    let volumes = volumes(disk, &mut explored.looked)?;
    explored.readable = !volumes.is_empty();
    let root = root(&volumes);
    explored.root = root.map(|volume| (volume.root.clone(), volume.name.clone()));
    let boot = root.map_or(Ok(None), |root| mounted_boot(root, &volumes, &mut explored.notes))?;
    let places = places(root, boot, &volumes);
    if wanted == Wanted::Kernel {
        // A boot loader's file outranks bare names, wherever those are.
        for place in &places {
            place.entry(&volumes, &mut explored)?;
            if explored.kernel.is_some() {
                return Ok(explored);
            }
        }
    }
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
            Wanted::Initrd(release) => names::initrds(release).join(", no "),
            Wanted::Kernel | Wanted::Nothing => "vmlinuz-VERSION".to_owned(),
        };
        let folder = if place.folder.is_empty() { "at its top" } else { "in its /boot" };
        let _ = write!(explored.looked, "; {} has no {names} {folder}", place.volume.name);
    }
    Ok(explored)
}

/// A whole file at a path of the disk's root file system, links followed, if it is at most so long.
pub(crate) fn read_file(disk: &Disk<'_>, path: &str, max: u64) -> Result<Option<Vec<u8>>, ReadError> {
    let volumes = volumes(disk, &mut String::new())?;
    let Some(root) = root(&volumes) else { return Ok(None) };
    match root.fs.find(path)? {
        Some(inode) if inode.kind == FileKind::File => root.fs.read(&inode, max).map(Some),
        _ => Ok(None),
    }
}

/// The first of those file systems that look most like a root.
fn root<'v, 'a>(volumes: &'v [Volume<'a>]) -> Option<&'v Volume<'a>> {
    let best = volumes.iter().map(|volume| volume.rank).max().filter(|rank| *rank > Rank::No)?;
    volumes.iter().find(|volume| volume.rank == best)
}

/// The file systems that can be read, in the order of their partitions. What else there is goes into `looked`.
fn volumes<'a>(disk: &'a Disk<'a>, looked: &mut String) -> Result<Vec<Volume<'a>>, ReadError> {
    let mut volumes = Vec::new();
    if let Some((table, partitions)) = partitions::read(disk)? {
        let count = partitions.len();
        let _ = write!(looked, "it has {count} partition{} ({table})", if count == 1 { "" } else { "s" });
        for partition in partitions {
            let name = format!("partition {}", partition.number);
            let opened = ExtFs::open(disk, partition.window);
            let root = format!("PARTUUID={}", partition.uuid);
            let kind = match partition.kind {
                Kind::Lvm => LVM,
                Kind::Efi => "the EFI system partition",
                Kind::Other => sniff(disk, partition.window),
            };
            let found = volume(opened, name, root, kind, looked)?;
            volumes.extend(found.map(|found| called(disk, partition.window, found)));
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
    let mut what = "an ext file system";
    let ranked = opened.and_then(|fs| {
        let Some(fs) = fs else { return Ok(None) };
        what = fs.name();
        Ok(Some((rank(&fs)?, fs)))
    });
    // A damaged file system does not hide the others.
    let (rank, fs) = match ranked {
        Ok(Some(found)) => found,
        Ok(None) => {
            let _ = write!(looked, "{separator}{name} is {kind}");
            return Ok(None);
        }
        Err(error @ (ReadError::Io(_) | ReadError::Endless)) => return Err(error),
        Err(error) => {
            let _ = write!(looked, "{separator}{name} is {what}, and {error}");
            return Ok(None);
        }
    };
    let system = match rank {
        Rank::No => "no root file system (it has no /sbin/init)",
        Rank::Bare | Rank::Installed => "a root file system",
    };
    let _ = write!(looked, "{separator}{name} is {what} with {system}");
    Ok(Some(Volume { fs, name, root, rank, uuid: String::new(), label: String::new() }))
}

/// Adds the UUID and the label in its superblock (at 0x68 and 0x78).
fn called<'a>(disk: &Disk<'_>, window: super::disk::Window, volume: Volume<'a>) -> Volume<'a> {
    let mut bytes = [0; 32];
    if disk.read(window, 1024 + 0x68, &mut bytes, "its superblock").is_err() {
        return volume;
    }
    let (uuid, label) = bytes.split_at(16);
    let hex: Vec<_> = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [hex.get(..4), hex.get(4..6), hex.get(6..8), hex.get(8..10), hex.get(10..)];
    let uuid = parts.map(|part| part.unwrap_or_default().concat()).join("-");
    let label = label.split(|byte| *byte == 0).next().unwrap_or_default();
    Volume { uuid, label: String::from_utf8_lossy(label).into_owned(), ..volume }
}

fn rank(fs: &ExtFs<'_>) -> Result<Rank, ReadError> {
    let any = |paths: &[&str], kind: FileKind| {
        for path in paths {
            if fs.find(path)?.is_some_and(|inode| inode.kind == kind) {
                return Ok(true);
            }
        }
        Ok::<_, ReadError>(false)
    };
    if any(&INITS, FileKind::File)? {
        return Ok(if any(&["/etc"], FileKind::Folder)? { Rank::Installed } else { Rank::Bare });
    }
    Ok(if any(&LESSER_INITS, FileKind::File)? { Rank::Bare } else { Rank::No })
}

/// Where kernels may lie, the best place first.
fn places<'a>(
    root: Option<&'a Volume<'a>>,
    boot: Option<&'a Volume<'a>>,
    volumes: &'a [Volume<'a>],
) -> Vec<Place<'a>> {
    let mut places: Vec<_> = boot.map(|volume| Place { volume, folder: "" }).into_iter().collect();
    places.extend(root.map(|volume| Place { volume, folder: "/boot" }));
    // A partition of its own for /boot has the same at its top. Another installed system is not searched.
    let other = |volume: &&Volume<'_>| {
        volume.rank < Rank::Installed && root.is_none_or(|root| !std::ptr::eq(root, *volume))
    };
    places.extend(volumes.iter().filter(other).map(|volume| Place { volume, folder: "" }));
    // Links at the root's top are Debian's oldest custom.
    places.extend(root.map(|volume| Place { volume, folder: "" }));
    places
}

/// The file system that the root's fstab mounts over its /boot.
fn mounted_boot<'a>(
    root: &Volume<'_>,
    volumes: &'a [Volume<'a>],
    notes: &mut Vec<String>,
) -> Result<Option<&'a Volume<'a>>, ReadError> {
    let fstab = Place { volume: root, folder: "" }.text("/etc/fstab")?.unwrap_or_default();
    let device = fstab.lines().filter(|line| !line.trim_start().starts_with('#')).find_map(|line| {
        let mut fields = line.split_whitespace();
        let device = fields.next()?;
        (fields.next()?.trim_end_matches('/') == "/boot").then_some(device)
    });
    let Some(device) = device else { return Ok(None) };
    let found = volumes.iter().find(|volume| volume.is_called(device));
    if found.is_none() {
        notes.push(format!("/etc/fstab mounts {} over /boot, which cannot be read here", clean(device)));
    }
    Ok(found)
}

impl Volume<'_> {
    /// Whether an fstab means this file system by `device`.
    fn is_called(&self, device: &str) -> bool {
        let is = |name: &str, own: &str| {
            let by = format!("/dev/disk/by-{}/", name.to_ascii_lowercase());
            let value = device.strip_prefix(&format!("{name}=")).or_else(|| device.strip_prefix(&by));
            value.is_some_and(|value| !own.is_empty() && value.trim_matches('"').eq_ignore_ascii_case(own))
        };
        let number = self.name.rsplit(' ').next().unwrap_or_default();
        let partuuid = self.root.strip_prefix("PARTUUID=").unwrap_or_default();
        let disk = ["/dev/vda", "/dev/sda", "/dev/xvda", "/dev/hda", "/dev/nvme0n1p", "/dev/mmcblk0p"];
        is("UUID", &self.uuid)
            || is("LABEL", &self.label)
            || is("PARTUUID", partuuid)
            || disk.iter().any(|disk| device.strip_prefix(disk) == Some(number))
    }
}

impl Files for Place<'_> {
    fn text(&self, path: &str) -> Result<Option<String>, ReadError> {
        Place::text(*self, path).or_else(damaged)
    }

    fn entries(&self) -> Result<Vec<(String, String)>, ReadError> {
        let mut all = Vec::new();
        for name in self.names("/loader/entries", ENTRIES, |name| name.ends_with(".conf"))? {
            let text = Place::text(*self, &format!("{}/loader/entries/{name}", self.folder))?;
            all.extend(text.map(|text| (name, text)));
        }
        Ok(all)
    }
}

/// A damaged file does not hide the others.
fn damaged<T: Default>(error: ReadError) -> Result<T, ReadError> {
    match error {
        ReadError::Io(_) | ReadError::Endless => Err(error),
        _ => Ok(T::default()),
    }
}

impl<'a> Place<'a> {
    /// The regular file at a path of the volume, links followed.
    fn find(self, path: &str) -> Result<Option<Candidate<'a>>, ReadError> {
        let fs = &self.volume.fs;
        let found = fs.find(path)?.filter(|inode| inode.kind == FileKind::File && inode.size > 0);
        Ok(found.map(|inode| Candidate { fs, path: format!("/{}", path.trim_start_matches('/')), inode }))
    }

    /// The first of these names in the folder that is a file.
    fn first(self, names: &[impl AsRef<str>]) -> Result<Option<Candidate<'a>>, ReadError> {
        for name in names {
            if let Some(found) = self.find(&format!("{}/{}", self.folder, name.as_ref()))? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn text(self, path: &str) -> Result<Option<String>, ReadError> {
        let fs = &self.volume.fs;
        match fs.find(path)? {
            Some(inode) if inode.kind == FileKind::File && inode.size <= TEXT_MAX => {
                Ok(Some(String::from_utf8_lossy(&fs.read(&inode, TEXT_MAX)?).into_owned()))
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
        self.first(&names::initrds(release))?.map(|found| found.take(INITRD_MAX)).transpose()
    }

    /// The newest kernel, else the one that is linked to, else one beside its modules.
    fn kernel(self, explored: &mut Explored) -> Result<(), ReadError> {
        let found = match self.newest()? {
            Some(found) => Some(found),
            None => self
                .first(&names::PLAIN_KERNELS)?
                .map(|kernel| Ok::<_, ReadError>((kernel, self.first(&names::PLAIN_INITRDS)?)))
                .transpose()?,
        };
        if let Some((kernel, initrd)) = found {
            explored.kernel = Some(kernel.take(KERNEL_MAX)?);
            explored.initrd = initrd.map(|initrd| initrd.take(INITRD_MAX)).transpose()?;
            return Ok(());
        }
        if self.folder.is_empty() { self.beside_modules(explored) } else { Ok(()) }
    }

    /// The newest kernel that has an initrd, else the newest one. A name is looked up only where it can be the one.
    fn newest(self) -> Result<Option<(Candidate<'a>, Option<Candidate<'a>>)>, ReadError> {
        let mut found = self.names("", NAMES, |name| names::release(name).is_some())?;
        found.sort_by(|one, other| names::order(one, other));
        let there: HashSet<String> =
            self.names("", NAMES, |name| name.starts_with("init"))?.into_iter().collect();
        let mut alone = None;
        for name in found {
            let mut initrds = names::initrds(names::release(&name).unwrap_or_default());
            initrds.retain(|name| there.contains(name));
            // Perhaps one whose installation was cut short: an older one that is whole starts.
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
                explored.kernel = Some(kernel.take(KERNEL_MAX)?);
                explored.initrd = Place { folder: "/boot", ..self }.initrd(&release)?;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Takes what a boot loader's files here would start.
    fn entry(self, volumes: &'a [Volume<'a>], explored: &mut Explored) -> Result<(), ReadError> {
        for (file, entry) in self.choices(explored)? {
            let kernel = self.named(&entry.kernel, volumes)?;
            let mut missing = kernel.is_none().then(|| entry.kernel.clone());
            let mut initrds = Vec::new();
            for path in &entry.initrds {
                match self.named(path, volumes)? {
                    Some(initrd) => initrds.push(initrd),
                    None => missing = missing.or(Some(path.clone())),
                }
            }
            // One that names what is not there is out of date.
            let (Some(kernel), None) = (kernel, &missing) else {
                let missing = missing.unwrap_or_default();
                let note = format!(
                    "{file} on {} names {}, which is not there or empty",
                    self.volume.name,
                    clean(&missing)
                );
                explored.notes.push(note);
                continue;
            };
            let title = clean(&entry.title);
            explored.kernel = Some(kernel.take(KERNEL_MAX)?);
            explored.initrd = join(&initrds)?;
            explored.entry = Some((format!("{file} ({title})"), Some(entry.options)));
            return Ok(());
        }
        Ok(())
    }

    /// The default entries of the boot loaders whose files are here, with those files.
    fn choices(self, explored: &mut Explored) -> Result<Vec<(String, Entry)>, ReadError> {
        let mut all = Vec::new();
        for folder in ["/grub", "/grub2"].map(|name| format!("{}{name}", self.folder)) {
            let path = format!("{folder}/grub.cfg");
            let Some(text) = Files::text(&self, &path)? else { continue };
            match grub::choose(&self, &folder, &text) {
                Ok(entry) => all.push((path, entry)),
                Err(Stop::Read(error)) => return Err(error),
                Err(Stop::Because(why)) => {
                    explored.notes.push(format!("{path} on {} is not followed: {why}", self.volume.name));
                }
            }
        }
        let entries = self.entries()?.iter().filter_map(|(name, text)| bls::parse(name, text)).collect();
        let loader = Files::text(&self, &format!("{}/loader/loader.conf", self.folder))?.unwrap_or_default();
        if let Some(found) = bls::choose(entries, &loader) {
            let path = format!("{}/loader/entries/{}.conf", self.folder, clean(&found.id));
            all.push((path, found.entry));
        }
        for (folder, name) in [
            ("/extlinux", "extlinux.conf"),
            ("", "extlinux.conf"),
            ("/syslinux", "syslinux.cfg"),
            ("/isolinux", "isolinux.cfg"),
            ("", "syslinux.cfg"),
        ] {
            let folder = format!("{}{folder}", self.folder);
            let path = format!("{folder}/{name}");
            let entry = Files::text(&self, &path)?.and_then(|text| syslinux::parse(&text, &folder));
            all.extend(entry.map(|entry| (path, entry)));
        }
        Ok(all)
    }

    /// A path as a boot loader writes it: from the top of the file system that it lies in, or of the folder that it
    /// takes for one.
    fn named(self, path: &str, volumes: &'a [Volume<'a>]) -> Result<Option<Candidate<'a>>, ReadError> {
        let own = match self.find(path)? {
            None => self.first(&[path.trim_start_matches('/')])?,
            found => found,
        };
        if own.is_some() {
            return Ok(own);
        }
        for volume in volumes {
            if let Some(found) = (Place { volume, folder: "" }).find(path)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// Several initrds one behind the other, each at a multiple of four bytes, as Linux unpacks them. What is too long all
/// together has no runs.
fn join(files: &[Candidate<'_>]) -> Result<Option<ImageFile>, ReadError> {
    let fits = files.iter().try_fold(0_u64, |size, next| {
        size.next_multiple_of(4).checked_add(next.inode.size).filter(|size| *size <= INITRD_MAX)
    });
    let max = if fits.is_some() { INITRD_MAX } else { 0 };
    let Some((first, others)) = files.split_first() else { return Ok(None) };
    let mut all = first.take(max)?;
    for next in others {
        let file = next.take(max)?;
        let start = all.size.checked_next_multiple_of(4).unwrap_or(u64::MAX);
        all.runs.extend(file.runs.iter().map(|run| Run { file: run.file.saturating_add(start), ..*run }));
        all.size = start.saturating_add(file.size);
        all.path.push_str(" + ");
        all.path.push_str(&file.path);
    }
    Ok(Some(all))
}
