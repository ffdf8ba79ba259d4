use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::cli::kernels::{CMDLINE_MAX, bzimage};
use crate::cli::report::chain;
use crate::host::facts::tests::tree;
use crate::spec::Initrd as InitrdSpec;

const OWN: &str = "6.1.0-own (me@laptop) #1 SMP";
const DEBIAN: &str = "6.1.0-25-amd64 (debian-kernel@lists.debian.org) #1 SMP";
const MEMINFO: (&str, &str) =
    ("/proc/meminfo", "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\nSwapTotal: 0 kB\n");

/// A host that can run machines, with these files besides, and a spec of a kernel of this version in /k.
struct Bench {
    _folder: tempfile::TempDir,
    host: Host,
    spec: Spec,
}

fn bench(version: &str, files: &[(&str, &str)]) -> Bench {
    let (folder, host) = tree(&[&[("/dev/kvm", ""), ("/k/initrd.img", "070701"), MEMINFO], files].concat());
    let kernel = host.path("/k/vmlinuz");
    fs::write(&kernel, bzimage(version)).unwrap();
    Bench { _folder: folder, spec: Spec::new(kernel), host }
}

impl Bench {
    fn refusal(&self, spec: Spec) -> String {
        let error = check(&spec, &self.host).unwrap_err();
        assert_eq!(error.status(), Status::Failed);
        // Paths without the temporary folder.
        chain(&error).replace(&self.host.path("/").display().to_string(), "/")
    }
}

#[test]
fn own_kernel_without_an_initrd_is_cleared() {
    let bench = bench(OWN, &[]);
    assert!(check(&bench.spec, &bench.host).unwrap().warnings.is_empty());
}

#[test]
fn machine_without_a_kernel_is_a_usage_error() {
    let error = check(&Spec::default(), &bench(OWN, &[]).host).unwrap_err();
    assert_eq!(error.status(), Status::Usage);
    assert!(error.to_string().contains("--kernel /boot/vmlinuz-VERSION"), "{error}");
}

#[test]
fn missing_kernel_is_told_with_where_to_look() {
    let bench = bench(OWN, &[]);
    let said = bench.refusal(Spec::new(bench.host.path("/k/nope")));
    assert_eq!(said, "the kernel /k/nope does not exist; `ls /k` shows what is there");
    let said = bench.refusal(Spec::new(bench.host.path("/no/folder/nope")));
    assert_eq!(said, "the kernel /no/folder/nope does not exist; neither does the folder /no/folder");
}

#[test]
fn folder_in_place_of_a_kernel_is_told_with_a_kernel_in_it() {
    let bench = bench(OWN, &[]);
    let said = bench.refusal(Spec::new(bench.host.path("/k")));
    assert_eq!(said, "the kernel /k is a folder; name a file in it, such as /k/vmlinuz");
    let said = bench.refusal(Spec::new(bench.host.path("/proc")));
    assert_eq!(said, "the kernel /proc is a folder; name a file");
}

#[test]
fn device_in_place_of_a_kernel_is_not_opened() {
    let said = bench(OWN, &[]).refusal(Spec::new("/dev/zero"));
    assert_eq!(said, "the kernel /dev/zero is no regular file; name a file");
}

#[test]
fn unreadable_kernel_is_told_with_the_cure() {
    let bench = bench(OWN, &[]);
    let path = bench.host.path("/k/vmlinuz");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // Root can read it, so the sentence is checked by itself.
    let said = match check(&bench.spec, &bench.host) {
        Err(error) => error.to_string(),
        Ok(_) => FileError::Denied { what: "kernel", path: path.clone() }.to_string(),
    };
    let path = path.display();
    assert_eq!(
        said,
        format!("the kernel {path} may not be read by this user; `sudo chmod a+r {path}` lets everybody")
    );
}

#[test]
fn what_is_no_kernel_is_named() {
    let bench = bench(OWN, &[("/k/notes", "These are notes.\n"), ("/k/empty", "")]);
    let said = bench.refusal(Spec::new(bench.host.path("/k/notes")));
    assert!(said.starts_with("/k/notes cannot be booted: This is a text file. Give"), "{said}");
    let said = bench.refusal(Spec::new(bench.host.path("/k/empty")));
    assert!(said.starts_with("/k/empty cannot be booted: The kernel file is empty"), "{said}");
    fs::write(bench.host.path("/k/short"), &bzimage(OWN)[..2048]).unwrap();
    let said = bench.refusal(Spec::new(bench.host.path("/k/short")));
    assert!(said.contains("cut short"), "{said}");
}

