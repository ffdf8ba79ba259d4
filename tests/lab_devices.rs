//! Every virtio device under its Linux driver, in a small Debian guest: the kernel's own modules, no systemd.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/lab_guest.rs"]
mod lab_guest;

use std::path::Path;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use dose::soak;
use lab::{Cmd, InitramfsSpec, Lab, LabConfig, Process, Status, guest_command, initramfs, kernels};
use lab_guest::{BOOT, PROMPT, SOON};

/// Drivers that the guest loads.
const MODULES: [&str; 7] =
    ["button", "evdev", "virtio_pci", "virtio_net", "virtio_blk", "virtio_balloon", "virtio_console"];

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let kernel = kernels().unwrap().cloud.clone();
        let modules = MODULES.map(String::from).to_vec();
        let initrd = initramfs(&kernel, &InitramfsSpec { modules, ..InitramfsSpec::default() }).unwrap();
        let example = Path::new(env!("CARGO_BIN_EXE_minivmm")).with_file_name("examples/balloon");
        assert!(example.exists(), "this test runs an example: cargo build --examples (make lab does)");
        let config = LabConfig::default()
            .debian()
            .file(env!("CARGO_BIN_EXE_minivmm"), "minivmm")
            .file(example, "balloon")
            .file(&kernel.bzimage, "vmlinuz")
            .file(initrd, "initrd");
        Lab::start(&config).unwrap()
    })
}

fn minivmm() -> Cmd {
    Cmd::new("./minivmm").args(["--kernel", "vmlinuz", "--initrd", "initrd", "--append", "quiet"])
}

fn shell(flags: &[&str]) -> Process {
    let mut guest = lab().spawn(&minivmm().args(flags.iter().copied()).tty()).unwrap();
    guest.expect(PROMPT, BOOT).unwrap();
    guest
}

/// A machine of `mib` MiB under the example that drives its balloon, its guest at work on `line`.
fn ballooned(mib: u64, line: &str, disk: &str) -> Process {
    let spec = format!(
        "kernel = \"vmlinuz\"\ninitrd = \"initrd\"\nmem = \"{mib}\"\nappend = \"quiet {}\"\n{disk}",
        guest_command(line)
    );
    lab().put("balloon.toml", spec.as_bytes()).unwrap();
    lab().spawn(&Cmd::new("./balloon").args(["balloon.toml"]).tty()).unwrap()
}

/// MiB of host memory that the machine says to hold after `word`.
fn resident(guest: &mut Process, word: &str) -> u64 {
    guest.expect(word, SOON).unwrap();
    let said = guest.expect(" MiB resident", SOON).unwrap();
    let number = said.split_whitespace().rev().find_map(|word| word.parse().ok());
    number.unwrap()
}

#[test]
fn inflated_balloon_gives_its_memory_to_the_host_and_takes_it_back() {
    // More than the guest has: its page cache takes what there is, as long as the disk is open.
    lab().sh("truncate -s 300M cache.raw").unwrap();
    let line = "until [ -b /dev/vda ]; do sleep 1; done; exec 9</dev/vda
                while :; do cat /dev/vda >/dev/null; echo has-read.; sleep 3; done";
    let mut guest = ballooned(256, line, "disk = [\"cache.raw,ro\"]\n");
    guest.expect("has-read.", 2 * BOOT).unwrap();
    guest.send("?\n").unwrap();
    let full = resident(&mut guest, "resident:");
    guest.send("128\n").unwrap();
    let inflated = resident(&mut guest, "balloon: 128 MiB");
    guest.send("0\n").unwrap();
    resident(&mut guest, "balloon: 0 MiB");
    // The first of these may have been under way while there was less.
    for _ in 0..2 {
        guest.expect("has-read.", SOON).unwrap();
    }
    guest.send("?\n").unwrap();
    let back = resident(&mut guest, "resident:");
    println!("resident: {full} MiB, with a balloon of 128 MiB {inflated} MiB, then {back} MiB");
    assert!(full >= 224 && inflated + 112 <= full, "{full} MiB, then {inflated} MiB");
    assert!(back >= inflated + 112, "{inflated} MiB, then {back} MiB");
    guest.signal(15).unwrap();
    guest.wait(SOON).unwrap();
    lab().sh("rm cache.raw").unwrap();
}

