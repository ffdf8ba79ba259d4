//! The console on a terminal: raw while the machine runs, given back on every way out, with its menu.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/pty.rs"]
mod pty;
#[path = "support/vmm.rs"]
mod vmm;

use std::process::Command;

use pty::OnTerminal;
use tiny_guest::Guest;
use vmm::{Launch, count};

/// A guest on a terminal in raw mode that has printed `word`.
fn guest(guest: Guest, words: &[&str], word: &str) -> OnTerminal {
    let terminal = OnTerminal::start(Launch::new(guest).args(words));
    terminal.until_raw();
    terminal.expect(word, 1);
    terminal
}

fn obedient() -> OnTerminal {
    guest(Guest::Obedient, &[], "ready\n")
}

#[test]
fn terminal_is_raw_while_the_machine_runs_and_given_back_after_power_off() {
    let mut terminal = obedient();
    terminal.type_in(b"q");
    terminal.end().is(0).said("done\n").said("~> Console     : this terminal; Ctrl-]");
}

#[test]
fn terminal_is_given_back_after_a_crash() {
    // It waits for raw mode: the triple fault itself is faster than a check.
    let terminal = OnTerminal::start(Launch::new(Guest::TripleFault));
    terminal.end().is(5).said("the guest crashed: ");
}

#[test]
fn terminal_is_given_back_after_a_panic_and_a_reboot_to_leave() {
    let mut terminal = obedient();
    terminal.type_in(b"k");
    terminal.end().is(4).said("minivmm: the guest's kernel panicked");
    let mut terminal = guest(Guest::Obedient, &["--on-reboot", "exit"], "ready\n");
    terminal.type_in(b"r");
    terminal.end().is(3).said("minivmm: the guest rebooted");
}

#[test]
fn terminal_is_given_back_after_signals() {
    let terminal = obedient();
    terminal.signal(libc::SIGTERM);
    terminal.expect("power button pressed", 1);
    assert!(terminal.mode().is_raw(), "the guest may go on for long");
    std::thread::sleep(vmm::APART);
    terminal.signal(libc::SIGTERM);
    terminal.end().is(143).said("minivmm: ended by signal 15");
}

#[test]
fn a_terminal_that_is_not_the_sessions_own_is_used_all_the_same() {
    // As a program has it that opens one for its child and no more.
    let mut launch = Launch::new(Guest::Obedient);
    let plain = launch.command();
    let mut command = Command::new("setsid");
    command.arg("--wait").arg(plain.get_program()).args(plain.get_args());
    let mut terminal = OnTerminal::beside(command, launch.folder.clone());
    terminal.until_raw();
    terminal.expect("ready\n", 1);
    terminal.type_in(b"q");
    terminal.end().is(0).said("done\n");
}

#[test]
fn terminal_is_given_back_after_the_power_button_by_sigterm() {
    let terminal = guest(Guest::PowerButton, &[], "ready\n");
    terminal.signal(libc::SIGTERM);
    terminal.end().is(0).guest_said("button\n").guest_said("done\n");
}

#[test]
fn terminal_is_given_back_when_a_reboot_fails() {
    let launch = Launch::new(Guest::Obedient);
    let kernel = launch.path().join("Obedient.elf");
    let mut terminal = OnTerminal::start(launch);
    terminal.until_raw();
    terminal.expect("ready\n", 1);
    // In place: one that is removed or replaced boots again.
    std::fs::File::create(&kernel).unwrap();
    terminal.type_in(b"r");
    terminal.end().is(1).said(&format!("cannot boot {}", kernel.display()));
}

#[test]
fn menu_quits_at_once() {
    let mut terminal = guest(Guest::Halt, &[], "halting\n");
    terminal.type_in(b"\x1dq");
    terminal.end().is(6).said("minivmm: quit");
}

#[test]
fn menu_presses_the_power_button() {
    let mut terminal = guest(Guest::PowerButton, &[], "ready\n");
    terminal.type_in(b"\x1dp");
    let ended = terminal.end();
    ended.is(0).said("minivmm: power button pressed").said("done\n");
    // The message may come in the middle of the guest's output.
    let guest = ended.text.replace("\r\nminivmm: power button pressed\r\n", "");
    assert!(guest.contains("button\n"), "{ended:?}");
}

