//! Folders of the guest over which none of the host's can be mounted: what is there would be covered, and init needs it.

use super::args::RunArgs;
use super::busybox;
use super::error::RunError;
use crate::spec::{GuestFolder, Spec};

/// What a guest's init needs of it, as far as that depends on the options.
#[derive(Debug, Clone, Copy)]
struct Needs {
    /// The guest's files are of `--root`.
    root: bool,
    /// The host has a static busybox, which init then has for itself.
    busybox: bool,
    /// The command's files go out.
    out: bool,
}

/// Refuses a share that would cover what init needs. The first `shares` of the spec were asked for by `--share`, the others by `--volume`.
pub(super) fn check(args: &RunArgs, spec: &Spec, shares: usize) -> Result<(), RunError> {
    if spec.share.iter().all(|share| share.mount.is_none()) {
        return Ok(());
    }
    let root = args.root.is_some();
    // Without --root there is one, or no guest.
    let busybox = !root || busybox::find(&std::env::var("PATH").unwrap_or_default()).is_ok();
    let needs = Needs { root, busybox, out: args.out.is_some() };
    for (index, share) in spec.share.iter().enumerate() {
        let Some(folder) = &share.mount else { continue };
        if let Some(what) = needs.covered(folder) {
            let option = if index < shares { "share" } else { "volume" };
            return Err(RunError::Covers { option, folder: folder.clone(), what });
        }
    }
    Ok(())
}

impl Needs {
    /// What a share at this path would cover. As paths are written: where the guest's links lead is seen by its init, which then says so.
    fn covered(self, folder: &GuestFolder) -> Option<&'static str> {
        let names: Vec<_> = folder.as_str().split('/').skip(1).collect();
        let first = names.first().copied().unwrap_or_default();
        let is_whole = names.len() == 1;
        match first {
            "proc" => Some("the guest's own /proc, or a part of it"),
            "sys" => Some("the guest's own /sys, or a part of it"),
            ".minivmm" => Some("the files of the guest's init"),
            "dev" if is_whole => Some("the guest's devices"),
            "run" if self.root && (is_whole || names.get(1) == Some(&"minivmm")) => {
                Some("/run/minivmm, where the guest's init has its files")
            }
            "run" if self.out && (is_whole || names.get(1) == Some(&"out")) => {
                Some("/run/out, where the files for --out are")
            }
            // Its init has a busybox of its own with --root.
            "bin" if is_whole && !self.root => {
                Some("/bin/busybox, the only program of a guest without --root")
            }
            "bin" | "sbin" | "usr" | "lib" | "lib64" if self.root && !self.busybox => {
                Some("programs that the guest's init needs, because this host has no static busybox for it")
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Needs = Needs { root: false, busybox: true, out: false };

    fn covers(needs: Needs, folder: &str) -> bool {
        needs.covered(&folder.parse().unwrap()).is_some()
    }

    #[test]
    fn what_init_needs_is_not_covered() {
        let root = Needs { root: true, ..PLAIN };
        for folder in
            ["/proc", "/proc/sys", "/sys", "/sys/fs/bpf", "/dev", "/.minivmm", "/.minivmm/out", "//dev/"]
        {
            assert!(covers(PLAIN, folder) && covers(root, folder), "{folder}");
        }
        for folder in [
            "/tmp",
            "/etc",
            "/root",
            "/dev/shm",
            "/work/dev",
            "/run/user",
            "/bin/more",
            "/binary",
            "/usr/bin",
        ] {
            assert!(!covers(PLAIN, folder) && !covers(root, folder), "{folder}");
        }
    }

    #[test]
    fn what_depends_on_the_options_is_free_without_them() {
        let root = Needs { root: true, ..PLAIN };
        let out = Needs { out: true, ..PLAIN };
        let bare = Needs { busybox: false, ..root };
        for (folder, needed) in [
            ("/bin", [true, false, true, true]),
            ("/run", [false, true, true, true]),
            ("/run/minivmm", [false, true, false, true]),
            ("/run/out", [false, false, true, false]),
            ("/usr/bin", [false, false, false, true]),
        ] {
            assert_eq!([PLAIN, root, out, bare].map(|needs| covers(needs, folder)), needed, "{folder}");
        }
    }
}
