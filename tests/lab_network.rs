//! The network device under Linux's driver, with a stream that uses all of its offloads.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use lab::{Cmd, InitramfsSpec, Lab, LabConfig, Status, initramfs, kernels};
use std::time::Duration;

const BOOT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(180);
const PROMPT: &str = "guest:/# ";

/// How large segments are depends on round trips, so on the machine's mood: large ones are asked for on both sides.
const LARGE: &str = "echo 40 >/proc/sys/net/ipv4/tcp_min_tso_segs";

/// A TAP as the simplest tools make it: no header, no queues, down to the guest what it carries.
const TAP: &str = "tunctl -t tap5 >/dev/null && ip link set tap5 up && ip addr add 192.0.2.1/24 dev tap5
    dd if=/dev/urandom of=blob bs=1M count=24 2>/dev/null && md5sum <blob";

#[test]
fn a_stream_comes_through_a_plain_tap_and_back_unharmed_in_large_frames() {
    let kernel = kernels().unwrap().cloud.clone();
    let modules = ["virtio_pci", "virtio_net"].map(String::from).to_vec();
    let initrd = initramfs(&kernel, &InitramfsSpec { modules, ..InitramfsSpec::default() }).unwrap();
    let config = LabConfig::default()
        .file(env!("CARGO_BIN_EXE_minivmm"), "minivmm")
        .file(&kernel.bzimage, "vmlinuz")
        .file(initrd, "initrd");
    let lab = Lab::start(&config).unwrap();
    let sum = lab.sh(&format!("{LARGE}; {TAP}")).unwrap();
    let sum = sum.split_whitespace().next().unwrap().to_owned();
    let minivmm = Cmd::new("./minivmm").args([
        "--kernel", "vmlinuz", "--initrd", "initrd", "--append", "quiet", "--mem", "384", "--tap", "tap5",
    ]);
    let mut guest = lab.spawn(&minivmm.tty()).unwrap();
    guest.expect(PROMPT, BOOT).unwrap();
    guest
        .send(format!("{LARGE}; ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0; echo is''-up.\n"))
        .unwrap();
    guest.expect("is-up.\r", SOON).unwrap();

    // httpd has the kernel send the file: a program that writes little at a time would get small segments.
    lab.sh("httpd -p 5000 -h .").unwrap();
    guest.send("wget -q -O /tmp/blob http://192.0.2.1:5000/blob; md5sum </tmp/blob\n").unwrap();
    guest.expect(&sum, SOON).unwrap();
    guest.send("httpd -p 5001 -h /tmp; echo ser''ves.\n").unwrap();
    guest.expect("serves.\r", SOON).unwrap();
    let back = lab.exec(&Cmd::sh("wget -q -O - http://192.0.2.2:5001/blob | md5sum").limit(SOON)).unwrap();
    assert!(back.text().contains(&sum), "{}{}", back.text(), back.err_text());

    let frames =
        lab.sh("cat /sys/class/net/tap5/statistics/tx_packets /sys/class/net/tap5/statistics/rx_packets");
    let frames = frames.unwrap();
    let counts: Vec<u64> = frames.split_whitespace().map(|count| count.parse().unwrap()).collect();
    println!("24 MiB to the guest and back: frames to it and from it {counts:?}");
    // In frames of 1500 bytes it would be 17,000 each way, and acknowledgements.
    assert!(counts.len() == 2 && counts.iter().sum::<u64>() < 10_000, "{counts:?}");
    guest.send("poweroff -f\n").unwrap();
    assert_eq!(guest.wait(SOON).unwrap().status, Status::Exited(0));
}
