//! Worker threads: each owns devices and their queues while their drivers are at work.
//!
//! A thread begins with the first device that starts on it, so that a device without a driver costs nothing. The command
//! stop serves reset, pause, saving and removal: it gives back the device and the positions of its queues. The command
//! quiesce keeps a device idle on its slot until go. Commands are executed in order, so the caller of quiesce and go need
//! not wait for either.

use std::fmt;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use devices::thread::{self, Role};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use std::os::fd::{AsRawFd, RawFd};

use crate::counters::Counters;
use crate::device::{Context, Device, KICK, Message, SLOT_TOKENS, TIMER};
use crate::memory::Memory;
use crate::poll::{Interest, Poller, Token};
use crate::queue::{Queue, QueueFault, QueueState};
use crate::shared_registers::SharedRegisters;

/// The worker's own token: there are commands.
const BELL: Token = 0;

/// Makes what a worker waits in, on the worker's thread.
pub type MakePoller<P> = Box<dyn FnOnce() -> io::Result<P> + Send>;

/// A device with what it needs to run.
#[derive(Debug)]
pub(crate) struct Activation<P> {
    pub(crate) device: Box<dyn Device<Poller = P>>,
    pub(crate) name: String,
    pub(crate) queues: Vec<Option<Queue>>,
    /// The doorbells of the queues that this thread serves.
    pub(crate) kicks: Vec<(u16, Arc<EventFd>)>,
    pub(crate) features: u64,
    pub(crate) memory: Memory,
    pub(crate) shared: Arc<SharedRegisters>,
    pub(crate) counters: Arc<Counters>,
}

/// What [`Worker::stop`] gives back.
#[derive(Debug)]
pub(crate) struct Stopped<P> {
    pub(crate) device: Box<dyn Device<Poller = P>>,
    /// Where each queue stands; `None` for one that did not work.
    pub(crate) queues: Vec<Option<QueueState>>,
}

/// A device that runs on a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotId(u64);

#[derive(Debug)]
enum Command<P> {
    Start(SlotId, Box<Activation<P>>),
    Stop(SlotId, Sender<Stopped<P>>),
    Quiesce(SlotId, Sender<()>),
    Go(SlotId),
    Tell(SlotId, Message),
    Quit,
}

/// A thread for one device or several. Dropping it stops them and ends the thread.
pub struct Worker<P: Poller + 'static> {
    name: String,
    state: Mutex<State<P>>,
}

impl<P: Poller> fmt::Debug for Worker<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("name", &self.name).finish_non_exhaustive()
    }
}

struct State<P> {
    make: Option<MakePoller<P>>,
    running: Option<Running<P>>,
    /// How many there were; 64 bits, because a guest may reset its devices for years.
    slots: u64,
}

struct Running<P> {
    commands: Sender<Command<P>>,
    bell: Arc<EventFd>,
    thread: JoinHandle<()>,
}

