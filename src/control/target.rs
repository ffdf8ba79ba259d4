//! A machine as the control socket sees it.

use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use crate::host::capture::CaptureLimits;
use crate::machine::{
    Asker, BalloonError, BoundForward, Controls, CopyLimits, CopyProgress, CopyReport, DiskChangeError,
    DiskState, Events, GuestConsole, Machine, MachineEvent, MachineState, NetError, PauseError, ResizeError,
    RevertError, SaveError, SaveOptions, StartError, Stats,
};
use crate::migration::{Patience, migrate};
use crate::saved::with_absolute_paths;
use crate::spec::{ConsoleChoice, DiskGrowth, DiskLimitsChange, PortForward, Spec};

/// Limit for answers that need no work.
const ANSWER: Duration = Duration::from_secs(5);

/// The operations of a machine that the control socket offers. Calls come from several threads, and return
/// within their limits whatever the machine does. What copies the machine ends when the one who asked for it is gone.
pub trait ControlTarget: Send + Sync + fmt::Debug {
    /// What the machine is.
    fn info(&self) -> Info;
    /// Its state.
    fn state(&self) -> MachineState;
    /// Pauses it.
    ///
    /// # Errors
    /// [`PauseError`].
    fn pause(&self, limit: Duration) -> Result<(), PauseError>;
    /// Resumes it.
    ///
    /// # Errors
    /// It may run elsewhere.
    fn resume(&self) -> Result<(), SaveError>;
    /// Resets it, and returns when it boots again.
    ///
    /// # Errors
    /// [`ResetError`].
    fn reset(&self, limit: Duration) -> Result<(), ResetError>;
    /// Presses its power button.
    fn power_button(&self);
    /// Ends it.
    fn kill(&self);
    /// Saves it to a folder, and ends it.
    ///
    /// # Errors
    /// [`SaveError`].
    fn save_and_end(
        &self,
        asker: &Asker,
        folder: &Path,
        options: SaveOptions,
        limit: Duration,
    ) -> Result<(), SaveError>;
    /// Saves it with its disks to a folder, and lets it go on.
    ///
    /// # Errors
    /// [`SaveError`].
    fn snapshot(&self, asker: &Asker, folder: &Path, limit: Duration) -> Result<(), SaveError>;
    /// Takes it back to such a folder.
    ///
    /// # Errors
    /// [`RevertError`].
    fn revert(&self, asker: &Asker, folder: &Path) -> Result<(), RevertError>;
    /// Saves it to a folder while it runs, and does not end it.
    ///
    /// # Errors
    /// [`SaveError`].
    fn save_running(
        &self,
        asker: &Asker,
        folder: &Path,
        options: SaveOptions,
        limits: CopyLimits,
        limit: Duration,
    ) -> Result<CopyReport, SaveError>;
    /// How far a save of it is, if one is under way.
    fn copy_progress(&self) -> Option<CopyProgress>;
    /// Cancels the copies that are under way, or only those that were called so.
    fn cancel_copy(&self, called: Option<&str>);
    /// What sends it over a connection to another process, and ends it here once it runs there.
    fn migrate(
        &self,
        asker: &Asker,
        options: SaveOptions,
        limits: CopyLimits,
        patience: Patience,
    ) -> Box<dyn FnOnce(UnixStream, Vec<u8>)>;
    /// Its balloon.
    fn balloon(&self) -> Balloon;
    /// Sets the size of the balloon in MiB.
    ///
    /// # Errors
    /// [`BalloonError`].
    fn set_balloon(&self, mib: u64) -> Result<(), BalloonError>;
    /// Its counters; `None` if it does not answer.
    fn stats(&self) -> Option<Stats>;
    /// Its disks as they are now.
    fn disks(&self) -> Vec<DiskState>;
    /// Grows a disk; its new size in bytes.
    ///
    /// # Errors
    /// [`ResizeError`].
    fn grow_disk(&self, id: &str, growth: DiskGrowth) -> Result<u64, ResizeError>;
    /// Sets limits of a disk.
    ///
    /// # Errors
    /// [`DiskChangeError`].
    fn set_disk_limits(&self, id: &str, change: DiskLimitsChange) -> Result<(), DiskChangeError>;
    /// Takes a disk out of its drive.
    ///
    /// # Errors
    /// [`DiskChangeError`].
    fn eject_disk(&self, id: &str) -> Result<(), DiskChangeError>;
    /// Puts a disk into a drive.
    ///
    /// # Errors
    /// [`DiskChangeError`].
    fn insert_disk(&self, id: &str, path: &Path) -> Result<DiskState, DiskChangeError>;
    /// The ports of the host that lead to its guest.
    fn forwards(&self) -> Vec<BoundForward>;
    /// Those of this user network or of the only one.
    ///
    /// # Errors
    /// [`NetError`].
    fn forwards_of(&self, net: Option<&str>) -> Result<Vec<BoundForward>, NetError>;
    /// Opens one, of this user network or of the only one.
    ///
    /// # Errors
    /// [`NetError`].
    fn add_forward(&self, net: Option<&str>, forward: PortForward) -> Result<BoundForward, NetError>;
    /// Closes one.
    ///
    /// # Errors
    /// [`NetError`].
    fn remove_forward(&self, net: Option<&str>, forward: PortForward) -> Result<BoundForward, NetError>;
    /// Begins a capture of this interface or of the only one.
    ///
    /// # Errors
    /// [`NetError`].
    fn capture(&self, net: Option<&str>, limits: CaptureLimits) -> Result<Box<dyn ByteSource>, NetError>;
    /// Its events from now on.
    fn events(&self) -> Box<dyn EventSource>;
    /// Its guest's console, from the last output that is kept.
    fn console(&self) -> Box<dyn Console>;
    /// The terminal that has it is this large.
    fn set_terminal_size(&self, columns: u16, rows: u16);
}

