//! Errors of disks, for people.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use diskimage::{Format, ImageError, printable_name, shell_word};

use super::format::QCOW2;
use super::holder::DiskHolder;
use crate::shown::path as shown;

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// It does not exist.
    #[error("there is no disk {}; {}", shown(path), missing_hint(path))]
    NotFound {
        /// Its path.
        path: PathBuf,
    },
    /// What an overlay lies on does not exist.
    #[error(
        "there is no disk {}, on which the overlay {} lies, which is of no use without it; put it there again, or correct the path",
        shown(base),
        shown(overlay)
    )]
    NoBase {
        /// The base.
        base: PathBuf,
        /// The overlay.
        overlay: PathBuf,
    },
    /// It is a folder, a FIFO or a terminal.
    #[error("{} is {what}, and a disk must be a raw image file or a block device", shown(path))]
    NotADisk {
        /// Its path.
        path: PathBuf,
        /// Its kind.
        what: &'static str,
    },
    /// The user lacks permission.
    #[error("you may not {operation} the disk {}: {cure}", shown(path))]
    Denied {
        /// Its path.
        path: PathBuf,
        /// The operation.
        operation: &'static str,
        /// The cure.
        cure: String,
    },
    /// No user can write to it.
    #[error("the disk {0} cannot be written to, since {why}; give it as `{0},ro` to read only", shown(path))]
    ReadOnly {
        /// Its path.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// It is an image in another format.
    #[error("{}", wrong_format(path, format))]
    Format {
        /// Its path.
        path: PathBuf,
        /// The format, with its article.
        format: &'static str,
    },
    /// An image in another format than raw, or what it lies on, cannot be used.
    #[error("{0}")]
    Image(Box<dyn Error + Send + Sync>),
    /// Another user says that it was being exchanged.
    #[error(
        "{} is of another user, and says that {} and the other disks of its machine were being exchanged: nobody else is believed in that; if \
         the disks fit together, remove the file",
        shown(mark),
        shown(path)
    )]
    ForeignMark {
        /// Its path.
        path: PathBuf,
        /// The file that says so.
        mark: PathBuf,
    },
    /// It was being exchanged together with others.
    #[error(
        "{} and the other disks of its machine were about to become those of {}, which was cut off: they may not fit together; `minivmm restore \
         --put-back {}` finishes it, and without {} the disk is taken as it is",
        shown(path),
        printable_name(folder),
        shell_word(folder),
        shown(mark)
    )]
    HalfExchanged {
        /// Its path.
        path: PathBuf,
        /// The file that says so.
        mark: PathBuf,
        /// The folder of the saved machine.
        folder: PathBuf,
    },
    /// An overlay cannot be made.
    #[error("the overlay {} cannot be made: {error}", shown(path))]
    Overlay {
        /// Its path.
        path: PathBuf,
        /// The host's error.
        error: io::Error,
    },
    /// A base whose name cannot be written to an overlay.
    #[error(
        "the path of {} is not UTF-8, so that no overlay can name it as its base; rename it",
        shown(base)
    )]
    BaseName {
        /// The base.
        base: PathBuf,
    },
    /// A disk without a sector, in another format than raw.
    #[error(
        "the disk {} has no sector; give it a size with `minivmm disk resize {} 60G`",
        shown(path),
        shell_word(path)
    )]
    NoSectors {
        /// Its path.
        path: PathBuf,
    },
    /// An overlay that is something else.
    #[error(
        "{} is there and is no qcow2 image, so it is no overlay; give another name with `overlay=`, where one is made",
        shown(path)
    )]
    NotAnOverlay {
        /// Its path.
        path: PathBuf,
    },
    /// An overlay that is an image of its own.
    #[error(
        "{0} is a qcow2 image that lies on no other, so it is no overlay on {1}; to use it, give it alone: `--disk {0}`",
        shown(overlay),
        shown(base)
    )]
    OnNothing {
        /// Its path.
        overlay: PathBuf,
        /// The base that was given.
        base: PathBuf,
    },
    /// An overlay of another base.
    #[error(
        "the overlay {0} lies on {2}, and not on {1}; give that as the disk, or another overlay. If {1} is that image in a new \
         place, tell the overlay: `qemu-img rebase -u -b {1} -F FORMAT {0}`",
        shown(overlay),
        shown(base),
        printable_name(found)
    )]
    OnAnother {
        /// Its path.
        overlay: PathBuf,
        /// The base that was given.
        base: PathBuf,
        /// What it names as its base.
        found: PathBuf,
    },
    /// An overlay on a base in another format.
    #[error(
        "the overlay {0} says that {1} is {2}, and here it is {format}; give it as `{1},format={2}`",
        shown(overlay),
        shown(base),
        printable_name(Path::new(said))
    )]
    OtherFormat {
        /// Its path.
        overlay: PathBuf,
        /// Its base.
        base: PathBuf,
        /// The format that it says its base has.
        said: String,
        /// The format that the user said.
        format: Format,
    },
    /// No temporary file for what the guest writes.
    #[error(
        "no temporary file for what the guest writes can be made in {}: {error}; set TMPDIR to a folder with room for it",
        shown(folder)
    )]
    Temporary {
        /// The folder.
        folder: PathBuf,
        /// The host's error.
        error: io::Error,
    },
    /// It has less than one sector.
    #[error("the disk {} {}", shown(path), too_small(path))]
    Empty {
        /// Its path.
        path: PathBuf,
    },
    /// Another process has locked it.
    #[error(
        "the disk {} is in use{}; two machines would destroy it. End the other, or give it read-only (`,ro`) or with an overlay for \
         each (`,overlay=FILE`) to both",
        shown(path), used_by(.holder.as_ref())
    )]
    Busy {
        /// Its path.
        path: PathBuf,
        /// The process with the lock, if known.
        holder: Option<DiskHolder>,
    },
    /// A loop device shows it too.
    #[error("the disk {0} is also the loop device {device}, {1}", shown(path), loop_cure(device, *read_only))]
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
        shown(path)
    )]
    OwnedByHost {
        /// Its path.
        path: PathBuf,
    },
    /// Any other error.
    #[error("the disk {} cannot be used: {action}: {error}", shown(path))]
    Io {
        /// Its path.
        path: PathBuf,
        /// The operation.
        action: &'static str,
        /// The host's error.
        error: io::Error,
    },
}

