//! A course's evening: the shortest command with a kernel, an ordinary user, a TAP made before; all that the guide shows, the
//! disk grown and divided with LVM, and a reboot. The same disk without a kernel, and a command on its kernel.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/debian.rs"]
mod debian;

use debian::{AS_USER, BOOT, Guest, LINK_LOCAL, MAC, SOON, Tap, banner_says, lab, ssh};
use lab::{Cmd, Status};

#[test]
fn debian_runs_as_the_courses_show_it_for_a_user_without_capabilities_and_reboots_with_all_it_has() {
    let used = || lab().sh("du -m vm0.raw | cut -f1").unwrap().trim().parse::<u64>().unwrap();
    assert!(used() < 1024, "the new image uses {} MiB", used());
    lab().sh("qemu-img resize -q -f raw vm0.raw +20G").unwrap();
    let tap = Tap::new("tap2", "");
    // What a kernel prints on a serial port takes an emulated machine ten seconds; README's machine is started without `quiet`.
    let quiet = "--append quiet";
    let mut guest = Guest::start(&format!(
        "{AS_USER} ./minivmm --kernel vmlinuz --disk vm0.raw --tap tap2 --mem 512 {quiet}"
    ));
    guest.banner_says(&[
        "Kernel      : vmlinuz (Linux 6.1.",
        "Initrd      : /boot/initrd.img-6.1.",
        "Root        : root=PARTUUID=",
        "RAM         : 512 MiB",
        "Disk        : vda = vm0.raw (28 GiB, ",
        &format!("Network     : tap2, MAC {MAC}, IPv6 link-local {LINK_LOCAL}"),
    ]);
    the_user_may_do_nothing_else();
    guest.is_healthy();
    assert!(guest.sh("who").contains("etu      ttyS0"));
    the_hardware_is_what_the_guide_shows(&mut guest);
    the_image_is_one_machine(&mut guest);
    let reached = || ssh(&format!("{LINK_LOCAL}%{}", tap.name), "hostname; id -un");
    assert_eq!(reached(), "vm0\netu\n");
    take_the_new_space(&mut guest);
    // With its disk and its network, and with what it wrote.
    let boot_id = "cat /proc/sys/kernel/random/boot_id";
    let first = guest.sh(boot_id);
    guest.reboot();
    assert_ne!(guest.sh(boot_id), first);
    assert_eq!(reached(), "vm0\netu\n");
    guest.sh("mount /dev/vg0/data /mnt && sha256sum -c /root/sum && umount /mnt");
    guest.is_healthy();
    guest.power_off();
    // On the host the file shows what the guest used, not what it could use.
    assert!(used() < 1024, "{} MiB of the disk are used", used());
}

fn the_user_may_do_nothing_else() {
    let status = lab().sh("cat /proc/$(pgrep -x minivmm)/status").unwrap();
    let none = ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|set| format!("Cap{set}:\t0000000000000000"));
    for fact in none.iter().map(String::as_str).chain(["Uid:\t1000\t1000\t1000\t1000", "Groups:\t101"]) {
        assert!(status.lines().any(|line| line.trim_end() == fact), "{fact}: {status}");
    }
}

/// What lspci says of the devices, after their places.
const DEVICES: [(&str, &str); 5] = [
    ("Ethernet controller: Red Hat, Inc. Virtio 1.0 network device", "1af4:1041"),
    ("Mass storage controller: Red Hat, Inc. Virtio 1.0 block device", "1af4:1042"),
    ("Communication controller: Red Hat, Inc. Virtio 1.0 console", "1af4:1043"),
    ("Unclassified device [00ff]: Red Hat, Inc. Virtio 1.0 RNG", "1af4:1044"),
    ("Unclassified device [00ff]: Red Hat, Inc. Virtio 1.0 memory balloon", "1af4:1045"),
];
/// What lsmod lists.
const DRIVERS: [&str; 6] =
    ["virtio_balloon", "virtio_blk", "virtio_console", "virtio_net", "virtio_pci", "virtio_ring"];
/// What parted says of the disk as it was bought, before the table is mended.
const PARTED: [&str; 6] = [
    "Model: Virtio Block Device (virtblk)",
    "Disk /dev/vda: 30.1GB",
    "Sector size (logical/physical): 512B/512B",
    "Partition Table: gpt",
    "Number  Start   End     Size    File system  Name  Flags",
    " 1      1049kB  8589MB  8588MB  ext4         root",
];

fn the_hardware_is_what_the_guide_shows(guest: &mut Guest) {
    let (names, numbers) = (guest.sh("lspci"), guest.sh("lspci -n"));
    for (name, number) in DEVICES {
        assert!(names.contains(name) && numbers.contains(number), "{name}: {names}{numbers}");
    }
    let modules = guest.sh("lsmod");
    for driver in DRIVERS {
        let loaded = modules.lines().any(|line| line.split_whitespace().next() == Some(driver));
        assert!(loaded, "{driver}: {modules}");
    }
    let disk = guest.sh("parted -s /dev/vda print");
    for line in PARTED {
        assert!(disk.lines().any(|said| said.trim_end() == line), "{line}: {disk}");
    }
}

