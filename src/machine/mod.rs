//! From a [`Spec`] to a running machine, and the machine's life.
//!
//! A machine is a row of boots. Each boot is made from nothing, a new VM with fresh memory, so that a reboot leaves
//! nothing of the guest before behind; only the console's two queues go on. One supervisor thread owns the present
//! boot; everybody else sends it messages.

mod asker;
pub(crate) mod blocking;
mod board;
mod boot_once;
mod cmdline;
pub(crate) mod commands;
mod components;
mod console;
mod controls;
pub(crate) mod deadline;
mod devices;
mod disks;
mod ends;
mod error;
mod events;
mod exec;
mod exit;
pub(crate) mod files;
mod full_disks;
mod gate;
mod generation;
mod hold;
#[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "migrations are the command's"))]
pub(crate) mod incoming;
mod loader;
mod net_handles;
mod nets;
mod parts;
mod pci;
mod port_end;
pub(crate) mod precopy;
mod prefetch;
mod resources;
mod revert;
pub(crate) mod run_resources;
mod saved;
mod smbios;
mod stats;
mod supervisor;
mod template;
#[cfg(test)]
mod tests;
mod vcpu_handle;
mod vcpus;

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub(crate) use asker::Asker;
pub use console::{ConsoleInput, ExpectError, ExpectFailure, GuestConsole};
pub use controls::Controls;
pub use disks::DiskState;
pub(crate) use disks::disk_id;
pub use error::{BalloonError, DiskChangeError, PauseError, ResizeError, StartError};
pub use events::{Events, MachineEvent, MachineState};
pub use exec::{CommandOutput, ExecError, GuestCommand};
pub use exit::{Crash, Exit, GaveUp};
#[cfg(test)]
pub(crate) use net_handles::NetHandles;
pub use net_handles::{BoundForward, NetError};
pub use precopy::{CopyLimits, CopyProgress, CopyReport, Otherwise};
pub use revert::RevertError;
pub use saved::{GuestClock, RestoreError, SaveError, SaveOptions, SavedState, Unsaveable};
pub use stats::{DeviceStats, MemoryStats, Stats, VcpuStats};
pub use template::{FreezeError, Template};

use crate::kvm::KvmDevice;
use crate::spec::{DiskGrowth, DiskLimitsChange, PortForward, Spec};
use ::devices::thread::{self, Role};
use virtio::balloon::BalloonControl;

use blocking::BlockingThread;
use boot_once::{Beginning, Boot, Origin};
use console::{OutputThread, Scrollback};
use deadline::{Progress, within};
use events::Publisher;
use files::{OpenFiles, Prepared, PreparedStart};
use pci::MakeFunctions;
use precopy::CopyStatus;
use resources::Resources;
use run_resources::{BeforeRun, RunResources};
use saved::Restore;
use supervisor::{Supervisor, UrgentRequests};

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
struct ExitCell {
    exit: Mutex<Option<Arc<Exit>>>,
    ended: Condvar,
    /// To be woken at the end.
    wakers: Mutex<Vec<Waker>>,
}

impl ExitCell {
    fn exit(&self) -> Option<Arc<Exit>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_ended(&self) -> bool {
        self.exit().is_some()
    }

    /// Sets the end, and wakes whoever waits for it.
    fn set(&self, exit: Exit) {
        *self.exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(exit));
        self.ended.notify_all();
        let wakers = std::mem::take(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Has `waker` woken at the end, or now if it has ended.
    fn wake_at_end(&self, waker: &Waker) {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner).push(waker.clone());
        if self.has_ended() {
            waker.wake_by_ref();
        }
    }

    /// Waits for the end, until `deadline` or as long as it takes.
    fn wait(&self, deadline: Option<Instant>) -> Option<Arc<Exit>> {
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        while exit.is_none() {
            exit = match deadline {
                None => self.ended.wait(exit).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now())?;
                    self.ended.wait_timeout(exit, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        exit.clone()
    }
}

/// Publishes how the machine ended, also when the supervisor panics: whoever waits, or types, must not wait for ever.
struct ExitPublisher<'a> {
    outcome: &'a ExitCell,
    publisher: Publisher,
    input: ConsoleInput,
    exit: Exit,
}

impl Drop for ExitPublisher<'_> {
    fn drop(&mut self) {
        let exit = std::mem::replace(&mut self.exit, Exit::Killed);
        self.input.close();
        self.outcome.set(exit);
        self.publisher.publish(MachineEvent::Exited);
    }
}

