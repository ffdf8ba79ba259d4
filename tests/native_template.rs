//! Machines that go on from one that was frozen: each is whole, none sees what another one does, and nothing is shared that two
//! machines cannot have.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/embedded.rs"]
mod embedded;
#[path = "support/load.rs"]
#[expect(dead_code, reason = "no disk is written to")]
mod load;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::SystemTime;

use embedded::{LIMIT, Output, spec, start};
use load::{BLOCK, BLOCKS, number};
use minivmm::spec::Spec;
use minivmm::{Exit, FreezeError, Machine, MachineState, SavedMachine, StartError, Template};
use tempfile::TempDir;
use tiny_guest::Guest;

/// Types a line into a guest that echoes, and waits for it.
#[track_caller]
fn ask(machine: &Machine, output: &Output, line: &str) {
    machine.console_input().write_all(line.as_bytes()).unwrap();
    assert!(output.wait_for(&[line]), "no {line:?}: {:?} {:?}", output.text(), machine.exit_status());
}

fn spawn(template: &Template) -> (Machine, Output) {
    let output = Output::default();
    let own = output.clone();
    (template.spawn_with(|builder| builder.output(own)).unwrap(), output)
}

/// The VM generation ID that its guest sees, where the ACPI tables say that it is.
fn generation(machine: &Machine) -> [u8; 16] {
    machine.pause(LIMIT).unwrap();
    let (memory, mut id) = (tempfile::tempfile().unwrap(), [0; 16]);
    machine.save(&memory).unwrap();
    machine.resume();
    memory.read_exact_at(&mut id, 0xf_f000).unwrap();
    id
}

#[test]
fn clones_go_on_from_one_place_each_for_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::EchoInterrupt);
    assert!(output.wait_for(&["ready\n"]));
    ask(&machine, &output, "before\n");
    let template = Template::freeze(&machine, LIMIT).unwrap();
    // The original goes on, and what it does is no clone's affair.
    assert_eq!(machine.state(), MachineState::Running);
    ask(&machine, &output, "after\n");
    // Nothing is opened by its path.
    fs::remove_file(template.spec().kernel.as_ref().unwrap()).unwrap();
    let clones: Vec<_> = (0..8).map(|_| spawn(&template)).collect();
    for (number, (clone, said)) in clones.iter().enumerate() {
        ask(clone, said, &format!("clone {number}\n"));
    }
    let mut generations: BTreeSet<_> = clones.iter().map(|(clone, _)| generation(clone)).collect();
    generations.insert(generation(&machine));
    assert_eq!(generations.len(), 9);
    for (number, (clone, said)) in clones.into_iter().enumerate() {
        clone.console_input().write_all(b"\x04").unwrap();
        assert!(matches!(clone.wait_for(LIMIT).as_deref(), Some(Exit::PoweredOff)));
        // It has counted what the original read before it was frozen, and what it read itself.
        let bytes = "before\n".len() + format!("clone {number}\n").len();
        let text = said.text();
        assert!(text.starts_with(&format!("clone {number}\n\nechoed={bytes:08x} interrupts=")), "{text}");
    }
    // One that is reset boots what the original booted.
    let (clone, said) = spawn(&template);
    clone.reset();
    assert!(said.wait_for(&["ready\n"]), "{}", said.text());
}

