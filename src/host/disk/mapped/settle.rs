//! Brings an image to its medium: flush, growth, and the end.

use std::io;

use diskimage::imago::format::PreallocateMode;
use diskimage::{Commit, HeldWrites, ImageError, flush_failed};
use virtio::block::{Extent, Operation, SECTOR};

use super::super::helper;
use super::disk::{ImageDisk, Place};
use crate::shown::path as shown;

/// So many clusters without a pointer are freed while the machine runs; fewer wait for its end.
const MANY_FREED: usize = 256;
/// Bytes.
const MIB: u64 = 1 << 20;
/// Most steps in which new space over a backing file is zeroed.
const MOST_STEPS: u64 = 64;

impl ImageDisk {
    /// Brings everything that was completed before to the medium.
    ///
    /// # Errors
    /// The file cannot be written to; the metadata wait for the next flush.
    pub(super) fn flush(&self) -> io::Result<()> {
        if self.is_read_only() || self.is_released() {
            return Ok(());
        }
        match self.held() {
            // Nobody will ever read the file again.
            _ if self.is_temporary() => Ok(()),
            Some(held) => self.commit(held),
            None => {
                let top = self.top().ok_or(io::ErrorKind::NotFound)?;
                helper::run(top, Operation::Flush, Extent::default())
            }
        }
    }

    /// Brings the metadata and all data to the medium.
    pub(super) fn commit(&self, held: &HeldWrites) -> io::Result<()> {
        let mut commit = held.commit();
        self.take(&mut commit)?;
        if commit.reclaimable() >= MANY_FREED {
            self.reclaim_or_warn(&mut commit);
        }
        Ok(())
    }

    /// As [`ImageDisk::reclaim`]. A failure costs space and no data, so that it is no error of a flush: `minivmm disk check` tells
    /// of clusters that were lost. Says whether it succeeded.
    fn reclaim_or_warn(&self, commit: &mut Commit<'_>) -> bool {
        let reclaimed = self.reclaim(commit);
        if let Err(error) = &reclaimed {
            let path = shown(self.image.path());
            log::warn!("space that is no longer used in {path} is not given back: {error}");
        }
        reclaimed.is_ok()
    }

    /// A flush of the guest's. It fails once after each sync that failed, whoever met that: of the data that were completed
    /// before, some may be lost.
    pub(super) fn flush_of_guest(&self) -> io::Result<()> {
        let result = self.flush();
        if !self.held().is_some_and(HeldWrites::take_failure) {
            return result;
        }
        // Never as one that waits for room and is repeated.
        result.map_err(flush_failed)?;
        Err(io::Error::other(
            "what was written before may be lost: the host has failed to write it to its disk",
        ))
    }

    /// Takes the metadata as they are now, and brings them to the medium while others change them again.
    fn take(&self, commit: &mut Commit<'_>) -> io::Result<()> {
        let changes = {
            let _change = self.change();
            if self.held().is_some_and(HeldWrites::is_doubted) {
                self.wait_for_in_place()?;
            }
            self.image.access().flush()?;
            commit.take()?;
            self.changes_so_far()
        };
        commit.write()?;
        self.are_flushed(changes);
        Ok(())
    }

