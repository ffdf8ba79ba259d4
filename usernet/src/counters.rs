//! What a network counts.

use crate::packet::Drop;

/// What a network has done so far, and has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Frames that the guest sent.
    pub frames: u64,
    /// Frames that it was given.
    pub frames_out: u64,
    /// Frames that break their protocol's rules.
    pub malformed: u64,
    /// IP fragments, which are not put together.
    pub fragments: u64,
    /// Frames from addresses that the guest cannot have.
    pub spoofed: u64,
    /// Frames that nothing here takes.
    pub unknown: u64,
    /// What was refused because a limit was reached.
    pub full: u64,
    /// What the guest may not reach.
    pub forbidden: u64,
    /// TCP connections now.
    pub connections: usize,
    /// Flows of UDP and echo requests now.
    pub flows: usize,
    /// Bytes in buffers of TCP connections now.
    pub buffered: usize,
}

impl Counters {
    pub(crate) fn count(&mut self, drop: Drop) {
        let counter = match drop {
            Drop::Malformed => &mut self.malformed,
            Drop::Fragment => &mut self.fragments,
            Drop::Spoofed => &mut self.spoofed,
            Drop::Unknown => &mut self.unknown,
            Drop::Full => &mut self.full,
            Drop::Forbidden => &mut self.forbidden,
        };
        *counter += 1;
    }
}
