//! What goes wrong with images, for people who work on them.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use diskimage::{ImageError, shell_word};

use super::size::{Bytes, DiskSizeError};
use super::users::User;
use crate::cli::verbs::VerbError;
use crate::host::disk::DiskError;
use crate::image::{ReadError, printable};

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskVerbError {
    #[error("{} is in use by {user}; {}", shown(.path), .user.cure())]
    InUse { path: PathBuf, user: User },
    #[error("{} exists already; choose another name, or remove it first", shown(.0))]
    Exists(PathBuf),
    #[error("{} exists already; choose another name, or replace it with `--force`", shown(.0))]
    ExistsUnforced(PathBuf),
    #[error("there is no image {}; correct the path, or make an empty one with `minivmm disk create`", shown(.0))]
    NotFound(PathBuf),
    #[error("{} cannot be made: {error}{}", shown(.path), make_cure(.error))]
    Make { path: PathBuf, error: io::Error },
    #[error("you may not {operation} {}; its rights are changed with chmod, its owner with chown", shown(.path))]
    Denied { path: PathBuf, operation: &'static str },
    #[error("{} cannot be written to, since {why}", shown(.path))]
    ReadOnly { path: PathBuf, why: &'static str },
    #[error("the block device {} is in use by this host (mounted, swap, or part of a RAID or a volume group); end that first", shown(.0))]
    OwnedByHost(PathBuf),
    #[error("{} is a block device, whose size is not a file's; enlarge it itself, such as with `lvextend`, and tell a running machine with `minivmm disk resize MACHINE:DISK SIZE`", shown(.0))]
    Device(PathBuf),
    #[error("{} is a raw image, which cannot lie on another one; an overlay is qcow2: call it `{}`, or add `--format qcow2`", shown(.0), shell_word(&.0.with_extension("qcow2")))]
    RawOverlay(PathBuf),
    #[error("{} lies on no other image: there is nothing that its content could be written into", shown(.0))]
    NoBacking(PathBuf),
    #[error("{} lies on {}, which is not in its own folder; if you trust the image, allow it with `--backing {}`", shown(.path), shown(.backing), shell_word(.allowed))]
    BackingElsewhere { path: PathBuf, backing: PathBuf, allowed: PathBuf },
    #[error("{} and {} are the same file", shown(.0), shown(.1))]
    SameFile(PathBuf, PathBuf),
    #[error("{} lies below {}, and is not replaced by it; choose another name", shown(.to), shown(.from))]
    Below { from: PathBuf, to: PathBuf },
    #[error("{} is no file, but a device or a pipe, and no image takes its place; choose another name", shown(.0))]
    NoFile(PathBuf),
    #[error(
        "{} has errors: {errors}, so that some of its content is missing; `minivmm disk check {}` lists them, and a whole copy of the image \
         is the best cure", shown(.path), shell_word(.path)
    )]
    Errors { path: PathBuf, errors: u64 },
    #[error(
        "{error}; {} may have a part of what {} has, and a machine that uses {} sees no difference: repeat the command when the cause is \
         gone", shown(.base), shown(.overlay), shown(.overlay)
    )]
    CommitUnfinished { error: Box<DiskVerbError>, overlay: PathBuf, base: PathBuf },
    #[error("{} has {} now, and {} are less; what is behind them is lost with `--shrink`", shown(.path), Bytes(*.from), Bytes(*.to))]
    Smaller { path: PathBuf, from: u64, to: u64 },
    #[error("{} cannot have {}: {what} ends at {}{}; make it smaller first, in the guest", shown(.path), Bytes(*.to), Bytes(*.end), exactly(*.end))]
    Used { path: PathBuf, to: u64, what: String, end: u64 },
    #[error("{} cannot have {}: there is data at {}, and what the disk has is {content}, whose end cannot be known here", shown(.path), Bytes(*.to), Bytes(*.at))]
    Data { path: PathBuf, to: u64, at: u64, content: String },
    #[error("{} is a block device, and not written here; make a raw image, and copy it with `dd if=NEW.raw of={} bs=1M conv=sparse,fsync`", shown(.0), shell_word(.0))]
    ToDevice(PathBuf),
    #[error(
        "{} begins like {like}, and nothing says that it is one: {}; if it is raw, and its guest may have written that, say `{flag} raw`",
        shown(.path), other_format(.path, .like, .flag)
    )]
    LooksLike { path: PathBuf, like: &'static str, flag: &'static str },
    #[error("{0}: a disk of a machine that runs can grow only")]
    ShrinkLive(String),
    #[error("the content of {} cannot be looked at before it is made smaller: {error}", shown(.path))]
    Content { path: PathBuf, error: ReadError },
    #[error("the path {} is not UTF-8, and cannot be told to a machine; give the file another name", shown(.0))]
    NotText(PathBuf),
    #[error("interrupted")]
    Interrupted(u8),
    #[error("{}: {error}", shown(.path))]
    Io { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Image(ImageError),
    #[error(transparent)]
    Disk(DiskError),
    #[error(transparent)]
    Machine(#[from] VerbError),
    #[error(transparent)]
    Size(#[from] DiskSizeError),
    #[error("the answer cannot be shown")]
    Json(#[from] serde_json::Error),
    #[error("Ctrl-C cannot be waited for here: {0}")]
    Signals(io::Error),
}

impl From<DiskError> for DiskVerbError {
    fn from(error: DiskError) -> Self {
        match error {
            DiskError::Busy { path, holder } => {
                DiskVerbError::InUse { path, user: User::of(holder.as_ref()) }
            }
            DiskError::NotFound { path } => DiskVerbError::NotFound(path),
            DiskError::Denied { path, operation, .. } => DiskVerbError::Denied { path, operation },
            DiskError::ReadOnly { path, why } => DiskVerbError::ReadOnly { path, why },
            DiskError::OwnedByHost { path } => DiskVerbError::OwnedByHost(path),
            other => DiskVerbError::Disk(other),
        }
    }
}

impl From<ImageError> for DiskVerbError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Opener(error) => match error.downcast::<DiskError>() {
                Ok(error) => (*error).into(),
                Err(error) => DiskVerbError::Image(ImageError::Opener(error)),
            },
            ImageError::BackingElsewhere { path, backing, allowed } => {
                DiskVerbError::BackingElsewhere { path, backing, allowed }
            }
            other => DiskVerbError::Image(other),
        }
    }
}

/// A path in a sentence. It may come from an image.
pub(super) fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

/// An error and its causes in one line, in which nothing controls the terminal.
pub(super) fn sentence(error: &dyn Error) -> String {
    crate::cli::report::chain(error).chars().map(|sign| if sign.is_control() { '?' } else { sign }).collect()
}

/// What to do with an image that begins like one of another format.
fn other_format(path: &Path, like: &str, flag: &str) -> String {
    if like.contains("qcow2") {
        return format!("say `{flag} qcow2`");
    }
    let raw = path.with_extension("raw");
    format!("`qemu-img convert -O raw {} {}` makes a raw one", shell_word(path), shell_word(&raw))
}

fn exactly(bytes: u64) -> String {
    if Bytes(bytes).is_exact() { String::new() } else { format!(" ({bytes} bytes)") }
}

fn make_cure(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => "; make room, or choose a place on another file system",
        io::ErrorKind::NotFound => "; make its folder first",
        io::ErrorKind::PermissionDenied => "; choose a folder of yours",
        _ => "",
    }
}
