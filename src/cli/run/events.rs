//! The queue between the threads of a run and the main one, which handles the events.

use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::time::Duration;

use super::ports::RunEvent;

/// Most events of the guest's doing that wait to be handled. Then the threads that read from it wait, and the guest with them once its
/// ports are full: else what it says would take memory without a limit.
const MOST_WAITING: usize = 64;

/// Sends what the guest causes.
#[derive(Debug, Clone)]
pub(super) struct GuestSender {
    events: Sender<RunEvent>,
    /// Has an entry for each event that waits.
    waiting: SyncSender<()>,
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Events {
    events: Receiver<RunEvent>,
    waiting: Receiver<()>,
}

/// The ends: for what the host causes, for what the guest does, and the receiving one.
pub(super) fn channel() -> (Sender<RunEvent>, GuestSender, Events) {
    let ((sender, events), (room, waiting)) = (mpsc::channel(), mpsc::sync_channel(MOST_WAITING));
    (sender.clone(), GuestSender { events: sender, waiting: room }, Events { events, waiting })
}

impl GuestSender {
    /// Waits while too many are not handled yet. Without a receiver the event is gone.
    pub(super) fn send(&self, event: RunEvent) {
        debug_assert!(is_guests(&event), "{event:?}");
        if self.waiting.send(()).is_ok() {
            let _ = self.events.send(event);
        }
    }
}

impl Events {
    /// The next one; `None` if there is none within the limit.
    pub(super) fn next(&self, limit: Duration) -> Option<RunEvent> {
        let event = self.events.recv_timeout(limit).ok()?;
        if is_guests(&event) {
            let _ = self.waiting.try_recv();
        }
        Some(event)
    }
}

/// Whether it comes from a [`GuestSender`]. A guest causes the others a few times at most.
fn is_guests(event: &RunEvent) -> bool {
    matches!(
        event,
        RunEvent::Ready
            | RunEvent::Up
            | RunEvent::NoDirectory
            | RunEvent::Packed(_)
            | RunEvent::Init(_)
            | RunEvent::CommandExited(_)
            | RunEvent::StreamComplete(..)
    )
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::RecvTimeoutError;

    use devices::console::ByteQueue;

    use super::super::ports::{read_init_lines, spawn};
    use super::*;

    #[test]
    fn guest_that_says_more_than_is_heard_waits() {
        const LINES: usize = 10_000;
        let queue = std::sync::Arc::new(ByteQueue::new(1 << 20));
        queue.push(&b"ready\n".repeat(LINES)).unwrap();
        queue.close();
        let (sender, guest, events) = channel();
        let reader = move |closed| read_init_lines(&queue, &guest, &closed);
        spawn("run", &sender, reader).unwrap();
        drop(sender);
        // Handled, but not told so.
        for _ in 0..MOST_WAITING {
            events.events.recv().unwrap();
        }
        // Without the limit all the others come here in a moment.
        let more = events.events.recv_timeout(Duration::from_millis(200));
        assert_eq!(more.unwrap_err(), RecvTimeoutError::Timeout);
        (0..MOST_WAITING).for_each(|_| events.waiting.recv().unwrap());
        let rest: Vec<_> = std::iter::from_fn(|| events.next(Duration::from_secs(3600))).collect();
        assert_eq!(rest.len(), LINES - MOST_WAITING + 1);
        assert!(matches!(rest.last(), Some(RunEvent::Closed)));
        assert!(events.waiting.try_recv().is_err());
    }
}
