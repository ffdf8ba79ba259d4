//! What a machine boots from, over whole images.
#![allow(clippy::cast_possible_truncation, reason = "the sizes are the tests' own, and small")]

use std::fs;

use super::*;
use crate::cli::kernels::bzimage;
use crate::image::testing::{LINUX, LVM, ext4, gpt};
use crate::spec::{self, DiskSpec};

const RELEASE: &str = "6.1.0-25-amd64";

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(disk: &[u8]) -> Self {
        let bench = Bench { folder: tempfile::tempdir().unwrap() };
        fs::write(bench.path("vm0.raw"), disk).unwrap();
        fs::write(bench.path("vmlinuz"), kernel()).unwrap();
        fs::write(bench.path("own.img"), "own initrd").unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn disk(&self) -> Spec {
        Spec::default().with_disk(DiskSpec::new(self.path("vm0.raw")))
    }

    fn both(&self) -> Spec {
        Spec { kernel: Some(self.path("vmlinuz")), ..self.disk() }
    }
}

fn kernel() -> Vec<u8> {
    bzimage(&format!("{RELEASE} (debian-kernel@lists.debian.org) #1 SMP"))
}

/// A Debian as far as it matters, with room between its files' blocks.
fn debian(initrd: &str) -> Vec<u8> {
    let (kernel, name) = (kernel(), format!("boot/initrd.img-{initrd}"));
    let files: [(&str, &[u8]); 4] = [
        ("etc/x", b""),
        ("sbin/init", b"x"),
        ("boot/vmlinuz-6.1.0-25-amd64", &kernel),
        (&name, b"disk initrd"),
    ];
    ext4(8192, &files, &["-b", "1024"])
}

