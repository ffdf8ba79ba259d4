//! The doctor's examination of a kernel and an initrd, each by itself and both together.

use std::path::Path;

use boot::inspect::{Contents, Coverage, InitrdFacts, KernelFacts, inspect_initrd, inspect_kernel};

use super::Finding;
use crate::cli::advice::{self, Problem};
use crate::cli::args::DoctorArgs;
use crate::cli::banner::describe;
use crate::cli::drivers::{self, Driver, Drivers};
use crate::cli::preflight::{self, PreflightError};
use crate::cli::report::chain;
use crate::host::facts::Host;
use crate::shown::path as shown;

/// The findings about the files that are named.
pub(super) fn examine(host: &Host, args: &DoctorArgs, boots_linux: bool) -> Vec<Finding> {
    let kernel = args.kernel.as_deref().map(|path| (path, read_kernel(path)));
    let initrd = args.initrd.as_deref().map(|path| (path, read_initrd(path)));
    let release = kernel
        .as_ref()
        .and_then(|(path, kernel)| drivers::release(path, kernel.as_ref().ok()?.version.as_deref()));
    let contents = initrd.as_ref().and_then(|(_, initrd)| Some(&initrd.as_ref().ok()?.contents));
    let mut findings = Vec::new();
    match &kernel {
        Some((path, Ok(facts))) => {
            kernel_file(path, facts, boots_linux, &mut findings);
            findings.push(virtio(host, path, release, contents));
            if initrd.is_none() {
                let needed = preflight::no_initrd(host, path, facts.version.as_deref());
                findings.extend(needed.map(|problem| Finding::warn("initrd", problem)));
            }
        }
        Some((_, Err(error))) => findings.push(Finding::fail("kernel", problem(error))),
        None => {}
    }
    match &initrd {
        Some((path, Ok(facts))) => initrd_file(path, facts, release, &mut findings),
        Some((_, Err(error))) => findings.push(Finding::fail("initrd", problem(error))),
        None => {}
    }
    findings
}

fn read_kernel(path: &Path) -> Result<KernelFacts, PreflightError> {
    let file = preflight::open("kernel", path)?;
    inspect_kernel(&file).map_err(|source| PreflightError::Kernel { path: path.to_path_buf(), source })
}

fn read_initrd(path: &Path) -> Result<InitrdFacts, PreflightError> {
    let file = preflight::open("initial RAM disk", path)?;
    inspect_initrd(&file).map_err(|source| PreflightError::Initrd { path: path.to_path_buf(), source })
}

fn problem(error: &PreflightError) -> Problem {
    Problem { what: chain(error), cure: None }
}

fn kernel_file(path: &Path, facts: &KernelFacts, boots_linux: bool, findings: &mut Vec<Finding>) {
    let packed = facts.compression.map(|how| format!(", packed with {how}")).unwrap_or_default();
    let what = describe(facts.format, facts.version.as_deref());
    findings.push(Finding::ok("kernel", format!("{}: {what}{packed}", shown(path))));
    if !boots_linux && facts.version.is_some() {
        findings.push(Finding::fail("kernel", advice::no_linux_on_pvm()));
    }
}

/// How the kernel has virtio, from its configuration or else from the lists in its initrd.
fn virtio(host: &Host, kernel: &Path, release: Option<&str>, contents: Option<&Contents>) -> Finding {
    let Some(release) = release else {
        return drivers_unknown("the kernel does not say which version it is");
    };
    if let Some(drivers) = drivers::find(host, kernel, release) {
        return drivers_found(&drivers);
    }
    match contents.filter(|contents| contents.releases.iter().any(|name| name == release)) {
        Some(contents) if contents.virtio_builtin.iter().any(|name| name == "virtio_pci") => {
            Finding::ok("drivers", "virtio_pci built in (the initrd's list of built-in modules)")
        }
        Some(contents) if contents.virtio_modules.iter().any(|name| name == "virtio_pci") => {
            Finding::ok("drivers", "virtio_pci as a module, which the initrd has")
        }
        _ => drivers_unknown(&format!(
            "there is neither config-{release} beside the kernel or in /boot nor /lib/modules/{release}"
        )),
    }
}

