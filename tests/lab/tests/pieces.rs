//! What guests are made of: Debian's kernels, their modules, initramfs images.

use lab::{InitramfsSpec, initramfs, kernels};
use std::fs;

#[test]
fn kernels_come_compressed_and_as_elf_with_a_pvh_note() {
    let kernels = kernels().unwrap();
    for kernel in [&kernels.cloud, &kernels.generic] {
        assert_eq!(&fs::read(&kernel.bzimage).unwrap()[0x202..0x206], b"HdrS", "{kernel:?}");
        let vmlinux = fs::read(&kernel.vmlinux).unwrap();
        assert!(vmlinux.starts_with(b"\x7fELF"), "{kernel:?}");
        // namesz 4, descsz 4 or 8, type 18 (XEN_ELFNOTE_PHYS32_ENTRY), "Xen".
        let note = |size: u8| [4, 0, 0, 0, size, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0];
        assert!(vmlinux.windows(16).any(|w| w == note(4) || w == note(8)), "{kernel:?}");
        assert!(String::from_utf8_lossy(&vmlinux).contains(&format!("Linux version {}", kernel.version)));
    }
    assert!(kernels.cloud.version.contains("cloud"));
}

#[test]
fn modules_come_after_what_they_depend_on() {
    let kernel = lab::kernel(lab::Flavour::Cloud).unwrap();
    let names: Vec<_> =
        kernel.modules(&["pvpanic-mmio", "kvm_amd"]).unwrap().into_iter().map(|(n, _)| n).collect();
    let at = |name: &str| names.iter().position(|n| n == name).unwrap();
    assert!(at("pvpanic.ko") < at("pvpanic_mmio.ko"), "{names:?}");
    assert!(at("irqbypass.ko") < at("kvm.ko") && at("kvm.ko") < at("kvm_amd.ko"), "{names:?}");
}

#[test]
fn module_that_does_not_exist_is_an_error_with_its_name() {
    let kernel = lab::kernel(lab::Flavour::Cloud).unwrap();
    let error = kernel.modules(&["warp_drive"]).unwrap_err().to_string();
    assert!(error.contains("no module warp_drive"), "{error}");
}

#[test]
fn large_initramfs_is_16_mb_and_built_once() {
    let kernel = lab::kernel(lab::Flavour::Cloud).unwrap();
    let path = initramfs(&kernel, &InitramfsSpec::large()).unwrap();
    let first = path.metadata().unwrap();
    assert!((15_500_000..17_000_000).contains(&first.len()), "{first:?}");
    assert_eq!(initramfs(&kernel, &InitramfsSpec::large()).unwrap(), path);
    assert_eq!(path.metadata().unwrap().modified().unwrap(), first.modified().unwrap());
}
