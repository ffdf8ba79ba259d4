//! Which drivers a kernel has built in and which are modules, from the files that come with it, and the
//! initrd that belongs to it.

use std::path::{Path, PathBuf};

use crate::host::facts::{Host, read};

/// How a kernel has a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Driver {
    /// Built in.
    BuiltIn,
    /// As a module, which an initrd contains.
    Module,
    /// Not at all.
    Absent,
}

/// A kernel's drivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Drivers {
    /// The file with this information.
    pub source: PathBuf,
    /// virtio over PCI.
    pub virtio_pci: Driver,
    /// virtio disks.
    pub virtio_blk: Driver,
    /// ext4, Debian's file system.
    pub ext4: Driver,
}

impl Drivers {
    /// The drivers of a machine's disk and its file system, in the order of display.
    pub(super) fn all(&self) -> [(&'static str, Driver); 3] {
        [("virtio_pci", self.virtio_pci), ("virtio_blk", self.virtio_blk), ("ext4", self.ext4)]
    }

    /// Whether an initrd is needed for some of them.
    pub(super) fn modular(&self) -> bool {
        self.all().iter().any(|(_, driver)| *driver == Driver::Module)
    }

    fn from_config(source: PathBuf) -> Option<Self> {
        let text = read(&source);
        let option =
            |name: &str| match text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')) {
                Some("y") => Driver::BuiltIn,
                Some("m") => Driver::Module,
                _ => Driver::Absent,
            };
        let (virtio_pci, virtio_blk, ext4) =
            (option("CONFIG_VIRTIO_PCI"), option("CONFIG_VIRTIO_BLK"), option("CONFIG_EXT4_FS"));
        (!text.is_empty()).then_some(Drivers { source, virtio_pci, virtio_blk, ext4 })
    }

    fn from_modules(parent_folder: &Path) -> Option<Self> {
        let source = parent_folder.join("modules.builtin");
        let built_in = read(&source);
        // modules.order is in the package, modules.dep is made at its installation; either lists every
        // module.
        let modules = [read(&parent_folder.join("modules.order")), read(&parent_folder.join("modules.dep"))];
        let find = |file: &str| {
            // A line of modules.dep continues after the name, and the file may be compressed:
            // virtio_pci.ko.xz.
            if built_in.contains(file) {
                Driver::BuiltIn
            } else if modules.iter().any(|list| list.contains(file)) {
                Driver::Module
            } else {
                Driver::Absent
            }
        };
        let (virtio_pci, virtio_blk, ext4) =
            (find("/virtio_pci.ko"), find("/virtio_blk.ko"), find("/ext4.ko"));
        (!built_in.is_empty()).then_some(Drivers { source, virtio_pci, virtio_blk, ext4 })
    }
}

pub(super) use crate::machine::files::release;

/// Finds the drivers in the files beside the kernel, in /boot or in /lib/modules.
pub(super) fn find(host: &Host, kernel: &Path, release: &str) -> Option<Drivers> {
    let beside = parent_folder(kernel);
    let config = format!("config-{release}");
    // The parent folder is that of an unpacked package.
    let package =
        std::fs::canonicalize(&beside).ok().and_then(|beside| Some(beside.parent()?.join("lib/modules")));
    let homes = [host.path("/lib/modules")].into_iter().chain(package);
    let modules: Vec<_> = homes.map(|path| path.join(release)).collect();
    let configs = [beside.join(&config), host.path("/boot").join(&config)];
    let configs = configs.into_iter().chain(modules.iter().map(|path| path.join("config")));
    configs
        .into_iter()
        .find_map(Drivers::from_config)
        .or_else(|| modules.iter().find_map(|path| Drivers::from_modules(path)))
}

/// The initrd that a distribution made for this kernel, if it exists.
pub(super) fn initrd_of(host: &Host, kernel: &Path, release: &str) -> Option<PathBuf> {
    let names = [
        format!("initrd.img-{release}"),    // Debian, Ubuntu
        format!("initramfs-{release}.img"), // Fedora, Red Hat
        format!("initrd-{release}"),        // SUSE
    ];
    let folders = [parent_folder(kernel), host.path("/boot")];
    folders
        .iter()
        .flat_map(|parent_folder| names.iter().map(|name| parent_folder.join(name)))
        .find(|path| path.is_file())
}