#[test]
fn modular_kernel_needs_its_initrd() {
    let config = ("/boot/config-6.1.0-own", "CONFIG_VIRTIO_PCI=m\nCONFIG_VIRTIO_BLK=y\nCONFIG_EXT4_FS=m\n");
    let without = bench(OWN, &[config]);
    assert_eq!(
        without.refusal(without.spec.clone()),
        "the kernel /k/vmlinuz needs an initial RAM disk, because /boot/config-6.1.0-own says that virtio_pci, ext4 \
         are modules; add `--initrd FILE` with the one made for it (Debian: /boot/initrd.img-6.1.0-own), or \
         `--initrd none` to try without"
    );
    let with = bench(OWN, &[config, ("/k/initrd.img-6.1.0-own", "x")]);
    let said = with.refusal(with.spec.clone());
    assert!(said.contains("; add `--initrd /k/initrd.img-6.1.0-own`, or"), "{said}");
}

#[test]
fn distributions_kernel_needs_its_initrd_even_if_nothing_says_so() {
    let bench = bench(DEBIAN, &[]);
    let said = bench.refusal(bench.spec.clone());
    assert!(
        said.contains("because it is a distribution's") && said.contains("initrd.img-6.1.0-25-amd64"),
        "{said}"
    );
    assert!(check(&bench.spec.clone().with_initrd(InitrdSpec::None), &bench.host).is_ok());
    let initrd = bench.host.path("/k/initrd.img");
    assert!(check(&bench.spec.clone().with_initrd(initrd), &bench.host).is_ok());
}

#[test]
fn distributions_kernel_with_all_built_in_needs_none() {
    let config =
        ("/boot/config-6.1.0-25-amd64", "CONFIG_VIRTIO_PCI=y\nCONFIG_VIRTIO_BLK=y\nCONFIG_EXT4_FS=y\n");
    let bench = bench(DEBIAN, &[config]);
    assert!(check(&bench.spec, &bench.host).is_ok());
}

#[test]
fn initrd_that_is_missing_or_empty_or_a_kernel_is_told() {
    let bench = bench(DEBIAN, &[("/k/empty", "")]);
    let said = |path| bench.refusal(bench.spec.clone().with_initrd(bench.host.path(path)));
    assert_eq!(said("/k/nope"), "the initial RAM disk /k/nope does not exist; `ls /k` shows what is there");
    assert!(said("/k/empty").contains("/k/empty cannot serve as the initial RAM disk: The initrd is empty"));
    assert!(said("/k/vmlinuz").contains("This is a kernel"));
    assert_eq!(said("/k"), "the initial RAM disk /k is a folder; name a file in it, such as /k/initrd.img");
}

#[test]
fn command_line_that_is_too_long_is_told_with_the_limit() {
    let bench = bench(OWN, &[]);
    let words = |len: u32| bench.spec.clone().with_cmdline("x".repeat(len as usize));
    assert!(check(&words(CMDLINE_MAX), &bench.host).is_ok());
    let said = bench.refusal(words(CMDLINE_MAX + 1));
    assert!(said.contains("2048 bytes") && said.contains("2047 at most"), "{said}");
}

#[test]
fn too_little_memory_is_told_with_what_is_enough() {
    let bench = bench(OWN, &[]);
    let with = |mem: &str| bench.spec.clone().with_mem(mem.parse().unwrap());
    let said = bench.refusal(with("32"));
    let (_, enough) = said.split_once("Use `--mem ").unwrap();
    let (enough, _) = enough.split_once('`').unwrap();
    assert!(check(&with(enough), &bench.host).is_ok(), "{said}");
}

#[test]
fn memory_that_the_host_never_had_is_refused_and_overcommitment_is_not() {
    let bench = bench(OWN, &[]);
    let with = |mem: &str| bench.spec.clone().with_mem(mem.parse().unwrap());
    let said = bench.refusal(with("100G"));
    assert!(said.starts_with("100 GiB of memory were asked for and this host has 2048 MiB"), "{said}");
    let checked = check(&with("6G"), &bench.host).unwrap();
    assert!(checked.warnings[0].what.contains("1024 MiB available"), "{:?}", checked.warnings);
}

