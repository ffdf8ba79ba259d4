use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;
use crate::{CreateOptions, NoProgress, create};

const CLUSTER: u64 = 512;

/// An empty image of clusters of 512 bytes, which has small tables.
fn made(size: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    let options = CreateOptions::new(Format::Qcow2, size).cluster_size(512);
    create(&file, Path::new("image"), &options).unwrap();
    file
}

fn checked(file: &File) -> Result<Report, ImageError> {
    check(file, Path::new("image"), Format::Qcow2, &mut NoProgress)
}

fn field(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

fn put(file: &File, at: u64, value: u64) {
    file.write_all_at(&value.to_be_bytes(), at).unwrap();
}

#[test]
fn raw_image_has_nothing_to_check() {
    let report = check(&made(0), Path::new("image"), Format::Raw, &mut NoProgress).unwrap();
    assert!(report.nothing_to_check());
    assert_eq!(report.verdict(), Verdict::Sound);
}

#[test]
fn table_that_many_entries_point_to_is_read_once() {
    // 64 clusters for each L1 entry: 4096 of them, which all name one table full of entries.
    let file = made(4096 * 64 * CLUSTER);
    let l1 = field(&file, 40);
    let table = file.metadata().unwrap().len().next_multiple_of(CLUSTER);
    file.set_len(table + 2 * CLUSTER).unwrap();
    for index in 0..4096 {
        put(&file, l1 + 8 * index, table);
    }
    for index in 0..CLUSTER / 8 {
        put(&file, table + 8 * index, table + CLUSTER);
    }
    let mut calls = 0;
    let mut count = |_: u64, _: u64| {
        calls += 1;
        std::ops::ControlFlow::Continue(())
    };
    let report = check(&file, Path::new("image"), Format::Qcow2, &mut count).unwrap();
    assert_eq!(report.verdict(), Verdict::Corrupt);
    // Sixty-four entries, each counted 4096 times, are more references than sixteen bits can say.
    assert!(
        report.findings.contains(&Finding::Overflow { offset: table + CLUSTER }),
        "{:?}",
        report.findings
    );
    assert_eq!(report.allocated_clusters, CLUSTER / 8);
    assert_eq!(calls, 0, "one table was read, not many");
}

#[test]
fn data_on_a_table_is_found_even_with_the_right_reference_count() {
    // The first table's first entry points to the second table, which two things then use, as its count says.
    let file = made(2 * 64 * CLUSTER);
    let (l1, block) = (field(&file, 40), field(&file, field(&file, 48)));
    let first = file.metadata().unwrap().len().next_multiple_of(CLUSTER);
    let second = first + CLUSTER;
    file.set_len(second + CLUSTER).unwrap();
    put(&file, l1, 1 << 63 | first);
    put(&file, l1 + 8, second);
    put(&file, first, second);
    for (cluster, count) in [(first / CLUSTER, 1_u16), (second / CLUSTER, 2)] {
        file.write_all_at(&count.to_be_bytes(), block + 2 * cluster).unwrap();
    }
    let report = checked(&file).unwrap();
    assert_eq!(report.findings, [Finding::Overlap { table: TableKind::L2Entry, offset: second }]);
    assert_eq!(report.verdict(), Verdict::Corrupt);
}

#[test]
fn snapshots_that_share_a_large_l1_table_are_refused() {
    let file = made(64 * CLUSTER);
    let at = file.metadata().unwrap().len().next_multiple_of(CLUSTER);
    file.set_len(at + (4 << 20)).unwrap();
    // 60000 snapshots, each with an L1 table of 2 MiB in the same place.
    file.write_all_at(&60_000_u32.to_be_bytes(), 60).unwrap();
    put(&file, 64, at);
    for index in 0..60_000 {
        put(&file, at + 56 * index, at);
        file.write_all_at(&(262_144_u32).to_be_bytes(), at + 56 * index + 8).unwrap();
        file.write_all_at(&16_u32.to_be_bytes(), at + 56 * index + 36).unwrap();
    }
    let refused = checked(&file).unwrap_err().to_string();
    assert!(refused.contains("larger than the file"), "{refused}");
}

#[test]
fn file_that_is_mostly_a_hole_costs_what_it_holds() {
    // Tables in a hole of two gigabytes: nothing to read, nothing to find but what points there.
    let file = made(64 * 64 * CLUSTER);
    let l1 = field(&file, 40);
    file.set_len(2 << 30).unwrap();
    for index in 0..64 {
        put(&file, l1 + 8 * index, 1 << 63 | ((1 + index) * (16 << 20)));
    }
    let report = checked(&file).unwrap();
    assert_eq!((report.verdict(), report.allocated_clusters), (Verdict::Corrupt, 0));
    // Larger than what is counted at all.
    file.set_len(1 << 40).unwrap();
    let refused = checked(&file).unwrap_err().to_string();
    assert!(refused.contains("qemu-img check"), "{refused}");
}

#[test]
fn headers_that_contradict_themselves_are_errors() {
    for (at, value, word) in [
        (0, 0_u32, "no qcow2 image"),
        (4, 9, "version 9"),
        (20, 63, "2^63"),
        (20, 8, "2^8"),
        (8, 1, "backing file"),
        (32, 2, "LUKS"),
        (36, u32::MAX, "L1 table"),
        (36, 0, "L1 table"),
        (44, 1, "L1 table"),
        (56, u32::MAX, "refcount table"),
        (60, u32::MAX, "snapshots"),
        (76, 1 << 2, "external data file"),
        (72, 1 << 31, "not known"),
        (96, 7, "2^7"),
        (100, 8, "header has 8"),
    ] {
        let file = made(4096 * 64);
        file.write_all_at(&value.to_be_bytes(), at).unwrap();
        let error = checked(&file).unwrap_err().to_string();
        assert!(error.contains(word), "{at}, {value:#x}: {error}");
    }
    let empty = tempfile::tempfile().unwrap();
    assert!(matches!(checked(&empty), Err(ImageError::NotQcow2 { .. })));
}

#[test]
fn findings_are_kept_up_to_a_hundred_and_counted_all() {
    let file = made(4096 * CLUSTER);
    // The refcount block is full of ones: all clusters of the file leak.
    let block = field(&file, field(&file, 48));
    file.set_len(200 * CLUSTER).unwrap();
    for index in 0..CLUSTER / 8 {
        put(&file, block + 8 * index, 0x0001_0001_0001_0001);
    }
    let report = checked(&file).unwrap();
    assert_eq!(report.verdict(), Verdict::Leaky);
    assert!(report.leaks > 150 && report.findings.len() == 100, "{} leaks", report.leaks);
    assert!(report.findings[0].to_string().starts_with("leaked cluster at 0x"), "{}", report.findings[0]);
}