/// Why a machine did not boot again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResetError {
    /// It has ended, in this way.
    #[error("the machine has ended instead of booting again: {0}")]
    Ended(String),
    /// There is not all that it booted from; it was not reset.
    #[error("{0}")]
    CannotBoot(String),
    /// It takes longer than the limit.
    #[error("the machine has not booted again within {} s; it will, unless it ends", .0.as_secs())]
    TimedOut(Duration),
}

/// One line of the banner: a resource of the machine at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BannerLine {
    /// Such as `Kernel` or `Disk`.
    pub name: String,
    /// In words.
    pub value: String,
}

impl BannerLine {
    /// Of a forward.
    pub(crate) fn forward(bound: &BoundForward) -> Self {
        BannerLine { name: "Forward".into(), value: bound.to_string() }
    }
}

/// A reader of a guest's console.
pub trait Console {
    /// The next output of the guest; 0 once the machine has ended.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if there is none within `limit`.
    fn read(&mut self, into: &mut [u8], limit: Duration) -> io::Result<usize>;
    /// The input of the same console.
    fn keyboard(&self) -> Box<dyn Keyboard>;
}

/// The input of a guest's console.
pub trait Keyboard: Send {
    /// Types as much as there is room for, without blocking; returns the number of bytes.
    fn type_in(&mut self, bytes: &[u8]) -> usize;
}

/// A stream of events.
pub trait EventSource {
    /// The next event, if it happens within `limit`.
    fn next(&mut self, limit: Duration) -> NextEvent;
}

/// Bytes that a client reads as they come.
pub trait ByteSource {
    /// Exchanges `buffer` for the next bytes, if there are any within `limit`.
    fn next(&mut self, buffer: &mut Vec<u8>, limit: Duration) -> NextBytes;
    /// The client wants nothing more than the rest.
    fn finish(&mut self);
}

/// The outcome of waiting for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextBytes {
    /// There are some.
    Bytes,
    /// None within the limit.
    Nothing,
    /// There will be no more.
    Ended,
}

/// The outcome of waiting for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextEvent {
    /// This happened.
    Event(MachineEvent),
    /// Nothing within the limit.
    Nothing,
    /// There are no more events.
    Ended,
}

/// A description of a machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its process.
    pub pid: u32,
    /// The version of minivmm.
    pub version: &'static str,
    /// Its state.
    pub state: MachineState,
    /// Disks such as `vda` that wait for room on the host, for which it is paused.
    pub full_disks: Vec<String>,
    /// Seconds since its start.
    pub uptime: f64,
    /// Its memory in MiB.
    pub mem: u64,
    /// Its number of vCPUs.
    pub cpus: u32,
    /// The console that its terminal is connected to.
    pub console: &'static str,
    /// The banner at its start, such as the kernel that was found and the addresses of its interfaces.
    /// Several entries may have one name.
    #[serde(rename = "made-of")]
    pub banner: Vec<BannerLine>,
    /// The disks as they are now.
    pub disks: Vec<DiskState>,
    /// The ports of the host that lead to the guest.
    pub forwards: Vec<BoundForward>,
    /// The spec, as in a machine's file; `None` if a path in it is not UTF-8.
    pub spec: Option<Value>,
}

