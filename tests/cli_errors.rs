//! Promises of the command line: what it says when something is wrong, on stderr, with which exit status.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

mod kernels;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A folder with a kernel of one's own and a Debian kernel.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        fs::write(folder.path("own"), kernels::bzimage("6.1.0-own (me@laptop) #1 SMP")).unwrap();
        let debian = "6.0.0-99-amd64 (debian-kernel@lists.debian.org) #1 SMP";
        fs::write(folder.path("vmlinuz"), kernels::bzimage(debian)).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs the command in this folder.
    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command.args(words).current_dir(self.0.path()).output().unwrap()
    }

    /// Runs the command, which must end with `status`, with nothing on stdout and all of `said` on stderr.
    #[track_caller]
    fn fails(&self, words: &[&str], status: i32, said: &[&str]) {
        let output = self.run(words);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{words:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{words:?} printed on stdout");
        assert!(stderr.starts_with("minivmm: "), "{stderr}");
        for text in said {
            assert!(stderr.contains(text), "{words:?} does not say {text:?}:\n{stderr}");
        }
    }
}

const FAILED: i32 = 1;
const USAGE: i32 = 2;

#[test]
fn no_arguments_show_the_help_and_are_a_usage_error() {
    let output = Folder::new().run(&[]);
    assert_eq!(output.status.code(), Some(USAGE));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Usage: minivmm --kernel FILE"));
}

#[test]
fn help_and_version_go_to_stdout_and_are_no_error() {
    let folder = Folder::new();
    for (flag, said) in [("--help", "Exit status: 0"), ("-h", "--on-reboot"), ("--version", "minivmm 0.")] {
        let output = folder.run(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty());
        assert!(String::from_utf8(output.stdout).unwrap().contains(said), "{flag}");
    }
}

#[test]
fn flags_that_are_wrong_are_usage_errors() {
    let folder = Folder::new();
    folder.fails(&["--memory", "512"], USAGE, &["--memory", "--mem"]);
    folder.fails(&["--kernel"], USAGE, &["--kernel"]);
    folder.fails(&["--kernel", "own", "--mem", "lots"], USAGE, &["`lots`", "`512M`"]);
    folder.fails(&["--kernel", "own", "--mem", "0"], USAGE, &["at least `1M`"]);
    folder.fails(&["--kernel", "own", "--cpus", "0"], USAGE, &["from 1 on"]);
    folder.fails(&["--kernel", "own", "--rtc", "gmt"], USAGE, &["none, utc, localtime"]);
    folder.fails(&["--kernel", "own", "--on-reboot", "halt"], USAGE, &["reboot, exit"]);
    folder.fails(
        &["--mem", "512"],
        USAGE,
        &["no kernel was named", "--kernel /boot/vmlinuz-VERSION", "--disk"],
    );
    folder.fails(&["boot"], USAGE, &["boot"]);
}

#[test]
fn devices_that_are_wrong_are_usage_errors() {
    let folder = Folder::new();
    let with =
        |words: &[&str], said: &[&str]| folder.fails(&[&["--kernel", "own"], words].concat(), USAGE, said);
    with(&["--disk", "a,rw"], &["`rw`", "`serial=TEXT`", "`,,`"]);
    with(&["--disk", "a,serial=123456789012345678901"], &["1 to 20"]);
    with(&["--tap", "tap2,mac=ff:ff:ff:ff:ff:ff"], &["multicast"]);
    with(&["--tap", "a-name-that-is-too-long"], &["1 to 15"]);
    with(&["--port", "agent"], &["`name=NAME` and `socket=PATH`"]);
    with(&["--balloon", "lots"], &["`lots`", "`512M`"]);
    with(&["--console", "tty1"], &["ttyS0", "hvc0"]);
    with(&["--disk", "a", "--disk", "a"], &["the disk a was given twice", "`,ro`"]);
    with(&["--tap", "tap2", "--tap", "tap2"], &["the TAP tap2 was given twice"]);
    with(&["--tap", "tap2", "--tap", "x,mac=ba:ad:00:ca:fe:02"], &["have the MAC address ba:ad:00:ca:fe:02"]);
    with(&["--port", "name=a,socket=x", "--port", "name=a,socket=y"], &["two ports are called a"]);
    with(&["--mem", "256", "--balloon", "256"], &["256 MiB leaves a guest of 256 MiB no memory"]);
}

#[test]
fn disk_that_gives_nothing_to_boot_says_what_it_has_and_what_to_do() {
    let folder = Folder::new();
    fs::write(folder.path("empty.raw"), vec![0; 1 << 20]).unwrap();
    folder.fails(
        &["--disk", "empty.raw"],
        FAILED,
        &["empty.raw", "the whole disk is empty", "`--kernel FILE"],
    );
    fs::write(folder.path("vm.qcow2"), b"QFI\xfb and more").unwrap();
    folder.fails(&["--disk", "vm.qcow2"], FAILED, &["qcow2", "`qemu-img convert -O raw"]);
    folder.fails(&["--disk", "nope.raw"], FAILED, &["there is no disk nope.raw", "truncate -s"]);
    folder.fails(&["--disk", "/dev/zero"], FAILED, &["neither a file nor a block device"]);
    let said =
        ["needs an initial RAM disk", "on the disk empty.raw, the whole disk is empty", "--initrd none"];
    folder.fails(&["--kernel", "vmlinuz", "--disk", "empty.raw"], FAILED, &said);
}

