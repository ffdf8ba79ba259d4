//! What is typed, on its way to a guest that may not read it.
//!
//! A pipe is read only as fast as the guest reads: nothing is lost. A terminal is read at all times, as the menu's keys are
//! among what is typed: text that the guest does not take is kept, and only text beyond [`KEPT`] is dropped.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::JoinHandle;

use devices::console::ByteQueue;
use devices::thread::{self, Role};

use super::menu::{Choice, Typed, read_input};
use crate::host::stdio::Input;

/// Text of a terminal that is kept for a guest: more than a person pastes. Memory is taken as it comes.
const KEPT: usize = 16 << 20;

const DROPPED: &str = "the guest takes no input and 16 MiB wait for it already: what is typed now is dropped, the keys of Ctrl-] work";

/// Carries standard input to the guest until either ends. Only a terminal has the menu.
pub(super) fn carry(
    mut input: Input,
    is_terminal: bool,
    mut to: impl Write + Send + 'static,
    mut choose: impl FnMut(Choice),
    say: impl Fn(&str),
) {
    if !is_terminal {
        return read_input(&mut input, false, |typed| match typed {
            Typed::Text(text) => to.write_all(text),
            Typed::Choice(_) => Ok(()),
        });
    }
    let Ok(mut kept) = Kept::start(to, KEPT) else { return say("the host has no thread for what is typed") };
    read_input(&mut input, true, |typed| {
        match typed {
            Typed::Text(text) => {
                if kept.add(text)? == Added::FirstDropped {
                    say(DROPPED);
                }
            }
            Typed::Choice(choice) => choose(choice),
        }
        Ok(())
    });
}

/// What became of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Added {
    Whole,
    /// There was no room for all of it, as there was for the one before.
    FirstDropped,
    Dropped,
}

/// Text that waits for the guest.
#[derive(Debug)]
struct Kept {
    queue: Arc<ByteQueue>,
    feeder: JoinHandle<()>,
    full: bool,
}

impl Kept {
    /// With a thread that feeds the guest, which may wait for it.
    fn start(mut to: impl Write + Send + 'static, capacity: usize) -> io::Result<Self> {
        let queue = Arc::new(ByteQueue::new(capacity));
        let from = queue.clone();
        let feed = move || {
            let mut bytes = [0; 4096];
            loop {
                let count = from.pop(&mut bytes);
                let text = bytes.get(..count).unwrap_or_default();
                if text.is_empty() || to.write_all(text).is_err() {
                    return;
                }
            }
        };
        let feeder = thread::spawn(Role::Cli, "typing", feed)?;
        Ok(Kept { queue, feeder, full: false })
    }

    /// Never waits. An error once the guest takes no more.
    fn add(&mut self, text: &[u8]) -> io::Result<Added> {
        if self.feeder.is_finished() {
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

impl Drop for Kept {
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
        let mut kept = Kept::start(guest, 1 << 20).unwrap();
        let text: Vec<u8> = (0..=255).cycle().take(4096).collect();
        // Far more than the socket and the queue hold.
        let added: Vec<_> = (0..1024).map(|_| kept.add(&text).unwrap()).collect();
        let whole = added.iter().take_while(|added| **added == Added::Whole).count();
        assert!(whole >= (1 << 20) / 4096, "{whole}");
        assert_eq!(added[whole], Added::FirstDropped);
        drop(kept);
        let mut heard = Vec::new();
        reads.read_to_end(&mut heard).unwrap();
        assert!(heard.len() >= whole * 4096);
        assert!(heard[..whole * 4096].chunks(4096).all(|chunk| chunk == text));
    }

    #[test]
    fn typing_ends_with_the_guest() {
        let (guest, reads) = UnixStream::pair().unwrap();
        drop(reads);
        let mut kept = Kept::start(guest, 1 << 20).unwrap();
        let begin = std::time::Instant::now();
        while kept.add(b"x").is_ok() {
            assert!(begin.elapsed() < std::time::Duration::from_secs(10));
            thread::yield_now();
        }
    }
}
