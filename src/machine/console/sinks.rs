//! What the guest's consoles write into: the terminal's queue or nothing, past a look-out for the kernel's last lines.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::console::ByteQueue;
use devices::serial::ConsoleSink;
use virtio::console::Backend;
use virtio::device::Context;
use virtio::poll::{Epoll, Token};

use crate::machine::ends::LineWatch;

/// How much of what nobody sees is kept.
const UNSEEN_CAPACITY: usize = 32 << 10;

/// The serial port's way out where it has the terminal.
#[derive(Debug)]
pub(super) struct WatchedOutput {
    queue: Arc<ByteQueue>,
    watch: LineWatch,
}

impl WatchedOutput {
    pub(super) fn new(queue: Arc<ByteQueue>, watch: LineWatch) -> Self {
        WatchedOutput { queue, watch }
    }
}

impl ConsoleSink for WatchedOutput {
    /// Never waits: the vCPU that writes has the port locked, and waits for the reader once it has let go of it
    /// ([`GateTicket::wait_for_room`](crate::machine::gate::GateTicket::wait_for_room)).
    fn write(&mut self, bytes: &[u8]) {
        self.watch.look_at(bytes);
        self.queue.push_over(bytes);
    }
}

/// The serial port's way out where `hvc0` has the terminal: the last of it is shown if the boot ends before the
/// guest has used `hvc0`, because then it says why.
#[derive(Debug)]
pub(super) struct UnseenOutput {
    queue: Arc<ByteQueue>,
    watch: LineWatch,
    unseen: VecDeque<u8>,
    hvc0_in_use: Arc<AtomicBool>,
}

impl UnseenOutput {
    pub(super) fn new(queue: Arc<ByteQueue>, watch: LineWatch, hvc0_in_use: Arc<AtomicBool>) -> Self {
        UnseenOutput { queue, watch, unseen: VecDeque::new(), hvc0_in_use }
    }
}

impl ConsoleSink for UnseenOutput {
    fn write(&mut self, bytes: &[u8]) {
        self.watch.look_at(bytes);
        if self.hvc0_in_use.load(Ordering::Relaxed) {
            self.unseen = VecDeque::new();
            return;
        }
        self.unseen.extend(bytes);
        self.unseen.drain(..self.unseen.len().saturating_sub(UNSEEN_CAPACITY));
    }
}

impl Drop for UnseenOutput {
    fn drop(&mut self) {
        if !self.hvc0_in_use.load(Ordering::Relaxed) {
            // What does not fit is lost; the queue has more room than this, and nobody else wrote.
            self.queue.try_push(self.unseen.make_contiguous());
        }
    }
}

/// The end of `hvc0`.
#[derive(Debug)]
pub(super) struct WatchedPort {
    inner: Box<dyn Backend>,
    watch: LineWatch,
    in_use: Arc<AtomicBool>,
}

impl WatchedPort {
    /// `in_use` is set when the guest writes.
    pub(super) fn new(inner: Box<dyn Backend>, watch: LineWatch, in_use: Arc<AtomicBool>) -> Self {
        WatchedPort { inner, watch, in_use }
    }
}

impl Backend for WatchedPort {
    fn start(&mut self, first: Token, cx: &mut Context<'_, Epoll>) -> io::Result<()> {
        self.inner.start(first, cx)
    }

    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.inner.read(into)
    }

    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(from)?;
        self.watch.look_at(from.get(..count).unwrap_or_default());
        self.in_use.store(true, Ordering::Relaxed);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use virtio::console::{Nobody, Stream};

    use super::*;
    use crate::machine::BootNumber;
    use crate::machine::ends::{End, Watch};

    /// A watch, and whether the kernel has panicked by it.
    fn watch() -> (Watch, impl Fn() -> bool) {
        let watch = Watch::new(BootNumber::default(), 0, mpsc::channel().0);
        let asked = watch.clone();
        (watch, move || asked.reset() == End::Panicked)
    }

    fn sees(chunks: &[&str]) -> bool {
        let (watch, panicked) = watch();
        let mut lines = watch.ttys0();
        chunks.iter().for_each(|chunk| lines.look_at(chunk.as_bytes()));
        panicked()
    }

    #[test]
    fn the_panic_line_is_seen_however_it_is_cut() {
        assert!(sees(&["[    0.5] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"]));
        assert!(sees(&["Kernel pan", "ic - not sync", "ing: x", "\n"]));
        assert!(sees(&["Kernel panic\nKernel panic - not syncing: x\n"]));
    }

    #[test]
    fn other_lines_are_not_a_panic() {
        assert!(!sees(&["Kernel panic - not syncin", "\nKernel panic\n"]));
        assert!(!sees(&["panic=-1 console=ttyS0\n"]));
        assert!(!sees(&["KKernel panic - not syncing: x\n"]));
    }

    #[test]
    fn serial_output_is_shown_when_a_boot_ends_before_hvc0_was_used_and_only_then() {
        for used in [false, true] {
            let (queue, in_use) = (Arc::new(ByteQueue::new(64 << 10)), Arc::default());
            let (watch, _) = watch();
            let mut serial = UnseenOutput::new(queue.clone(), watch.ttys0(), Arc::clone(&in_use));
            serial.write(&[b'.'; UNSEEN_CAPACITY]);
            serial.write(b"VFS: Unable to mount root fs");
            if used {
                let stream = Stream::new(Arc::new(ByteQueue::new(1)), queue.clone()).unwrap();
                let mut hvc0 = WatchedPort::new(Box::new(stream), watch.hvc0(), in_use);
                assert_eq!(hvc0.write(b"login: ").unwrap(), 7);
            }
            drop(serial);
            let mut text = vec![0; 64 << 10];
            let count = queue.try_pop(&mut text);
            match used {
                true => assert_eq!(&text[..count], b"login: "),
                false => assert!(text[..count].ends_with(b".VFS: Unable to mount root fs")),
            }
            assert!(count <= UNSEEN_CAPACITY);
        }
    }

    #[test]
    fn panic_line_is_seen_on_a_console_that_nobody_looks_at() {
        let (watch, panicked) = watch();
        let mut hvc0 = WatchedPort::new(Box::new(Nobody), watch.hvc0(), Arc::default());
        assert!(!panicked());
        assert_eq!(hvc0.write(b"Kernel panic - not syncing: x\r\n").unwrap(), 31);
        assert!(panicked());
    }
}
