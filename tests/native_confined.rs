//! Machines where a host gives less: few descriptors, no io_uring, and nobody else in their process namespace.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/vmm.rs"]
mod vmm;

use std::fs::File;
use std::process::{Command, Stdio};

use vmm::{Launch, Vmm, count};

/// A guest that keeps its disk busy and reports that from time to time; started by `wrapper`, if there is
/// one.
fn at_work(wrapper: &[&str], confine: impl Fn(&mut Command)) -> Vmm {
    let folder = tempfile::tempdir().unwrap();
    let [kernel, image, socket] = ["load", "image", "socket"].map(|name| folder.path().join(name));
    std::fs::write(&kernel, tiny_guest::LOAD).unwrap();
    File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let (disk, port) = (image.display().to_string(), format!("name=port,socket={}", socket.display()));
    let mut launch = Launch::kernel(&kernel, folder).args(&["--mem", "16", "--disk", &disk, "--port", &port]);
    if let Some((program, words)) = wrapper.split_first() {
        let mut command = Command::new(program);
        command.args(words).arg(launch.command.get_program()).args(launch.command.get_args());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        launch.command = command;
    }
    confine(&mut launch.command);
    let machine = launch.stdin(Stdio::piped()).spawn();
    machine.expect("ready\n", 1);
    // A line for each 512 blocks that were written and read back.
    machine.expect("at=", 4);
    machine
}

/// The guest ends its work, then itself.
fn works_to_its_end(mut machine: Vmm) {
    machine.type_in(b"!");
    assert!(machine.stdout.wait(|heard| count(heard, " kicks=") == 1), "{}", machine.stdout.text());
    machine.type_in(b"!");
    let ended = machine.end();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

#[test]
fn a_machine_works_with_256_descriptors() {
    let machine = at_work(&["sh", "-c", "ulimit -n 256; exec \"$@\"", "sh"], |_| {});
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", machine.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().nth(3), Some("256"), "{line}");
    works_to_its_end(machine);
}

/// As Docker's filter does it.
#[test]
fn a_disk_works_where_io_uring_is_forbidden() {
    let rings = |machine: &Vmm| {
        let folder = std::fs::read_dir(format!("/proc/{}/fd", machine.pid())).unwrap();
        let open = folder.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
        open.filter(|file| file.to_string_lossy().contains("io_uring")).count()
    };
    let machine = at_work(&[], vmm::forbid_io_uring);
    assert_eq!(rings(&machine), 0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", machine.pid())).unwrap();
    assert!(status.lines().any(|line| line == "Seccomp:\t2"), "{status}");
    works_to_its_end(machine);
}

/// As PID 1 there is no parent to reap its children or to receive its status, and signals without a handler
/// are ignored.
#[test]
fn a_machine_works_as_the_first_process_of_a_container_and_ends_by_its_signals() {
    const ALONE: [&str; 8] =
        ["unshare", "--user", "--map-root-user", "--pid", "--net", "--mount-proc", "--fork", "--kill-child"];
    works_to_its_end(at_work(&ALONE, |_| {}));
    // A signal presses the button, which this guest ignores; the second one ends the machine.
    let machine = at_work(&ALONE, |_| {});
    let children = format!("/proc/{0}/task/{0}/children", machine.pid());
    let first: i32 = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{first}/status")).unwrap();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    assert_eq!(numbers.split_whitespace().nth(1), Some("1"), "{status}");
    vmm::send_signal(first, libc::SIGTERM);
    assert!(machine.stderr.wait(|said| count(said, "power button") > 0), "{}", machine.stderr.text());
    std::thread::sleep(vmm::APART);
    vmm::send_signal(first, libc::SIGTERM);
    assert_eq!(machine.end().status.code(), Some(143));
}
