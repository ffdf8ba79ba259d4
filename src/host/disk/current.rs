//! Reads of a disk while its engines write to it, which never give bytes that are older than what the engines have written.
//!
//! The page cache may: of a block device Linux drops the cached pages before an asynchronous direct write and not once more when it ends, so
//! that what somebody has read meanwhile, or the kernel has read ahead for him, stays cached. Of files it drops them at the end as well. So a
//! device whose engines write by direct I/O is read by it, too.

use std::io;
use std::os::unix::fs::FileExt;

use super::file::{Direct, DiskFile};
use super::mapped::ImageDisk;

impl DiskFile {
    /// What direct I/O has to be used for, because the page cache may be old.
    fn uncached(&self) -> Option<&Direct> {
        self.direct.as_ref().filter(|_| self.is_device())
    }

    /// Reads from `offset` on; fewer bytes at the end.
    ///
    /// # Errors
    /// The host cannot read it.
    pub(super) fn read_current(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(Direct { file, memory_align, offset_align }) = self.uncached() else {
            return match self.buffered.read_at(buffer, offset)? {
                0 if self.padded => {
                    buffer.fill(0);
                    Ok(buffer.len())
                }
                bytes => Ok(bytes),
            };
        };
        let before = offset % offset_align;
        let (skipped, align) = (as_usize(before)?, as_usize(*memory_align)?);
        let len = (before + buffer.len() as u64).next_multiple_of(*offset_align);
        let mut room = vec![0; as_usize(len)? + align];
        let begin = room.as_ptr().align_offset(align);
        let aligned = room.get_mut(begin..).and_then(|room| room.get_mut(..as_usize(len).ok()?));
        let aligned = aligned.ok_or(io::ErrorKind::InvalidInput)?;
        let read = file.read_at(aligned, offset - before)?;
        let bytes = aligned.get(skipped..read).unwrap_or_default();
        let bytes = bytes.get(..buffer.len()).unwrap_or(bytes);
        if let Some(buffer) = buffer.get_mut(..bytes.len()) {
            buffer.copy_from_slice(bytes);
        }
        Ok(bytes.len())
    }
}

impl ImageDisk {
    /// As [`DiskFile::read_current`], of the disk that is in the image.
    ///
    /// # Errors
    /// A file cannot be read, or the image is broken.
    pub(super) fn read_current(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.top().and_then(|top| top.uncached()) {
            Some(_) => self.read_as_engine(buffer, offset),
            None => self.read_at(buffer, offset),
        }
    }
}

fn as_usize(number: u64) -> io::Result<usize> {
    usize::try_from(number).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use diskimage::{CreateOptions, Format};

    use virtio::block::{Engine, Extent, Operation};
    use virtio::memory::Segment;
    use virtio::testing;
    use vm_memory::{Bytes, GuestAddress};

    use super::super::drive::Drive;
    use super::super::engine::EngineKind;
    use super::super::loop_device::tests::RealLoop;
    use super::super::open_disk::OpenDisk;
    use super::*;
    use crate::spec::DiskSpec;

    const LEN: usize = 64 << 10;

    fn bytes(path: &Path, at: u64) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        File::open(path).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// As a guest writes.
    fn write(disk: &OpenDisk, bytes: &[u8]) {
        let mut engine = disk.make_engine(EngineKind::Sync)().unwrap();
        let (memory, _) = testing::memory(1 << 20);
        engine.attach(1, &memory);
        memory.write_slice(bytes, GuestAddress(0)).unwrap();
        let segments = [Segment { address: GuestAddress(0), len: bytes.len().try_into().unwrap() }];
        engine.submit(0, Operation::Write, Extent { offset: 0, len: bytes.len() as u64 }, &segments);
        engine.drain().unwrap();
        engine.completed().unwrap().result.unwrap();
    }

    /// The page cache of a loop device is made old by a write to the file behind it.
    #[test]
    fn device_with_direct_io_is_read_beside_a_page_cache_that_is_old() {
        let folder = tempfile::tempdir().unwrap();
        for format in [Format::Raw, Format::Qcow2] {
            let path = folder.path().join(format.to_string());
            let image = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
            diskimage::create(&image, &path, &CreateOptions::new(format, 1 << 20)).unwrap();
            image.set_len(8 << 20).unwrap();
            let Some(device) = RealLoop::attach(&path, &[]) else { return };
            let mut spec = DiskSpec::new(&device.0);
            (spec.format, spec.direct) = (Some(format), true);
            let disk = OpenDisk::open(&spec).unwrap();
            write(&disk, &vec![1; LEN]);
            disk.rest().unwrap();
            let at = match &disk {
                OpenDisk::Raw(_) => 0,
                OpenDisk::Image(image) => image.offset_in_top(0).unwrap(),
            };
            assert!(bytes(&device.0, at) == vec![1; LEN], "{format}");
            image.write_all_at(&vec![2; LEN], at).unwrap();
            // Or the test is of nothing.
            assert!(bytes(&device.0, at) == vec![1; LEN], "{format}");
            let copy = Drive::new(disk, &device.0, false).copy_live().unwrap();
            for (offset, len) in [(0, LEN), (0, 1), (1, 511), (511, 2), (4095, 4098), (LEN as u64 - 7, 7)] {
                let mut read = vec![0; len];
                copy.read(&mut read, offset).unwrap();
                assert!(read == vec![2; len], "{format} {offset}");
            }
            // At its end, and behind it.
            let mut read = vec![1; 100];
            copy.read(&mut read, copy.len() - 100).unwrap();
            assert_eq!(read, [0; 100]);
            assert!(copy.read(&mut read, copy.len() - 99).is_err());
        }
    }
}
