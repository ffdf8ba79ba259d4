//! Images made here are what qemu-img expects, and hold what is written to them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use common::{assert_clean, converted, create, folder, open, pattern, qemu_img, read_all};
use diskimage::{CreateOptions, Format, Image, ImageError, Preallocate};

const MIB: u64 = 1 << 20;

#[test]
fn new_images_take_no_space_and_qemu_img_knows_them() {
    let (_folder, path) = folder("new.qcow2");
    create(&path, &CreateOptions::new(Format::Qcow2, 60 << 30));
    assert_clean(&path);
    let info = qemu_img("info", &path);
    for line in [
        "file format: qcow2",
        "virtual size: 60 GiB (64424509440 bytes)",
        "cluster_size: 65536",
        "compat: 1.1",
        "corrupt: false",
    ] {
        assert!(info.contains(line), "{line} in {info}");
    }
    let image = open(&path, false).unwrap();
    assert_eq!(image.size(), 60 << 30);
    assert!(image.used().unwrap() <= MIB, "{} bytes are used", image.used().unwrap());
}

#[test]
fn every_cluster_size_and_what_is_preallocated() {
    let modes = [Preallocate::Off, Preallocate::Metadata, Preallocate::Full];
    for (bits, preallocate) in [9, 12, 16, 21].into_iter().flat_map(|bits| modes.map(|mode| (bits, mode))) {
        let (_folder, path) = folder("new.qcow2");
        create(
            &path,
            &CreateOptions::new(Format::Qcow2, 3 * MIB + 512)
                .cluster_size(1 << bits)
                .preallocate(preallocate),
        );
        assert_clean(&path);
        let image = open(&path, true).unwrap();
        assert!(read_all(&image).iter().all(|byte| *byte == 0));
        if bits <= 16 {
            assert_eq!(
                image.used().unwrap() >= 3 * MIB,
                preallocate == Preallocate::Full,
                "{bits} {preallocate:?}"
            );
        }
        image.write_at(&pattern(bits, 70_000), MIB - 77).unwrap();
        image.flush().unwrap();
        assert_clean(&path);
        assert!(converted(&path) == read_all(&image), "clusters of 2^{bits}");
    }
}

#[test]
fn raw_images_are_files_of_the_size() {
    let (_folder, path) = folder("new.raw");
    create(&path, &CreateOptions::new(Format::Raw, 5 * MIB));
    let image = open(&path, true).unwrap();
    image.write_at(b"abc", 5 * MIB - 3).unwrap();
    image.write_at(b"abc", 5 * MIB - 2).expect_err("behind the end");
    let mut end = [0; 8];
    assert_eq!(image.read_at(&mut end, 5 * MIB - 4).unwrap(), 4, "reads end with the disk");
    assert_eq!(&end[..4], b"\0abc");
    assert_eq!(image.read_at(&mut end, 9 * MIB).unwrap(), 0);
}

#[test]
fn an_overlay_holds_what_was_written_and_its_base_the_rest() {
    let (_folder, base) = folder("base.raw");
    std::fs::write(&base, pattern(1, 2 << 20)).unwrap();
    let path = base.with_file_name("top.qcow2");
    create(&path, &CreateOptions::new(Format::Qcow2, 3 * MIB).backing("base.raw", Format::Raw));
    let info = qemu_img("info", &path);
    assert!(info.contains("backing file: base.raw") && info.contains("backing file format: raw"), "{info}");
    let mut expected = pattern(1, 2 << 20);
    expected.resize(3 << 20, 0);
    let image = open(&path, true).unwrap();
    for (offset, length) in [(0, 10), (65_530, 20), (1_000_000, 300_000), (2 << 20, 5)] {
        let data = pattern(offset, length);
        image.write_at(&data, offset).unwrap();
        expected[offset as usize..][..length].copy_from_slice(&data);
    }
    image.flush().unwrap();
    assert!(read_all(&image) == expected);
    assert_clean(&path);
    assert!(converted(&path) == expected);
    assert!(std::fs::read(&base).unwrap() == pattern(1, 2 << 20), "the base is as it was");
}

#[test]
fn an_open_overlay_lies_on_an_open_image_whatever_its_header_says() {
    let (_folder, base) = folder("base.raw");
    std::fs::write(&base, pattern(1, 1 << 20)).unwrap();
    let path = base.with_file_name("top.qcow2");
    create(&path, &CreateOptions::new(Format::Qcow2, 2 * MIB).backing("/nowhere/else.raw", Format::Raw));
    let file = || std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let image = Image::on(file(), &path, true, open(&base, false).unwrap()).unwrap();
    image.write_at(b"new", 7).unwrap();
    let mut expected = pattern(1, 1 << 20);
    expected[7..10].copy_from_slice(b"new");
    assert!(read_all(&image)[..1 << 20] == expected);
    assert_eq!(image.files()[0].height(), 1);
    let itself = Image::on(file(), &path, true, image);
    assert!(matches!(itself, Err(ImageError::Circle { .. })));
}

#[test]
fn what_cannot_be_made_is_said() {
    let (_folder, path) = folder("new.qcow2");
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let refused = |options| diskimage::create(&file, &path, &options).unwrap_err().to_string();
    let qcow2 = |size| CreateOptions::new(Format::Qcow2, size);
    assert!(refused(qcow2(1).cluster_size(1000)).contains("power of two"));
    assert!(refused(qcow2(1).cluster_size(4 << 20)).contains("2097152"));
    assert!(refused(qcow2(1 << 40).cluster_size(512)).contains("137438953472"));
    assert!(refused(qcow2(1).backing(&"x".repeat(1024), Format::Raw)).contains("1024 bytes"));
    assert!(refused(CreateOptions::new(Format::Raw, 1).backing("a", Format::Raw)).contains("raw"));
    std::fs::write(&path, "x").unwrap();
    assert!(
        matches!(diskimage::create(&file, &path, &qcow2(1)), Err(ImageError::Unsupported { .. })),
        "a file with something in it"
    );
}