impl<P: Poller + 'static> Worker<P> {
    /// One whose thread is called `name` (at most 15 bytes of it are seen in the host) and waits in what `make` makes.
    pub fn new(name: impl Into<String>, make: MakePoller<P>) -> Arc<Self> {
        let state = State { make: Some(make), running: None, slots: 0 };
        Arc::new(Worker { name: name.into(), state: Mutex::new(state) })
    }

    /// Starts its thread now, so that what it waits in is made beside other work; [`Worker::start`] does it otherwise. `None` if
    /// the thread is there already.
    ///
    /// # Errors
    /// The host refused a thread or a file descriptor.
    pub fn begin(&self) -> io::Result<Option<Ready>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { make, running, .. } = &mut *state;
        let Some(make) = make.take() else { return Ok(None) };
        let (made, ready) = mpsc::channel();
        *running = Some(spawn(&self.name, make, Some(made))?);
        Ok(Some(Ready(ready)))
    }

    /// Starts `job`'s device.
    ///
    /// # Errors
    /// The host refused a thread or a file descriptor; the job comes back.
    pub(crate) fn start(&self, job: Activation<P>) -> Result<SlotId, (io::Error, Box<Activation<P>>)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let job = Box::new(job);
        let State { make, running, slots } = &mut *state;
        let running = match running {
            Some(running) => running,
            None => match make.take().ok_or_else(gone).and_then(|make| spawn(&self.name, make, None)) {
                Ok(new) => running.insert(new),
                Err(error) => return Err((error, job)),
            },
        };
        let id = SlotId(*slots);
        *slots += 1;
        match running.send(Command::Start(id, job)) {
            Ok(()) => Ok(id),
            Err(Some(Command::Start(_, job))) => Err((gone(), job)),
            Err(_) => Ok(id),
        }
    }

    /// Stops a device; it comes through the channel when its work has ended. The channel closes if the thread has died.
    pub(crate) fn stop(&self, id: SlotId) -> Receiver<Stopped<P>> {
        let (sender, receiver) = mpsc::channel();
        self.send(Command::Stop(id, sender));
        receiver
    }

    /// Has a device end its work and stay idle until [`Worker::go`]: no guest memory changes and no chain is taken. The
    /// channel gets a value when that is so; it closes without one if the thread has died.
    pub(crate) fn quiesce(&self, id: SlotId) -> Receiver<()> {
        let (sender, receiver) = mpsc::channel();
        self.send(Command::Quiesce(id, sender));
        receiver
    }

    /// Has a quiesced device continue at its positions. Does nothing to others.
    pub(crate) fn go(&self, id: SlotId) {
        self.send(Command::Go(id));
    }

    /// Tells a device something.
    pub(crate) fn tell(&self, id: SlotId, message: Message) {
        self.send(Command::Tell(id, message));
    }

    fn send(&self, command: Command<P>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &state.running {
            // A thread that died has dropped the receiver; a caller that waits for an answer sees that.
            let _ = running.send(command);
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the device's thread has ended")
}

impl<P> Running<P> {
    /// The command comes back if the thread is gone.
    fn send(&self, command: Command<P>) -> Result<(), Option<Command<P>>> {
        self.commands.send(command).map_err(|error| Some(error.0))?;
        // The counter has room for 2^64 commands.
        self.bell.write(1).map_err(|_| None)
    }
}

impl<P: Poller + 'static> Drop for Worker<P> {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = state.running.take() {
            let _ = running.send(Command::Quit);
            // A panic there was printed when it happened.
            let _ = running.thread.join();
        }
    }
}

/// A worker's thread that was begun, and makes what it waits in.
#[derive(Debug)]
pub struct Ready(Receiver<io::Result<()>>);

impl Ready {
    /// Waits until it is made.
    ///
    /// # Errors
    /// The host refused it; no device of this worker would work.
    pub fn wait(self) -> io::Result<()> {
        self.0.recv().unwrap_or_else(|_| Err(gone()))
    }
}

fn spawn<P: Poller + 'static>(
    name: &str,
    make: MakePoller<P>,
    made: Option<Sender<io::Result<()>>>,
) -> io::Result<Running<P>> {
    let (commands, receiver) = mpsc::channel();
    let bell = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (own_bell, own_name) = (bell.clone(), name.to_owned());
    let thread = thread::spawn(Role::Device, name, move || {
        let poller = make().and_then(|mut poller| {
            poller.watch(own_bell.as_raw_fd(), BELL, Interest::Read)?;
            Ok(poller)
        });
        let failed = |error| log::error!("{own_name}: its thread cannot wait for work: {error}");
        match poller {
            Ok(poller) => {
                if let Some(made) = made {
                    let _ = made.send(Ok(()));
                }
                WorkerLoop { poller, slots: Vec::new(), commands: receiver }.run().unwrap_or_else(failed);
            }
            Err(error) => {
                match made {
                    Some(made) => drop(made.send(Err(error))),
                    None => failed(error),
                }
                refuse(&receiver);
            }
        }
    })?;
    Ok(Running { commands, bell, thread })
}

/// The loop of a thread whose poller could not be made: it marks each device as failed.
fn refuse<P>(commands: &Receiver<Command<P>>) {
    for command in commands {
        match command {
            Command::Start(_, job) => {
                job.shared.fail(log::Level::Error, &"the host gives its thread nothing to wait in");
            }
            Command::Stop(..) | Command::Quiesce(..) | Command::Go(_) | Command::Tell(..) => {}
            Command::Quit => return,
        }
    }
}

