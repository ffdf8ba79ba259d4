//! Errors of disks, for people.

use std::io;
use std::path::{Path, PathBuf};

use super::holder::DiskHolder;

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// It does not exist.
    #[error(
        "there is no disk {}; {}",
        path.display(), missing_hint(path)
    )]
    NotFound {
        /// Its path.
        path: PathBuf,
    },
    /// It is a folder, a FIFO or a terminal.
    #[error("{} is {what}, and a disk must be a raw image file or a block device", path.display())]
    NotADisk {
        /// Its path.
        path: PathBuf,
        /// Its kind.
        what: &'static str,
    },
    /// The user lacks permission.
    #[error("you may not {operation} the disk {}: {cure}", path.display())]
    Denied {
        /// Its path.
        path: PathBuf,
        /// The operation.
        operation: &'static str,
        /// The cure.
        cure: String,
    },
    /// No user can write to it.
    #[error("the disk {0} cannot be written to, since {why}; give it as `{0},ro` to read only", path.display())]
    ReadOnly {
        /// Its path.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// It is an image in another format.
    #[error(
        "{0} is {format}, and only raw images are understood; convert it with `qemu-img convert -O raw {0} {1}`",
        path.display(), converted(path).display()
    )]
    Format {
        /// Its path.
        path: PathBuf,
        /// The format, with its article.
        format: &'static str,
    },
    /// It has less than one sector.
    #[error("the disk {} {}", path.display(), too_small(path))]
    Empty {
        /// Its path.
        path: PathBuf,
    },
    /// Another process has locked it.
    #[error(
        "the disk {} is in use{}; two machines would destroy it. End the other, or give it read-only (`,ro`) to both",
        path.display(), used_by(.holder.as_ref())
    )]
    Busy {
        /// Its path.
        path: PathBuf,
        /// The process with the lock, if known.
        holder: Option<DiskHolder>,
    },
    /// A loop device shows it too.
    #[error("the disk {0} is also the loop device {device}, {1}", path.display(), loop_cure(device, *read_only))]
    LoopDevice {
        /// Its path.
        path: PathBuf,
        /// The loop device.
        device: PathBuf,
        /// It was to be read only.
        read_only: bool,
    },
    /// The host itself uses it.
    #[error(
        "the block device {0} is in use by this host (mounted, swap, or part of a RAID or a volume group); end that, or give it as `{0},ro` to read only",
        path.display()
    )]
    OwnedByHost {
        /// Its path.
        path: PathBuf,
    },
    /// Any other error.
    #[error("the disk {} cannot be used: {action}: {error}", path.display())]
    Io {
        /// Its path.
        path: PathBuf,
        /// The operation.
        action: &'static str,
        /// The host's error.
        error: io::Error,
    },
}

fn used_by(holder: Option<&DiskHolder>) -> String {
    holder.map_or_else(String::new, |holder| format!(" by {holder}"))
}

/// The cure for a loop device over a disk.
fn loop_cure(device: &Path, read_only: bool) -> String {
    let device = device.display();
    if read_only {
        format!(
            "which can be written to while this machine reads; end that with `losetup -d {device}`, or attach it with \
             `losetup -r`"
        )
    } else {
        format!(
            "and two users of one disk would destroy it; unmount what is on it and end it with `losetup -d {device}`, or give \
             {device} as the disk"
        )
    }
}

/// The cure for a missing image. For the suffix of another format, making an empty image would be wrong.
fn missing_hint(path: &Path) -> String {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "qcow2" | "qcow" | "vmdk" | "vdi" | "vhd" | "vhdx" | "qed" => format!(
            "correct the path; only raw images are understood, and `qemu-img convert -O raw {} {}` makes one",
            path.display(),
            converted(path).display()
        ),
        "iso" => "correct the path".to_owned(),
        _ => format!("correct the path, or make an empty one with `truncate -s 60G {}`", path.display()),
    }
}

/// The cure for a tiny image. A file with content must not be extended.
fn too_small(path: &Path) -> String {
    match std::fs::metadata(path).map(|meta| meta.len()) {
        Ok(len @ 1..) => {
            format!("has {len} bytes, and a disk has 512 at least; check that it is the right file")
        }
        _ => format!("is empty; give it a size with `truncate -s 60G {}`", path.display()),
    }
}

/// A path for the raw image that is converted from `path`, different from it.
fn converted(path: &Path) -> PathBuf {
    let raw = path.with_extension("raw");
    if raw == path { path.with_extension("new.raw") } else { raw }
}
