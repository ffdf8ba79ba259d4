//! An image on a block device.

use super::super::super::loop_device::tests::RealLoop;
use super::super::super::transfer::Transfer;
use super::*;

#[test]
fn guest_sees_sectors_of_512_bytes_on_a_device_with_larger_ones_and_may_discard_any() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("device");
    fs::File::create(&file).unwrap().set_len(8 << 20).unwrap();
    let Some(device) = RealLoop::attach(&file, &["-b", "4096"]) else { return };
    make(&device.0, 4 * MIB, &[]);
    let options = ImageOptions::new(Format::Qcow2).write(true);
    let image = Image::open(&device.0, &options, &mut UnlockedOpener).unwrap();
    let disk = ImageDisk::new(image, Access::default()).unwrap();
    let topology = disk.disk("", std::num::NonZeroU16::MIN).topology;
    assert_eq!((topology.logical_block, topology.physical_block), (512, 512));
    let written = Extent { offset: 0, len: 65536 };
    let mut zeros = Transfer::default();
    zeros.zeros(written);
    disk.write(written, zeros).unwrap();
    for (offset, len) in [(512, 8192), (512, 512), (4096, 4096), (0, 65536)] {
        disk.space(Operation::Discard, Extent { offset, len }).unwrap();
    }
    disk.flush().unwrap();
}
