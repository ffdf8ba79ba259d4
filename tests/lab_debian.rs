//! A course's evening: vm0 with kernel and initrd as typed, an ordinary user, a TAP made before; and all that the guide shows.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/debian.rs"]
mod debian;

use debian::{AS_USER, Guest, Tap, lab, ssh};

/// What the guide computes before it boots the machine on tap2.
const MAC: &str = "ba:ad:00:ca:fe:02";
const LINK_LOCAL: &str = "fe80::b8ad:ff:feca:fe02";

#[test]
fn debian_runs_as_the_courses_show_it_for_a_user_without_capabilities_on_a_plain_tap_and_reboots() {
    let tap = Tap::new("tap2", "");
    let mut guest = Guest::start(&format!(
        "{AS_USER} ./minivmm --kernel vmlinuz --initrd initrd.img --disk vm0.raw --tap tap2 --mem 512"
    ));
    guest.banner_says(&[
        "Kernel      : vmlinuz (Linux 6.1.",
        "Initrd      : initrd.img",
        "Root        : root=PARTUUID=",
        "RAM         : 512 MiB",
        "Disk        : vda = vm0.raw (8 GiB, ",
        &format!("Network     : tap2, MAC {MAC}, IPv6 link-local {LINK_LOCAL}"),
    ]);
    the_user_may_do_nothing_else();
    guest.is_healthy();
    the_hardware_is_what_the_guide_shows(&mut guest);
    the_image_is_one_machine(&mut guest);
    assert_eq!(guest.sh("tty").trim(), "/dev/ttyS0");
    assert_eq!(guest.sh("cat /sys/class/net/e*/address").trim(), MAC);
    let reached = || ssh(&format!("{LINK_LOCAL}%{}", tap.name), "hostname; id -un");
    assert_eq!(reached(), "vm0\netu\n");
    // With its disk and its network, as the same machine and with what it wrote.
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let first = guest.sh(&format!("cat /etc/machine-id > /root/kept; {boot}"));
    guest.reboot();
    guest.sh("cmp /root/kept /etc/machine-id");
    assert_ne!(guest.sh(boot), first);
    assert_eq!(reached(), "vm0\netu\n");
    guest.is_healthy();
    guest.power_off();
}

fn the_user_may_do_nothing_else() {
    let status = lab().sh("cat /proc/$(pgrep -x minivmm)/status").unwrap();
    let facts = ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|set| format!("Cap{set}:\t0000000000000000"));
    for fact in facts.iter().map(String::as_str).chain(["Uid:\t1000\t1000\t1000\t1000", "Groups:\t101"]) {
        assert!(status.lines().any(|line| line.trim_end() == fact), "{fact}: {status}");
    }
}

fn the_hardware_is_what_the_guide_shows(guest: &mut Guest) {
    let names = guest.sh("lspci");
    for device in ["network device", "block device", "console", "memory balloon", "RNG"] {
        assert!(names.contains(&format!("Virtio 1.0 {device}")), "{device}: {names}");
    }
    let numbers = guest.sh("lspci -n");
    for id in ["1af4:1041", "1af4:1042", "1af4:1043", "1af4:1044", "1af4:1045"] {
        assert!(numbers.contains(id), "{id}: {numbers}");
    }
    let modules = guest.sh("lsmod");
    let drivers = ["balloon", "blk", "console", "net", "pci", "ring"];
    for module in drivers.map(|name| format!("virtio_{name}")) {
        let loaded = modules.lines().any(|line| line.split_whitespace().next() == Some(module.as_str()));
        assert!(loaded, "{module}: {modules}");
    }
    let disk = guest.sh("parted /dev/vda print");
    println!("{names}{numbers}{disk}");
    assert!(disk.contains("Model: Virtio Block Device (virtblk)"), "{disk}");
    assert!(disk.contains("Sector size (logical/physical): 512B/512B"), "{disk}");
}

/// What a copy of the image must not share was made at this boot.
fn the_image_is_one_machine(guest: &mut Guest) {
    assert_eq!(guest.sh("wc -c < /etc/machine-id").trim(), "33");
    assert_eq!(guest.sh("find /etc/ssh -name 'ssh_host_*_key' -newer /etc/fstab").lines().count(), 1);
}
