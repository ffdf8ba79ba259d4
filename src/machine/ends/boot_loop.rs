//! The guard against a guest that boots for ever and never comes up.

use std::time::Duration;

/// So many boots in a row ...
pub(super) const BOOTS: u32 = 5;
/// ... each shorter than this, none of which came up, are a loop.
pub(in crate::machine) const SHORT_BOOT: Duration = Duration::from_secs(10);

/// Counts boots that came to nothing.
#[derive(Debug, Default)]
pub(in crate::machine) struct BootLoop {
    boots: u32,
}

impl BootLoop {
    /// The guest has reset itself after it ran for so long. `Some` says after how many such boots it has to end.
    pub(in crate::machine) fn after_reset(&mut self, ran: Duration, came_up: bool) -> Option<u32> {
        self.boots = if came_up || ran >= SHORT_BOOT { 0 } else { self.boots.saturating_add(1) };
        (self.boots >= BOOTS).then_some(self.boots)
    }

    /// The machine was reset from outside.
    pub(in crate::machine) fn after_command(&mut self) {
        self.boots = 0;
    }
}
