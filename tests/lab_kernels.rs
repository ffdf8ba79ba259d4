//! Kernels older and newer than this Debian's, for 32 bits, and other than Linux, on a host with a newer kernel.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/dose.rs"]
mod dose;

use std::sync::OnceLock;
use std::time::Duration;

use dose::soak;
use lab::{
    Cmd, Flavour, InitramfsSpec, Lab, LabConfig, Output, Status, guest_command, initramfs, kernel, memtest,
};

/// Time for a guest to boot under two emulations, on a busy machine.
const BOOT: Duration = Duration::from_secs(180);

/// Guests by their names here.
const GUESTS: [(&str, Flavour); 4] = [
    ("6.1", Flavour::Cloud),
    ("6.12", Flavour::Trixie),
    ("5.10", Flavour::Bullseye),
    ("i386", Flavour::I386),
];

/// A host with Linux 6.12, whose KVM says less of the processor's topology than that of 6.1.
fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let mut config =
            LabConfig::default().kernel(Flavour::Trixie).file(env!("CARGO_BIN_EXE_minivmm"), "minivmm");
        for (name, flavour) in GUESTS {
            let kernel = kernel(flavour).unwrap();
            let mut spec = InitramfsSpec::default();
            // A driver for the panic device came later.
            spec.modules.retain(|module| flavour != Flavour::Bullseye || module != "pvpanic_mmio");
            if flavour == Flavour::I386 {
                spec.modules.extend(["virtio_pci", "virtio_blk"].map(String::from));
            }
            let initrd = initramfs(&kernel, &spec).unwrap();
            config = config
                .file(&kernel.bzimage, format!("{name}.bzimage"))
                .file(initrd, format!("{name}.initrd"));
        }
        Lab::start(&config).unwrap()
    })
}

/// What came out of a guest that boots to its /init, runs a shell line and powers off.
fn in_guest(name: &str, flags: &[&str], line: &str) -> Output {
    let (kernel, initrd) = (format!("{name}.bzimage"), format!("{name}.initrd"));
    let append = format!("quiet {}", guest_command(line));
    let cmd = Cmd::new("./minivmm")
        .args(["--kernel", &kernel, "--initrd", &initrd, "--append", &append])
        .args(flags.iter().copied());
    let out = lab().exec(&cmd.limit(BOOT)).unwrap();
    assert!(out.text().contains("LAB-STATUS 0"), "{name}: {}\n{}", out.text(), out.err_text());
    assert_eq!(out.status, Status::Exited(0), "{name}: {}", out.text());
    out
}

#[test]
fn four_processors_are_four_cores_of_one_package_on_a_host_with_a_newer_kernel() {
    let host = lab().sh("uname -r").unwrap();
    assert!(host.starts_with("6.12"), "{host}");
    let line = "cd /sys/devices/system/cpu; for cpu in cpu[0-9]*; do \
                echo place $(cat $cpu/topology/physical_package_id $cpu/topology/core_id); done; uname -r";
    // 6.12 reads it in another way than 6.1, which has them in lab_boot too.
    for guest in if soak() { &["6.1", "6.12"][..] } else { &["6.12"][..] } {
        let text = in_guest(guest, &["--cpus", "4"], line).text();
        let mut places: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("place ")).map(str::trim).collect();
        places.sort_unstable();
        assert_eq!(places, ["0 0", "0 1", "0 2", "0 3"], "{text}");
        assert!(text.lines().any(|line| line.starts_with(&format!("{guest}."))), "{text}");
    }
}

#[test]
fn the_oldest_kernel_that_debian_still_has_boots() {
    let text = in_guest("5.10", &[], "uname -r").text();
    assert!(text.contains("5.10."), "{text}");
}

#[test]
fn a_32_bit_debian_kernel_reaches_its_init_with_its_processors_and_a_disk_where_io_uring_is_forbidden() {
    lab().sh("echo written on the host | dd of=disk.raw bs=1M conv=sync status=none").unwrap();
    // A setting that hosts before 6.6 do not have. Nothing else here has a disk.
    lab().sh("echo 2 >/proc/sys/kernel/io_uring_disabled").unwrap();
    let flags = ["--cpus", "2", "--mem", "384", "--disk", "disk.raw"];
    let line = "uname -rm; nproc; head -n 1 /dev/vda";
    let text = in_guest("i386", &flags, line).text();
    assert!(text.contains("-686 i686"), "{text}");
    assert!(text.lines().any(|line| line.trim() == "written on the host"), "{text}");
    assert!(text.lines().any(|line| line.trim() == "2"), "two processors: {text}");
}

/// It draws on a VGA screen, which is not here, and on the serial port that the command line names.
#[test]
fn memtest_starts_and_draws_on_the_serial_console() {
    let files = memtest().unwrap();
    // The one of 32 bits enters as the Debian above does.
    let names = if soak() { &["x64", "ia32"][..] } else { &["x64"][..] };
    let mut config = LabConfig::default().file(env!("CARGO_BIN_EXE_minivmm"), "minivmm").nested_paging();
    for (name, file) in names.iter().zip(&files) {
        config = config.file(file, *name);
    }
    let lab = Lab::start(&config).unwrap();
    for name in names {
        let cmd = Cmd::new("./minivmm")
            .args(["--kernel", name, "--mem", "64", "--cmdline", "console=ttyS0,115200"])
            .tty();
        let mut machine = lab.spawn(&cmd).unwrap();
        // The banner names memtest86+ as well; its screen has this.
        machine.expect("| Pass ", BOOT).unwrap();
        machine.send("\x1dq").unwrap();
        assert_eq!(machine.wait(BOOT).unwrap().status, Status::Exited(6), "{name}");
    }
}