#[test]
fn file_of_a_machine_that_is_wrong_is_a_usage_error_with_its_line() {
    let folder = Folder::new();
    fs::write(folder.path("vm.toml"), "kernel = 'own'\nmemory = 512\n").unwrap();
    folder.fails(&["--config", "vm.toml"], USAGE, &["vm.toml, line 2", "`memory`", "`mem`"]);
    fs::write(folder.path("vm.toml"), "kernel = 'own'\n\nmem = '5x'\n").unwrap();
    folder.fails(&["--config", "vm.toml"], USAGE, &["vm.toml, line 3", "`5x`", "`512M`"]);
    folder.fails(&["--config", "nope.toml"], USAGE, &["nope.toml", "No such file"]);
}

#[test]
fn file_of_a_machine_counts_paths_from_its_folder() {
    let folder = Folder::new();
    fs::create_dir(folder.path("lab")).unwrap();
    fs::write(folder.path("lab/vm.toml"), "kernel = 'missing'\n").unwrap();
    folder.fails(&["--config", "lab/vm.toml"], FAILED, &["the kernel lab/missing does not exist"]);
    // A flag counts from where the command is given.
    folder.fails(
        &["--config", "lab/vm.toml", "--kernel", "gone"],
        FAILED,
        &["the kernel gone does not exist"],
    );
}

#[test]
fn kernel_that_is_not_there_is_named() {
    let folder = Folder::new();
    folder.fails(&["--kernel", "nope"], FAILED, &["the kernel nope does not exist", "`ls`"]);
    folder.fails(&["--kernel", "/nope/vmlinuz"], FAILED, &["neither does the folder /nope"]);
    folder.fails(&["--kernel", "."], FAILED, &["is a folder", "vmlinuz"]);
    folder.fails(&["--kernel", "/dev/zero"], FAILED, &["/dev/zero is no regular file"]);
}

#[test]
fn file_that_is_no_kernel_is_named_with_what_it_is() {
    let folder = Folder::new();
    fs::write(folder.path("notes.txt"), "notes\n").unwrap();
    folder.fails(&["--kernel", "notes.txt"], FAILED, &["notes.txt cannot be booted", "text file", "bzImage"]);
    fs::write(folder.path("cut"), &kernels::bzimage("6.1.0")[..2100]).unwrap();
    folder.fails(&["--kernel", "cut"], FAILED, &["cut cannot be booted", "cut short"]);
}

#[test]
fn distributions_kernel_without_its_initrd_is_refused_with_the_cure() {
    let folder = Folder::new();
    let said = ["needs an initial RAM disk", "initrd.img-6.0.0-99-amd64", "--initrd none"];
    folder.fails(&["--kernel", "vmlinuz"], FAILED, &said);
    fs::write(folder.path("initrd.img-6.0.0-99-amd64"), "x").unwrap();
    folder.fails(&["--kernel", "vmlinuz"], FAILED, &["add `--initrd initrd.img-6.0.0-99-amd64`"]);
}

#[test]
fn initrd_that_cannot_be_one_is_named() {
    let folder = Folder::new();
    fs::write(folder.path("empty"), "").unwrap();
    let with = |initrd| ["--kernel", "vmlinuz", "--initrd", initrd];
    folder.fails(&with("nope"), FAILED, &["the initial RAM disk nope does not exist"]);
    folder.fails(&with("empty"), FAILED, &["empty cannot serve as the initial RAM disk"]);
    folder.fails(&with("own"), FAILED, &["own cannot serve as the initial RAM disk", "This is a kernel"]);
}

#[test]
fn amounts_that_cannot_work_are_refused_with_numbers() {
    let folder = Folder::new();
    folder.fails(&["--kernel", "own", "--mem", "20"], FAILED, &["20 MiB", "too little", "--mem "]);
    folder.fails(&["--kernel", "own", "--mem", "60T"], FAILED, &["61440 GiB", "this host has", "counts MiB"]);
    let long = "x".repeat(3000);
    folder.fails(&["--kernel", "own", "--append", &long], FAILED, &["bytes long", "2047 at most"]);
}

#[test]
fn doctor_looks_at_what_it_is_given() {
    let folder = Folder::new();
    let text = |output: Output| String::from_utf8(output.stdout).unwrap();
    let output = folder.run(&["doctor", "--kernel", "nope"]);
    assert_eq!(output.status.code(), Some(FAILED));
    assert!(text(output).contains("FAIL  kernel   the kernel nope does not exist"));
    let said = text(folder.run(&["doctor", "--kernel", "vmlinuz"]));
    assert!(said.contains("ok    kernel   vmlinuz: Linux 6.0.0-99-amd64, bzImage"), "{said}");
    assert!(said.contains("warn  initrd   the kernel vmlinuz needs an initial RAM disk"), "{said}");
}

#[test]
fn doctor_says_the_same_as_json() {
    let folder = Folder::new();
    let output = folder.run(&["doctor", "--json", "--kernel", "nope"]);
    assert_eq!(output.status.code(), Some(FAILED));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["can-start"], false);
    let findings = json["findings"].as_array().unwrap();
    let kernel = findings.iter().find(|finding| finding["about"] == "kernel").unwrap();
    assert_eq!(kernel["level"], "fail");
    assert!(kernel["text"].as_str().unwrap().contains("nope"));
    for about in ["kvm", "cpu", "memory", "tun"] {
        assert!(findings.iter().any(|finding| finding["about"] == about), "nothing about {about}");
    }
}
