//! How a boot ends: power-off, reboot, panic or crash, from what its devices, its consoles and its vCPUs show.
//!
//! [`Ends`] is a pure state machine for one boot: facts go in with the time that the machine has run, which does not pass
//! while it is paused, and an [`End`] comes out. It never reads a clock and never asks the host. The table in `docs/exit.md`
//! is the table of its tests.
//!
//! A guest can print any line. So no line ends a machine by itself: a second fact has to agree, such as a reset, or vCPUs
//! of which none does anything any more.

mod boot_loop;
mod line;
#[cfg(test)]
mod tests;
mod watch;

use std::time::Duration;

pub(super) use self::boot_loop::{BootLoop, SHORT_BOOT};
pub(super) use self::line::{Line, LineWatch, PANIC_LINE};
pub(super) use self::watch::Watch;

/// Time between two samples of a machine that seems to be at its end.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// Samples in a row that have to agree before they count.
const AGREE: u32 = 2;
/// How long a kernel that says it will do nothing more has to be silent.
const AFTER_LAST_LINE: Duration = Duration::from_secs(2);
/// How long one has to be silent that did not say so.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an initramfs may take to reboot, beyond what `panic=` says.
const GIVING_UP: Duration = Duration::from_secs(20);

/// What the facts come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It is switched off, or halted for good.
    PoweredOff,
    /// It boots again.
    Reset,
    /// Its kernel panicked.
    Panicked,
    /// Its initramfs found no root file system, and rebooted because of `panic=`.
    GaveUp,
}

/// The guest's consoles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConsoleId {
    /// The serial port.
    Ttys0,
    /// The virtio console.
    Hvc0,
}

/// Characters that each console has said.
pub(super) type Said = [u64; 2];

/// What all vCPUs together do at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activity {
    /// One runs a program, or waits for an interrupt.
    Alive,
    /// None does, and one runs in the kernel.
    Kernel,
    /// All are halted with interrupts off: nothing wakes them any more.
    Halted,
    /// Not all of them were seen.
    Unknown,
}

/// A look at the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) said: Said,
    /// Requests that the virtio devices have served.
    pub(super) work: u64,
    pub(super) activity: Activity,
}

/// How far a boot has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Nothing is known.
    Loader,
    /// Linux has said its name.
    Kernel,
    /// It has run a program, or a program has asked it to reboot.
    Program,
}

/// What the boot seems to end in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    Panic {
        /// How long it may be silent before that is its end.
        wait: Duration,
        /// What each console had said when the panic's last line was through.
        last_line: [Option<u64>; 2],
    },
    /// A panic before the kernel can handle one: it halts.
    EarlyPanic,
    /// The kernel was asked to restart, and said so.
    Restart,
    /// The same for power-off and halt.
    PowerOff,
    /// The initramfs said that it reboots, and has until this moment to do it.
    GivingUp { until: Duration },
}

/// One boot's end, as far as it has come.
#[derive(Debug)]
pub(super) struct Ends {
    /// `panic=` of the command line: seconds from a panic to the reset, 0 for none, negative for at once.
    panic_timeout: i64,
    stage: Stage,
    suspicion: Option<Suspicion>,
    /// The guest has said through pvpanic that its crash kernel takes over.
    crash_kernel: bool,
    /// Somebody wants the machine to end.
    hurried: bool,
    last: Option<Sample>,
    quiet_since: Duration,
    /// Samples in a row without any sign of life, and with one.
    dead: u32,
    alive: u32,
}

impl Ends {
    /// At the start of a boot with this `panic=`.
    pub(super) fn new(panic_timeout: i64) -> Self {
        Ends {
            panic_timeout,
            stage: Stage::Loader,
            suspicion: None,
            crash_kernel: false,
            hurried: false,
            last: None,
            quiet_since: Duration::ZERO,
            dead: 0,
            alive: 0,
        }
    }

    /// Whether [`Ends::sample`] wants to be called.
    pub(super) fn wants_samples(&self) -> bool {
        !matches!(self.suspicion, None | Some(Suspicion::GivingUp { .. }))
    }

    /// The guest's kernel says through pvpanic that it hands over to its crash kernel.
    pub(super) fn crash_kernel(&mut self) {
        self.crash_kernel = true;
    }

