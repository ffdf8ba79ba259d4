//! Requests (virtio 1.3 §5.2.6): read out of a chain once, checked, and never read again.

use super::config::{MOST_DISCARD, MOST_RANGES, MOST_TRANSFER, MOST_ZEROES, SECTOR, feature};
use super::engine::{Extent, Operation};
use crate::memory::Memory;
use crate::queue::{Chain, Reader};

/// Bytes of the header: type, reserved, sector.
pub(super) const HEADER: u64 = 16;
/// Bytes of a discard or write-zeroes range.
const RANGE: u64 = 16;
/// Bytes of the device's id string.
pub(super) const ID: usize = 20;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
/// The one flag of a range.
const UNMAP: u32 = 1;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What a request is checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) sectors: u64,
    pub(super) read_only: bool,
    /// What was negotiated.
    pub(super) features: u64,
    /// Nothing is given back to the host.
    pub(super) keeps_space: bool,
}

/// A parsed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Data between disk and guest memory.
    Transfer(Operation, Extent),
    Flush,
    GetId,
    /// The operations that were put into the list.
    Ranges,
}

impl Request {
    /// Reads the request in `chain`, which has room for a status byte. No framing is assumed (§2.7.4): only how many
    /// bytes are readable and writable counts. Ranges replace what `ranges` holds, the first as the last: to be popped.
    ///
    /// # Errors
    /// The status that it is refused with.
    pub(super) fn parse(
        chain: &Chain,
        memory: &Memory,
        limits: &Limits,
        ranges: &mut Vec<(Operation, Extent)>,
    ) -> Result<Request, Status> {
        let mut reader = chain.reader(memory);
        let header = reader.read_obj::<[u32; 4]>().map_err(|_| Status::IoError)?.map(u32::from_le);
        let [kind, _, low, high] = header;
        let sector = u64::from(low) | u64::from(high) << 32;
        match kind {
            // The last writable byte is the status.
            IN => {
                let extent = limits.transfer(sector, chain.writable_len().saturating_sub(1))?;
                Ok(Request::Transfer(Operation::Read, extent))
            }
            OUT => {
                limits.may_write()?;
                let extent = limits.transfer(sector, reader.left())?;
                Ok(Request::Transfer(Operation::Write, extent))
            }
            FLUSH => Ok(Request::Flush),
            GET_ID => Ok(Request::GetId),
            DISCARD if limits.features & feature::DISCARD != 0 => {
                limits.may_write()?;
                // §5.2.6.2: unmap is refused here.
                let request = limits.ranges(&mut reader, MOST_DISCARD, 0, ranges, |_| Operation::Discard)?;
                // §5.2.6.2: a device may ignore a discard. The driver is of a machine that was saved when this disk took them.
                if limits.keeps_space {
                    ranges.clear();
                }
                Ok(request)
            }
            WRITE_ZEROES if limits.features & feature::WRITE_ZEROES != 0 => {
                limits.may_write()?;
                let zeroes =
                    |flags| Operation::WriteZeroes { unmap: flags & UNMAP != 0 && !limits.keeps_space };
                limits.ranges(&mut reader, MOST_ZEROES, UNMAP, ranges, zeroes)
            }
            _ => Err(Status::Unsupported),
        }
    }
}

impl Limits {
    /// §5.2.6.2: a write to a read-only disk fails, and nothing is written.
    fn may_write(&self) -> Result<(), Status> {
        if self.read_only { Err(Status::IoError) } else { Ok(()) }
    }

    /// `len` bytes of whole sectors, all on the disk.
    fn transfer(&self, sector: u64, len: u64) -> Result<Extent, Status> {
        // §5.2.6.1: a driver keeps to the segments that it was told of, and so to their sum.
        if !len.is_multiple_of(SECTOR) || len > MOST_TRANSFER {
            return Err(Status::IoError);
        }
        self.extent(sector, len / SECTOR)
    }

    fn extent(&self, sector: u64, count: u64) -> Result<Extent, Status> {
        match sector.checked_add(count) {
            Some(end) if end <= self.sectors => {}
            _ => return Err(Status::IoError),
        }
        match (sector.checked_mul(SECTOR), count.checked_mul(SECTOR)) {
            (Some(offset), Some(len)) => Ok(Extent { offset, len }),
            _ => Err(Status::IoError),
        }
    }

    /// Reads the ranges that are left in `reader`, at most `most` sectors each, with flags out of `known`.
    fn ranges(
        &self,
        reader: &mut Reader<'_>,
        most: u32,
        known: u32,
        ranges: &mut Vec<(Operation, Extent)>,
        operation: impl Fn(u32) -> Operation,
    ) -> Result<Request, Status> {
        let bytes = reader.left();
        if bytes == 0 || !bytes.is_multiple_of(RANGE) || bytes / RANGE > u64::from(MOST_RANGES) {
            return Err(Status::IoError);
        }
        ranges.clear();
        while reader.left() > 0 {
            let range = reader.read_obj::<[u32; 4]>().map_err(|_| Status::IoError)?.map(u32::from_le);
            let [low, high, count, flags] = range;
            // §5.2.6.2: unknown flags are refused as such.
            if flags & !known != 0 {
                return Err(Status::Unsupported);
            }
            if count > most {
                return Err(Status::IoError);
            }
            let extent = self.extent(u64::from(low) | u64::from(high) << 32, count.into())?;
            ranges.push((operation(flags), extent));
        }
        ranges.reverse();
        Ok(Request::Ranges)
    }
}
