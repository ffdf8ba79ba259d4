//! A disk under Linux's driver: what the guest was told is on it is on it, whatever happens to the machine.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/lab_guest.rs"]
mod lab_guest;

use std::sync::OnceLock;

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
    Cmd::new("./minivmm").args(fixed.split(' ').chain(flags.split(' ')))
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

fn power_off(mut guest: Process) {
    guest.send("poweroff -f\n").unwrap();
    assert_eq!(guest.wait(SOON).unwrap().status, Status::Exited(0));
}

/// Each record says its number, is written and fsynced, and only then is its number printed.
const WRITER: &str = "n=0; while :; do n=$((n+1)); printf '%-4095d\\n' $n | \
                      dd of=/dev/vda bs=4096 seek=$n conv=notrunc,fsync 2>/dev/null && echo \"done-$n.\"; done";

#[test]
fn what_was_fsynced_survives_kill_9_of_the_machine_twenty_times() {
    for round in 1..=20u32 {
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
        let last: u32 = told.max().unwrap();
        let check = format!(
            "n=0; while [ $n -lt {last} ]; do n=$((n+1)); \
             dd if=kill.raw bs=4096 skip=$n count=1 2>/dev/null | head -c 12 | grep -q \"^$n \" || echo lost $n; done; echo checked"
        );
        assert_eq!(lab().sh(&check).unwrap(), "checked\n", "round {round}, {last} records");
    }
}

#[test]
fn two_disks_and_two_networks_at_once() {
    let up = |tap: u8| {
        format!("tunctl -t tap{tap}; ip link set tap{tap} up; ip addr add 192.0.{tap}.1/24 dev tap{tap}")
    };
    lab().sh(&format!("truncate -s 32M a.raw; truncate -s 48M b.raw; {}; {}", up(6), up(7))).unwrap();
    let mut guest =
        shell("--disk a.raw,serial=first --disk b.raw,serial=second --tap tap6 --tap tap7 --cpus 2");
    assert!(sh(&mut guest, "cat /sys/block/vd?/size").contains("65536\r\n98304\r\n"));
    let said = sh(&mut guest, "cat /sys/block/vd?/serial");
    assert!(said.contains("first") && said.contains("second"), "{said}");
    sh(
        &mut guest,
        "ip link set eth0 up; ip link set eth1 up; ip addr add 192.0.6.2/24 dev eth0; ip addr add 192.0.7.2/24 dev eth1",
    );
    let work = "for d in a b; do dd if=/dev/urandom of=/dev/vd$d bs=1M count=32 conv=fsync 2>/dev/null & done; \
                ping -q -c 20 -i 0.2 192.0.6.1 & ping -q -c 20 -i 0.2 192.0.7.1; wait; sha1sum /dev/vda; \
                dd if=/dev/vdb bs=1M count=32 2>/dev/null | sha1sum";
    let said = sh(&mut guest, work);
    assert_eq!(said.matches(" 0% packet loss").count(), 2, "{said}");
    power_off(guest);
    for line in ["sha1sum a.raw", "dd if=b.raw bs=1M count=32 2>/dev/null | sha1sum"] {
        let sum = lab().sh(line).unwrap();
        let sum = sum.split_whitespace().next().unwrap();
        assert!(said.contains(sum), "{line}: {sum} is not in {said}");
    }
    lab().sh("tunctl -d tap6; tunctl -d tap7; rm a.raw b.raw").unwrap();
}

#[test]
fn discarded_blocks_go_back_to_the_host() {
    lab().sh("dd if=/dev/urandom of=d.raw bs=1M count=32 2>/dev/null").unwrap();
    let mut guest = shell("--disk d.raw");
    let used = || lab().sh("du -k d.raw").unwrap().split_whitespace().next().unwrap().parse::<u32>().unwrap();
    assert!(used() >= 32 << 10);
    sh(&mut guest, "blkdiscard -o 0 -l 16777216 /dev/vda; sync");
    assert!(used() <= 17 << 10, "{} KiB", used());
    let said = sh(&mut guest, "dd if=/dev/vda bs=1M count=16 2>/dev/null | tr -d '\\0' | wc -c");
    assert!(said.lines().any(|line| line.trim() == "0"), "{said}");
    power_off(guest);
}

#[test]
fn read_only_disk_cannot_be_written_and_is_not_changed() {
    lab().sh("dd if=/dev/urandom of=ro.raw bs=1M count=4 2>/dev/null; sha1sum ro.raw >ro.sum").unwrap();
    let mut guest = shell("--disk ro.raw,ro");
    sh(&mut guest, "! dd if=/dev/zero of=/dev/vda bs=4096 count=1");
    let said = sh(&mut guest, "cat /sys/block/vda/ro");
    assert!(said.lines().any(|line| line.trim() == "1"), "{said}");
    power_off(guest);
    lab().sh("sha1sum -c ro.sum").unwrap();
}

#[test]
fn second_machine_on_the_same_image_is_refused_and_told_who_has_it() {
    lab().sh("truncate -s 8M lock.raw").unwrap();
    let guest = shell("--disk lock.raw");
    let pid = lab().sh("pidof minivmm").unwrap();
    let second = lab().exec(&minivmm("--disk lock.raw").limit(SOON)).unwrap();
    let said = second.err_text();
    assert!(said.contains("lock.raw") && said.contains(pid.trim()), "{said}");
    assert_ne!(second.status, Status::Exited(0));
    power_off(guest);
    // Free again.
    power_off(shell("--disk lock.raw"));
}

#[test]
fn full_host_file_system_is_the_guest_s_write_error_and_no_dead_machine() {
    lab()
        .sh("mkdir -p small; mount -t tmpfs -o size=2m small small; truncate -s 16M small/full.raw")
        .unwrap();
    let mut guest = shell("--disk small/full.raw");
    let said = sh(&mut guest, "! dd if=/dev/zero of=/dev/vda bs=1M count=8 conv=fsync");
    assert!(said.contains("error"), "{said}");
    sh(&mut guest, "dd if=/dev/vda of=/dev/null bs=4096 count=1 2>/dev/null");
    power_off(guest);
    lab().sh("umount small").unwrap();
}