    /// A console has said a line of interest; `said` counts up to its end.
    pub(super) fn line(&mut self, now: Duration, console: ConsoleId, line: Line, said: u64) {
        match line {
            Line::LinuxVersion => *self = Ends { stage: Stage::Kernel, ..Ends::new(self.panic_timeout) },
            Line::InitRuns => self.stage = Stage::Program,
            Line::Panic => {
                if !matches!(self.suspicion, Some(Suspicion::Panic { .. })) {
                    let wait = PATIENCE.saturating_add(self.panic_delay());
                    self.suspect(now, Suspicion::Panic { wait, last_line: [None; 2] });
                }
            }
            Line::PanicEnd => {
                let mut last_line = match self.suspicion {
                    Some(Suspicion::Panic { last_line, .. }) => last_line,
                    _ => [None; 2],
                };
                match console {
                    ConsoleId::Ttys0 => last_line[0] = Some(said),
                    ConsoleId::Hvc0 => last_line[1] = Some(said),
                }
                self.suspect(now, Suspicion::Panic { wait: AFTER_LAST_LINE, last_line });
            }
            Line::RebootingIn(seconds) => {
                if let Some(Suspicion::Panic { wait, .. }) = &mut self.suspicion {
                    *wait = PATIENCE.saturating_add(Duration::from_secs(seconds));
                }
            }
            Line::EarlyPanic => self.suspect(now, Suspicion::EarlyPanic),
            Line::Restarting => {
                self.stage = Stage::Program;
                // The initramfs reboots in good order, too.
                if !matches!(self.suspicion, Some(Suspicion::GivingUp { .. })) {
                    self.suspect(now, Suspicion::Restart);
                }
            }
            Line::PowerDown | Line::Halted => {
                self.stage = Stage::Program;
                self.suspect(now, Suspicion::PowerOff);
            }
            Line::InitramfsGivesUp => {
                let until = now.saturating_add(GIVING_UP).saturating_add(self.panic_delay());
                self.suspect(now, Suspicion::GivingUp { until });
            }
        }
    }

    /// A look at the machine, [`TICK`] after the one before.
    pub(super) fn sample(&mut self, now: Duration, sample: Sample) -> Option<End> {
        let same = |last: Sample| (last.said, last.work) == (sample.said, sample.work);
        let silent = self.last.replace(sample).is_some_and(same);
        (self.dead, self.alive) = match sample.activity {
            Activity::Kernel | Activity::Halted if silent => (self.dead + 1, 0),
            Activity::Alive if silent => (0, self.alive + 1),
            _ => (0, 0),
        };
        if self.dead == 0 {
            self.quiet_since = now;
        }
        let disproved = match self.suspicion {
            // After its last line the kernel prints nothing.
            Some(Suspicion::Panic { last_line, .. }) => {
                last_line.iter().zip(sample.said).any(|(last, said)| last.is_some_and(|last| last != said))
            }
            _ => false,
        };
        if disproved || self.alive >= AGREE {
            self.suspicion = None;
            return None;
        }
        if self.dead < AGREE {
            return None;
        }
        self.concludes(now.saturating_sub(self.quiet_since), sample.activity)
    }

    /// What it comes to that the machine has been without a sign of life for so long.
    fn concludes(&self, quiet: Duration, activity: Activity) -> Option<End> {
        let halted = activity == Activity::Halted;
        match self.suspicion? {
            // The crash kernel boots in silence, perhaps.
            Suspicion::Panic { .. } if self.crash_kernel => None,
            Suspicion::Panic { wait, .. } => (self.hurried || quiet >= wait).then_some(End::Panicked),
            Suspicion::EarlyPanic => halted.then_some(End::Panicked),
            Suspicion::PowerOff => (halted || quiet >= PATIENCE).then_some(End::PoweredOff),
            Suspicion::Restart => (halted || quiet >= PATIENCE).then_some(End::Reset),
            Suspicion::GivingUp { .. } => None,
        }
    }

    /// The power button is pressed: a guest that has panicked does not hear it, and ends now, or as soon as it is clear that
    /// it has.
    pub(super) fn button(&mut self) -> Option<End> {
        self.hurried = true;
        self.last
            .filter(|_| self.dead >= AGREE)
            .and_then(|last| self.concludes(Duration::ZERO, last.activity))
    }

    /// The guest resets the machine.
    pub(super) fn reset(&self, now: Duration) -> End {
        match self.suspicion {
            Some(Suspicion::Panic { .. } | Suspicion::EarlyPanic) => End::Panicked,
            Some(Suspicion::GivingUp { until }) if now <= until => End::GaveUp,
            _ => End::Reset,
        }
    }

    /// A vCPU ends in a triple fault: some kernels restart by one. `None` is a crash.
    pub(super) fn triple_fault(&self, now: Duration) -> Option<End> {
        match self.suspicion? {
            Suspicion::PowerOff => Some(End::PoweredOff),
            _ => Some(self.reset(now)),
        }
    }

    /// Whether a program has run in this boot. A guest that is no Linux, and speaks, is left to itself; one that nobody can
    /// see or hear has not come up.
    fn came_up(&self, said: u64) -> bool {
        match self.stage {
            Stage::Loader => said > 0,
            Stage::Kernel => false,
            Stage::Program => true,
        }
    }

    fn panic_delay(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.panic_timeout).unwrap_or(0))
    }

    fn suspect(&mut self, now: Duration, what: Suspicion) {
        self.suspicion = Some(what);
        (self.last, self.quiet_since, self.dead, self.alive) = (None, now, 0, 0);
    }
}

/// `panic=` of a command line: the last one counts, and what follows `--` is for init.
pub(super) fn panic_timeout(cmdline: &str) -> i64 {
    let words = cmdline.split_whitespace().take_while(|word| *word != "--");
    words.filter_map(|word| word.strip_prefix("panic=")?.parse().ok()).last().unwrap_or(0)
}
