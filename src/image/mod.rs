//! Reads a guest's disk on the host, before the guest runs: which kernel it would boot, with which initrd and options, and
//! what its root file system is called.
//!
//! Nothing is mounted and nothing is written. The image is hostile: it gives an error, or files that lie within it.

mod bootloader;
mod disk;
#[cfg(test)]
mod distributions;
mod error;
mod explore;
mod ext;
mod names;
mod partitions;
mod sniff;
mod survey;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod text;
mod unclean;
pub(crate) mod version;

pub(crate) use disk::DiskFile;
pub use disk::ReadError;
pub use error::ImageError;
pub(crate) use explore::{Explored, INITRD_MAX, ImageFile, KERNEL_MAX, Wanted, explore, read_file};
pub(crate) use ext::Run;
pub(crate) use survey::{Root, Survey};

use boot::read::ReadAt;

/// What was found, as text: for the fuzzer, which shall see no more of this.
pub fn explore_bytes(image: &[u8], release: Option<&str>) -> Result<String, ReadError> {
    struct Bytes<'a>(&'a [u8]);
    impl ReadAt for Bytes<'_> {
        fn length(&self) -> std::io::Result<u64> {
            self.0.length()
        }
        fn read_at(&self, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
            self.0.read_at(buf, offset)
        }
    }
    let wanted = release.map_or(Wanted::Kernel, Wanted::Initrd);
    let explored = explore(&Bytes(image), wanted)?;
    for file in explored.kernel.iter().chain(&explored.initrd) {
        let mut end = 0;
        for run in &file.runs {
            let fits = run.disk.checked_add(run.len).is_some_and(|end| end <= image.len() as u64);
            assert!(fits && run.file >= end && run.len > 0, "a run lies in the image, behind the one before");
            end = run.file + run.len;
        }
        assert!(end <= file.size, "a file ends where it ends");
    }
    Ok(format!("{explored:?}"))
}