/// A running machine. Dropping it kills it and waits for its end, as [`Controls::kill`] says: for two seconds at most for
/// what the host has in flight on a disk, and for five at most for a writer that does not take the console's last output.
#[derive(Debug)]
#[must_use = "a machine that nobody holds is ended at once"]
pub struct Machine {
    controls: Controls,
    input: ConsoleInput,
    console: GuestConsole,
    supervisor: Option<JoinHandle<()>>,
}

/// A machine about to be started.
pub struct MachineBuilder {
    spec: Spec,
    output: Option<Box<dyn Write + Send>>,
    run_resources: RunResources,
}

impl fmt::Debug for MachineBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachineBuilder").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl MachineBuilder {
    /// What the guest says on its first console also goes here, from a thread of the machine's own. A slow writer holds
    /// up the guest; one that fails or panics is not asked again. Once the machine has ended the writer has five seconds to
    /// take what is left. One that is still stuck then keeps that thread, and loses the rest.
    #[must_use]
    pub fn output(mut self, output: impl Write + Send + 'static) -> Self {
        self.output = Some(Box::new(output));
        self
    }

    /// Boots from these files, which were prepared for the same spec.
    #[must_use]
    pub(crate) fn prepared(mut self, prepared: Prepared) -> Self {
        self.run_resources.prepared = Some(prepared);
        self
    }

    /// Tells `progress` what the start is doing, and lets it be interrupted there.
    #[must_use]
    pub(crate) fn progress(mut self, progress: Progress) -> Self {
        self.run_resources.progress = progress;
        self
    }

    /// Goes on where a machine of the same spec was saved, instead of booting: `state` is what
    /// [`Machine::save`] gave, `memory` the file that it wrote. Neither is trusted. What the spec names outside the machine is the
    /// caller's to provide as it was: the disks hold what they held when the machine was saved.
    ///
    /// The file is mapped and only read, so that machines from one file share the memory that none of them writes; with
    /// [`MemBacking::Memfd`](crate::spec::MemBacking::Memfd) it is copied. It may be removed, but for as long as the machine runs
    /// nobody may write to it or make it shorter: the guest would see the new bytes, or this process end by SIGBUS.
    ///
    /// A guest with a driver for the VM generation ID (Linux 5.18, `CONFIG_VMGENID`) makes its random numbers anew. One
    /// without goes on with those of the saved machine, as does every other machine that is made from it.
    ///
    /// The guest's clocks go on from the host's time, unless [`MachineBuilder::clock`] says otherwise. A reset of the machine boots
    /// its kernel, as ever.
    #[must_use]
    pub fn restore(self, state: SavedState, memory: File) -> Self {
        self.restore_from(Restore::new(state, memory))
    }

    #[must_use]
    pub(crate) fn restore_from(mut self, restore: Restore) -> Self {
        self.run_resources.restore = Some(restore);
        self
    }

    /// From when the clocks of a restored guest go on.
    #[must_use]
    pub fn clock(mut self, clock: GuestClock) -> Self {
        self.run_resources.clock = Some(clock);
        self
    }

    /// Has `call` made once, with the forwards, when the machine is made and its guest has not begun to run.
    #[must_use]
    pub(crate) fn about_to_run(
        mut self,
        call: impl FnOnce(&[BoundForward]) -> io::Result<()> + Send + 'static,
    ) -> Self {
        self.run_resources.about_to_run = BeforeRun::new(call);
        self
    }

    /// Makes the machine and lets it run.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong with the spec, its files or the host. Nothing is left behind then.
    pub fn start(self) -> Result<Machine, StartError> {
        Machine::start_with(&self.spec, self.output, devices::functions, self.run_resources)
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
        output: Option<Box<dyn Write + Send>>,
        run_resources: RunResources,
    ) -> Result<Machine, StartError> {
        Self::start_with(spec, output, devices::functions, run_resources)
    }

    /// A machine about to be started, its console for whoever reads [`Machine::console`].
    pub fn builder(spec: &Spec) -> MachineBuilder {
        MachineBuilder { spec: spec.clone(), output: None, run_resources: RunResources::default() }
    }

    /// As [`Machine::start`], with these functions on the PCI bus.
    fn start_with(
        spec: &Spec,
        output: Option<Box<dyn Write + Send>>,
        functions: MakeFunctions,
        run_resources: RunResources,
    ) -> Result<Machine, StartError> {
        Self::start_now(spec, output, functions, run_resources)
            .map_err(|error| error.with_limit_of_files(spec))
    }

    fn start_now(
        spec: &Spec,
        output: Option<Box<dyn Write + Send>>,
        functions: MakeFunctions,
        mut run_resources: RunResources,
    ) -> Result<Machine, StartError> {
        let (sender, receiver) = mpsc::channel();
        let spec = spec.clone().settled()?;
        let in_place = run_resources.prepared.as_ref().is_some_and(|prepared| prepared.in_place);
        let own = run_resources.prepared.as_mut().and_then(|prepared| prepared.thread.take());
        let blocking = own.map_or_else(BlockingThread::spawn, Ok)?;
        let (prepared, restore) = (run_resources.prepared.take(), run_resources.restore.take());
        let restore = match run_resources.clock {
            Some(clock) => restore.map(|restore| restore.with_clock(clock)),
            None => restore,
        };
        let (progress, boots) = (run_resources.progress.clone(), sender.clone());
        let make = move |progress: &Progress| {
            let (files, kvm, beginning) = begin(&spec, prepared, restore, progress)?;
            let resources = Resources::open(spec, files, kvm, functions, run_resources)?;
            if beginning.is_held() {
                resources.net_handles.will_announce().map_err(StartError::Descriptors)?;
            }
            let boot = Boot::start(&resources, beginning, BootNumber::default(), &boots, progress)?;
            Ok::<_, StartError>((resources, boot))
        };
        let ((resources, boot), blocking) =
            if in_place { (make(&progress)?, blocking) } else { within(blocking, &progress, make)? };
        let input = ConsoleInput::new(resources.console.clone());
        let (queue, said) = (resources.console.output.clone(), Arc::<Scrollback>::default());
        let (balloon, mem) = (resources.balloon.clone(), resources.spec.mem());
        let (disks, nets) = (resources.disk_handles.clone(), resources.net_handles.clone());
        let can_boot = resources.files.can_boot();
        let (publisher, urgent) = (resources.publisher.clone(), Arc::<UrgentRequests>::default());
        let mut output = OutputThread::spawn(queue, said.clone(), output).map_err(StartError::Thread)?;
        let supervisor =
            Supervisor { blocking, urgent: urgent.clone(), events: receiver, sender: sender.clone() };
        let outcome = Arc::new(ExitCell::default());
        let guest_console = GuestConsole::new(said, input.clone());
        let (result, typed) = (outcome.clone(), input.clone());
        let supervisor = thread::spawn(Role::Supervisor, "machine", move || {
            let mut ending = ExitPublisher {
                outcome: &result,
                publisher: resources.publisher.clone(),
                input: typed,
                exit: Exit::Failed(StartError::Internal("the supervisor")),
            };
            // When the end is told, the next machine on the same disks and sockets may be started at once.
            ending.exit = supervisor.run(resources, boot);
            output.finish();
        })
        .map_err(StartError::Thread)?;
        Ok(Machine {
            controls: Controls {
                events: sender,
                urgent,
                balloon,
                disks,
                nets,
                mem,
                publisher,
                outcome,
                copy: CopyStatus::default(),
                can_boot,
            },
            input,
            console: guest_console,
            supervisor: Some(supervisor),
        })
    }

    /// See [`Controls::wait`].
    pub fn wait(&self) -> Arc<Exit> {
        self.controls.wait()
    }

    /// See [`Controls::wait_for`].
    pub fn wait_for(&self, limit: Duration) -> Option<Arc<Exit>> {
        self.controls.wait_for(limit)
    }

    /// See [`Controls::exit_status`].
    pub fn exit_status(&self) -> Option<Arc<Exit>> {
        self.controls.exit_status()
    }

    /// A handle for asking things of the machine from other threads.
    pub fn controls(&self) -> Controls {
        self.controls.clone()
    }

    /// A reader of the guest's first console, from the last 64 KiB on, and its keyboard.
    pub fn console(&self) -> GuestConsole {
        self.console.clone()
    }

    /// See [`Controls::forwards`].
    pub fn forwards(&self) -> Vec<BoundForward> {
        self.controls.forwards()
    }

    /// See [`Controls::add_forward`].
    ///
    /// # Errors
    /// [`NetError`], and nothing has changed.
    pub fn add_forward(&self, net: Option<&str>, forward: PortForward) -> Result<BoundForward, NetError> {
        self.controls.add_forward(net, forward)
    }

    /// See [`Controls::remove_forward`].
    ///
    /// # Errors
    /// [`NetError`], and nothing has changed.
    pub fn remove_forward(&self, net: Option<&str>, forward: PortForward) -> Result<BoundForward, NetError> {
        self.controls.remove_forward(net, forward)
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

    /// See [`Controls::save`].
    ///
    /// # Errors
    /// [`SaveError`]; the machine is as it was.
    pub fn save(&self, memory: &File) -> Result<SavedState, SaveError> {
        self.controls.save(memory)
    }

    /// See [`Controls::save_to`].
    ///
    /// # Errors
    /// [`SaveError`]; the machine is as it was.
    pub fn save_to(&self, folder: impl AsRef<Path>) -> Result<(), SaveError> {
        self.controls.save_to(folder)
    }

    /// See [`Controls::save_and_end`].
    ///
    /// # Errors
    /// [`SaveError`]; the machine is as it was.
    pub fn save_and_end(&self, folder: impl AsRef<Path>, limit: Duration) -> Result<(), SaveError> {
        self.controls.save_and_end(folder, limit)
    }

    /// See [`Controls::save_with`].
    ///
    /// # Errors
    /// [`SaveError`]; the machine is as it was.
    pub fn save_with(&self, folder: impl AsRef<Path>, options: SaveOptions) -> Result<(), SaveError> {
        self.controls.save_with(folder, options)
    }

    /// See [`Controls::snapshot_to`].
    ///
    /// # Errors
    /// [`SaveError`]; the machine runs if it ran before.
    pub fn snapshot_to(&self, folder: impl AsRef<Path>, limit: Duration) -> Result<(), SaveError> {
        self.controls.snapshot_to(folder, limit)
    }

    /// See [`Controls::revert_to`].
    ///
    /// # Errors
    /// [`RevertError`].
    pub fn revert_to(&self, folder: impl AsRef<Path>) -> Result<(), RevertError> {
        self.controls.revert_to(folder)
    }

    /// See [`Controls::clone_running`].
    ///
    /// # Errors
    /// [`FreezeError`]; the machine is as it was.
    pub fn clone_running(&self, limit: Duration) -> Result<Machine, FreezeError> {
        self.controls.clone_running(limit)
    }

    /// See [`Controls::save_running`].
    ///
    /// # Errors
    /// [`SaveError`]; there is no folder then, and the machine runs on.
    pub fn save_running(
        &self,
        folder: impl AsRef<Path>,
        limits: CopyLimits,
        limit: Duration,
        watch: &mut dyn FnMut(&CopyProgress) -> ControlFlow<()>,
    ) -> Result<CopyReport, SaveError> {
        self.controls.save_running(folder, limits, limit, watch)
    }

    /// See [`Controls::log_writes`].
    ///
    /// # Errors
    /// As there.
    pub fn log_writes(&self, on: bool) -> Result<(), SaveError> {
        self.controls.log_writes(on)
    }

    /// See [`Controls::take_written`].
    ///
    /// # Errors
    /// As there.
    pub fn take_written(&self) -> Result<Vec<Range<u64>>, SaveError> {
        self.controls.take_written()
    }

    /// See [`Controls::stats`].
    pub fn stats(&self) -> Option<Stats> {
        self.controls.stats()
    }

    /// See [`Controls::state`].
    pub fn state(&self) -> MachineState {
        self.controls.state()
    }

    /// See [`Controls::full_disks`].
    pub fn full_disks(&self) -> Vec<String> {
        self.controls.full_disks()
    }

    /// See [`Controls::events`].
    pub fn events(&self) -> Events {
        self.controls.events()
    }

    /// See [`Controls::balloon`].
    pub fn balloon(&self) -> &BalloonControl {
        self.controls.balloon()
    }

    /// See [`Controls::set_balloon`].
    ///
    /// # Errors
    /// [`BalloonError`], and nothing has changed.
    pub fn set_balloon(&self, mib: u64) -> Result<(), BalloonError> {
        self.controls.set_balloon(mib)
    }

    /// See [`Controls::resize_disk`].
    ///
    /// # Errors
    /// [`ResizeError`], and the guest sees the size of before.
    pub fn resize_disk(&self, id: &str) -> Result<u64, ResizeError> {
        self.controls.resize_disk(id)
    }

    /// See [`Controls::grow_disk`].
    ///
    /// # Errors
    /// [`ResizeError`], and the guest sees the size of before.
    pub fn grow_disk(&self, id: &str, growth: DiskGrowth) -> Result<u64, ResizeError> {
        self.controls.grow_disk(id, growth)
    }

    /// See [`Controls::set_disk_limits`].
    ///
    /// # Errors
    /// [`DiskChangeError`].
    pub fn set_disk_limits(&self, id: &str, change: DiskLimitsChange) -> Result<(), DiskChangeError> {
        self.controls.set_disk_limits(id, change)
    }

    /// See [`Controls::eject_disk`].
    ///
    /// # Errors
    /// [`DiskChangeError`]; but after [`DiskChangeError::InFlight`] the disk is out.
    pub fn eject_disk(&self, id: &str) -> Result<(), DiskChangeError> {
        self.controls.eject_disk(id)
    }

    /// See [`Controls::insert_disk`].
    ///
    /// # Errors
    /// [`DiskChangeError`], and the drive is empty.
    pub fn insert_disk(&self, id: &str, path: impl AsRef<Path>) -> Result<DiskState, DiskChangeError> {
        self.controls.insert_disk(id, path)
    }

    /// See [`Controls::disks`].
    pub fn disks(&self) -> Vec<DiskState> {
        self.controls.disks()
    }

    /// See [`Controls::kill`].
    pub fn kill(&self) {
        self.controls.kill();
    }
}

