//! Images made by `qemu-img create` with each of its options are read and written, or refused by the name of the option with a
//! command that mends it: those of the host's version, and of version 10. An option that is not known here is a failure.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use std::fs::{self, File};
use std::path::Path;

use common::tools::Tools;
use common::{create, folder, open, pattern, read_all};
use diskimage::{CreateOptions, Format, Layer};

const SIZE: usize = 5 << 20;

/// What an image is that was made with an option.
enum Is {
    Read,
    /// Refused, with these words.
    Refused(&'static [&'static str]),
}
use Is::{Read, Refused};

const ENCRYPTED: Is = Refused(&["LUKS", "--object secret", "qemu-img convert", "-O qcow2"]);
const AES: Is = Refused(&["AES", "--object secret", "qemu-img convert"]);
const EXTENDED: Is = Refused(&["extended L2", "qemu-img convert -O qcow2"]);
const OUTSIDE: Is = Refused(&["external data file", "disk.data", "qemu-img convert"]);

/// All options of it in one image: QEMU takes seconds to find a number of iterations.
const LUKS: &str = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=1,encrypt.cipher-alg=aes-128,\
                    encrypt.cipher-mode=cbc,encrypt.hash-alg=sha1,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256";
/// An option that is in [`LUKS`].
const WITH_ENCRYPTION: &[(&str, Is)] = &[];

/// The name of each option, with values of it.
const OPTIONS: &[(&str, &[(&str, Is)])] = &[
    ("backing_file", &[("backing_file=base.raw,backing_fmt=raw", Read)]),
    ("backing_fmt", &[("backing_file=base.qcow2,backing_fmt=qcow2", Read)]),
    (
        "cluster_size",
        &[
            ("cluster_size=512", Read),
            ("cluster_size=4k", Read),
            ("cluster_size=64k", Read),
            ("cluster_size=2M", Read),
        ],
    ),
    ("compat", &[("compat=0.10", Read), ("compat=1.1", Read), ("compat=v2,cluster_size=512", Read)]),
    (
        "compression_type",
        &[
            ("compression_type=zlib", Read),
            ("compression_type=zstd", Refused(&["zstd", "qemu-img convert -O qcow2"])),
        ],
    ),
    ("data_file", &[("data_file=disk.data", OUTSIDE)]),
    ("data_file_raw", &[("data_file=disk.data,data_file_raw=on", OUTSIDE), ("data_file_raw=off", Read)]),
    ("encrypt.cipher-alg", WITH_ENCRYPTION),
    ("encrypt.cipher-mode", WITH_ENCRYPTION),
    ("encrypt.format", &[(LUKS, ENCRYPTED), ("encrypt.format=aes,encrypt.key-secret=key", AES)]),
    ("encrypt.hash-alg", WITH_ENCRYPTION),
    ("encrypt.iter-time", WITH_ENCRYPTION),
    ("encrypt.ivgen-alg", WITH_ENCRYPTION),
    ("encrypt.ivgen-hash-alg", WITH_ENCRYPTION),
    ("encrypt.key-secret", WITH_ENCRYPTION),
    ("encryption", &[("encryption=on,encrypt.key-secret=key", AES), ("encryption=off", Read)]),
    (
        "extended_l2",
        &[
            ("extended_l2=on", EXTENDED),
            ("extended_l2=on,cluster_size=128k,preallocation=metadata", EXTENDED),
            ("extended_l2=off", Read),
        ],
    ),
    ("lazy_refcounts", &[("lazy_refcounts=on", Read), ("lazy_refcounts=off", Read)]),
    (
        "preallocation",
        &[
            ("preallocation=off", Read),
            ("preallocation=metadata", Read),
            ("preallocation=falloc,cluster_size=16k", Read),
            ("preallocation=full", Read),
        ],
    ),
    (
        "refcount_bits",
        &[
            ("refcount_bits=1,cluster_size=4k", Read),
            ("refcount_bits=2", Read),
            ("refcount_bits=4", Read),
            ("refcount_bits=8", Read),
            ("refcount_bits=16", Read),
            ("refcount_bits=32,cluster_size=2M", Read),
            ("refcount_bits=64,cluster_size=512", Read),
        ],
    ),
    ("size", &[("size=5M", Read)]),
];

/// Makes `disk.qcow2` with options, with data here and there.
fn make(tools: &Tools, at: &Path, options: &str) {
    let path = at.join("disk.qcow2");
    let path = path.to_str().unwrap();
    let outside = at.join("disk.data");
    let options = options.replace("disk.data", outside.to_str().unwrap());
    let secret = "secret,id=key,data=abc";
    let mut words = vec!["create", "-q", "-f", "qcow2", "--object", secret, "-o", &options];
    words.push(path);
    if options != "size=5M" {
        words.push("5M");
    }
    tools.img(&words);
}

