//! Machines with a device that cannot be quiesced, as a disk whose file system is away: everything else is answered.

use std::ops::Range;
use std::sync::{Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

use devices::bus::Effect;
use devices::component::{Component, State, StateError};
use devices::pci::bar::BarIndex;
use devices::pci::config::ConfigSpace;
use devices::pci::function::PciFunction;
use devices::pci::host_bridge::HostBridge;
use tiny_guest::Guest;

use super::{LIMIT, Output, at};
use crate::machine::pci::Placed;
use crate::machine::run_resources::RunResources;
use crate::machine::supervisor::{Command, Event};
use crate::machine::{Exit, Machine, MachineState, MakeFunctions, PauseError};
use crate::spec::Spec;

/// A machine that is killed ends by then, whatever the host does: two seconds, on a busy host a little later.
const SOON: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(50);

/// Shut, it holds whoever passes.
#[derive(Debug)]
struct Barrier {
    shut: Mutex<bool>,
    opened: Condvar,
}

impl Barrier {
    const fn new() -> Self {
        Barrier { shut: Mutex::new(true), opened: Condvar::new() }
    }

    fn pass(&self) {
        let _passed = self.opened.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap();
    }

    fn open(&self) {
        *self.shut.lock().unwrap() = false;
        self.opened.notify_all();
    }
}

/// Opens a barrier at the end of a test, also of one that fails.
struct Opens(&'static Barrier);

impl Drop for Opens {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// A function that hangs in being brought to rest, or in being dropped.
#[derive(Debug)]
struct Hanging {
    bridge: HostBridge,
    pause: Option<&'static Barrier>,
    drop: Option<&'static Barrier>,
}

impl PciFunction for Hanging {
    fn config(&self) -> &ConfigSpace {
        self.bridge.config()
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        self.bridge.config_mut()
    }
    fn config_written(&mut self, _: Range<u16>) {}
    fn bar_read(&mut self, _: BarIndex, _: u64, _: &mut [u8]) -> Option<Effect> {
        None
    }
    fn bar_write(&mut self, _: BarIndex, _: u64, _: &[u8]) -> Option<Effect> {
        None
    }
    fn bar_changed(&mut self, _: BarIndex, _: Option<u64>) {}
}

impl Component for Hanging {
    fn quiesce(&mut self) {
        self.pause.iter().for_each(|barrier| barrier.pass());
    }
    fn save(&self) -> Result<State, StateError> {
        self.bridge.save()
    }
    fn load(&mut self, state: &State) -> Result<(), StateError> {
        self.bridge.load(state)
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.drop.iter().for_each(|barrier| barrier.pass());
    }
}

/// A machine whose guest spins, beside `functions`.
fn start(functions: MakeFunctions) -> (Machine, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let spec = Spec::new(Guest::Busy.write(folder.path()).unwrap()).with_mem("4".parse().unwrap());
    let output = Some(Box::new(Output::default()) as _);
    (Machine::start_with(&spec, output, functions, RunResources::default()).unwrap(), folder)
}

#[track_caller]
fn is_killed_soon(machine: &Machine) {
    let begin = Instant::now();
    machine.kill();
    let exit = machine.wait_for(LIMIT);
    assert!(matches!(exit.as_deref(), Some(Exit::Killed)), "{exit:?}");
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
}

#[test]
fn machine_whose_device_cannot_be_quiesced_answers_and_is_killed() {
    static BARRIER: Barrier = Barrier::new();
    let (machine, _folder) = start(|_, _, _| {
        let function = Hanging { bridge: HostBridge::new(), pause: Some(&BARRIER), drop: None };
        Ok(vec![Placed::new("hanging", at(0, 0), function)])
    });
    let _opens = Opens(&BARRIER);
    assert_eq!(machine.pause(SHORT), Err(PauseError::TimedOut(SHORT)));
    let begin = Instant::now();
    assert_eq!(machine.stats().unwrap().vcpus.len(), 1);
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    is_killed_soon(&machine);
}

#[test]
fn machine_that_is_resumed_before_its_devices_rest_goes_on_when_they_do() {
    static BARRIER: Barrier = Barrier::new();
    let (machine, _folder) = start(|_, _, _| {
        let function = Hanging { bridge: HostBridge::new(), pause: Some(&BARRIER), drop: None };
        Ok(vec![Placed::new("hanging", at(0, 0), function)])
    });
    let opens = Opens(&BARRIER);
    assert_eq!(machine.pause(SHORT), Err(PauseError::TimedOut(SHORT)));
    let (answer, paused) = mpsc::channel();
    machine.controls.events.send(Event::Command(Command::Pause(answer))).unwrap();
    machine.controls.resume_within(Duration::ZERO);
    assert_eq!(paused.recv_timeout(SOON).unwrap(), Err(PauseError::Interrupted));
    drop(opens);
    machine.resume();
    assert_eq!(machine.state(), MachineState::Running);
    machine.pause(LIMIT).unwrap();
    assert_eq!(machine.state(), MachineState::Paused);
    is_killed_soon(&machine);
}

#[test]
fn machine_whose_boot_cannot_be_given_back_for_a_reboot_is_killed() {
    static BARRIER: Barrier = Barrier::new();
    let (machine, _folder) = start(|_, _, _| {
        let function = Hanging { bridge: HostBridge::new(), pause: None, drop: Some(&BARRIER) };
        Ok(vec![Placed::new("hanging", at(0, 0), function)])
    });
    let _opens = Opens(&BARRIER);
    let events = machine.events();
    machine.reset();
    assert_eq!(events.next_within(LIMIT), Some(crate::machine::MachineEvent::Reset));
    is_killed_soon(&machine);
}
