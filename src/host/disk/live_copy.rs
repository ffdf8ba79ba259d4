//! A disk that is copied while its guest writes: what is left to be copied of it, and its bytes as the guest sees them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use vmm_sys_util::seek_hole::SeekHole;

use super::block_set::BlockSet;
use super::drive::{Drive, Medium};
use super::file::DiskFile;
use super::mapped::ImageDisk;
use super::open_disk::OpenDisk;
use super::write_log::LogReader;

/// See the module. Dropped, the log is switched off.
#[derive(Debug)]
pub(crate) struct LiveCopy {
    log: LogReader,
    source: Source,
    medium: Arc<Medium>,
    /// All of it in bytes, also what is no whole sector.
    len: u64,
    /// What is to be copied.
    left: BlockSet,
}

/// Where its bytes come from.
#[derive(Debug)]
enum Source {
    /// A raw image or a block device. The second descriptor is to look for its holes: nobody else uses its position.
    File(Arc<DiskFile>, File),
    /// An image in another format, or of several files.
    Image(Arc<ImageDisk>),
}

impl Drive {
    /// Begins to copy the disk, all of which is left.
    ///
    /// # Errors
    /// The host has no descriptor left, or does not say how long the disk is.
    pub(crate) fn copy_live(&self) -> io::Result<LiveCopy> {
        let medium = self.medium();
        let len = medium.present_length()?;
        let source = match &**medium {
            OpenDisk::Raw(file) => Source::File(file.clone(), file.buffered.try_clone()?),
            OpenDisk::Image(image) => Source::Image(image.clone()),
        };
        // Before a byte is read.
        let log = self.log_writes(len);
        Ok(LiveCopy { log, source, medium, len, left: BlockSet::all(len) })
    }
}

impl LiveCopy {
    /// Bytes of the disk.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// What was written, discarded or zeroed since the last call is left, too.
    pub(crate) fn take_written(&mut self) {
        self.log.take_to(&mut self.left);
    }

    /// What is left, of which nothing is left then.
    pub(crate) fn take_left(&mut self) -> BlockSet {
        std::mem::replace(&mut self.left, BlockSet::new(self.len))
    }

    /// The bytes of what is left, holes left out.
    pub(crate) fn left(&mut self) -> io::Result<u64> {
        let mut bytes = 0;
        for mut range in self.left.ranges() {
            while !range.is_empty() {
                let (is_hole, len) = self.source.next(&range)?;
                bytes += if is_hole { 0 } else { len };
                range.start += len;
            }
        }
        Ok(bytes)
    }

    /// Whether the beginning of `range`, which is not empty, is a hole, and for how many bytes: some.
    pub(crate) fn next(&mut self, range: &Range<u64>) -> io::Result<(bool, u64)> {
        self.source.next(range)
    }

    /// Fills `buffer` with the bytes from `offset` on.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.source.read(rest, offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether it is as long as when the copy began.
    pub(crate) fn has_its_length(&self) -> io::Result<bool> {
        Ok(self.medium.present_length()? == self.len)
    }
}

