//! A course's disk from nothing to its last volume: made, installed onto, booted from, and grown while it runs. In the same guest, a
//! disk that grows under load, and disks of a host that has no room.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/debian.rs"]
mod debian;
#[path = "support/dose.rs"]
mod dose;

use debian::{AS_USER, BOOT, Guest, SOON, in_tools, lab};
use dose::dose;
use lab::{Cmd, Status};

/// A command of the courses' user.
fn as_user(line: &str) -> String {
    format!("env XDG_RUNTIME_DIR=$PWD/run {AS_USER} {line}")
}

/// A verb, which must do what it is asked; gives what it printed.
#[track_caller]
fn verb(words: &str) -> String {
    lab().sh(&as_user(&format!("./minivmm {words}"))).unwrap()
}

#[test]
fn a_debian_is_installed_onto_qcow2_and_boots_from_it_and_its_disks_grow_and_fill_while_it_works() {
    lab()
        .sh("mkdir -m 700 run small; mount -t tmpfs -o size=64m small small; chown 1000:1000 run small")
        .unwrap();
    assert_eq!(verb("disk create student.qcow2 60G"), "student.qcow2: 60 GiB, qcow2\n");
    assert!(kib("student.qcow2") <= 256, "{} KiB", kib("student.qcow2"));
    install();
    verb("disk create grows.qcow2 64M");
    verb("disk create small/vdd.raw 64M");
    verb("disk create small/vde.qcow2 64M");
    let mut guest = Guest::start(&as_user(
        "./minivmm --name vm0 --disk student.qcow2 --disk grows.qcow2 --disk tools.ext4,ro --disk small/vdd.raw,on-full=pause \
         --disk small/vde.qcow2,on-full=pause --net none --append quiet",
    ));
    guest.banner_says(&[
        "Kernel      : /boot/vmlinuz-6.1.",
        "Initrd      : /boot/initrd.img-6.1.",
        "Root        : root=PARTUUID=",
        "Disk        : vda = student.qcow2 (60 GiB, ",
    ]);
    guest.is_healthy();
    assert!(guest.sh("findmnt -no SOURCE /").contains("/dev/vda2\n"));
    the_disk_and_its_volumes_grow(&mut guest);
    guest.mount_tools("/dev/vdc");
    each_growth_is_seen_under_load(&mut guest);
    for (disk, image) in [("vdd", "small/vdd.raw"), ("vde", "small/vde.qcow2")] {
        a_full_host_pauses_and_harms_no_write(&mut guest, disk, image);
    }
    guest.sh("umount -R /mnt");
    guest.is_healthy();
    guest.power_off();
    for image in ["student.qcow2", "grows.qcow2", "small/vde.qcow2"] {
        lab().sh(&format!("qemu-img check -q {image}")).unwrap();
    }
    the_volumes_are_there_at_the_next_start();
    lab().sh("umount small").unwrap();
}

/// What a file takes on the host.
fn kib(file: &str) -> u64 {
    lab().sh(&format!("du -k {file} | cut -f1")).unwrap().trim().parse().unwrap()
}

/// For GRUB, for the system, and the rest for LVM.
const PARTITIONS: &str = "parted --script /dev/vdb mklabel gpt mkpart bios 1MiB 2MiB set 1 bios_grub on \
                          mkpart root ext4 2MiB 8GiB mkpart lvm 8GiB 100% set 3 lvm on";
/// What is left out when the system is copied: this machine needs less of it. Most drivers come from the initrd.
const LEFT_OUT: [&str; 11] = [
    "mnt/*",
    "var/cache/*",
    "var/lib/dpkg/info",
    "usr/share/[!dp]*",
    "usr/share/doc",
    "usr/share/perl*",
    "usr/lib/x86_64-linux-gnu/perl*",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/modules/*/kernel/[!dfl]*",
    "usr/lib/modules/*/kernel/drivers/[!dm]*",
    "usr/lib/modules/*/kernel/fs/[!abf]*",
];

