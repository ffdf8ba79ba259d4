//! What a user relies on, one by one.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use diskimage::imago::format::PreallocateMode;

use super::super::super::file::DiskFile;
use super::super::super::uring::{ENTERED, UringEngine};
use super::images::{kind, plain};
use super::*;
use crate::spec::DiskDiscard;

#[test]
fn a_flush_brings_everything_to_the_file() {
    on_each(Access::default(), plain, |rig| {
        for seed in 0..3 {
            rig.write(seed * MIB + 512, &pattern(seed, 70_000 / 512 * 512)).unwrap();
            rig.run(Operation::Flush, 0, 0).unwrap();
            // As a machine that is killed now would leave it.
            let killed = rig.path.with_file_name("killed.qcow2");
            fs::copy(&rig.path, &killed).unwrap();
            rig.check(&killed);
        }
    });
}

#[test]
fn discarded_space_goes_back_to_the_host_and_is_used_again() {
    on_each(Access::default(), plain, |rig| {
        rig.write(0, &pattern(1, 2 * MIB)).unwrap();
        rig.run(Operation::Flush, 0, 0).unwrap();
        let full = rig.disk().used().unwrap();
        assert!(full >= 2 * MIB);
        rig.run(Operation::Discard, 0, 2 * MIB).unwrap();
        rig.model[..2 * MIB as usize].fill(0);
        assert!(rig.disk().used().unwrap() + 2 * MIB <= full + 4096);
        assert!(rig.read(0, 2 * MIB).iter().all(|byte| *byte == 0));
        let len = fs::metadata(&rig.path).unwrap().len();
        rig.write(0, &pattern(2, 2 * MIB)).unwrap();
        rig.close();
        assert_eq!(fs::metadata(&rig.path).unwrap().len(), len, "the clusters had kept their places");
    });
}

#[test]
fn a_disk_grows_while_it_works_and_nothing_shows_through() {
    let prepare = |path: &Path| {
        let below = path.with_file_name("base.raw");
        let mut bytes = pattern(9, SIZE);
        fs::write(&below, &bytes).unwrap();
        make(path, MIB + 512, &["-b", "base.raw", "-F", "raw"]);
        bytes.truncate((MIB + 512) as usize);
        bytes
    };
    on_each(Access::default(), prepare, |rig| {
        for size in [MIB + 1024, 2 * MIB, 3 * MIB + 512, 40 * MIB, (2 << 30) + 512] {
            let disk = rig.disk().clone();
            rig.batch();
            let grower = std::thread::spawn(move || disk.resize(size));
            let seed = rig.dice.below(1000);
            rig.write(4096, &pattern(seed, 8192)).unwrap();
            grower.join().unwrap().unwrap();
            assert_eq!(rig.disk().measure().unwrap(), size / 512);
            if size < 100 * MIB {
                rig.model.resize(size as usize, 0);
                let was = rig.model.clone();
                assert!(rig.read(0, size) == was, "{size}");
            }
        }
        rig.model.truncate(40 << 20);
        rig.disk().resize(MIB).unwrap_err();
        let far = (2 << 30) - MIB;
        rig.memory.write_slice(&pattern(1, 4096), GuestAddress(0)).unwrap();
        rig.run(Operation::Write, far, 4096).unwrap();
        (rig.engine, rig.disk) = (None, None);
        assert_eq!(qemu_img(&["check", "-q", "-f", "qcow2", rig.path.to_str().unwrap()]), 0);
    });
}

#[test]
fn what_a_growth_that_failed_has_left_is_zeroed_by_the_next() {
    let prepare = |path: &Path| {
        let mut bytes = pattern(9, SIZE);
        fs::write(path.with_file_name("base.raw"), &bytes).unwrap();
        make(path, MIB + 512, &["-b", "base.raw", "-F", "raw"]);
        bytes.truncate((MIB + 512) as usize);
        bytes
    };
    on_each(Access::default(), prepare, |rig| {
        // The image has grown, and then there was no room for the zeros.
        rig.disk().image.access().resize_grow(2 * MIB, PreallocateMode::None).unwrap();
        rig.disk().resize(3 * MIB).unwrap();
        rig.model.resize(3 << 20, 0);
        let was = rig.model.clone();
        assert!(rig.read(0, 3 * MIB) == was);
        rig.close();
    });
}

