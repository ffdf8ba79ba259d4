//! A disk under Linux's driver: what the guest was told is on it is on it, whatever happens to the machine.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/lab_guest.rs"]
mod lab_guest;

use std::sync::OnceLock;

use dose::dose;
use lab::{Cmd, InitramfsSpec, Lab, LabConfig, Process, Status, initramfs, kernels};
use lab_guest::{BOOT, PROMPT, SOON};

const MODULES: [&str; 5] = ["button", "evdev", "virtio_pci", "virtio_blk", "virtio_net"];

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

fn minivmm(flags: &str) -> Cmd {
    let fixed = "--kernel vmlinuz --initrd initrd --mem 256 --append quiet";
    Cmd::new("./minivmm").args(fixed.split(' ').chain(flags.split_whitespace()))
}

fn shell(flags: &str) -> Process {
    let mut guest = lab().spawn(&minivmm(flags).tty()).unwrap();
    guest.expect(PROMPT, BOOT).unwrap();
    guest
}

/// Types a line whose last output is `OK` and says what came before it.
#[track_caller]
fn sh(guest: &mut Process, line: &str) -> String {
    guest.send(format!("{line} && echo O''K\n")).unwrap();
    guest.expect("OK\r\n", SOON).unwrap()
}

fn power_off(guest: &mut Process) {
    guest.send("poweroff -f\n").unwrap();
    assert_eq!(guest.wait(SOON).unwrap().status, Status::Exited(0));
}

/// Each record says its number, is written and fsynced, and only then is its number printed.
const WRITER: &str = "n=0; while :; do n=$((n+1)); printf '%-4095d\\n' $n | \
                      dd of=/dev/vda bs=4096 seek=$n conv=notrunc,fsync 2>/dev/null && echo \"done-$n.\"; done";

#[test]
fn what_was_fsynced_survives_kill_9_of_the_machine() {
    // In `make soak` with either engine, again and again.
    for round in 1..=dose(10) {
        lab().sh("rm -f kill.raw; truncate -s 64M kill.raw").unwrap();
        let engine = if round % 2 == 0 { "kill.raw" } else { "kill.raw,queues=1" };
        let mut guest = shell(&format!("--disk {engine}"));
        guest.send(format!("{WRITER}\n")).unwrap();
        // Killed in the middle of another write, a different one each time.
        guest.expect(&format!("done-{}.", 10 + 3 * round), SOON).unwrap();
        guest.signal(9).unwrap();
        let text = guest.wait(SOON).unwrap().text();
        let told = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("done-")?.strip_suffix('.')?.parse().ok());
        let last: u64 = told.max().unwrap();
        let check = format!(
            "n=0; while [ $n -lt {last} ]; do n=$((n+1)); \
             dd if=kill.raw bs=4096 skip=$n count=1 2>/dev/null | head -c 12 | grep -q \"^$n \" || echo lost $n; done; echo checked"
        );
        assert_eq!(lab().sh(&check).unwrap(), "checked\n", "round {round}, {last} records");
    }
}

#[test]
fn disks_of_every_kind_and_networks_work_at_once_in_one_guest() {
    let up = |tap: u8| {
        format!("tunctl -t tap{tap}; ip link set tap{tap} up; ip addr add 192.0.{tap}.1/24 dev tap{tap}")
    };
    lab().sh(&format!("truncate -s 12M a.raw; truncate -s 16M b.raw; {}; {}", up(6), up(7))).unwrap();
    lab().sh("yes discarded | head -c 33554432 >discarded.raw").unwrap();
    lab().sh("dd if=/dev/urandom of=ro.raw bs=1M count=4 2>/dev/null; sha1sum ro.raw >ro.sum").unwrap();
    lab()
        .sh("mkdir -p small; mount -t tmpfs -o size=2m small small; truncate -s 16M small/full.raw")
        .unwrap();
    let mut guest = shell(
        "--disk a.raw,serial=first --disk b.raw,serial=second --disk discarded.raw,discard=on --disk ro.raw,ro \
         --disk small/full.raw --tap tap6 --tap tap7 --cpus 2",
    );
    let guest = &mut guest;
    the_second_machine_on_an_image_is_refused_and_told_who_has_it();
    let sums = two_disks_and_two_networks_work_at_once(guest);
    discarded_blocks_go_back_to_the_host(guest);
    read_only_disk_cannot_be_written(guest);
    full_host_file_system_is_a_write_error_and_no_dead_machine(guest);
    power_off(guest);
    for line in ["sha1sum a.raw", "dd if=b.raw bs=1M count=12 2>/dev/null | sha1sum"] {
        let sum = lab().sh(line).unwrap();
        let sum = sum.split_whitespace().next().unwrap();
        assert!(sums.contains(sum), "{line}: {sum} is not in {sums}");
    }
    lab().sh("sha1sum -c ro.sum").unwrap();
    the_image_is_free_again();
    lab().sh("umount small; tunctl -d tap6; tunctl -d tap7; rm *.raw").unwrap();
}

