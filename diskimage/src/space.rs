//! Zeroes, discards and other sizes.

use std::io;
use std::os::unix::fs::FileTypeExt;

use imago::format::PreallocateMode;
use imago::{Mapping, ShallowMapping};

use crate::header::largest;
use crate::{Format, Header, Image, ImageError};

/// Zeroes are written in pieces of this size to images that know no zero clusters.
const PIECE: u64 = 64 << 10;

/// What is in a range of a disk.
enum Uses {
    Nothing,
    /// Data of a backing file.
    Below,
    /// Space of the top file.
    Space,
}

impl Image {
    /// Makes a range read as zeroes, and keeps its space.
    pub fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.each_table(offset, length, |image, offset, length| {
            let frees = image.is_anything_compressed(offset, length)?;
            image.before_allocation()?;
            if image.has_zero_clusters() {
                image.access.write_zeroes(offset, length)?;
            } else {
                image.write_zeroes_as_data(offset, length)?;
            }
            if frees {
                image.freed();
            }
            Ok(())
        })
    }

    /// Gives the space of a range back, and makes it read as zeroes.
    pub fn discard(&mut self, mut offset: u64, length: u64) -> io::Result<()> {
        let end = self.end_of_range(offset, length)?;
        while offset < end {
            let length = self.end_of_table(offset).min(end) - offset;
            match self.uses(offset, length)? {
                Uses::Nothing => {}
                Uses::Below => {
                    // There may be no table yet, and it may get a place that was given back.
                    self.before_allocation()?;
                    self.discard_in_table(offset, length)?;
                }
                Uses::Space => self.discard_in_table(offset, length)?,
            }
            offset += length;
        }
        Ok(())
    }

    fn discard_in_table(&mut self, offset: u64, length: u64) -> io::Result<()> {
        match (self.has_zero_clusters(), self.layers().len() > 1) {
            (true, _) => {
                self.access.discard_to_zero(offset, length)?;
                self.freed();
                Ok(())
            }
            // What is not allocated reads as zeroes here; only the ends of the range may be left.
            (false, false) => {
                self.access.discard_to_backing(offset, length)?;
                self.freed();
                self.write_zeroes_as_data(offset, length)
            }
            (false, true) => self.write_zeroes_as_data(offset, length),
        }
    }

    /// Version 2 has no clusters that read as zeroes. imago panics where it makes one of a disk that is smaller than a cluster.
    fn has_zero_clusters(&self) -> bool {
        self.header().is_none_or(|header| header.version > 2 && self.size() >= header.cluster_size())
    }

    /// What is in a range.
    fn uses(&self, mut offset: u64, length: u64) -> io::Result<Uses> {
        let end = offset.saturating_add(length);
        let mut uses = Uses::Nothing;
        while offset < end {
            let (mapping, length) = self.access.get_shallow_mapping(offset, end - offset)?;
            match mapping {
                ShallowMapping::Zero { explicit: false, .. } => {}
                ShallowMapping::Indirect { .. } => uses = Uses::Below,
                _ => return Ok(Uses::Space),
            }
            if length == 0 {
                break;
            }
            offset += length;
        }
        Ok(uses)
    }

    fn each_table(
        &self,
        mut offset: u64,
        length: u64,
        work: impl Fn(&Self, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = self.end_of_range(offset, length)?;
        while offset < end {
            let length = self.end_of_table(offset).min(end) - offset;
            work(self, offset, length)?;
            offset += length;
        }
        Ok(())
    }

    fn end_of_range(&self, offset: u64, length: u64) -> io::Result<u64> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size());
        end.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn write_zeroes_as_data(&self, mut offset: u64, length: u64) -> io::Result<()> {
        let zeroes = vec![0; usize::try_from(PIECE).unwrap_or_default()];
        let end = offset.checked_add(length).ok_or(io::ErrorKind::InvalidInput)?;
        while offset < end {
            let (mapping, length) = self.access.get_mapping(offset, (end - offset).min(PIECE))?;
            let is_zero = matches!(mapping, Mapping::Zero { .. });
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !is_zero {
                let part =
                    usize::try_from(length).ok().and_then(|length| zeroes.get(..length)).unwrap_or_default();
                self.access.write(part, offset)?;
            }
            offset += length;
        }
        Ok(())
    }

    /// Zeroes a range, and takes no space for what is zero already.
    fn zero_what_is_not(&self, mut offset: u64, end: u64) -> io::Result<()> {
        while offset < end {
            let (mapping, length) = self.access.get_mapping(offset, end - offset)?;
            let is_zero = matches!(mapping, Mapping::Zero { .. } | Mapping::Eof { .. });
            if length == 0 {
                break;
            }
            if !is_zero {
                self.write_zeroes(offset, length)?;
            }
            offset += length;
        }
        Ok(())
    }

    /// Gives the disk another size; a smaller one only with `shrink`. New space reads as zeroes.
    pub fn resize(&mut self, size: u64, shrink: bool) -> Result<(), ImageError> {
        let from = self.size();
        if size < from && !shrink {
            return Err(ImageError::Shrink { path: self.path().into(), from, to: size });
        }
        if size < from { self.shrink(from, size) } else { self.grow(size) }
    }

    /// Makes the disk larger. New space reads as zeroes, whatever lies beneath.
    pub fn grow(&self, size: u64) -> Result<(), ImageError> {
        self.check_resize(size)?;
        let from = self.size();
        let done = match self.header() {
            _ if size <= from => Ok(()),
            None => self.access.resize_grow(size, PreallocateMode::None).and_then(|()| self.flush()),
            Some(header) => self.grow_qcow2(from, size, header.cluster_size()),
        };
        done.map_err(ImageError::io(self.path(), "resize"))
    }

    fn grow_qcow2(&self, from: u64, size: u64, cluster: u64) -> io::Result<()> {
        let Some(top) = self.files().first() else { return Ok(()) };
        self.flush()?;
        top.begin(from);
        let grown = self.access.resize_grow(size, PreallocateMode::None);
        // What was begun ends, whatever came of it.
        self.access.flush()?;
        grown?;
        // The rest of the last cluster may hold anything, and a backing file may be longer than the disk was.
        let below = self.layers().iter().skip(1).map(|layer| layer.size).max().unwrap_or_default();
        let end = from.checked_next_multiple_of(cluster).unwrap_or(size).max(below).min(size);
        self.zero_what_is_not(from, end)?;
        self.flush()?;
        top.show_size(size)
    }

    fn shrink(&mut self, from: u64, size: u64) -> Result<(), ImageError> {
        self.check_resize(size)?;
        let path = self.path().to_path_buf();
        let done = match self.header().map(Header::cluster_size) {
            Some(cluster) => self.shrink_qcow2(from, size, cluster),
            None => self.access.resize_shrink(size).and_then(|()| self.flush()),
        };
        done.map_err(ImageError::io(&path, "resize"))
    }

    /// imago would make an L2 table for every part of the disk that has none, to discard what is not there.
    fn shrink_qcow2(&mut self, from: u64, size: u64, cluster: u64) -> io::Result<()> {
        let mut offset = size.checked_next_multiple_of(cluster).unwrap_or(from).min(from);
        // The rest of the last cluster stays, and would be seen again when the disk grows.
        self.zero_what_is_not(size, offset)?;
        while offset < from {
            let length = self.end_of_table(offset).min(from) - offset;
            if matches!(self.uses(offset, length)?, Uses::Space) {
                self.access.discard_to_backing(offset, length)?;
                self.freed();
            }
            offset += length;
        }
        self.flush()?;
        let Some(top) = self.files().first().cloned() else { return Ok(()) };
        top.show_size(size)?;
        crate::storage::reload(&mut self.access)
    }

    /// Whether the disk may have this size.
    pub fn check_resize(&self, size: u64) -> Result<(), ImageError> {
        let path = || self.path().to_path_buf();
        if !self.is_writable() {
            return Err(ImageError::ReadOnly { path: path() });
        }
        let top = self.files().first().and_then(|top| top.file().metadata().ok());
        if self.format() == Format::Raw && top.is_some_and(|top| top.file_type().is_block_device()) {
            let reason = "a block device is not resized here, but where it comes from".into();
            return Err(ImageError::Unsupported { path: path(), reason });
        }
        let Some(header) = self.header() else { return Ok(()) };
        let limit = largest(header.cluster_bits);
        if size > limit {
            return Err(ImageError::TooLarge {
                path: path(),
                size,
                cluster_size: header.cluster_size(),
                limit,
            });
        }
        Ok(())
    }
}
