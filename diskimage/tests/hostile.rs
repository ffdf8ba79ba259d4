//! Images made to deceive: nothing is opened that was not allowed, and the answer is a sentence.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::{create, folder, open};
use diskimage::{
    Access, CreateOptions, Format, Image, ImageError, ImageOptions, MOST_LAYERS, Opener, UnlockedOpener,
};

/// An opener that says what it opened.
#[derive(Default)]
struct Recorder(Vec<(PathBuf, Access)>);

impl Opener for Recorder {
    fn open(&mut self, path: &Path, access: Access) -> Result<File, ImageError> {
        self.0.push((path.into(), access));
        UnlockedOpener.open(path, access)
    }
}

fn overlay(path: &Path, backing: &str, format: Format) {
    create(path, &CreateOptions::new(Format::Qcow2, 1 << 20).backing(backing, format));
}

/// Opens with backing files that the user names; what was opened besides the top file.
fn opened(path: &Path, named: &[&Path]) -> (Result<Image, ImageError>, Vec<PathBuf>) {
    let mut recorder = Recorder::default();
    let options =
        ImageOptions::new(Format::Qcow2).backing(named.iter().map(|path| path.to_path_buf()).collect());
    let image = Image::open(path, &options, &mut recorder);
    (image, recorder.0.into_iter().skip(1).map(|(path, _)| path).collect())
}

#[test]
fn nothing_outside_of_the_folder_is_opened_unless_the_user_names_it() {
    let (root, top) = folder("vms/top.qcow2");
    std::fs::create_dir(root.path().join("vms")).unwrap();
    let base = root.path().join("base.raw");
    std::fs::write(&base, "secret").unwrap();
    for name in [
        "../base.raw",
        base.to_str().unwrap(),
        "/dev/zero",
        "nbd://host/disk",
        "json:{\"driver\":\"raw\"}",
        "file:x",
    ] {
        let _ = std::fs::remove_file(&top);
        overlay(&top, name, Format::Raw);
        let (image, opened_too) = opened(&top, &[]);
        let said = image.unwrap_err().to_string();
        assert!(opened_too.is_empty(), "{name}: {opened_too:?}");
        assert!(said.contains("backing"), "{said}");
        assert_eq!(opened(&top, &[&base]).0.is_ok(), name.ends_with("base.raw"), "{name}");
    }
}

#[test]
fn links_and_devices_are_no_backing_files_unless_the_user_names_them() {
    let (root, top) = folder("top.qcow2");
    let base = root.path().join("base.raw");
    std::fs::write(&base, "").unwrap();
    let link = root.path().join("link.raw");
    std::os::unix::fs::symlink(&base, &link).unwrap();
    overlay(&top, "link.raw", Format::Raw);
    opened(&top, &[]).0.expect_err("a link leads anywhere");
    opened(&top, &[&link]).0.unwrap();
    let pipe = root.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::fs::remove_file(&top).unwrap();
    overlay(&top, "pipe", Format::Raw);
    let said = opened(&top, &[]).0.unwrap_err().to_string();
    assert!(said.contains("neither a file nor a block device"), "{said}");
    open(root.path(), false).expect_err("a folder");
}

#[test]
fn circles_and_towers_end() {
    let (root, a) = folder("a.qcow2");
    let b = root.path().join("b.qcow2");
    overlay(&a, "b.qcow2", Format::Qcow2);
    overlay(&b, "a.qcow2", Format::Qcow2);
    let (image, opened_too) = opened(&a, &[]);
    let said = image.unwrap_err();
    assert!(matches!(said, ImageError::Circle { .. }), "{said}");
    assert_eq!(opened_too.as_slice(), &[b], "and its lock is not asked for twice");
    let (_root, own) = folder("own.qcow2");
    overlay(&own, "own.qcow2", Format::Qcow2);
    assert!(matches!(open(&own, true), Err(ImageError::Circle { .. })));

    for (layers, is_allowed) in [(MOST_LAYERS, true), (MOST_LAYERS + 1, false)] {
        let root = tempfile::tempdir().unwrap();
        let path = |number: usize| root.path().join(format!("{number}.qcow2"));
        create(&path(1), &CreateOptions::new(Format::Qcow2, 1 << 20));
        for number in 2..=layers {
            overlay(&path(number), &format!("{}.qcow2", number - 1), Format::Qcow2);
        }
        let image = open(&path(layers), true);
        match image {
            Ok(image) => {
                image.write_at(b"x", 70_000).unwrap();
                assert_eq!(image.read_at(&mut [0; 9], 0).unwrap(), 9);
            }
            Err(ref said) => assert!(matches!(said, ImageError::TooDeep { .. }), "{said}"),
        }
        assert_eq!(open(&path(layers), false).is_ok(), is_allowed);
    }
}