/// A device at work.
#[derive(Debug)]
struct Slot<P> {
    id: SlotId,
    job: Activation<P>,
    at: At,
    watched: Vec<(RawFd, Token)>,
    deadline: Option<Instant>,
}

/// What a device on its slot is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Work,
    /// From [`Command::Quiesce`] to [`Command::Go`].
    Rest,
    /// It could not start: only its driver's reset helps.
    Fault,
}

/// The thread's side.
#[derive(Debug)]
struct WorkerLoop<P: Poller> {
    poller: P,
    /// A place is used again when its device has left.
    slots: Vec<Option<Slot<P>>>,
    commands: Receiver<Command<P>>,
}

impl<P: Poller> WorkerLoop<P> {
    fn run(&mut self) -> io::Result<()> {
        let mut ready = Vec::new();
        // Commands may have come before the bell was watched.
        let mut go_on = self.obey();
        while go_on {
            let deadline = self.slots.iter().flatten().filter_map(|slot| slot.deadline).min();
            let limit = deadline.map(|time| time.saturating_duration_since(Instant::now()));
            self.poller.wait(limit, &mut ready)?;
            // Events before commands: they are for the devices that are here now, not for those that come next.
            let called = ready.contains(&BELL);
            for token in ready.drain(..) {
                self.dispatch(token);
            }
            if called {
                go_on = self.obey();
            }
            if deadline.is_some() {
                self.ring_alarms();
            }
        }
        for place in 0..self.slots.len() {
            self.leave(place);
        }
        Ok(())
    }

