//! From a [`Spec`] to a running machine, and the machine's life.
//!
//! A machine is a row of boots. Each boot is made from nothing, a new VM with fresh memory, so that a reboot leaves
//! nothing of the guest before behind; only the console's two queues go on. One supervisor thread owns the present
//! boot; everybody else sends it messages.

mod backends;
mod board;
mod boot_once;
mod cmdline;
mod console;
mod devices;
mod error;
mod events;
mod exit;
pub(crate) mod files;
mod gate;
mod loader;
mod pci;
mod stats;
mod supervisor;
pub(crate) mod supplies;
#[cfg(test)]
mod tests;
mod vcpus;

use std::fmt;
use std::io::Write;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub(crate) use console::PANIC_LINE;
pub use console::{ConsoleInput, ExpectError, GuestConsole, Unheard};
pub use error::{PauseError, StartError};
pub use events::{Events, MachineEvent, MachineState};
pub use exit::{Crash, Exit};
pub use stats::{DeviceStats, MemoryStats, Stats, VcpuStats};

use crate::spec::Spec;
use virtio::balloon::BalloonControl;
use virtio::worker::STACK;

use backends::Backends;
use boot_once::{Blueprint, Boot};
use console::{Console, OutputThread, Scrollback};
use events::Publisher;
use pci::MakeFunctions;
use supervisor::{Command, Event, supervise};
use supplies::Supplies;

/// Which boot of a machine, so that the last words of one are not taken for the next one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct BootNumber(u64);

impl BootNumber {
    fn next(self) -> Self {
        BootNumber(self.0.wrapping_add(1))
    }
}

/// Where the supervisor leaves the machine's end.
#[derive(Debug, Default)]
struct Outcome {
    exit: Mutex<Option<Arc<Exit>>>,
    ended: Condvar,
}

impl Outcome {
    fn has_ended(&self) -> bool {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Publishes how the machine ended, also when the supervisor panics: whoever waits must not wait for ever.
struct Ending<'a> {
    outcome: &'a Outcome,
    publisher: Publisher,
    exit: Exit,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let exit = std::mem::replace(&mut self.exit, Exit::Killed);
        *self.outcome.exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(exit));
        self.outcome.ended.notify_all();
        self.publisher.publish(MachineEvent::Exited);
    }
}

/// A running machine. Dropping it ends it and frees everything it had.
#[derive(Debug)]
pub struct Machine {
    controls: Controls,
    input: ConsoleInput,
    console: GuestConsole,
    supervisor: Option<JoinHandle<()>>,
}

/// Asks things of a running machine; it may be cloned and sent to other threads. All of it is harmless once the machine
/// has ended.
#[derive(Debug, Clone)]
pub struct Controls {
    events: Sender<Event>,
    balloon: BalloonControl,
    publisher: Publisher,
    outcome: Arc<Outcome>,
}

impl Controls {
    /// The memory balloon: how much of its memory the guest shall leave to the host, and how much it does.
    pub fn balloon(&self) -> &BalloonControl {
        &self.balloon
    }

    /// Presses the power button. What comes of it is up to the guest: it needs a driver for the button (Linux: the
    /// module `button`) and something that acts on it (systemd-logind, acpid).
    pub fn power_button(&self) {
        self.send(Command::PowerButton);
    }

    /// Resets the machine: the guest is stopped where it is and boots again.
    pub fn reset(&self) {
        self.send(Command::Reset);
    }

    /// Ends the machine where it is.
    pub fn kill(&self) {
        self.send(Command::Kill);
    }