#[test]
fn a_disk_that_is_only_read_is_not_changed() {
    let access = Access { read_only: true, ..Access::default() };
    for name in ["compressed", "on a compressed image on another"] {
        let prepare = kind(name);
        on_each(access, prepare, |rig| {
            let before = fs::read(&rig.path).unwrap();
            let model = rig.model.clone();
            assert!(rig.read(0, SIZE) == model);
            rig.run(Operation::Flush, 0, 0).unwrap();
            rig.run(Operation::Write, 0, 512).unwrap_err();
            rig.run(Operation::WriteZeroes { unmap: true }, 0, 512).unwrap_err();
            (rig.engine, rig.disk) = (None, None);
            assert!(fs::read(&rig.path).unwrap() == before);
        });
    }
}

#[test]
fn an_image_with_a_snapshot_inside_is_only_read() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let path = folder.path().join("disk.qcow2");
    let bytes = kind("compressed")(&path);
    assert_eq!(qemu_img(&["snapshot", "-c", "before", path.to_str().unwrap()]), 0);
    let options = ImageOptions::new(Format::Qcow2).write(true);
    Image::open(&path, &options, &mut UnlockedOpener).unwrap_err();
    let access = Access { read_only: true, ..Access::default() };
    let mut rig = Rig::new(folder, &path, EngineKind::Sync, access, bytes.clone()).unwrap();
    assert!(rig.read(0, SIZE) == bytes);
}

#[test]
fn many_clusters_are_freed_while_the_disk_works() {
    let prepare = |path: &Path| {
        let raw = path.with_extension("raw");
        let bytes = pattern(8, 24 * MIB);
        fs::write(&raw, &bytes).unwrap();
        let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
        let options = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=8k", from, to];
        assert_eq!(qemu_img(&options), 0);
        bytes
    };
    on_each(Access::default(), prepare, |rig| {
        for at in 0..24 {
            let seed = rig.dice.below(1 << 20);
            rig.write(at * MIB, &pattern(seed, MIB)).unwrap();
            if at % 8 == 7 {
                rig.run(Operation::Flush, 0, 0).unwrap();
            }
        }
        let model = rig.model.clone();
        assert!(rig.read(0, 24 * MIB) == model);
        rig.close();
        let space = fs::metadata(&rig.path).unwrap().blocks() * 512;
        assert!(space < 30 * MIB, "the space of what was compressed is free: {space}");
    });
}

#[test]
fn operations_in_flight_are_waited_for_when_the_disk_ends() {
    on_each(Access::default(), plain, |rig| {
        for tag in 0..16 {
            rig.memory.write_slice(&pattern(1, 65536), GuestAddress(u64::from(tag) * SLOT)).unwrap();
            rig.submit(tag, Operation::Write, Extent { offset: u64::from(tag) * 131_072 + 512, len: 65536 });
        }
        rig.engine().drain().unwrap();
        let ended = std::iter::from_fn(|| rig.engine().completed()).filter(|end| end.result.is_ok()).count();
        assert_eq!(ended, 16);
        for tag in 0..16u64 {
            let at = (tag * 131_072 + 512) as usize;
            rig.model[at..at + 65536].copy_from_slice(&pattern(1, 65536));
        }
        rig.close();
    });
}

/// A file that ends inside of a cluster, as some tools leave them.
#[test]
fn clusters_beyond_the_end_of_the_file_read_as_zeros() {
    on_each(Access::default(), plain, |rig| {
        rig.write(0, &pattern(1, 65536)).unwrap();
        (rig.engine, rig.disk) = (None, None);
        let file = File::options().read(true).write(true).open(&rig.path).unwrap();
        let len = file.metadata().unwrap().len();
        let mut last = vec![0; 65536];
        file.read_exact_at(&mut last, len - 65536).unwrap();
        assert_eq!(last, pattern(1, 65536), "the data are last in the file");
        file.set_len(len - 32768).unwrap();
        rig.model[32768..65536].fill(0);
        rig.open();
        let model = rig.model[..MIB as usize].to_vec();
        assert!(rig.read(0, MIB) == model);
    });
}

