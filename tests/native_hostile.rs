//! A guest that is out for harm, on this machine's /dev/kvm: every device is given every bad chain, ring and register
//! access and a storm of random operations, while the others have to serve as if nothing were.
//!
//! The guest (`tests/guest/hostile`) judges the devices. Here it is seen that the machine goes on, says no more than it
//! should, and holds no more memory at the end than after a tenth of the run. `HOSTILE_OPS` sets the operations a device
//! (a million), `HOSTILE_SEED` their seed. It needs root, or the right to make user namespaces: for a network of its own.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use dose::dose;
use tempfile::TempDir;
use vmm::{Heard, Owned, wait};

/// Network, disk, console, entropy, balloon, share.
const DEVICES: usize = 6;
/// Of a storm; and those before which a tenth of all is over, after which the process holds what it needs.
const PIECES: usize = 20;
const FIRST: usize = PIECES / 10;
const MEMORY: usize = 16 << 20;
/// A guest without output for this long hangs; it prints after each piece, which takes a tenth of a second.
const SILENCE: Duration = Duration::from_secs(60);
/// Most seconds of an operation, and of an answer; an idle host needs some hundredths, a busy one has taken four.
const SLOWEST: f64 = 30.0;
/// KiB that may be held more than after the first tenth: what an allocator likes to keep.
const KEPT: u64 = 256;

/// Runs the command in a network namespace with a TAP that answers. /sys shows the TAPs of its mounter's
/// namespace.
const ALONE: &str = "mount -t sysfs sysfs /sys
ip tuntap add mode tap dev t0 multi_queue
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
    // SAFETY: it reads a number.
    #[allow(unsafe_code, reason = "geteuid(2) has no safe wrapper in std")]
    if unsafe { libc::geteuid() } != 0 {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--mount", "sh", "-ec", ALONE, "alone", env!("CARGO_BIN_EXE_minivmm")]);
    command.args(["--kernel", &path("hostile"), "--append", &format!("seed={seed} ops={operations}")]);
    // Two processors, of which the guest starts one: two pairs of queues, two queues of the disk.
    command.args("--mem 16 --cpus 2 --balloon 4 --tap t0,mac=02:00:00:00:00:01".split(' '));
    fs::create_dir(path("share")).unwrap();
    command.args(["--share", &path("share")]);
    command.args(["--disk", &path("disk"), "--port", &format!("name=port,socket={}", path("port"))]);
    Owned::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// KiB of a process' own pages, besides the guest's memory; see `Anonymous` in proc_pid_smaps(5).
fn own_memory(pid: u32) -> u64 {
    let path = format!("/proc/{pid}/smaps");
    let smaps = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let (mut sum, mut counts, mut guests) = (0, true, 0);
    for line in smaps.lines() {
        let (key, value) = line.split_once(char::is_whitespace).unwrap();
        let kib = || value.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        match key {
            "Size:" => {
                counts = kib() != (MEMORY >> 10) as u64;
                guests += usize::from(!counts);
            }
            "Anonymous:" if counts => sum += kib(),
            _ => {}
        }
    }
    assert!(
        guests == 1 && sum > 0,
        "{path} has {guests} mappings of {MEMORY} bytes, and {sum} KiB besides:\n{smaps}"
    );
    sum
}

/// The value after `key` in a line of the guest's.
fn after(line: &str, key: &str) -> u64 {
    let rest = line.split(key).nth(1).unwrap_or_else(|| panic!("no {key} in {line:?}"));
    rest.split(|byte: char| !byte.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// A peer of the port, which reads, writes and reconnects.
fn talk(socket: &Path, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        if let Ok(mut client) = UnixStream::connect(socket) {
            client.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            client.set_write_timeout(Some(Duration::from_millis(5))).unwrap();
            let mut bytes = [b'x'; 2000];
            for _ in 0..100 {
                let _ = client.write(&bytes);
                let _ = client.read(&mut bytes);
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Each line is there within [`SILENCE`] of the one before; what the process holds at the end of each piece and of all.
fn watch(child: &mut Owned, stdout: &Heard, stderr: &Heard) -> Vec<u64> {
    let mut memory = Vec::new();
    let mut said = Instant::now();
    while memory.len() <= DEVICES * PIECES && child.try_wait().unwrap().is_none() {
        let text = stdout.text();
        if text.matches("restarts=").count() + text.matches("\ndone\n").count() > memory.len() {
            said = Instant::now();
            memory.push(own_memory(child.id()));
        }
        assert!(said.elapsed() < SILENCE, "it hangs:\n{text}\n{}", last(&stderr.text()));
        thread::sleep(Duration::from_millis(2));
    }
    // Then it may go.
    let _ = child.stdin.take().map(|mut guest| guest.write_all(b"!"));
    memory
}

#[test]
fn hostile_guest_harms_neither_other_devices_nor_the_machine() {
    let operations = number("HOSTILE_OPS").unwrap_or(dose(1_000_000));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = number("HOSTILE_SEED").unwrap_or(now.subsec_nanos().into());
    // A host's disk may be busy for seconds, and a reset then waits for what it flushes: none is in the way in memory.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
    let begin = Instant::now();
    let mut child = start(folder.path(), operations, seed);
    let (stdout, first) = Heard::listen(child.stdout.take().unwrap());
    let (stderr, second) = Heard::listen(child.stderr.take().unwrap());
    let over = AtomicBool::new(false);
    let (memory, status) = thread::scope(|scope| {
        scope.spawn(|| talk(&folder.path().join("port"), &over));
        let _end = OnDrop(&over);
        let memory = watch(&mut child, &stdout, &stderr);
        (memory, wait(&mut child, || stdout.text()))
    });
    let took = begin.elapsed();
    first.join().unwrap();
    second.join().unwrap();
    let (said, logged) = (stdout.text(), stderr.text());
    let all = format!("seed {seed}, {took:?}, {memory:?} KiB:\n{said}\n{}", last(&logged));
    println!("{all}");
    assert!(status.success() && said.ends_with("\ndone\n"), "{all}");
    assert!(said.contains(&format!("devices={DEVICES}\n")) && memory.len() == DEVICES * PIECES + 1, "{all}");
    assert!(!logged.contains("panicked") && !logged.contains("has died"), "{all}");
    // The output that a guest causes in the command is bounded.
    assert!(logged.lines().count() < 100, "{all}");
    let clock = |line: &str| after(line, "clock=");
    let lines: Vec<_> = said.lines().filter(|line| line.contains("clock=")).collect();
    let ticks = clock(lines.last().unwrap()) - clock(lines.first().unwrap());
    let longest = lines.iter().filter(|line| line.contains("longest=")).map(|line| after(line, "longest="));
    let slowest = longest.max().unwrap().max(after(lines.last().unwrap(), "answer="));
    let seconds = slowest as f64 / ticks as f64 * took.as_secs_f64();
    assert!(seconds < SLOWEST, "something took {seconds} s: {all}");
    let (held, at_last) = (memory[DEVICES * FIRST - 1], memory[DEVICES * PIECES]);
    assert!(at_last < held + KEPT, "it held {held} KiB after a tenth, and then {at_last}: {all}");
}

/// Says that it is over, whichever way that is.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The end of the output, and its length.
fn last(text: &str) -> String {
    let from = text.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
    format!("... {} lines, of them the last:\n{}", text.lines().count(), &text[from..])
}
