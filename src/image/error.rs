//! Why a guest's disk has nothing to boot.

use std::path::PathBuf;

use super::disk::ReadError;
use crate::shown::path as shown;

/// Why a guest's disk has nothing to boot.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The disk, or a file system on it, cannot be read.
    #[error("the disk {path} was searched for a kernel, and {source}", path = shown(path))]
    Read {
        /// The image.
        path: PathBuf,
        /// The reason.
        source: ReadError,
    },
    /// It has no kernel.
    #[error(
        "the disk {path} has no kernel to boot: {looked}; install one in the guest (Debian: linux-image-amd64), or \
         give one from here with `--kernel FILE --initrd FILE`", path = shown(path)
    )]
    NoKernel {
        /// The image.
        path: PathBuf,
        /// The file systems that were searched, and the findings.
        looked: String,
    },
    /// Its file system is not supported here.
    #[error(
        "no kernel can be found on the disk {path}: {looked}; give one from here with `--kernel FILE --initrd FILE`, \
         and say where the root file system is with `--append root=DEVICE`", path = shown(path)
    )]
    NoFileSystem {
        /// The image.
        path: PathBuf,
        /// The file systems that were searched, and the findings.
        looked: String,
    },
    /// It has a kernel, and the root file system is elsewhere.
    #[error(
        "the disk {path} has a kernel, and no root file system was found: {looked}; say where it is with \
         `--append root=DEVICE`, on LVM such as `--append root=/dev/mapper/vg-root`", path = shown(path)
    )]
    NoRoot {
        /// The image.
        path: PathBuf,
        /// The file systems that were searched, and the findings.
        looked: String,
    },
    /// A kernel or an initrd on it is too long to be one.
    #[error(
        "{file} on the disk {path} is {mib} MiB long, which no {what} is; give one from here with `--{what} FILE`", path = shown(path)
    )]
    TooLong {
        /// The image.
        path: PathBuf,
        /// The file in it.
        file: String,
        /// Its length.
        mib: u64,
        /// Its role; also the name of the option.
        what: &'static str,
    },
}