#[test]
fn what_was_written_to_a_snapshot_is_each_clones_own() {
    let folder = tempfile::tempdir().unwrap();
    let image = image(&folder);
    let before = fs::metadata(&image).unwrap().modified().unwrap();
    let spec = load_spec(&folder, &format!("{image},snapshot"));
    let output = Output::default();
    let machine = Machine::start(&spec, Box::new(output.clone())).unwrap();
    assert!(output.wait_for(&["at=1024\n"]));
    let template = Template::freeze(&machine, LIMIT).unwrap();
    // A template of a clone is as good as one of the original.
    let (second, said) = spawn(&template);
    assert!(said.wait_for(&["\n"]), "{}", said.text());
    let again = Template::freeze(&second, LIMIT).unwrap();
    drop(second);
    let machines = [(machine, output), spawn(&template), spawn(&template), spawn(&again)];
    for (machine, output) in machines {
        let begun = output.text().len();
        let goes_on = || output.text()[begun..].contains("at=");
        while !goes_on() {
            assert!(machine.exit_status().is_none(), "{}", output.text());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // The guest reads what it has written, before the freeze and behind it, and says if it is another thing.
        machine.console_input().write_all(b"!").unwrap();
        while !output.text().contains(" kicks=") || !output.text().ends_with('\n') {
            assert!(machine.exit_status().is_none(), "{}", output.text());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let text = output.text();
        let line = text.lines().last().unwrap();
        assert_eq!(number(line, "writes="), number(line, "reads="), "{line}");
        machine.console_input().write_all(b"!").unwrap();
        assert!(matches!(machine.wait_for(LIMIT).as_deref(), Some(Exit::PoweredOff)));
    }
    assert_eq!(fs::metadata(&image).unwrap().modified().unwrap(), before);
    // An image that was written to is another disk.
    let file = File::options().write(true).open(&image).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    match template.spawn() {
        Err(StartError::DiskChanged { path }) => assert_eq!(path.to_str(), Some(&*image)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_two_machines_cannot_have_is_refused_and_the_machine_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let [net, port] = ["net", "port"].map(|name| folder.path().join(name).display().to_string());
    let disk = load_spec(&folder, &image(&folder));
    let wire = spec(&folder, Guest::EchoInterrupt).with_net(format!("socket={net},listen").parse().unwrap());
    let socket =
        spec(&folder, Guest::EchoInterrupt).with_port(format!("name=agent,socket={port}").parse().unwrap());
    for (spec, why) in
        [(disk, "the disk vda"), (wire, "its interface net0 is on"), (socket, "its port agent")]
    {
        let output = Output::default();
        let machine = Machine::start(&spec, Box::new(output.clone())).unwrap();
        assert!(output.wait_for(&["ready\n"]));
        let error = Template::freeze(&machine, LIMIT).unwrap_err();
        let said = error.to_string();
        assert!(said.contains(why) && said.contains("; start it with"), "{said}");
        assert_eq!(machine.clone_running(LIMIT).unwrap_err().to_string(), said);
        assert_eq!(machine.state(), MachineState::Running);
        machine.kill();
        machine.wait();
        let error = Template::freeze(&machine, LIMIT).unwrap_err();
        assert!(matches!(error, FreezeError::Pause(minivmm::PauseError::Ended)), "{error}");
    }
}

#[test]
fn a_clone_of_a_running_machine_has_its_own_network_and_no_forward() {
    let folder = tempfile::tempdir().unwrap();
    let net = "user,forward=0:22,id=lan".parse().unwrap();
    let spec = spec(&folder, Guest::EchoInterrupt).with_net(net).with_name("vm0".parse().unwrap());
    let output = Output::default();
    let machine = Machine::start(&spec, Box::new(output.clone())).unwrap();
    assert!(output.wait_for(&["ready\n"]));
    let clone = machine.clone_running(LIMIT).unwrap();
    assert_eq!((machine.forwards().len(), clone.forwards().len()), (1, 0));
    let added = clone.add_forward(Some("lan"), "0:22".parse().unwrap()).unwrap();
    assert_ne!(added.address, machine.forwards()[0].address);
    ask(&machine, &output, "original\n");
    let mut console = clone.console();
    console.write_all(b"clone\n").unwrap();
    console.expect("clone\n", LIMIT).unwrap();
    // A paused machine stays paused.
    machine.pause(LIMIT).unwrap();
    let second = machine.clone_running(LIMIT).unwrap();
    assert_eq!((machine.state(), second.state()), (MachineState::Paused, MachineState::Running));
}

#[test]
fn a_folder_is_a_template_too() {
    let folder = tempfile::tempdir().unwrap();
    let (machine, output) = start(&folder, Guest::EchoInterrupt);
    assert!(output.wait_for(&["ready\n"]));
    let saved = folder.path().join("saved");
    machine.save_and_end(&saved, LIMIT).unwrap();
    machine.wait();
    let template = Template::from_saved(SavedMachine::open(&saved).unwrap()).unwrap();
    fs::remove_dir_all(&saved).unwrap();
    for clone in ["one\n", "two\n"] {
        let (machine, output) = spawn(&template);
        ask(&machine, &output, clone);
    }
}

/// An image for the load guest.
fn image(folder: &TempDir) -> String {
    let image = folder.path().join("image.raw");
    File::create(&image).unwrap().set_len(BLOCKS * BLOCK as u64).unwrap();
    image.to_str().unwrap().to_owned()
}

/// A machine with the load guest on this disk.
fn load_spec(folder: &TempDir, disk: &str) -> Spec {
    let kernel = folder.path().join("load");
    fs::write(&kernel, tiny_guest::LOAD).unwrap();
    Spec::new(kernel).with_mem("16".parse().unwrap()).with_append("seed=7").with_disk(disk.parse().unwrap())
}
