//! Tests of the library's promises to an embedder.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/embedded.rs"]
mod embedded;

use std::io::{ErrorKind, Seek, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use embedded::{LIMIT, Output, spec, start};
use minivmm::{BalloonError, Exit, Machine, MachineState};
use tiny_guest::Guest;

#[test]
fn output_goes_where_the_program_wants_it_and_is_complete_when_the_machine_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::Ports);
    assert!(matches!(&*machine.wait(), Exit::PoweredOff));
    assert_eq!(output.text(), "in8=ff in16=ffff in32=ffffffff\nimm32=ffffffff\nscratch=5aa5\ndone\n");
    // A repeated call returns the same answer.
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
    // A reader that has read everything gets all output of the guest.
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

/// Bytes that may be typed ahead.
const ROOM: usize = 1 << 20;

#[test]
fn who_types_into_a_machine_that_ends_is_not_left_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::Halt);
    assert!(output.wait_for(&["halting\n"]));
    let mut input = machine.console_input();
    // The first byte goes to the port, the others fill the buffer; this guest reads nothing.
    let (typed, seen) = std::sync::mpsc::channel();
    let typist = std::thread::spawn(move || {
        loop {
            if let Err(error) = input.write_all(&[b'x'; 64 << 10]) {
                return error;
            }
            typed.send(()).unwrap();
        }
    });
    for _ in 0..ROOM / (64 << 10) {
        seen.recv_timeout(LIMIT).unwrap();
    }
    machine.kill();
    let error = typist.join().unwrap();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::BrokenPipe, "the machine has ended"));
    assert!(matches!(*machine.wait(), Exit::Killed));
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
fn kernel_that_was_emptied_before_a_reboot_ends_the_machine_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::Obedient);
    assert!(output.wait_for(&["ready\n"]));
    let kernel = folder.path().join("Obedient.elf");
    // In place: one that is removed or replaced boots again.
    std::fs::File::create(&kernel).unwrap();
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
    let spec = spec(&folder, Guest::Smp).with_disk(minivmm::spec::DiskSpec::new("/nowhere/vm0.raw"));
    let error = Machine::start(&spec, Box::new(Output::default())).unwrap_err();
    assert!(error.to_string().contains("/nowhere/vm0.raw"), "{error}");
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

/// State of the whole program, and of this thread.
fn surroundings() -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let status = read("/proc/thread-self/status");
    let names = ["SigCgt:", "SigIgn:", "SigBlk:", "Umask:", "NoNewPrivs:", "Seccomp:", "Cpus_allowed:"];
    let lines = status.lines().filter(|line| names.iter().any(|name| line.starts_with(name)));
    let mut all: Vec<_> = lines.map(str::to_owned).collect();
    assert_eq!(all.len(), names.len());
    all.push(read("/proc/self/limits"));
    all.extend(["comm", "oom_score_adj"].map(|name| read(&format!("/proc/thread-self/{name}"))));
    all.push(std::env::current_dir().unwrap().display().to_string());
    all
}

#[test]
fn signals_limits_and_folder_of_the_program_stay_its_own() {
    let before = surroundings();
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::Busy);
    assert!(output.wait_for(&["spinning\n"]));
    machine.pause(LIMIT).unwrap();
    assert_eq!(surroundings(), before);
    machine.resume();
    machine.reset();
    assert!(output.wait_for(&["spinning\nspinning\n"]));
    assert_eq!(surroundings(), before);
    drop(machine);
    assert_eq!(surroundings(), before);
}

/// Machines that end in every way there is, the last with a word of warning for a program that has a logger.
fn all_ends() {
    let folder = tempfile::tempdir().unwrap();
    for guest in [Guest::Ports, Guest::TripleFault, Guest::KernelPanic, Guest::Pvpanic] {
        let (machine, _) = start(&folder, guest);
        assert!(machine.wait_for(LIMIT).is_some(), "{guest:?}");
    }
    drop(start(&folder, Guest::Busy));
    Machine::start(&minivmm::spec::Spec::new("/nowhere/vmlinuz"), Box::new(Output::default())).unwrap_err();
    let machine = Machine::start(&spec(&folder, Guest::Ports), Box::new(Broken)).unwrap();
    assert!(machine.wait_for(LIMIT).is_some());
}