#[test]
fn menu_resets() {
    let mut terminal = guest(Guest::Halt, &[], "halting\n");
    terminal.type_in(b"\x1dr");
    terminal.expect("halting\n", 2);
    terminal.type_in(b"\x1dr");
    terminal.expect("halting\n", 3);
    terminal.type_in(b"\x1dq");
    terminal.end().is(6).said("minivmm: reset");
}

#[test]
fn menu_says_its_keys_in_lines_that_stand_right_on_a_raw_terminal() {
    let mut terminal = obedient();
    terminal.type_in(b"\x1d?");
    terminal.expect("send Ctrl-] to the guest\r\n", 1);
    for line in ["p  press the power button\r\n", "r  reset the machine\r\n", "q  quit at once\r\n"] {
        terminal.expect(line, 1);
    }
    terminal.type_in(b"\x1dz");
    terminal.expect("no such key in the menu", 1);
    terminal.type_in(b"q");
    terminal.end().is(0);
}

#[test]
fn escape_key_twice_is_one_for_the_guest() {
    let mut terminal = guest(Guest::EchoPolled, &[], "ready\n");
    terminal.type_in(b"a\x1d\x1db\x04");
    terminal.end().is(0).said("a\x1db\nechoed=00000003\ndone\n");
}

#[test]
fn keys_that_a_terminal_takes_for_itself_reach_the_guest() {
    // Ctrl-C, Ctrl-Z, Ctrl-\, Ctrl-S, Ctrl-Q, carriage return, erase.
    let keys = "\x03\x1a\x1c\x13\x11\r\x7f";
    let mut terminal = guest(Guest::EchoPolled, &[], "ready\n");
    terminal.type_in(keys.as_bytes());
    terminal.type_in(b"\x04");
    terminal.end().is(0).said(&format!("ready\n{keys}\nechoed=00000007\ndone\n"));
}

fn paste(echo: Guest) {
    let text: Vec<u8> = (0u8..95).cycle().map(|n| b' ' + n).take(10_000).collect();
    let mut terminal = guest(echo, &[], "ready\n");
    terminal.type_in(&[&text[..], b"\x04"].concat());
    let text = String::from_utf8(text).unwrap();
    terminal.end().is(0).said(&format!("ready\n{text}\nechoed=00002710")).said("done\n");
}

#[test]
fn pasting_ten_kilobytes_loses_no_byte() {
    paste(Guest::EchoPolled);
    paste(Guest::EchoInterrupt);
}

#[test]
fn terminal_is_raw_again_after_the_process_was_stopped() {
    let mut terminal = obedient();
    terminal.signal(libc::SIGSTOP);
    terminal.make_sane();
    assert!(!terminal.mode().is_raw());
    terminal.signal(libc::SIGCONT);
    terminal.until_raw();
    terminal.type_in(b"q");
    terminal.end().is(0);
}

#[test]
fn menu_works_behind_ten_mebibytes_that_the_guest_does_not_read() {
    let mut terminal = guest(Guest::Halt, &[], "halting\n");
    terminal.type_in(&vec![b'x'; 10 << 20]);
    terminal.type_in(b"\x1d?");
    terminal.expect("q  quit at once", 1);
    // More than the buffer: that is reported, and the menu still works.
    terminal.type_in(&vec![b'x'; 8 << 20]);
    terminal.expect("input is dropped until it reads", 1);
    terminal.type_in(b"\x1dq");
    terminal.end().is(6).said("minivmm: quit");
}

#[test]
fn job_that_was_stopped_goes_on_in_the_background_and_gets_the_terminal_in_the_foreground() {
    for signal in [libc::SIGSTOP, libc::SIGTSTP] {
        let mut shell = shell(Guest::Obedient);
        shell.type_in(b"$vmm\n");
        shell.until_raw();
        shell.expect("ready\n", 1);
        let vmm = children(shell.pid())[0];
        vmm::send_signal(vmm, signal);
        shell.expect("Stopped", 1);
        shell.expect("prompt> ", 2);
        assert!(!shell.mode().is_raw());
        shell.type_in(b"bg\n");
        shell.expect("prompt> ", 3);
        // It runs: without a terminal it still receives signals, and input goes to the shell.
        shell.type_in(b"echo st'ill' $(jobs -r | wc -l) running\n");
        shell.expect("still 1 running", 1);
        assert!(!shell.mode().is_raw());
        shell.type_in(b"fg\n");
        shell.until_raw();
        shell.type_in(b"q");
        shell.expect("done\n", 1);
        shell.expect("prompt> ", 5);
        assert!(!shell.mode().is_raw());
        shell.type_in(b"exit $?\n");
        assert_eq!(shell.end().status.code(), Some(0));
    }
}

