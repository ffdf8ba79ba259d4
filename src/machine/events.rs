//! What happens to a machine, for those who want to hear of it.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::net_handles::BoundForward;

/// Events that wait for a listener. A guest may reset itself all day, and nobody may be listening.
const MOST_WAITING: usize = 256;
/// The same for failures of devices, which a guest can cause faster than it can reset itself: the other half is for what
/// happens to the machine.
const MOST_FAILURES: usize = MOST_WAITING / 2;

/// Something that happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "event", content = "detail", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MachineEvent {
    /// Its processors run again, after a reset. Of the first time nobody can hear: they run when
    /// [`Machine::start`](crate::Machine::start) returns.
    Booted,
    /// It rests: see [`Machine::pause`](crate::Machine::pause).
    Paused,
    /// It goes on.
    Resumed,
    /// Its guest was reset, by itself or by command; [`MachineEvent::Booted`] follows, unless the machine ends before.
    Reset,
    /// It has gone back to a snapshot, and goes on from there.
    Reverted,
    /// Its guest's kernel panicked; [`MachineEvent::Exited`] follows.
    Panicked,
    /// A device waits for its driver to reset it, because of what the driver did or what the host refused.
    DeviceFailed {
        /// Such as `vda`.
        device: String,
        /// In words.
        reason: String,
    },
    /// The host has no room for what its guest writes to a disk with `on-full=pause`; [`MachineEvent::Paused`] follows, unless it
    /// is paused already. It writes again when it is resumed.
    DiskFull {
        /// Such as `vda`.
        disk: String,
        /// Where it is on the host.
        path: String,
    },
    /// A port of the host leads to its guest from now on.
    ForwardAdded(BoundForward),
    /// A port of the host leads to its guest no longer; connections go on.
    ForwardRemoved(BoundForward),
    /// The guest sees another size of a disk that has grown.
    DiskResized {
        /// Such as `vda`.
        disk: String,
        /// In bytes.
        size: u64,
    },
    /// A disk was taken out of its drive.
    DiskEjected {
        /// Such as `vdb`.
        disk: String,
    },
    /// A disk was put into a drive.
    DiskInserted {
        /// Such as `vdb`.
        disk: String,
    },
    /// So many events came while nobody took them, and were dropped.
    Missed(u64),
    /// It has ended; [`Machine::wait`](crate::Machine::wait) says how. Nothing follows.
    Exited,
}

/// What a machine does at the moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MachineState {
    /// Its processors run, or it is about to boot.
    #[default]
    Running,
    /// It rests.
    Paused,
    /// It has ended.
    Ended,
}

/// A machine's events from when it was asked for, in order. As an iterator it waits for each, and ends with the machine.
#[derive(Debug)]
pub struct Events(Arc<Listener>);

