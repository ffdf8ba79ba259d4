//! `minivmm disk` on images that no machine uses: what is made, what is refused, and what is left when something fails.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::expect_used,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/documents.rs"]
mod documents;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

use documents::{RUN_HERE, Shown, is_as_shown, read, shown};
use serde_json::Value;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// A folder with images.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a program in this folder.
    fn run(&self, program: &str, words: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.args(words).current_dir(self.0.path()).env("XDG_RUNTIME_DIR", self.0.path());
        command.output().unwrap_or_else(|error| panic!("{program}: {error}; `make install-deps` installs it"))
    }

    /// What `minivmm disk` prints.
    #[track_caller]
    fn does(&self, words: &[&str]) -> String {
        let out = self.run(env!("CARGO_BIN_EXE_minivmm"), &[&["disk"], words].concat());
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(0), "{words:?}: {stderr}");
        String::from_utf8(out.stdout).unwrap()
    }

    /// It must end with `status`, and say all of `said` in one line on stderr.
    #[track_caller]
    fn fails(&self, words: &[&str], status: i32, said: &[&str]) {
        let out = self.run(env!("CARGO_BIN_EXE_minivmm"), &[&["disk"], words].concat());
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(status), "{words:?}: {stderr}");
        assert!(out.stdout.is_empty(), "{words:?} printed on stdout");
        assert!(stderr.starts_with("minivmm: "), "{stderr}");
        assert!(status == USAGE || stderr.lines().count() == 1, "{stderr}");
        for text in said {
            assert!(stderr.contains(text), "{words:?} does not say {text:?}:\n{stderr}");
        }
    }

    #[track_caller]
    fn qemu_img(&self, words: &[&str]) -> String {
        let out = self.run("qemu-img", words);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{words:?}: {said}{}", String::from_utf8_lossy(&out.stdout));
        String::from_utf8(out.stdout).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A raw image of this size with these bytes at these places.
    fn raw(&self, name: &str, size: u64, parts: &[(u64, &[u8])]) {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).unwrap();
        }
    }
}

#[test]
fn new_raw_image_takes_no_space_and_is_as_large_as_it_was_asked_for() {
    let folder = Folder::new();
    assert_eq!(folder.does(&["create", "vm0.raw", "60G"]), "vm0.raw: 60 GiB, raw\n");
    let there = fs::metadata(folder.path("vm0.raw")).unwrap();
    assert_eq!((there.len(), there.blocks()), (60 * GIB, 0));
    folder.fails(&["create", "vm0.raw", "1G"], FAILED, &["vm0.raw exists already"]);
    assert_eq!(fs::metadata(folder.path("vm0.raw")).unwrap().len(), 60 * GIB);
    folder.fails(&["create", "nowhere/vm0.raw", "1G"], FAILED, &["nowhere/vm0.raw cannot be made", "folder"]);
    folder.fails(&["create", "a.raw"], USAGE, &["SIZE"]);
    folder.fails(&["create", "a.raw", "60"], USAGE, &["`60G`"]);
    folder.fails(&["create", "a.raw", "lots"], USAGE, &["`lots`", "`60G`"]);
    folder.fails(&["create", "a.raw", "1G", "--format", "vdi"], USAGE, &["vdi", "qcow2"]);
    assert_eq!(folder.names(), ["vm0.raw"]);
}

#[test]
fn new_qcow2_image_is_one_for_qemu_too() {
    let folder = Folder::new();
    assert_eq!(folder.does(&["create", "vm0.qcow2", "60G"]), "vm0.qcow2: 60 GiB, qcow2\n");
    folder.does(&["create", "vm1.img", "512M", "--format", "qcow2"]);
    for (name, size) in [("vm0.qcow2", 60 * GIB), ("vm1.img", 512 * MIB)] {
        let info: Value = serde_json::from_str(&folder.qemu_img(&["info", "--output=json", name])).unwrap();
        assert_eq!((&info["format"], &info["virtual-size"]), (&"qcow2".into(), &size.into()), "{info}");
        folder.qemu_img(&["check", name]);
    }
}

