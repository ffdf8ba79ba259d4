//! Operations that change mappings, or read what only imago can read. They block, on threads of their own.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use virtio::block::{Extent, Operation};

use super::super::file::DiskFile;
use super::super::helper;
use super::super::open::size;
use super::super::transfer::Transfer;
use super::disk::{ImageDisk, Place, Target};

/// Metadata in memory beyond this are written without waiting for a flush.
const MOST_HELD: u64 = 16 << 20;
/// Bytes that are unpacked at once.
const UNPACKED: u64 = 1 << 20;
/// Bytes of zeros that are written at once, where they must be written.
const ZEROED: u64 = 4 << 20;

/// Work for a thread beside the disk's.
#[derive(Debug)]
pub(super) enum Job {
    Read(Extent, Transfer),
    Write(Extent, Transfer),
    Space(Operation, Extent),
    Flush,
}

impl ImageDisk {
    pub(super) fn run(&self, job: Job) -> io::Result<()> {
        match job {
            Job::Read(extent, transfer) => self.unpack(extent, transfer),
            Job::Write(extent, transfer) => self.write(extent, transfer),
            Job::Space(operation, extent) => self.space(operation, extent),
            Job::Flush => self.flush_of_guest(),
        }
    }

    /// Reads compressed clusters.
    fn unpack(&self, extent: Extent, mut transfer: Transfer) -> io::Result<()> {
        let mut at = extent.offset;
        let end = extent.offset.saturating_add(extent.len);
        let mut bytes = Vec::new();
        while at < end {
            let length = (end - at).min(UNPACKED);
            bytes.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
            if self.read_at(&mut bytes, at)? < bytes.len() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            transfer.fill(&bytes);
            at += length;
        }
        Ok(())
    }

    /// Writes `transfer` to `extent` of the disk, into new clusters where it has none of its own.
    pub(super) fn write(&self, extent: Extent, mut transfer: Transfer) -> io::Result<()> {
        let top = self.top().ok_or(io::ErrorKind::NotFound)?;
        let end = extent.offset.saturating_add(extent.len);
        let mut at = extent.offset;
        let change = self.change();
        while at < end {
            let (target, length) = self.target(at, end - at)?;
            at += match target {
                Target::Own(offset) => {
                    transfer.take(length, offset).run(top, Operation::Write)?;
                    length
                }
                _ => self.write_new(top, Extent { offset: at, len: length }, target, &mut transfer)?,
            };
        }
        drop(change);
        self.write_back()
    }

    /// Brings the metadata to the medium if they take much memory by now. Call it while no mapping changes.
    pub(super) fn write_back(&self) -> io::Result<()> {
        match self.held() {
            Some(held) if held.held_bytes() > MOST_HELD => self.commit(held),
            _ => Ok(()),
        }
    }

