//! What can be asked of a running machine: messages to its supervisor, and looks at what that has published.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use virtio::balloon::{self, BalloonControl};

use super::events::Publisher;
use super::supervisor::{Command, Event, UrgentRequests};
use super::{BalloonError, Events, Exit, ExitCell, MachineState, PauseError, Stats};
use crate::spec::MemSize;

/// Asks things of a running machine; it may be cloned and sent to other threads. All of it is harmless once the machine
/// has ended.
#[derive(Debug, Clone)]
pub struct Controls {
    pub(super) events: Sender<Event>,
    pub(super) urgent: Arc<UrgentRequests>,
    pub(super) balloon: BalloonControl,
    /// What the guest has.
    pub(super) mem: MemSize,
    pub(super) publisher: Publisher,
    pub(super) outcome: Arc<ExitCell>,
}

impl Controls {
    /// The memory balloon: how much of its memory the guest shall leave to the host, how much it does, and what it says of
    /// its memory. [`Controls::set_balloon`] says how much it shall.
    pub fn balloon(&self) -> &BalloonControl {
        &self.balloon
    }

    /// From now on the guest shall leave `mib` MiB of its memory to the host; 0 gives all of it back. This is a wish, and
    /// stays one across reboots: a guest with a driver for the balloon (Linux: the module `virtio_balloon`) follows it in
    /// its own time, one without never does. [`MemoryStats::balloon`](crate::MemoryStats::balloon) says how far it is.
    ///
    /// # Errors
    /// [`BalloonError`], and nothing has changed.
    pub fn set_balloon(&self, mib: u64) -> Result<(), BalloonError> {
        if mib >= self.mem.mib() {
            return Err(BalloonError::NothingLeft { mib, mem: self.mem });
        }
        if self.outcome.has_ended() {
            return Err(BalloonError::Ended);
        }
        balloon::set_target(&self.balloon, mib);
        Ok(())
    }

    /// Waits until the machine has ended, all its console output is out and everything it had is freed. For a writer that does
    /// not take the last output it waits five seconds; then what is left is lost, and the writer's thread stays with it.
    pub fn wait(&self) -> Arc<Exit> {
        loop {
            // Without a deadline it gives an end the first time.
            if let Some(exit) = self.outcome.wait(None) {
                return exit;
            }
        }
    }

    /// As [`Controls::wait`], for at most `limit`; `None` if the machine runs on.
    pub fn wait_for(&self, limit: Duration) -> Option<Arc<Exit>> {
        // A limit beyond what a clock can say is none.
        self.outcome.wait(Instant::now().checked_add(limit))
    }

    /// How the machine ended; `None` as long as it has not. Never waits.
    pub fn exit_status(&self) -> Option<Arc<Exit>> {
        self.outcome.exit()
    }

    /// Presses the power button. What comes of it is up to the guest: it needs a driver for the button (Linux: the
    /// module `button`) and something that acts on it (systemd-logind, acpid).
    pub fn power_button(&self) {
        self.send(Command::PowerButton);
    }

    /// Resets the machine: the guest is stopped where it is and boots again. Resets that are asked for before the machine
    /// has come to the first are one.
    pub fn reset(&self) {
        if self.urgent.reset() {
            self.send(Command::Reset);
        }
    }

    /// Ends the machine where it is.
    pub fn kill(&self) {
        self.urgent.kill();
        self.send(Command::Kill);
    }

    /// Brings the machine to rest: its processors stop between two instructions, then its devices, whose work that is
    /// under way is brought to an end. The guest sees its clock jump when it goes on, to the right time. Pausing a
    /// machine that rests already does nothing.
    ///
    /// # Errors
    /// [`PauseError`]. After [`PauseError::TimedOut`] the machine still comes to rest, unless it is resumed before.
    pub fn pause(&self, limit: Duration) -> Result<(), PauseError> {
        self.ask(Command::Pause).recv_timeout(limit).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => Err(PauseError::TimedOut(limit)),
            // Nobody is there to answer.
            RecvTimeoutError::Disconnected => Err(PauseError::Ended),
        })
    }

    /// Lets a machine go on that was paused, or is about to be. It does when this returns. One that boots just now, or waits for
    /// what the host has in flight on a disk, answers after that.
    pub fn resume(&self) {
        // No answer: it has ended.
        let _ = self.ask(Command::Resume).recv();
    }

    /// What the machine has done since its guest booted last; `None` once it has ended. One that boots just now answers when
    /// it has, and one that comes to rest when the host has done what a disk was asked for.
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
        self.publisher.listen()
    }

    /// Where the answer comes, or the end.
    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Receiver<T> {
        let (answer, answered) = mpsc::channel();
        self.send(command(answer));
        answered
    }

    fn send(&self, command: Command) {
        let apart = matches!(command, Command::PowerButton | Command::Pause(_) | Command::Resume(_));
        // Nobody listens any more once the machine has ended, which is what makes it harmless.
        let _ = self.events.send(Event::Command(command));
        if apart {
            self.urgent.other();
        }
    }
}
