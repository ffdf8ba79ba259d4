//! A bounded pipe of bytes between threads: the console's way in and its way out.
//!
//! Lossless while it is open: a writer that finds it full waits, or learns how much fitted. It makes no system call unless
//! a thread waits at the other end.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// An emptied buffer larger than this goes back to the allocator.
const KEEP: usize = 4096;

/// The pipe was closed: what was not taken will never be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the console is closed, so these bytes cannot be delivered any more")]
pub struct Closed;

#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    closed: bool,
    /// The consumer took bytes and has not come back since: they may still be on their way to the host.
    in_flight: bool,
    readers: usize,
    writers: usize,
    drainers: usize,
    /// To be woken, once, when there is a byte to take; when there is room for one.
    on_readable: Option<Waker>,
    on_writable: Option<Waker>,
}

/// Bytes in order, at most a fixed number of them, many producers and one consumer.
pub struct ByteQueue {
    capacity: usize,
    pipe: Mutex<Pipe>,
    readable: Condvar,
    writable: Condvar,
    drained: Condvar,
}

impl fmt::Debug for ByteQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pipe = self.lock();
        f.debug_struct("ByteQueue")
            .field("len", &pipe.bytes.len())
            .field("capacity", &self.capacity)
            .field("closed", &pipe.closed)
            .finish()
    }
}

impl ByteQueue {
    /// An open, empty queue of at most `capacity` bytes (at least one); memory is taken when bytes come.
    pub fn new(capacity: usize) -> Self {
        ByteQueue {
            capacity: capacity.max(1),
            pipe: Mutex::default(),
            readable: Condvar::new(),
            writable: Condvar::new(),
            drained: Condvar::new(),
        }
    }

