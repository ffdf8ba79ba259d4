//! The shortest commands: vm0 from its own disk, with and without a partition table; on a switch, on a bridge.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/debian.rs"]
mod debian;

use debian::{AS_USER, BOOT, Guest, Tap, lab, ssh, starts_from_its_disk};
use lab::{Cmd, Status};

const LINK_LOCAL: &str = "fe80::b8ad:ff:feca:fe02";
/// What of the banner is the same for every disk.
const DISKS_KERNEL: &str = "Kernel      : /boot/vmlinuz-6.1.";
const DISKS_INITRD: &str = "Initrd      : /boot/initrd.img-6.1.";
const OWN_KERNEL: &str = "Kernel      : vmlinuz (Linux 6.1.";
const PARTITION: &str = "Root        : root=PARTUUID=";
const WHOLE: &str = "Root        : root=/dev/vda, the whole disk";

#[test]
fn each_short_command_starts_the_other_layout_too() {
    starts_from_its_disk(
        &format!("{AS_USER} ./minivmm --disk vm0.raw"),
        &[DISKS_KERNEL, DISKS_INITRD, PARTITION],
    );
    let _tap = Tap::new("tap2", "");
    starts_from_its_disk(
        &format!("{AS_USER} ./minivmm --kernel vmlinuz --disk vm0-whole.raw --tap tap2 --mem 512"),
        &[OWN_KERNEL, DISKS_INITRD, WHOLE],
    );
}

#[test]
fn initrd_and_root_come_from_the_grown_disk_and_its_guest_takes_the_new_space_with_lvm() {
    lab().sh("qemu-img resize -q -f raw vm0.raw +20G").unwrap();
    let mut tap = Tap::new("tap2", "multi_queue");
    let port = tap.on_switch();
    let mut guest = Guest::start(&format!(
        "{AS_USER} ./minivmm --kernel vmlinuz --disk vm0.raw --tap tap2 --mem 512 --cpus 2"
    ));
    guest.banner_says(&[OWN_KERNEL, DISKS_INITRD, PARTITION]);
    guest.is_healthy();
    assert!(guest.sh("findmnt -no SOURCE /").contains("/dev/vda1"));
    assert_eq!(ssh(&format!("{LINK_LOCAL}%{port}"), "hostname"), "vm0\n");
    both_pairs_of_queues_are_used(&mut guest);
    take_the_new_space(&mut guest);
    guest.power_off();
    // On the host the file shows what the guest used, not what it could use.
    let used: u64 = lab().sh("du -m vm0.raw | cut -f1").unwrap().trim().parse().unwrap();
    assert!(used < 2048, "{used} MiB of the disk are used");
}

/// Those of a multi_queue TAP, by a guest with two processors.
fn both_pairs_of_queues_are_used(guest: &mut Guest) {
    let queues = "cd /sys/class/net/$if/queues && echo *";
    assert_eq!(guest.sh(&queues.replace("$if", "e*")).trim(), "rx-0 rx-1 tx-0 tx-1");
    assert_eq!(lab().sh(&queues.replace("$if", "tap2")).unwrap().trim(), "rx-0 rx-1 tx-0 tx-1");
    // The TAP answers into the pair that a flow comes from, and each processor sends from its own.
    for cpu in ["0", "1"] {
        guest.sh(&format!("taskset -c {cpu} ping -c 5 -i 0.2 ff02::1%$(cd /sys/class/net; echo e*)"));
        let line = format!("awk '/-input\\.{cpu}$/ {{ print $2 + $3 }}' /proc/interrupts");
        let interrupts: u64 = guest.sh(&line).trim().parse().unwrap();
        assert!(interrupts > 0, "nothing came through pair {cpu}");
    }
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
        "mount /dev/vg0/data /mnt && sha256sum -c /root/sum && umount /mnt",
    ] {
        guest.sh(line);
    }
}

/// Four jobs, each on a part of the disk of its own.
const FIO: &str = "fio --output-format=terse --direct=1 --ioengine=libaio --iodepth=16 --bs=4k --numjobs=4 \
                   --offset_increment=64m --verify=crc32c --verify_fatal=1 --exitall_on_error=1";
/// Every block of its part is written once, in an order that another run repeats.
const LAST: &str = "--name=last --rw=randwrite --size=16m";

#[test]
fn kernel_comes_from_a_disk_without_partitions_whose_guest_keeps_its_data_under_load() {
    let mut tap = Tap::new("tap3", "vnet_hdr");
    let bridge = tap.on_bridge();
    lab().sh(&format!("ip address add 192.168.30.1/24 dev {bridge}")).unwrap();
    lab()
        .sh("truncate -s 256M data.raw; truncate -s 96M files.raw; chown 1000:1000 data.raw files.raw")
        .unwrap();
    let mut guest = Guest::start(&format!(
        "{AS_USER} ./minivmm --disk vm0-whole.raw --disk data.raw,direct --disk tools.ext4,ro --disk files.raw \
         --tap tap3 --console hvc0"
    ));
    guest.banner_says(&[DISKS_KERNEL, DISKS_INITRD, WHOLE]);
    guest.is_healthy();
    // systemd has made a login of the kernel's console.
    assert_eq!(guest.sh("tty").trim(), "/dev/hvc0");
    assert_eq!(guest.sh("cat /sys/class/tty/console/active").trim(), "ttyS0 hvc0");
    assert!(guest.sh("findmnt -no SOURCE /").contains("/dev/vda\n"));
    guest.sh("ip address add 192.168.30.2/24 dev $(ls /sys/class/net | grep ^e)");
    // Large segments cross the bridge both ways.
    assert_eq!(ssh("192.168.30.2", "head -c 3000000 /dev/zero").len(), 3_000_000);
    lab().sh("ping -c 3 -s 1400 192.168.30.2").unwrap();

    let sum = fill_files(&mut guest);
    guest.sh("mount -o ro /dev/vdc /mnt; for d in dev proc sys; do mount --bind /$d /mnt/$d; done; mount -t tmpfs t /mnt/tmp");
    let fio = |job: &str| format!("chroot /mnt sh -c 'cd /tmp && {FIO} --filename=/dev/vdb {job}'");
    let minute = "--name=mixed --rw=randrw --size=64m --time_based --runtime=60 --verify_backlog=256";
    guest.sh_within(&fio(minute), 2 * BOOT);
    guest.sh_within(&fio(&format!("{LAST} --do_verify=0 --end_fsync=1")), BOOT);
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

/// Makes an ext4 on the fourth disk and writes one file until there is no room; gives what sha256sum says of it.
fn fill_files(guest: &mut Guest) -> String {
    guest.sh("mkfs.ext4 -q /dev/vdd && mount /dev/vdd /srv");
    guest.sh("! dd if=/dev/urandom of=/srv/all bs=256k 2> /tmp/dd && grep 'No space left on device' /tmp/dd");
    let sum = guest.sh("sha256sum < /srv/all");
    guest.sh("umount /srv && e2fsck -fn /dev/vdd");
    sum
}