    /// Executes all commands; `false` if one of them was to quit.
    fn obey(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Start(id, job)) => self.enter(id, *job),
                Ok(Command::Stop(id, answer)) => {
                    if let Some(stopped) = self.find(id).and_then(|place| self.leave(place)) {
                        // The caller may have dropped the receiver; the device ends here then.
                        let _ = answer.send(stopped);
                    }
                }
                Ok(Command::Quiesce(id, answer)) => {
                    if let Some(place) = self.find(id) {
                        self.rest(place);
                    }
                    let _ = answer.send(());
                }
                Ok(Command::Go(id)) => {
                    if let Some(place) = self.find(id).filter(|place| self.at(*place) == Some(At::Rest)) {
                        self.begin(place);
                    }
                }
                Ok(Command::Tell(id, message)) => {
                    if let Some(place) = self.find(id) {
                        let works = self.at(place) == Some(At::Work);
                        self.with(place, |device, cx| Ok(device.tell(message, works.then_some(cx))?));
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

    fn at(&self, place: usize) -> Option<At> {
        self.slots.get(place)?.as_ref().map(|slot| slot.at)
    }

    fn set_at(&mut self, place: usize, at: At) {
        if let Some(Some(slot)) = self.slots.get_mut(place) {
            slot.at = at;
        }
    }

    fn enter(&mut self, id: SlotId, job: Activation<P>) {
        let slot = Slot { id, job, at: At::Rest, watched: Vec::new(), deadline: None };
        let place = match self.slots.iter().position(Option::is_none) {
            Some(place) => place,
            None => {
                self.slots.push(None);
                self.slots.len() - 1
            }
        };
        if let Some(free) = self.slots.get_mut(place) {
            *free = Some(slot);
        }
        self.begin(place);
    }

    /// Starts a device that is idle.
    fn begin(&mut self, place: usize) {
        self.set_at(place, At::Work);
        if !self.with(place, |device, cx| device.start(cx).map_err(Fault::Host)) {
            // Half started: it gets no event before its driver resets it.
            self.unwatch_all(place);
            self.set_at(place, At::Fault);
            return;
        }
        self.hear_kicks(place);
    }

    fn hear_kicks(&mut self, place: usize) {
        let kicks = match self.slots.get(place) {
            Some(Some(slot)) => slot.job.kicks.clone(),
            _ => return,
        };
        for (queue, kick) in &kicks {
            let token = base(place) + KICK + Token::from(*queue);
            // Clear earlier kicks: the queue is served below in any case. An eventfd at zero gives an error.
            let _ = kick.read();
            match self.poller.watch(kick.as_raw_fd(), token, Interest::Read) {
                Ok(()) => {
                    if let Some(Some(slot)) = self.slots.get_mut(place) {
                        slot.watched.push((kick.as_raw_fd(), token));
                    }
                }
                Err(error) => {
                    self.with(place, |_, _| Err(Fault::Host(error)));
                }
            }
            // Serve what was made available before the doorbell was watched.
            self.kicked(place, *queue);
        }
    }

    /// Ends a device's work. Its queues keep their positions.
    fn rest(&mut self, place: usize) {
        if self.at(place) != Some(At::Work) {
            return;
        }
        self.end(place);
        self.set_at(place, At::Rest);
    }

    fn end(&mut self, place: usize) {
        self.with(place, |device, cx| {
            device.stop(cx);
            Ok(())
        });
        // This also submits what an io_uring engine has collected.
        self.unwatch_all(place);
        let Some(Some(slot)) = self.slots.get_mut(place) else { return };
        // Interrupt now for completed chains: a queue's saved state does not have it.
        for queue in slot.job.queues.iter_mut().flatten() {
            if let Err(fault) = queue.notify() {
                log::debug!("{}: {fault} while it stopped", slot.job.name);
            }
        }
    }

    /// Takes a device off its slot, its work ended.
    fn leave(&mut self, place: usize) -> Option<Stopped<P>> {
        if self.at(place)? != At::Rest {
            self.end(place);
        }
        let slot = self.slots.get_mut(place)?.take()?;
        let queues = slot.job.queues.iter().map(|queue| queue.as_ref().map(Queue::state)).collect();
        Some(Stopped { device: slot.job.device, queues })
    }

    fn unwatch_all(&mut self, place: usize) {
        let Some(Some(slot)) = self.slots.get_mut(place) else { return };
        slot.deadline = None;
        for (fd, token) in slot.watched.drain(..) {
            if let Err(error) = self.poller.unwatch(fd, token) {
                log::debug!("{}: {error} while it stopped to listen", slot.job.name);
            }
        }
    }

    fn dispatch(&mut self, token: Token) {
        let Some(at) = token.checked_sub(SLOT_TOKENS) else { return };
        let (Ok(place), token) = (usize::try_from(at / SLOT_TOKENS), at % SLOT_TOKENS) else { return };
        match token.checked_sub(KICK).map(u16::try_from) {
            Some(Ok(queue)) if token != TIMER => {
                if let Some(Some(slot)) = self.slots.get(place) {
                    slot.job.counters.kicks.add_one();
                }
                self.kicked(place, queue);
            }
            _ => {
                self.with(place, |device, cx| Ok(device.ready(token, cx)?));
            }
        }
    }

    fn kicked(&mut self, place: usize, queue: u16) {
        self.with(place, |device, cx| {
            // A broken queue is not there: its kicks go nowhere.
            if cx.queue(queue).is_some() {
                device.kicked(queue, cx)?;
            }
            Ok(())
        });
    }

    fn ring_alarms(&mut self) {
        let now = Instant::now();
        for place in 0..self.slots.len() {
            let Some(Some(slot)) = self.slots.get_mut(place) else { continue };
            if slot.deadline.is_some_and(|time| time <= now) {
                slot.deadline = None;
                self.dispatch(base(place) + TIMER);
            }
        }
    }

    /// Calls the device of a slot; a fault breaks its queue. Whether there was none.
    fn with(
        &mut self,
        place: usize,
        call: impl FnOnce(&mut dyn Device<Poller = P>, &mut Context<'_, P>) -> Result<(), Fault>,
    ) -> bool {
        let Some(Some(slot)) = self.slots.get_mut(place) else { return false };
        let job = &mut slot.job;
        let mut context = Context {
            queues: &mut job.queues,
            features: job.features,
            memory: &job.memory,
            poller: &mut self.poller,
            watched: &mut slot.watched,
            base: base(place),
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
        let seated = self.slots.iter().flatten().map(|slot| slot.job.shared.clone());
        for shared in seated.chain(waiting) {
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
fn base(place: usize) -> Token {
    Token::try_from(place).unwrap_or(0).saturating_add(1).saturating_mul(SLOT_TOKENS)
}
