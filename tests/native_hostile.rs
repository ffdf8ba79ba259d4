//! A guest that is out for harm, on this machine's /dev/kvm: every device is given every bad chain, ring and register
//! access and a storm of random operations, while the others have to serve as if nothing were.
//!
//! The guest (`tests/guest/hostile`) judges the devices. Here it is seen that the machine goes on, says no more than it
//! should, and holds no more memory at the end than near the start. `HOSTILE_OPS` sets the operations a device, `HOSTILE_SEED` their
//! seed. It needs root, for a network of its own.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/vmm.rs"]
mod vmm;

use std::fmt::Write;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use vmm::{Heard, Owned, wait};

/// Network, disk, console, entropy, balloon.
const DEVICES: usize = 5;
const PIECES: usize = 16;
const MEMORY: usize = 16 << 20;
/// A guest that says nothing for so long hangs; it says something at least sixteen times a device.
const SILENCE: Duration = Duration::from_secs(60);
/// The answer of a device, with and without a storm on another: a second, on an otherwise idle host.
const SLOWEST: f64 = 4.0;

/// A network of its own with a TAP that answers, then the command. /sys shows the TAPs of its mounter's network.
const ALONE: &str = "mount -t sysfs sysfs /sys
ip tuntap add mode tap dev t0
ip addr add 10.9.0.1/24 dev t0
ip link set t0 up
exec \"$@\"";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn start(folder: &Path, operations: u64, seed: u64) -> Owned {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    fs::write(path("hostile"), tiny_guest::HOSTILE).unwrap();
    File::create(path("disk")).unwrap().set_len(8 << 20).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "sh", "-ec", ALONE, "alone", env!("CARGO_BIN_EXE_minivmm")]);
    command.args(["--kernel", &path("hostile"), "--mem", "16", "--tap", "t0,mac=02:00:00:00:00:01"]);
    command.args(["--disk", &path("disk"), "--port", &format!("name=port,socket={}", path("port"))]);
    command.args(["--append", &format!("seed={seed} ops={operations}")]);
    Owned::start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// KiB of a process' own pages, besides the guest's memory; see `Anonymous` in proc_pid_smaps(5).
fn own_memory(pid: u32) -> u64 {
    let Ok(smaps) = fs::read_to_string(format!("/proc/{pid}/smaps")) else { return 0 };
    let (mut sum, mut counts) = (0, true);
    for line in smaps.lines() {
        let (key, value) = line.split_once(char::is_whitespace).unwrap();
        let kib = || value.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        match key {
            "Size:" => counts = kib() != (MEMORY >> 10) as u64,
            "Anonymous:" if counts => sum += kib(),
            _ => {}
        }
    }
    sum
}

/// What stands behind `key` in a line of the guest's.
fn after(line: &str, key: &str) -> u64 {
    let rest = line.split(key).nth(1).unwrap_or_else(|| panic!("no {key} in {line:?}"));
    rest.split(|byte: char| !byte.is_ascii_digit()).next().unwrap().parse().unwrap()
}

#[test]
fn hostile_guest_harms_neither_other_devices_nor_the_machine() {
    let operations = number("HOSTILE_OPS").unwrap_or(50_000);
    let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = number("HOSTILE_SEED").unwrap_or(u64::from(epoch.subsec_nanos()));
    let folder = TempDir::new().unwrap();
    let mut child = start(folder.path(), operations, seed);
    let (stdout, first) = Heard::listen(child.stdout.take().unwrap());
    let (stderr, second) = Heard::listen(child.stderr.take().unwrap());
    let mut memory = Vec::new();
    let begin = Instant::now();
    // Every piece of every storm: the guest says when it has ended.
    for said in 1..=DEVICES * PIECES {
        let text = |heard: &Heard| heard.text();
        let pieces = |text: &str| text.lines().filter(|line| line.contains("restarts=")).count();
        let deadline = Instant::now() + SILENCE;
        while pieces(&text(&stdout)) < said {
            let alive = child.try_wait().unwrap().is_none() && Instant::now() < deadline;
            assert!(alive, "seed {seed}, {memory:?} KiB:\n{}\n{}", text(&stdout), last(&text(&stderr)));
            std::thread::sleep(Duration::from_millis(2));
        }
        memory.push(own_memory(child.id()));
    }
    let status = wait(&mut child, || stdout.text());
    let took = begin.elapsed();
    first.join().unwrap();
    second.join().unwrap();
    let (said, logged) = (stdout.text(), stderr.text());
    let all = format!("seed {seed}, {took:?}, {memory:?} KiB:\n{said}\n{}", last(&logged));
    println!("{all}");
    assert!(status.success() && said.contains("\ndone") && said.contains(&format!("devices={DEVICES}")), "{all}");
    assert!(!logged.contains("panicked"), "{all}");
}

/// The last of what was said, and how much that was.
fn last(text: &str) -> String {
    let from = text.len().saturating_sub(6000);
    let mut shown = format!("... {} lines, of them the last:\n", text.lines().count());
    let _ = shown.write_str(text.get(from..).unwrap_or(text));
    shown
}
