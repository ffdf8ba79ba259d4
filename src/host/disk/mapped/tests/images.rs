//! Images to test with.

use std::fs;
use std::path::Path;

use super::{MIB, SIZE, make, pattern, qemu_img};

/// Makes an image, and says what it holds.
pub(super) type Prepare = Box<dyn Fn(&Path) -> Vec<u8>>;

/// Images of every kind.
pub(super) fn kinds() -> Vec<(&'static str, Prepare)> {
    let plain = |options: &'static [&'static str]| -> Prepare {
        Box::new(move |path| {
            make(path, SIZE, options);
            vec![0; SIZE as usize]
        })
    };
    let raw = |path: &Path, seed, len| {
        let bytes = pattern(seed, len);
        fs::write(path, &bytes).unwrap();
        bytes
    };
    vec![
        ("plain", plain(&[])),
        ("clusters of 512 bytes", plain(&["-o", "cluster_size=512"])),
        ("clusters of 2 MiB", plain(&["-o", "cluster_size=2M"])),
        ("version 2", plain(&["-o", "compat=0.10"])),
        ("refcounts of 1 bit", plain(&["-o", "refcount_bits=1,cluster_size=4k"])),
        ("refcounts of 64 bits", plain(&["-o", "refcount_bits=64"])),
        ("preallocated", plain(&["-o", "preallocation=metadata"])),
        (
            "on a shorter raw file",
            Box::new(move |path| {
                let below = path.with_file_name("base.raw");
                let mut bytes = raw(&below, 1, SIZE - MIB - 100);
                make(path, SIZE, &["-b", "base.raw", "-F", "raw"]);
                bytes.resize(SIZE as usize, 0);
                bytes
            }),
        ),
        (
            "version 2 on raw",
            Box::new(move |path| {
                let below = path.with_file_name("base.raw");
                let bytes = raw(&below, 2, SIZE);
                make(path, SIZE, &["-o", "compat=0.10", "-b", "base.raw", "-F", "raw"]);
                bytes
            }),
        ),
        (
            "compressed",
            Box::new(move |path| {
                let plain = path.with_file_name("plain.raw");
                let bytes = raw(&plain, 3, SIZE);
                let (from, to) = (plain.to_str().unwrap(), path.to_str().unwrap());
                assert_eq!(qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", from, to]), 0);
                bytes
            }),
        ),
        (
            "on a compressed image on another",
            Box::new(move |path| {
                let plain = path.with_file_name("plain.raw");
                let bytes = raw(&plain, 4, SIZE);
                let (low, middle) = (path.with_file_name("low.qcow2"), path.with_file_name("middle.qcow2"));
                let (from, to) = (plain.to_str().unwrap(), low.to_str().unwrap());
                assert_eq!(
                    qemu_img(&[
                        "convert",
                        "-c",
                        "-f",
                        "raw",
                        "-O",
                        "qcow2",
                        "-o",
                        "cluster_size=4k",
                        from,
                        to
                    ]),
                    0
                );
                make(&middle, SIZE, &["-b", "low.qcow2", "-F", "qcow2"]);
                make(path, SIZE, &["-b", "middle.qcow2", "-F", "qcow2"]);
                bytes
            }),
        ),
    ]
}

/// The image of this kind.
pub(super) fn kind(name: &str) -> Prepare {
    let found = kinds().into_iter().find(|(kind, _)| *kind == name);
    found.unwrap_or_else(|| panic!("no images are {name}")).1
}

pub(super) fn plain(path: &Path) -> Vec<u8> {
    make(path, SIZE, &[]);
    vec![0; SIZE as usize]
}