/// All the bytes of a file, as the machine sees them.
fn content(file: &BootFile) -> Vec<u8> {
    let mut bytes = vec![0; file.length().unwrap() as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

#[test]
fn disk_alone_is_enough() {
    let bench = Bench::new(&gpt(512, &[(1, LINUX, &debian(RELEASE))]));
    let files = BootFiles::of(&bench.disk()).unwrap();
    assert_eq!(content(&files.kernel), kernel());
    assert_eq!(content(&files.initrd.unwrap().0), b"disk initrd");
    assert!(
        files.cmdline.ends_with(" root=PARTUUID=01010101-0101-0101-0101-010101010101 ro"),
        "{}",
        files.cmdline
    );
    assert!(files.kernel.to_string().starts_with("/boot/vmlinuz-6.1.0-25-amd64 on /"));
}

#[test]
fn copies_of_a_file_on_a_disk_are_found_where_they_lie() {
    let disk = debian(RELEASE);
    let bench = Bench::new(&disk);
    let file = BootFiles::of(&bench.disk()).unwrap().kernel;
    let kernel = kernel();
    let copy = Load { file_offset: 1000, guest: 0x100_0000, len: 4000 };
    let mut loaded = vec![0; 4000];
    for part in file.located(&[copy]) {
        let at = (part.guest - 0x100_0000) as usize;
        loaded[at..at + part.len as usize]
            .copy_from_slice(&disk[part.file_offset as usize..][..part.len as usize]);
    }
    assert_eq!(loaded, kernel[1000..5000]);
    let mut end = [1; 64];
    assert_eq!(file.read_at(&mut end, kernel.len() as u64 - 10).unwrap(), 10);
    assert_eq!(file.read_at(&mut end, u64::MAX).unwrap(), 0);
}

#[test]
fn kernel_from_here_gets_its_initrd_and_root_from_the_disk() {
    let bench = Bench::new(&debian(RELEASE));
    let files = BootFiles::of(&bench.both()).unwrap();
    assert_eq!(files.kernel.name(), bench.path("vmlinuz"));
    assert_eq!(content(&files.initrd.unwrap().0), b"disk initrd");
    assert!(files.cmdline.ends_with(" root=/dev/vda ro"), "{}", files.cmdline);
    // Its name says what its version string does not.
    fs::write(bench.path("vmlinuz-6.1.0-25-amd64"), bzimage("")).unwrap();
    let spec = Spec { kernel: Some(bench.path("vmlinuz-6.1.0-25-amd64")), ..bench.disk() };
    assert!(BootFiles::of(&spec).unwrap().initrd.is_some());
}

#[test]
fn what_the_user_says_wins() {
    let bench = Bench::new(&debian(RELEASE));
    let none = BootFiles::of(&bench.both().with_initrd(spec::Initrd::None)).unwrap();
    assert!(none.initrd.is_none() && none.cmdline.contains("root=/dev/vda"));
    let own =
        BootFiles::of(&bench.both().with_initrd(bench.path("own.img")).with_append("root=/dev/vdb")).unwrap();
    assert_eq!(content(&own.initrd.unwrap().0), b"own initrd");
    assert!(own.cmdline.ends_with("root=/dev/vdb") && own.root.is_none(), "{}", own.cmdline);
}

#[test]
fn initrd_of_another_kernel_is_not_taken() {
    let bench = Bench::new(&debian("6.1.0-26-amd64"));
    let files = BootFiles::of(&bench.both()).unwrap();
    assert!(files.initrd.is_none());
    assert!(files.looked.unwrap().contains("no initrd.img-6.1.0-25-amd64"));
}

#[test]
fn data_disk_of_a_machine_that_has_all_is_let_be() {
    let own = |bench: &Bench| bench.both().with_initrd(bench.path("own.img"));
    for disk in [vec![0; 1 << 20], [b"data".as_slice(), &[7; 508]].concat()] {
        let bench = Bench::new(&disk);
        let files = BootFiles::of(&own(&bench)).unwrap();
        assert_eq!((files.cmdline.as_str(), files.root), (spec::DEFAULT_CMDLINE, None));
    }
}

#[test]
fn disk_that_gives_nothing_says_what_is_on_it() {
    let said = |disk: &[u8]| BootFiles::of(&Bench::new(disk).disk()).unwrap_err().to_string();
    let text = said(&vec![0; 1 << 20]);
    assert!(text.contains("vm0.raw: the whole disk is empty; give one from here with `--kernel"), "{text}");
    let text = said(&gpt(512, &[(1, LVM, b"x")]));
    assert!(text.contains("partition 1 is LVM") && text.contains("--append root=DEVICE"), "{text}");
    let text = said(&ext4(2048, &[("etc/x", b""), ("sbin/init", b"x")], &[]));
    assert!(
        text.contains("has no kernel (vmlinuz-VERSION, ")
            && text.contains("in its /boot")
            && text.contains("linux-image-amd64"),
        "{text}"
    );
    let kernel = kernel();
    let boot = ext4(2048, &[("vmlinuz-6.1.0-25-amd64", &kernel[..])], &[]);
    let text = said(&gpt(512, &[(1, LINUX, &boot), (2, LVM, b"x")]));
    assert!(text.contains("no root file system was found") && text.contains("/dev/mapper/"), "{text}");
    let text = said(&ext4(2048, &[("etc/x", b""), ("sbin/init", b"x"), ("boot/vmlinuz-6", b"text")], &[]));
    assert!(text.contains("vm0.raw:/boot/vmlinuz-6"), "{text}");
}

#[test]
fn disk_that_cannot_be_opened_is_named() {
    let bench = Bench::new(b"");
    for (name, said) in
        [("nope", "there is no disk"), (".", "is a directory"), ("/dev/null", "neither a file")]
    {
        let spec = Spec::default().with_disk(DiskSpec::new(bench.path(name)));
        let error = BootFiles::of(&spec).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(said), "{error}");
    }
    let error = BootFiles::of(&Spec::default()).unwrap_err().to_string();
    assert!(error.contains("--disk vm0.raw") && error.contains("--kernel"), "{error}");
}

#[test]
fn guest_that_upgrades_its_kernel_boots_the_new_one() {
    let bench = Bench::new(&debian(RELEASE));
    assert!(BootFiles::of(&bench.disk()).unwrap().initrd.is_some());
    let kernel = kernel();
    let files: [(&str, &[u8]); 3] =
        [("etc/x", b""), ("sbin/init", b"x"), ("boot/vmlinuz-6.1.0-30-amd64", &kernel)];
    fs::write(bench.path("vm0.raw"), ext4(8192, &files, &[])).unwrap();
    assert!(BootFiles::of(&bench.disk()).unwrap().kernel.to_string().contains("6.1.0-30"));
}

#[test]
fn first_disk_is_the_root_of_a_kernel_from_here_whatever_its_file_system() {
    let mut xfs = vec![0; 1 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    // As `docker export` leaves it: no /etc, no init of the usual names.
    for disk in [xfs, ext4(2048, &[("app", b"1")], &[])] {
        let bench = Bench::new(&disk);
        let files = BootFiles::of(&bench.both()).unwrap();
        assert!(files.cmdline.ends_with(" root=/dev/vda ro"), "{}", files.cmdline);
        assert!(files.warnings.is_empty());
        let own = BootFiles::of(&bench.both().with_append("root=/dev/vdb")).unwrap();
        assert!(own.root.is_none() && !own.cmdline.contains("vda"), "{}", own.cmdline);
    }
    let files = BootFiles::of(&Bench::new(&gpt(512, &[(1, LVM, b"x")])).both()).unwrap();
    assert!(files.warnings[0].contains("partition 1 is LVM") && files.warnings[0].contains("--append root="));
    assert!(!files.cmdline.contains("root="));
}

#[test]
fn root_of_two_copies_is_named_by_its_device() {
    let bench = Bench::new(&gpt(512, &[(1, LINUX, &debian(RELEASE))]));
    fs::copy(bench.path("vm0.raw"), bench.path("copy.raw")).unwrap();
    let files = BootFiles::of(&bench.disk().with_disk(DiskSpec::new(bench.path("copy.raw")))).unwrap();
    assert!(files.cmdline.ends_with(" root=/dev/vda1 ro"), "{}", files.cmdline);
    assert!(files.warnings[0].contains("as copies have"), "{:?}", files.warnings);
}

#[test]
fn open_files_are_those_that_were_there_then() {
    let bench = Bench::new(&[0; 4096]);
    let spec = Spec::new(bench.path("vmlinuz")).with_initrd(bench.path("own.img"));
    let open = OpenFiles::open(&spec, &Progress::default()).unwrap();
    for (name, other) in [("vmlinuz", bzimage("9.9.9-other")), ("own.img", b"other initrd".into())] {
        fs::write(bench.path("other"), other).unwrap();
        fs::rename(bench.path("other"), bench.path(name)).unwrap();
    }
    let files = BootFiles::find(&spec, &open, &Progress::default()).unwrap();
    assert_eq!(
        (files.release().unwrap(), content(&files.initrd.unwrap().0)),
        (RELEASE.into(), b"own initrd".into())
    );
    assert_eq!(BootFiles::of(&spec).unwrap().release().unwrap(), "9.9.9-other");
    fs::remove_file(bench.path("vmlinuz")).unwrap();
    assert!(BootFiles::of(&spec).is_err());
    assert_eq!(BootFiles::find(&spec, &open, &Progress::default()).unwrap().release().unwrap(), RELEASE);
}

#[test]
fn disks_that_are_open_are_searched_and_compared_wherever_their_paths_lead() {
    let bench = Bench::new(&debian(RELEASE));
    fs::copy(bench.path("vm0.raw"), bench.path("copy.raw")).unwrap();
    let spec = bench.disk().with_disk(DiskSpec::new(bench.path("copy.raw")));
    let open = OpenFiles::open(&spec, &Progress::default()).unwrap();
    fs::remove_file(bench.path("vm0.raw")).unwrap();
    fs::remove_file(bench.path("copy.raw")).unwrap();
    let files = BootFiles::find(&spec, &open, &Progress::default()).unwrap();
    assert_eq!(files.release().unwrap(), RELEASE);
    assert!(files.warnings[0].contains("as copies have"), "{:?}", files.warnings);
}

#[test]
fn pipe_in_place_of_a_file_is_refused_and_not_waited_for() {
    let bench = Bench::new(&[0; 4096]);
    let pipe = bench.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(BootFiles::of(&Spec::new(&pipe)).unwrap_err().to_string().contains("pipe"));
    let spec = Spec::new(bench.path("vmlinuz")).with_initrd(pipe);
    assert!(BootFiles::of(&spec).unwrap_err().to_string().contains("pipe"));
}

#[test]
fn journal_that_a_read_only_disk_keeps_from_being_replayed_is_told() {
    let bench = Bench::new(&crate::image::testing::unclean(&[("etc/x", b""), ("sbin/init", b"x")]));
    let disk = DiskSpec::new(bench.path("vm0.raw")).read_only();
    let spec = Spec { kernel: Some(bench.path("vmlinuz")), ..Spec::default() }.with_disk(disk);
    assert!(BootFiles::of(&spec).unwrap().warnings[0].contains("rootflags=noload"));
    let noload = spec.with_append("rootflags=noload");
    assert!(BootFiles::of(&noload).unwrap().warnings.is_empty());
}

#[test]
fn names_out_of_an_image_write_nothing_on_the_terminal() {
    let (kernel, name) = (kernel(), "boot/vmlinuz-9\u{1b}]0;x\u{7}\n~> Root");
    let files: [(&str, &[u8]); 3] = [("etc/x", b""), ("sbin/init", b"x"), (name, &kernel)];
    let bench = Bench::new(&ext4(8192, &files, &[]));
    let files = BootFiles::of(&bench.disk()).unwrap();
    for text in [files.kernel.to_string(), files.kernel.name().display().to_string()] {
        assert!(text.contains("vmlinuz-9") && !text.contains(char::is_control), "{text:?}");
    }
}

/// As cloud images are, compressed, and as an overlay on the raw disk.
#[test]
fn kernel_is_found_through_the_mappings_of_an_image() {
    let bench = Bench::new(&gpt(512, &[(1, LINUX, &debian(RELEASE))]));
    for options in [&["-c"][..], &["-o", "cluster_size=512"]] {
        let mut convert = std::process::Command::new("qemu-img");
        convert.args(["convert", "-q", "-f", "raw", "-O", "qcow2"]).args(options);
        assert!(convert.args([bench.path("vm0.raw"), bench.path("cloud.qcow2")]).status().unwrap().success());
        let overlay = DiskSpec::new(bench.path("vm0.raw")).with_overlay(bench.path("vm0.qcow2"));
        for disk in [DiskSpec::new(bench.path("cloud.qcow2")), overlay.clone(), overlay.snapshot()] {
            let name = disk.image().display().to_string();
            let files = BootFiles::of(&Spec::default().with_disk(disk)).unwrap();
            assert_eq!(content(&files.kernel), kernel(), "{name}");
            assert_eq!(content(&files.initrd.unwrap().0), b"disk initrd");
            assert!(files.kernel.to_string().ends_with(&format!(" on {name}")), "{}", files.kernel);
            // As the loader takes them.
            let mut loaded = vec![0; 4000];
            for part in files.kernel.located(&[Load { file_offset: 1000, guest: 0, len: 4000 }]) {
                let place = &mut loaded[part.guest as usize..][..part.len as usize];
                let ByteSource::Made(disk) = files.kernel.origin() else {
                    panic!("{name} is read as it lies")
                };
                assert_eq!(disk.read_at(place, part.file_offset).unwrap(), part.len as usize);
            }
            assert_eq!(loaded, kernel()[1000..5000]);
        }
    }
}
