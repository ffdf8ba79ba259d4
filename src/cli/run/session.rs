//! The run itself: what happens to the machine and its command, and how all of it ended.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::args::RunArgs;
use super::error::RunError;
use super::output::ConsoleTail;
use super::ports::{News, Ports, READ_PORTS, listen};
use crate::cli::exit::Status;
use crate::cli::report;
use crate::host::signals::Signals;
use crate::machine::supplies::Supplies;
use crate::machine::{Exit, Machine};
use crate::spec::Spec;

/// How long what is left of the output may take to leave once the machine has ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Why a run is over.
#[derive(Debug)]
enum Over {
    /// The command has ended, and all its output is there.
    Done(u8),
    /// The machine has.
    Machine,
    /// It did not come up.
    BootLimit,
    /// `--timeout`.
    Limit,
    /// A signal.
    Signal(libc::c_int),
}

/// Runs the machine until the command has ended, or something else has.
pub(super) fn run(args: &RunArgs, spec: &Spec, supplies: Supplies, token: &str) -> Result<Status, RunError> {
    // Before any thread exists, so that all of them have the signals blocked.
    let signals = Signals::block().map_err(|source| RunError::Host { what: "to block signals", source })?;
    let (ports, tail) = (Ports::new(), ConsoleTail::new(args.verbose));
    let supplies = Supplies { streams: ports.streams(), ..supplies };
    let started = Instant::now();
    let machine = Machine::start_supplied(spec, Box::new(tail.clone()), supplies)?;
    let news = listen(args, &machine, &ports, signals, token)
        .map_err(|source| RunError::Host { what: "a thread", source })?;
    let mut run = Run { args, started, up: false, ended: None, complete: [false; 2], closed: 0 };
    let over = run.follow(&news);
    machine.kill();
    let exit = machine.wait();
    ports.close();
    run.drain(&news);
    let (text, status) = run.verdict(&over, &exit);
    if let Some(text) = text {
        report::say(&format_args!("minivmm: {text}\n"));
        // A guest that is shown has said it already.
        if !args.verbose && !matches!(over, Over::Signal(_)) {
            report::say(&format_args!("minivmm: {tail}"));
        }
    }
    Ok(status)
}

/// What is known of a run.
#[derive(Debug)]
struct Run<'a> {
    args: &'a RunArgs,
    started: Instant,
    up: bool,
    ended: Option<u8>,
    complete: [bool; 2],
    closed: usize,
}

impl Run<'_> {
    /// Follows the run until it is over.
    fn follow(&mut self, news: &Receiver<News>) -> Over {
        loop {
            let limit = self.args.limit();
            let boot = (!self.up).then(|| self.args.boot_limit());
            let soonest = [limit, boot].into_iter().flatten().min();
            let passed = self.started.elapsed();
            let left = soonest.map_or(Duration::from_secs(3600), |limit| limit.saturating_sub(passed));
            if left.is_zero() {
                return if limit.is_some_and(|limit| limit <= passed) {
                    Over::Limit
                } else {
                    Over::BootLimit
                };
            }
            // What comes last of all is the machine's end.
            let Ok(said) = news.recv_timeout(left) else { continue };
            if let Some(over) = self.note(&said) {
                return over;
            }
        }
    }

    fn note(&mut self, said: &News) -> Option<Over> {
        match *said {
            News::Up => self.up = true,
            News::Ended(status) => self.ended = self.ended.or(Some(status)),
            News::Complete(index, now) => {
                if let Some(complete) = self.complete.get_mut(index) {
                    *complete = now;
                }
            }
            News::Closed => self.closed += 1,
            News::MachineEnded => return Some(Over::Machine),
            News::Signal(number) => return Some(Over::Signal(number)),
        }
        self.done().map(Over::Done)
    }

    fn done(&self) -> Option<u8> {
        self.ended.filter(|_| self.complete == [true; 2])
    }

    /// Waits until everything that came before the machine's end is out.
    fn drain(&mut self, news: &Receiver<News>) {
        let deadline = Instant::now() + DRAIN_LIMIT;
        while self.closed < READ_PORTS {
            let left = deadline.saturating_duration_since(Instant::now());
            match news.recv_timeout(left) {
                Ok(News::MachineEnded | News::Signal(_)) => {}
                Ok(said) => drop(self.note(&said)),
                Err(_) => return,
            }
        }
    }

    /// What there is to say, and how the command ends.
    fn verdict(&self, over: &Over, exit: &Exit) -> (Option<String>, Status) {
        let seconds = |limit: Duration| limit.as_secs();
        match over {
            Over::Done(status) => (None, Status::Command(*status)),
            Over::Machine => match self.done() {
                Some(status) => (None, Status::Command(status)),
                None => self.machine_ended(exit),
            },
            Over::BootLimit => {
                let limit = seconds(self.args.boot_limit());
                (
                    Some(format!("the machine did not come up within {limit} s (--boot-timeout)")),
                    Status::RunNeverUp,
                )
            }
            Over::Limit => {
                let limit = seconds(self.args.limit().unwrap_or_default());
                let what = match (self.up, self.ended) {
                    (false, _) => "the machine was not up",
                    (true, None) => "the command had not ended",
                    (true, Some(_)) => "the command's output had not been read",
                };
                (Some(format!("{what} after {limit} s (--timeout)")), Status::RunTimedOut)
            }
            Over::Signal(number) => {
                let status = Status::Signal(u8::try_from(*number).unwrap_or(0));
                (Some(format!("ended by signal {number}")), status)
            }
        }
    }

    fn machine_ended(&self, exit: &Exit) -> (Option<String>, Status) {
        let before = if self.up { "before its command had ended" } else { "before it was up" };
        let status = if self.up { Status::RunGuestEnded } else { Status::RunNeverUp };
        let (what, status) = match exit {
            Exit::Panicked => ("the guest's kernel panicked".to_owned(), Status::RunPanicked),
            Exit::PoweredOff => (format!("the guest switched itself off {before}"), status),
            Exit::Rebooted => (format!("the guest rebooted {before}"), status),
            Exit::Crashed(crash) => (format!("the guest crashed {before}: {crash}"), status),
            Exit::Failed(error) => (report::chain(error), Status::RunFailed),
            Exit::Killed => (format!("the machine was ended {before}"), status),
        };
        (Some(what), status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_is_done_when_its_status_and_both_ends_of_its_output_are_there() {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: RunArgs,
        }
        let args = Line::parse_from(["run", "true"]).args;
        let mut run = Run {
            args: &args,
            started: Instant::now(),
            up: false,
            ended: None,
            complete: [false; 2],
            closed: 0,
        };
        for said in [
            News::Up,
            News::Complete(0, true),
            News::Ended(3),
            News::Complete(0, false),
            News::Complete(1, true),
        ] {
            assert!(run.note(&said).is_none(), "{said:?}");
        }
        // A second status is nobody's.
        assert!(run.note(&News::Ended(4)).is_none());
        assert!(matches!(run.note(&News::Complete(0, true)), Some(Over::Done(3))));
        assert_eq!(run.verdict(&Over::Machine, &Exit::PoweredOff).1, Status::Command(3));
        run.ended = None;
        assert_eq!(run.verdict(&Over::Machine, &Exit::PoweredOff).1, Status::RunGuestEnded);
        assert_eq!(run.verdict(&Over::Machine, &Exit::Panicked).1, Status::RunPanicked);
        run.up = false;
        assert_eq!(run.verdict(&Over::Machine, &Exit::Rebooted).1, Status::RunNeverUp);
    }
}
