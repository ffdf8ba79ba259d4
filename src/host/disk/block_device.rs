//! What the kernel says of a block device.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use virtio::block::Topology;

/// BLKSSZGET, BLKIOMIN, BLKIOOPT, BLKPBSZGET, BLKGETSIZE64 (linux/fs.h).
const BLKSSZGET: libc::c_ulong = 0x1268;
const BLKIOMIN: libc::c_ulong = 0x1278;
const BLKIOOPT: libc::c_ulong = 0x1279;
const BLKPBSZGET: libc::c_ulong = 0x127b;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// The largest logical block of a guest: its drivers take none that is larger than a page (Linux: `blk_validate_block_size`). A
/// device with larger ones is read and written through the page cache.
const LARGEST_BLOCK: u32 = 4096;

/// A number from an ioctl of a block device.
fn number_of<T: Default>(file: &File, request: libc::c_ulong) -> io::Result<T> {
    let mut number = T::default();
    // SAFETY: each request here writes one number of the type that its caller names.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut number) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(number) }
}

/// Its size in bytes.
pub(super) fn size(file: &File) -> io::Result<u64> {
    number_of::<u64>(file, BLKGETSIZE64)
}

/// The block sizes that the guest sees.
pub(super) fn topology(file: &File) -> Topology {
    let number = |request| number_of::<libc::c_uint>(file, request).ok();
    plausible(number(BLKSSZGET), number(BLKPBSZGET), number(BLKIOMIN), number(BLKIOOPT))
}

/// The block sizes of a block device, without implausible values; the guest uses them for its own blocks.
fn plausible(logical: Option<u32>, physical: Option<u32>, least: Option<u32>, best: Option<u32>) -> Topology {
    let sane = |size: &u32| size.is_power_of_two() && (512..=64 << 10).contains(size);
    let logical_block = logical.filter(sane).unwrap_or(512).min(LARGEST_BLOCK);
    let physical_block = physical.filter(|size| size.is_power_of_two()).unwrap_or(512).max(logical_block);
    Topology {
        logical_block,
        physical_block,
        least_io: least.unwrap_or(physical_block).max(logical_block),
        best_io: best.unwrap_or(0),
    }
}

/// The discard granularity of the device with this number, if it can discard.
pub(super) fn discard(device: libc::dev_t) -> Option<u32> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let limit = |name| {
        // A partition has the queue of its disk.
        let sys = format!("/sys/dev/block/{major}:{minor}");
        let own = fs::read_to_string(format!("{sys}/queue/{name}"));
        let text = own.or_else(|_| fs::read_to_string(format!("{sys}/../queue/{name}"))).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let granularity = u32::try_from(limit("discard_granularity")?).ok()?;
    (limit("discard_max_bytes")? > 0).then_some(granularity.max(512))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_a_block_device_are_passed_on() {
        let large = plausible(Some(4096), Some(4096), Some(4096), Some(1 << 20));
        assert_eq!((large.logical_block, large.physical_block, large.least_io), (4096, 4096, 4096));
        let emulated = plausible(Some(512), Some(4096), None, None);
        assert_eq!((emulated.logical_block, emulated.physical_block, emulated.least_io), (512, 4096, 4096));
        let larger = plausible(Some(16384), Some(16384), Some(16384), None);
        assert_eq!((larger.logical_block, larger.physical_block), (4096, 16384));
        for odd in [None, Some(0), Some(100), Some(1 << 30)] {
            assert_eq!(plausible(odd, Some(512), None, None).logical_block, 512);
        }
    }
}