fn fill(tools: &Tools, path: &Path) {
    tools.io(
        path,
        &[
            "write -P 0x11 0 70000",
            "write -P 0x22 1M 200k",
            "write -P 0x33 4190208 4096",
            "write -z 1100k 64k",
            "discard 1200k 20k",
        ],
    );
}

fn assert_read_and_written(tools: &Tools, path: &Path, options: &str) {
    let mut expected = tools.read(path);
    assert_eq!(expected.len(), SIZE, "{options}");
    let image = open(path, false).unwrap_or_else(|error| panic!("{options}: {error}"));
    assert!(read_all(&image) == expected, "{options}");
    drop(image);
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
    tools.assert_clean(path);
    drop(image);
    tools.assert_clean(path);
    assert!(tools.read(path) == expected, "{options}: as qemu-img reads what was written");
}

fn assert_refused(path: &Path, options: &str, words: &[&str]) {
    for write in [false, true] {
        let said = open(path, write).unwrap_err().to_string();
        let has = words.iter().all(|word| said.contains(word));
        assert!(has && said.contains(path.to_str().unwrap()), "{options}: {said}");
    }
    let layer = Layer::read(&File::open(path).unwrap(), path, Format::Qcow2).unwrap();
    assert_eq!(layer.size, SIZE as u64, "its facts are known all the same: {options}");
}

fn assert_each_option(tools: &Tools) {
    let known = tools.options();
    assert!(known.len() > 15, "{known:?}");
    for name in &known {
        let Some((_, images)) = OPTIONS.iter().find(|(option, _)| option == name) else {
            panic!("`qemu-img create -f qcow2 -o {name}=...` is new: give it values in this test");
        };
        assert!(!images.is_empty() || LUKS.contains(&format!("{name}=")), "{name} is not tried");
        for (options, is) in *images {
            let (at, path) = folder("disk.qcow2");
            fs::write(at.path().join("base.raw"), pattern(5, 3 << 20)).unwrap();
            create(&at.path().join("base.qcow2"), &CreateOptions::new(Format::Qcow2, SIZE as u64));
            make(tools, at.path(), options);
            match is {
                Refused(words) => assert_refused(&path, options, words),
                Read => {
                    fill(tools, &path);
                    assert_read_and_written(tools, &path, options);
                }
            }
        }
    }
}

#[test]
fn each_option_of_the_hosts_qemu_img_is_read_and_written_or_refused_by_name() {
    assert_each_option(&Tools::of_host());
}

#[test]
fn each_option_of_qemu_img_10_is_read_and_written_or_refused_by_name() {
    assert_each_option(&Tools::new());
}

#[test]
fn compressed_clusters_are_read_and_written_over() {
    for tools in [Tools::of_host(), Tools::new()] {
        for options in ["cluster_size=64k", "compat=0.10,cluster_size=512"] {
            let (_folder, source) = folder("source.qcow2");
            tools.img(&["create", "-q", "-f", "qcow2", source.to_str().unwrap(), "5M"]);
            fill(&tools, &source);
            let path = source.with_file_name("packed.qcow2");
            let names = [&source, &path].map(|path| path.to_str().unwrap());
            tools.img(
                &[&["convert", "-c", "-q", "-f", "qcow2", "-O", "qcow2", "-o", options][..], &names].concat(),
            );
            assert!(tools.read(&source) == tools.read(&path));
            assert_read_and_written(&tools, &path, options);
        }
    }
}

/// Into an image of ours that is there, whose content is taken for zeros.
#[test]
fn copies_by_qemu_img_into_our_images_are_read_and_written() {
    for tools in [Tools::of_host(), Tools::new()] {
        for cluster in [512, 65536, 2 << 20] {
            let (_folder, source) = folder("source.raw");
            let mut content = pattern(9, SIZE);
            content[100_000..900_000].fill(0);
            fs::write(&source, &content).unwrap();
            let path = source.with_file_name("disk.qcow2");
            create(&path, &CreateOptions::new(Format::Qcow2, SIZE as u64).cluster_size(cluster));
            tools.assert_clean(&path);
            let names = [&source, &path].map(|path| path.to_str().unwrap());
            let words = ["convert", "-n", "--target-is-zero", "-W", "-f", "raw", "-O", "qcow2"];
            tools.img(&[&words[..], &names].concat());
            assert!(read_all(&open(&path, false).unwrap()) == content);
            assert_read_and_written(&tools, &path, "--target-is-zero");
        }
    }
}
