//! Threads for what blocks. None of them keeps another waiting for longer than a mapping changes.

use std::io;
use std::sync::Arc;

use virtio::block::Completion;

use super::super::helper::Helper;
use super::change::Job;
use super::disk::ImageDisk;

/// See the module.
#[derive(Debug)]
pub(super) struct Threads {
    read: Helper<Job>,
    write: Option<Helper<Job>>,
    space: Option<Helper<Job>>,
    flush: Option<Helper<Job>>,
}

impl Threads {
    pub(super) fn new(disk: &Arc<ImageDisk>) -> io::Result<Self> {
        let thread = |what| {
            let disk = disk.clone();
            Helper::with(what, move |job| disk.run(job))
        };
        let writer = |what| if disk.is_read_only() { Ok(None) } else { thread(what).map(Some) };
        Ok(Threads {
            read: thread("unpack")?,
            write: writer("write")?,
            space: writer("space")?,
            flush: writer("flush")?,
        })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Helper<Job>> {
        std::iter::once(&self.read).chain(&self.write).chain(&self.space).chain(&self.flush)
    }

    /// The next part that has ended.
    pub(super) fn completed(&mut self) -> Option<Completion> {
        let Threads { read, write, space, flush } = self;
        let mut all = std::iter::once(read).chain(write).chain(space).chain(flush);
        all.find_map(Helper::completed)
    }

    /// The thread for `job`; `None` on a disk that is only read.
    pub(super) fn of(&mut self, job: &Job) -> Option<&mut Helper<Job>> {
        match job {
            Job::Read(..) => Some(&mut self.read),
            Job::Write(..) => self.write.as_mut(),
            Job::Space(..) => self.space.as_mut(),
            Job::Flush => self.flush.as_mut(),
        }
    }
}
