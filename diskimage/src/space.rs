//! Zeroes, discards and other sizes.

use std::io;

use imago::Mapping;
use imago::format::PreallocateMode;

use crate::header::largest;
use crate::{Format, Image, ImageError};

/// Zeroes are written in pieces of this size to images that know no zero clusters.
const PIECE: u64 = 64 << 10;

impl Image {
    /// Makes a range read as zeroes, and keeps its space.
    pub fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        match self.header().map(|header| header.version) {
            Some(2) => self.write_zeroes_as_data(offset, length),
            _ => self.access.write_zeroes(offset, length),
        }
    }

    /// Gives the space of a range back, and makes it read as zeroes.
    pub fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        match self.header() {
            Some(header) if header.version == 2 && header.backing.is_none() => {
                // What is no longer allocated reads as zeroes here; only the ends of the range may be left.
                self.access.discard_to_backing(offset, length)?;
                self.write_zeroes_as_data(offset, length)
            }
            Some(header) if header.version == 2 => self.write_zeroes_as_data(offset, length),
            _ => self.access.discard_to_zero(offset, length),
        }
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
        let failed = |source| ImageError::Io { path: self.path().into(), action: "resize", source };
        let from = self.size();
        // A backing file may be longer than the disk was, and would show through.
        let below = self.layers().iter().skip(1).map(|layer| layer.size).max().unwrap_or_default();
        if self.format() == Format::Qcow2 && below > from && from < size {
            self.access.resize_grow(size.min(below), PreallocateMode::Zero).map_err(failed)?;
        }
        self.access.resize_grow(size, PreallocateMode::None).map_err(failed)?;
        self.flush().map_err(failed)
    }

    fn shrink(&mut self, from: u64, size: u64) -> Result<(), ImageError> {
        self.check_resize(size)?;
        let path = self.path().to_path_buf();
        if let Some(header) = self.header() {
            // The rest of the last cluster stays, and would be seen again when the disk grows.
            let end = size.checked_next_multiple_of(header.cluster_size()).unwrap_or(from).min(from);
            self.write_zeroes(size, end - size).map_err(ImageError::io(&path, "write"))?;
        }
        self.access.resize_shrink(size).map_err(ImageError::io(&path, "resize"))?;
        self.flush().map_err(ImageError::io(&path, "resize"))
    }

    /// Whether the disk may have this size.
    pub fn check_resize(&self, size: u64) -> Result<(), ImageError> {
        let path = || self.path().to_path_buf();
        if !self.is_writable() {
            return Err(ImageError::ReadOnly { path: path() });
        }
        let Some(header) = self.header() else { return Ok(()) };
        if header.snapshots > 0 {
            let reason =
                "an image with snapshots inside is not resized; `qemu-img snapshot -l` lists them".into();
            return Err(ImageError::Unsupported { path: path(), reason });
        }
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