/// A machine's balloon, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Balloon {
    /// The size that the guest was asked for.
    pub mib: u64,
    /// The size that the guest has reached.
    pub actual_mib: u64,
}

/// A running machine as the target of a control socket.
#[derive(Debug)]
pub struct RunningTarget {
    controls: Controls,
    console: GuestConsole,
    spec: Spec,
    banner: Vec<BannerLine>,
    started: Instant,
}

impl RunningTarget {
    /// `machine`, which was just started from `spec`. Clients may be in another folder, so that its paths are told absolute.
    pub fn new(machine: &Machine, spec: Spec) -> Self {
        let spec = with_absolute_paths(spec.clone()).unwrap_or(spec);
        let (controls, console) = (machine.controls(), machine.console());
        RunningTarget { controls, console, spec, banner: Vec::new(), started: Instant::now() }
    }

    /// The same with this banner, without its forwards.
    #[must_use]
    pub fn banner(self, banner: Vec<BannerLine>) -> Self {
        RunningTarget { banner, ..self }
    }
}

impl ControlTarget for RunningTarget {
    fn info(&self) -> Info {
        let forwards = self.controls.forwards();
        let mut banner = self.banner.clone();
        banner.extend(forwards.iter().map(BannerLine::forward));
        let mut disks = self.controls.disks();
        for path in disks.iter_mut().filter_map(|disk| disk.path.as_mut()) {
            *path = std::path::absolute(&*path).unwrap_or_else(|_| path.clone());
        }
        Info {
            name: self.spec.name.as_ref().map(ToString::to_string),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            state: self.state(),
            full_disks: self.controls.full_disks(),
            uptime: Duration::from_millis(
                u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            )
            .as_secs_f64(),
            mem: self.spec.mem().mib(),
            cpus: self.spec.cpus().get(),
            console: match self.spec.console() {
                ConsoleChoice::Ttys0 => "ttyS0",
                ConsoleChoice::Hvc0 => "hvc0",
            },
            banner,
            disks,
            forwards,
            spec: serde_json::to_value(&self.spec).ok(),
        }
    }

    fn state(&self) -> MachineState {
        self.controls.state()
    }

    fn pause(&self, limit: Duration) -> Result<(), PauseError> {
        self.controls.pause(limit)
    }

    fn resume(&self) -> Result<(), SaveError> {
        self.controls.come_home()?;
        self.controls.resume_within(ANSWER);
        Ok(())
    }

    fn reset(&self, limit: Duration) -> Result<(), ResetError> {
        if !self.controls.can_boot() {
            return Err(ResetError::CannotBoot(StartError::InitrdGone.to_string()));
        }
        let (until, events) = (Instant::now() + limit, self.controls.events());
        self.controls.reset();
        loop {
            let remaining = until.saturating_duration_since(Instant::now());
            match events.next_within(remaining) {
                Some(MachineEvent::Booted) => return Ok(()),
                Some(MachineEvent::Exited) => break,
                Some(_) => {}
                None if self.controls.state() == MachineState::Ended => break,
                None => return Err(ResetError::TimedOut(limit)),
            }
        }
        let exit = self.controls.wait_for(ANSWER);
        Err(ResetError::Ended(
            exit.map_or_else(|| "it takes its time to".to_owned(), |exit| exit.to_string()),
        ))
    }

    fn power_button(&self) {
        self.controls.power_button();
    }

    fn kill(&self) {
        self.controls.kill();
    }

    fn save_and_end(
        &self,
        asker: &Asker,
        folder: &Path,
        options: SaveOptions,
        limit: Duration,
    ) -> Result<(), SaveError> {
        self.controls.asked_by(asker).save_and_end_with(folder, options, limit)
    }

    fn snapshot(&self, asker: &Asker, folder: &Path, limit: Duration) -> Result<(), SaveError> {
        self.controls.asked_by(asker).snapshot_to(folder, limit)
    }

    fn revert(&self, asker: &Asker, folder: &Path) -> Result<(), RevertError> {
        self.controls.asked_by(asker).revert_to(folder)
    }

