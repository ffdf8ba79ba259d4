//! Copies are the same disk, take no more space than those of `qemu-img convert`, and are whole or an error.

use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use diskimage::{ConvertOptions, Format, ImageError, NoProgress, convert};

use crate::support::{Folder, assert_same, assert_sound, create, image, qemu_img, qemu_io, text, used};

fn convert_to(from: &Path, from_format: Format, to: &Path, options: &ConvertOptions) {
    let source = image(from, from_format, false);
    let converted = convert(&source, &create(to), to, options, &mut NoProgress).unwrap();
    assert_eq!(converted.size, source.size());
}

/// Three layers of different sizes, with data, zeroes and compressed clusters in them.
fn chain(folder: &Folder) -> PathBuf {
    let [raw, base, middle, top] =
        ["raw.raw", "base.qcow2", "middle.qcow2", "top.qcow2"].map(|name| folder.path(name));
    qemu_img(&["create", "-q", "-f", "raw", text(&raw), "5M"]);
    qemu_io(&raw, "raw", &["write -P 1 0 700k".into(), "write -P 2 3M 2M".into()]);
    qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&base)]);
    for (path, backing, size) in [(&middle, "base.qcow2", "9M"), (&top, "middle.qcow2", "7M")] {
        qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, text(path), size]);
    }
    qemu_io(
        &middle,
        "qcow2",
        &["write -P 3 100k 5k".into(), "write -z 3M 1M".into(), "write -P 4 8M 1M".into()],
    );
    qemu_io(
        &top,
        "qcow2",
        &["write -P 5 4M 3k".into(), "write -z 6M 64k".into(), "write -P 0 1M 192k".into()],
    );
    top
}

#[test]
fn chain_becomes_one_image_of_either_format() {
    let folder = Folder::new();
    let top = chain(&folder);
    for (format, cluster_size) in [
        (Format::Raw, None),
        (Format::Qcow2, None),
        (Format::Qcow2, Some(512)),
        (Format::Qcow2, Some(2 << 20)),
    ] {
        let why = format!("{format}, {cluster_size:?}");
        let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path(name));
        let mut options = ConvertOptions::new(format);
        options.cluster_size = cluster_size;
        convert_to(&top, Format::Qcow2, &ours, &options);
        assert_same(&top, "qcow2", &ours, format.name(), &why);
        let mut words = vec!["convert", "-f", "qcow2", "-O", format.name()];
        let option = format!("cluster_size={}", cluster_size.unwrap_or(65536));
        if format == Format::Qcow2 {
            assert_sound(&ours, &why);
            words.extend(["-o", option.as_str()]);
        }
        words.extend([text(&top), text(&theirs)]);
        qemu_img(&words);
        let (we, they) = (used(&ours), used(&theirs));
        assert!(we <= they + (64 << 10), "{why}: our copy takes {we} bytes, theirs {they}");
        for path in [ours, theirs] {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn copy_of_a_raw_image_is_sparse_and_the_same_to_its_last_byte() {
    let folder = Folder::new();
    let [from, to] = ["from", "to"].map(|name| folder.path(name));
    let file = create(&from);
    // Written zeroes, a hole, data that ends within a block, and a length that is no multiple of anything.
    file.set_len((64 << 20) + 777).unwrap();
    file.write_all_at(&vec![0; 8 << 20], 1 << 20).unwrap();
    file.write_all_at(&[7; 5000], (30 << 20) + 123).unwrap();
    file.write_all_at(b"end", (64 << 20) + 774).unwrap();
    convert_to(&from, Format::Raw, &to, &ConvertOptions::new(Format::Raw));
    assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
    // Where the file system makes a reflink, the copy has the space of its source.
    assert!(used(&to) <= 64 << 10 || used(&to) == used(&from), "{} bytes", used(&to));
    let qcow2 = folder.path("to.qcow2");
    convert_to(&from, Format::Raw, &qcow2, &ConvertOptions::new(Format::Qcow2));
    assert_same(&from, "raw", &qcow2, "qcow2", "a length of no multiple of 512");
    assert_sound(&qcow2, "a length of no multiple of 512");
    assert!(used(&qcow2) <= 600 << 10, "{} bytes", used(&qcow2));
}

#[test]
fn work_ends_when_its_caller_gives_up() {
    let folder = Folder::new();
    let top = chain(&folder);
    let to = folder.path("to");
    let (mut calls, mut last) = (0, 0);
    let mut give_up = |done: u64, total: u64| {
        assert!(done >= last && done <= total, "{done} of {total} after {last}");
        (calls, last) = (calls + 1, done);
        if calls == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let options = ConvertOptions::new(Format::Raw);
    let ended = convert(&image(&top, Format::Qcow2, false), &create(&to), &to, &options, &mut give_up);
    assert!(matches!(ended, Err(ImageError::Interrupted { .. })), "{ended:?}");
    assert_eq!(calls, 3);
}

/// What is read ahead on another thread fails the copy, also at its last piece.
#[test]
fn copy_of_what_cannot_be_read_is_an_error() {
    let folder = Folder::new();
    let [raw, packed, to] = ["raw", "packed.qcow2", "to"].map(|name| folder.path(name));
    let file = create(&raw);
    file.set_len(64 << 20).unwrap();
    let content: Vec<u8> = (0..64 << 10).map(|at: u32| (at / 7) as u8).collect();
    file.write_all_at(&content, (64 << 20) - (64 << 10)).unwrap();
    qemu_img(&["convert", "-c", "-O", "qcow2", text(&raw), text(&packed)]);
    let mut bytes = std::fs::read(&packed).unwrap();
    let length = bytes.len();
    // The compressed cluster is the last one in the file, behind the tables.
    bytes[length - length % (64 << 10)..].fill(0xff);
    std::fs::write(&packed, bytes).unwrap();
    let options = ConvertOptions::new(Format::Raw);
    let ended = convert(&image(&packed, Format::Qcow2, false), &create(&to), &to, &options, &mut NoProgress);
    assert!(matches!(&ended, Err(ImageError::Io { path, .. }) if *path == packed), "{ended:?}");
}
