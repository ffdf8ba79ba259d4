//! The ways a machine ends, each with its status, what was said, and its output complete.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/vmm.rs"]
mod vmm;

use std::process::Stdio;

use tiny_guest::Guest;
use vmm::{Launch, Vmm, run};

const PANIC: &str = "Kernel panic - not syncing: test\n";

fn obedient(words: &[&str]) -> Vmm {
    let vmm = Launch::new(Guest::Obedient).args(words).stdin(Stdio::piped()).spawn();
    vmm.expect("ready\n", 1);
    vmm
}

#[test]
fn power_off_is_status_0_and_says_nothing() {
    let mut vmm = obedient(&[]);
    vmm.type_in(b"q");
    let ended = vmm.end();
    ended.is("ready\ndone\n", 0);
    let last = ended.stderr.lines().last().unwrap();
    assert!(last.starts_with("~> "), "nothing follows the banner: {ended:?}");
}

#[test]
fn banner_is_on_stderr() {
    run(Guest::Ports, &["--cpus", "2"]).said(&[
        "~> Kernel      : ",
        "~> RAM         : 4 MiB",
        "~> Processors  : 2",
    ]);
}

#[test]
fn guest_reboots_three_times_in_the_same_process() {
    let mut vmm = obedient(&[]);
    for boots in 2..=4 {
        vmm.type_in(b"r");
        vmm.expect("ready\n", boots);
    }
    vmm.type_in(b"q");
    vmm.end().is("ready\nready\nready\nready\ndone\n", 0);
}

#[test]
fn reboot_is_status_3_where_the_machine_shall_leave_then() {
    run(Guest::Reset, &["--on-reboot", "exit"]).is("resetting\n", 3).said(&["the guest rebooted\n"]);
}

#[test]
fn pvpanic_is_status_4() {
    run(Guest::Pvpanic, &[]).is("panicking\n", 4).said(&["minivmm: the guest's kernel panicked\n"]);
}

#[test]
fn panic_line_and_a_reset_are_status_4_whatever_a_reboot_does() {
    run(Guest::KernelPanic, &[]).is(PANIC, 4).said(&["the guest's kernel panicked\n"]);
    run(Guest::KernelPanic, &["--on-reboot", "exit"]).is(PANIC, 4);
}

#[test]
fn panic_after_a_reboot_is_status_4() {
    let mut vmm = obedient(&[]);
    vmm.type_in(b"r");
    vmm.expect("ready\n", 2);
    vmm.type_in(b"k");
    vmm.end().is(&format!("ready\nready\n{PANIC}"), 4);
}

#[test]
fn triple_fault_is_status_5_with_the_place() {
    run(Guest::TripleFault, &[])
        .is("faulting\n", 5)
        .said(&["minivmm: the guest crashed: vCPU 0 stopped at rip 0x10", ": triple fault: "]);
}

#[test]
fn halted_guest_ends_by_two_signals_with_the_signals_status() {
    for (signal, status) in
        [(libc::SIGTERM, 143), (libc::SIGINT, 130), (libc::SIGHUP, 129), (libc::SIGQUIT, 131)]
    {
        let vmm = Launch::new(Guest::Halt).spawn();
        vmm.expect("halting\n", 1);
        vmm.signal(signal);
        assert!(vmm.stderr.wait(|said| vmm::count(said, "power button pressed") == 1), "{vmm:?}");
        vmm.signal(signal);
        let ended = vmm.end();
        ended.is("halting\n", status).said(&[&format!("minivmm: ended by signal {signal}\n")]);
    }
}

#[test]
fn spinning_guest_ends_by_two_signals() {
    let vmm = Launch::new(Guest::Busy).args(&["--cpus", "2"]).spawn();
    vmm.expect("spinning\n", 1);
    vmm.signal(libc::SIGTERM);
    assert!(vmm.stderr.wait(|said| vmm::count(said, "power button pressed") == 1), "{vmm:?}");
    vmm.signal(libc::SIGTERM);
    vmm.end().is("spinning\n", 143);
}

#[test]
fn power_button_reaches_a_halted_guest_by_sigterm() {
    let vmm = Launch::new(Guest::PowerButton).spawn();
    vmm.expect("ready\n", 1);
    vmm.signal(libc::SIGTERM);
    vmm.end().is("ready\nbutton\ndone\n", 0).said(&["power button pressed"]);
}