/// The system calls of a raw disk: one for each request, or one for all that are submitted together.
#[test]
fn requests_on_allocated_clusters_cost_what_they_cost_on_a_raw_disk() {
    on_each(Access::default(), plain, |rig| {
        if rig.kind == EngineKind::Sync {
            return;
        }
        rig.write(0, &pattern(1, 2 * MIB)).unwrap();
        rig.run(Operation::Flush, 0, 0).unwrap();
        let mapped = least_calls(rig);
        let raw = rig.path.with_file_name("disk.raw");
        fs::write(&raw, pattern(1, 2 * MIB)).unwrap();
        let file = Arc::new(DiskFile::open(&raw, Access::default()).unwrap());
        let mut engine: AnyEngine = Box::new(UringEngine::new(vec![file]).unwrap());
        engine.attach(DONE, &rig.memory);
        rig.engine = Some(engine);
        let raw = least_calls(rig);
        // One more for each request or for each batch would be 40 % more.
        assert!(raw > 0 && mapped <= raw + raw / 4, "{mapped} calls, and {raw} on a raw disk");
    });
}

/// Requests that the host does while it is asked cost no call of their own; how many those are differs from time to time.
fn least_calls(rig: &mut Rig) -> u64 {
    (0..12).map(|_| calls(rig)).min().unwrap()
}

fn calls(rig: &mut Rig) -> u64 {
    let before = ENTERED.get();
    for round in 0..8 {
        for operation in [Operation::Read, Operation::Write] {
            rig.run(operation, round * 8192, 4096).unwrap();
            for tag in 0..8 {
                rig.submit(
                    tag,
                    operation,
                    Extent { offset: u64::from(tag) * 131_072 + round * 512, len: 512 },
                );
            }
            for _ in 0..8 {
                rig.next().result.unwrap();
            }
        }
        rig.run(Operation::Flush, 0, 0).unwrap();
    }
    ENTERED.get() - before
}

/// QEMU keeps the cluster of zeroed space, with what it held.
#[test]
fn what_a_cluster_held_before_is_not_seen_again() {
    on_each(Access::default(), plain, |rig| {
        rig.write(0, &pattern(1, MIB)).unwrap();
        (rig.engine, rig.disk) = (None, None);
        let zero =
            Command::new("qemu-io").args(["-f", "qcow2", "-c", "write -z 0 1M"]).arg(&rig.path).output();
        assert!(zero.expect("qemu-io is installed").status.success());
        rig.model[..MIB as usize].fill(0);
        rig.open();
        for cluster in 0..16 {
            rig.write(cluster * 65536 + 4096 + cluster * 512, &[0xaa; 512]).unwrap();
        }
        rig.close();
    });
}

#[test]
fn a_preallocated_image_keeps_its_space_and_one_that_was_written_full_gives_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let open = |path: &Path| {
        Image::open(path, &ImageOptions::new(Format::Qcow2).write(true), &mut UnlockedOpener).unwrap()
    };
    let offers = |wish, path: &Path| {
        let disk = ImageDisk::new(open(path), Access::default()).unwrap().discarding(wish);
        disk.disk("", std::num::NonZeroU16::MIN).discard.is_some()
    };
    let (reserved, written) = (folder.path().join("reserved.qcow2"), folder.path().join("written.qcow2"));
    make(&reserved, 2 * MIB, &["-o", "preallocation=falloc"]);
    assert!(!offers(DiskDiscard::Auto, &reserved) && offers(DiskDiscard::On, &reserved));
    make(&written, 2 * MIB, &[]);
    let image = open(&written);
    image.write_at(&pattern(1, 2 * MIB), 0).unwrap();
    image.flush().unwrap();
    drop(image);
    assert!(fs::metadata(&written).unwrap().blocks() * 512 >= 2 * MIB);
    assert!(offers(DiskDiscard::Auto, &written) && !offers(DiskDiscard::Off, &written));
}
