//! A machine at rest does nothing, and goes on as if nothing had been.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on shall say so by a panic")]

#[path = "support/embedded.rs"]
mod embedded;

use std::io::Write;
use std::time::Duration;

use embedded::{LIMIT, start};
use minivmm::{Exit, Machine, MachineEvent, PauseError};
use tiny_guest::Guest;

/// Long enough for a guest that runs to say something.
const A_WHILE: Duration = Duration::from_millis(200);

fn exits(machine: &Machine) -> u64 {
    let stats = machine.stats().unwrap();
    stats.vcpus.iter().map(|vcpu| vcpu.port_in + vcpu.port_out + vcpu.mmio_read + vcpu.mmio_write).sum()
}

#[test]
fn a_paused_guest_does_nothing_and_hears_afterwards_what_was_said_to_it() {
    let folder = tempfile::tempdir().unwrap();
    for guest in [Guest::EchoPolled, Guest::EchoInterrupt] {
        let (machine, output) = start(&folder, guest);
        assert!(output.wait_for(&["ready\n"]));
        machine.pause(LIMIT).unwrap();
        machine.pause(LIMIT).unwrap();
        machine.console_input().write_all(b"hello\n").unwrap();
        let before = exits(&machine);
        std::thread::sleep(A_WHILE);
        assert_eq!(exits(&machine), before, "{guest:?}");
        assert_eq!(output.text(), "ready\n");
        machine.resume();
        assert!(output.wait_for(&["hello\n"]), "{guest:?}: {}", output.text());
    }
}

#[test]
fn ten_thousand_pauses_lose_no_byte_of_the_console() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::EchoInterrupt);
    assert!(output.wait_for(&["ready\n"]));
    let text: String = (0..20_000).map(|number| format!("{number:05}\n")).collect();
    let (mut input, typed) = (machine.console_input(), text.clone());
    let typist = std::thread::spawn(move || {
        typed.as_bytes().chunks(12).for_each(|chunk| input.write_all(chunk).unwrap());
        input.write_all(b"\x04").unwrap();
    });
    for _ in 0..10_000 {
        machine.pause(LIMIT).unwrap();
        machine.resume();
    }
    typist.join().unwrap();
    assert!(matches!(machine.wait_for(LIMIT).as_deref(), Some(Exit::PoweredOff)), "{}", output.text().len());
    assert!(output.text().starts_with(&format!("ready\n{text}")), "{} bytes", output.text().len());
}

#[test]
fn a_paused_machine_can_be_ended_reset_and_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::Busy);
    machine.pause(LIMIT).unwrap();
    machine.reset();
    machine.pause(LIMIT).unwrap();
    machine.resume();
    machine.pause(LIMIT).unwrap();
    machine.kill();
    assert!(matches!(machine.wait_for(LIMIT).as_deref(), Some(Exit::Killed)), "{}", output.text());
    assert_eq!(machine.pause(LIMIT), Err(PauseError::Ended));
    machine.resume();
    assert!(machine.stats().is_none());

    let (machine, _) = start(&folder, Guest::Busy);
    machine.pause(LIMIT).unwrap();
    drop(machine);
}

#[test]
fn a_machine_whose_output_nobody_takes_comes_to_rest_all_the_same() {
    struct Stuck(std::sync::mpsc::Receiver<()>);
    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let (release, held) = std::sync::mpsc::channel();
    let spec = embedded::spec(&folder, Guest::Flood);
    let machine = Machine::start(&spec, Box::new(Stuck(held))).unwrap();
    // Until it waits for room, when it does nothing any more.
    let mut before = 0;
    while before == 0 || exits(&machine) != before {
        before = exits(&machine);
        std::thread::sleep(A_WHILE);
    }
    machine.pause(LIMIT).unwrap();
    drop(release);
    std::thread::sleep(A_WHILE);
    // Its reader takes all by now, but it rests.
    assert_eq!(exits(&machine), before);
    machine.resume();
    assert!(matches!(machine.wait_for(LIMIT).as_deref(), Some(Exit::PoweredOff)));
}

#[test]
fn events_tell_what_happened_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::Obedient);
    assert!(output.wait_for(&["ready\n"]));
    let events = machine.events();
    machine.pause(LIMIT).unwrap();
    machine.resume();
    machine.reset();
    assert!(output.wait_for(&["ready\nready\n"]));
    machine.console_input().write_all(b"k").unwrap();
    machine.wait();
    let expected = [
        MachineEvent::Paused,
        MachineEvent::Resumed,
        MachineEvent::Reset,
        MachineEvent::Booted,
        MachineEvent::Panicked,
        MachineEvent::Exited,
    ];
    assert_eq!(events.collect::<Vec<_>>(), expected);
}
