//! The machine as its control socket sees it.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use crate::machine::{
    BalloonError, Controls, Events, GuestConsole, Machine, MachineEvent, MachineState, PauseError, Stats,
};
use crate::spec::{ConsoleChoice, Spec};

/// How long the machine may take for an answer that it has at hand.
const ANSWER: Duration = Duration::from_secs(5);

/// What can be asked of a machine. Calls come from many threads and return in their time, whatever the machine does.
pub trait Subject: Send + Sync + fmt::Debug {
    /// What it is.
    fn info(&self) -> Info;
    /// What it does.
    fn state(&self) -> MachineState;
    /// Brings it to rest.
    ///
    /// # Errors
    /// [`PauseError`].
    fn pause(&self, limit: Duration) -> Result<(), PauseError>;
    /// Lets it go on.
    fn resume(&self);
    /// Resets it, and returns when it boots again.
    ///
    /// # Errors
    /// [`ResetError`].
    fn reset(&self, limit: Duration) -> Result<(), ResetError>;
    /// Presses its power button.
    fn power_button(&self);
    /// Ends it.
    fn kill(&self);
    /// Its balloon.
    fn balloon(&self) -> Balloon;
    /// From now on the balloon shall have so many MiB.
    ///
    /// # Errors
    /// [`BalloonError`].
    fn set_balloon(&self, mib: u64) -> Result<(), BalloonError>;
    /// What it has done; `None` if it does not answer.
    fn stats(&self) -> Option<Stats>;
    /// What happens to it from now on.
    fn events(&self) -> Box<dyn EventSource>;
    /// Its guest's console, from the last it has said on.
    fn console(&self) -> Box<dyn Console>;
}

/// Why a machine does not boot again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResetError {
    /// It has ended, in this way.
    #[error("the machine has ended instead of booting again: {0}")]
    Ended(String),
    /// It takes longer.
    #[error("the machine has not booted again within {} s; it will, unless it ends", .0.as_secs())]
    TimedOut(Duration),
}

/// What a machine was made of when it was started: a line of what is printed then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// Such as `Kernel` or `Disk`.
    pub name: String,
    /// In words.
    pub value: String,
}

/// A reader of a guest's console.
pub trait Console {
    /// What the guest says next; 0 once the machine has ended.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if it says nothing within `limit`.
    fn read(&mut self, into: &mut [u8], limit: Duration) -> io::Result<usize>;
    /// Where to type.
    fn keyboard(&self) -> Box<dyn Keyboard>;
}

/// Types into a guest's console.
pub trait Keyboard: Send {
    /// Types as much as there is room for, and does not wait for more.
    fn type_in(&mut self, bytes: &[u8]) -> usize;
}

/// Events, one by one.
pub trait EventSource {
    /// The next one, if it comes within `limit`.
    fn next(&mut self, limit: Duration) -> Next;
}

/// What came of waiting for an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// This happened.
    Event(MachineEvent),
    /// Nothing did so far.
    Nothing,
    /// Nothing will any more.
    Ended,
}

/// What a machine is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The process that it lives in.
    pub pid: u32,
    /// Of minivmm.
    pub version: &'static str,
    /// What it does.
    pub state: MachineState,
    /// Seconds since its start.
    pub uptime: f64,
    /// Its memory in MiB.
    pub mem: u64,
    /// Its processors.
    pub cpus: u32,
    /// The console that its terminal gets.
    pub console: &'static str,
    /// What it was made of when it was started: the kernel that was found, the addresses of its interfaces. Several facts may
    /// have one name.
    pub made_of: Vec<Fact>,
    /// What was asked for, as in a machine's file; nothing if a path in it is not UTF-8.
    pub spec: Option<Value>,
}

/// A machine's balloon, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Balloon {
    /// What the guest shall leave to the host.
    pub mib: u64,
    /// What it does.
    pub actual_mib: u64,
}

/// A machine that was started, as the subject of a control socket.
#[derive(Debug)]
pub struct Running {
    controls: Controls,
    console: GuestConsole,
    spec: Spec,
    made_of: Vec<Fact>,
    started: Instant,
}

impl Running {
    /// `machine`, which was started from `spec` a moment ago.
    pub fn new(machine: &Machine, spec: Spec) -> Self {
        let (controls, console) = (machine.controls(), machine.console());
        Running { controls, console, spec, made_of: Vec::new(), started: Instant::now() }
    }

    /// The same, which was made of this.
    #[must_use]
    pub fn made_of(self, made_of: Vec<Fact>) -> Self {
        Running { made_of, ..self }
    }
}

impl Subject for Running {
    fn info(&self) -> Info {
        Info {
            name: self.spec.name.as_ref().map(ToString::to_string),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            state: self.state(),
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
            made_of: self.made_of.clone(),
            spec: serde_json::to_value(&self.spec).ok(),
        }
    }

    fn state(&self) -> MachineState {
        self.controls.state()
    }

    fn pause(&self, limit: Duration) -> Result<(), PauseError> {
        self.controls.pause(limit)
    }

    fn resume(&self) {
        self.controls.resume_within(ANSWER);
    }

    fn reset(&self, limit: Duration) -> Result<(), ResetError> {
        let (until, events) = (Instant::now() + limit, self.controls.events());
        self.controls.reset();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match events.next_within(left) {
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

    fn events(&self) -> Box<dyn EventSource> {
        Box::new(Heard { events: self.controls.events(), controls: self.controls.clone() })
    }

    fn console(&self) -> Box<dyn Console> {
        Box::new(self.console.clone())
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
struct Heard {
    events: Events,
    controls: Controls,
}

impl EventSource for Heard {
    fn next(&mut self, limit: Duration) -> Next {
        // Asked first: an event that comes before the end is not taken for missing.
        let ended = self.controls.state() == MachineState::Ended;
        // The last event may be published a moment after the end.
        match self.events.next_within(limit) {
            Some(event) => Next::Event(event),
            None if ended => Next::Ended,
            None => Next::Nothing,
        }
    }
}
