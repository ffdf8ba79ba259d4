//! What is at the host's end of a port.

use std::fmt::Debug;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::task::{Poll, Wake, Waker};

use devices::console::ByteQueue;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::device::Context;
use crate::poll::{Epoll, Interest, Token};

/// Tokens that each port may watch with.
pub const TOKENS: Token = 2;

/// The host's end of a port: two streams of bytes. Only the worker calls it, and no call may wait.
///
/// It outlives resets of its device: its client stays connected.
pub trait Backend: Debug + Send {
    /// A run of the device begins: watch what has to be watched, with the [`TOKENS`] tokens from `first` on.
    ///
    /// # Errors
    /// The host refused.
    fn start(&mut self, first: Token, cx: &mut Context<'_, Epoll>) -> io::Result<()>;

    /// Something watched as `token` is ready. Reading and writing are tried after this.
    fn ready(&mut self, token: Token) {
        let _ = token;
    }

    /// Called after reading and writing: closes a client that has left and accepts the next one. Whether a client left.
    fn attend(&mut self, first: Token, cx: &mut Context<'_, Epoll>) -> bool {
        let _ = (first, cx);
        false
    }

    /// Whether the host's end is open: a client is there.
    fn is_open(&self) -> bool {
        true
    }

    /// Whether a guest that goes on from a saved state goes on with this end, too: nobody has left. Otherwise it is told that its client
    /// left.
    fn goes_on(&self) -> bool {
        false
    }

    /// Takes some bytes that go to the guest.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: there are none now.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize>;

    /// Takes some of the bytes that came from the guest, and returns how many.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`]: there is no room now.
    fn write(&mut self, from: &[u8]) -> io::Result<usize>;
}

/// An end that is always open and has no data: what the guest writes is dropped.
#[derive(Debug)]
pub struct Nobody;

impl Backend for Nobody {
    fn start(&mut self, _: Token, _: &mut Context<'_, Epoll>) -> io::Result<()> {
        Ok(())
    }

    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Ok(from.len())
    }
}

/// Two queues between threads: what a terminal is connected to.
#[derive(Debug)]
pub struct Stream {
    input: Arc<ByteQueue>,
    output: Arc<ByteQueue>,
    bell: Arc<Bell>,
    waker: Waker,
    ends: bool,
    goes_on: bool,
    hold_up: Option<HoldUp>,
}

/// How the guest of a terminal whose reader does not come is held up.
#[derive(Debug)]
struct HoldUp {
    guest: Waker,
    /// The guest was told of the bytes that are too many now.
    told: bool,
}

/// Wakes the worker when a queue that was empty, or full, no longer is.
#[derive(Debug)]
struct Bell(EventFd);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // Its counter has room for 2^64 wakes.
        let _ = self.0.write(1);
    }
}

impl Stream {
    /// The guest reads `input` and writes to `output`.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub fn new(input: Arc<ByteQueue>, output: Arc<ByteQueue>) -> io::Result<Self> {
        let bell = Arc::new(Bell(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?));
        let waker = Waker::from(bell.clone());
        Ok(Stream { input, output, waker, bell, ends: false, goes_on: false, hold_up: None })
    }

    /// One whose other end is gone for the guest once its input is closed and empty: a file that was read to its end. What
    /// the guest writes waits then.
    #[must_use]
    pub fn that_ends(self) -> Self {
        Stream { ends: true, ..self }
    }

    /// One whose other end is a program that takes the place of the one before, for a guest that was saved: the guest hears of no
    /// change.
    #[must_use]
    pub fn that_goes_on(self) -> Self {
        Stream { goes_on: true, ..self }
    }

    /// One for a console whose driver cannot wait: Linux spins with interrupts off until its bytes are taken. Bytes that do
    /// not fit are taken all the same, and `guest` is woken to see to it that the guest does not run until there is room
    /// ([`ByteQueue::is_over`]). More than one call's bytes too many are never taken.
    #[must_use]
    pub fn that_holds_up(self, guest: Waker) -> Self {
        Stream { hold_up: Some(HoldUp { guest, told: false }), ..self }
    }
}

impl HoldUp {
    fn tell(&mut self) {
        if !std::mem::replace(&mut self.told, true) {
            self.guest.wake_by_ref();
        }
    }
}

impl Backend for Stream {
    fn start(&mut self, first: Token, cx: &mut Context<'_, Epoll>) -> io::Result<()> {
        cx.watch(self.bell.0.as_raw_fd(), first, Interest::Read)
    }

    fn is_open(&self) -> bool {
        // In this order: what is closed gets no bytes any more.
        !(self.ends && self.input.is_closed() && self.input.is_empty())
    }

    fn goes_on(&self) -> bool {
        self.goes_on
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self.input.poll_pop(&self.waker, into) {
            Poll::Ready(0) | Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
            Poll::Ready(count) => Ok(count),
        }
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        if let Some(hold_up) = &mut self.hold_up {
            return match self.output.poll_push_over(&self.waker, from) {
                Poll::Ready(over) => {
                    hold_up.told = false;
                    if over == Ok(true) {
                        hold_up.tell();
                    }
                    Ok(from.len())
                }
                // Too many since before this console was made, perhaps: by an earlier boot.
                Poll::Pending => {
                    hold_up.tell();
                    Err(io::ErrorKind::WouldBlock.into())
                }
            };
        }
        match self.output.poll_push(&self.waker, from) {
            Poll::Ready(Ok(count)) => Ok(count),
            // The machine is ending and its reader is gone.
            Poll::Ready(Err(_)) => Ok(from.len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_that_ends_is_there_until_its_last_byte_is_taken() {
        let (input, output) = (Arc::new(ByteQueue::new(8)), Arc::new(ByteQueue::new(8)));
        let endless = Stream::new(input.clone(), output.clone()).unwrap();
        let mut ends = Stream::new(input.clone(), output).unwrap().that_ends();
        input.push(b"last").unwrap();
        assert!(ends.is_open());
        input.close();
        assert!(ends.is_open(), "there is something to read yet");
        assert_eq!(ends.read(&mut [0; 8]).unwrap(), 4);
        assert!(!ends.is_open() && endless.is_open());
        assert_eq!(ends.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
