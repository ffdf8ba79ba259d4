//! The doctor's look at a kernel and at an initrd.

use std::path::{Path, PathBuf};

use boot::kernel::Kernel;

use super::Finding;
use crate::cli::advice::{self, Trouble};
use crate::cli::banner::describe;
use crate::cli::drivers::{self, Driver, Drivers};
use crate::cli::preflight::{self, PreflightError};
use crate::cli::report::chain;
use crate::host::facts::Host;

/// Looks at a kernel; gives it back if it is one.
pub(super) fn kernel(
    host: &Host,
    path: &Path,
    boots_linux: bool,
    findings: &mut Vec<Finding>,
) -> Option<Kernel> {
    let kernel = match preflight::kernel(path) {
        Ok(kernel) => kernel,
        Err(error) => {
            findings.push(Finding::fail("kernel", refused(&error)));
            return None;
        }
    };
    let packed = kernel.compression().map(|how| format!(", packed with {how}")).unwrap_or_default();
    findings.push(Finding::ok("kernel", format!("{}: {}{packed}", path.display(), describe(&kernel))));
    if !boots_linux && kernel.version().is_some() {
        findings.push(Finding::fail("kernel", advice::no_linux_on_pvm()));
    }
    findings.push(match drivers::release(path, kernel.version()) {
        Some(release) => match drivers::find(host, path, release) {
            Some(drivers) => known(&drivers),
            None => unknown(&format!(
                "there is neither config-{release} beside the kernel or in /boot nor /lib/modules/{release}"
            )),
        },
        None => unknown("the file does not say which version it is"),
    });
    Some(kernel)
}

/// Says that a kernel needs an initrd and none was named.
pub(super) fn without_initrd(host: &Host, path: &Path, kernel: &Kernel, findings: &mut Vec<Finding>) {
    if let Err(error) = preflight::no_initrd(host, path, kernel) {
        findings.push(Finding::warn("initrd", refused(&error)));
    }
}

fn known(drivers: &Drivers) -> Finding {
    let named = |wanted: Driver| {
        let names = drivers.all().into_iter().filter(|(_, how)| *how == wanted).map(|(name, _)| name);
        names.collect::<Vec<_>>().join(", ")
    };
    let parts = [(Driver::BuiltIn, "built in"), (Driver::Module, "as modules"), (Driver::Absent, "missing")]
        .map(|(how, word)| (named(how), word))
        .into_iter()
        .filter(|(names, _)| !names.is_empty())
        .map(|(names, word)| format!("{names} {word}"));
    let text = format!("{} ({})", parts.collect::<Vec<_>>().join("; "), drivers.source.display());
    if named(Driver::Absent).is_empty() {
        Finding::ok("drivers", text)
    } else {
        Finding::warn("drivers", Trouble { what: text, cure: None })
    }
}

fn unknown(why: &str) -> Finding {
    let what = format!("whether virtio is built in or modular cannot be known: {why}");
    Finding::warn(
        "drivers",
        Trouble { what, cure: Some("give an initrd, which is right in both cases".into()) },
    )
}

/// Looks at an initrd, and whether it was made for `kernel`.
pub(super) fn initrd(path: &Path, kernel: Option<(&PathBuf, &Kernel)>, findings: &mut Vec<Finding>) {
    let _ = kernel;
    match preflight::initrd(path) {
        Ok(_) => findings.push(Finding::ok("initrd", path.display().to_string())),
        Err(error) => findings.push(Finding::fail("initrd", refused(&error))),
    }
}

fn refused(error: &PreflightError) -> Trouble {
    Trouble { what: chain(error), cure: None }
}