    /// Frees clusters without a pointer, one round of them. The space goes back to the host while the disk works, and what others
    /// wait for is done in memory.
    fn reclaim(&self, commit: &mut Commit<'_>) -> io::Result<()> {
        // Reads that began when a pointer led to these clusters have ended then.
        drop(self.no_reads());
        #[cfg(test)]
        if let Some(then) = *self.on_reclaim.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            then(self);
        }
        let punched = commit.punch()?;
        let access = self.image.access();
        let _change = self.change();
        let _no_reads = self.no_reads();
        access.flush()?;
        let _uncached = self.uncached();
        commit.free(punched)?;
        self.has_changed();
        // SAFETY: what imago has in its caches is held, but for the refcounts that were lowered just now. Nothing else uses the
        // image: the change of mappings, the look at them and reads are locked out.
        unsafe { access.invalidate_cache() }
    }

    /// Makes the disk larger: `bytes` are on the medium when this returns. [`ImageDisk::sectors`] says the new size then.
    ///
    /// # Errors
    /// The image cannot have this size, or be written to.
    pub(crate) fn resize(&self, bytes: u64) -> io::Result<()> {
        self.top().map_or(Ok(()), |top| top.check_not_released())?;
        self.image.check_resize(bytes).map_err(|error| match error {
            ImageError::Io { source, .. } => source,
            error => io::Error::other(error.to_string()),
        })?;
        let access = self.image.access();
        // After a growth that failed, the image is longer than the guest knows.
        let before = if access.size() / SECTOR == self.sectors() { access.size() } else { self.length() };
        if bytes < access.size() {
            let begun = access.size();
            let why = format!(
                "a disk in use is not made smaller, and a growth to {begun} bytes has begun: give that size or more"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        match self.held() {
            Some(held) => {
                held.hide_size(before);
                self.grow(before, bytes)?;
                self.flush()?;
                held.show_size();
                self.has_changed();
            }
            None => access.resize_grow(bytes, PreallocateMode::None)?,
        }
        self.flush()?;
        self.set_size(bytes);
        Ok(())
    }

    /// New space reads as zeros: the rest of the last cluster, and where a backing file is longer than the disk was.
    fn grow(&self, before: u64, bytes: u64) -> io::Result<()> {
        let access = self.image.access();
        let (cluster, version) =
            self.image.header().map_or((1, 0), |header| (header.cluster_size(), header.version));
        let whole = before.next_multiple_of(cluster).min(bytes);
        let below = self.image.layers().iter().skip(1).map(|layer| layer.size).max().unwrap_or(0);
        let grow = |to, mode| {
            let _change = self.change();
            self.has_changed();
            access.resize_grow(to, mode)
        };
        // What a growth that failed has left is zeroed as well.
        let zeroed = access.size().min(below).next_multiple_of(cluster).min(bytes).max(whole);
        if zeroed > before {
            grow(zeroed, PreallocateMode::None)?;
            self.zero_what_is_not(before, zeroed)?;
        }
        // An entry takes 8 bytes: this is about a mebibyte of tables, or more where the steps would be too many.
        let step = cluster.saturating_mul(MIB / 8).max(below / MOST_STEPS);
        let (mut at, below) = (zeroed, below.min(bytes));
        while at < below {
            let start = at;
            at = at.saturating_add(step).next_multiple_of(cluster).min(below);
            if version >= 3 {
                grow(at, PreallocateMode::Zero)?;
                self.write_back()?;
            } else {
                // Version 2 has no clusters of zeros.
                grow(at, PreallocateMode::None)?;
                self.zero_what_is_not(start, at)?;
            }
        }
        grow(bytes, PreallocateMode::None)
    }

    /// Zeroes what does not read as zeros, and takes no space for what does.
    fn zero_what_is_not(&self, mut at: u64, end: u64) -> io::Result<()> {
        while at < end {
            let (place, len) = self.find(at, end - at)?;
            if place != Place::Zero {
                self.space(Operation::WriteZeroes { unmap: true }, Extent { offset: at, len })?;
            }
            at += len;
        }
        Ok(())
    }

    /// Leaves the file as an image at rest, and brings it to the medium.
    pub(crate) fn rest(&self) -> io::Result<()> {
        self.finish()?;
        self.flush()
    }

    /// Makes a temporary file one that can be copied, which it never is otherwise: its metadata are in memory.
    pub(in super::super) fn complete(&self) -> io::Result<()> {
        self.held().map_or(Ok(()), |held| self.commit(held))
    }

    /// Leaves the file as an image at rest: everything written, and free what is not used.
    pub(super) fn finish(&self) -> io::Result<()> {
        if self.is_released() {
            // It was at rest before, and is somebody else's.
            return Ok(());
        }
        let Some(held) = self.held().filter(|_| !self.is_temporary()) else { return Ok(()) };
        let mut commit = held.commit();
        if self.is_changed() {
            self.take(&mut commit)?;
        }
        while commit.reclaimable() > 0 && self.reclaim_or_warn(&mut commit) {}
        if self.is_changed() { self.take(&mut commit) } else { Ok(()) }
    }
}

impl ImageDisk {
    fn is_released(&self) -> bool {
        self.top().is_some_and(|top| top.is_released())
    }
}

impl Drop for ImageDisk {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            log::error!(
                "the end of what was written to the disk {} is lost: {error}",
                shown(self.image.path())
            );
        }
    }
}
