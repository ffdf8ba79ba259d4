//! Overlays and temporary files, as a user gives them.

use std::time::{Duration, Instant};

use super::super::Access;
use super::super::file::DiskFile;
use super::*;

const MIB: usize = 1 << 20;

struct Bench(tempfile::TempDir);

impl Bench {
    /// A folder with a raw disk of a MiB, all ones.
    fn new() -> Self {
        let bench = Bench(tempfile::tempdir().unwrap());
        fs::create_dir(bench.path("tmp")).unwrap();
        fs::write(bench.path("base.raw"), vec![1; MIB]).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Opens a disk whose paths are in this folder.
    fn open(&self, text: &str) -> Result<Image, DiskError> {
        let mut spec: DiskSpec = text.parse().unwrap();
        spec.path = self.path(spec.path.to_str().unwrap());
        spec.overlay = spec.overlay.map(|path| self.0.path().join(path));
        spec.backing = spec.backing.iter().map(|path| self.0.path().join(path)).collect();
        open_with(&spec, &mut ImageOpener::default(), &self.path("tmp"))
    }

    #[track_caller]
    fn refusal(&self, text: &str) -> String {
        let error = self.open(text).map(|_| ()).expect_err(text).to_string();
        error.replace(self.0.path().to_str().unwrap(), "/d")
    }

    /// Opens a disk, reads a byte in each of two places, and writes to the first.
    #[track_caller]
    fn write(&self, text: &str, byte: u8) -> [u8; 2] {
        let image = self.open(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let before = bytes(&image);
        image.write_at(&[byte; 512], 4096).unwrap();
        image.flush().unwrap();
        assert_eq!(bytes(&image)[0], byte);
        before
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let names = fs::read_dir(self.path(folder)).unwrap();
        let mut names: Vec<_> = names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn bytes(image: &Image) -> [u8; 2] {
    [4096, 700_000].map(|at| {
        let mut byte = [9];
        assert_eq!(image.read_at(&mut byte, at).unwrap(), 1);
        byte[0]
    })
}

#[test]
fn overlay_is_made_once_and_keeps_what_was_written() {
    let bench = Bench::new();
    assert_eq!(bench.write("base.raw,overlay=a.qcow2", 7), [1, 1]);
    assert_eq!(bench.write("base.raw,overlay=b.qcow2", 8), [1, 1]);
    assert_eq!(bench.write("base.raw,overlay=a.qcow2", 9), [7, 1]);
    // It says what it lies on, by the name alone: the folder can be moved.
    assert_eq!(bench.write("a.qcow2", 10), [9, 1]);
    let header = Header::read(&File::open(bench.path("a.qcow2")).unwrap(), Path::new("a")).unwrap();
    let backing = header.backing.unwrap();
    assert_eq!((backing.name.to_str(), backing.format.as_deref()), (Some("base.raw"), Some("raw")));
    assert!(fs::read(bench.path("base.raw")).unwrap().iter().all(|byte| *byte == 1));
    assert_eq!(bench.names("."), ["a.qcow2", "b.qcow2", "base.raw", "tmp"]);
}

#[test]
fn overlay_of_an_overlay_shows_all_three() {
    let bench = Bench::new();
    bench.write("base.raw,overlay=a.qcow2", 7);
    assert_eq!(bench.write("a.qcow2,overlay=b.qcow2", 8), [7, 1]);
    assert_eq!(bytes(&bench.open("b.qcow2,ro").unwrap()), [8, 1]);
}

#[test]
fn base_in_another_folder_is_named_in_full_and_opened_only_if_the_user_says_so() {
    let bench = Bench::new();
    fs::create_dir(bench.path("images")).unwrap();
    fs::rename(bench.path("base.raw"), bench.path("images/base.raw")).unwrap();
    bench.write("images/base.raw,overlay=a.qcow2", 7);
    assert_eq!(bench.write("images/base.raw,overlay=a.qcow2", 8), [7, 1]);
    let said = bench.refusal("a.qcow2");
    assert!(said.contains("backing=") && said.contains("images/base.raw"), "{said}");
    assert_eq!(bench.write("a.qcow2,backing=images/base.raw", 9), [8, 1]);
}

/// Opens a disk that nobody uses any more. A process that another test begins at this moment has the files of this one, with their
/// locks, until it is a program of its own.
fn opened(path: &Path) -> DiskFile {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match DiskFile::open(path, Access::default()) {
            Err(DiskError::Busy { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            opened => return opened.unwrap(),
        }
    }
}

#[test]
fn thirty_machines_read_one_base_and_none_writes_to_it() {
    let bench = Bench::new();
    let open = |n: usize| bench.open(&format!("base.raw,overlay={n}.qcow2")).unwrap();
    let all: Vec<_> = (0..30).map(open).collect();
    assert!(bench.refusal("base.raw,snapshot,format=qcow2").contains("no qcow2 image"));
    for text in ["base.raw,snapshot", "base.raw,overlay=31.qcow2"] {
        bench.write(text, 3);
    }
    let said = bench.refusal("0.qcow2");
    assert!(said.contains("/d/0.qcow2 is in use"), "{said}");
    let error = DiskFile::open(&bench.path("base.raw"), Access::default()).unwrap_err().to_string();
    assert!(error.contains("is in use") && error.contains("overlay=FILE"), "{error}");
    drop(all);
    let writer = opened(&bench.path("base.raw"));
    let said = bench.refusal("base.raw,overlay=0.qcow2");
    assert!(said.contains("/d/base.raw is in use"), "{said}");
    drop(writer);
}

#[test]
fn what_is_written_to_a_snapshot_is_nowhere() {
    let bench = Bench::new();
    assert_eq!(bench.write("base.raw,snapshot", 7), [1, 1]);
    assert_eq!(bench.write("base.raw,snapshot", 8), [1, 1]);
    assert_eq!(bench.write("base.raw,overlay=new.qcow2,snapshot", 9), [1, 1]);
    assert_eq!(bench.names("."), ["base.raw", "tmp"], "no overlay is made for it");
    bench.write("base.raw,overlay=a.qcow2", 5);
    let before = fs::read(bench.path("a.qcow2")).unwrap();
    assert_eq!(bench.write("base.raw,overlay=a.qcow2,snapshot", 6), [5, 1]);
    assert_eq!(bench.write("a.qcow2,snapshot", 6), [5, 1]);
    assert!(fs::read(bench.path("a.qcow2")).unwrap() == before);
    let open = bench.open("base.raw,snapshot").unwrap();
    assert!(bench.names("tmp").is_empty(), "it has no name while it is used");
    drop(open);
    fs::remove_dir(bench.path("tmp")).unwrap();
    let said = bench.refusal("base.raw,snapshot");
    assert!(said.contains("/d/tmp") && said.contains("TMPDIR"), "{said}");
}

#[test]
fn overlay_that_is_there_must_be_one_of_this_base() {
    let bench = Bench::new();
    fs::write(bench.path("other.raw"), vec![1; MIB]).unwrap();
    fs::write(bench.path("text"), "no image\n").unwrap();
    bench.write("base.raw,overlay=a.qcow2", 7);
    let alone = File::create_new(bench.path("alone.qcow2")).unwrap();
    diskimage::create(&alone, Path::new("x"), &CreateOptions::new(Format::Qcow2, MIB as u64)).unwrap();
    let before = fs::read(bench.path("a.qcow2")).unwrap();
    for (text, said) in [
        ("other.raw,overlay=a.qcow2", "the overlay /d/a.qcow2 lies on base.raw, and not on /d/other.raw"),
        ("base.raw,overlay=text", "/d/text is there and is no qcow2 image"),
        ("base.raw,overlay=alone.qcow2", "/d/alone.qcow2 is a qcow2 image that lies on no other"),
        ("alone.qcow2,format=raw,overlay=a.qcow2", "the overlay /d/a.qcow2 lies on base.raw"),
        ("base.raw,overlay=nowhere/a.qcow2", "the overlay /d/nowhere/a.qcow2 cannot be made"),
        ("base.raw,overlay=tmp", "/d/tmp is a directory"),
        ("none.raw,overlay=new.qcow2", "there is no disk /d/none.raw"),
    ] {
        let error = bench.refusal(text);
        assert!(error.contains(said), "{text}: {error}");
    }
    assert!(!bench.path("new.qcow2").exists());
    assert!(fs::read(bench.path("a.qcow2")).unwrap() == before);
    // The same base by another path is the same base.
    std::os::unix::fs::symlink("base.raw", bench.path("link.raw")).unwrap();
    assert_eq!(bench.write("link.raw,overlay=a.qcow2", 8), [7, 1]);
    fs::remove_file(bench.path("base.raw")).unwrap();
    let said = bench.refusal("other.raw,overlay=a.qcow2");
    assert!(said.contains("qemu-img rebase -u -b /d/other.raw"), "{said}");
    // An empty base beneath it would be another disk.
    let said = bench.refusal("base.raw,overlay=a.qcow2");
    assert!(
        said.contains("/d/base.raw, on which the overlay /d/a.qcow2 lies") && !said.contains("disk create"),
        "{said}"
    );
}

#[test]
fn format_of_the_base_is_the_one_in_the_overlay() {
    let bench = Bench::new();
    bench.write("base.raw,overlay=a.qcow2", 7);
    fs::rename(bench.path("a.qcow2"), bench.path("a.img")).unwrap();
    bench.write("a.img,format=qcow2,overlay=b.qcow2", 8);
    let said = bench.refusal("a.img,format=raw,overlay=b.qcow2");
    assert!(
        said.contains("says that /d/a.img is qcow2, and here it is raw; give it as `/d/a.img,format=qcow2`"),
        "{said}"
    );
}

#[test]
fn raw_disk_on_which_a_guest_wrote_a_header_stays_raw() {
    let bench = Bench::new();
    let mut disk = vec![1; MIB];
    disk[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    fs::write(bench.path("base.raw"), &disk).unwrap();
    for text in ["base.raw,snapshot", "base.raw,overlay=a.qcow2"] {
        let said = bench.refusal(text);
        assert!(
            said.contains("/d/base.raw,format=qcow2") && said.contains("/d/base.raw,format=raw"),
            "{said}"
        );
    }
    for text in ["base.raw,snapshot,format=raw", "base.raw,overlay=a.qcow2,format=raw", "a.qcow2"] {
        let mut head = [0; 8];
        bench.open(text).unwrap().read_at(&mut head, 0).unwrap();
        assert_eq!(head, disk[..8], "{text}");
    }
    let alone = DiskFile::open_as(&bench.path("base.raw"), Access::default(), Some(Format::Raw)).unwrap();
    assert_eq!(alone.length(), MIB as u64);
    let said = DiskFile::open(&bench.path("base.raw"), Access { read_only: true, direct: false });
    assert!(matches!(said, Err(DiskError::Busy { .. })));
}

#[test]
fn base_that_ends_inside_of_a_sector_is_filled_with_zeros() {
    let bench = Bench::new();
    fs::write(bench.path("odd.raw"), [1; 1101]).unwrap();
    let image = bench.open("odd.raw,overlay=a.qcow2").unwrap();
    assert_eq!(image.size(), 1536);
    let mut end = [9; 512];
    assert_eq!(image.read_at(&mut end, 1024).unwrap(), 512);
    assert!(end[..77].iter().all(|byte| *byte == 1) && end[77..].iter().all(|byte| *byte == 0));
}
