//! Host errors in the log: each of the first, then a line in a while, since a guest tries again all day.

use std::io;

use devices::ration::Ration;

use super::engine::{Extent, Operation};

/// A ration for each kind of operation: reads that fail do not hide that a flush did.
#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    reads: Ration,
    writes: Ration,
    flushes: Ration,
    space: Ration,
}

impl ErrorLog {
    /// The host could not do `operation` on `extent` of disk `name`; the guest gets an error too.
    pub(super) fn failed(&self, name: &str, operation: Operation, extent: Extent, error: &io::Error) {
        let (what, ration) = match operation {
            Operation::Read => ("read", &self.reads),
            Operation::Write => ("write", &self.writes),
            Operation::Flush => ("flush its file", &self.flushes),
            Operation::Discard => ("discard", &self.space),
            Operation::WriteZeroes { .. } => ("zero", &self.space),
        };
        let Some(left_out) = ration.take() else { return };
        let Extent { offset, len } = extent;
        let place = if len > 0 { format!(" {len} bytes at {offset}") } else { String::new() };
        log::error!(
            "{name}: the host could not {what}{place}: {error}; the guest gets an I/O error{left_out}"
        );
    }
}
