//! The guest's two consoles, a serial port and `hvc0`, and the one terminal that one of them has.
//!
//! Output goes through a bounded queue to a thread of its own, so that a slow reader holds up the guest (and loses
//! nothing) instead of a lock. Input waits in a queue until the guest takes it. What the guest writes to the other
//! console nobody sees; but all of it is searched for the kernel's last lines.

mod guest_console;
mod last_words;
mod scrollback;
mod sinks;

use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::Duration;

use devices::console::ByteQueue;
use devices::serial::{ConsoleSink, Serial, SerialInput};
use devices::thread::{self, Role};
use virtio::console::{Backend, Nobody, Stream, TerminalSize};
use virtio::device::Message;
use virtio::transport::DeviceHandle;

pub use self::guest_console::{ExpectError, ExpectFailure, GuestConsole};
pub(super) use self::scrollback::Scrollback;
use self::sinks::{UnseenOutput, WatchedOutput, WatchedPort};
use super::ends::Watch;
use crate::spec::ConsoleChoice;

/// Output that may wait for its reader before the guest has to.
const OUTPUT_CAPACITY: usize = 64 << 10;
/// Input that may wait for the guest. Enough for any paste; a program that writes more waits.
const INPUT_CAPACITY: usize = 1 << 20;
/// How long the last output may take to leave once the machine has ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Both queues, which outlive a reboot of the guest.
#[derive(Debug, Clone)]
pub(super) struct Console {
    pub(super) output: Arc<ByteQueue>,
    input: Arc<ByteQueue>,
    /// Who has the terminal.
    choice: ConsoleChoice,
    /// Size of the reader's terminal.
    size: Arc<Mutex<Size>>,
    /// The way into the serial port of the present boot, if that has the terminal.
    port: Arc<Mutex<Option<SerialInput>>>,
}

/// Size of the terminal, and the device that tells the guest. Locked while it is told, so that the last size is told last.
#[derive(Debug, Default)]
struct Size {
    now: Option<TerminalSize>,
    /// That of the present boot.
    device: Option<DeviceHandle>,
}

/// The ends of one boot's consoles.
#[derive(Debug)]
pub(super) struct ConsoleEnds {
    pub(super) serial_output: Box<dyn ConsoleSink>,
    pub(super) serial_input: Arc<ByteQueue>,
    pub(super) virtio: Box<dyn Backend>,
}

impl Console {
    pub(super) fn new(choice: ConsoleChoice) -> Self {
        Console {
            output: Arc::new(ByteQueue::new(OUTPUT_CAPACITY)),
            input: Arc::new(ByteQueue::new(INPUT_CAPACITY)),
            choice,
            size: Arc::default(),
            port: Arc::default(),
        }
    }

    /// What the devices of a boot are connected to. `watch` is told of the lines that say how the guest ends, and `hold_up` is
    /// woken when there is more output than there shall be and the vCPUs do not know it by themselves.
    pub(super) fn ends(&self, watch: &Watch, hold_up: Waker) -> io::Result<ConsoleEnds> {
        let output = self.output.clone();
        Ok(match self.choice {
            ConsoleChoice::Ttys0 => ConsoleEnds {
                serial_output: Box::new(WatchedOutput::new(output, watch.ttys0())),
                serial_input: self.input.clone(),
                virtio: Box::new(WatchedPort::new(Box::new(Nobody), watch.hvc0(), Arc::default())),
            },
            ConsoleChoice::Hvc0 => {
                let stream = Stream::new(self.input.clone(), output.clone())?.that_holds_up(hold_up);
                let in_use = Arc::default();
                ConsoleEnds {
                    serial_output: Box::new(UnseenOutput::new(output, watch.ttys0(), Arc::clone(&in_use))),
                    serial_input: Arc::new(ByteQueue::new(1)),
                    virtio: Box::new(WatchedPort::new(Box::new(stream), watch.hvc0(), in_use)),
                }
            }
        })
    }

    /// The serial port of the next boot takes over, if it is the one.
    pub(super) fn attach(&self, serial: &Arc<Mutex<Serial>>) {
        if self.choice == ConsoleChoice::Ttys0 {
            *self.port() = Some(SerialInput::new(serial.clone()));
        }
    }

    /// The virtio console of the next boot takes over, if the terminal is its.
    pub(super) fn attach_virtio(&self, device: DeviceHandle) {
        if self.choice == ConsoleChoice::Hvc0 {
            let mut size = self.size();
            size.device = Some(device);
            size.tell();
        }
    }

    /// From now on the terminal has this size. A serial port has no way to tell a guest.
    pub(super) fn set_size(&self, now: TerminalSize) {
        let mut size = self.size();
        size.now = Some(now);
        size.tell();
    }

    fn size(&self) -> MutexGuard<'_, Size> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn port(&self) -> MutexGuard<'_, Option<SerialInput>> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the port that there is input.
    fn poke(&self) {
        let port = self.port().clone();
        if let Some(port) = port {
            port.poke();
        }
    }
}

impl Size {
    fn tell(&self) {
        if let (Some(device), Some(size)) = (&self.device, self.now) {
            // A machine that has ended needs none.
            let _ = device.tell(Message::ConsoleSize { size });
        }
    }
}

