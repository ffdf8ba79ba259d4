//! A disk of nothing, which looks at what it is asked for.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use virtio::block::{AnyEngine, Completion, Engine, Extent, Operation, SECTOR, Tag};
use virtio::memory::{Memory, Segment, total};
use virtio::poll::{Epoll, Interest, Poller, Token};

/// Of the disk.
pub const SECTORS: u64 = 4096;

/// Makes one.
pub fn checked() -> io::Result<AnyEngine> {
    let poller = Epoll::new()?;
    let (busy, ended, late) = Default::default();
    Ok(Box::new(Checked { poller, done: 0, count: 0, busy, ended, late }))
}

/// Completes every third operation late and every fifth with an error.
#[derive(Debug)]
struct Checked {
    poller: Epoll,
    done: Token,
    count: usize,
    busy: Vec<Tag>,
    ended: VecDeque<Completion>,
    late: VecDeque<Completion>,
}

impl Engine for Checked {
    fn attach(&mut self, done: Token, _: &Memory) {
        self.done = done;
        assert!(self.busy.is_empty(), "nothing is in flight at a start");
    }

    fn submit(&mut self, tag: Tag, operation: Operation, extent: Extent, segments: &[Segment]) {
        let Extent { offset, len } = extent;
        assert!(offset % SECTOR == 0 && len % SECTOR == 0);
        assert!(offset.checked_add(len).is_some_and(|end| end <= SECTORS * SECTOR), "on the disk");
        let moves = matches!(operation, Operation::Read | Operation::Write);
        assert_eq!(total(segments), if moves { len } else { 0 });
        assert!(!self.busy.contains(&tag), "a tag is of one operation");
        self.busy.push(tag);
        self.count += 1;
        let result = if self.count % 5 == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) };
        let completion = Completion { tag, result };
        if self.count % 3 == 0 { self.late.push_back(completion) } else { self.ended.push_front(completion) }
    }

    fn completed(&mut self) -> Option<Completion> {
        let completion = self.ended.pop_front()?;
        self.busy.retain(|tag| *tag != completion.tag);
        Some(completion)
    }

    fn drain(&mut self) -> io::Result<()> {
        self.ended.append(&mut self.late);
        Ok(())
    }
}

impl Poller for Checked {
    fn watch(&mut self, fd: RawFd, token: Token, interest: Interest) -> io::Result<()> {
        self.poller.watch(fd, token, interest)
    }

    fn unwatch(&mut self, fd: RawFd, token: Token) -> io::Result<()> {
        self.poller.unwatch(fd, token)
    }

    fn wait(&mut self, limit: Option<Duration>, ready: &mut Vec<Token>) -> io::Result<()> {
        self.ended.append(&mut self.late);
        if self.ended.is_empty() {
            return self.poller.wait(limit, ready);
        }
        ready.push(self.done);
        self.poller.wait(Some(Duration::ZERO), ready)
    }
}