/// The first boot, begun, with the files of `spec` and /dev/kvm. A saved machine needs no kernel, and none is searched for.
fn begin(
    spec: &Spec,
    prepared: Option<Prepared>,
    restore: Option<Restore>,
    progress: &Progress,
) -> Result<(OpenFiles, Arc<KvmDevice>, Beginning), StartError> {
    let Prepared { open, start, kvm, beginning, .. } = match (prepared, restore) {
        (Some(prepared), None) => prepared,
        (Some(prepared), Some(restore)) => Prepared::saved(prepared.open, restore, progress),
        (None, Some(restore)) => Prepared::saved(OpenFiles::open(spec, progress)?, restore, progress),
        (None, None) => Prepared::find(spec, OpenFiles::open(spec, progress)?, progress)?,
    };
    if let Some((kvm, begun)) = beginning {
        return Ok((open, kvm, begun));
    }
    progress.begin("opening /dev/kvm");
    let kvm = Arc::new(kvm.map_or_else(KvmDevice::open, |file| Ok(KvmDevice::from(file)))?);
    let origin = match &start {
        PreparedStart::Files(files) => Origin::Files(files),
        PreparedStart::Saved(saved) => Origin::State(saved.clone()),
    };
    let beginning = Beginning::new(&kvm, spec, origin, progress)?;
    Ok((open, kvm, beginning))
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
