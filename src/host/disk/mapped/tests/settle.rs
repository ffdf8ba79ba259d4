//! What brings an image to its medium, and holds nobody up.

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use diskimage::Header;
use diskimage::imago::format::PreallocateMode;

use super::images::plain;
use super::*;

/// A compressed image of small clusters, all of which will be freed when they are written over.
fn packed(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    let mut dice = Dice(9);
    // It can be packed to half of its size.
    let mut sector = || (0..256).map(|_| dice.below(256) as u8).chain([0; 256]).collect::<Vec<_>>();
    let bytes: Vec<u8> = (0..2 * MIB / 512).flat_map(|_| sector()).collect();
    fs::write(&raw, &bytes).unwrap();
    let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
    let options = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=512", from, to];
    assert_eq!(qemu_img(&options), 0);
    bytes
}

#[test]
fn requests_go_on_while_the_space_of_freed_clusters_is_given_back() {
    static ROUNDS: AtomicUsize = AtomicUsize::new(0);
    on_each(Access::default(), packed, |rig| {
        *rig.disk().on_reclaim.lock().unwrap() = Some(|disk| {
            assert!(!disk.is_locked(), "reads, writes and looks at mappings would wait");
            ROUNDS.fetch_add(1, Ordering::Relaxed);
        });
        let before = ROUNDS.load(Ordering::Relaxed);
        rig.write(0, &pattern(3, 2 * MIB)).unwrap();
        rig.run(Operation::Flush, 0, 0).unwrap();
        assert_eq!(ROUNDS.load(Ordering::Relaxed), before + 1, "one round with a flush");
        let model = rig.model.clone();
        assert!(rig.read(0, 2 * MIB) == model);
        rig.close();
    });
}

#[test]
fn an_overlay_of_version_2_grows_over_a_longer_base() {
    let prepare = |path: &Path| {
        let mut bytes = pattern(9, SIZE);
        fs::write(path.with_file_name("base.raw"), &bytes).unwrap();
        make(path, MIB + 512, &["-o", "compat=0.10", "-b", "base.raw", "-F", "raw"]);
        bytes.truncate((MIB + 512) as usize);
        bytes
    };
    on_each(Access::default(), prepare, |rig| {
        for size in [2 * MIB + 1024, 6 * MIB] {
            rig.disk().resize(size).unwrap();
            rig.model.resize(size as usize, 0);
            let was = rig.model.clone();
            assert!(rig.read(0, size) == was, "{size}");
        }
        rig.close();
    });
}

/// What is in the file is what power leaves.
#[test]
fn the_size_on_the_medium_is_the_old_one_until_new_space_is_zeroed() {
    let prepare = |path: &Path| {
        let mut bytes = pattern(9, SIZE);
        fs::write(path.with_file_name("base.raw"), &bytes).unwrap();
        make(path, MIB, &["-b", "base.raw", "-F", "raw"]);
        bytes.truncate(MIB as usize);
        bytes
    };
    on_each(Access::default(), prepare, |rig| {
        let size = || Header::read(&fs::File::open(&rig.path).unwrap(), &rig.path).unwrap().size;
        // What a resize does before it fails for want of room.
        let held = rig.disk().held().unwrap();
        held.hide_size(MIB);
        rig.disk().image.access().resize_grow(2 * MIB, PreallocateMode::None).unwrap();
        rig.disk().has_changed();
        rig.disk().flush().unwrap();
        assert_eq!(size(), MIB);
        rig.disk().resize(3 * MIB).unwrap();
        assert_eq!(size(), 3 * MIB);
        rig.model.resize(3 << 20, 0);
        rig.close();
    });
}

#[test]
fn a_flush_of_a_disk_that_is_gone_with_its_machine_writes_nothing() {
    on_each(Access::default(), plain, |rig| {
        (rig.engine, rig.disk) = (None, None);
        let file = fs::File::open(&rig.path).unwrap();
        let header = Header::read(&file, &rig.path).unwrap();
        let tables = || {
            let mut l1 = [0; 8];
            file.read_exact_at(&mut l1, header.l1_offset).unwrap();
            l1
        };
        let before = tables();
        let options = ImageOptions::new(Format::Qcow2).write(true);
        let image = Image::open(&rig.path, &options, &mut UnlockedOpener).unwrap();
        let disk = Arc::new(ImageDisk::new(image, rig.access).unwrap().temporary(true));
        let mut made = engine(disk.clone(), rig.kind).unwrap();
        made.attach(DONE, &rig.memory);
        (rig.engine, rig.disk) = (Some(made), Some(disk));
        for at in 0..2 {
            rig.write(at * MIB, &pattern(at, 4096)).unwrap();
            rig.run(Operation::Flush, 0, 0).unwrap();
            let model = rig.model[..2 << 20].to_vec();
            assert!(rig.read(0, 2 * MIB) == model);
        }
        (rig.engine, rig.disk) = (None, None);
        assert_eq!(tables(), before);
    });
}
