//! Reads a guest's disk on the host, before the guest runs: its kernel, initrd and options, and its root file
//! system.
//!
//! Nothing is mounted or written. The image is hostile: a search ends with an error, or with files within the
//! image.

mod bootloader;
#[cfg(test)]
mod cloud_images;
mod disk;
#[cfg(test)]
mod distributions;
mod error;
mod explore;
mod ext;
mod fat;
mod filesystem;
mod kernel_folders;
mod loaders;
mod names;
mod partitions;
mod printable;
mod runs;
mod signatures;
mod survey;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod unclean;
mod usage;
pub(crate) mod version;
mod volumes;

pub use disk::ReadError;
pub(crate) use disk::{Budget, Disk, DiskBytes, DiskFile};
pub use error::ImageError;
pub(crate) use explore::{Explored, INITRD_MAX, ImageFile, KERNEL_MAX, Wanted, explore, read_file};
#[cfg(feature = "cli")]
pub(crate) use partitions::crc32;
pub(crate) use printable::printable;
pub(crate) use runs::Run;
pub(crate) use survey::{Root, Survey};
pub(crate) use usage::{Usage, usage_of};

/// The result of a search for the fuzzer.
#[derive(Debug, PartialEq, Eq)]
pub struct Search {
    /// The findings or the error, as text.
    pub text: String,
    /// The work that was done.
    pub steps: u64,
}

/// Searches a disk with sectors of this size, for the fuzzer.
pub fn explore_bytes(image: &[u8], sector: u64, release: Option<&str>) -> Search {
    let budget = Budget::new();
    let text = found(image, sector, release, &budget).unwrap_or_else(|error| error.to_string());
    Search { text, steps: budget.spent() }
}

fn found(image: &[u8], sector: u64, release: Option<&str>, budget: &Budget) -> Result<String, ReadError> {
    let wanted = release.map_or(Wanted::Kernel, Wanted::Initrd);
    let explored = explore(&Disk::new(&image, sector, budget)?, wanted)?;
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