impl Events {
    /// The next event, if one comes within `limit`; `None` also once the machine has ended.
    pub fn next_within(&self, limit: Duration) -> Option<MachineEvent> {
        let deadline = Instant::now().checked_add(limit);
        let mut waiting = self.0.lock();
        loop {
            if let Some(event) = waiting.take() {
                return Some(event);
            }
            if waiting.ended {
                return None;
            }
            waiting = match deadline {
                None => self.0.came.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now())?;
                    self.0.came.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

impl Iterator for Events {
    type Item = MachineEvent;

    fn next(&mut self) -> Option<MachineEvent> {
        self.next_within(Duration::MAX)
    }
}

#[derive(Debug, Default)]
struct Listener {
    waiting: Mutex<Waiting>,
    came: Condvar,
}

impl Listener {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<MachineEvent>,
    missed: u64,
    ended: bool,
}

impl Waiting {
    fn take(&mut self) -> Option<MachineEvent> {
        match std::mem::take(&mut self.missed) {
            0 => self.events.pop_front(),
            missed => Some(MachineEvent::Missed(missed)),
        }
    }
}

/// The machine's side: tells every listener that is still there.
#[derive(Debug, Clone, Default)]
pub(super) struct Publisher(Arc<Mutex<Audience>>);

#[derive(Debug, Default)]
struct Audience {
    listeners: Vec<Weak<Listener>>,
    /// As the events so far have it.
    state: MachineState,
    /// Disks that wait for room.
    full: Vec<String>,
}

impl Audience {
    fn forget_those_gone(&mut self) {
        self.listeners.retain(|listener| listener.strong_count() > 0);
    }
}

impl Publisher {
    pub(super) fn publish(&self, event: MachineEvent) {
        let mut audience = self.lock();
        audience.state = match event {
            MachineEvent::Paused => MachineState::Paused,
            MachineEvent::Reset | MachineEvent::Booted | MachineEvent::Resumed | MachineEvent::Reverted => {
                MachineState::Running
            }
            MachineEvent::Exited => MachineState::Ended,
            _ => audience.state,
        };
        match &event {
            MachineEvent::DiskFull { disk, .. } if !audience.full.contains(disk) => {
                audience.full.push(disk.clone());
            }
            MachineEvent::Resumed
            | MachineEvent::Reset
            | MachineEvent::Booted
            | MachineEvent::Reverted
            | MachineEvent::Exited => audience.full.clear(),
            _ => {}
        }
        audience.forget_those_gone();
        for listener in audience.listeners.iter().filter_map(Weak::upgrade) {
            let mut waiting = listener.lock();
            let is_failure = matches!(event, MachineEvent::DeviceFailed { .. });
            if is_failure && waiting.events.len() >= MOST_FAILURES {
                waiting.missed += 1;
                listener.came.notify_all();
                continue;
            }
            if waiting.events.len() >= MOST_WAITING {
                waiting.events.pop_front();
                waiting.missed += 1;
            }
            waiting.ended |= event == MachineEvent::Exited;
            waiting.events.push_back(event.clone());
            listener.came.notify_all();
        }
    }

    /// A new listener. One that comes when all is over hears just that: it either is among those that hear of the end, or
    /// sees here that it was said.
    pub(super) fn listen(&self) -> Events {
        let listener = Arc::new(Listener::default());
        let mut audience = self.lock();
        audience.forget_those_gone();
        listener.lock().ended = audience.state == MachineState::Ended;
        audience.listeners.push(Arc::downgrade(&listener));
        Events(listener)
    }

    pub(super) fn state(&self) -> MachineState {
        self.lock().state
    }

    pub(super) fn full_disks(&self) -> Vec<String> {
        self.lock().full.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Audience> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listener_hears_all_in_order_until_the_end() {
        let publisher = Publisher::default();
        let (first, second) = (publisher.listen(), publisher.listen());
        let all = [MachineEvent::Booted, MachineEvent::Paused, MachineEvent::Exited];
        all.iter().for_each(|event| publisher.publish(event.clone()));
        assert_eq!(first.collect::<Vec<_>>(), all);
        assert_eq!(second.collect::<Vec<_>>(), all);
        assert_eq!(publisher.listen().next(), None);
    }

    #[test]
    fn a_listener_that_sleeps_costs_little_and_is_told_what_it_missed() {
        let publisher = Publisher::default();
        let mut events = publisher.listen();
        for _ in 0..MOST_WAITING + 10 {
            publisher.publish(MachineEvent::Reset);
        }
        assert_eq!(events.next(), Some(MachineEvent::Missed(10)));
        for _ in 0..MOST_WAITING {
            assert_eq!(events.next(), Some(MachineEvent::Reset));
        }
        assert_eq!(events.next_within(Duration::from_millis(1)), None);
        drop(events);
        publisher.publish(MachineEvent::Reset);
        assert!(publisher.lock().listeners.is_empty());
    }

    #[test]
    fn failures_without_end_push_out_nothing_that_happened_to_the_machine() {
        let publisher = Publisher::default();
        let mut events = publisher.listen();
        publisher.publish(MachineEvent::Paused);
        for _ in 0..10 * MOST_WAITING {
            publisher.publish(MachineEvent::DeviceFailed { device: "vda".into(), reason: "its ring".into() });
        }
        publisher.publish(MachineEvent::Exited);
        assert!(matches!(events.next(), Some(MachineEvent::Missed(missed)) if missed > 2000));
        assert_eq!(events.next(), Some(MachineEvent::Paused));
        assert_eq!(events.last(), Some(MachineEvent::Exited));
    }

    #[test]
    fn disks_that_wait_for_room_do_so_until_the_machine_goes_on() {
        let publisher = Publisher::default();
        let full =
            |disk: &str| publisher.publish(MachineEvent::DiskFull { disk: disk.into(), path: "p".into() });
        for goes_on in [MachineEvent::Resumed, MachineEvent::Reset, MachineEvent::Exited] {
            ["vda", "vdc", "vda"].iter().for_each(|disk| full(disk));
            publisher.publish(MachineEvent::Paused);
            assert_eq!(publisher.full_disks(), ["vda", "vdc"]);
            publisher.publish(goes_on);
            assert!(publisher.full_disks().is_empty());
        }
    }

    #[test]
    fn those_who_listen_in_a_row_while_nothing_happens_cost_nothing() {
        let publisher = Publisher::default();
        (0..100).for_each(|_| drop(publisher.listen()));
        assert_eq!(publisher.lock().listeners.len(), 1);
    }

    #[test]
    fn a_listener_that_comes_amid_the_end_hears_of_it() {
        for _ in 0..1000 {
            let publisher = Publisher::default();
            let other = publisher.clone();
            let thread = std::thread::spawn(move || other.publish(MachineEvent::Exited));
            let heard = publisher.listen().collect::<Vec<_>>();
            assert!(heard.is_empty() || heard == [MachineEvent::Exited], "{heard:?}");
            thread.join().unwrap();
        }
    }
}
