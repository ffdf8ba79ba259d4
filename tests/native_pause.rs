//! A paused machine does nothing, and continues unchanged.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on shall say so by a panic")]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/embedded.rs"]
mod embedded;

use std::io::Write;
use std::time::Duration;

use dose::dose;
use embedded::{LIMIT, Neighbour, start};
use minivmm::{Exit, Machine, MachineEvent, MachineState, PauseError};
use tiny_guest::Guest;

fn exits(machine: &Machine) -> u64 {
    let stats = machine.stats().unwrap();
    stats.vcpus.iter().map(|vcpu| vcpu.port_in + vcpu.port_out + vcpu.mmio_read + vcpu.mmio_write).sum()
}

#[test]
fn a_paused_guest_does_nothing_and_hears_afterwards_what_was_said_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut neighbour = Neighbour::start(&folder);
    for guest in [Guest::EchoPolled, Guest::EchoInterrupt] {
        let (machine, output) = start(&folder, guest);
        assert!(output.wait_for(&["ready\n"]));
        machine.pause(LIMIT).unwrap();
        machine.pause(LIMIT).unwrap();
        machine.console_input().write_all(b"hello\n").unwrap();
        let before = exits(&machine);
        neighbour.answers();
        assert_eq!(exits(&machine), before, "{guest:?}");
        assert_eq!(output.text(), "ready\n");
        machine.resume();
        assert!(output.wait_for(&["hello\n"]), "{guest:?}: {}", output.text());
    }
}

#[test]
fn pauses_lose_no_byte_of_the_console() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::EchoInterrupt);
    assert!(output.wait_for(&["ready\n"]));
    let text: String = (0..dose(20_000)).map(|number| format!("{number:05}\n")).collect();
    let mut input = machine.console_input();
    // A little for each pause, so that every one of them finds the guest at work.
    for chunk in text.as_bytes().chunks(12) {
        input.write_all(chunk).unwrap();
        machine.pause(LIMIT).unwrap();
        machine.resume();
    }
    input.write_all(b"\x04").unwrap();
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
fn a_pause_amid_the_end_says_that_the_machine_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..50 {
        let (machine, _) = start(&folder, Guest::Busy);
        let controls = machine.controls();
        let pause = std::thread::spawn(move || controls.pause(LIMIT));
        std::thread::sleep(Duration::from_micros(5 * round));
        machine.kill();
        let paused = pause.join().unwrap();
        assert!(matches!(paused, Ok(()) | Err(PauseError::Ended)), "{round}: {paused:?}");
    }
}

#[test]
fn many_resets_at_once_are_few_boots_and_hold_up_no_end() {
    const RESETS: u64 = 100_000;
    let folder = tempfile::tempdir().unwrap();
    let (machine, _) = start(&folder, Guest::Busy);
    let events = machine.events();
    (0..RESETS).for_each(|_| machine.reset());
    // It is taken behind all of them.
    machine.pause(LIMIT).unwrap();
    (0..RESETS).for_each(|_| machine.reset());
    machine.kill();
    assert!(machine.wait_for(LIMIT).is_some());
    let boots = events.map(|event| match event {
        MachineEvent::Booted => 1,
        MachineEvent::Missed(missed) => missed,
        _ => 0,
    });
    // In proportion: while the host keeps this thread waiting, there is time for some.
    let boots: u64 = boots.sum();
    assert!(boots < RESETS / 10, "{boots} boots");
}

#[test]
fn a_reset_behind_a_pause_is_one_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, _) = start(&folder, Guest::Busy);
    let events = machine.events();
    machine.reset();
    let _ = machine.pause(Duration::ZERO);
    machine.reset();
    let mut events = std::iter::from_fn(|| events.next_within(LIMIT));
    assert_eq!(events.by_ref().filter(|event| *event == MachineEvent::Booted).take(2).count(), 2);
    // Not paused again: a pause would come before the next reset.
    assert_eq!(machine.state(), MachineState::Running);
    machine.reset();
    assert_eq!(events.next(), Some(MachineEvent::Reset));
    assert_eq!(events.next(), Some(MachineEvent::Booted));
    assert_eq!(machine.state(), MachineState::Running);
}

#[test]
fn a_machine_that_was_reset_at_rest_does_not_rest() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, _) = start(&folder, Guest::Busy);
    machine.pause(LIMIT).unwrap();
    let mut events = machine.events();
    machine.reset();
    assert_eq!(events.next(), Some(MachineEvent::Reset));
    assert_eq!(machine.state(), MachineState::Running);
    assert_eq!(events.next(), Some(MachineEvent::Booted));
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
    let mut neighbour = Neighbour::start(&folder);
    let spec = embedded::spec(&folder, Guest::Flood);
    let machine = Machine::start(&spec, Box::new(Stuck(held))).unwrap();
    // Until it waits for room, when it does nothing any more.
    let mut before = 0;
    while before == 0 || exits(&machine) != before {
        before = exits(&machine);
        neighbour.answers();
    }
    machine.pause(LIMIT).unwrap();
    let before = exits(&machine);
    drop(release);
    neighbour.answers();
    // Its reader reads everything by now, but it is paused.
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