/// What a copy of the image must not share was made at this boot.
fn the_image_is_one_machine(guest: &mut Guest) {
    assert_eq!(guest.sh("wc -c < /etc/machine-id").trim(), "33");
    assert_eq!(guest.sh("find /etc/ssh -name 'ssh_host_*_key' -newer /etc/fstab").lines().count(), 1);
}

/// As the guide does it: the table is mended for the new size, two partitions become one volume group.
fn take_the_new_space(guest: &mut Guest) {
    assert_eq!(guest.sh("lsblk -bdno SIZE /dev/vda").trim(), (28_u64 << 30).to_string());
    for line in [
        "parted --fix --script /dev/vda print",
        "parted --script /dev/vda mkpart first 8GiB 18GiB mkpart second 18GiB 100%",
        "udevadm settle; pvcreate -y /dev/vda2",
        "vgcreate vg0 /dev/vda2",
        "pvcreate -y /dev/vda3",
        "vgextend vg0 /dev/vda3",
        "lvcreate -y -n data -L 15G vg0",
        "mkfs.ext4 -q /dev/vg0/data",
        "mount /dev/vg0/data /mnt && head -c 20M /dev/urandom > /mnt/file && sha256sum /mnt/file > /root/sum",
        "umount /mnt && e2fsck -fn /dev/vg0/data",
    ] {
        guest.sh(line);
    }
}

/// Its root= is the partition's, from which the test above boots, and its kernel the one that the test below boots.
#[test]
fn disk_alone_is_enough_where_it_has_a_partition_table_too() {
    // Port 5555 is the guest's ssh, for a user without any capability: no TAP is made.
    let line = format!("exec {AS_USER} ./minivmm --disk vm0.raw -p 5555:22");
    let mut console = lab().spawn(&Cmd::sh(line).tty()).unwrap();
    console.expect("~> Disk        : vda = vm0.raw", SOON).unwrap();
    banner_says(
        &console,
        &[
            "Kernel      : /boot/vmlinuz-6.1.",
            "Initrd      : /boot/initrd.img-6.1.",
            "Root        : root=PARTUUID=",
        ],
    );
    // From its boot loader's entry, which says `quiet`.
    console.expect("vm0 login: ", BOOT).unwrap();
    the_user_network_is_what_the_guide_shows();
}

/// By systemd-networkd in the guest: DHCP and router advertisements.
fn the_user_network_is_what_the_guide_shows() {
    let client = "sshpass -p -etu- ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
                  -o ConnectTimeout=60 -p 5555 etu@localhost";
    // Its ssh makes a key at the first boot; until then a connection is refused.
    let waits = format!("until {client} true; do sleep 2; done");
    assert_eq!(lab().exec(&Cmd::sh(waits).limit(BOOT)).unwrap().status, Status::Exited(0));
    let guest = |command: &str| ssh("localhost -p 5555", command);
    // The router is asked a moment after DHCP is.
    let addresses = guest(
        "for i in $(seq 60); do ip -o addr show scope global | grep -q \"inet6 fd\" && break; sleep 1; done; \
         ip -o addr show scope global",
    );
    assert!(addresses.contains("inet 10.0.2.15/24 ") && addresses.contains("inet6 fd"), "{addresses}");
    let routes = guest("ip route");
    assert!(routes.contains("default via 10.0.2.2 "), "{routes}");
    let servers = guest("resolvectl dns");
    assert!(servers.contains("10.0.2.3"), "{servers}");
    assert!(guest("echo $SSH_CLIENT").starts_with("10.0.2.2 "));
    guest("ping -q -c 3 10.0.2.2");
    // A few megabytes each way, as they were.
    let sum = guest("head -c 8M /dev/urandom > file; sha256sum < file");
    let down = lab().sh(&format!("{client} cat file > down && sha256sum < down")).unwrap();
    assert_eq!(down, sum);
    let up = lab().sh(&format!("{client} sha256sum < down; rm down")).unwrap();
    assert_eq!(up, sum);
}

#[test]
fn command_runs_on_the_kernel_and_with_the_modules_of_a_disk() {
    let line = "./minivmm run --disk vm0.raw,ro --mem 256 --boot-timeout 120 -- sh -c 'uname -r; cat /sys/block/vda/ro; exit 3'";
    let out = lab().exec(&Cmd::sh(line).limit(BOOT)).unwrap();
    assert_eq!(out.status, Status::Exited(3), "{}{}", out.text(), out.err_text());
    assert!(out.text().starts_with("6.1.") && out.text().ends_with("-amd64\n1\n"), "{}", out.text());
}
