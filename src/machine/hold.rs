//! A machine that rests for a save, a copy or a freeze, whatever others want of it meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::PauseError;
use super::controls::Controls;
use super::supervisor::Command;

/// Holds a machine at rest. When the last hold is dropped it goes on, unless somebody has paused it ([`Controls::pause`]), before or
/// meanwhile. [`Controls::resume`] has it go on all the same: whoever holds it has to look whether it rested all the time
/// ([`Controls::check_paused`]).
#[derive(Debug)]
pub(super) struct Hold<'a> {
    controls: &'a Controls,
    id: u64,
}

impl<'a> Hold<'a> {
    /// Brings the machine to rest, for which it waits until `limit`.
    pub(super) fn begin(controls: &'a Controls, limit: Duration) -> Result<Self, PauseError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // First, so that one that is waited for in vain is given up.
        let hold = Hold { controls, id: NUMBER.fetch_add(1, Ordering::Relaxed) };
        controls.pause_by(|answer| Command::Hold(hold.id, answer), limit)?;
        Ok(hold)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let _ = self.controls.ask(|answer| Command::Release(self.id, answer)).recv();
    }
}