impl Source {
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Source::File(file, _) => file.read_current(buffer, offset),
            Source::Image(image) => image.read_current(buffer, offset),
        }
    }

    fn next(&mut self, range: &Range<u64>) -> io::Result<(bool, u64)> {
        let len = range.end - range.start;
        let file = match self {
            Source::File(_, seeking) => seeking,
            Source::Image(image) => return image.is_hole(range.start, len),
        };
        let (is_hole, end) = match file.seek_data(range.start) {
            Ok(None) => (true, None),
            Ok(Some(data)) if data > range.start => (true, Some(data)),
            Ok(Some(_)) => (false, file.seek_hole(range.start).ok().flatten()),
            // A file system or a device that knows no holes.
            Err(_) => (false, None),
        };
        let end = end.filter(|end| *end > range.start).unwrap_or(range.end);
        Ok((is_hole, (end - range.start).min(len)))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use diskimage::{CreateOptions, Format};
    use virtio::block::{AnyEngine, Extent, Operation};
    use virtio::memory::{Memory, Segment};
    use virtio::testing;
    use vm_memory::{Bytes, GuestAddress};

    use super::super::copy::write_zeros;
    use super::super::engine::EngineKind;
    use super::super::tests::or_skip;
    use super::*;
    use crate::spec::DiskSpec;

    const LEN: u64 = 8 << 20;
    const DONE: u32 = 7;

    fn create(path: &Path, format: Format) {
        let file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
        diskimage::create(&file, path, &CreateOptions::new(format, LEN)).unwrap();
    }

    /// A raw image with data and holes, an image in another format, and an overlay on the raw one.
    fn specs(folder: &Path) -> Vec<DiskSpec> {
        let [raw, base] = ["vda.raw", "base.raw"].map(|name| folder.join(name));
        for path in [&raw, &base] {
            create(path, Format::Raw);
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(&vec![0x5a; 1 << 20], 3 << 20).unwrap();
        }
        let qcow2 = folder.join("vdb.qcow2");
        create(&qcow2, Format::Qcow2);
        let mut overlay = DiskSpec::new(&base);
        overlay.overlay = Some(folder.join("vdc.qcow2"));
        vec![DiskSpec::new(&raw), DiskSpec::new(&qcow2), overlay]
    }

    struct Rig {
        engine: AnyEngine,
        memory: Memory,
        seed: u64,
        next: u16,
        in_flight: usize,
    }

    impl Rig {
        fn chance(&mut self, below: u64) -> u64 {
            self.seed =
                self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.seed >> 33) % below
        }

        /// Begins something that changes the disk. No two are at one place at a time: what becomes of that nobody knows.
        fn begin(&mut self) {
            let tag = self.next % 8;
            self.next += 1;
            let eighth = LEN / 8;
            let len = 512 * (1 + self.chance(400));
            let offset = u64::from(tag) * eighth + 512 * self.chance((eighth - len) / 512);
            let extent = Extent { offset, len };
            let address = GuestAddress(u64::from(tag) * (1 << 18));
            let fill = vec![u8::try_from(1 + self.chance(250)).unwrap(); usize::try_from(len).unwrap()];
            self.memory.write_slice(&fill, address).unwrap();
            let segments = [Segment { address, len: len.try_into().unwrap() }];
            match self.chance(4) {
                0 => self.engine.submit(tag, Operation::WriteZeroes { unmap: true }, extent, &[]),
                1 => self.engine.submit(tag, Operation::Discard, extent, &[]),
                _ => self.engine.submit(tag, Operation::Write, extent, &segments),
            }
            self.in_flight += 1;
        }

        fn end_all(&mut self) {
            let mut ready = Vec::new();
            while self.in_flight > 0 {
                while let Some(completion) = self.engine.completed() {
                    completion.result.unwrap();
                    self.in_flight -= 1;
                }
                if self.in_flight > 0 {
                    self.engine.wait(Some(Duration::from_secs(60)), &mut ready).unwrap();
                }
            }
        }
    }

    /// As a copy does a round.
    fn round(copy: &mut LiveCopy, to: &File) -> u64 {
        let mut bytes = 0;
        for mut range in copy.take_left().ranges() {
            while !range.is_empty() {
                let (is_hole, len) = copy.next(&range).unwrap();
                if is_hole {
                    write_zeros(to, range.start, len).unwrap();
                } else {
                    let mut piece = vec![0; usize::try_from(len).unwrap()];
                    copy.read(&mut piece, range.start).unwrap();
                    to.write_all_at(&piece, range.start).unwrap();
                    bytes += len;
                }
                range.start += len;
            }
        }
        bytes
    }

    #[test]
    fn copy_that_was_taken_while_a_disk_was_written_is_the_disk() {
        for kind in EngineKind::ALL {
            let folder = tempfile::tempdir().unwrap();
            for (number, spec) in (1..).zip(specs(folder.path())) {
                let path: PathBuf = spec.image().into();
                let drive = Arc::new(Drive::new(OpenDisk::open(&spec).unwrap(), &path, false));
                let Some(mut engine) = or_skip(drive.make_engine(kind)(), kind) else { continue };
                let (memory, _) = testing::memory(4 << 20);
                engine.attach(DONE, &memory);
                let mut rig = Rig { engine, memory, seed: number, next: 0, in_flight: 0 };
                let to = tempfile::tempfile().unwrap();
                to.set_len(LEN).unwrap();
                // In flight before the log is on.
                (0..8).for_each(|_| rig.begin());
                let mut copy = drive.copy_live().unwrap();
                assert_eq!(copy.len(), LEN);
                for _ in 0..12 {
                    round(&mut copy, &to);
                    rig.end_all();
                    (0..8).for_each(|_| rig.begin());
                    copy.take_written();
                }
                rig.end_all();
                copy.take_written();
                let left = copy.left().unwrap();
                assert_eq!(round(&mut copy, &to), left, "{}", path.display());
                assert!(left < LEN / 2, "{left}");
                assert!(copy.has_its_length().unwrap());
                let [mut own, mut copied] = [(); 2].map(|()| vec![0; usize::try_from(LEN).unwrap()]);
                copy.read(&mut own, 0).unwrap();
                to.read_exact_at(&mut copied, 0).unwrap();
                let wrong = own.chunks(512).zip(copied.chunks(512)).position(|(own, copied)| own != copied);
                assert_eq!(wrong, None, "sector of {} on {kind:?}", path.display());
                assert!(own.iter().any(|byte| *byte != 0));
                // Nothing is left, and the next copy begins with all of it.
                copy.take_written();
                assert_eq!(copy.left().unwrap(), 0);
                drop(copy);
                assert!(drive.copy_live().unwrap().left().unwrap() > left);
            }
        }
    }

    #[test]
    fn disk_that_has_grown_meanwhile_is_not_whole() {
        let folder = tempfile::tempdir().unwrap();
        for spec in specs(folder.path()) {
            let drive = Drive::new(OpenDisk::open(&spec).unwrap(), spec.image(), false);
            let copy = drive.copy_live().unwrap();
            drive.medium().grow(LEN + (1 << 20)).unwrap();
            assert!(!copy.has_its_length().unwrap());
            assert!(drive.copy_live().unwrap().has_its_length().unwrap());
        }
    }
}