#[test]
fn host_without_kvm_is_told_with_the_module() {
    let bench = bench(OWN, &[("/proc/cpuinfo", "processor: 0\nvendor_id: GenuineIntel\nflags: vmx\n")]);
    fs::remove_file(bench.host.path("/dev/kvm")).unwrap();
    let said = bench.refusal(bench.spec.clone());
    assert!(said.contains("/dev/kvm does not exist") && said.contains("sudo modprobe kvm_intel"), "{said}");
}

#[test]
fn host_that_cannot_boot_linux_is_a_warning() {
    let bench = bench(OWN, &[("/sys/module/kvm_pvm/x", "")]);
    let checked = check(&bench.spec, &bench.host).unwrap();
    assert!(checked.warnings[0].what.contains("kvm_pvm"), "{:?}", checked.warnings);
}

#[test]
fn distributions_kernel_on_a_disk_without_its_initrd_is_a_warning() {
    let bench = bench(OWN, &[]);
    let kernel = bzimage("6.6.1-0-virt (buildozer@build) #1 SMP");
    let files: [(&str, &[u8]); 3] =
        [("etc/x", b""), ("sbin/init", b"x"), ("boot/vmlinuz-6.6.1-0-virt", &kernel)];
    let image = bench.host.path("/k/vm0.raw");
    fs::write(&image, crate::image::testing::ext4(8192, &files, &[])).unwrap();
    let spec = Spec::default().with_disk(crate::spec::DiskSpec::new(&image));
    let said = |spec: &Spec| {
        let warnings = check(spec, &bench.host).unwrap().warnings;
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert!(said(&spec).contains("no initial RAM disk was found for the kernel /boot/vmlinuz-6.6.1-0-virt"));
    assert_eq!(said(&spec.with_initrd(InitrdSpec::None)), "");
}

#[test]
fn options_of_an_entry_that_are_too_long_are_told_with_their_file() {
    let bench = bench(OWN, &[]);
    let cfg = format!("menuentry 'D' {{\nlinux /boot/vmlinuz-6.6.1 {}\n}}\n", "x".repeat(3000));
    let kernel = bzimage("6.6.1 (me@laptop) #1 SMP");
    let files: [(&str, &[u8]); 4] = [
        ("etc/x", b""),
        ("sbin/init", b"x"),
        ("boot/vmlinuz-6.6.1", &kernel),
        ("boot/grub/grub.cfg", cfg.as_bytes()),
    ];
    let image = bench.host.path("/k/vm0.raw");
    fs::write(&image, crate::image::testing::ext4(8192, &files, &[])).unwrap();
    let said = bench.refusal(Spec::default().with_disk(crate::spec::DiskSpec::new(&image)));
    assert!(
        said.contains("2047 at most") && said.contains("come from /boot/grub/grub.cfg (D) on the first disk"),
        "{said}"
    );
}

#[test]
fn memory_below_the_estimate_is_a_warning_that_names_what_is_enough() {
    let bench = bench(OWN, &[]);
    let packed = [b"\x28\xb5\x2f\xfd".as_slice(), &[0; 4 << 20]].concat();
    fs::write(bench.host.path("/k/packed"), packed).unwrap();
    let with = |mib: u64| {
        let spec = bench.spec.clone().with_initrd(bench.host.path("/k/packed"));
        check(&spec.with_mem(mib.to_string().parse().unwrap()), &bench.host).unwrap().warnings
    };
    let start = (1..512).find(|mib| {
        let spec = bench.spec.clone().with_initrd(bench.host.path("/k/packed"));
        check(&spec.with_mem(mib.to_string().parse().unwrap()), &bench.host).is_ok()
    });
    let said = with(start.unwrap())[0].to_string();
    let (_, enough) = said.split_once("`--mem ").unwrap();
    let enough = enough.split_once('`').unwrap().0.parse().unwrap();
    assert!(with(enough).is_empty() && !with(enough - 1).is_empty(), "{said}");
}
