//! What the library promises to a program that embeds it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/embedded.rs"]
mod embedded;

use std::io::Write;
use std::time::{Duration, Instant};

use embedded::{LIMIT, Output, spec, start};
use minivmm::{Exit, Machine};
use tiny_guest::Guest;

#[test]
fn output_goes_where_the_program_wants_it_and_is_complete_when_the_machine_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::Ports);
    assert!(matches!(&*machine.wait(), Exit::PoweredOff));
    assert_eq!(output.text(), "in8=ff in16=ffff in32=ffffffff\nimm32=ffffffff\nscratch=5aa5\ndone\n");
    // Whoever asks again gets the same answer.
    assert!(matches!(&*machine.wait(), Exit::PoweredOff));
    assert!(matches!(machine.wait_for(Duration::ZERO).as_deref(), Some(Exit::PoweredOff)));
}

#[test]
fn input_is_typed_from_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::EchoInterrupt);
    let mut input = machine.console_input();
    let text = vec![b'x'; 10_000];
    input.write_all(&text).unwrap();
    input.write_all(b"\x04").unwrap();
    assert!(matches!(machine.wait_for(LIMIT).as_deref(), Some(Exit::PoweredOff)), "{}", output.text());
    assert!(output.text().contains("\nechoed=00002710 "));
}

#[test]
fn waiting_has_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::Halt);
    let begin = Instant::now();
    assert!(machine.wait_for(Duration::from_millis(100)).is_none());
    assert!(begin.elapsed() >= Duration::from_millis(100));
    machine.kill();
    assert!(matches!(machine.wait_for(LIMIT).as_deref(), Some(Exit::Killed)));
    // A reader that took all that was said gets what the guest had said before.
    assert!("halting\n".starts_with(&output.text()));
}

#[test]
fn commands_to_a_machine_that_ended_are_harmless() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, _) = start(&folder, Guest::Ports);
    let (controls, mut input) = (machine.controls(), machine.console_input());
    machine.wait();
    for _ in 0..3 {
        controls.power_button();
        controls.reset();
        controls.kill();
    }
    let _ = input.write(b"x");
    drop(machine);
    controls.reset();
    assert!(input.write_all(&vec![b'x'; 2 << 20]).is_err(), "nobody will ever make room");
}

#[test]
fn dropping_a_machine_ends_it_whatever_its_guest_does() {
    let folder = tempfile::tempdir().unwrap();
    for guest in [Guest::Halt, Guest::Busy, Guest::EchoPolled, Guest::Smp] {
        let (machine, output) = start(&folder, guest);
        if guest != Guest::Smp {
            assert!(output.wait_for(&["ing\n", "ready\n"]));
        }
        let begin = Instant::now();
        drop(machine);
        assert!(begin.elapsed() < LIMIT);
    }
}

#[test]
fn power_button_and_reset_reach_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::PowerButton);
    assert!(output.wait_for(&["ready\n"]));
    machine.reset();
    assert!(output.wait_for(&["ready\nready\n"]));
    machine.power_button();
    assert!(matches!(machine.wait_for(LIMIT).as_deref(), Some(Exit::PoweredOff)));
    assert_eq!(output.text(), "ready\nready\nbutton\ndone\n");
}

#[test]
fn fifty_machines_live_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let machines: Vec<_> = (0..50).map(|_| start(&folder, Guest::Obedient)).collect();
    for (machine, output) in &machines {
        assert!(output.wait_for(&["ready\n"]));
        assert!(machine.wait_for(Duration::ZERO).is_none());
    }
    for (at, (machine, _)) in machines.iter().enumerate() {
        machine.console_input().write_all(if at % 2 == 0 { b"q" } else { b"k" }).unwrap();
    }
    for (at, (machine, output)) in machines.iter().enumerate() {
        let exit = machine.wait_for(LIMIT);
        let right = if at % 2 == 0 {
            matches!(exit.as_deref(), Some(Exit::PoweredOff))
        } else {
            matches!(exit.as_deref(), Some(Exit::Panicked))
        };
        assert!(right, "machine {at}: {exit:?}, {}", output.text());
    }
}

#[test]
fn kernel_that_vanished_before_a_reboot_ends_the_machine_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::Obedient);
    assert!(output.wait_for(&["ready\n"]));
    let kernel = folder.path().join("Obedient.elf");
    std::fs::remove_file(&kernel).unwrap();
    machine.reset();
    match machine.wait_for(LIMIT).as_deref() {
        Some(Exit::Failed(error)) => {
            assert!(error.to_string().contains(kernel.to_str().unwrap()), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn start_that_fails_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let error = Machine::start(&minivmm::spec::Spec::new("/nowhere/vmlinuz"), Box::new(Output::default()))
        .unwrap_err();
    assert!(error.to_string().contains("/nowhere/vmlinuz"), "{error}");
    let many =
        spec(&folder, Guest::Smp).with_cpus("100000".parse().unwrap()).with_mem("64M".parse().unwrap());
    let error = Machine::start(&many, Box::new(Output::default())).unwrap_err();
    assert!(error.to_string().contains("takes at most"), "{error}");
}

#[test]
fn crash_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, _) = start(&folder, Guest::TripleFault);
    match machine.wait_for(LIMIT).as_deref() {
        Some(Exit::Crashed(crash)) => {
            assert_eq!(crash.vcpu, 0);
            assert!(crash.rip.is_some_and(|rip| (tiny_guest::LOAD_ADDRESS..).contains(&rip)), "{crash:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn signals_of_the_program_stay_its_own() {
    let signals = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let lines = status
            .lines()
            .filter(|line| ["SigCgt:", "SigIgn:", "SigBlk:"].iter().any(|name| line.starts_with(name)));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let before = signals();
    assert_eq!(before.len(), 3);
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::Busy);
    assert!(output.wait_for(&["spinning\n"]));
    assert_eq!(signals(), before);
    drop(machine);
    assert_eq!(signals(), before);
}

#[test]
fn output_that_fails_or_panics_does_not_take_the_machine_along() {
    let folder = tempfile::tempdir().unwrap();
    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::Other.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let machine = Machine::start(&spec(&folder, Guest::Ports), Box::new(Broken)).unwrap();
    assert!(matches!(machine.wait_for(LIMIT).as_deref(), Some(Exit::PoweredOff)));
}

#[test]
fn the_console_is_read_typed_into_and_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::builder(&spec(&folder, Guest::EchoInterrupt)).start().unwrap();
    let mut console = machine.console();
    console.expect("ready\n", LIMIT).unwrap();
    console.write_all(b"hello\n").unwrap();
    assert_eq!(console.expect("hello\n", LIMIT).unwrap(), "hello\n");
    let error = console.expect("goodbye", Duration::from_millis(10)).unwrap_err();
    assert!(error.to_string().ends_with("it said last:\nready\nhello\n"), "{error}");
    // One that comes late hears what was said before.
    machine.console().expect("ready\nhello\n", LIMIT).unwrap();
    console.write_all(b"\x04").unwrap();
    machine.wait();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut console, &mut rest).unwrap();
    assert!(rest.contains("echoed="), "{rest}");
}
