//! What an image holds, read piece by piece on a thread of its own, while the pieces before are used.

use std::fs::File;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use imago::Mapping;

use crate::holes::{next_data, next_hole};
use crate::{Image, ImageError};

/// Bytes that are read at once.
const PIECE: usize = 2 << 20;
/// Pieces that are read before they are asked for.
const AHEAD: usize = 2;
/// Longest range whose mapping is asked for at once: an empty piece says how far it is at least this often.
const STEP: u64 = 256 << 20;

/// Bytes of the disk; none where it reads as zeroes.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    buffer: Vec<u8>,
    length: usize,
}

impl Piece {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.length).unwrap_or_default()
    }
}

/// The pieces that were read, in the disk's order.
#[derive(Debug)]
pub(crate) struct Pieces {
    read: Receiver<Piece>,
    used: Sender<Vec<u8>>,
}

impl Pieces {
    /// The next one; `None` at the end of the disk, or where it could not be read.
    pub(crate) fn next(&self) -> Option<Piece> {
        self.read.recv().ok()
    }

    /// Gives its memory to another piece.
    pub(crate) fn give_back(&self, piece: Piece) {
        if !piece.buffer.is_empty() {
            // A reader that is at its end needs none.
            let _ = self.used.send(piece.buffer);
        }
    }
}

/// Reads an image.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    from: &'a Image,
    /// Pieces that do not end with the data end at multiples of this.
    granularity: u64,
    read: SyncSender<Piece>,
    unused: Receiver<Vec<u8>>,
}

/// Why reading ends early; `None` if nobody wants more.
type End = Option<ImageError>;

impl<'a> Reader<'a> {
    pub(crate) fn new(from: &'a Image, granularity: u64) -> (Reader<'a>, Pieces) {
        let (read, pieces) = sync_channel(AHEAD);
        let (used, unused) = channel();
        // One more is being read, and one is being used.
        for _ in 0..AHEAD + 2 {
            let _ = used.send(Vec::new());
        }
        (Reader { from, granularity, read, unused }, Pieces { read: pieces, used })
    }

    /// Reads the disk to its end, or until the pieces are dropped.
    pub(crate) fn run(self) -> Result<(), ImageError> {
        self.all().or_else(|end| end.map_or(Ok(()), Err))
    }

    fn all(&self) -> Result<(), End> {
        let (from, size) = (self.from, self.from.size());
        let mut at = 0;
        while at < size {
            let found = from.access().get_mapping(at, STEP.min(size - at));
            let (mapping, length) = found.map_err(ImageError::io(from.path(), "read"))?;
            if length == 0 {
                let problem = format!("it ends after {at} of {size} bytes");
                return Err(Some(ImageError::Damaged { path: from.path().into(), problem }));
            }
            match mapping {
                Mapping::Raw { storage, offset, .. } => self.file(storage.file(), offset, at, length)?,
                Mapping::Special { .. } => self.data(at, at + length)?,
                _ => {}
            }
            at += length;
            self.give(Piece { offset: at, buffer: Vec::new(), length: 0 })?;
        }
        Ok(())
    }

    /// Reads a range whose bytes stand in a file as they are: only what the file holds.
    fn file(&self, file: &File, offset: u64, at: u64, length: u64) -> Result<(), End> {
        let failed = || ImageError::io(self.from.path(), "read");
        let end = offset.saturating_add(length);
        let mut position = offset;
        while position < end {
            let Some(data) = next_data(file, position).map_err(failed())?.filter(|data| *data < end) else {
                break;
            };
            let hole = next_hole(file, data, end).map_err(failed())?;
            // Whole clusters: a part of one would be filled up with zeroes by another write.
            let first = at + (data - offset);
            let start = (first - first % self.granularity).max(at + (position - offset));
            let stop = (at + (hole - offset)).next_multiple_of(self.granularity).min(at + length);
            self.data(start, stop)?;
            position = offset + (stop - at);
        }
        Ok(())
    }

    /// Reads what the image has between two offsets.
    fn data(&self, start: u64, end: u64) -> Result<(), End> {
        let mut at = start;
        while at < end {
            // Pieces end at multiples of their size, so that no cluster is written in two parts.
            let left = usize::try_from(end - at).unwrap_or(PIECE);
            let length = left.min(PIECE - usize::try_from(at % PIECE as u64).unwrap_or(0));
            let mut buffer = self.unused.recv().map_err(|_| None)?;
            buffer.resize(PIECE, 0);
            let place = buffer.get_mut(..length).unwrap_or_default();
            self.from.read_at(place, at).map_err(ImageError::io(self.from.path(), "read"))?;
            self.give(Piece { offset: at, buffer, length })?;
            at += length as u64;
        }
        Ok(())
    }

    fn give(&self, piece: Piece) -> Result<(), End> {
        self.read.send(piece).map_err(|_| None)
    }
}
