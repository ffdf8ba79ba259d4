//! The loop of a worker's thread: executes commands, and calls devices for doorbells, ready descriptors and timers.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use super::{Activation, BELL, Command, SlotId, Stopped};
use crate::device::{Context, Device, KICK, SLOT_TOKENS, TIMER};
use crate::poll::{Interest, Poller, Token};
use crate::queue::{Queue, QueueFault};

/// A device at work.
#[derive(Debug)]
struct Slot<P> {
    id: SlotId,
    job: Activation<P>,
    activity: Activity,
    watched: Vec<(RawFd, Token)>,
    deadline: Option<Instant>,
}

/// State of a device on its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    Working,
    /// From [`Command::Quiesce`] to [`Command::Go`].
    Quiesced,
    /// It could not start: only its driver's reset helps.
    Failed,
}

/// The loop of a worker's thread.
#[derive(Debug)]
pub(super) struct WorkerLoop<P: Poller> {
    poller: P,
    /// An index is used again when its device has left.
    slots: Vec<Option<Slot<P>>>,
    commands: Receiver<Command<P>>,
}

impl<P: Poller> WorkerLoop<P> {
    pub(super) fn new(poller: P, commands: Receiver<Command<P>>) -> Self {
        WorkerLoop { poller, slots: Vec::new(), commands }
    }

