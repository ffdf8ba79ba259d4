//! The guest's first console, between its serial port and whoever looks at it.
//!
//! Output goes through a bounded queue to a thread of its own, so that a slow reader holds up the guest (and loses
//! nothing) instead of a lock. Input waits in a queue until the guest takes it.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use devices::console::ByteQueue;
use devices::serial::{ConsoleSink, Serial, SerialInput};

/// Output that may wait for its reader before the guest has to.
const OUTPUT_CAPACITY: usize = 64 << 10;
/// Input that may wait for the guest. Enough for any paste; a program that writes more waits.
const INPUT_CAPACITY: usize = 1 << 20;
/// How often, and how far apart, to try a serial port that a vCPU is busy with.
const POKES: u32 = 100;
const POKE_INTERVAL: Duration = Duration::from_millis(1);
/// How long the last output may take to leave once the machine has ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Both queues, which outlive a reboot of the guest.
#[derive(Debug, Clone)]
pub(super) struct Console {
    pub(super) output: Arc<ByteQueue>,
    pub(super) input: Arc<ByteQueue>,
    /// The way into the serial port of the present boot.
    port: Arc<Mutex<Option<SerialInput>>>,
}

impl Console {
    pub(super) fn new() -> Self {
        Console {
            output: Arc::new(ByteQueue::new(OUTPUT_CAPACITY)),
            input: Arc::new(ByteQueue::new(INPUT_CAPACITY)),
            port: Arc::default(),
        }
    }

    /// The serial port of the next boot takes over.
    pub(super) fn attach(&self, serial: Arc<Mutex<Serial>>) {
        *self.port() = Some(SerialInput::new(serial));
    }

    fn port(&self) -> MutexGuard<'_, Option<SerialInput>> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the port that there is input. While a vCPU waits for room in the output it holds the port; it looks at
    /// its input again before it goes on, so that giving up here leaves nothing behind.
    fn poke(&self) {
        let Some(port) = self.port().clone() else { return };
        for _ in 0..POKES {
            if port.poke() {
                return;
            }
            thread::sleep(POKE_INTERVAL);
        }
    }
}

/// What is typed into the guest's first console. Writing waits while more than 1 MiB is unread by the guest.
#[derive(Debug, Clone)]
pub struct ConsoleInput {
    console: Console,
}

impl ConsoleInput {
    pub(super) fn new(console: Console) -> Self {
        ConsoleInput { console }
    }

    /// Nothing more will be typed; who waits for room stops waiting.
    pub(super) fn close(&self) {
        self.console.input.close();
    }
}

impl Write for ConsoleInput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = self.console.input.try_push(bytes);
        self.console.poke();
        if taken == 0 && !bytes.is_empty() {
            let (first, _) = bytes.split_at(1);
            self.console.input.push(first).map_err(|_| io::ErrorKind::BrokenPipe)?;
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
    thread: Option<JoinHandle<()>>,
}

impl OutputThread {
    pub(super) fn spawn(queue: Arc<ByteQueue>, reader: Box<dyn Write + Send>) -> io::Result<Self> {
        let from = queue.clone();
        let thread = thread::Builder::new().name("console".into()).spawn(move || carry(&from, reader))?;
        Ok(OutputThread { queue, thread: Some(thread) })
    }

    /// Ends the stream. What is in it still goes out, unless its reader does not take it for [`DRAIN_LIMIT`].
    pub(super) fn finish(&mut self) {
        self.queue.close();
        let drained = self.queue.wait_drained(DRAIN_LIMIT);
        if let Some(thread) = self.thread.take().filter(|_| drained) {
            // It cannot have panicked: `carry` has nothing that does; and there is nobody to tell if it did.
            let _ = thread.join();
        }
    }
}

impl Drop for OutputThread {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A reader that has gone away must not stop the guest: what comes after is thrown away.
fn carry(queue: &ByteQueue, mut reader: Box<dyn Write + Send>) {
    let mut bytes = [0; 4096];
    let mut gone = false;
    loop {
        let n = queue.pop(&mut bytes);
        let Some(batch) = bytes.get(..n).filter(|batch| !batch.is_empty()) else { return };
        if gone {
            continue;
        }
        if let Err(error) = reader.write_all(batch).and_then(|()| reader.flush()) {
            gone = true;
            // Closing the other end of a pipe is a reader's way to say that it has seen enough.
            if error.kind() != io::ErrorKind::BrokenPipe {
                log::error!("what the guest writes to its console is lost from here on: {error}");
            }
        }
    }
}

/// The serial port's way out: into the queue, past a look-out for the kernel's panic line.
#[derive(Debug)]
pub(super) struct WatchedOutput {
    queue: Arc<ByteQueue>,
    watch: PanicWatch,
}

impl WatchedOutput {
    pub(super) fn new(queue: Arc<ByteQueue>, panicked: Arc<AtomicBool>) -> Self {
        WatchedOutput { queue, watch: PanicWatch { matched: 0, panicked } }
    }
}

impl ConsoleSink for WatchedOutput {
    fn write(&mut self, bytes: &[u8]) {
        self.watch.look_at(bytes);
        // Closed: the machine is ending and nobody reads any more.
        let _ = self.queue.push(bytes);
    }
}

/// Looks for the line that Linux prints when it panics.
#[derive(Debug)]
struct PanicWatch {
    matched: usize,
    panicked: Arc<AtomicBool>,
}

impl PanicWatch {
    /// Its first character comes up only once in it, so that a mismatch never hides a beginning.
    const LINE: &[u8] = b"Kernel panic - not syncing";

    fn look_at(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if Self::LINE.get(self.matched) == Some(byte) {
                self.matched += 1;
            } else {
                self.matched = usize::from(Self::LINE.first() == Some(byte));
            }
            if self.matched == Self::LINE.len() {
                self.matched = 0;
                self.panicked.store(true, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sees(chunks: &[&str]) -> bool {
        let panicked = Arc::new(AtomicBool::new(false));
        let mut watch = PanicWatch { matched: 0, panicked: panicked.clone() };
        chunks.iter().for_each(|chunk| watch.look_at(chunk.as_bytes()));
        panicked.load(Ordering::Acquire)
    }

    #[test]
    fn the_panic_line_is_seen_however_it_is_cut() {
        assert!(sees(&["[    0.5] Kernel panic - not syncing: VFS: Unable to mount root fs"]));
        assert!(sees(&["KKernel pan", "ic - not sync", "ing"]));
        assert!(sees(&["Kernel panicKernel panic - not syncing"]));
    }

    #[test]
    fn other_lines_are_not_a_panic() {
        assert!(!sees(&["Kernel panic - not syncin", "Kernel panic"]));
        assert!(!sees(&["panic=-1 console=ttyS0"]));
    }

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
        let console = Console::new();
        let mut thread = OutputThread::spawn(console.output.clone(), Box::new(Broken)).unwrap();
        for _ in 0..100 {
            console.output.push(&[b'x'; 4096]).unwrap();
        }
        thread.finish();
    }
}