/// By a Debian that works on an overlay, from its shell; then its machine is killed.
fn install() {
    let mut guest = Guest::start_shell(&as_user(
        "./minivmm --disk vm0.raw,overlay=vm0.qcow2 --disk student.qcow2 --net none --append 'quiet init=/bin/sh'",
    ));
    guest.banner_says(&["Kernel      : /boot/vmlinuz-6.1.", "Disk        : vda = vm0.qcow2 (8 GiB, "]);
    for line in [
        "mount -o remount,rw / && touch /installed",
        PARTITIONS,
        "mkfs.ext4 -q /dev/vdb2 && mount /dev/vdb2 /mnt",
    ] {
        guest.sh(line);
    }
    let left_out: String = LEFT_OUT.iter().map(|files| format!(" '--exclude=./{files}'")).collect();
    guest.sh_within(&format!("cd / && tar -c --one-file-system{left_out} . | tar -x -C /mnt"), BOOT);
    guest.sh("echo \"UUID=$(blkid -s UUID -o value /dev/vdb2) / ext4 errors=remount-ro 0 1\" >/mnt/etc/fstab && umount /mnt && sync");
    guest.kill();
    // Clusters may be lost to a killed machine (3), and nothing else.
    for image in ["vm0.qcow2", "student.qcow2"] {
        lab().sh(&format!("qemu-img check -q {image} || test $? = 3")).unwrap();
    }
    let said = lab().sh("qemu-img info vm0.qcow2").unwrap();
    assert!(said.contains("backing file: vm0.raw") && said.contains("backing file format: raw"), "{said}");
}

/// As courses do it: a volume group that has all there is, 20 GiB more, a partition for them, and volumes that become larger and
/// more. One of them is written to meanwhile.
fn the_disk_and_its_volumes_grow(guest: &mut Guest) {
    for line in [
        "pvcreate -y /dev/vda3",
        "vgcreate vg0 /dev/vda3",
        "lvcreate -y -n data -l 100%FREE vg0",
        "mkfs.ext4 -q /dev/vg0/data && mkdir /srv/data && mount /dev/vg0/data /srv/data",
        "head -c 8M /dev/urandom >/srv/data/before && sha256sum /srv/data/before >/root/sums",
    ] {
        guest.sh(line);
    }
    assert_eq!(verb("disk resize vm0:vda +20G"), "vm0:vda has 80 GiB\n");
    guest.sh(&seen("vda", 80 << 30));
    for line in [
        "parted --fix --script /dev/vda print",
        "parted --script /dev/vda mkpart more 60GiB 100% set 4 lvm on",
        "udevadm settle; pvcreate -y /dev/vda4",
        "vgextend vg0 /dev/vda4",
        // Beyond the end of the first of its two disks.
        "lvextend -L +10G vg0/data && resize2fs /dev/vg0/data",
        "lvcreate -y -n more -l 100%FREE vg0",
        "mkfs.ext4 -q /dev/vg0/more && mkdir /srv/more && mount /dev/vg0/more /srv/more",
        "head -c 8M /dev/urandom >/srv/more/after && cp /srv/more/after /srv/data",
        "sha256sum /srv/more/after /srv/data/after >>/root/sums",
    ] {
        guest.sh(line);
    }
    let sizes = guest.sh("lsblk -bdno SIZE /dev/vg0/data /dev/vg0/more");
    let sizes: Vec<u64> = sizes.lines().map(|size| size.trim().parse::<u64>().unwrap() >> 30).collect();
    assert!(matches!(sizes[..], [61 | 62, 9 | 10]), "{sizes:?}");
    guest.sh("sha256sum -c /root/sums && umount /srv/data /srv/more && e2fsck -fn /dev/vg0/data && e2fsck -fn /dev/vg0/more");
}

/// A shell line that waits until a disk has so many bytes.
fn seen(disk: &str, bytes: u64) -> String {
    format!("until [ $(cat /sys/block/{disk}/size) = {} ]; do sleep 0.1; done", bytes / 512)
}

/// Reads again what it wrote, and compares.
const FIO: &str =
    "fio --output-format=terse --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1";