#[test]
fn memory_that_the_guest_freed_returns_by_itself() {
    // It waits for a word on its disk.
    lab().sh("truncate -s 1M word.raw").unwrap();
    let line = "until [ -b /dev/vda ]; do sleep 1; done
                dd if=/dev/zero of=/tmp/much bs=1M count=200 2>/dev/null; echo has-filled.
                until blockdev --flushbufs /dev/vda; head -c 2 /dev/vda | grep -q go; do sleep 1; done
                rm /tmp/much; echo has-freed.; sleep 1000";
    let mut guest = ballooned(512, line, "disk = [\"word.raw\"]\n");
    guest.expect("has-filled.", 2 * BOOT).unwrap();
    guest.send("?\n").unwrap();
    let full = resident(&mut guest, "resident:");
    lab().sh("printf go | dd of=word.raw conv=notrunc 2>/dev/null").unwrap();
    guest.expect("has-freed.", SOON).unwrap();
    // Its kernel reports what is free every two seconds, and not all at once.
    let until = Instant::now() + SOON;
    let mut freed = full;
    while freed + 180 > full {
        assert!(Instant::now() < until, "{full} MiB, then {freed} MiB");
        thread::sleep(Duration::from_secs(1));
        guest.send("?\n").unwrap();
        freed = resident(&mut guest, "resident:");
    }
    println!("resident: {full} MiB, after the guest freed 200 MiB {freed} MiB");
    guest.signal(15).unwrap();
    guest.wait(SOON).unwrap();
    lab().sh("rm word.raw").unwrap();
}

/// How large segments are depends on round trips, so on the machine's mood: large ones are asked for on both sides.
const LARGE: &str = "echo 40 >/proc/sys/net/ipv4/tcp_min_tso_segs";

/// A TAP as the simplest tools make it: no header, no queues, down to the guest what it carries.
#[test]
fn frames_and_streams_pass_over_a_plain_tap_and_bytes_over_a_named_port_and_all_is_there_after_a_reboot() {
    lab()
        .sh("truncate -s 1M kept.raw; ip tuntap add mode tap dev tap5 && ip link set tap5 up && ip addr add 192.0.2.1/24 dev tap5")
        .unwrap();
    let mut guest = shell(&["--tap", "tap5", "--port", "name=bulk,socket=bulk.sock", "--disk", "kept.raw"]);
    frames_pass_both_ways(&mut guest);
    a_stream_comes_through_and_back_unharmed_in_large_frames(&mut guest);
    a_port_moves_bytes_each_way_unharmed_and_waits_for_whoever_is_slow(&mut guest);
    guest.send("echo ke''pt-on-the-disk | dd of=/dev/vda conv=fsync; reboot -f\n").unwrap();
    guest.expect(PROMPT, BOOT).unwrap();
    guest.expect(PROMPT, BOOT).unwrap();
    guest.send("head -n 1 /dev/vda\n").unwrap();
    guest.expect("kept-on-the-disk", SOON).unwrap();
    frames_pass_both_ways(&mut guest);
    guest.send("poweroff -f\n").unwrap();
    let out = guest.wait(SOON).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{}", out.text());
    lab().sh("ip link del tap5; rm blob kept.raw").unwrap();
}

fn frames_pass_both_ways(guest: &mut Process) {
    guest
        .send("cat /sys/class/net/eth0/address; ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0\n")
        .unwrap();
    guest.expect("ba:ad:00:ca:fe:05", SOON).unwrap();
    guest.send("ping -c 3 -s 1400 192.0.2.1\n").unwrap();
    let said = guest.expect("3 packets transmitted, 3 packets received, 0% packet loss", SOON).unwrap();
    // Each answer is whole: 1400 bytes and the 8 of its header.
    assert_eq!(said.matches("1408 bytes from 192.0.2.1: ").count(), 3, "{said}");
}

fn a_stream_comes_through_and_back_unharmed_in_large_frames(guest: &mut Process) {
    let bytes = if soak() { 80 << 20 } else { 4 << 20 };
    let blob = format!("{LARGE}; head -c {bytes} /dev/urandom >blob && sha1sum <blob");
    let sum = lab().sh(&blob).unwrap();
    let sum = sum.split_whitespace().next().unwrap();
    let frames = || {
        let said = lab().sh("cat /sys/class/net/tap5/statistics/[rt]x_packets").unwrap();
        said.split_whitespace().map(|count| count.parse::<u64>().unwrap()).collect::<Vec<_>>()
    };
    let before = frames();
    guest.send(format!("{LARGE}; echo is''-set.\n")).unwrap();
    guest.expect("is-set.\r", SOON).unwrap();
    // httpd has the kernel send the file: a program that writes little at a time would get small segments.
    lab().sh("busybox httpd -p 5000 -h .").unwrap();
    guest.send("wget -q -O /tmp/blob http://192.0.2.1:5000/blob; sha1sum </tmp/blob\n").unwrap();
    guest.expect(sum, SOON).unwrap();
    guest.send("httpd -p 5001 -h /tmp; echo ser''ves.\n").unwrap();
    guest.expect("serves.\r", SOON).unwrap();
    let back = "busybox wget -q -O - http://192.0.2.2:5001/blob | sha1sum";
    let back = lab().exec(&Cmd::sh(back).limit(SOON)).unwrap();
    assert!(back.text().contains(sum), "{}{}", back.text(), back.err_text());
    let counts: Vec<u64> = frames().iter().zip(before).map(|(after, before)| after - before).collect();
    // In frames of 1500 bytes it would be one for each 1448 bytes each way, and acknowledgements.
    assert!(counts.len() == 2 && counts.iter().sum::<u64>() < bytes / 2500, "{bytes} bytes: {counts:?}");
    guest.send("killall httpd; rm /tmp/blob\n").unwrap();
}

