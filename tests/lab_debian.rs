//! A course's evening: vm0 with kernel and initrd as typed, an ordinary user, a TAP made before; and all that the guide shows.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/debian.rs"]
mod debian;

use debian::{AS_USER, Guest, Tap, ssh};

/// What the guide computes before it boots the machine on tap2.
const MAC: &str = "ba:ad:00:ca:fe:02";
const LINK_LOCAL: &str = "fe80::b8ad:ff:feca:fe02";

#[test]
fn debian_runs_as_the_courses_show_it_for_a_user_without_capabilities_on_a_plain_tap() {
    let tap = Tap::new("tap2", "");
    let mut guest = Guest::start(&format!(
        "{AS_USER} ./minivmm --kernel vmlinuz --initrd initrd.img --disk vm0.raw --tap tap2 --mem 512"
    ));
    guest.is_healthy();
    the_hardware_is_what_the_guide_shows(&mut guest);
    the_image_is_one_machine(&mut guest);
    assert_eq!(guest.sh("cat /sys/class/net/e*/address").trim(), MAC);
    assert_eq!(ssh(&format!("{LINK_LOCAL}%{}", tap.name), "hostname; id -un"), "vm0\netu\n");
    println!("login after {:.1} s", guest.boot.as_secs_f32());
    let text = guest.power_off().text();
    for fact in ["vm0.raw", "512", MAC] {
        assert!(text.contains(fact), "the banner does not say {fact}: {text}");
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
    let disk = guest.sh("parted -s /dev/vda print");
    assert!(disk.contains("Model: Virtio Block Device (virtblk)"), "{disk}");
    assert!(disk.contains("Sector size (logical/physical): 512B/512B"), "{disk}");
}

/// What a copy of the image must not share was made at this boot.
fn the_image_is_one_machine(guest: &mut Guest) {
    assert_eq!(guest.sh("wc -c < /etc/machine-id").trim(), "33");
    assert_eq!(guest.sh("find /etc/ssh -name 'ssh_host_*_key' -newer /etc/fstab").lines().count(), 1);
}