/// What is typed into the guest's first console. Writing waits while more than 1 MiB is unread by the guest, and fails with
/// [`io::ErrorKind::BrokenPipe`] once the machine has ended.
#[derive(Debug, Clone)]
pub struct ConsoleInput {
    console: Console,
}

impl ConsoleInput {
    pub(super) fn new(console: Console) -> Self {
        ConsoleInput { console }
    }

    /// Types as much of `bytes` as there is room for, and never waits for more.
    pub(crate) fn try_type(&self, bytes: &[u8]) -> usize {
        let taken = self.console.input.try_push(bytes);
        self.console.poke();
        taken
    }

    /// The terminal at which it is typed has this many columns and rows. The guest's `hvc0` follows, if the machine's terminal is that one
    /// ([`Spec::console`](crate::spec::Spec::console)), also after a reboot of the guest; a serial port has no way to tell a guest.
    /// The size that was set last counts.
    pub fn set_terminal_size(&self, columns: u16, rows: u16) {
        self.console.set_size(TerminalSize { columns, rows });
    }

    /// Nothing more will be typed; who waits for room stops waiting. The port goes, with its interrupt's descriptor, however
    /// long this is kept.
    pub(super) fn close(&self) {
        self.console.input.close();
        *self.console.port() = None;
    }
}

impl Write for ConsoleInput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = self.console.input.try_push(bytes);
        self.console.poke();
        if taken == 0 && !bytes.is_empty() {
            let (first, _) = bytes.split_at(1);
            let ended = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the machine has ended");
            self.console.input.push(first).map_err(ended)?;
            self.console.poke();
            taken = 1;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread that carries output from the queue to its reader.
#[derive(Debug)]
pub(super) struct OutputThread {
    queue: Arc<ByteQueue>,
    said: Arc<Scrollback>,
    thread: Option<JoinHandle<()>>,
}

impl OutputThread {
    /// All of it goes into `said`, and to `reader`, if there is one, at its pace.
    pub(super) fn spawn(
        queue: Arc<ByteQueue>,
        said: Arc<Scrollback>,
        reader: Option<Box<dyn Write + Send>>,
    ) -> io::Result<Self> {
        let (from, keep) = (queue.clone(), said.clone());
        let thread = thread::spawn(Role::Console, "console", move || carry(&from, &keep, reader))?;
        Ok(OutputThread { queue, said, thread: Some(thread) })
    }

    /// Ends the stream. What is in it still goes out, unless its reader does not take it for [`DRAIN_LIMIT`]: then the
    /// thread is left to its reader. The second time it does nothing.
    pub(super) fn finish(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.queue.close();
        if self.queue.wait_drained(DRAIN_LIMIT) {
            // It cannot have panicked: `carry` has nothing that does; and there is nobody to tell if it did.
            let _ = thread.join();
        }
        self.said.close();
    }
}

impl Drop for OutputThread {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A reader that has gone away must not stop the guest: what comes after is thrown away.
fn carry(queue: &ByteQueue, said: &Scrollback, mut reader: Option<Box<dyn Write + Send>>) {
    let mut bytes = [0; 4096];
    loop {
        let n = queue.pop(&mut bytes);
        let Some(batch) = bytes.get(..n).filter(|batch| !batch.is_empty()) else { return };
        said.push(batch);
        let Some(to) = &mut reader else { continue };
        if let Err(error) = give(to.as_mut(), batch) {
            // Closing the other end of a pipe is a reader's way to say that it has seen enough.
            if error.kind() != io::ErrorKind::BrokenPipe {
                log::error!("what the guest writes to its console is lost from here on: {error}");
            }
            reader = None;
        }
    }
}

/// A reader that panics is one that fails: the guest must not wait for it for ever. It is not asked again, so what state
/// it is in matters to nobody.
fn give(reader: &mut (dyn Write + Send), bytes: &[u8]) -> io::Result<()> {
    let all = || reader.write_all(bytes).and_then(|()| reader.flush());
    panic::catch_unwind(AssertUnwindSafe(all))
        .unwrap_or_else(|_| Err(io::Error::other("its reader panicked")))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[derive(Debug)]
    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_away_does_not_hold_up_the_guest() {
        let console = Console::new(ConsoleChoice::Ttys0);
        let mut thread =
            OutputThread::spawn(console.output.clone(), Arc::default(), Some(Box::new(Broken))).unwrap();
        for _ in 0..100 {
            console.output.push(&[b'x'; 4096]).unwrap();
        }
        thread.finish();
    }

    #[test]
    fn a_reader_that_is_stuck_is_waited_for_once() {
        #[derive(Debug)]
        struct Stuck(std::sync::mpsc::Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, held) = std::sync::mpsc::channel();
        let console = Console::new(ConsoleChoice::Ttys0);
        let mut thread =
            OutputThread::spawn(console.output.clone(), Arc::default(), Some(Box::new(Stuck(held)))).unwrap();
        console.output.push(b"never taken").unwrap();
        while !console.output.is_empty() {
            thread::yield_now();
        }
        console.output.push(b"nor this").unwrap();
        thread.finish();
        let began = std::time::Instant::now();
        drop(thread);
        assert!(began.elapsed() < DRAIN_LIMIT, "{:?}", began.elapsed());
        drop(release);
    }
}