    /// Brings the machine to rest: its processors stop between two instructions, then its devices, whose work that is
    /// under way is brought to an end. The guest sees its clock jump when it goes on, to the right time. Pausing a
    /// machine that rests already does nothing.
    ///
    /// # Errors
    /// [`PauseError`]. After [`PauseError::TimedOut`] the machine still comes to rest, unless it is resumed before.
    pub fn pause(&self, limit: Duration) -> Result<(), PauseError> {
        self.ask(Command::Pause).recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => PauseError::TimedOut(limit),
            RecvTimeoutError::Disconnected if self.outcome.has_ended() => PauseError::Ended,
            RecvTimeoutError::Disconnected => PauseError::Interrupted,
        })
    }

    /// Lets a machine go on that was paused, or is about to be. It does when this returns.
    pub fn resume(&self) {
        // No answer: it has ended.
        let _ = self.ask(Command::Resume).recv();
    }

    /// What the machine has done since its guest booted last; `None` once it has ended.
    pub fn stats(&self) -> Option<Stats> {
        self.ask(Command::Stats).recv().ok()
    }

    /// Whether the machine runs, rests or has ended.
    pub fn state(&self) -> MachineState {
        if self.outcome.has_ended() { MachineState::Ended } else { self.publisher.state() }
    }

    /// As [`Controls::stats`], but `None` too if the machine takes longer to answer, because it is about to rest or to boot.
    pub(crate) fn stats_within(&self, limit: Duration) -> Option<Stats> {
        self.ask(Command::Stats).recv_timeout(limit).ok()
    }

    /// As [`Controls::resume`], but returns after `limit` if the machine does not go on by then; it will.
    pub(crate) fn resume_within(&self, limit: Duration) {
        let _ = self.ask(Command::Resume).recv_timeout(limit);
    }

    /// What happens to the machine from now on.
    pub fn events(&self) -> Events {
        self.publisher.listen(self.outcome.has_ended())
    }

    /// Where the answer comes, or the end.
    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Receiver<T> {
        let (answer, answered) = mpsc::channel();
        self.send(command(answer));
        answered
    }

    fn send(&self, command: Command) {
        // Nobody listens any more once the machine has ended, which is what makes it harmless.
        let _ = self.events.send(Event::Command(command));
    }
}

/// A machine about to be started.
pub struct MachineBuilder {
    spec: Spec,
    output: Option<Box<dyn Write + Send>>,
}

impl fmt::Debug for MachineBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachineBuilder").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl MachineBuilder {
    /// What the guest says on its first console also goes here, from a thread of the machine's own. A slow writer holds
    /// up the guest; one that fails is not asked again.
    #[must_use]
    pub fn output(mut self, output: impl Write + Send + 'static) -> Self {
        self.output = Some(Box::new(output));
        self
    }

    /// Makes the machine and lets it run.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong with the spec, its files or the host. Nothing is left behind then.
    pub fn start(self) -> Result<Machine, StartError> {
        Machine::start_with(&self.spec, self.output, devices::functions, Supplies::default())
    }
}

impl Machine {
    /// Makes the machine that `spec` describes and starts it. The guest's first console writes to `output`, from a
    /// thread of the machine's own.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong with the spec, its files or the host. Nothing is left behind then.
    pub fn start(spec: &Spec, output: Box<dyn Write + Send>) -> Result<Machine, StartError> {
        Self::builder(spec).output(output).start()
    }

    /// As [`Machine::start`], with what a spec cannot name.
    pub(crate) fn start_supplied(
        spec: &Spec,
        output: Box<dyn Write + Send>,
        supplies: Supplies,
    ) -> Result<Machine, StartError> {
        Self::start_with(spec, Some(output), devices::functions, supplies)
    }

    /// A machine about to be started, its console for whoever reads [`Machine::console`].
    pub fn builder(spec: &Spec) -> MachineBuilder {
        MachineBuilder { spec: spec.clone(), output: None }
    }

