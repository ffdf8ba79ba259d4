//! Disks grow and shrink, and qemu-img agrees with what is there then.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use common::{assert_clean, converted, create, folder, open, pattern, qemu_img, read_all, run};
use diskimage::{CreateOptions, Format, ImageError};

const MIB: u64 = 1 << 20;

#[test]
fn disks_of_both_formats_grow_and_shrink() {
    for (name, options) in [
        ("disk.raw", CreateOptions::new(Format::Raw, 3 * MIB)),
        ("disk.qcow2", CreateOptions::new(Format::Qcow2, 3 * MIB)),
        ("small.qcow2", CreateOptions::new(Format::Qcow2, 3 * MIB).cluster_size(512)),
    ] {
        let (_folder, path) = folder(name);
        create(&path, &options);
        let mut image = open(&path, true).unwrap();
        let mut expected = pattern(9, 3 << 20);
        image.write_at(&expected, 0).unwrap();
        // With small clusters, that many tables are slow to check.
        let large = if name == "small.qcow2" { 20 * MIB } else { 700 * MIB };
        for size in [2 * MIB + 512, 40 * MIB, large, 5 * MIB - 1024, 1024, 9 * MIB] {
            let shrinks = size < image.size();
            if shrinks {
                let said = image.resize(size, false).unwrap_err();
                assert!(matches!(said, ImageError::Shrink { .. }), "{said}");
                assert!(said.to_string().contains("--shrink"));
            }
            image.resize(size, shrinks).unwrap();
            expected.truncate(size as usize);
            if size <= 40 * MIB {
                expected.resize(size as usize, 0);
                assert!(read_all(&image) == expected, "{name} with {size} bytes");
            }
            assert_eq!(image.size(), size);
            if Format::of(&path) == Format::Qcow2 {
                assert_clean(&path);
                assert!(qemu_img("info", &path).contains(&format!("({size} bytes)")));
            }
        }
        drop(image);
        assert!(read_all(&open(&path, false).unwrap()) == expected);
        if Format::of(&path) == Format::Qcow2 {
            assert!(converted(&path) == expected);
        }
    }
}

#[test]
fn growing_takes_no_space() {
    let (_folder, path) = folder("disk.qcow2");
    create(&path, &CreateOptions::new(Format::Qcow2, 60 << 30));
    let mut image = open(&path, true).unwrap();
    image.resize(80 << 30, false).unwrap();
    image.resize(2 << 40, false).unwrap();
    assert!(image.used().unwrap() <= 2 * MIB);
    assert_clean(&path);
    let said = image.resize(1 << 60, false).unwrap_err();
    assert!(matches!(said, ImageError::TooLarge { .. }), "{said}");
    let (_folder, path) = folder("empty.qcow2");
    create(&path, &CreateOptions::new(Format::Qcow2, 0));
    assert_clean(&path);
    open(&path, true).unwrap().resize(MIB, false).unwrap();
    assert_clean(&path);
}

#[test]
fn new_space_of_an_overlay_is_empty_whatever_lies_beneath() {
    for options in ["compat=1.1", "compat=0.10"] {
        let (_folder, base) = folder("base.raw");
        std::fs::write(&base, pattern(5, 4 << 20)).unwrap();
        let path = base.with_file_name("top.qcow2");
        let create = ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "-o", options];
        run("qemu-img", create.into_iter().chain([path.to_str().unwrap(), "4M"]));
        let mut image = open(&path, true).unwrap();
        image.resize(MIB + 700, true).unwrap();
        image.resize(6 * MIB, false).unwrap();
        let mut expected = pattern(5, 4 << 20);
        expected.truncate(MIB as usize + 700);
        expected.resize(6 << 20, 0);
        assert!(read_all(&image) == expected, "{options}");
        drop(image);
        assert_clean(&path);
        assert!(converted(&path) == expected, "{options}");
    }
}

#[test]
fn discarded_space_goes_back_to_the_host() {
    for options in [CreateOptions::new(Format::Raw, 8 * MIB), CreateOptions::new(Format::Qcow2, 8 * MIB)] {
        let (_folder, path) = folder(if options.format == Format::Raw { "disk.raw" } else { "disk.qcow2" });
        create(&path, &options);
        let mut image = open(&path, true).unwrap();
        image.write_at(&pattern(3, 8 << 20), 0).unwrap();
        image.flush().unwrap();
        assert!(image.used().unwrap() >= 8 * MIB);
        image.discard(MIB, 6 * MIB).unwrap();
        image.flush().unwrap();
        assert!(image.used().unwrap() < 3 * MIB, "{} bytes are used", image.used().unwrap());
        let mut expected = pattern(3, 8 << 20);
        expected[1 << 20..7 << 20].fill(0);
        assert!(read_all(&image) == expected);
    }
}

#[test]
fn a_disk_open_for_reading_keeps_its_size() {
    let (_folder, path) = folder("disk.qcow2");
    create(&path, &CreateOptions::new(Format::Qcow2, MIB));
    let said = open(&path, false).unwrap().resize(2 * MIB, false).unwrap_err();
    assert!(matches!(said, ImageError::ReadOnly { .. }), "{said}");
}
