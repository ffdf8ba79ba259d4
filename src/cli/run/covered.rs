//! Folders of the guest over which none of the host's can be mounted: what is there would be covered, and init needs it.

use std::path::Path;

use super::args::RunArgs;
use super::busybox::Busybox;
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

/// Refuses a share that would cover what init needs.
pub(super) fn check(args: &RunArgs, spec: &Spec, busybox: &Busybox) -> Result<(), RunError> {
    if spec.share.iter().all(|share| share.mount.is_none()) {
        return Ok(());
    }
    let root = args.root.is_some();
    // Without --root there is one, or no guest.
    let needs = Needs { root, busybox: !root || busybox.is_there(), out: args.out.is_some() };
    for share in &spec.share {
        let Some(folder) = &share.mount else { continue };
        if let Some(what) = needs.covered(folder) {
            let share = share.origin.name(&share.path);
            return Err(RunError::Covers { share, folder: folder.clone(), what });
        }
    }
    Ok(())
}

impl Needs {
    /// The paths that init needs besides the kernel's own folders, whether it does for this guest, and what is there.
    fn places(self) -> [(&'static str, bool, &'static str); 9] {
        let bare = self.root && !self.busybox;
        let programs = "programs that the guest's init needs, because this host has no static busybox for it";
        [
            ("/.minivmm", true, "the files of the guest's init"),
            ("/run/minivmm", self.root, "/run/minivmm, where the guest's init has its files"),
            ("/run/out", self.out, "/run/out, where the files for --out are"),
            // With --root init has a busybox of its own.
            ("/bin", !self.root, "/bin, where the programs of a guest without --root are, or one of them"),
            ("/bin", bare, programs),
            ("/sbin", bare, programs),
            ("/usr", bare, programs),
            ("/lib", bare, programs),
            ("/lib64", bare, programs),
        ]
    }

    /// What a share at this path would cover: what is there, around it or in it. As paths are written: where the guest's links lead is seen by its
    /// init, which then says so.
    fn covered(self, folder: &GuestFolder) -> Option<&'static str> {
        let (guests, folder) = (folder.covers(), Path::new(folder.as_str()));
        let covers = |place: &str| folder.starts_with(place) || Path::new(place).starts_with(folder);
        let mut needed = self.places().into_iter().filter(|(_, is_needed, _)| *is_needed);
        guests.or_else(|| needed.find(|(place, ..)| covers(place)).map(|(.., what)| what))
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
        for folder in [
            "/proc",
            "/proc/sys",
            "/sys",
            "/sys/fs/bpf",
            "/dev",
            "//dev/",
            "/dev/shm",
            "/dev/pts",
            "/dev/hvc1",
            "/dev/virtio-ports",
            "/.minivmm",
            "/.minivmm/out",
        ] {
            assert!(covers(PLAIN, folder) && covers(root, folder), "{folder}");
        }
        for folder in
            ["/tmp", "/etc", "/root", "/work/dev", "/devices", "/run/user", "/binary", "/usr/bin", "/sbin"]
        {
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
            ("/bin/busybox", [true, false, true, true]),
            ("/bin/sh", [true, false, true, true]),
            ("/sbin/ip", [false, false, false, true]),
            ("/run", [false, true, true, true]),
            ("/run/minivmm", [false, true, false, true]),
            ("/run/out", [false, false, true, false]),
            ("/usr/bin", [false, false, false, true]),
        ] {
            assert_eq!([PLAIN, root, out, bare].map(|needs| covers(needs, folder)), needed, "{folder}");
        }
    }
}