    /// As [`Machine::start`], with these functions on the PCI bus.
    fn start_with(
        spec: &Spec,
        output: Option<Box<dyn Write + Send>>,
        functions: MakeFunctions,
        supplies: Supplies,
    ) -> Result<Machine, StartError> {
        let (sender, receiver) = mpsc::channel();
        let console = Console::new(spec.console());
        let input = ConsoleInput::new(console.clone());
        let (queue, said) = (console.output.clone(), Arc::<Scrollback>::default());
        let spec = spec.clone().settled()?;
        let backends = Backends::open(&spec)?;
        let balloon = backends.balloon.clone();
        let publisher = Publisher::default();
        let blueprint =
            Blueprint { spec, console, backends, supplies, publisher: publisher.clone(), functions };
        let boot = Boot::start(&blueprint, BootNumber::default(), &sender)?;
        let mut output = OutputThread::spawn(queue, said.clone(), output).map_err(StartError::Thread)?;
        let outcome = Arc::new(Outcome::default());
        let guest_console = GuestConsole::new(said, input.clone());
        let (events, result) = (sender.clone(), outcome.clone());
        let supervisor = thread::Builder::new()
            .stack_size(STACK)
            .name("machine".into())
            .spawn(move || {
                let mut ending = Ending {
                    outcome: &result,
                    publisher: blueprint.publisher.clone(),
                    exit: Exit::Failed(StartError::Internal("the supervisor")),
                };
                ending.exit = supervise(&blueprint, boot, &receiver, &events);
                // Who waits for the end may start the next machine on the same disks and sockets.
                drop(blueprint);
                output.finish();
            })
            .map_err(StartError::Thread)?;
        Ok(Machine {
            controls: Controls { events: sender, balloon, publisher, outcome },
            input,
            console: guest_console,
            supervisor: Some(supervisor),
        })
    }

    /// Waits until the machine has ended, all its console output is out and everything it had is freed.
    pub fn wait(&self) -> Arc<Exit> {
        let outcome = &self.controls.outcome;
        let mut exit = outcome.exit.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(exit) = exit.as_ref() {
                return exit.clone();
            }
            exit = outcome.ended.wait(exit).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// As [`Machine::wait`], for at most `limit`; `None` if the machine runs on.
    pub fn wait_for(&self, limit: Duration) -> Option<Arc<Exit>> {
        let deadline = Instant::now().checked_add(limit)?;
        let outcome = &self.controls.outcome;
        let mut exit = outcome.exit.lock().unwrap_or_else(PoisonError::into_inner);
        while exit.is_none() {
            let left = deadline.checked_duration_since(Instant::now())?;
            (exit, _) = outcome.ended.wait_timeout(exit, left).unwrap_or_else(PoisonError::into_inner);
        }
        exit.clone()
    }

    /// A handle for asking things of the machine from other threads.
    pub fn controls(&self) -> Controls {
        self.controls.clone()
    }

    /// A reader of the guest's first console, from the last 64 KiB on, and its keyboard.
    pub fn console(&self) -> GuestConsole {
        self.console.clone()
    }

    /// Where to type into the guest's first console.
    pub fn console_input(&self) -> ConsoleInput {
        self.input.clone()
    }

    /// See [`Controls::power_button`].
    pub fn power_button(&self) {
        self.controls.power_button();
    }

    /// See [`Controls::reset`].
    pub fn reset(&self) {
        self.controls.reset();
    }

    /// See [`Controls::pause`].
    ///
    /// # Errors
    /// [`PauseError`].
    pub fn pause(&self, limit: Duration) -> Result<(), PauseError> {
        self.controls.pause(limit)
    }

    /// See [`Controls::resume`].
    pub fn resume(&self) {
        self.controls.resume();
    }

    /// See [`Controls::stats`].
    pub fn stats(&self) -> Option<Stats> {
        self.controls.stats()
    }

    /// See [`Controls::state`].
    pub fn state(&self) -> MachineState {
        self.controls.state()
    }

    /// See [`Controls::events`].
    pub fn events(&self) -> Events {
        self.controls.events()
    }

    /// See [`Controls::balloon`].
    pub fn balloon(&self) -> &BalloonControl {
        self.controls.balloon()
    }

    /// See [`Controls::kill`].
    pub fn kill(&self) {
        self.controls.kill();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        self.input.close();
        if let Some(supervisor) = self.supervisor.take() {
            // It cannot have panicked without having been seen on stderr; the machine's parts are gone either way.
            let _ = supervisor.join();
        }
    }
}
