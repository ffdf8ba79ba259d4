//! The user's input on its way to a guest that may not read it.
//!
//! A pipe has back-pressure: it is read only as fast as the guest reads, and nothing is lost. A terminal is
//! read at all times for the menu's keys: input that the guest does not read is buffered, and input beyond
//! [`BUFFER_SIZE`] is dropped.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::JoinHandle;

use devices::console::ByteQueue;
use devices::thread::{self, Role};

use super::menu::{Choice, Typed, read_input};
use crate::host::stdio::Input;

/// Buffer for a terminal's input: more than a person pastes. Memory is allocated as it comes.
const BUFFER_SIZE: usize = 16 << 20;

const DROPPED: &str = "the guest reads no input and the buffer of 16 MiB is full: input is dropped until it reads; the keys of Ctrl-] work";

/// Copies standard input to the guest until either ends. Only a terminal has the menu.
pub(super) fn forward_input(
    mut input: Input,
    is_terminal: bool,
    mut to: impl Write + Send + 'static,
    mut handle_choice: impl FnMut(Choice),
    notice: impl Fn(&str),
) {
    if !is_terminal {
        return read_input(&mut input, false, |typed| match typed {
            Typed::Text(text) => to.write_all(text),
            Typed::Choice(_) => Ok(()),
        });
    }
    let Ok(mut buffer) = InputBuffer::start(to, BUFFER_SIZE) else {
        return notice("the host has no thread for what is typed");
    };
    read_input(&mut input, true, |typed| {
        match typed {
            Typed::Text(text) => {
                if buffer.push(text)? == Added::FirstDropped {
                    notice(DROPPED);
                }
            }
            Typed::Choice(choice) => handle_choice(choice),
        }
        Ok(())
    });
}

/// The result of adding input to the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Added {
    Whole,
    /// The buffer became full with this input.
    FirstDropped,
    Dropped,
}

/// Input that waits for the guest.
#[derive(Debug)]
struct InputBuffer {
    queue: Arc<ByteQueue>,
    copier: JoinHandle<()>,
    full: bool,
}

impl InputBuffer {
    /// Starts the thread that writes to the guest, and may block on it.
    fn start(mut to: impl Write + Send + 'static, capacity: usize) -> io::Result<Self> {
        let queue = Arc::new(ByteQueue::new(capacity));
        let from = queue.clone();
        let copy = move || {
            let mut bytes = [0; 4096];
            loop {
                let count = from.pop(&mut bytes);
                let text = bytes.get(..count).unwrap_or_default();
                if text.is_empty() || to.write_all(text).is_err() {
                    return;
                }
            }
        };
        let copier = thread::spawn(Role::Cli, "typing", copy)?;
        Ok(InputBuffer { queue, copier, full: false })
    }

    /// Never blocks. An error once the guest is gone.
    fn push(&mut self, text: &[u8]) -> io::Result<Added> {
        if self.copier.is_finished() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let was_full = self.full;
        self.full = self.queue.try_push(text) < text.len();
        Ok(match (was_full, self.full) {
            (_, false) => Added::Whole,
            (false, true) => Added::FirstDropped,
            (true, true) => Added::Dropped,
        })
    }
}

impl Drop for InputBuffer {
    fn drop(&mut self) {
        self.queue.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::thread;

    #[test]
    fn text_is_kept_in_order_up_to_its_limit_and_dropped_beyond_without_a_wait() {
        let (guest, mut reads) = UnixStream::pair().unwrap();
        let mut buffer = InputBuffer::start(guest, 1 << 20).unwrap();
        let text: Vec<u8> = (0..=255).cycle().take(4096).collect();
        // Far more than the socket and the queue hold.
        let added: Vec<_> = (0..1024).map(|_| buffer.push(&text).unwrap()).collect();
        let whole = added.iter().take_while(|added| **added == Added::Whole).count();
        assert!(whole >= (1 << 20) / 4096, "{whole}");
        assert_eq!(added[whole], Added::FirstDropped);
        drop(buffer);
        let mut heard = Vec::new();
        reads.read_to_end(&mut heard).unwrap();
        assert!(heard.len() >= whole * 4096);
        assert!(heard[..whole * 4096].chunks(4096).all(|chunk| chunk == text));
    }

    #[test]
    fn typing_ends_with_the_guest() {
        let (guest, reads) = UnixStream::pair().unwrap();
        drop(reads);
        let mut buffer = InputBuffer::start(guest, 1 << 20).unwrap();
        let begin = std::time::Instant::now();
        while buffer.push(b"x").is_ok() {
            assert!(begin.elapsed() < std::time::Duration::from_secs(60));
            thread::yield_now();
        }
    }
}
