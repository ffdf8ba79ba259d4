//! The end of one boot, as the threads share it: consoles and devices report to it, the supervisor asks it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Activity, ConsoleId, End, Ends, Line, LineWatch, Said, Sample};
use crate::machine::BootNumber;
use crate::machine::supervisor::Event;

/// See [`super`].
#[derive(Debug, Clone)]
pub(in crate::machine) struct Watch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    boot: BootNumber,
    said: [AtomicU64; 2],
    /// The guest has said through pvpanic that its crash kernel takes over.
    crash_kernel: Arc<AtomicBool>,
    /// An [`Event::Suspect`] is on its way, so that no guest can make them pile up.
    told: AtomicBool,
    events: Sender<Event>,
    /// Held for moments, by threads that may hold a console's lock; who holds it takes no other.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ends: Ends,
    clock: RunClock,
}

/// The time that a machine has run, without its pauses.
#[derive(Debug)]
struct RunClock {
    begin: Instant,
    stopped: Option<Instant>,
    lost: Duration,
}

impl RunClock {
    fn now(&self) -> Duration {
        let until = self.stopped.unwrap_or_else(Instant::now);
        until.saturating_duration_since(self.begin).saturating_sub(self.lost)
    }

    fn stop(&mut self) {
        self.stopped.get_or_insert_with(Instant::now);
    }

    fn go_on(&mut self) {
        self.lost += self.stopped.take().map(|at| at.elapsed()).unwrap_or_default();
    }
}

impl Watch {
    /// For a boot with this `panic=`. [`Event::Suspect`] comes when [`Watch::wants_samples`] has become true.
    pub(in crate::machine) fn new(boot: BootNumber, panic_timeout: i64, events: Sender<Event>) -> Self {
        let clock = RunClock { begin: Instant::now(), stopped: None, lost: Duration::ZERO };
        Watch(Arc::new(Shared {
            boot,
            said: Default::default(),
            crash_kernel: Arc::default(),
            told: AtomicBool::new(false),
            events,
            state: Mutex::new(State { ends: Ends::new(panic_timeout), clock }),
        }))
    }

    /// What finds the lines of the serial port.
    pub(in crate::machine) fn ttys0(&self) -> LineWatch {
        LineWatch::new(ConsoleId::Ttys0, self.clone())
    }

    /// The same of the virtio console.
    pub(in crate::machine) fn hvc0(&self) -> LineWatch {
        LineWatch::new(ConsoleId::Hvc0, self.clone())
    }

    /// What pvpanic sets when the crash kernel takes over.
    pub(in crate::machine) fn crash_kernel(&self) -> Arc<AtomicBool> {
        self.0.crash_kernel.clone()
    }

    pub(super) fn said(&self, console: ConsoleId, characters: u64) {
        if characters > 0 {
            self.count(console).fetch_add(characters, Ordering::AcqRel);
        }
    }

    fn count(&self, console: ConsoleId) -> &AtomicU64 {
        let [ttys0, hvc0] = &self.0.said;
        match console {
            ConsoleId::Ttys0 => ttys0,
            ConsoleId::Hvc0 => hvc0,
        }
    }

    pub(super) fn line(&self, console: ConsoleId, line: Line) {
        if line == Line::LinuxVersion {
            self.0.crash_kernel.store(false, Ordering::Release);
        }
        let said = self.count(console).load(Ordering::Acquire);
        let wants = self.with(|ends, now| {
            ends.line(now, console, line, said);
            ends.wants_samples()
        });
        if wants && !self.0.told.swap(true, Ordering::AcqRel) {
            // The supervisor is gone only when the machine is going down.
            let _ = self.0.events.send(Event::Suspect { boot: self.0.boot });
        }
    }

    /// The supervisor has taken an [`Event::Suspect`].
    pub(in crate::machine) fn taken(&self) {
        self.0.told.store(false, Ordering::Release);
    }

    /// Whether [`Watch::sample`] wants to be called.
    pub(in crate::machine) fn wants_samples(&self) -> bool {
        self.with(|ends, _| ends.wants_samples())
    }

    /// See [`Ends::sample`].
    pub(in crate::machine) fn sample(&self, work: u64, activity: Activity) -> Option<End> {
        let said = self.all_said();
        self.with(|ends, now| ends.sample(now, Sample { said, work, activity }))
    }

    /// See [`Ends::button`].
    pub(in crate::machine) fn button(&self) -> Option<End> {
        self.with(|ends, _| ends.button())
    }

    /// See [`Ends::reset`].
    pub(in crate::machine) fn reset(&self) -> End {
        self.with(|ends, now| ends.reset(now))
    }

    /// See [`Ends::triple_fault`].
    pub(in crate::machine) fn triple_fault(&self) -> Option<End> {
        self.with(|ends, now| ends.triple_fault(now))
    }

    /// How long this boot has run, and whether it came up; `sent` are the bytes that the guest gave to its ports and networks.
    pub(in crate::machine) fn boot(&self, sent: u64) -> (Duration, bool) {
        let said = self.all_said().iter().sum::<u64>().saturating_add(sent);
        self.with(|ends, now| (now, ends.came_up(said)))
    }

    /// The machine is about to rest, and its time stands still.
    pub(in crate::machine) fn stop(&self) {
        self.lock().clock.stop();
    }

    /// It goes on.
    pub(in crate::machine) fn go_on(&self) {
        self.lock().clock.go_on();
    }

    fn all_said(&self) -> Said {
        self.0.said.each_ref().map(|said| said.load(Ordering::Acquire))
    }

    fn with<T>(&self, ask: impl FnOnce(&mut Ends, Duration) -> T) -> T {
        let mut state = self.lock();
        if self.0.crash_kernel.load(Ordering::Acquire) {
            state.ends.crash_kernel();
        }
        let now = state.clock.now();
        ask(&mut state.ends, now)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