#[test]
fn overlay_names_its_base_and_has_its_size() {
    let folder = Folder::new();
    fs::create_dir(folder.path("students")).unwrap();
    folder.does(&["create", "base.raw", "3G"]);
    let said = folder.does(&["create", "student1.qcow2", "--backing", "base.raw"]);
    assert_eq!(said, "student1.qcow2: 3 GiB, qcow2, on base.raw\n");
    folder.does(&["create", "students/1.qcow2", "4G", "--backing", "base.raw"]);
    let backing = |name: &str| {
        let info = folder.qemu_img(&["info", "--output=json", name]);
        let info: Value = serde_json::from_str(&info).unwrap();
        (info["backing-filename"].as_str().unwrap().to_owned(), info["backing-filename-format"].clone())
    };
    assert_eq!(backing("student1.qcow2"), ("base.raw".into(), "raw".into()));
    let whole = folder.path("base.raw").canonicalize().unwrap();
    assert_eq!(backing("students/1.qcow2"), (whole.display().to_string(), "raw".into()));
    // An overlay on an overlay.
    folder.does(&["create", "evening.qcow2", "--backing", "student1.qcow2"]);
    let chain: Value =
        serde_json::from_str(&folder.does(&["info", "evening.qcow2", "--chain", "--json"])).unwrap();
    let paths: Vec<_> =
        chain.as_array().unwrap().iter().map(|layer| layer["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["evening.qcow2", "student1.qcow2", "base.raw"]);
    // What is in another folder is opened only if it is named.
    folder.fails(&["info", "students/1.qcow2", "--chain"], FAILED, &["not in its own folder", "`--backing "]);
    folder.does(&["info", "students/1.qcow2", "--chain", "--backing", "base.raw"]);
    folder.fails(&["create", "o.raw", "--backing", "base.raw"], FAILED, &["`o.qcow2`", "--format qcow2"]);
    folder.fails(&["create", "o.qcow2", "--backing", "gone.raw"], FAILED, &["there is no image gone.raw"]);
    assert!(!folder.path("o.qcow2").exists());
}

#[test]
fn info_says_what_an_image_is() {
    let folder = Folder::new();
    folder.does(&["create", "base.raw", "3G"]);
    folder.does(&["create", "student1.qcow2", "--backing", "base.raw"]);
    let text = folder.does(&["info", "student1.qcow2"]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "image     student1.qcow2",
            "format    qcow2 (version 3, clusters of 64 KiB)",
            "size      3 GiB (3221225472 bytes)"
        ]
    );
    assert_eq!(lines[4..], ["backing   base.raw (raw)"]);
    let json: Value = serde_json::from_str(&folder.does(&["info", "student1.qcow2", "--json"])).unwrap();
    assert_eq!((&json["size"], &json["backing"]["path"]), (&(3 * GIB).into(), &"base.raw".into()), "{json}");
    // The content does not say the format.
    fs::copy(folder.path("student1.qcow2"), folder.path("looks.raw")).unwrap();
    let json: Value = serde_json::from_str(&folder.does(&["info", "looks.raw", "--json"])).unwrap();
    assert_eq!((&json["format"], json.get("backing")), (&"raw".into(), None), "{json}");
    assert!(folder.does(&["info", "looks.raw"]).contains("note      it begins like a qcow2 image"));
    // A copy of it as it is would be no disk for anybody.
    for words in
        [&["convert", "looks.raw", "copy.qcow2"][..], &["create", "o.qcow2", "--backing", "looks.raw"]]
    {
        folder.fails(words, FAILED, &["looks.raw begins like a qcow2 image", "format qcow2`", "format raw`"]);
    }
    folder.does(&["convert", "looks.raw", "copy.raw", "--from-format", "raw"]);
    folder.fails(&["info", "gone.raw"], FAILED, &["there is no image gone.raw"]);
    folder.fails(&["info", "/dev/zero"], FAILED, &["neither a file nor a block device"]);
    folder.fails(&["info", "looks.raw", "--format", "vdi"], USAGE, &["vdi"]);
    fs::write(folder.path("no.qcow2"), "no").unwrap();
    folder.fails(&["info", "no.qcow2"], FAILED, &["no.qcow2", "no qcow2 image"]);
}

/// The length is that of the name `base.raw`.
#[test]
fn names_in_an_image_control_no_terminal_and_open_nothing() {
    let folder = Folder::new();
    folder.does(&["create", "base.raw", "1M"]);
    folder.does(&["create", "o.qcow2", "--backing", "base.raw"]);
    let image = fs::read(folder.path("o.qcow2")).unwrap();
    let at = image.windows(8).position(|part| part == b"base.raw").unwrap() as u64;
    let file = File::options().write(true).open(folder.path("o.qcow2")).unwrap();
    for (name, said) in [(b"\x1b]0;x\x07\ny", "]0;x"), (b"../../xy", "../../xy"), (b"nbd:a:80", "nbd:a:80")] {
        file.write_all_at(name, at).unwrap();
        let text = folder.does(&["info", "o.qcow2"]);
        assert!(text.contains(said) && text.lines().count() == 5, "{text:?}");
        assert!(!text.chars().any(|sign| sign.is_control() && sign != '\n'), "{text:?}");
        folder.fails(&["info", "o.qcow2", "--chain"], FAILED, &[said]);
        folder.fails(&["convert", "o.qcow2", "c.raw"], FAILED, &[said]);
    }
    symlink("/etc/passwd", folder.path("link-raw")).unwrap();
    file.write_all_at(b"link-raw", at).unwrap();
    folder.fails(&["convert", "o.qcow2", "c.raw"], FAILED, &["a symbolic link"]);
    assert!(!folder.path("c.raw").exists());
}

#[test]
fn disk_grows_and_shrinks_only_as_far_as_nothing_is_lost() {
    let folder = Folder::new();
    folder.does(&["create", "vm0.raw", "60G"]);
    assert_eq!(folder.does(&["resize", "vm0.raw", "+20G"]), "vm0.raw: 80 GiB, before 60 GiB\n");
    let size = |name: &str| fs::metadata(folder.path(name)).unwrap().len();
    assert_eq!(size("vm0.raw"), 80 * GIB);
    folder.fails(&["resize", "vm0.raw", "60G"], FAILED, &["has 80 GiB now", "`--shrink`"]);
    folder.does(&["resize", "vm0.raw", "60G", "--shrink"]);
    assert_eq!(size("vm0.raw"), 60 * GIB);
    // Data of an unknown kind.
    let file = File::options().write(true).open(folder.path("vm0.raw")).unwrap();
    file.write_all_at(b"x", 50 * GIB).unwrap();
    folder.fails(&["resize", "vm0.raw", "50G", "--shrink"], FAILED, &["there is data at 50 GiB"]);
    assert_eq!(size("vm0.raw"), 60 * GIB);
    folder.does(&["resize", "vm0.raw", "51G", "--shrink"]);
    // A partition table: one partition of 512 MiB at 1 MiB.
    let mut sector = [0; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector[0x1be + 4] = 0x83;
    sector[0x1be + 8..][..4].copy_from_slice(&2048_u32.to_le_bytes());
    sector[0x1be + 12..][..4].copy_from_slice(&(512 * 2048_u32).to_le_bytes());
    folder.raw("parts.raw", GIB, &[(0, &sector)]);
    folder.fails(&["resize", "parts.raw", "512M", "--shrink"], FAILED, &["partition 1 ends at 513 MiB"]);
    assert_eq!(size("parts.raw"), GIB);
    folder.does(&["convert", "parts.raw", "parts.qcow2"]);
    folder.fails(&["resize", "parts.qcow2", "512M", "--shrink"], FAILED, &["partition 1 ends at 513 MiB"]);
    folder.does(&["resize", "parts.qcow2", "513M", "--shrink"]);
    folder.does(&["resize", "parts.qcow2", "+1G"]);
    folder.qemu_img(&["check", "parts.qcow2"]);
    folder.raw("empty.raw", 0, &[]);
    folder.does(&["resize", "empty.raw", "1G"]);
    assert_eq!(size("empty.raw"), GIB);
    folder.fails(&["resize", "vm0.raw", "8192P"], USAGE, &["8 EiB"]);
    folder.fails(&["resize", "vm9:vda", "+1G"], FAILED, &["no machine called vm9 runs here"]);
}

#[test]
fn copy_is_whole_or_not_there_and_replaces_nothing_unasked() {
    let folder = Folder::new();
    let data: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    folder.raw("a.raw", 256 * MIB, &[(5 * MIB, &data), (200 * MIB, b"end")]);
    let said = folder.does(&["convert", "a.raw", "b.qcow2"]);
    assert!(said.starts_with("b.qcow2: 256 MiB, qcow2, "), "{said}");
    folder.qemu_img(&["check", "b.qcow2"]);
    folder.qemu_img(&["compare", "-f", "raw", "-F", "qcow2", "a.raw", "b.qcow2"]);
    folder.does(&["convert", "b.qcow2", "c.raw"]);
    folder.qemu_img(&["compare", "-f", "raw", "-F", "raw", "a.raw", "c.raw"]);
    let used = fs::metadata(folder.path("c.raw")).unwrap().blocks() * 512;
    assert!(used < 20 * MIB, "{used} bytes: holes stay holes");
    folder.fails(&["convert", "a.raw", "b.qcow2"], FAILED, &["b.qcow2 exists already", "`--force`"]);
    folder.does(&["convert", "c.raw", "b.qcow2", "--force"]);
    symlink("a.raw", folder.path("link")).unwrap();
    for to in ["a.raw", "./a.raw", "link"] {
        folder.fails(&["convert", "a.raw", to, "--force"], FAILED, &["are the same file"]);
    }
    // A limit of files is as a full disk: 1 MiB.
    let line = format!("ulimit -f 1024; exec {} disk convert a.raw d.raw", env!("CARGO_BIN_EXE_minivmm"));
    let out = folder.run("bash", &["-c", &line]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!((out.status.code(), said.lines().count()), (Some(FAILED), 1), "{said}");
    assert_eq!(folder.names(), ["a.raw", "b.qcow2", "c.raw", "link"]);
}

/// Locks a file as a machine does.
#[allow(unsafe_code, reason = "std has no locks of open files that fcntl(2) sees")]
fn lock(file: &File) {
    // SAFETY: an all-zero flock is valid, and means the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK.try_into().unwrap();
    // SAFETY: the lock lives through the call.
    let locked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    assert_eq!(locked, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn image_in_use_is_refused_with_its_user() {
    let folder = Folder::new();
    folder.does(&["create", "vm0.qcow2", "1G"]);
    let file = File::options().read(true).write(true).open(folder.path("vm0.qcow2")).unwrap();
    lock(&file);
    let user = format!("(process {})", std::process::id());
    for words in [
        &["resize", "vm0.qcow2", "+1G"][..],
        &["convert", "vm0.qcow2", "copy.raw"],
        &["check", "vm0.qcow2"],
        &["create", "o.qcow2", "--backing", "vm0.qcow2"],
    ] {
        folder.fails(words, FAILED, &["vm0.qcow2 is in use by ", &user, "end it first"]);
    }
    let text = folder.does(&["info", "vm0.qcow2"]);
    assert!(text.contains("in use    by ") && text.contains(&user), "{text}");
    assert_eq!(folder.names(), ["vm0.qcow2"]);
}

#[test]
fn check_finds_what_qemu_img_finds() {
    let folder = Folder::new();
    folder.does(&["create", "vm0.qcow2", "1G"]);
    assert!(folder.does(&["check", "vm0.qcow2"]).starts_with("vm0.qcow2: no errors; 0 of 16384 clusters"));
    assert!(folder.does(&["create", "vm0.raw", "1G"]).contains("raw"));
    assert!(folder.does(&["check", "vm0.raw"]).contains("nothing to check"));
    // A leak: a cluster behind the others with a reference count.
    let file = File::options().read(true).write(true).open(folder.path("vm0.qcow2")).unwrap();
    let mut table = [0; 8];
    file.read_exact_at(&mut table, 48).unwrap();
    let mut block = [0; 8];
    file.read_exact_at(&mut block, u64::from_be_bytes(table)).unwrap();
    let clusters = file.metadata().unwrap().len().div_ceil(64 << 10);
    file.write_all_at(&1_u16.to_be_bytes(), u64::from_be_bytes(block) + clusters * 2).unwrap();
    file.set_len((clusters + 1) * (64 << 10)).unwrap();
    let text = folder.does(&["check", "vm0.qcow2"]);
    assert!(text.contains("leaked clusters: 1,") && text.contains("`qemu-img check -r leaks"), "{text}");
    // Its header has no count.
    file.write_all_at(&0_u16.to_be_bytes(), u64::from_be_bytes(block)).unwrap();
    let out = folder.run(env!("CARGO_BIN_EXE_minivmm"), &["disk", "check", "vm0.qcow2"]);
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(FAILED), "{text}");
    assert!(
        text.contains("errors: ") && text.contains("; make a copy, then `qemu-img check -r all"),
        "{text}"
    );
}

#[test]
fn committed_overlay_is_in_its_base() {
    let folder = Folder::new();
    folder.raw("base.raw", 64 * MIB, &[(0, b"old"), (MIB, b"base")]);
    folder.does(&["create", "o.qcow2", "--backing", "base.raw"]);
    let out = folder.run(
        "qemu-io",
        &["-f", "qcow2", "-c", "write -P 0x61 0 64k", "-c", "write -P 0x62 32M 1M", "o.qcow2"],
    );
    assert!(out.status.success(), "{out:?}");
    fs::copy(folder.path("o.qcow2"), folder.path("before.qcow2")).unwrap();
    folder.qemu_img(&["convert", "-O", "raw", "o.qcow2", "expected.raw"]);
    folder.does(&["commit", "o.qcow2"]);
    folder.qemu_img(&["compare", "-f", "raw", "-F", "raw", "expected.raw", "base.raw"]);
    folder.fails(&["commit", "base.raw"], FAILED, &["base.raw lies on no other image"]);
}

/// The page for people: each command of its `console` blocks prints what stands below it.
#[test]
fn commands_of_the_page_print_what_it_shows() {
    let folder = Folder::new();
    let commands: Vec<_> = RUN_HERE.iter().flat_map(|name| shown(&read(name))).collect();
    assert!(commands.len() > 10, "{commands:?}");
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_minivmm")).parent().unwrap().display();
    for Shown { command, output, .. } in commands {
        let line = format!("export PATH={program}:$PATH; exec 2>&1 </dev/null; {command}");
        let out = folder.run("bash", &["-c", &line]);
        let said = String::from_utf8(out.stdout).unwrap();
        assert!(
            is_as_shown(&output, &said.lines().collect::<Vec<_>>()),
            "{command}\n== the page shows:\n{}\n== it said:\n{said}",
            output.join("\n")
        );
    }
}

#[test]
fn an_image_that_was_cut_off_is_refused_by_what_would_hide_it() {
    let folder = Folder::new();
    let data = vec![7; 4 << 20];
    folder.raw("a.raw", 4 << 20, &[(0, &data)]);
    folder.does(&["convert", "a.raw", "whole.qcow2"]);
    let whole = fs::read(folder.path("whole.qcow2")).unwrap();
    fs::write(folder.path("cut.qcow2"), &whole[..2 << 20]).unwrap();
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "-b", "a.raw", "-F", "raw", "over.qcow2"]);
    let run = folder.run("qemu-io", &["-f", "qcow2", "-c", "write -P 5 0 2M", "over.qcow2"]);
    assert!(run.status.success(), "{run:?}");
    let over = fs::read(folder.path("over.qcow2")).unwrap();
    fs::write(folder.path("over.qcow2"), &over[..1 << 20]).unwrap();
    for words in [&["resize", "cut.qcow2", "+1M"][..], &["convert", "cut.qcow2", "new.raw"]] {
        folder.fails(words, FAILED, &["cut.qcow2 has errors: ", "`minivmm disk check cut.qcow2`"]);
    }
    folder.fails(&["commit", "over.qcow2"], FAILED, &["over.qcow2 has errors: "]);
    assert!(fs::read(folder.path("cut.qcow2")).unwrap() == whole[..2 << 20]);
    assert!(fs::read(folder.path("a.raw")).unwrap() == data);
    assert_eq!(folder.names(), ["a.raw", "cut.qcow2", "over.qcow2", "whole.qcow2"]);
}

#[test]
fn a_copy_takes_the_place_of_a_file_with_its_rights_and_of_nothing_else() {
    let folder = Folder::new();
    folder.raw("a.raw", 1 << 20, &[(0, b"new")]);
    folder.raw("old.raw", 1 << 20, &[(0, b"old")]);
    fs::set_permissions(folder.path("old.raw"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("old.raw", folder.path("link.raw")).unwrap();
    folder.does(&["convert", "--force", "a.raw", "link.raw"]);
    assert!(fs::symlink_metadata(folder.path("link.raw")).unwrap().is_symlink());
    assert_eq!(fs::read(folder.path("old.raw")).unwrap()[..3], *b"new");
    assert_eq!(fs::metadata(folder.path("old.raw")).unwrap().mode() & 0o777, 0o640);
    let pipe = folder.run("mkfifo", &["pipe"]);
    assert!(pipe.status.success());
    for force in [&["--force"][..], &[]] {
        let words = [&["convert"], force, &["a.raw", "pipe"]].concat();
        folder.fails(&words, FAILED, &["pipe is no file", "another name"]);
    }
    assert!(fs::symlink_metadata(folder.path("pipe")).unwrap().file_type().is_fifo());
    folder.does(&["create", "over.qcow2", "--backing", "old.raw"]);
    folder.fails(
        &["convert", "--force", "over.qcow2", "old.raw"],
        FAILED,
        &["old.raw lies below over.qcow2"],
    );
    symlink("nowhere", folder.path("dangling.raw")).unwrap();
    folder.fails(&["convert", "--force", "a.raw", "dangling.raw"], FAILED, &["dangling.raw"]);
}
