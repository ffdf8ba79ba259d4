//! The shortest commands: vm0 from its own disk, with and without a partition table; its data under load, two networks, `hvc0`.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/debian.rs"]
mod debian;

use debian::{AS_USER, BOOT, Guest, LINK_LOCAL, Tap, in_tools, lab, ssh, starts_from_its_disk};
use lab::{Cmd, Status};

/// What the banner says was taken from the disk.
const DISKS_KERNEL: &str = "Kernel      : /boot/vmlinuz-6.1.";
const DISKS_INITRD: &str = "Initrd      : /boot/initrd.img-6.1.";
const WHOLE: &str = "Root        : root=/dev/vda, the whole disk";

#[test]
fn disk_alone_is_enough_where_it_has_a_partition_table_too() {
    starts_from_its_disk(
        &format!("{AS_USER} ./minivmm --disk vm0.raw"),
        &[DISKS_KERNEL, DISKS_INITRD, "Root        : root=PARTUUID="],
    );
}

#[test]
fn guest_of_a_disk_without_partitions_keeps_its_data_under_load_and_uses_two_networks_and_hvc0() {
    let (mut on_switch, mut on_bridge) = (Tap::new("tap2", "multi_queue"), Tap::new("tap3", "vnet_hdr"));
    let (switch, bridge) = (on_switch.on_switch(), on_bridge.on_bridge());
    lab()
        .sh("truncate -s 256M data.raw; truncate -s 48M files.raw; chown 1000:1000 data.raw files.raw")
        .unwrap();
    let mut guest = Guest::start(&format!(
        "{AS_USER} ./minivmm --disk vm0-whole.raw --disk data.raw,direct --disk tools.ext4,ro --disk files.raw \
         --tap tap2 --tap tap3 --cpus 2 --console hvc0"
    ));
    guest.banner_says(&[DISKS_KERNEL, DISKS_INITRD, WHOLE]);
    guest.is_healthy();
    // systemd has made a login of the kernel's console.
    assert!(guest.sh("who").contains("etu      hvc0"));
    assert_eq!(guest.sh("cat /sys/class/tty/console/active").trim(), "ttyS0 hvc0");
    assert!(guest.sh("findmnt -no SOURCE /").contains("/dev/vda\n"));

    assert_eq!(ssh(&format!("{LINK_LOCAL}%{switch}"), "hostname"), "vm0\n");
    both_pairs_of_queues_are_used(&mut guest, switch);
    // Large segments cross the bridge both ways.
    let other = format!("fe80::b8ad:ff:feca:fe03%{bridge}");
    assert_eq!(ssh(&other, "head -c 3000000 /dev/zero").len(), 3_000_000);
    lab().sh(&format!("ping -c 3 -s 1400 {other}")).unwrap();

    let sum = fill_files(&mut guest);
    verify_a_minute_of_writes(&mut guest);
    guest.power_off();
    // The guest's words, read on the host.
    let check = format!("{FIO} --filename=data.raw {LAST} --verify_only");
    let out = lab().exec(&Cmd::sh(check).limit(BOOT)).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{}{}", out.text(), out.err_text());
    for image in ["vm0-whole.raw", "files.raw"] {
        lab().sh(&format!("e2fsck -fn {image}")).unwrap();
    }
    assert_eq!(lab().sh("debugfs -R 'cat /all' files.raw | sha256sum").unwrap(), sum);
}

/// Those of a multi_queue TAP, by a guest with two processors.
fn both_pairs_of_queues_are_used(guest: &mut Guest, switch: &str) {
    let interface = guest.sh("grep -l ba:ad:00:ca:fe:02 /sys/class/net/*/address | cut -d / -f 5");
    let interface = interface.trim();
    let queues = |name| format!("cd /sys/class/net/{name}/queues && echo *");
    assert_eq!(guest.sh(&queues(interface)).trim(), "rx-0 rx-1 tx-0 tx-1");
    assert_eq!(lab().sh(&queues("tap2")).unwrap().trim(), "rx-0 rx-1 tx-0 tx-1");
    // Each processor sends from its own pair, and the TAP answers into the pair that a flow comes from: an answer to one
    // address, as that of everybody has answers that belong to no flow.
    let line =
        format!("ip -6 -o addr show dev {switch} scope link | awk '{{ sub(\"/.*\", \"\", $4); print $4 }}'");
    let host = lab().sh(&line).unwrap();
    let host = host.trim();
    for cpu in ["0", "1"] {
        let line = format!("awk '/virtio0-input\\.{cpu}$/ {{ print $2 + $3 }}' /proc/interrupts");
        let before: u64 = guest.sh(&line).trim().parse().unwrap();
        guest.sh(&format!("taskset -c {cpu} ping -q -c 5 -i 0.2 {host}%{interface}"));
        let after: u64 = guest.sh(&line).trim().parse().unwrap();
        // Answers that come 200 ms apart do not share an interrupt; the first may come through the other pair, as its flow is new.
        assert!(after >= before + 4, "pair {cpu}: {before} interrupts, then {after}");
    }
}

/// Makes an ext4 on the fourth disk and writes one file until there is no room; gives what sha256sum says of it.
fn fill_files(guest: &mut Guest) -> String {
    guest.sh("mkfs.ext4 -q /dev/vdd && mount /dev/vdd /srv");
    guest.sh("! dd if=/dev/urandom of=/srv/all bs=256k 2> /tmp/dd && grep 'No space left on device' /tmp/dd");
    let sum = guest.sh("sha256sum < /srv/all");
    guest.sh("umount /srv && e2fsck -fn /dev/vdd");
    sum
}

/// Four jobs, each on a part of the disk of its own.
const FIO: &str = "fio --output-format=terse --direct=1 --ioengine=libaio --iodepth=16 --bs=4k --numjobs=4 \
                   --offset_increment=64m --verify=crc32c --verify_fatal=1 --exitall_on_error=1";
/// Every block of its part is written once, in an order that another run repeats.
const LAST: &str = "--name=last --rw=randwrite --size=8m";

fn verify_a_minute_of_writes(guest: &mut Guest) {
    guest.mount_tools("/dev/vdc");
    let fio = |job: &str| in_tools(&format!("{FIO} --filename=/dev/vdb {job}"));
    let minute = "--name=mixed --rw=randrw --size=64m --time_based --runtime=60 --verify_backlog=256";
    guest.sh_within(&fio(minute), 2 * BOOT);
    guest.sh_within(&fio(&format!("{LAST} --do_verify=0 --end_fsync=1")), BOOT);
}

#[test]
fn command_runs_on_the_kernel_and_with_the_modules_of_a_disk() {
    let line = "./minivmm run --disk vm0.raw,ro --mem 256 --boot-timeout 120 -- sh -c 'uname -r; cat /sys/block/vda/ro; exit 3'";
    let out = lab().exec(&Cmd::sh(line).limit(BOOT)).unwrap();
    assert_eq!(out.status, Status::Exited(3), "{}{}", out.text(), out.err_text());
    assert!(out.text().starts_with("6.1.") && out.text().ends_with("-amd64\n1\n"), "{}", out.text());
}
