//! Linux saved to a folder and restored: a Debian at work with its disks, its console and its networks, and small guests of two
//! kernels, of which one has a driver for the VM generation ID.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/debian.rs"]
mod debian;
#[path = "support/dose.rs"]
mod dose;
#[path = "support/small.rs"]
mod small;

use std::fs;
use std::sync::OnceLock;

use debian::{AS_USER, BOOT, Guest, LINK_LOCAL, SOON, Tap, in_tools};
use dose::{dose, soak};
use lab::{Cmd, Flavour, InitramfsSpec, Lab, Process, initramfs, kernel};
use small::{KERNELS, Small, goes_on, no_splat, remember, succeeds, with_kernels};

#[test]
fn guests_restored_twice_have_timers_and_other_random_numbers() {
    let lab = with_kernels(Flavour::Cloud);
    for (name, _, has_driver) in KERNELS {
        let mut guest = Small::boot(&lab, name, "");
        assert!(guest.sh("uname -r").starts_with(name));
        remember(&mut guest);
        guest.save(&lab, name);
        let numbers: Vec<String> = (0..dose(20))
            .map(|_| {
                let mut guest = Small::restore(&lab, name);
                let number = guest.sh("head -c 16 /dev/urandom | md5sum");
                goes_on(&mut guest, has_driver);
                guest.kill();
                number
            })
            .collect();
        println!("{name}: {numbers:?}");
        if has_driver {
            let mut different = numbers.clone();
            different.sort_unstable();
            different.dedup();
            assert_eq!(different.len(), numbers.len(), "{numbers:?}");
        }
    }
}

/// A lab with Debian, whose loopback is up.
fn lab() -> &'static Lab {
    static LAB: OnceLock<()> = OnceLock::new();
    let lab = debian::lab();
    LAB.get_or_init(|| {
        lab.sh("ip link set lo up; mkdir -m 700 run; truncate -s 64M data.raw; chown 1000:1000 run data.raw")
            .unwrap();
    });
    lab
}

/// A command of the courses' user.
fn as_user(line: &str) -> String {
    format!("env XDG_RUNTIME_DIR=$PWD/run {AS_USER} {line}")
}

/// A verb, which must do what it is asked; gives what it printed.
#[track_caller]
fn verb(words: &str) -> String {
    let out = lab().exec(&Cmd::sh(as_user(&format!("./minivmm {words}"))).limit(BOOT)).unwrap();
    succeeds(&out);
    out.text()
}

/// Writes, reads again what it wrote, and compares.
const FIO: &str = "fio --output-format=terse --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 \
                   --name=load --filename=/dev/vdb --size=32m --bs=4k --rw=randrw --verify_backlog=64 --time_based --runtime=5";

/// The init of an initrd with another kernel's drivers, for a Debian that has none for it.
const OTHER_KERNEL: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r file parameters; do insmod /modules/$file $parameters; done </modules/order
until [ -b /dev/vda1 ]; do sleep 0.1; done
mkdir -p /root
mount -t ext4 /dev/vda1 /root
mount --move /dev /root/dev
umount /proc
exec switch_root /root /sbin/init
";
const DRIVERS: [&str; 8] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "ext4",
    "autofs4",
];

/// Flags that have Debian run Linux 6.12.
fn with_newer_kernel() -> &'static str {
    let kernel = kernel(Flavour::Trixie).unwrap();
    let modules = DRIVERS.map(String::from).to_vec();
    let spec = InitramfsSpec { init: OTHER_KERNEL.into(), modules, ..InitramfsSpec::default() };
    let initrd = initramfs(&kernel, &spec).unwrap();
    for (name, file) in [("6.12.vmlinux", &kernel.vmlinux), ("6.12.initrd", &initrd)] {
        lab().put(name, &fs::read(file).unwrap()).unwrap();
    }
    "--kernel 6.12.vmlinux --initrd 6.12.initrd"
}

#[test]
fn debian_at_work_is_saved_and_restored_again_and_again_and_misses_nothing() {
    let tap = Tap::new("tap2", "");
    let mut echo = lab()
        .spawn(&Cmd::sh("exec socat TCP-LISTEN:7010,bind=127.0.0.1,fork,reuseaddr EXEC:cat 2>&1"))
        .unwrap();
    println!("6.1: {:?}", at_work(&tap, "6.1.", ""));
    if soak() {
        println!("6.12: {:?}", at_work(&tap, "6.12.", with_newer_kernel()));
    }
    echo.signal(15).unwrap();
    echo.wait(SOON).unwrap();
}

