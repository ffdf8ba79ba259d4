//! Every virtio device under its Linux driver, in a small Debian guest: the kernel's own modules, no systemd.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/lab_guest.rs"]
mod lab_guest;

use std::sync::OnceLock;
use std::time::Duration;

use lab::{Cmd, InitramfsSpec, Lab, LabConfig, Output, Process, Status, guest_command, initramfs, kernels};
use lab_guest::{BOOT, PROMPT, SOON};

/// Drivers that the guest loads.
const MODULES: [&str; 7] =
    ["button", "evdev", "virtio_pci", "virtio_net", "virtio_blk", "virtio_balloon", "virtio_console"];

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let kernel = kernels().unwrap().cloud.clone();
        let modules = MODULES.map(String::from).to_vec();
        let initrd = initramfs(&kernel, &InitramfsSpec { modules, ..InitramfsSpec::default() }).unwrap();
        let config = LabConfig::default()
            .file(env!("CARGO_BIN_EXE_minivmm"), "minivmm")
            .file(&kernel.bzimage, "vmlinuz")
            .file(initrd, "initrd");
        Lab::start(&config).unwrap()
    })
}

fn minivmm() -> Cmd {
    Cmd::new("./minivmm").args(["--kernel", "vmlinuz", "--initrd", "initrd", "--append", "quiet"])
}

fn shell(flags: &[&str]) -> Process {
    let mut guest = lab().spawn(&minivmm().args(flags.iter().copied()).tty()).unwrap();
    guest.expect(PROMPT, BOOT).unwrap();
    guest
}

#[test]
fn frames_pass_both_ways_over_a_tap() {
    lab().sh("tunctl -t tap5 && ip link set tap5 up && ip addr add 192.0.2.1/24 dev tap5").unwrap();
    let mut guest = shell(&["--tap", "tap5"]);
    guest
        .send("cat /sys/class/net/eth0/address; ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0\n")
        .unwrap();
    guest.expect("ba:ad:00:ca:fe:05", SOON).unwrap();
    guest
        .send("ping -c 3 -s 1400 192.0.2.1; grep -c virtio /proc/interrupts; cat /proc/interrupts\n")
        .unwrap();
    let said = guest.expect("0% packet loss", SOON).unwrap();
    println!("{said}");
    guest.send("poweroff -f\n").unwrap();
    let out = guest.wait(SOON).unwrap();
    println!("{}", out.text());
    assert_eq!(out.status, Status::Exited(0));
    lab().sh("tunctl -d tap5").unwrap();
}
