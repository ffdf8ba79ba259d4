//! Worker threads: each owns devices and their queues while their drivers are at work.
//!
//! A thread begins with the first device that starts on it, so that a device without a driver costs nothing. The command
//! stop serves reset, pause, saving and removal: it gives back the device and the positions of its queues. The command
//! quiesce keeps a device idle on its slot until go. Commands are executed in order, so the caller of quiesce and go need
//! not wait for either.

mod run_loop;

use std::fmt;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use devices::thread::{self, Role};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use std::os::fd::AsRawFd;

use crate::counters::Counters;
use crate::device::{Device, Message};
use crate::memory::Memory;
use crate::poll::{Interest, Poller, Token};
use crate::queue::{Queue, QueueState};
use crate::shared_registers::SharedRegisters;
use run_loop::WorkerLoop;

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

    /// Tells a device something; `false` if the thread has died.
    pub(crate) fn tell(&self, id: SlotId, message: Message) -> bool {
        self.send(Command::Tell(id, message))
    }

    /// Whether the thread lives. A caller that waits for an answer sees the end of one that dies later.
    fn send(&self, command: Command<P>) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running.as_ref().is_some_and(|running| running.send(command).is_ok())
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
                WorkerLoop::new(poller, receiver).run().unwrap_or_else(failed);
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
