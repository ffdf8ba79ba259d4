//! How long a switch lives: as long as a port is there, and a while before the first one and behind the last one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::command::End;

/// Time after the last port left: a machine that reboots or is started again finds its switch.
const GRACE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 3 });
/// Time for a machine that has started the switch, or has asked for it, to attach.
const ARRIVAL: Duration = Duration::from_secs(60);

/// Who wants the switch to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeper {
    /// A user: it waits for its first port as long as it takes.
    User,
    /// A machine, which attaches at once.
    Machine,
    /// `--keep`: it ends by request only.
    Kept,
}

/// Most callers that are waited for.
const MAX_HOLDS: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Life {
    keeper: Keeper,
    /// Since when there has been no port; `None` while there is one, and before the first one that a user waits for.
    empty_since: Option<Instant>,
    /// Until when callers that will attach are waited for, the earliest first.
    holds: VecDeque<Instant>,
    had_ports: bool,
}

impl Life {
    pub(super) fn new(keeper: Keeper, now: Instant) -> Self {
        // That of the machine is its first call.
        let empty_since = (keeper == Keeper::Machine).then_some(now);
        Life { keeper, empty_since, holds: VecDeque::new(), had_ports: false }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.keeper == Keeper::Kept
    }

    /// A caller will attach soon.
    pub(super) fn hold(&mut self, now: Instant) {
        if self.holds.len() == MAX_HOLDS {
            self.holds.pop_front();
        }
        self.holds.push_back(now + ARRIVAL);
    }

    /// A port has come.
    pub(super) fn arrived(&mut self) {
        self.holds.pop_front();
        (self.empty_since, self.had_ports) = (None, true);
    }

    /// A caller that would have attached was refused.
    pub(super) fn refused(&mut self) {
        self.holds.pop_front();
    }

    /// The last port has gone.
    pub(super) fn emptied(&mut self, now: Instant) {
        self.empty_since = Some(now);
    }

    /// When the switch ends if nothing happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let empty = self.empty_since.filter(|_| self.keeper != Keeper::Kept)?;
        let patience = if self.had_ports { GRACE } else { ARRIVAL };
        Some(self.holds.iter().copied().fold(empty + patience, Instant::max))
    }

    /// Why it ends, if it does by now.
    pub(super) fn end(&self, now: Instant) -> Option<End> {
        self.deadline().filter(|at| *at <= now)?;
        Some(if self.had_ports { End::Unused } else { End::NobodyCame })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switch_of_a_machine_waits_for_it_and_ends_some_time_after_the_last_port() {
        let now = Instant::now();
        let mut life = Life::new(Keeper::Machine, now);
        assert_eq!(life.deadline(), Some(now + ARRIVAL));
        assert_eq!(life.end(now + ARRIVAL), Some(End::NobodyCame));
        life.hold(now);
        life.arrived();
        assert_eq!(life.deadline(), None);
        life.emptied(now);
        assert_eq!(life.end(now + GRACE - Duration::from_millis(1)), None);
        assert_eq!(life.end(now + GRACE), Some(End::Unused));
    }

    #[test]
    fn every_caller_that_will_attach_is_waited_for() {
        let now = Instant::now();
        let mut life = Life::new(Keeper::User, now);
        (0..2).for_each(|_| life.hold(now));
        life.arrived();
        life.emptied(now);
        assert_eq!(life.deadline(), Some(now + ARRIVAL), "one has come and gone, the other one has not come");
        life.arrived();
        life.emptied(now);
        assert_eq!(life.deadline(), Some(now + GRACE));
        life.hold(now);
        life.refused();
        assert_eq!(life.deadline(), Some(now + GRACE), "one that is refused will not come");
        (0..10_000).for_each(|_| life.hold(now));
        assert_eq!(life.holds.len(), MAX_HOLDS);
    }

    #[test]
    fn switch_of_a_user_waits_for_its_first_port_and_a_kept_one_for_ever() {
        let now = Instant::now();
        let mut life = Life::new(Keeper::User, now);
        assert_eq!(life.deadline(), None);
        life.arrived();
        life.emptied(now);
        assert_eq!(life.deadline(), Some(now + GRACE));
        let mut kept = Life::new(Keeper::Kept, now);
        kept.arrived();
        kept.emptied(now);
        assert_eq!(kept.deadline(), None);
    }
}