/// Whether this is a distribution's kernel, whose drivers are modules: by the suffix of its release, or by
/// its builder.
pub(super) fn is_distribution(release: &str, version: Option<&str>) -> bool {
    const ENDINGS: [&str; 14] = [
        "-amd64",
        "-686",
        "-686-pae",
        "-generic",
        "-lowlatency",
        "-default",
        "-azure",
        "-aws",
        "-gcp",
        "-kvm",
        "-virt",
        "-lts",
        "-zen",
        "-hardened",
    ];
    const BUILDERS: [&str; 5] = ["debian", "ubuntu", "buildd@", "mockbuild@", "fedoraproject"];
    let version = version.unwrap_or_default().to_ascii_lowercase();
    let numbered = |mark: &str| {
        release.match_indices(mark).any(|(at, _)| {
            release.get(at + mark.len()..).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
    };
    ENDINGS.iter().any(|ending| release.ends_with(ending))
        || numbered("-arch")
        || numbered(".fc")
        || numbered(".el")
        || BUILDERS.iter().any(|builder| version.contains(builder))
}

/// The folder of a file; empty for a name without a folder, so that a joined path is relative too.
fn parent_folder(kernel: &Path) -> PathBuf {
    kernel.parent().map(Path::to_path_buf).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::facts::tests::tree;

    const RELEASE: &str = "6.1.0-25-amd64";

    #[test]
    fn config_beside_the_kernel_is_read_first() {
        let (_folder, host) = tree(&[
            (
                "/k/config-6.1.0-25-amd64",
                "CONFIG_VIRTIO_PCI=y\n# CONFIG_VIRTIO_BLK is not set\nCONFIG_EXT4_FS=m\n",
            ),
            ("/boot/config-6.1.0-25-amd64", "CONFIG_VIRTIO_PCI=m\n"),
        ]);
        let drivers = find(&host, &host.path("/k/vmlinuz"), RELEASE).unwrap();
        assert_eq!(drivers.source, host.path("/k/config-6.1.0-25-amd64"));
        assert_eq!(drivers.all().map(|(_, how)| how), [Driver::BuiltIn, Driver::Absent, Driver::Module]);
        assert!(drivers.modular());
        let drivers = find(&host, &host.path("/other/vmlinuz"), RELEASE).unwrap();
        assert_eq!(drivers.source, host.path("/boot/config-6.1.0-25-amd64"));
    }

    #[test]
    fn module_lists_serve_where_there_is_no_config() {
        let (_folder, host) = tree(&[
            ("/lib/modules/6.1.0-25-amd64/modules.builtin", "kernel/fs/ext4/ext4.ko\n"),
            (
                "/lib/modules/6.1.0-25-amd64/modules.dep",
                "kernel/drivers/virtio/virtio_pci.ko.xz: kernel/x.ko\n",
            ),
        ]);
        let drivers = find(&host, &host.path("/k/vmlinuz"), RELEASE).unwrap();
        assert_eq!(drivers.all().map(|(_, how)| how), [Driver::Module, Driver::Absent, Driver::BuiltIn]);
    }

    #[test]
    fn nothing_is_known_without_files() {
        let (_folder, host) = tree(&[]);
        assert_eq!(find(&host, &host.path("/k/vmlinuz"), RELEASE), None);
    }

    #[test]
    fn release_comes_from_the_version_else_from_the_name() {
        let path = Path::new("/boot/vmlinux-5.10.0-1-amd64");
        assert_eq!(release(path, Some("6.1.0 (me@here) #1 SMP")), Some("6.1.0"));
        assert_eq!(release(path, None), Some("5.10.0-1-amd64"));
        assert_eq!(release(Path::new("vmlinux-local"), None), None);
        assert_eq!(release(path, Some("../../etc/passwd x")), None);
    }

    #[test]
    fn initrd_is_found_under_each_distributions_name() {
        for name in ["initrd.img-6.1.0-25-amd64", "initramfs-6.1.0-25-amd64.img", "initrd-6.1.0-25-amd64"] {
            let (_folder, host) = tree(&[(&format!("/boot/{name}"), "x")]);
            assert_eq!(
                initrd_of(&host, &host.path("/k/vmlinuz"), RELEASE),
                Some(host.path("/boot").join(name))
            );
        }
    }

    #[test]
    fn distributions_kernels_are_known_by_their_marks() {
        for known in [
            "6.1.0-25-amd64",
            "6.1.0-25-cloud-amd64",
            "6.8.0-45-generic",
            "6.9.5-200.fc40.x86_64",
            "5.14.0-427.el9.x86_64",
            "6.10.3-arch1-1",
        ] {
            assert!(is_distribution(known, None), "{known}");
        }
        assert!(is_distribution("6.1.0", Some("6.1.0 (debian-kernel@lists.debian.org) #1 SMP")));
        for own in ["6.1.0", "6.11.0-rc3+", "5.10.fcx", "6.1.0-mine"] {
            assert!(!is_distribution(own, Some("6.1.0 (me@laptop) #1 SMP")), "{own}");
        }
    }
}