    /// Puts all of `bytes` in, waiting for room as long as it takes.
    ///
    /// # Errors
    /// [`Closed`] when the queue was or becomes closed; part of `bytes` may be in it then.
    pub fn push(&self, bytes: &[u8]) -> Result<(), Closed> {
        let mut rest = bytes;
        let mut pipe = self.lock();
        loop {
            if pipe.closed {
                return Err(Closed);
            }
            rest = rest.get(self.fill(&mut pipe, rest)..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
            pipe.writers += 1;
            pipe = self.writable.wait(pipe).unwrap_or_else(PoisonError::into_inner);
            pipe.writers -= 1;
        }
    }

    /// Puts all of `bytes` in, room or not (nothing, once closed): for producers that must not wait where they are. They keep
    /// the queue bounded by waiting elsewhere ([`ByteQueue::wait_while_over`]) before they come with more.
    pub fn push_over(&self, bytes: &[u8]) {
        let mut pipe = self.lock();
        if !pipe.closed {
            self.put(&mut pipe, bytes);
        }
    }

    /// Whether there is more inside than it shall hold.
    pub fn is_over(&self) -> bool {
        let pipe = self.lock();
        pipe.bytes.len() > self.capacity && !pipe.closed
    }

    /// Waits until there is no more inside than it shall hold, as long as `go_on` says so. It is asked before each wait, and
    /// again after [`ByteQueue::nudge`].
    pub fn wait_while_over(&self, go_on: impl Fn() -> bool) {
        let mut pipe = self.lock();
        while pipe.bytes.len() > self.capacity && !pipe.closed && go_on() {
            pipe.writers += 1;
            pipe = self.writable.wait(pipe).unwrap_or_else(PoisonError::into_inner);
            pipe.writers -= 1;
        }
    }

    /// Makes those that wait for room ask again whether they shall.
    pub fn nudge(&self) {
        // With the lock, or one that has asked and does not wait yet would miss it.
        let _pipe = self.lock();
        self.writable.notify_all();
    }

    /// Puts in what fits now and returns how many bytes that was; none once closed.
    pub fn try_push(&self, bytes: &[u8]) -> usize {
        let mut pipe = self.lock();
        if pipe.closed { 0 } else { self.fill(&mut pipe, bytes) }
    }

    /// Takes at least one byte, waiting for it; 0 once the queue is closed and empty (or `into` is empty).
    pub fn pop(&self, into: &mut [u8]) -> usize {
        let mut pipe = self.lock();
        self.back_for_more(&mut pipe);
        while pipe.bytes.is_empty() && !pipe.closed && !into.is_empty() {
            pipe.readers += 1;
            pipe = self.readable.wait(pipe).unwrap_or_else(PoisonError::into_inner);
            pipe.readers -= 1;
        }
        self.take(&mut pipe, into)
    }

    /// Takes what is there, perhaps nothing.
    pub fn try_pop(&self, into: &mut [u8]) -> usize {
        let mut pipe = self.lock();
        self.back_for_more(&mut pipe);
        self.take(&mut pipe, into)
    }

    /// As [`ByteQueue::try_push`], for an event loop: if nothing fits, `waker` is woken when something does. It must not
    /// call back into the queue.
    pub fn poll_push(&self, waker: &Waker, bytes: &[u8]) -> Poll<Result<usize, Closed>> {
        let mut pipe = self.lock();
        if pipe.closed {
            return Poll::Ready(Err(Closed));
        }
        match self.fill(&mut pipe, bytes) {
            0 if !bytes.is_empty() => {
                pipe.on_writable = Some(waker.clone());
                Poll::Pending
            }
            count => Poll::Ready(Ok(count)),
        }
    }

    /// As [`ByteQueue::push_over`], for an event loop: puts all of `bytes` in, unless there is more inside already than it
    /// shall hold; then `waker` is woken when something was taken. Says whether there is more than that now.
    pub fn poll_push_over(&self, waker: &Waker, bytes: &[u8]) -> Poll<Result<bool, Closed>> {
        let mut pipe = self.lock();
        if pipe.closed {
            return Poll::Ready(Err(Closed));
        }
        if pipe.bytes.len() > self.capacity {
            pipe.on_writable = Some(waker.clone());
            return Poll::Pending;
        }
        self.put(&mut pipe, bytes);
        Poll::Ready(Ok(pipe.bytes.len() > self.capacity))
    }

    /// As [`ByteQueue::pop`], for an event loop: if nothing is there, `waker` is woken when something is. It must not
    /// call back into the queue.
    pub fn poll_pop(&self, waker: &Waker, into: &mut [u8]) -> Poll<usize> {
        let mut pipe = self.lock();
        self.back_for_more(&mut pipe);
        match self.take(&mut pipe, into) {
            0 if !pipe.closed && !into.is_empty() => {
                pipe.on_readable = Some(waker.clone());
                Poll::Pending
            }
            count => Poll::Ready(count),
        }
    }

    /// No byte goes in any more; what is inside can still be taken. Wakes everyone.
    pub fn close(&self) {
        let mut pipe = self.lock();
        pipe.closed = true;
        [pipe.on_readable.take(), pipe.on_writable.take()].into_iter().flatten().for_each(Waker::wake);
        drop(pipe);
        self.readable.notify_all();
        self.writable.notify_all();
        self.drained.notify_all();
    }

    /// Waits, at most `limit`, until there is room or the queue is closed; returns whether there is room to push.
    pub fn wait_room(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut pipe = self.lock();
        while pipe.bytes.len() >= self.capacity && !pipe.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            pipe.writers += 1;
            pipe = self.writable.wait_timeout(pipe, left).unwrap_or_else(PoisonError::into_inner).0;
            pipe.writers -= 1;
        }
        !pipe.closed
    }

