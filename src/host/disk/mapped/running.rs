//! A running machine's image without the engine of its disk, for the fuzzer: each operation is done before the next begins.

use std::io;

use diskimage::Image;
use virtio::block::{Extent, Operation};
use virtio::memory::{Memory, Segment};
use vm_memory::GuestAddress;

use super::super::open::Access;
use super::super::transfer::Transfer;
use super::change::Job;
use super::disk::{ImageDisk, Place};

/// An image that is opened for writing, as a machine has it; its drop brings everything to the file.
#[derive(Debug)]
pub struct RunningImage(ImageDisk);

impl RunningImage {
    /// A machine's disk of `image`.
    ///
    /// # Errors
    /// The image cannot be read, or the host has no descriptor left.
    pub fn new(image: Image) -> io::Result<Self> {
        ImageDisk::new(image, Access::default()).map(RunningImage)
    }

    /// Bytes of the disk, as its guest knows.
    pub fn size(&self) -> u64 {
        self.0.length()
    }

    /// Does what the guest wishes, from or to the beginning of `memory`.
    ///
    /// # Errors
    /// Those that the guest is told of.
    pub fn run(&self, operation: Operation, extent: Extent, memory: &Memory) -> io::Result<()> {
        let mut transfer = Transfer::default();
        if matches!(operation, Operation::Read | Operation::Write) {
            let len = u32::try_from(extent.len).map_err(io::Error::other)?;
            transfer.load(memory, &[Segment { address: GuestAddress(0), len }], extent)?;
        }
        match operation {
            Operation::Read => self.read(extent, &mut transfer),
            Operation::Write => self.0.run(Job::Write(extent, transfer)),
            Operation::Flush => self.0.run(Job::Flush),
            space => self.0.run(Job::Space(space, extent)),
        }
    }

    fn read(&self, extent: Extent, transfer: &mut Transfer) -> io::Result<()> {
        let (mut at, end) = (extent.offset, extent.offset.saturating_add(extent.len));
        while at < end {
            let (place, len) = self.0.source(at, end - at)?;
            let mut part = transfer.take(len, at);
            match place {
                Place::File { file, offset } => {
                    let file = self.0.files().get(file).ok_or(io::ErrorKind::NotFound)?;
                    part.take(len, offset).run(file, Operation::Read)?;
                }
                Place::Zero => part.fill_zeros(),
                Place::Packed => self.0.run(Job::Read(Extent { offset: at, len }, part))?,
            }
            at += len;
        }
        Ok(())
    }

    /// Makes the disk larger.
    ///
    /// # Errors
    /// The image cannot have this size.
    pub fn grow(&self, bytes: u64) -> io::Result<()> {
        self.0.resize(bytes)
    }

    /// Brings everything to the file, and frees what nothing points to, as at the end of a machine.
    ///
    /// # Errors
    /// The file cannot be written to.
    pub fn finish(&self) -> io::Result<()> {
        self.0.finish()
    }
}