impl DiskError {
    /// What an image or the opener of its files said.
    pub(crate) fn of(error: ImageError) -> Self {
        match error {
            // The opener's own.
            ImageError::Opener(error) => match error.downcast() {
                Ok(error) => *error,
                Err(error) => DiskError::Image(error),
            },
            error => DiskError::Image(Box::new(error)),
        }
    }
}

/// The cure for an image that begins like one in another format. A guest can write that, so that a qcow2 header alone is no
/// reason to believe it.
fn wrong_format(path: &Path, format: &str) -> String {
    let shown = shown(path);
    if format == QCOW2 {
        return format!(
            "the disk {shown} begins like {format}, and nothing says that it is one. If it was made as one, give it as \
             `{shown},format=qcow2`, or rename it to end in `.qcow2`. If it is raw, and its guest may have written that, give it as \
             `{shown},format=raw`"
        );
    }
    format!(
        "{shown} is {format}, and raw and qcow2 images are understood; convert it with `qemu-img convert -O raw {} {}`. If it \
         is raw, and its guest may have written that, give it as `{shown},format=raw`",
        shell_word(path),
        shell_word(&converted(path))
    )
}

fn used_by(holder: Option<&DiskHolder>) -> String {
    holder.map_or_else(String::new, |holder| format!(" by {holder}"))
}

/// The cure for a loop device over a disk.
fn loop_cure(device: &Path, read_only: bool) -> String {
    let (device, word) = (shown(device), shell_word(device));
    if read_only {
        format!(
            "which can be written to while this machine reads; end that with `losetup -d {word}`, or attach it with \
             `losetup -r`"
        )
    } else {
        format!(
            "and two users of one disk would destroy it; unmount what is on it and end it with `losetup -d {word}`, or give \
             {device} as the disk"
        )
    }
}

/// The cure for a missing image. For the suffix of another format, making an empty image would be wrong.
fn missing_hint(path: &Path) -> String {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    match ending.as_str() {
        "qcow" | "vmdk" | "vdi" | "vhd" | "vhdx" | "qed" => format!(
            "correct the path; raw and qcow2 images are understood, and `qemu-img convert -O raw {} {}` makes one",
            shell_word(path),
            shell_word(&converted(path))
        ),
        "iso" => "correct the path".to_owned(),
        _ => format!(
            "correct the path, or make an empty one with `minivmm disk create {} 60G`",
            shell_word(path)
        ),
    }
}

/// The cure for a tiny image. A file with content must not be extended.
fn too_small(path: &Path) -> String {
    match std::fs::metadata(path).map(|meta| meta.len()) {
        Ok(len @ 1..) => {
            format!("has {len} bytes, and a disk has 512 at least; check that it is the right file")
        }
        _ => format!("is empty; give it a size with `minivmm disk resize {} 60G`", shell_word(path)),
    }
}

/// A path for the raw image that is converted from `path`, different from it.
fn converted(path: &Path) -> PathBuf {
    let raw = path.with_extension("raw");
    if raw == path { path.with_extension("new.raw") } else { raw }
}
