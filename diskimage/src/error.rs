//! What is wrong with an image, in sentences that say how to mend it.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use crate::words::{name, shell};
use crate::{Format, header::Encryption};

/// An image could not be opened, made, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A call of the operating system failed.
    #[error("cannot {action} `{}`: {source}", name(.path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb: `read`.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The opener refused or failed, in its own words.
    #[error("{0}")]
    Opener(Box<dyn Error + Send + Sync>),
    /// There is no qcow2 header.
    #[error("`{}` is no qcow2 image: it does not begin with a qcow2 header; write `format=raw` if it is a raw image", name(.path))]
    NotQcow2 {
        /// The file.
        path: PathBuf,
    },
    /// A version that is not known.
    #[error("`{}` is a qcow2 image of version {version}; versions 2 and 3 are known: `qemu-img convert -O qcow2 {} NEW.qcow2` makes one", name(.path), shell(.path))]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The header contradicts itself, the file or the limits.
    #[error("`{}` is damaged or not made by a known program: {problem}; `qemu-img check {}` says more", name(.path), shell(.path))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The data is encrypted.
    #[error("`{}` is encrypted ({method}), which is not supported; `qemu-img convert --object secret,id=key,file=PASSWORD_FILE --image-opts driver=qcow2,file.filename={},encrypt.key-secret=key -O qcow2 NEW.qcow2` makes an image without", name(.path), shell(.path))]
    Encrypted {
        /// The file.
        path: PathBuf,
        /// How.
        method: Encryption,
    },
    /// A program ended without bringing its reference counts to the file.
    #[error("`{}` was not closed by the program that wrote it last, and its reference counts are out of date; if no program uses it, mend it with `qemu-img check -r all {}`", name(.path), shell(.path))]
    Dirty {
        /// The file.
        path: PathBuf,
    },
    /// Marked as corrupt.
    #[error("`{}` is marked as corrupt by the program that wrote it last; make a copy, then `qemu-img check -r all {}`", name(.path), shell(.path))]
    Corrupt {
        /// The file.
        path: PathBuf,
    },
    /// A feature of the format that is not supported.
    #[error("`{}` uses {feature}, which is not supported; `qemu-img convert -O qcow2 {} NEW.qcow2` makes an image without", name(.path), shell(.path))]
    Feature {
        /// The file.
        path: PathBuf,
        /// The feature, printable.
        feature: String,
    },
    /// Writing to an image with snapshots inside.
    #[error("`{}` has {count} snapshots inside and is opened for reading only; `qemu-img convert -O qcow2 {} NEW.qcow2` copies its present state, `qemu-img snapshot -l {}` lists them", name(.path), shell(.path), shell(.path))]
    Snapshots {
        /// The image.
        path: PathBuf,
        /// How many.
        count: u32,
    },
    /// A backing file by a protocol, or as a description of QEMU's.
    #[error("`{}` names `{}` as its backing file, which is no plain file name; {}", name(.path), name(.backing), rebase(.path))]
    BackingProtocol {
        /// The image.
        path: PathBuf,
        /// The name in its header.
        backing: PathBuf,
    },
    /// A backing file in another place.
    #[error("`{}` names `{}` as its backing file, which is not in its own folder; if you trust the image, allow it with `backing={}`", name(.path), name(.backing), shell(.allowed))]
    BackingElsewhere {
        /// The image.
        path: PathBuf,
        /// The name in its header.
        backing: PathBuf,
        /// The path that would have to be named.
        allowed: PathBuf,
    },
    /// A backing file that is not a file, and that the user did not name.
    #[error("`{}`, the backing file of `{}`, is {kind}; if you trust the image, allow it with `backing={}`", name(.backing), name(.path), shell(.backing))]
    BackingKind {
        /// The image.
        path: PathBuf,
        /// Its backing file.
        backing: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A backing file in a format that is not known.
    #[error("`{}` names the format `{format}` for its backing file; raw and qcow2 are known: `qemu-img convert -O qcow2 {} NEW.qcow2` makes an image without a backing file", name(.path), shell(.path))]
    BackingFormat {
        /// The image.
        path: PathBuf,
        /// The format in its header, printable.
        format: String,
    },
    /// A chain that comes back to itself.
    #[error("`{}` is its own backing file, by way of `{}`; {}", name(.path), name(.by), rebase(.by))]
    Circle {
        /// The image.
        path: PathBuf,
        /// The image that names it.
        by: PathBuf,
    },
    /// Too many backing files.
    #[error("`{}` lies on more than {limit} backing files; `qemu-img convert -O qcow2 {} NEW.qcow2` makes one image of all", name(.path), shell(.path))]
    TooDeep {
        /// The top image.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// The image has no backing file, or none in the header.
    #[error("`{}` is {format} and cannot lie on a backing file", name(.path))]
    NoBacking {
        /// The image.
        path: PathBuf,
        /// Its format.
        format: Format,
    },
    /// Writing to what was opened for reading.
    #[error("`{}` is open for reading only", name(.path))]
    ReadOnly {
        /// The image.
        path: PathBuf,
    },
    /// A smaller size without leave to shrink.
    #[error("`{}` has {from} bytes, and {to} are less; what lies behind would be lost: say `--shrink` if you want that", name(.path))]
    Shrink {
        /// The image.
        path: PathBuf,
        /// The size now.
        from: u64,
        /// The size asked for.
        to: u64,
    },
    /// A size that the format cannot have.
    #[error("`{}` cannot have {size} bytes: with clusters of {cluster_size} bytes, a qcow2 image has at most {limit}", name(.path))]
    TooLarge {
        /// The image.
        path: PathBuf,
        /// The size asked for.
        size: u64,
        /// The size of a cluster.
        cluster_size: u64,
        /// The limit.
        limit: u64,
    },
    /// The caller ended the work.
    #[error("the work on `{}` was ended before it was done", name(.path))]
    Interrupted {
        /// The image.
        path: PathBuf,
    },
    /// Something cannot be had, with the reason.
    #[error("`{}`: {reason}", name(.path))]
    Unsupported {
        /// The image.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl ImageError {
    /// An error of the operating system, to be used with `map_err`.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> ImageError {
        move |source| ImageError::Io { path: path.into(), action, source }
    }
}

/// The command that gives an image another backing file.
fn rebase(path: &Path) -> String {
    format!("`qemu-img rebase -u -b NEW_NAME -F FORMAT {}` names another", shell(path))
}