#[test]
fn standard_input_and_output_are_the_programs_and_so_is_its_end() {
    const CHILD: &str = "MINIVMM_TEST_CHILD";
    if let Some(what) = std::env::var_os(CHILD) {
        return if what == "machines" {
            all_ends()
        };
    }
    // This test in a process of its own, once with machines and once without.
    let [with, without] = ["machines", "nothing"].map(|what| {
        let mut stdin = tempfile::tempfile().unwrap();
        stdin.write_all(b"for the program").unwrap();
        stdin.rewind().unwrap();
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "standard_input_and_output_are_the_programs_and_so_is_its_end", "--nocapture"])
            .env(CHILD, what)
            .stdin(stdin.try_clone().unwrap())
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        // Its place is the child's as well.
        assert_eq!(stdin.stream_position().unwrap(), 0, "nobody read it");
        let said = String::from_utf8(out.stdout).unwrap();
        (said.split("finished in").next().unwrap().to_owned(), String::from_utf8(out.stderr).unwrap())
    });
    assert!(with.0.contains("1 passed"), "{with:?}");
    assert_eq!(with, without);
}

/// A reader that has broken.
struct Broken;

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(ErrorKind::Other.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn output_that_fails_or_panics_does_not_take_the_machine_along() {
    struct Panics;
    impl Write for Panics {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            panic!("as this test wants it")
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    // The second has more output than its reader's queue holds.
    let outputs =
        [(Guest::Ports, Box::new(Broken) as Box<dyn Write + Send>), (Guest::Flood, Box::new(Panics))];
    for (guest, output) in outputs {
        let machine = Machine::start(&spec(&folder, guest), output).unwrap();
        assert!(matches!(machine.wait_for(LIMIT).as_deref(), Some(Exit::PoweredOff)));
    }
}

#[test]
fn how_it_ended_can_be_looked_at_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::Obedient);
    let controls = machine.controls();
    assert!(output.wait_for(&["ready\n"]));
    assert!(machine.exit_status().is_none() && controls.exit_status().is_none());
    assert_eq!(machine.state(), MachineState::Running);
    machine.console_input().write_all(b"q").unwrap();
    // The longest limit there is is none.
    assert!(matches!(machine.wait_for(Duration::MAX).as_deref(), Some(Exit::PoweredOff)));
    assert!(matches!(machine.exit_status().as_deref(), Some(Exit::PoweredOff)));
    drop(machine);
    assert_eq!(controls.exit_status().unwrap().to_string(), "the guest switched itself off");
}

#[test]
fn a_balloon_has_a_target_that_leaves_the_guest_something() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::Obedient);
    assert!(output.wait_for(&["ready\n"]));
    machine.set_balloon(3).unwrap();
    // This guest has no driver: it was asked, and nothing came of it; a reboot changes neither.
    for _ in 0..2 {
        assert_eq!((machine.balloon().target(), machine.stats().unwrap().memory.balloon), (3, 0));
        machine.reset();
        assert!(output.wait_for(&["ready\nready\n"]));
    }
    let error = machine.set_balloon(4).unwrap_err();
    assert!(matches!(error, BalloonError::NothingLeft { mib: 4, .. }));
    assert_eq!(error.to_string(), "a balloon of 4 MiB leaves a guest of 4 MiB no memory; ask for less");
    assert_eq!(machine.balloon().target(), 3);
    let controls = machine.controls();
    drop(machine);
    assert_eq!(controls.set_balloon(1), Err(BalloonError::Ended));
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
    // A late reader gets the earlier output.
    machine.console().expect("ready\nhello\n", LIMIT).unwrap();
    console.write_all(b"\x04").unwrap();
    machine.wait();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut console, &mut rest).unwrap();
    assert!(rest.contains("echoed="), "{rest}");
}