fn the_second_machine_on_an_image_is_refused_and_told_who_has_it() {
    let pid = lab().sh("pidof minivmm").unwrap();
    let second = lab().exec(&minivmm("--disk a.raw").limit(SOON)).unwrap();
    let said = second.err_text();
    assert!(said.contains("a.raw") && said.contains(pid.trim()), "{said}");
    assert_ne!(second.status, Status::Exited(0));
}

/// The last line of the banner comes when the machine has its disks.
fn the_image_is_free_again() {
    let mut next = lab().spawn(&minivmm("--disk a.raw").tty()).unwrap();
    next.expect("~> Disk        : vda = a.raw", SOON).unwrap();
    next.send("\x1dq").unwrap();
    assert_eq!(next.wait(SOON).unwrap().status, Status::Exited(6));
}

/// Gives what the guest says of both disks' content.
fn two_disks_and_two_networks_work_at_once(guest: &mut Process) -> String {
    assert!(sh(guest, "cat /sys/block/vd[ab]/size").contains("24576\r\n32768\r\n"));
    let said = sh(guest, "cat /sys/block/vd[ab]/serial");
    assert!(said.contains("first") && said.contains("second"), "{said}");
    sh(
        guest,
        "ip link set eth0 up; ip link set eth1 up; ip addr add 192.0.6.2/24 dev eth0; ip addr add 192.0.7.2/24 dev eth1",
    );
    let work = "for d in a b; do dd if=/dev/urandom of=/dev/vd$d bs=1M count=12 conv=fsync 2>/dev/null & done; \
                ping -q -c 20 -i 0.2 192.0.6.1 & ping -q -c 20 -i 0.2 192.0.7.1; wait; sha1sum /dev/vda; \
                dd if=/dev/vdb bs=1M count=12 2>/dev/null | sha1sum";
    let said = sh(guest, work);
    assert_eq!(said.matches(" 0% packet loss").count(), 2, "{said}");
    said
}

fn discarded_blocks_go_back_to_the_host(guest: &mut Process) {
    let used = || {
        let said = lab().sh("du -k discarded.raw").unwrap();
        said.split_whitespace().next().unwrap().parse::<u32>().unwrap()
    };
    assert!(used() >= 32 << 10);
    sh(guest, "blkdiscard -o 0 -l 16777216 /dev/vdc; sync");
    assert!(used() <= 17 << 10, "{} KiB", used());
    let said = sh(guest, "dd if=/dev/vdc bs=1M count=16 2>/dev/null | tr -d '\\0' | wc -c");
    assert!(said.lines().any(|line| line.trim() == "0"), "{said}");
}

fn read_only_disk_cannot_be_written(guest: &mut Process) {
    sh(guest, "! dd if=/dev/zero of=/dev/vdd bs=4096 count=1");
    let said = sh(guest, "cat /sys/block/vdd/ro");
    assert!(said.lines().any(|line| line.trim() == "1"), "{said}");
}

fn full_host_file_system_is_a_write_error_and_no_dead_machine(guest: &mut Process) {
    let said = sh(guest, "! dd if=/dev/zero of=/dev/vde bs=1M count=8 conv=fsync");
    assert!(said.contains("error"), "{said}");
    sh(guest, "dd if=/dev/vde of=/dev/null bs=4096 count=1 2>/dev/null");
}