    /// Waits, at most `limit`, until every byte was taken and the consumer came back for more, that is, has done with
    /// them what it does. Says whether that happened.
    pub fn wait_drained(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut pipe = self.lock();
        while pipe.in_flight || !pipe.bytes.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            pipe.drainers += 1;
            pipe = self.drained.wait_timeout(pipe, left).unwrap_or_else(PoisonError::into_inner).0;
            pipe.drainers -= 1;
        }
        true
    }

    /// How many wait for room.
    pub fn waiting_producers(&self) -> usize {
        self.lock().writers
    }

    /// Whether nothing waits to be taken.
    pub fn is_empty(&self) -> bool {
        self.lock().bytes.is_empty()
    }

    /// Whether [`ByteQueue::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn fill(&self, pipe: &mut Pipe, bytes: &[u8]) -> usize {
        let room = self.capacity.saturating_sub(pipe.bytes.len());
        let (now, _) = bytes.split_at(room.min(bytes.len()));
        self.put(pipe, now);
        now.len()
    }

    fn put(&self, pipe: &mut Pipe, bytes: &[u8]) {
        pipe.bytes.extend(bytes);
        if !bytes.is_empty() {
            if pipe.readers > 0 {
                self.readable.notify_one();
            }
            if let Some(waker) = pipe.on_readable.take() {
                waker.wake();
            }
        }
    }

    fn take(&self, pipe: &mut Pipe, into: &mut [u8]) -> usize {
        let count = into.len().min(pipe.bytes.len());
        for (to, from) in into.iter_mut().zip(pipe.bytes.drain(..count)) {
            *to = from;
        }
        pipe.in_flight = count > 0;
        if pipe.bytes.is_empty() && pipe.bytes.capacity() > KEEP {
            pipe.bytes = VecDeque::new();
        }
        if count > 0 {
            if pipe.writers > 0 {
                self.writable.notify_all();
            }
            if let Some(waker) = pipe.on_writable.take() {
                waker.wake();
            }
        }
        count
    }

    fn back_for_more(&self, pipe: &mut Pipe) {
        pipe.in_flight = false;
        if pipe.drainers > 0 && pipe.bytes.is_empty() {
            self.drained.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pipe> {
        self.pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    #[test]
    fn a_full_queue_holds_the_producer_and_loses_nothing() {
        let queue = Arc::new(ByteQueue::new(16));
        let sent: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        let producer = {
            let (queue, sent) = (queue.clone(), sent.clone());
            thread::spawn(move || {
                queue.push(&sent).unwrap();
                queue.close();
            })
        };
        let mut got: Vec<u8> = Vec::new();
        let mut chunk = [0; 7];
        loop {
            match queue.pop(&mut chunk) {
                0 => break,
                n => got.extend(&chunk[..n]),
            }
        }
        producer.join().unwrap();
        assert_eq!(got, sent);
    }

    #[test]
    fn try_push_says_how_many_bytes_fitted() {
        let queue = ByteQueue::new(4);
        assert_eq!(queue.try_push(b"abc"), 3);
        assert_eq!(queue.try_push(b"def"), 1);
        assert_eq!(queue.try_push(b"ef"), 0);
        let mut out = [0; 8];
        assert_eq!(queue.try_pop(&mut out), 4);
        assert_eq!(&out[..4], b"abcd");
        assert_eq!(queue.try_pop(&mut out), 0);
    }

    #[test]
    fn a_producer_that_shall_not_wait_any_more_stops_at_the_nudge() {
        let queue = Arc::new(ByteQueue::new(4));
        queue.push(b"full").unwrap();
        let go_on = Arc::new(AtomicBool::new(true));
        let (own, asked) = (queue.clone(), go_on.clone());
        let producer = thread::spawn(move || {
            own.push_over(b"more");
            own.wait_while_over(|| asked.load(Ordering::SeqCst));
        });
        while queue.waiting_producers() == 0 {
            thread::yield_now();
        }
        go_on.store(false, Ordering::SeqCst);
        queue.nudge();
        producer.join().unwrap();
        assert!(queue.is_over());
        assert_eq!(queue.pop(&mut [0; 4]), 4);
        assert!(!queue.is_over(), "as much as it shall hold");
        queue.wait_while_over(|| panic!("there is no need to wait"));
    }

    #[test]
    fn close_wakes_a_blocked_producer_and_a_blocked_consumer() {
        let full = Arc::new(ByteQueue::new(1));
        full.push(b"x").unwrap();
        let producer = thread::spawn({
            let full = full.clone();
            move || full.push(b"y")
        });
        let empty = Arc::new(ByteQueue::new(1));
        let consumer = thread::spawn({
            let empty = empty.clone();
            move || empty.pop(&mut [0; 1])
        });
        while full.waiting_producers() == 0 || empty.lock().readers == 0 {
            thread::yield_now();
        }
        full.close();
        empty.close();
        assert_eq!(producer.join().unwrap(), Err(Closed));
        assert_eq!(consumer.join().unwrap(), 0);
        assert_eq!(full.push(b"z"), Err(Closed));
        assert_eq!(full.try_push(b"z"), 0);
        assert!(full.is_closed());
    }

    #[test]
    fn bytes_inside_a_closed_queue_can_still_be_taken() {
        let queue = ByteQueue::new(8);
        queue.push(b"last").unwrap();
        queue.close();
        let mut out = [0; 16];
        assert_eq!(queue.pop(&mut out), 4);
        assert_eq!(queue.pop(&mut out), 0);
    }

    #[test]
    fn drained_means_that_the_consumer_came_back() {
        let queue = Arc::new(ByteQueue::new(8));
        assert!(queue.wait_drained(Duration::ZERO));
        queue.push(b"a").unwrap();
        let mut byte = [0; 1];
        assert_eq!(queue.pop(&mut byte), 1);
        assert!(queue.is_empty());
        assert!(!queue.wait_drained(Duration::from_millis(5)), "the consumer still holds the byte");
        let waiter = thread::spawn({
            let queue = queue.clone();
            move || queue.wait_drained(Duration::from_secs(60))
        });
        assert_eq!(queue.try_pop(&mut byte), 0);
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn wait_room_ends_with_room_with_time_or_with_close() {
        let queue = ByteQueue::new(1);
        assert!(queue.wait_room(Duration::ZERO));
        queue.push(b"x").unwrap();
        assert!(!queue.wait_room(Duration::from_millis(1)));
        queue.try_pop(&mut [0; 1]);
        assert!(queue.wait_room(Duration::ZERO));
        queue.close();
        assert!(!queue.wait_room(Duration::from_secs(60)));
    }

    #[test]
    fn an_event_loop_is_woken_once_when_it_can_go_on() {
        struct Count(std::sync::atomic::AtomicUsize);
        impl std::task::Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let count = Arc::new(Count(0.into()));
        let waker = Waker::from(count.clone());
        let woken = || count.0.load(Ordering::SeqCst);
        let queue = ByteQueue::new(2);
        let mut out = [0; 4];
        assert_eq!(queue.poll_pop(&waker, &mut out), Poll::Pending);
        assert_eq!(queue.poll_push(&waker, b"abc"), Poll::Ready(Ok(2)));
        assert_eq!((woken(), queue.poll_push(&waker, b"c")), (1, Poll::Pending));
        assert_eq!((queue.try_pop(&mut out[..1]), woken()), (1, 2));
        assert_eq!((queue.poll_pop(&waker, &mut out), woken()), (Poll::Ready(1), 2));
        assert_eq!(queue.poll_pop(&waker, &mut out), Poll::Pending);
        queue.close();
        assert_eq!((queue.poll_pop(&waker, &mut out), woken()), (Poll::Ready(0), 3));
        assert_eq!(queue.poll_push(&waker, b"d"), Poll::Ready(Err(Closed)));
    }

    #[test]
    fn an_event_loop_may_put_in_more_than_fits_once() {
        let queue = ByteQueue::new(2);
        let (waker, mut out) = (Waker::noop(), [0; 8]);
        assert_eq!(queue.poll_push_over(waker, b"ab"), Poll::Ready(Ok(false)));
        assert_eq!(queue.poll_push_over(waker, b"cde"), Poll::Ready(Ok(true)));
        assert_eq!(queue.poll_push_over(waker, b"f"), Poll::Pending);
        assert_eq!(queue.try_pop(&mut out[..2]), 2);
        assert_eq!(queue.poll_push_over(waker, b"f"), Poll::Pending, "three bytes are left");
        assert_eq!(queue.try_pop(&mut out[2..3]), 1);
        assert_eq!(queue.poll_push_over(waker, b"f"), Poll::Ready(Ok(true)));
        assert_eq!((queue.try_pop(&mut out[3..]), &out[..6]), (3, &b"abcdef"[..]));
        queue.close();
        assert_eq!(queue.poll_push_over(waker, b"g"), Poll::Ready(Err(Closed)));
    }

    #[test]
    fn an_idle_queue_keeps_no_large_buffer() {
        let queue = ByteQueue::new(1 << 16);
        assert_eq!(queue.lock().bytes.capacity(), 0);
        queue.push(&vec![1; 1 << 16]).unwrap();
        queue.try_pop(&mut vec![0; 1 << 16]);
        assert!(queue.lock().bytes.capacity() <= KEEP);
    }

    #[test]
    fn popping_into_nothing_returns_at_once() {
        assert_eq!(ByteQueue::new(1).pop(&mut []), 0);
    }
}
