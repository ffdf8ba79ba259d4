//! The shortest commands: vm0 from its own disk, with and without a partition table; on a switch, on a bridge.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/debian.rs"]
mod debian;

use debian::{AS_USER, BOOT, Guest, Tap, lab, ssh};
use lab::{Cmd, Status};

#[test]
fn initrd_and_root_come_from_the_grown_disk_and_its_guest_takes_the_new_space_with_lvm() {
    lab().sh("qemu-img resize -q -f raw vm0.raw +20G").unwrap();
    let mut tap = Tap::new("tap2", "multi_queue");
    let port = tap.on_switch();
    let mut guest =
        Guest::start(&format!("{AS_USER} ./minivmm --kernel vmlinuz --disk vm0.raw --tap tap2 --mem 512"));
    guest.is_healthy();
    assert!(guest.sh("findmnt -no SOURCE /").contains("/dev/vda1"));
    assert_eq!(ssh(&format!("fe80::b8ad:ff:feca:fe02%{port}"), "hostname"), "vm0\n");
    take_the_new_space(&mut guest);
    guest.power_off();
    // On the host the file shows what the guest used, not what it could use.
    let used: u64 = lab().sh("du -m vm0.raw | cut -f1").unwrap().trim().parse().unwrap();
    assert!(used < 2048, "{used} MiB of the disk are used");
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
    lab().sh(&format!("ip address add 192.168.30.1/24 dev {bridge}; truncate -s 256M data.raw")).unwrap();
    lab().sh("chown 1000:1000 data.raw").unwrap();
    let mut guest = Guest::start(&format!(
        "{AS_USER} ./minivmm --disk vm0-whole.raw --disk data.raw,direct --disk tools.ext4,ro --tap tap3"
    ));
    guest.is_healthy();
    assert!(guest.sh("findmnt -no SOURCE /").contains("/dev/vda\n"));
    guest.sh("ip address add 192.168.30.2/24 dev $(ls /sys/class/net | grep ^e)");
    // Large segments cross the bridge both ways.
    assert_eq!(ssh("192.168.30.2", "head -c 3000000 /dev/zero").len(), 3_000_000);
    lab().sh("ping -c 3 -s 1400 192.168.30.2").unwrap();

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
    lab().sh("e2fsck -fn vm0-whole.raw").unwrap();
}
