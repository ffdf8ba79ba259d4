//! The metadata of a qcow2 image that a machine writes to, on its way to the file, in an order that survives a power cut.
//!
//! imago writes refcount blocks, tables and header as it goes, with no barrier between them. Here its writes are held in memory,
//! where it reads them again, until a [`Commit`] brings them to the medium in steps, with an fdatasync after each:
//!
//! 1. what nothing on the medium points to: refcounts, and new tables. A refcount falls only for a cluster whose last pointer went
//!    with an earlier commit;
//! 2. the refcount table;
//! 3. what points to clusters: L2 tables, the L1 table, the header.
//!
//! The first fdatasync also covers the guest's data, which are in the file before a table points to them. So a power cut between
//! any two writes leaves clusters that nothing points to, and never a pointer to a cluster that is free or not yet written.
//!
//! A cluster whose last pointer goes is not free at once: the medium still points to it. imago is told to leave it alone
//! ([`HeldWrites::may_free`]), the commit notes it, and after the pointer is gone from the medium [`Commit::punch`] gives its space
//! back to the host and [`Commit::free`] makes it free in the image.

mod commit;
mod failure;
mod freed;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::FallocateFlags;

pub use commit::Commit;
pub use failure::flush_failed;
pub use freed::Punched;

use commit::Medium;
use failure::Failures;

use crate::layout::{self, Layout, Table};
use crate::storage::read_padded;

/// Contents of whole clusters, by the number of the cluster in the file.
type Clusters = BTreeMap<u64, Arc<[u8]>>;

/// Changed metadata are written in blocks of this size.
const BLOCK: usize = 4096;

/// See the module.
#[derive(Debug)]
pub struct HeldWrites {
    file: File,
    cluster_bits: u32,
    held: Mutex<Held>,
    medium: Mutex<Medium>,
    may_free: AtomicBool,
    failures: Failures,
    #[cfg(test)]
    log: Mutex<Vec<tests::Event>>,
    /// How many barriers succeed before one fails, and its error.
    #[cfg(test)]
    fails: Mutex<Option<(usize, i32)>>,
    /// The same for writes.
    #[cfg(test)]
    write_fails: Mutex<Option<(usize, i32)>>,
}

/// What is not in the file yet.
#[derive(Debug, Default)]
struct Held {
    /// Written since the last commit began.
    now: Clusters,
    /// On their way with the commit that runs.
    leaving: Clusters,
    /// As the newest header says.
    layout: Layout,
    /// New clusters with their data since the last commit began: bytes of the file, by offset and length.
    filled: Vec<(u64, u64)>,
    /// The same of the commit that runs.
    leaving_filled: Vec<(u64, u64)>,
    /// Tables that a header pointed to since the last commit began, and the next one did not.
    moved: Vec<Table>,
    /// What the header on the medium says instead of the disk's size.
    shown_size: Option<u64>,
}

