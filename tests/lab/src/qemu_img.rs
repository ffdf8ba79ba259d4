//! The programs for disk images of a newer QEMU: this host's, or those of its release's backports.

use std::path::PathBuf;

use crate::LabError;
use crate::host::tool;
use crate::packages::{self, Release};
use crate::qemu::{BACKPORTS, is_release, version};

/// The first version that counts as new.
const NEW: u32 = 10;
/// The package that they are in.
const PACKAGE: &str = "qemu-utils";

/// `qemu-img` of version 10 or newer. The one of the backports is fetched once, and runs with the libraries of the host's own.
pub fn qemu_img() -> Result<PathBuf, LabError> {
    let program = tool("qemu-img")?;
    let (number, _) = version(&program)?;
    if number >= NEW {
        return Ok(program);
    }
    let (codename, suite) = BACKPORTS;
    if !is_release(codename) {
        let reason =
            format!("its version is {number}, older than {NEW}, and there are no backports for this release");
        return Err(LabError::format(&program, reason));
    }
    let place =
        packages::unpacked_together(Release::Named(suite), &format!("{PACKAGE}-{suite}"), &[PACKAGE])?;
    let program = place.join("usr/bin/qemu-img");
    let (number, _) = version(&program)?;
    if number < NEW {
        return Err(LabError::format(&program, format!("its version is {number}, older than {NEW}")));
    }
    Ok(program)
}
