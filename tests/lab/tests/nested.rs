//! The lab's promises, in the emulated machine: this works on any host.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use lab::{Cmd, Lab, LabConfig, LabKind, Status};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);

fn nested() -> Lab {
    // A dynamic program of the host: it needs its libraries there.
    Lab::start_kind(LabKind::Nested, &LabConfig::default().file("/bin/bash", "host/bash")).unwrap()
}

/// Booting takes seconds: the tests that can share a machine do.
fn shared() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(nested)
}

fn gone_soon(pid: u32) -> bool {
    let until = Instant::now() + SOON;
    let there = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "));
    while there() && Instant::now() < until {
        thread::sleep(Duration::from_millis(20));
    }
    !there()
}

#[test]
fn kvm_makes_a_machine() {
    assert_eq!(shared().sh("/lab-agent check-kvm").unwrap(), "KVM API 12, a machine was made\n");
    assert!(shared().sh("ls /dev/net/tun /sys/module/irqbypass /sys/module/kvm_amd").is_ok());
    assert_eq!(shared().kvm_counter("io_exits").unwrap(), 0);
}

#[test]
fn exec_gives_output_error_and_status() {
    let out = shared().exec(&Cmd::sh("echo out; echo err >&2; pwd; exit 7")).unwrap();
    assert_eq!((out.text().as_str(), out.err_text().as_str()), ("out\n/lab\n", "err\n"));
    assert_eq!(out.status, Status::Exited(7));
}

#[test]
fn programs_of_the_host_run_with_their_libraries() {
    let out = shared().exec(&Cmd::new("./host/bash").args(["-c", "echo bash-${BASH_VERSINFO[0]}"])).unwrap();
    assert!(out.text().starts_with("bash-"), "{out:?}");
}

#[test]
fn a_megabyte_goes_both_ways_unchanged() {
    let bytes: Vec<u8> = (0..1_048_576_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let out = shared().exec(&Cmd::new("cat").stdin(bytes.clone())).unwrap();
    assert_eq!(out.status, Status::Exited(0));
    assert!(out.stdout == bytes, "{} bytes came back, damaged or fewer", out.stdout.len());
    shared().put("blob", &bytes).unwrap();
    assert_eq!(shared().exec(&Cmd::new("cat").arg("blob")).unwrap().stdout.len(), bytes.len());
}

#[test]
fn commands_run_side_by_side() {
    let mut slow = shared().spawn(&Cmd::new("cat")).unwrap();
    assert_eq!(shared().sh("echo quick").unwrap(), "quick\n");
    slow.send("still here\n").unwrap();
    slow.expect("still here\n", SOON).unwrap();
    slow.close_stdin().unwrap();
    assert_eq!(slow.wait(SOON).unwrap().status, Status::Exited(0));
}

#[test]
fn terminal_echoes_and_turns_ctrl_c_into_a_signal() {
    let mut shell = shared().spawn(&Cmd::new("sh").tty()).unwrap();
    shell.send("tty; stty -a | grep -c ' icanon'\n").unwrap();
    shell.expect("/dev/pts/", SOON).unwrap();
    shell.send("trap 'echo caught' INT; echo armed-$((1 + 1))\n").unwrap();
    shell.expect("armed-2", SOON).unwrap();
    shell.send("\x03\n").unwrap();
    shell.expect("caught", SOON).unwrap();
    shell.send("exit 3\n").unwrap();
    assert_eq!(shell.wait(SOON).unwrap().status, Status::Exited(3));
}

#[test]
fn signal_ends_a_process_and_is_its_status() {
    let mut sleep = shared().spawn(&Cmd::new("sleep").arg("1000")).unwrap();
    sleep.signal(15).unwrap();
    assert_eq!(sleep.wait(SOON).unwrap().status, Status::Signaled(15));
}

#[test]
fn dropped_process_is_killed_with_its_children() {
    let sleepers = || shared().sh("ps | grep -c '[s]leep 4321' || true").unwrap();
    let mut tree = shared().spawn(&Cmd::sh("sleep 4321 & echo up; wait")).unwrap();
    tree.expect("up", SOON).unwrap();
    assert_ne!(sleepers(), "0\n");
    drop(tree);
    let until = Instant::now() + SOON;
    while sleepers() != "0\n" {
        assert!(Instant::now() < until, "the child outlived its parent");
    }
}

#[test]
fn command_that_does_not_exist_is_an_error_that_says_so() {
    let error = shared().exec(&Cmd::new("./nothing")).unwrap_err().to_string();
    assert!(error.contains("could not be started") && error.contains("./nothing"), "{error}");
}

#[test]
fn time_limit_is_an_error_with_the_end_of_the_output() {
    let slow = Cmd::sh("echo last words; sleep 1000").limit(Duration::from_secs(10));
    let error = shared().exec(&slow).unwrap_err().to_string();
    assert!(error.contains("did not end within 10.0 s") && error.contains("| last words"), "{error}");
    let mut cat = shared().spawn(&Cmd::new("cat")).unwrap();
    let error = cat.expect("word", Duration::from_millis(300)).unwrap_err().to_string();
    assert!(error.contains("did not write [\"word\"] within 0.3 s"), "{error}");
}

#[test]
fn file_outside_the_lab_directory_is_refused() {
    for name in ["/etc/passwd", "../x", "a//b"] {
        let error = Lab::start(&LabConfig::default().file("/bin/true", name)).unwrap_err().to_string();
        assert!(error.contains("relative"), "{error}");
    }
}

#[test]
fn drop_ends_the_machine_also_in_a_panic() {
    let lab = nested();
    let pid = lab.pid();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    let panicked = thread::spawn(move || {
        let _lab = lab;
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    assert!(gone_soon(pid), "QEMU is still there");
}

#[test]
fn machine_that_dies_is_an_error_with_its_console() {
    let lab = nested();
    let mut sleep = lab.spawn(&Cmd::new("sleep").arg("1000")).unwrap();
    lab.spawn(&Cmd::sh("echo c > /proc/sysrq-trigger")).unwrap().wait(SOON).unwrap_err();
    let error = sleep.wait(SOON).unwrap_err().to_string();
    assert!(error.contains("machine went away") && error.contains("Kernel panic"), "{error}");
}

#[test]
fn lab_run_passes_streams_and_status_without_a_terminal() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.args([
        "run",
        "--file",
        "/bin/bash:b",
        "--",
        "./b",
        "-c",
        "read x; echo got $x; echo e >&2; exit 5",
    ]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"word\n").unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (&b"got word\n"[..], &b"e\n"[..]));
    assert_eq!(out.status.code(), Some(5));
}

#[test]
fn killed_lab_run_leaves_no_machine() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.env("MINIVMM_LAB", "nested").args(["run", "--", "sh", "-c", "echo up; sleep 1000"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().flatten();
    let children = tasks.map(|t| std::fs::read_to_string(t.path().join("children")).unwrap_or_default());
    let pids: Vec<u32> =
        children.flat_map(|c| c.split_whitespace().map(|p| p.parse().unwrap()).collect::<Vec<_>>()).collect();
    assert_eq!(pids.len(), 1, "{pids:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(gone_soon(pids[0]), "QEMU outlived the lab");
}
