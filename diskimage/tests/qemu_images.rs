//! Images that qemu-img made and worked on: with snapshots, bitmaps, backing files, marks; what mends them does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use std::path::Path;

use common::{assert_clean, converted, folder, open, pattern, qemu_img, read_all, run};
use diskimage::ImageError;

const SIZE: usize = 5 << 20;

/// Makes an image with options, with data here and there.
fn make(path: &Path, options: &str) {
    run("qemu-img", ["create", "-q", "-f", "qcow2", "-o", options, path.to_str().unwrap(), "5M"]);
    let writes = [
        "write -P 0x11 0 70000",
        "write -P 0x22 1M 200k",
        "write -P 0x33 4190208 4096",
        "write -z 1100k 64k",
        "discard 1200k 20k",
    ];
    let commands = writes.iter().flat_map(|command| ["-c", *command]);
    run("qemu-io", ["-f", "qcow2"].into_iter().chain(commands).chain([path.to_str().unwrap()]));
}

fn assert_read_and_written(path: &Path, options: &str) {
    let expected = converted(path);
    assert_eq!(expected.len(), SIZE);
    let image = open(path, false).unwrap_or_else(|error| panic!("{options}: {error}"));
    assert!(read_all(&image) == expected, "{options}");
    drop(image);
    let mut expected = expected;
    let mut image = open(path, true).unwrap();
    for (offset, length) in [(3, 9), (1 << 20, 66_000), (3_000_000, 300_000), (SIZE as u64 - 100, 100)] {
        let data = pattern(offset, length);
        image.write_at(&data, offset).unwrap();
        expected[offset as usize..][..length].copy_from_slice(&data);
    }
    image.write_zeroes(1_060_000, 100_001).unwrap();
    expected[1_060_000..][..100_001].fill(0);
    image.discard(3_100_000, 150_000).unwrap();
    expected[3_100_000..][..150_000].fill(0);
    assert!(read_all(&image) == expected, "{options}: as written");
    image.flush().unwrap();
    assert_clean(path);
    drop(image);
    assert_clean(path);
    assert!(converted(path) == expected, "{options}: as qemu-img reads what was written");
}

#[test]
fn the_command_that_mends_an_image_does() {
    let secret = ["create", "-q", "-f", "qcow2", "--object", "secret,id=key,data=abc", "-o"];
    for options in ["extended_l2=on", "encrypt.format=aes,encrypt.key-secret=key"] {
        let (_folder, path) = folder("disk.qcow2");
        run("qemu-img", secret.into_iter().chain([options, path.to_str().unwrap(), "5M"]));
        mend(&path);
    }
}

fn mend(path: &Path) {
    let password = path.with_extension("password");
    std::fs::write(&password, "abc").unwrap();
    let said = open(path, false).unwrap_err().to_string();
    let command = said.split('`').find(|part| part.starts_with("qemu-img")).unwrap();
    let mended = path.with_file_name("mended.qcow2");
    let command = command.replace("NEW.qcow2", mended.to_str().unwrap());
    let command = command.replace("PASSWORD_FILE", password.to_str().unwrap());
    run("sh", ["-c", &command]);
    open(&mended, true).unwrap();
}

#[test]
fn snapshots_inside_are_kept() {
    let (_folder, path) = folder("disk.qcow2");
    make(&path, "cluster_size=64k");
    qemu_img("snapshot -c first", &path);
    run("qemu-io", ["-f", "qcow2", "-c", "write -P 0x77 30k 3M", path.to_str().unwrap()]);
    let image = open(&path, false).unwrap();
    assert!(read_all(&image) == converted(&path));
    assert_eq!(image.header().unwrap().snapshots, 1);
    let said = open(&path, true).unwrap_err();
    assert!(matches!(said, ImageError::Snapshots { count: 1, .. }), "{said}");
    assert!(said.to_string().contains("qemu-img convert -O qcow2"), "{said}");
}

#[test]
fn an_image_that_was_not_closed_is_refused_until_it_is_repaired() {
    let (_folder, path) = folder("disk.qcow2");
    make(&path, "lazy_refcounts=on");
    mark(&path, 79, 1);
    let said = open(&path, false).unwrap_err();
    assert!(
        matches!(said, ImageError::Dirty { .. }) && said.to_string().contains("qemu-img check -r all"),
        "{said}"
    );
    qemu_img("check -q -r all -f qcow2", &path);
    open(&path, true).unwrap();
    mark(&path, 79, 2);
    let said = open(&path, false).unwrap_err();
    assert!(matches!(said, ImageError::Corrupt { .. }), "{said}");
    mark(&path, 79, 0);
    mark(&path, 72, 0x80);
    let said = open(&path, false).unwrap_err().to_string();
    assert!(said.contains("the feature `bit 63`"), "{said}");
}

/// Changes a byte of the header.
fn mark(path: &Path, offset: u64, byte: u8) {
    use std::os::unix::fs::FileExt;
    std::fs::File::options().write(true).open(path).unwrap().write_all_at(&[byte], offset).unwrap();
}

#[test]
fn bitmaps_end_with_the_first_write_and_the_image_stays_sound() {
    let (_folder, path) = folder("disk.qcow2");
    make(&path, "cluster_size=64k");
    run("qemu-img", ["bitmap", "-f", "qcow2", "--add", path.to_str().unwrap(), "changes"]);
    assert!(open(&path, false).unwrap().header().unwrap().features.bitmaps);
    let before = converted(&path);
    open(&path, true).unwrap().write_at(b"x", 0).unwrap();
    assert!(!open(&path, false).unwrap().header().unwrap().features.bitmaps);
    qemu_img("check -q -r leaks -f qcow2", &path);
    assert_clean(&path);
    assert!(converted(&path)[1..] == before[1..]);
}

#[test]
fn chains_by_qemu_img_are_read_from_top_to_bottom() {
    let (_folder, base) = folder("base.raw");
    std::fs::write(&base, pattern(5, 3 << 20)).unwrap();
    let middle = base.with_file_name("middle.qcow2");
    let top = base.with_file_name("top.qcow2");
    for (backing, format, path) in [("base.raw", "raw", &middle), ("middle.qcow2", "qcow2", &top)] {
        run(
            "qemu-img",
            ["create", "-q", "-f", "qcow2", "-b", backing, "-F", format, path.to_str().unwrap(), "5M"],
        );
    }
    run(
        "qemu-io",
        ["-f", "qcow2", "-c", "write -P 0x55 1M 100k", "-c", "discard 2M 128k", middle.to_str().unwrap()],
    );
    run(
        "qemu-io",
        ["-f", "qcow2", "-c", "write -P 0x66 1050k 10k", "-c", "write -z 0 64k", top.to_str().unwrap()],
    );
    let image = open(&top, false).unwrap();
    assert_eq!(image.layers().len(), 3);
    assert!(read_all(&image) == converted(&top));
    drop(image);
    assert_read_and_written(&top, "chain");
    assert!(std::fs::read(&base).unwrap() == pattern(5, 3 << 20));
}
