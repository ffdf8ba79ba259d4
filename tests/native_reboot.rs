//! A machine whose guest reboots goes on with what it was started with: the same TAP, kernel and initrd.
//!
//! The TAP needs root, or the right to make user namespaces: for a network of its own.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/host.rs"]
mod host;
#[path = "support/vmm.rs"]
mod vmm;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use host::Host;
use tiny_guest::Guest;
use vmm::{LIMIT, Launch, Vmm};

/// By command; a machine whose guest does this so often at once would be said to loop. 300 in `make soak`.
fn reboots() -> usize {
    if dose::soak() { 300 } else { 50 }
}

/// Runs the command in a network namespace with a TAP of each kind. /sys shows the TAPs of its mounter's
/// namespace.
const ALONE: &str = "mount -t sysfs sysfs /sys
ip tuntap add mode tap dev t0
ip tuntap add mode tap dev t1 multi_queue
ip link set t0 up
ip link set t1 up
exec \"$@\"";

/// The same command after `script`, in namespaces of its own.
fn alone(mut launch: Launch, script: &str) -> Launch {
    // With what every machine of a test has, in front of unshare's own `--net`.
    launch.command();
    let mut command = Command::new("unshare");
    // SAFETY: it reads a number.
    #[allow(unsafe_code, reason = "geteuid(2) has no safe wrapper in std")]
    if unsafe { libc::geteuid() } != 0 {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--mount", "sh", "-ec", script, "alone"]);
    command.arg(launch.command.get_program()).args(launch.command.get_args());
    command.envs(launch.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    launch.command = command;
    launch
}

/// What a process has open, by number: where each link leads, and of a TUN file its interface. What is made for each boot (VM, vCPUs,
/// eventfds, epolls) has no name; there it is the kind that counts.
fn descriptors(pid: i32) -> (BTreeMap<u32, String>, BTreeMap<String, usize>) {
    let (mut named, mut made) = (BTreeMap::new(), BTreeMap::new());
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let number = entry.file_name().into_string().unwrap();
        let Ok(link) = fs::read_link(entry.path()) else { continue };
        let link = link.to_str().unwrap().to_owned();
        if link.starts_with("anon_inode:") {
            *made.entry(link).or_default() += 1;
            continue;
        }
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        let facts = info.lines().filter(|line| line.starts_with("iff:") || line.starts_with("ino:"));
        let facts = facts.fold(link, |facts, line| format!("{facts} {line}"));
        named.insert(number.parse().unwrap(), facts);
    }
    (named, made)
}

/// Of an interface, as the machine's own network shows it.
fn interface(machine: &Vmm, name: &str, what: &str) -> String {
    let path = format!("/proc/{}/root/sys/class/net/{name}/{what}", machine.pid());
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")).trim().to_owned()
}

#[test]
fn a_machine_that_reboots_keeps_its_descriptors_and_its_taps_their_carrier() {
    let host = Host::new();
    let taps = ["--cpus", "2", "--tap", "t0", "--tap", "t1"];
    let mut machine = alone(host.launch(Guest::Obedient, "vm0").args(&taps), ALONE).spawn();
    machine.expect("ready\n", 1);
    let links = |machine: &Vmm| {
        ["t0", "t1"]
            .map(|tap| ["carrier", "carrier_changes", "operstate"].map(|what| interface(machine, tap, what)))
    };
    // The kernel tells of a new carrier a moment later.
    let deadline = Instant::now() + LIMIT;
    while links(&machine).iter().any(|link| link[0] != "1" || link[2] != "up") {
        assert!(Instant::now() < deadline, "{:?}", links(&machine));
        thread::sleep(Duration::from_millis(10));
    }
    let carriers = links(&machine);
    // The guest may be ready before the control server is, which opens its spare descriptor last. A list that is read
    // meanwhile may lack the others.
    let serving = |open: &BTreeMap<u32, String>| open.values().any(|file| file.starts_with("/dev/null"));
    let deadline = Instant::now() + LIMIT;
    while !serving(&descriptors(machine.pid()).0) {
        assert!(Instant::now() < deadline, "the control server does not begin");
        thread::sleep(Duration::from_millis(10));
    }
    let before = descriptors(machine.pid());
    let tuns = before.0.values().filter(|file| file.starts_with("/dev/net/tun")).count();
    assert_eq!(tuns, 3, "a queue of t0 and two of t1: {before:?}");
    for reboot in 1..=reboots() {
        // By command, and by the guest's own reset now and then.
        if reboot % 10 == 0 {
            machine.type_in(b"r");
        } else {
            host.does(&["reset", "vm0"]);
        }
        machine.expect("ready\n", reboot + 1);
        assert_eq!(links(&machine), carriers, "reboot {reboot}");
    }
    // The last client's socket is closed when its thread notices it.
    let deadline = Instant::now() + LIMIT;
    while descriptors(machine.pid()) != before {
        let now = descriptors(machine.pid());
        assert!(Instant::now() < deadline, "descriptors:\n{before:#?}\n{now:#?}");
        thread::sleep(Duration::from_millis(10));
    }
    machine.type_in(b"q");
    let ended = machine.end();
    assert!(ended.status.success() && !ended.stderr.contains("WARN"), "{ended:?}");
}

#[test]
fn a_kernel_and_an_initrd_that_are_removed_or_replaced_boot_again_as_they_were() {
    let host = Host::new();
    let launch = host.launch(Guest::Obedient, "vm0");
    let path = |name: &str| launch.path().join(name);
    let (kernel, initrd) = (path("Obedient.elf"), path("initrd"));
    fs::write(&initrd, b"070701 as it was").unwrap();
    let mut machine = launch.args(&["--initrd", initrd.to_str().unwrap()]).spawn();
    machine.expect("ready\n", 1);

    fs::remove_file(&kernel).unwrap();
    fs::remove_file(&initrd).unwrap();
    host.does(&["reset", "vm0"]);
    machine.expect("ready\n", 2);

    let replaced = |path: &Path, with: &[u8]| {
        let new = path.with_extension("new");
        fs::write(&new, with).unwrap();
        fs::rename(&new, path).unwrap();
    };
    replaced(&kernel, &Guest::Halt.elf());
    replaced(&initrd, b"");
    machine.type_in(b"r");
    machine.expect("ready\n", 3);
    machine.type_in(b"q");
    machine.end().is("ready\nready\nready\ndone\n", 0);
}

#[test]
fn a_guest_that_ends_as_soon_as_it_has_booted_again_is_heard() {
    let host = Host::new();
    for _ in 0..20 {
        // Five boots, each of which may end before the thread that made it has said so.
        host.launch(Guest::Mute, "vm0").spawn().end().is("", 4);
    }
}
