//! An operation in flight on a ring, and its submission entry.

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags};
use virtio::block::Extent;

use super::file::{DiskFile, mode};
use super::transfer::Transfer;

/// An operation in flight. Its lists do not move until it completes.
#[derive(Debug, Default)]
pub(super) struct Flight {
    /// The file that it is for, by its number in the engine.
    pub(super) file: usize,
    pub(super) step: Step,
    pub(super) extent: Extent,
    pub(super) transfer: Transfer,
    /// It is tried again on a kernel thread, which may block.
    pub(super) may_block: bool,
}

/// The kind of submission.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    #[default]
    Idle,
    Read,
    Write,
    Flush,
    Hole,
    /// As a hole or with allocated space; as plain writes where the host has no such call.
    Zero {
        unmap: bool,
    },
}

impl Flight {
    /// The submission entry for the rest of the operation. It points into the flight's lists.
    pub(super) fn entry(&self, file: &DiskFile) -> Option<Entry> {
        let (transfer, extent) = (&self.transfer, self.extent);
        let fd = Fd(file.fd());
        let space = |mode| opcode::Fallocate::new(fd, extent.len).offset(extent.offset).mode(mode).build();
        let pieces = transfer.pieces();
        // At most UIO_MAXIOV.
        let count = u32::try_from(pieces.len()).unwrap_or(0);
        let offset = transfer.rest().offset;
        let entry = match self.step {
            Step::Idle => return None,
            Step::Read => {
                opcode::Readv::new(Fd(file.fd_for(transfer)), pieces.as_ptr(), count).offset(offset).build()
            }
            Step::Write => {
                opcode::Writev::new(Fd(file.fd_for(transfer)), pieces.as_ptr(), count).offset(offset).build()
            }
            Step::Flush => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Step::Hole | Step::Zero { unmap: true } => space(mode::HOLE),
            Step::Zero { unmap: false } => space(mode::ZERO),
        };
        let flags = if self.may_block { Flags::ASYNC } else { Flags::empty() };
        Some(entry.flags(flags))
    }
}
