//! The thread that writes a capture.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use devices::thread::{self, Role};

use super::output::Output;
use super::pcapng;
use super::queue::{Queue, Taken};

/// How often a wait for a reader is ended to see whether the capture has ended.
const TICK: Duration = Duration::from_millis(100);
/// The time that a reader has to take something when the capture has ended, and to take all of it.
const GRACE: Duration = Duration::from_secs(1);
const GRACE_FOR_ALL: Duration = Duration::from_secs(5);

/// The running thread. Dropping it waits for the thread: the queue was closed before.
#[derive(Debug)]
pub(super) struct Writer {
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Writes what comes from `queue`, frames of `interface`, to `output`.
    pub(super) fn start(output: Output, queue: Arc<Queue>, interface: &str) -> io::Result<Self> {
        let name = interface.to_owned();
        let work = move || match write_all(output, &queue, &name) {
            Ok(()) => {}
            Err(error) => {
                queue.close();
                match error.kind() {
                    io::ErrorKind::BrokenPipe => log::info!("{name}: the reader of the capture has gone"),
                    _ => log::warn!("{name}: the capture ends here: {error}"),
                }
            }
        };
        Ok(Writer { thread: Some(thread::spawn(Role::Capture, "capture", work)?) })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A panic was reported by the thread.
            let _ = thread.join();
        }
    }
}

fn write_all(output: Output, queue: &Queue, interface: &str) -> io::Result<()> {
    let (mut output, mut buffer) = (Patient { output, queue, ended: None }, Vec::new());
    pcapng::header(interface, &mut buffer);
    output.write(&buffer)?;
    loop {
        match queue.take(&mut buffer, None) {
            Taken::Blocks => output.write(&buffer)?,
            Taken::Nothing => {}
            Taken::End { seen, lost } => {
                pcapng::statistics(&mut buffer, pcapng::now(), seen, lost);
                return output.write(&buffer);
            }
        }
    }
}

/// Waits for a reader that is slow; not for long once the capture has ended.
struct Patient<'a> {
    output: Output,
    queue: &'a Queue,
    /// Since when it has been known that the capture has ended, and when the reader last took something.
    ended: Option<(Instant, Instant)>,
}

impl Patient<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.output.write(rest, TICK) {
                Ok(0) if self.is_over(false) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    if count > 0 && self.is_over(true) {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the reader's time is over; it just took something or not.
    fn is_over(&mut self, took: bool) -> bool {
        if matches!(self.output, Output::File(_)) || !self.queue.is_closed() {
            return false;
        }
        let now = Instant::now();
        let (ended, last) = self.ended.get_or_insert((now, now));
        if took {
            *last = now;
        }
        // A reader that has not come will not.
        now - *last >= GRACE || now - *ended >= GRACE_FOR_ALL || matches!(self.output, Output::Fifo(_))
    }
}
