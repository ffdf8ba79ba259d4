//! What can be wrong with a disk that is asked for, for people.

use std::io;
use std::path::{Path, PathBuf};

use super::holder::DiskHolder;

/// A disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// Nothing there.
    #[error(
        "there is no disk {}; {}",
        path.display(), missing(path)
    )]
    NotFound {
        /// Its path.
        path: PathBuf,
    },
    /// A folder, a pipe, a terminal.
    #[error("{} is {what}, and a disk must be a raw image file or a block device", path.display())]
    NotADisk {
        /// Its path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The user may not.
    #[error("you may not {wish} the disk {}: {cure}", path.display())]
    Denied {
        /// Its path.
        path: PathBuf,
        /// What was wanted of it.
        wish: &'static str,
        /// What helps.
        cure: String,
    },
    /// It cannot be written by anybody.
    #[error("the disk {0} cannot be written to, since {why}; give it as `{0},ro` to read only", path.display())]
    ReadOnly {
        /// Its path.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// An image with a format of its own.
    #[error(
        "{0} is {format} image, and only raw images are understood; convert it with `qemu-img convert -O raw {0} {1}`",
        path.display(), converted(path).display()
    )]
    Format {
        /// Its path.
        path: PathBuf,
        /// Which.
        format: &'static str,
    },
    /// Not a sector.
    #[error("the disk {} {}", path.display(), too_small(path))]
    Empty {
        /// Its path.
        path: PathBuf,
    },
    /// Somebody else writes to it, or reads what would be written.
    #[error(
        "the disk {} is in use{}; two machines would destroy it. End the other, or give it read-only (`,ro`) to both",
        path.display(), of(.holder.as_ref())
    )]
    Busy {
        /// Its path.
        path: PathBuf,
        /// Who has it, if that could be seen.
        holder: Option<DiskHolder>,
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
    /// Anything else.
    #[error("the disk {} cannot be used: {action}: {error}", path.display())]
    Io {
        /// Its path.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The host's error.
        error: io::Error,
    },
}

fn of(holder: Option<&DiskHolder>) -> String {
    holder.map_or_else(String::new, |holder| format!(" by {holder}"))
}

/// What to do about an image that is not there. One that is called as another format is not made anew.
fn missing(path: &Path) -> String {
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

/// A file that holds something is not to be made larger.
fn too_small(path: &Path) -> String {
    match std::fs::metadata(path).map(|meta| meta.len()) {
        Ok(len @ 1..) => {
            format!("has {len} bytes, and a disk has 512 at least; check that it is the right file")
        }
        _ => format!("is empty; give it a size with `truncate -s 60G {}`", path.display()),
    }
}

/// A name for the raw image that is made of `path`, and is not `path`.
fn converted(path: &Path) -> PathBuf {
    let raw = path.with_extension("raw");
    if raw == path { path.with_extension("new.raw") } else { raw }
}