impl HeldWrites {
    /// Takes over the metadata writes to `file`, a qcow2 image whose header was checked.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let mut header = vec![0; layout::HEADER];
        read_padded(&file, &mut header, 0)?;
        let layout = Layout::parse(&header)?;
        let cluster_bits = layout.cluster_bits;
        let writes = HeldWrites {
            file,
            cluster_bits,
            held: Mutex::new(Held { layout, ..Held::default() }),
            medium: Mutex::default(),
            may_free: AtomicBool::new(false),
            failures: Failures::default(),
            #[cfg(test)]
            log: Mutex::default(),
            #[cfg(test)]
            fails: Mutex::default(),
            #[cfg(test)]
            write_fails: Mutex::default(),
        };
        let medium = Medium::read(&writes, layout)?;
        *lock(&writes.medium) = medium;
        Ok(writes)
    }

    /// Bytes of a cluster.
    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes that wait for a commit.
    pub fn held_bytes(&self) -> u64 {
        let held = lock(&self.held);
        held.now.len() as u64 * self.cluster() + (held.filled.len() * size_of::<(u64, u64)>()) as u64
    }

    /// New clusters have these bytes: a copy of what lies beneath, or zeros, and what the guest wrote. The guest does not know of all that was
    /// written, and would not write it again after a sync that failed.
    pub fn has_filled(&self, offset: u64, length: u64) {
        if length > 0 {
            lock(&self.held).filled.push((offset, length));
        }
    }

    /// Whether a sync has failed, and what the page cache has may not be on the medium. The next [`Commit::take`] then reads and writes what
    /// clusters were filled with: nobody else may write to the file meanwhile.
    pub fn is_doubted(&self) -> bool {
        self.failures.is_cache_doubted()
    }

    /// Whether imago may free clusters now. Only those that were never pointed to, on the medium or in memory: a mapping that
    /// was prepared and given up. If the preparation moved a table, imago would free the old one as well, to which the header on
    /// the medium points: the clusters stay reserved then.
    pub fn may_free(&self) -> bool {
        self.may_free.load(Ordering::Acquire) && lock(&self.held).moved.is_empty()
    }

    /// Does `work`, during which imago may free clusters.
    pub fn freeing<T>(&self, work: impl FnOnce() -> T) -> T {
        self.may_free.store(true, Ordering::Release);
        let result = work();
        self.may_free.store(false, Ordering::Release);
        result
    }

    /// The header on the medium says `size` until [`HeldWrites::show_size`], whatever size the disk is given: new space is not to
    /// be seen after a power cut before it reads as zeros. If it says another one already, that stays.
    pub fn hide_size(&self, size: u64) {
        lock(&self.held).shown_size.get_or_insert(size);
    }

    /// The next commit brings the disk's size to the medium.
    pub fn show_size(&self) {
        lock(&self.held).shown_size = None;
    }

    /// Drops what is held for clusters in which data lie from now on.
    pub fn forget(&self, offset: u64, length: u64) {
        let mut held = lock(&self.held);
        let end = offset.saturating_add(length).div_ceil(self.cluster());
        for cluster in offset >> self.cluster_bits..end {
            held.now.remove(&cluster);
        }
    }

    /// Reads what was written last.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let held = lock(&self.held);
        let find = |cluster| held.now.get(&cluster).or_else(|| held.leaving.get(&cluster));
        self.read_over(find, buffer, offset)
    }

    /// Holds a write back. A part of a cluster that is no known metadata is data, and goes to the file.
    pub(crate) fn write(&self, mut data: &[u8], mut offset: u64) -> io::Result<()> {
        let mut held = lock(&self.held);
        while !data.is_empty() {
            let (cluster, inside) = self.split(offset)?;
            let room = usize::try_from(self.cluster()).map_err(io::Error::other)? - inside;
            let (part, rest) = data.split_at(room.min(data.len()));
            let known = held.now.contains_key(&cluster)
                || held.leaving.contains_key(&cluster)
                || held.layout.holds(cluster);
            if inside == 0 || known {
                let mut contents = vec![0; room + inside];
                if part.len() < contents.len() {
                    let find = |cluster| held.now.get(&cluster).or_else(|| held.leaving.get(&cluster));
                    self.read_over(find, &mut contents, cluster << self.cluster_bits)?;
                }
                for (to, from) in contents.iter_mut().skip(inside).zip(part) {
                    *to = *from;
                }
                if cluster == 0 {
                    let (old, new) = (held.layout, Layout::parse(&contents)?);
                    let tables = [(old.l1, new.l1), (old.refcounts, new.refcounts)];
                    held.moved.extend(
                        tables.iter().filter(|(old, new)| old.offset != new.offset).map(|(old, _)| *old),
                    );
                    held.layout = new;
                }
                held.now.insert(cluster, contents.into());
            } else {
                self.put(part, offset)?;
            }
            offset = offset.checked_add(part.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
            data = rest;
        }
        Ok(())
    }

    /// Begins a commit, when the one that runs has ended.
    pub fn commit(&self) -> Commit<'_> {
        Commit { writes: self, medium: lock(&self.medium) }
    }

    /// The cluster at `offset`, and where in it that is.
    fn split(&self, offset: u64) -> io::Result<(u64, usize)> {
        let inside = usize::try_from(offset & (self.cluster() - 1)).map_err(io::Error::other)?;
        Ok((offset >> self.cluster_bits, inside))
    }

    /// Reads from the clusters that `find` gives, and from the file for all others.
    fn read_over<'a>(
        &self,
        find: impl Fn(u64) -> Option<&'a Arc<[u8]>>,
        mut buffer: &mut [u8],
        mut offset: u64,
    ) -> io::Result<()> {
        while !buffer.is_empty() {
            let (cluster, inside) = self.split(offset)?;
            let room = usize::try_from(self.cluster()).map_err(io::Error::other)? - inside;
            let (part, rest) = buffer.split_at_mut(room.min(buffer.len()));
            match find(cluster) {
                Some(contents) => {
                    for (to, from) in part.iter_mut().zip(contents.iter().skip(inside)) {
                        *to = *from;
                    }
                }
                None => read_padded(&self.file, part, offset)?,
            }
            offset = offset.checked_add(part.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
            buffer = rest;
        }
        Ok(())
    }

    /// A table as it is with `over` in the file.
    fn table(&self, over: &Clusters, table: Table) -> io::Result<Vec<u64>> {
        let mut contents = vec![0; usize::try_from(table.length()).map_err(io::Error::other)?];
        self.read_over(|cluster| over.get(&cluster), &mut contents, table.offset)?;
        Ok(layout::entries(&contents).collect())
    }

    /// Writes to the file.
    fn put(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        {
            tests::injected(&self.write_fails)?;
            lock(&self.log).push(tests::Event::Write(offset, bytes.to_vec()));
        }
        self.file.write_all_at(bytes, offset)
    }

    /// Makes the file longer by a cluster, while nobody changes mappings. Which length it has is on the medium with the next sync that
    /// succeeds, whatever became of earlier growth. Others may write to its end: nothing is cut off or overwritten.
    fn lengthen(&self) -> io::Result<()> {
        let metadata = self.file.metadata()?;
        if !metadata.is_file() {
            return Ok(());
        }
        let end = metadata.len().next_multiple_of(self.cluster()).saturating_add(self.cluster());
        #[cfg(test)]
        lock(&self.log).push(tests::Event::Longer(end));
        match crate::storage::allocate(&self.file, FallocateFlags::empty(), end - 1, 1) {
            // A file system that cannot reserve space: nothing points to the byte.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.file.write_all_at(&[0], end - 1),
            result => result,
        }
    }

    /// Has the next sync bring bytes to the medium that are in the page cache: as the kernel may have it, they are there already.
    fn write_again(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        read_padded(&self.file, &mut bytes, offset)?;
        self.put(&bytes, offset)
    }

    /// Makes a hole.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        #[cfg(test)]
        lock(&self.log).push(tests::Event::Hole(offset, length));
        crate::storage::punch(&self.file, offset, length)
    }

    /// Brings the file to its medium.
    fn barrier(&self) -> io::Result<()> {
        self.failures.watch(|| {
            #[cfg(test)]
            tests::injected(&self.fails).inspect_err(|_| lock(&self.log).push(tests::Event::Lost))?;
            self.file.sync_data()
        })?;
        #[cfg(test)]
        lock(&self.log).push(tests::Event::Barrier);
        Ok(())
    }

    /// A sync of the file that was none of a commit's has failed, and whoever asked for it knows.
    pub fn has_failed(&self) {
        self.failures.doubt();
    }

    /// Whether a sync may have failed of which no flush of the guest knows. A flush that comes to the medium by a sync of its own
    /// asks when that has ended: the kernel may have given its error to a commit.
    pub fn may_have_failed(&self) -> bool {
        self.failures.are_possible()
    }

    /// Whether a sync has failed since the last call.
    pub fn take_failure(&self) -> bool {
        self.failures.take_unreported()
    }

    /// Brings a cluster's contents to the file, without what is the same there. A file that ends before is made longer by the
    /// last block: never by a new length, which would cut off what others write behind the end at the same time.
    fn write_cluster(&self, cluster: u64, contents: &[u8]) -> io::Result<()> {
        let start = cluster << self.cluster_bits;
        let mut old = vec![0; contents.len()];
        let metadata = self.file.metadata()?;
        let is_longer = metadata.is_file() && metadata.len() < start + self.cluster();
        read_padded(&self.file, &mut old, start)?;
        let mut at = start;
        // After a failed sync the same bytes may be in the page cache only.
        let is_doubted = self.failures.is_cache_doubted();
        for (old, new) in old.chunks(BLOCK).zip(contents.chunks(BLOCK)) {
            let end = at + new.len() as u64;
            if old != new || is_doubted || is_longer && end == start + self.cluster() {
                self.put(new, at)?;
            }
            at = end;
        }
        Ok(())
    }
}

/// What a thread left behind when it panicked is whole: every change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
