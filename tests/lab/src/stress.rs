//! stress-ng for a guest that runs Debian.

use crate::LabError;
use crate::host::run;
use crate::packages::{Release, unpacked_together};
use std::process::Command;

/// Of Debian 11, whose stress-ng needs no graphics: with it what a small Debian has not.
const PACKAGES: [&str; 7] =
    ["stress-ng", "libapparmor1", "libbsd0", "libipsec-mb0", "libjudydebian1", "libmd0", "libsctp1"];

/// An archive with `usr/bin/stress-ng`, and the libraries for it in `usr/lib/x86_64-linux-gnu`.
pub fn stress_ng() -> Result<Vec<u8>, LabError> {
    let packages = unpacked_together(Release::Named("bullseye"), "bullseye-stress-ng", &PACKAGES)?;
    run(Command::new("tar").args(["-c", "-C"]).arg(packages).args(["usr/bin/stress-ng", "usr/lib"]))
}