    /// Runs until [`Command::Quit`] or an error of the poller.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        // Commands may have come before the bell was watched.
        let mut keep_running = self.execute_commands();
        while keep_running {
            let deadline = self.slots.iter().flatten().filter_map(|slot| slot.deadline).min();
            let limit = deadline.map(|time| time.saturating_duration_since(Instant::now()));
            self.poller.wait(limit, &mut ready)?;
            // Events before commands: they are for the devices that are here now, not for those that come next.
            let called = ready.contains(&BELL);
            for token in ready.drain(..) {
                self.dispatch(token);
            }
            if called {
                keep_running = self.execute_commands();
            }
            if deadline.is_some() {
                self.run_timers();
            }
        }
        for index in 0..self.slots.len() {
            self.detach(index);
        }
        Ok(())
    }

    /// Executes all commands; `false` if one of them was to quit.
    fn execute_commands(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Start(id, job)) => self.attach(id, *job),
                Ok(Command::Stop(id, answer)) => {
                    if let Some(stopped) = self.find(id).and_then(|index| self.detach(index)) {
                        // The caller may have dropped the receiver; the device ends here then.
                        let _ = answer.send(stopped);
                    }
                }
                Ok(Command::Quiesce(id, answer)) => {
                    if let Some(index) = self.find(id) {
                        self.quiesce(index);
                    }
                    let _ = answer.send(());
                }
                Ok(Command::Go(id)) => {
                    if let Some(index) =
                        self.find(id).filter(|index| self.activity(*index) == Some(Activity::Quiesced))
                    {
                        self.begin(index);
                    }
                }
                Ok(Command::Tell(id, message)) => {
                    if let Some(index) = self.find(id) {
                        let is_working = self.activity(index) == Some(Activity::Working);
                        self.with(index, |device, cx| Ok(device.tell(message, is_working.then_some(cx))?));
                    }
                }
                Ok(Command::Quit) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    fn find(&self, id: SlotId) -> Option<usize> {
        self.slots.iter().position(|slot| slot.as_ref().is_some_and(|slot| slot.id == id))
    }

    fn activity(&self, index: usize) -> Option<Activity> {
        self.slots.get(index)?.as_ref().map(|slot| slot.activity)
    }

    fn set_activity(&mut self, index: usize, activity: Activity) {
        if let Some(Some(slot)) = self.slots.get_mut(index) {
            slot.activity = activity;
        }
    }

    fn attach(&mut self, id: SlotId, job: Activation<P>) {
        let slot = Slot { id, job, activity: Activity::Quiesced, watched: Vec::new(), deadline: None };
        let index = match self.slots.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        if let Some(free) = self.slots.get_mut(index) {
            *free = Some(slot);
        }
        self.begin(index);
    }

    /// Starts a device that is idle.
    fn begin(&mut self, index: usize) {
        self.set_activity(index, Activity::Working);
        if !self.with(index, |device, cx| device.start(cx).map_err(Fault::Host)) {
            // Half started: it gets no event before its driver resets it.
            self.unwatch_all(index);
            self.set_activity(index, Activity::Failed);
            return;
        }
        self.watch_doorbells(index);
    }

    fn watch_doorbells(&mut self, index: usize) {
        let kicks = match self.slots.get(index) {
            Some(Some(slot)) => slot.job.kicks.clone(),
            _ => return,
        };
        for (queue, kick) in &kicks {
            let token = base(index) + KICK + Token::from(*queue);
            // Clear earlier kicks: the queue is served below in any case. An eventfd at zero gives an error.
            let _ = kick.read();
            match self.poller.watch(kick.as_raw_fd(), token, Interest::Read) {
                Ok(()) => {
                    if let Some(Some(slot)) = self.slots.get_mut(index) {
                        slot.watched.push((kick.as_raw_fd(), token));
                    }
                }
                Err(error) => {
                    self.with(index, |_, _| Err(Fault::Host(error)));
                }
            }
            // Serve what was made available before the doorbell was watched.
            self.kicked(index, *queue);
        }
    }

    /// Ends a device's work. Its queues keep their positions.
    fn quiesce(&mut self, index: usize) {
        if self.activity(index) != Some(Activity::Working) {
            return;
        }
        self.end(index);
        self.set_activity(index, Activity::Quiesced);
    }

    fn end(&mut self, index: usize) {
        self.with(index, |device, cx| {
            device.stop(cx);
            Ok(())
        });
        // This also submits what an io_uring engine has collected.
        self.unwatch_all(index);
        let Some(Some(slot)) = self.slots.get_mut(index) else { return };
        // Interrupt now for completed chains: a queue's saved state does not have it.
        for queue in slot.job.queues.iter_mut().flatten() {
            if let Err(fault) = queue.notify() {
                log::debug!("{}: {fault} while it stopped", slot.job.name);
            }
        }
    }

    /// Takes a device off its slot, its work ended.
    fn detach(&mut self, index: usize) -> Option<Stopped<P>> {
        if self.activity(index)? != Activity::Quiesced {
            self.end(index);
        }
        let slot = self.slots.get_mut(index)?.take()?;
        let queues = slot.job.queues.iter().map(|queue| queue.as_ref().map(Queue::state)).collect();
        Some(Stopped { device: slot.job.device, queues })
    }

    fn unwatch_all(&mut self, index: usize) {
        let Some(Some(slot)) = self.slots.get_mut(index) else { return };
        slot.deadline = None;
        for (fd, token) in slot.watched.drain(..) {
            if let Err(error) = self.poller.unwatch(fd, token) {
                log::debug!("{}: {error} while it stopped to listen", slot.job.name);
            }
        }
    }

    fn dispatch(&mut self, token: Token) {
        let Some(at) = token.checked_sub(SLOT_TOKENS) else { return };
        let (Ok(index), token) = (usize::try_from(at / SLOT_TOKENS), at % SLOT_TOKENS) else { return };
        match token.checked_sub(KICK).map(u16::try_from) {
            Some(Ok(queue)) if token != TIMER => {
                if let Some(Some(slot)) = self.slots.get(index) {
                    slot.job.counters.kicks.add_one();
                }
                self.kicked(index, queue);
            }
            _ => {
                self.with(index, |device, cx| Ok(device.ready(token, cx)?));
            }
        }
    }

    fn kicked(&mut self, index: usize, queue: u16) {
        self.with(index, |device, cx| {
            // A broken queue is not there: its kicks go nowhere.
            if cx.queue(queue).is_some() {
                device.kicked(queue, cx)?;
            }
            Ok(())
        });
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        for index in 0..self.slots.len() {
            let Some(Some(slot)) = self.slots.get_mut(index) else { continue };
            if slot.deadline.is_some_and(|time| time <= now) {
                slot.deadline = None;
                self.dispatch(base(index) + TIMER);
            }
        }
    }

    /// Calls the device of a slot; a fault breaks its queue. Whether there was none.
    fn with(
        &mut self,
        index: usize,
        call: impl FnOnce(&mut dyn Device<Poller = P>, &mut Context<'_, P>) -> Result<(), Fault>,
    ) -> bool {
        let Some(Some(slot)) = self.slots.get_mut(index) else { return false };
        let job = &mut slot.job;
        let mut context = Context {
            queues: &mut job.queues,
            features: job.features,
            memory: &job.memory,
            poller: &mut self.poller,
            watched: &mut slot.watched,
            base: base(index),
            deadline: &mut slot.deadline,
        };
        match call(job.device.as_mut(), &mut context) {
            Ok(()) => return true,
            Err(Fault::Queue(fault)) => {
                if let Some(queue) = job.queues.get_mut(usize::from(fault.queue)) {
                    *queue = None;
                }
                job.shared.fail(log::Level::Warn, &fault);
            }
            Err(Fault::Host(error)) => {
                let reason = format!("the host refused what it needs: {error}");
                job.shared.fail(log::Level::Error, &reason);
            }
        }
        false
    }
}

/// Devices are left only after a panic or an error of the poller: they are marked as failed.
impl<P: Poller> Drop for WorkerLoop<P> {
    fn drop(&mut self) {
        let waiting =
            std::iter::from_fn(|| self.commands.try_recv().ok()).filter_map(|command| match command {
                Command::Start(_, job) => Some(job.shared),
                _ => None,
            });
        let attached = self.slots.iter().flatten().map(|slot| slot.job.shared.clone());
        for shared in attached.chain(waiting) {
            shared.fail(log::Level::Error, &"its thread has ended");
        }
    }
}

/// Why a device cannot go on.
#[derive(Debug)]
enum Fault {
    Queue(QueueFault),
    Host(io::Error),
}

impl From<QueueFault> for Fault {
    fn from(fault: QueueFault) -> Self {
        Fault::Queue(fault)
    }
}

/// The first token of a slot; those below are the worker's own.
fn base(index: usize) -> Token {
    Token::try_from(index).unwrap_or(0).saturating_add(1).saturating_mul(SLOT_TOKENS)
}