    fn save_running(
        &self,
        asker: &Asker,
        folder: &Path,
        options: SaveOptions,
        limits: CopyLimits,
        limit: Duration,
    ) -> Result<CopyReport, SaveError> {
        let watch = &mut |_: &CopyProgress| ControlFlow::Continue(());
        self.controls.asked_by(asker).save_running_with(folder, options, limits, limit, watch)
    }

    fn copy_progress(&self) -> Option<CopyProgress> {
        self.controls.copy_progress()
    }

    fn cancel_copy(&self, called: Option<&str>) {
        match called {
            Some(name) => self.controls.cancel_copy_called(name),
            None => self.controls.cancel_copy(),
        }
    }

    fn migrate(
        &self,
        asker: &Asker,
        options: SaveOptions,
        limits: CopyLimits,
        patience: Patience,
    ) -> Box<dyn FnOnce(UnixStream, Vec<u8>)> {
        let controls = self.controls.asked_by(asker);
        Box::new(move |stream, begun| migrate(&controls, &stream, &begun, options, limits, patience))
    }

    fn balloon(&self) -> Balloon {
        let balloon = self.controls.balloon();
        Balloon { mib: balloon.target(), actual_mib: balloon.actual() >> 20 }
    }

    fn set_balloon(&self, mib: u64) -> Result<(), BalloonError> {
        self.controls.set_balloon(mib)
    }

    fn stats(&self) -> Option<Stats> {
        self.controls.stats_within(ANSWER)
    }

    fn disks(&self) -> Vec<DiskState> {
        self.controls.disks()
    }

    fn grow_disk(&self, id: &str, growth: DiskGrowth) -> Result<u64, ResizeError> {
        self.controls.grow_disk(id, growth)
    }

    fn set_disk_limits(&self, id: &str, change: DiskLimitsChange) -> Result<(), DiskChangeError> {
        self.controls.set_disk_limits(id, change)
    }

    fn eject_disk(&self, id: &str) -> Result<(), DiskChangeError> {
        self.controls.eject_disk(id)
    }

    fn insert_disk(&self, id: &str, path: &Path) -> Result<DiskState, DiskChangeError> {
        self.controls.insert_disk(id, path)
    }

    fn forwards(&self) -> Vec<BoundForward> {
        self.controls.forwards()
    }

    fn forwards_of(&self, net: Option<&str>) -> Result<Vec<BoundForward>, NetError> {
        self.controls.forwards_of(net)
    }

    fn add_forward(&self, net: Option<&str>, forward: PortForward) -> Result<BoundForward, NetError> {
        self.controls.add_forward(net, forward)
    }

    fn remove_forward(&self, net: Option<&str>, forward: PortForward) -> Result<BoundForward, NetError> {
        self.controls.remove_forward(net, forward)
    }

    fn capture(&self, net: Option<&str>, limits: CaptureLimits) -> Result<Box<dyn ByteSource>, NetError> {
        Ok(Box::new(self.controls.capture(net, limits)?))
    }

    fn events(&self) -> Box<dyn EventSource> {
        Box::new(MachineEvents { events: self.controls.events(), controls: self.controls.clone() })
    }

    fn console(&self) -> Box<dyn Console> {
        Box::new(self.console.clone())
    }

    fn set_terminal_size(&self, columns: u16, rows: u16) {
        self.console.set_terminal_size(columns, rows);
    }
}

impl Console for GuestConsole {
    fn read(&mut self, into: &mut [u8], limit: Duration) -> io::Result<usize> {
        self.read_within(into, limit)
    }

    fn keyboard(&self) -> Box<dyn Keyboard> {
        Box::new(self.clone())
    }
}

impl Keyboard for GuestConsole {
    fn type_in(&mut self, bytes: &[u8]) -> usize {
        self.try_type(bytes)
    }
}

/// A running machine's events.
struct MachineEvents {
    events: Events,
    controls: Controls,
}

impl EventSource for MachineEvents {
    fn next(&mut self, limit: Duration) -> NextEvent {
        // Read before the wait, so that an event just before the end is not missed.
        let ended = self.controls.state() == MachineState::Ended;
        // The last event may be published a moment after the end.
        match self.events.next_within(limit) {
            Some(event) => NextEvent::Event(event),
            None if ended => NextEvent::Ended,
            None => NextEvent::Nothing,
        }
    }
}