    /// Writes the beginning of `transfer` to new clusters for the beginning of `extent`, and returns how many bytes that were.
    fn write_new(
        &self,
        top: &DiskFile,
        extent: Extent,
        old: Target,
        transfer: &mut Transfer,
    ) -> io::Result<u64> {
        let access = self.image.access();
        let cluster = self.image.header().map_or(1, |header| header.cluster_size());
        let end = extent.offset + extent.len;
        let first = extent.offset - extent.offset % cluster;
        let last = end.next_multiple_of(cluster).min(access.size());
        let (head, tail) = match old {
            Target::Elsewhere => (self.copy(first, extent.offset)?, self.copy(end, last)?),
            _ => (Vec::new(), Vec::new()),
        };
        let mapping = access.prepare_data_mapping(first, last - first, true)?;
        let (start, length) = (mapping.offset(), mapping.length());
        let written = extent.len.min((first + length).saturating_sub(extent.offset));
        if let Some(held) = self.held() {
            held.forget(start, length);
        }
        let fill = || -> io::Result<()> {
            if written == 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a new cluster is too short"));
            }
            let fresh = make_room(top, start, length.next_multiple_of(cluster))?;
            let inside = extent.offset - first;
            if old != Target::Elsewhere && !fresh {
                clear(top, start, inside)?;
                clear(top, start + inside + written, length - inside - written)?;
            }
            top.buffered.write_all_at(&head, start)?;
            if written == extent.len {
                top.buffered.write_all_at(&tail, start + inside + written)?;
            }
            Ok(())
        };
        let data = start + (extent.offset - first);
        let result = fill().and_then(|()| transfer.take(written, data).run(top, Operation::Write));
        if let Err(error) = result {
            // Nothing points to the clusters yet: they are free again.
            drop(mapping);
            if let Some(held) = self.held()
                && let Err(error) = held.freeing(|| access.flush())
            {
                log::debug!("clusters that were not used stay reserved: {error}");
            }
            return Err(error);
        }
        access.commit_data_mapping(mapping)?;
        if let Some(held) = self.held() {
            // With the guest's data, so that what was lost of them does not read as zeros.
            held.has_filled(start, length);
        }
        self.has_changed();
        Ok(written)
    }

    /// The disk's contents from `from` to `to`.
    fn copy(&self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(to.saturating_sub(from)).map_err(io::Error::other)?];
        if !bytes.is_empty() && self.read_at(&mut bytes, from)? < bytes.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }

    /// Discards or zeroes `extent`, piece by piece.
    pub(super) fn space(&self, operation: Operation, extent: Extent) -> io::Result<()> {
        let top = self.top().ok_or(io::ErrorKind::NotFound)?;
        let end = extent.offset.saturating_add(extent.len);
        let mut at = extent.offset;
        while at < end {
            if operation == Operation::Discard && self.hurried.load(Ordering::Acquire) {
                return Ok(());
            }
            let (target, length) = self.target(at, end - at)?;
            at += match target {
                Target::Own(offset) => {
                    let in_place = self.begin_in_place();
                    let _change = in_place.is_none().then(|| self.change());
                    helper::run(top, operation, Extent { offset, len: length })?;
                    length
                }
                // What is discarded may read as anything, and here it takes no space of its own.
                _ if operation == Operation::Discard => length,
                Target::Zero => length,
                Target::Elsewhere => {
                    let zeroed = self.zero(Extent { offset: at, len: length })?;
                    self.write_back()?;
                    zeroed
                }
            };
        }
        Ok(())
    }

    /// Makes the beginning of `extent` read as zeros, without what lies beneath, and returns how many bytes that were: none if a
    /// write was there first.
    pub(super) fn zero(&self, extent: Extent) -> io::Result<u64> {
        let header = self.image.header().ok_or(io::ErrorKind::Unsupported)?;
        let (cluster, access) = (header.cluster_size(), self.image.access());
        let (start, end) = (extent.offset, extent.offset + extent.len);
        // Version 2 has no clusters of zeros.
        let has_zeros = header.version >= 3;
        let last = if end == access.size() { end } else { end - end % cluster };
        if has_zeros && start.is_multiple_of(cluster) && start < last {
            let _change = self.change();
            let (target, length) = self.target(start, last - start)?;
            if target != Target::Elsewhere {
                return Ok(0);
            }
            let whole = if length == last - start { length } else { length - length % cluster };
            let (from, zeroed) = access.inner().ensure_zero_mapping(start, whole)?;
            self.has_changed();
            if from == start && zeroed > 0 {
                return Ok(zeroed.min(whole));
            }
        }
        let until = if has_zeros { (start + 1).next_multiple_of(cluster).min(end) } else { end };
        let part = Extent { offset: start, len: (until - start).min(ZEROED) };
        let mut zeros = Transfer::default();
        zeros.zeros(part);
        self.write(part, zeros)?;
        Ok(part.len)
    }

    /// Whether the piece at `offset` reads as zeros that are nowhere, and how many of `length` bytes are so.
    pub(in super::super) fn is_hole(&self, offset: u64, length: u64) -> io::Result<(bool, u64)> {
        let (place, found) = self.find(offset, length)?;
        Ok((place == Place::Zero, found.min(length)))
    }

    /// Reads the disk as its engine does, by direct I/O where that has it; fewer bytes at the end of a piece.
    ///
    /// # Errors
    /// A file cannot be read, or the image is broken.
    pub(in super::super) fn read_as_engine(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let wanted = self.length().saturating_sub(offset).min(buffer.len() as u64);
        if wanted == 0 {
            return Ok(0);
        }
        let (place, found) = self.source(offset, wanted)?;
        let found = usize::try_from(found.min(wanted)).map_err(io::Error::other)?;
        let piece = buffer.get_mut(..found).unwrap_or_default();
        match place {
            Place::File { file, offset } => {
                self.files().get(file).ok_or(io::ErrorKind::NotFound)?.read_current(piece, offset)
            }
            Place::Zero => {
                piece.fill(0);
                Ok(found)
            }
            Place::Packed => self.read_at(piece, offset),
        }
    }

    /// Where the bytes at `offset` are in the top file.
    #[cfg(test)]
    pub(in super::super) fn offset_in_top(&self, offset: u64) -> Option<u64> {
        match self.find(offset, 1).unwrap().0 {
            Place::File { file: 0, offset } => Some(offset),
            _ => None,
        }
    }

    /// Where the piece at `offset` is for a read, and how many of `length` bytes are there.
    pub(super) fn source(&self, offset: u64, length: u64) -> io::Result<(Place, u64)> {
        let (place, found) = self.find(offset, length)?;
        Ok((place, if place == Place::Packed { found.min(UNPACKED) } else { found }))
    }
}

/// Makes the file long enough for `length` bytes at `start`, which nothing points to. Returns whether they are new, and so read
/// as zeros. The last byte does it: a new length would cut off what others write behind the end at the same time.
fn make_room(file: &DiskFile, start: u64, length: u64) -> io::Result<bool> {
    let now = size(&file.buffered, file.device)?;
    let end = start.saturating_add(length);
    if end > now && !file.device {
        file.buffered.write_all_at(&[0], end - 1)?;
    }
    Ok(start >= now)
}

/// Clears what a cluster held before.
fn clear(file: &DiskFile, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    helper::run(file, Operation::WriteZeroes { unmap: true }, Extent { offset, len })
}