#[test]
fn job_from_the_background_gets_the_keys_with_the_foreground() {
    let mut shell = shell(Guest::Obedient);
    shell.type_in(b"stty -tostop; $vmm &\n");
    shell.expect("shown here; no keys in the background", 1);
    shell.expect("ready\r\n", 1);
    shell.type_in(b"fg\n");
    shell.until_raw();
    shell.expect("this terminal is the guest's console now", 1);
    shell.type_in(b"\x1d?");
    shell.expect("q  quit at once", 1);
    shell.type_in(b"q");
    shell.expect("done\n", 1);
    shell.expect("prompt> ", 3);
    shell.type_in(b"exit 7\n");
    assert_eq!(shell.end().status.code(), Some(7));
}

#[test]
fn under_timeout_in_a_script_the_machine_runs_and_no_keys_are_promised() {
    let mut launch = Launch::new(Guest::PowerButton);
    let plain = launch.command();
    let mut command = Command::new("timeout");
    // `timeout` makes a process group, which is in the background if a script starts it.
    command.args(["60"]).arg(plain.get_program()).args(plain.get_args());
    let mut script = Command::new("sh");
    script.args(["-c", "\"$@\"; exit $?", "sh"]).arg(command.get_program()).args(command.get_args());
    let terminal = OnTerminal::command(&mut script, launch.folder);
    // It holds the terminal open.
    drop(script);
    terminal.expect("shown here; no keys in the background", 1);
    terminal.expect("ready\r\n", 1);
    assert!(!terminal.mode().is_raw());
    let timeout = children(terminal.pid())[0];
    vmm::send_signal(children(timeout)[0], libc::SIGTERM);
    terminal.end().is(0).said("button");
}

/// A shell with job control on a terminal, where `$vmm` runs the guest.
fn shell(guest: Guest) -> OnTerminal {
    let mut launch = Launch::new(guest);
    let mut line = launch.command().get_program().to_os_string();
    for word in launch.command().get_args() {
        line.push(" ");
        line.push(word);
    }
    let mut command = Command::new("bash");
    command.args(["--norc", "--noprofile", "-i"]).env("PS1", "prompt> ").env("vmm", line);
    command.env("TERM", "dumb").env_remove("HISTFILE");
    let terminal = OnTerminal::command(&mut command, launch.folder);
    terminal.expect("prompt> ", 1);
    terminal
}

fn children(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn shell_gets_its_terminal_when_the_job_is_stopped_and_the_job_when_it_goes_on() {
    let mut shell = shell(Guest::Obedient);
    shell.type_in(b"$vmm\n");
    shell.until_raw();
    shell.expect("ready\n", 1);
    vmm::send_signal(children(shell.pid())[0], libc::SIGTSTP);
    shell.expect("Stopped", 1);
    // After its prompt the shell has its terminal back; earlier input may be the job's.
    shell.expect("prompt> ", 2);
    assert!(!shell.mode().is_raw());
    shell.type_in(b"fg\n");
    shell.until_raw();
    shell.type_in(b"q");
    shell.expect("done\n", 1);
    shell.expect("prompt> ", 3);
    assert!(!shell.mode().is_raw());
    shell.type_in(b"exit $?\n");
    assert_eq!(shell.end().status.code(), Some(0));
}

#[test]
fn job_in_the_background_is_not_stopped_by_its_terminal() {
    let mut shell = shell(Guest::PowerButton);
    // A terminal with `tostop` stops a background writer, as its user asked; this test does not.
    shell.type_in(b"stty -tostop; $vmm &\n");
    shell.expect("ready\r\n", 1);
    // Typed into the shell, not into the guest, which is running and not stopped.
    shell.type_in(b"echo st'ill' $(jobs -r | wc -l) running\n");
    shell.expect("still 1 running", 1);
    assert!(!shell.mode().is_raw(), "the terminal is the shell's: {:?}", shell.heard.text());
    shell.type_in(b"kill %1; wait %1; echo status=$?\n");
    shell.expect("status=0", 1);
    shell.type_in(b"exit 7\n");
    let left = shell.end();
    assert_eq!(left.status.code(), Some(7));
    assert_eq!(count(left.text.as_bytes(), "Stopped"), 0, "{left:?}");
}