/// By so much that the tables of the image grow as well.
const GROWTH: u64 = 250 << 30;

fn each_growth_is_seen_under_load(guest: &mut Guest) {
    let job = in_tools(&format!(
        "{FIO} --name=load --filename=/dev/vdb --size=32m --bs=4k --rw=randrw --verify_backlog=64 --time_based --runtime=5"
    ));
    guest.sh(&format!(
        "((until [ -e /tmp/enough ]; do {job} || exit; done; echo all-verified) >/tmp/fio 2>&1; echo over >>/tmp/fio) &"
    ));
    let before = 64 << 20;
    let growths = dose(200);
    for growth in 1..=growths {
        verb(&format!("disk resize grows.qcow2 +{}G", GROWTH >> 30));
        guest.sh(&seen("vdb", before + growth * GROWTH));
    }
    let said = guest
        .sh_within("touch /tmp/enough; until grep -qx over /tmp/fio; do sleep 1; done; cat /tmp/fio", BOOT);
    assert!(said.contains("all-verified"), "{said}");
    // At once, and each by itself.
    let told = guest.sh("dmesg | grep -c 'vdb. new size'");
    assert_eq!(told.trim(), growths.to_string());
    // What is new can be used to its end.
    guest.sh(&in_tools(&format!(
        "{FIO} --name=end --filename=/dev/vdb --offset={} --size=1m --rw=write",
        before + growths * GROWTH - (1 << 20)
    )));
}

/// fio writes more than the host has room for, and checks what it wrote.
fn a_full_host_pauses_and_harms_no_write(guest: &mut Guest, disk: &str, image: &str) {
    // With -v for the head of the answer: curl holds back what -i prints of it.
    let curl = as_user("curl -svN --unix-socket run/minivmm/vm0.sock http://localhost/v1/events");
    let mut events = lab().spawn(&Cmd::sh(format!("exec {curl} 2>&1"))).unwrap();
    // What happens before it listens is not told to it: the machine answers when it does.
    events.expect("200 OK", SOON).unwrap();
    let room = |kib: u64| lab().sh(&format!("mount -o remount,size={kib}k small")).unwrap();
    let begin = lab().sh("du -k small | cut -f1").unwrap().trim().parse::<u64>().unwrap();
    room(begin + 3000);
    let line =
        in_tools(&format!("{FIO} --name=full --filename=/dev/{disk} --size=8m --bs=64k --rw=randwrite"));
    guest.begin(&line);
    // Once more where it is resumed without room.
    for round in 0..2 {
        let sentence = format!(" to the disk {disk} ({image}): No space left on device");
        guest.expect(&sentence, SOON);
        guest.expect("`minivmm resume vm0` repeats the write", SOON);
        events.expect("\"disk-full\"", SOON).unwrap();
        until_ls_says(&format!("paused (no room for {disk})"));
        if round == 1 {
            room(begin + (16 << 10));
        }
        verb("resume vm0");
    }
    guest.finish(&line, BOOT);
    until_ls_says("running");
    assert!(kib(image) >= 8 << 10, "{} KiB", kib(image));
    events.signal(9).unwrap();
    assert_eq!(events.wait(SOON).unwrap().status, Status::Signaled(9));
}

fn until_ls_says(state: &str) {
    let line = format!("sh -c 'until ./minivmm ls | grep -qF \"{state}\"; do sleep 0.2; done'");
    let out = lab().exec(&Cmd::sh(as_user(&line)).limit(SOON)).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{state}");
}

/// Found and read by a Debian that is new to them.
fn the_volumes_are_there_at_the_next_start() {
    let mut guest = Guest::start_shell(&as_user(
        "./minivmm --disk student.qcow2 --net none --append 'quiet init=/bin/sh'",
    ));
    // Without udev LVM makes the names of volumes itself.
    guest.sh("modprobe dm_mod && export DM_DISABLE_UDEV=1 && vgchange -q -ay && mount /dev/vg0/data /srv/data && mount /dev/vg0/more /srv/more && sha256sum -c /root/sums");
    guest.kill();
}
