//! Verbs as jobs of a real shell on a terminal: stopped, put into the background and the foreground, left by nohup.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/host.rs"]
mod host;
#[path = "support/pty.rs"]
mod pty;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use host::Host;
use pty::OnTerminal;
use tiny_guest::Guest;
use vmm::{LIMIT, Launch, count};

/// A shell with job control, where `$vmm` is the command and `$machine` starts a guest that [`Guest::Obedient`] is.
fn shell(host: &Host) -> OnTerminal {
    let mut launch = Launch::new(Guest::Obedient);
    let program = launch.command().get_program().to_os_string();
    let mut machine = program.clone();
    for word in launch.command().get_args() {
        machine.push(" ");
        machine.push(word);
    }
    let mut command = Command::new("bash");
    command
        .args(["--norc", "--noprofile", "-i"])
        .env("PS1", "prompt> ")
        .env("vmm", program)
        .env("machine", machine);
    command.env("TERM", "dumb").env_remove("HISTFILE").env("XDG_RUNTIME_DIR", host.0.path());
    command.current_dir(launch.path());
    let terminal = OnTerminal::command(&mut command, launch.folder);
    terminal.expect("prompt> ", 1);
    terminal
}

/// The processes that a shell has started and not waited for.
fn children(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// The job runs, the terminal is the shell's, and input goes to the shell.
fn runs_in_the_background(shell: &mut OnTerminal, times: usize) {
    shell.type_in(b"echo st'ill' $(jobs -r | wc -l) running\n");
    shell.expect("still 1 running", times);
    assert!(!shell.mode().is_raw(), "{}", shell.heard.text());
}

/// `exit` with this status, which the shell ends with.
fn leave(mut shell: OnTerminal) -> String {
    shell.type_in(b"exit 7\n");
    let left = shell.end();
    assert_eq!(left.status.code(), Some(7), "{left:?}");
    left.text
}

#[test]
fn a_console_that_was_stopped_goes_on_in_the_background_and_gets_the_keys_in_the_foreground() {
    let host = Host::new();
    let mut machine = host.start(Guest::Obedient, "vm0", "ready\n");
    for signal in [libc::SIGSTOP, libc::SIGTSTP] {
        let said = count(&machine.stdout.bytes(), "ready\n");
        let mut shell = shell(&host);
        shell.type_in(b"$vmm console vm0\n");
        shell.until_raw();
        shell.expect("Ctrl-] d detaches", 1);
        vmm::send_signal(children(shell.pid())[0], signal);
        shell.expect("Stopped", 1);
        shell.expect("prompt> ", 2);
        assert!(!shell.mode().is_raw());
        shell.type_in(b"bg\n");
        shell.expect("prompt> ", 3);
        runs_in_the_background(&mut shell, 1);
        // Also in the background: the machine prints it after the process that opened the console.
        let shown = count(&shell.heard.bytes(), "ready\r\n");
        machine.type_in(b"r");
        shell.expect("ready\r\n", shown + 1);
        shell.type_in(b"fg\n");
        shell.until_raw();
        shell.type_in(b"r");
        machine.expect("ready\n", said + 2);
        shell.type_in(b"\x1dd");
        shell.expect("detached from vm0; it runs on", 1);
        shell.expect("prompt> ", 5);
        assert!(!shell.mode().is_raw());
        leave(shell);
    }
    machine.type_in(b"q");
    assert!(machine.end().status.success());
}

#[test]
fn a_console_from_the_background_gets_the_keys_with_the_foreground() {
    let host = Host::new();
    let mut machine = host.start(Guest::Obedient, "vm0", "ready\n");
    let mut shell = shell(&host);
    shell.type_in(b"stty -tostop; $vmm console vm0 &\n");
    shell.expect("no keys in the background", 1);
    runs_in_the_background(&mut shell, 1);
    shell.type_in(b"fg\n");
    shell.until_raw();
    shell.expect("the keys of this terminal reach the guest now; Ctrl-] d detaches", 1);
    shell.type_in(b"r");
    machine.expect("ready\n", 2);
    shell.type_in(b"\x1dd");
    shell.expect("detached from vm0; it runs on", 1);
    shell.expect("prompt> ", 4);
    assert!(!shell.mode().is_raw());
    leave(shell);
    machine.type_in(b"q");
    machine.end().is("ready\nready\ndone\n", 0);
}

#[test]
fn a_console_in_the_background_ends_with_its_machine() {
    let host = Host::new();
    let mut machine = host.start(Guest::Obedient, "vm0", "ready\n");
    let mut shell = shell(&host);
    shell.type_in(b"stty -tostop; $vmm console vm0 &\n");
    shell.expect("no keys in the background", 1);
    machine.type_in(b"q");
    machine.end().is("ready\ndone\n", 0);
    shell.type_in(b"wait %1; echo stat'us'=$?\n");
    shell.expect("status=0", 1);
    shell.expect("minivmm: vm0 has ended: the guest powered off", 1);
    assert!(!shell.mode().is_raw());
    leave(shell);
}

#[test]
fn a_machine_under_nohup_outlives_its_terminal() {
    let host = Host::new();
    let mut shell = shell(&host);
    shell.type_in(b"nohup $machine --name vm0 >out 2>errors &\n");
    let begun = Instant::now();
    while !host.run(&["info", "vm0"]).status.success() {
        assert!(begun.elapsed() < LIMIT, "no machine: {}", shell.heard.text());
        std::thread::yield_now();
    }
    let pid = children(shell.pid())[0];
    // As a terminal window that is closed does to its session; interactive shells pass it on to their jobs.
    shell.signal(libc::SIGHUP);
    shell.end();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap();
    assert_eq!(u64::from_str_radix(pending.trim(), 16).unwrap(), 0, "no signal waits to be taken");
    assert_eq!(host.json(&["info", "vm0", "--json"])["state"], "running");
    host.does(&["kill", "vm0"]);
}

#[test]
fn run_in_the_background_is_not_stopped_and_leaves_the_terminal_alone() {
    let host = Host::new();
    let mut shell = shell(&host);
    let folder = Arc::new(tempfile::tempdir().unwrap());
    // A guest that never asks for its command, so that the job exists as long as the test checks it.
    let kernel = Guest::Halt.write(folder.path()).unwrap();
    let line = format!("stty -tostop; $vmm run -i --kernel {} --mem 64 true &\n", kernel.display());
    shell.type_in(line.as_bytes());
    shell.expect("prompt> ", 2);
    runs_in_the_background(&mut shell, 1);
    shell.type_in(b"kill %1; wait %1; echo stat'us'=$?\n");
    shell.expect("status=143", 1);
    let said = leave(shell);
    assert_eq!(count(said.as_bytes(), "Stopped"), 0, "{said}");
}