#[test]
fn the_format_of_a_backing_file_is_never_guessed_from_its_content() {
    let (root, top) = folder("top.qcow2");
    let disguised = root.path().join("disk.img");
    overlay(&disguised, "/etc/passwd", Format::Raw);
    overlay(&top, "disk.img", Format::Raw);
    let (image, opened_too) = opened(&top, &[]);
    let image = image.unwrap();
    assert_eq!(opened_too.as_slice(), std::slice::from_ref(&disguised));
    let mut start = [0; 4];
    image.read_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"QFI\xfb", "its bytes are the disk");
}

#[test]
fn headers_that_lie_about_tables_are_refused_at_once() {
    let cases: [(&str, u64, &[u8]); 14] = [
        ("a huge disk", 24, &[0x7f; 8]),
        ("a disk larger than its L1 table", 24, &(1_u64 << 45).to_be_bytes()),
        ("a huge L1 table", 36, &u32::MAX.to_be_bytes()),
        ("an L1 table of 4M entries", 36, &(4_u32 << 20).to_be_bytes()),
        ("an L1 table behind the end", 40, &(1_u64 << 40).to_be_bytes()),
        ("an L1 table at the end of all", 40, &0xffff_ffff_ffff_0000_u64.to_be_bytes()),
        ("an L1 table askew", 40, &0x30_001_u64.to_be_bytes()),
        ("a refcount table askew", 48, &0x30_200_u64.to_be_bytes()),
        ("a huge refcount table", 56, &u32::MAX.to_be_bytes()),
        ("no refcount table", 56, &[0; 4]),
        ("tiny clusters", 20, &8_u32.to_be_bytes()),
        ("huge clusters", 20, &63_u32.to_be_bytes()),
        ("wide refcounts", 96, &7_u32.to_be_bytes()),
        ("a long header", 100, &u32::MAX.to_be_bytes()),
    ];
    for (what, offset, bytes) in cases {
        let (_root, path) = folder("disk.qcow2");
        create(&path, &CreateOptions::new(Format::Qcow2, 1 << 30));
        File::options().write(true).open(&path).unwrap().write_all_at(bytes, offset).unwrap();
        for write in [false, true] {
            let said = open(&path, write).expect_err(what);
            assert!(matches!(said, ImageError::Damaged { .. }), "{what}: {said}");
        }
    }
}

#[test]
fn tables_that_would_be_overwritten_are_not_written_to() {
    // The L1 table of an image by this crate; an entry that leads to the header, to the refcount block, and behind the end.
    for entry in
        [0x8000_0000_0000_0000_u64, 0x8000_0000_0002_0000, 0x8000_0001_0000_0000, 0x8000_0000_0004_0000]
    {
        let (_root, path) = folder("disk.qcow2");
        create(&path, &CreateOptions::new(Format::Qcow2, 1 << 30));
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut l1 = [0; 8];
        file.read_exact_at(&mut l1, 40).unwrap();
        file.write_all_at(&entry.to_be_bytes(), u64::from_be_bytes(l1)).unwrap();
        let opened = open(&path, true);
        assert_eq!(opened.is_ok(), entry << 1 == 0, "{entry:#x}");
        assert!(open(&path, false).is_ok(), "reading harms nobody");
    }
}

#[test]
fn what_is_no_qcow2_image_is_said() {
    let (_root, path) = folder("disk.qcow2");
    for content in [&b""[..], b"QFI", b"QFI\xfa\0\0\0\x03", b"QFI\xfb", b"QFI\xfb\0\0\0\x03\0\0"] {
        std::fs::write(&path, content).unwrap();
        open(&path, false).unwrap_err();
    }
    std::fs::write(&path, b"QFI\xfb\0\0\0\x07\0\0").unwrap();
    assert!(matches!(open(&path, false), Err(ImageError::Version { version: 7, .. })));
    std::fs::write(&path, [7; 9000]).unwrap();
    assert!(matches!(open(&path, false), Err(ImageError::NotQcow2 { .. })));
}
