//! The readable file systems of a disk: their names, and which one is the root.

use std::fmt::Write;

use super::disk::{Disk, ReadError, Window};
use super::filesystem::{FileKind, FileSystem};
use super::partitions::{self, Kind, Partition};
use super::signatures::{LVM, describe};

/// Programs that make a file system a root: the kernel needs one to start.
const INITS: [&str; 5] =
    ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/bin/init", "/etc/init"];
/// Programs that Linux starts as well, and that a rescue system or an unpacked initrd also has.
const LESSER_INITS: [&str; 3] = ["/init", "/bin/sh", "/usr/bin/sh"];

/// How much a file system looks like a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// It has no program to start.
    No,
    /// It has a program to start.
    Bare,
    /// It has an init and `/etc`.
    Installed,
}

/// A readable file system.
pub(super) struct Volume<'a> {
    pub(super) fs: FileSystem<'a>,
    /// Its location, for people.
    pub(super) name: String,
    /// Number of its partition; 0 is the whole disk.
    pub(super) number: u32,
    pub(super) rank: Rank,
    /// The `PARTUUID` and `PARTLABEL` of its partition in Linux.
    pub(super) partuuid: Option<String>,
    partlabel: String,
}

/// The first of the file systems with the highest rank.
pub(super) fn root<'v, 'a>(volumes: &'v [Volume<'a>]) -> Option<&'v Volume<'a>> {
    let best = volumes.iter().map(|volume| volume.rank).max().filter(|rank| *rank > Rank::No)?;
    volumes.iter().find(|volume| volume.rank == best)
}

/// The readable file systems, in the order of their partitions. Other content is described in `looked`.
pub(super) fn volumes<'a>(disk: &'a Disk<'a>, looked: &mut String) -> Result<Vec<Volume<'a>>, ReadError> {
    let mut volumes = Vec::new();
    if let Some((table, partitions)) = partitions::read(disk)? {
        let count = partitions.len();
        let _ = write!(looked, "it has {count} partition{} ({table})", if count == 1 { "" } else { "s" });
        for partition in partitions {
            volumes.extend(volume(disk, partition.window, Some(&partition), looked)?);
        }
    }
    // Behind a partition table, other content of the disk is unknown by design.
    let is_file_system = || matches!(FileSystem::open(disk, disk.whole()), Ok(Some(_)));
    if volumes.is_empty() && (looked.is_empty() || is_file_system()) {
        volumes.extend(volume(disk, disk.whole(), None, looked)?);
    }
    Ok(volumes)
}

/// Opens a file system, if it is readable, and describes the content in `looked`.
fn volume<'a>(
    disk: &'a Disk<'a>,
    window: Window,
    partition: Option<&Partition>,
    looked: &mut String,
) -> Result<Option<Volume<'a>>, ReadError> {
    if !looked.is_empty() {
        looked.push_str("; ");
    }
    let name = partition.map_or("the whole disk".to_owned(), |found| format!("partition {}", found.number));
    let mut what = None;
    let ranked = FileSystem::open(disk, window).and_then(|fs| {
        let Some(fs) = fs else { return Ok(None) };
        what = Some(fs.name());
        Ok(Some((rank(&fs)?, fs)))
    });
    let is_efi = partition.is_some_and(|partition| partition.kind == Kind::Efi);
    // A damaged file system does not hide the others.
    let (rank, fs) = match ranked {
        Ok(Some(found)) => found,
        Ok(None) => {
            let kind = match partition.map(|partition| partition.kind) {
                Some(Kind::Lvm) => LVM.to_owned(),
                Some(Kind::Efi) => "the EFI system partition".to_owned(),
                _ => describe(disk, window),
            };
            let _ = write!(looked, "{name} is {kind}");
            return Ok(None);
        }
        Err(error @ (ReadError::Io(_) | ReadError::Endless)) => return Err(error),
        Err(error) => {
            let what = what.map_or_else(|| describe(disk, window), str::to_owned);
            let _ = write!(looked, "{name} is {what}, and {error}");
            return Ok(None);
        }
    };
    let system = match rank {
        _ if !fs.may_be_root() && is_efi => ", the EFI system partition",
        _ if !fs.may_be_root() => "",
        Rank::No => " with no root file system (it has no /sbin/init)",
        Rank::Bare | Rank::Installed => " with a root file system",
    };
    let _ = write!(looked, "{name} is {}{system}", fs.name());
    Ok(Some(Volume {
        fs,
        name,
        number: partition.map_or(0, |partition| partition.number),
        rank,
        partuuid: partition.map(|partition| partition.uuid.clone()),
        partlabel: partition.map(|partition| partition.label.clone()).unwrap_or_default(),
    }))
}

fn rank(fs: &FileSystem<'_>) -> Result<Rank, ReadError> {
    let any = |paths: &[&str], kind: FileKind| {
        for path in paths {
            if fs.find(path)?.is_some_and(|node| node.kind() == kind) {
                return Ok(true);
            }
        }
        Ok::<_, ReadError>(false)
    };
    if !fs.may_be_root() {
        return Ok(Rank::No);
    }
    if any(&INITS, FileKind::File)? {
        return Ok(if any(&["/etc"], FileKind::Folder)? { Rank::Installed } else { Rank::Bare });
    }
    Ok(if any(&LESSER_INITS, FileKind::File)? { Rank::Bare } else { Rank::No })
}

impl Volume<'_> {
    /// The value of `root=` in Linux.
    pub(super) fn root(&self) -> String {
        self.partuuid.as_ref().map_or("/dev/vda".to_owned(), |uuid| format!("PARTUUID={uuid}"))
    }

    /// GRUB's name of the device.
    pub(super) fn device(&self) -> String {
        if self.number == 0 { "hd0".to_owned() } else { format!("hd0,{}", self.number) }
    }

    /// Whether this is a GRUB name of the device, such as `hd0,gpt2`.
    pub(super) fn is_device(&self, device: &str) -> bool {
        match device.strip_prefix("hd0") {
            Some("") => self.number == 0,
            Some(part) => {
                let number = part.trim_start_matches(|sign: char| sign == ',' || sign.is_ascii_alphabetic());
                number.parse() == Ok(self.number)
            }
            None => false,
        }
    }

    /// Whether `device` in an fstab names this file system.
    pub(super) fn is_called(&self, device: &str) -> bool {
        let value = |name: &str| {
            let by = format!("/dev/disk/by-{}/", name.to_ascii_lowercase());
            let value = device.strip_prefix(&format!("{name}=")).or_else(|| device.strip_prefix(&by))?;
            Some(value.trim_matches('"')).filter(|value| !value.is_empty())
        };
        let same = |name: &str, own: &str| value(name).is_some_and(|value| value.eq_ignore_ascii_case(own));
        let disk = ["/dev/vda", "/dev/sda", "/dev/xvda", "/dev/hda", "/dev/nvme0n1p", "/dev/mmcblk0p"];
        let number = if self.number == 0 { String::new() } else { self.number.to_string() };
        same("UUID", self.fs.uuid())
            || same("PARTUUID", self.partuuid.as_deref().unwrap_or_default())
            || value("LABEL").is_some_and(|value| unescaped(value) == self.fs.label())
            || value("PARTLABEL").is_some_and(|value| unescaped(value) == self.partlabel)
            || disk.iter().any(|disk| device.strip_prefix(disk) == Some(&number))
    }
}

/// A label without the escapes of udev and fstab (`\\x20`, `\\040`).
fn unescaped(label: &str) -> String {
    label.replace("\\x20", " ").replace("\\040", " ")
}