/// Gives how far the guest's clocks were ahead of the host's, at first and after each round.
fn at_work(tap: &Tap, version: &str, kernel: &str) -> Vec<[[f64; 2]; 2]> {
    let mut guest = Guest::start(&as_user(&format!(
        "./minivmm --name vm0 {kernel} --disk vm0.raw --disk data.raw,direct --disk tools.ext4,ro --tap tap2 \
         --net user,host-loopback=on -p 5555:22 --append quiet",
    )));
    assert!(guest.sh("uname -r").starts_with(version));
    guest.is_healthy();
    guest.sh("until ip -4 -o addr | grep -q 10.0.2.15; do sleep 0.5; done");
    set_right(&mut guest);
    guest.mount_tools("/dev/vdc");
    guest.sh("echo saved-from-here >/dev/kmsg");
    let job = in_tools(FIO);
    guest.sh(&format!(
        "rm -f /tmp/enough; ((until [ -e /tmp/enough ]; do {job} || exit 1; done; echo all-verified) >/tmp/fio 2>&1; echo over >>/tmp/fio) &"
    ));
    let mut login = log_in(tap.name);
    let before = CLOCKS.map(|clock| ahead_of_host(&mut guest, clock));
    let mut clocks = vec![before];
    for round in 0..if soak() { 10 } else { 2 } {
        // The user network's connections are not saved.
        guest.sh(&hold_a_connection());
        let folder = format!("saved{round}");
        verb(&format!("save vm0 {folder}"));
        guest = restore(guest, &folder, round);
        let after = CLOCKS.map(|clock| ahead_of_host(&mut guest, clock));
        for ([least, most], [least_before, most_before]) in after.into_iter().zip(before) {
            let is_right = least < most_before + 1.0 && most > least_before - 1.0;
            assert!(is_right, "round {round}: {after:?} ahead of the host, {before:?} before");
        }
        clocks.push(after);
        // What a machine has mapped may go away.
        lab().sh(&format!("rm -r {folder}")).unwrap();
        guest.sh("sleep 1");
        // An ssh session on the TAP is the same.
        login.send(format!("{round}\n")).unwrap();
        login.expect(&format!("heard {round} "), SOON).unwrap();
        networks_work_again(&mut guest);
        no_splat(&guest.sh("dmesg | sed '1,/saved-from-here/d'"));
    }
    let said = guest
        .sh_within("touch /tmp/enough; until grep -qx over /tmp/fio; do sleep 1; done; cat /tmp/fio", BOOT);
    assert!(said.contains("all-verified"), "{said}");
    login.close_stdin().unwrap();
    succeeds(&login.wait(SOON).unwrap());
    guest.sh("umount -R /mnt");
    guest.is_healthy();
    verb("stop vm0");
    clocks
}

/// Ends the console of a machine that was saved, and gives that of the restored one: its own, or one attached to it.
#[track_caller]
fn restore(saved: Guest, folder: &str, round: u32) -> Guest {
    let in_background = round % 2 == 1;
    let out = saved.wait();
    // The first machine is in the foreground, and so is each that was restored without -d.
    if round == 0 || !in_background {
        succeeds(&out);
    }
    if in_background {
        verb(&format!("restore {folder} -d --log restored.log"));
    }
    let line = if in_background {
        "./minivmm console vm0".to_owned()
    } else {
        format!("./minivmm restore {folder}")
    };
    Guest::go_on(&as_user(&line), &format!("again-{round}"))
}

/// A login through the TAP that answers line by line.
fn log_in(tap: &str) -> Process {
    let line = format!(
        "exec sshpass -p -etu- ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
         -o ConnectTimeout=60 etu@{LINK_LOCAL}%{tap} 'while read -r word; do echo heard $word again; done'"
    );
    let mut login = lab().spawn(&Cmd::sh(line)).unwrap();
    login.send("first\n").unwrap();
    login.expect("heard first ", SOON).unwrap();
    login
}

/// Opens a connection to the host's loopback, on which something has gone both ways. It waits in `read`.
fn hold_a_connection() -> String {
    let script = "exec 3<>/dev/tcp/10.0.2.2/7010; echo open >&3; read -r word <&3; echo $word >/tmp/held; \
                  while sleep 0.5 && echo more >&3; do :; done 2>>/tmp/held; echo ended >>/tmp/held";
    format!(
        "rm -f /tmp/held; (bash -c '{script}' >/tmp/bash 2>&1 &); until grep -q open /tmp/held; do sleep 0.2; done"
    )
}

/// Those of the user network.
fn networks_work_again(guest: &mut Guest) {
    let held = guest.sh("until grep -q ended /tmp/held; do sleep 0.2; done; cat /tmp/held");
    assert!(held.contains("Connection reset by peer"), "{held}");
    let asked =
        guest.sh("bash -c 'exec 3<>/dev/tcp/10.0.2.2/7010; echo through >&3; read -r word <&3; echo $word'");
    assert_eq!(asked, "through\n");
    let out = lab().exec(&Cmd::sh("exec bash -c 'head -c 7 </dev/tcp/127.0.0.1/5555'").limit(SOON)).unwrap();
    assert_eq!(out.text(), "SSH-2.0", "{}", out.err_text());
}

/// What shows the time of day, and CLOCK_MONOTONIC of machines that are never suspended.
const CLOCKS: [&str; 2] = ["date +%s.%N", "cut -d' ' -f1 /proc/uptime"];

/// How far the guest's clock is ahead of the host's, in seconds: at least and at most.
fn ahead_of_host(guest: &mut Guest, clock: &str) -> [f64; 2] {
    let host = || lab().sh(clock).unwrap().trim().parse::<f64>().unwrap();
    let ask = |_| {
        let asked = host();
        let told = guest.sh(clock).trim().parse::<f64>().unwrap();
        [told - host(), told - asked]
    };
    (0..5).map(ask).fold([f64::MIN, f64::MAX], |all, [least, most]| [all[0].max(least), all[1].min(most)])
}

/// As a time service would. Before it has its own clock, Linux counts ticks, of which an emulated processor loses seconds while it boots.
fn set_right(guest: &mut Guest) {
    let now = lab().sh("date +%s.%N").unwrap();
    guest.sh(&format!("date -s @{}", now.trim()));
}