fn drivers_found(drivers: &Drivers) -> Finding {
    let named = |wanted: Driver| {
        let names = drivers.all().into_iter().filter(|(_, how)| *how == wanted).map(|(name, _)| name);
        names.collect::<Vec<_>>().join(", ")
    };
    let kinds = [(Driver::BuiltIn, "built in"), (Driver::Module, "as modules"), (Driver::Absent, "missing")];
    let parts =
        kinds.map(|(how, word)| (named(how), word)).into_iter().filter(|(names, _)| !names.is_empty());
    let parts: Vec<_> = parts.map(|(names, word)| format!("{names} {word}")).collect();
    let text = format!("{} ({})", parts.join("; "), shown(&drivers.source));
    if named(Driver::Absent).is_empty() {
        Finding::ok("drivers", text)
    } else {
        let cure = "take a kernel that has them: Debian's linux-image-cloud-amd64 does".to_owned();
        Finding::warn("drivers", Problem { what: text, cure: Some(cure) })
    }
}

fn drivers_unknown(why: &str) -> Finding {
    let what = format!("whether virtio is built in or modular cannot be known: {why}");
    Finding::warn(
        "drivers",
        Problem { what, cure: Some("give the initrd made for it, right in both cases".into()) },
    )
}

fn initrd_file(path: &Path, facts: &InitrdFacts, release: Option<&str>, findings: &mut Vec<Finding>) {
    let InitrdFacts { file_len, parts, contents, coverage } = facts;
    let path = shown(path);
    let parts: Vec<_> = parts.iter().map(ToString::to_string).collect();
    let releases = contents.releases.join(", ");
    let of = match (releases.as_str(), coverage) {
        ("", Coverage::Complete) => "no kernel modules".to_owned(),
        ("", _) => "kernel modules not known".to_owned(),
        (releases, _) => format!("modules for Linux {releases}"),
    };
    let size = file_len.div_ceil(1 << 20);
    findings.push(Finding::ok("initrd", format!("{path}: {size} MiB, {}, {of}", parts.join(" + "))));
    let mut warn =
        |what: String, cure: Option<String>| findings.push(Finding::warn("initrd", Problem { what, cure }));
    match coverage {
        Coverage::Complete if !contents.init => {
            warn(format!("{path} has no /init, so the kernel has nothing to start from it"), None);
        }
        Coverage::Complete => {}
        Coverage::Truncated => {
            warn(format!("only the first part of {path} was looked at: it is very large"), None)
        }
        Coverage::UpToUnsupported(how) => {
            warn(format!("what is in {path} cannot be known: it is packed with {how}"), None)
        }
        Coverage::UpToDamage => warn(
            format!("{path} is damaged, or no archive of the kind that Linux unpacks"),
            Some("make it again: `sudo update-initramfs -u`".into()),
        ),
    }
    if let Some(release) = release.filter(|_| !releases.is_empty()) {
        if contents.releases.iter().all(|name| name != release) {
            warn(
                format!("{path} was made for Linux {releases}, and the kernel is Linux {release}"),
                Some(format!("give the initrd made for it, on Debian /boot/initrd.img-{release}")),
            );
        } else if *coverage == Coverage::Complete
            && contents.virtio_modules.is_empty()
            && contents.virtio_builtin.is_empty()
        {
            warn(
                format!(
                    "{path} has modules and none for virtio, so the guest will find no disk and no network"
                ),
                Some("put MODULES=most into /etc/initramfs-tools/initramfs.conf and make it again".into()),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::Level;
    use super::*;
    use crate::cli::kernels::bzimage;
    use crate::host::facts::tests::tree;

    const DEBIAN: &str = "6.1.0-25-amd64 (debian-kernel@lists.debian.org) #1 SMP";

    /// A cpio archive in the "newc" format of these empty files.
    fn cpio(names: &[&str]) -> Vec<u8> {
        let mut archive = Vec::new();
        for name in names.iter().chain(&["TRAILER!!!"]) {
            let fields = [1, 0o100_644, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() + 1, 0];
            archive.extend(b"070701");
            archive.extend(fields.iter().flat_map(|field| format!("{field:08X}").into_bytes()));
            archive.extend(name.as_bytes());
            archive.push(0);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
        archive
    }

    /// The findings about a Debian kernel with this initrd.
    fn found(initrd: Option<&[u8]>, boots_linux: bool) -> Vec<(Level, &'static str, String)> {
        let (_folder, host) = tree(&[("/k/x", "")]);
        let [kernel, image] = ["/k/vmlinuz", "/k/initrd.img"].map(|path| host.path(path));
        fs::write(&kernel, bzimage(DEBIAN)).unwrap();
        let initrd = initrd.map(|bytes| {
            fs::write(&image, bytes).unwrap();
            image
        });
        let args = DoctorArgs { kernel: Some(kernel), initrd, ..DoctorArgs::default() };
        examine(&host, &args, boots_linux).into_iter().map(|f| (f.level, f.about, f.text)).collect()
    }

    fn says(found: &[(Level, &'static str, String)], level: Level, about: &str, text: &str) -> bool {
        found.iter().any(|f| f.0 == level && f.1 == about && f.2.contains(text))
    }

    #[test]
    fn initrd_of_the_kernel_tells_that_virtio_is_modular() {
        let module = "lib/modules/6.1.0-25-amd64/kernel/drivers/virtio/virtio_pci.ko";
        let found = found(Some(&cpio(&["init", module])), true);
        assert!(says(&found, Level::Ok, "drivers", "virtio_pci as a module"), "{found:?}");
        assert!(
            says(&found, Level::Ok, "initrd", "1 MiB, cpio, modules for Linux 6.1.0-25-amd64"),
            "{found:?}"
        );
        assert!(found.iter().all(|f| f.0 == Level::Ok), "{found:?}");
    }

    #[test]
    fn initrd_of_another_kernel_is_a_warning() {
        let found = found(Some(&cpio(&["init", "lib/modules/5.10.0-1-amd64/kernel/virtio.ko"])), true);
        assert!(
            says(
                &found,
                Level::Warn,
                "initrd",
                "made for Linux 5.10.0-1-amd64, and the kernel is Linux 6.1.0-25"
            ),
            "{found:?}"
        );
    }

    #[test]
    fn initrd_without_virtio_or_init_is_a_warning() {
        let found = found(Some(&cpio(&["lib/modules/6.1.0-25-amd64/kernel/ext4.ko"])), true);
        assert!(says(&found, Level::Warn, "initrd", "none for virtio"), "{found:?}");
        assert!(says(&found, Level::Warn, "initrd", "no /init"), "{found:?}");
    }

    #[test]
    fn what_is_no_archive_is_a_warning_and_an_empty_file_a_failure() {
        let junk = found(Some(b"junk, and nothing else"), true);
        assert!(says(&junk, Level::Warn, "initrd", "no archive of the kind"), "{junk:?}");
        let empty = found(Some(b""), true);
        assert!(says(&empty, Level::Fail, "initrd", "is empty"), "{empty:?}");
    }

    #[test]
    fn missing_initrd_of_a_modular_kernel_is_a_warning() {
        let found = found(None, true);
        assert!(says(&found, Level::Warn, "initrd", "needs an initial RAM disk"), "{found:?}");
        assert!(says(&found, Level::Warn, "drivers", "cannot be known"), "{found:?}");
    }

    #[test]
    fn linux_kernel_is_a_failure_where_linux_cannot_boot() {
        assert!(says(&found(None, false), Level::Fail, "kernel", "kvm_pvm"));
    }
}