fn a_port_moves_bytes_each_way_unharmed_and_waits_for_whoever_is_slow(guest: &mut Process) {
    let bytes = if soak() { 100_000_000 } else { 4_000_000 };
    let (blocks, half) = (bytes / 100_000, bytes / 2);
    lab().sh(&format!("head -c {bytes} /dev/urandom >blob")).unwrap();
    let sum = lab().sh("sha1sum <blob").unwrap();
    let sum = sum.split_whitespace().next().unwrap();
    guest
        .send("port=/dev/$(grep -lx bulk /sys/class/virtio-ports/*/name | cut -d/ -f5); echo $port\n")
        .unwrap();
    guest.expect("/dev/vport", SOON).unwrap();
    // The guest is late, then the host is: neither loses a byte.
    let sender = lab().spawn(&Cmd::sh("socat -u FILE:blob UNIX-CONNECT:bulk.sock")).unwrap();
    guest
        .send(format!(
            "sleep 2; dd if=$port of=/tmp/blob bs=100000 count={blocks} iflag=fullblock; sha1sum </tmp/blob\n"
        ))
        .unwrap();
    guest.expect(sum, 2 * BOOT).unwrap();
    assert_eq!({ sender }.wait(SOON).unwrap().status, Status::Exited(0));
    guest.send("cat /tmp/blob >$port; echo has''-sent.\n").unwrap();
    let back = format!(
        "sleep 2; socat -u UNIX-CONNECT:bulk.sock,readbytes={bytes} - | {{ head -c {half}; sleep 2; cat; }} | sha1sum"
    );
    let back = lab().exec(&Cmd::sh(back).limit(2 * BOOT)).unwrap();
    assert!(back.text().contains(sum), "{}{}", back.text(), back.err_text());
    guest.expect("has-sent.\r", SOON).unwrap();
}

/// A tiny guest speaks FUSE itself; strace sees from outside each call of minivmm that takes a path or an open folder, and what it is of.
#[test]
fn forged_requests_look_at_nothing_outside_the_folder() {
    let sh = |line: &str| lab().sh(line).unwrap();
    lab().put("forger.elf", tiny_guest::SHARE).unwrap();
    sh(
        "rm -rf forged; mkdir -p forged/dir; echo secret >forged/secret; echo text >forged/dir/from-host; ln -s /etc forged/dir/out; \
          ln -s ../secret forged/dir/a",
    );
    let line = "exec strace -f -y -e trace=%file,%stat,%fstat,getdents64 -e signal=none -o forged/calls \
                ./minivmm --kernel forger.elf --mem 16 --net none --name forger --share forged/dir";
    let mut guest = lab().spawn(&Cmd::sh(line).tty()).unwrap();
    guest.expect("ready", BOOT).unwrap();
    let lines = || sh("wc -l <forged/calls").trim().parse::<usize>().unwrap();
    let before = lines();
    guest.send("h").unwrap();
    guest.expect("forged=20000 out=0", BOOT).unwrap();
    let calls = sh(&format!("sed -n '{before},{}p' forged/calls", lines()));
    let own = format!("{}/forged/dir", sh("pwd").trim());
    // Those of the share's thread.
    let thread =
        calls.lines().find(|call| call.contains(&own)).and_then(|call| call.split(' ').next()).unwrap();
    let calls: Vec<_> =
        calls.lines().filter(|call| call.split(' ').next() == Some(thread) && call.contains('(')).collect();
    assert!(calls.len() > 500, "{}: {calls:?}", calls.len());
    for call in calls {
        // Open files and folders, and whence a name goes.
        for open in call.split('<').skip(1).filter(|open| open.starts_with('/')) {
            let is_cwd = call.contains("(AT_FDCWD<") && call.contains(", \"/proc/self/fd/");
            assert!(open.starts_with(&own) || is_cwd, "{call}");
        }
        // Names: one component, or the kernel's own link to an open file and a name in it. What a link says is text.
        let name = if call.contains("symlinkat(") { call.split('"').nth(3) } else { call.split('"').nth(1) };
        let name = name.unwrap_or_default();
        let in_it = name
            .strip_prefix("/proc/self/fd/")
            .map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
        let name = in_it.map_or(name, |rest| rest.trim_start_matches('/'));
        assert!(!name.contains('/') && name != "..", "{call}");
    }
    guest.send("q").unwrap();
    guest.wait(BOOT).unwrap();
}
