//! Tests of the command line: its error messages on stderr, and the exit status.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

mod kernels;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

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
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("minivmm boots a Linux") && said.contains("minivmm --help"), "{said}");
}

#[test]
fn help_and_version_go_to_stdout_and_are_no_error() {
    let folder = Folder::new();
    for (flag, said) in [("--help", "Exit status: 0"), ("-h", "--publish"), ("--version", "minivmm 0.")] {
        let output = folder.run(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty());
        assert!(String::from_utf8(output.stdout).unwrap().contains(said), "{flag}");
    }
}

#[test]
fn flags_that_are_wrong_are_usage_errors() {
    let folder = Folder::new();
    folder.fails(&["--memroy", "512"], USAGE, &["--memory", "--mem"]);
    folder.fails(&["--kernel"], USAGE, &["--kernel"]);
    folder.fails(&["--kernel", "own", "--mem", "lots"], USAGE, &["`lots`", "`512M`"]);
    folder.fails(&["--kernel", "own", "--mem", "0"], USAGE, &["at least `1M`"]);
    folder.fails(&["--kernel", "own", "--cpus", "0"], USAGE, &["from 1 to 255"]);
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
    with(&["--share", ".:/y:ro"], &["follow a comma", "`.:/y,ro`"]);
    with(&["--share", ".:/mnt", "--share", ".:/mnt/"], &["two shares have the mount `/mnt`"]);
    let share = |words: &[&str], said: &[&str]| {
        folder.fails(&[&["--kernel", "own", "--initrd", "none"], words].concat(), FAILED, said);
    };
    share(&["--share", ".:mnt"], &["`mnt` is no absolute path of the guest", "`.:/mnt`"]);
    with(&["--balloon", "lots"], &["`lots`", "`512M`"]);
    with(&["--console", "tty1"], &["ttyS0", "hvc0"]);
    with(&["--disk", "a", "--disk", "a"], &["the disk a was given twice", "`,ro`"]);
    with(&["--tap", "tap2", "--tap", "tap2"], &["the TAP tap2 was given twice"]);
    with(&["--tap", "tap2", "--tap", "x,mac=ba:ad:00:ca:fe:02"], &["have the MAC address ba:ad:00:ca:fe:02"]);
    with(&["--port", "name=a,socket=x", "--port", "name=a,socket=y"], &["two ports are called a"]);
    with(&["--mem", "256", "--balloon", "256"], &["256 MiB leaves a guest of 256 MiB no memory"]);
}

/// The next version of the option, or those of another one, do not make a run do something else without a word.
#[test]
fn options_of_a_run_that_podman_has_otherwise_are_refused() {
    const NOTHING_WAS_RUN: i32 = 125;
    let folder = Folder::new();
    let fails =
        |words: &[&str], said: &[&str]| folder.fails(&[&["run"], words].concat(), NOTHING_WAS_RUN, said);
    fails(&["-v", ".:/work", "--", "true"], &["`--verbose` in this version", "`--volume .:/work`"]);
    fails(&["--volume", ".:/work,ro", "--", "true"], &["follow a colon", "write .:/work:ro"]);
    fs::write(folder.path("mine"), "").unwrap();
    fails(&["--kernel", "own", "--out", "mine", "--", "true"], &["--out mine is a file"]);
    fails(&["--kernel", "own", "--out", "no/x", "--", "true"], &["mkdir -p ", "/no`"]);
}

#[test]
fn machine_is_not_received_from_a_keyboard() {
    let terminal = fs::File::options().read(true).write(true).open("/dev/ptmx").unwrap();
    let mut receive = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    let output = receive.arg("receive").stdin(terminal).output().unwrap();
    assert_eq!(output.status.code(), Some(USAGE));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("`--listen unix:PATH`"), "{said}");
    assert!(output.stdout.is_empty());
}

#[test]
fn networks_that_are_wrong_are_usage_errors() {
    let folder = Folder::new();
    let with =
        |words: &[&str], said: &[&str]| folder.fails(&[&["--kernel", "own"], words].concat(), USAGE, said);
    with(&["-p", "22"], &["it needs two ports", "`0:22`", "`5555:22`"]);
    with(&["-p", "5555:ssh"], &["`ssh` is not the number of a port"]);
    with(&["-p", "8000-8010:8000-8010"], &["`8000-8010` is a range of ports", "a forward of its own"]);
    with(&["-p", "70000:22"], &["there is no port 70000"]);
    with(&["-p", "5555:0"], &["from 1 to 65535"]);
    with(&["-p", "localhost:5555:22"], &["`localhost` is not an address", "127.0.0.1"]);
    with(&["-p", "::1:5555:22"], &["`[::1]`"]);
    with(&["-p", "5555:22/tpc"], &["neither `/tcp` nor `/udp`"]);
    with(&["-p", "5555:22", "-p", "0.0.0.0:5555:23"], &["listen on the same port of the host"]);
    with(&["-p", "0:22", "--net", "none"], &["`none` stands alone", "leave out `none`"]);
    with(&["--net", "nat"], &["`nat` is no kind of network", "`user` (NAT)", "`tap=NAME`"]);
    with(&["--net", "socket"], &["`socket` needs a value: socket=wire.sock"]);
    with(&["--net", "user", "--net", "user"], &["have the same addresses", "`,subnet=10.0.5.0/24`"]);
    with(&["--net", "user,hostfwd=tcp::5555-:22"], &["no option `hostfwd=", "`forward=HOST:GUEST`"]);
    with(&["--net", "user,restrict"], &["restrict=on"]);
    let long = format!("socket={}", "x".repeat(108));
    with(&["--net", &long], &["is longer than a socket's can be (107 bytes)", "shorter"]);
    with(&["--net", "dgram=a:a"], &["have the socket a", "a socket of its own"]);
    folder.fails(&["--kernel", "own", "--net", "dgram=a:./a"], FAILED, &["./a is named for both ends"]);
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
    fs::write(folder.path("vm.qcow2"), b"QFI\xfb\0\0\0\x03 and more").unwrap();
    folder.fails(&["--disk", "vm.qcow2"], FAILED, &["`vm.qcow2` is damaged"]);
    fs::rename(folder.path("vm.qcow2"), folder.path("vm.img")).unwrap();
    folder.fails(&["--disk", "vm.img"], FAILED, &["`vm.img,format=qcow2`", "`vm.img,format=raw`"]);
    fs::write(folder.path("no.qcow2"), vec![0; 4096]).unwrap();
    folder.fails(&["--disk", "no.qcow2"], FAILED, &["`no.qcow2` is no qcow2 image", "format=raw"]);
    fs::write(folder.path("vm.vmdk"), b"KDMV and more").unwrap();
    folder.fails(&["--disk", "vm.vmdk"], FAILED, &["a VMDK image", "`qemu-img convert -O raw"]);
    for wrong in ["empty.raw,ro,snapshot", "empty.raw,overlay=empty.raw", "empty.raw,backing=x"] {
        folder.fails(&["--disk", wrong], USAGE, &["empty.raw"]);
    }
    folder.fails(
        &["--disk", "nope.raw"],
        FAILED,
        &["there is no disk nope.raw", "`minivmm disk create nope.raw 60G`"],
    );
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
    folder.fails(
        &["--config", "nope.toml"],
        USAGE,
        &["the machine's file nope.toml does not exist; `ls` shows what is in this folder"],
    );
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
fn run_that_cannot_be_never_looks_like_its_command() {
    const NOTHING_WAS_RUN: i32 = 125;
    let folder = Folder::new();
    let with =
        |words: &[&str], said: &[&str]| folder.fails(&[&["run"], words].concat(), NOTHING_WAS_RUN, said);
    with(&[], &["COMMAND"]);
    with(&["--kernel", "own"], &["COMMAND"]);
    with(&["--mem", "lots", "true"], &["`lots`", "`512M`"]);
    with(&["--timeout", "0", "true"], &["--timeout", "0"]);
    with(&["--timeout", "soon", "true"], &["soon", "such as 40"]);
    with(
        &["--timeout", "40s", "--boot-timeout", "5s", "--kernel", "no-kernel", "true"],
        &["no-kernel does not exist"],
    );
    for flag in [["--initrd", "own"], ["--on-reboot", "exit"], ["--console", "hvc0"]] {
        with(
            &[&flag[..], &["true"]].concat(),
            &["makes the initial RAM disk itself", &format!("leave out {}", flag[0])],
        );
    }
    with(&["--config", "nope.toml", "true"], &["nope.toml"]);
    for (key, value) in [("initrd", "own"), ("on-reboot", "exit"), ("console", "hvc0")] {
        fs::write(folder.path("own.toml"), format!("kernel = 'own'\n{key} = '{value}'\n")).unwrap();
        with(
            &["--config", "own.toml", "true"],
            &["makes the initial RAM disk itself", &format!("leave out `{key}` in the machine's file")],
        );
    }
    with(&["--kernel", "nope", "true"], &["the kernel nope does not exist"]);
    with(&["--tap", "a-name-that-is-too-long", "true"], &["1 to 15"]);
    let ports: Vec<String> = (0..27).map(|n| format!("--port=name=p{n},socket=s{n}")).collect();
    let ports: Vec<&str> = ports.iter().map(String::as_str).chain(["true"]).collect();
    with(&ports, &["27 ports", "can have 26"]);
}

#[test]
fn run_says_what_its_guest_cannot_be_made_of() {
    let folder = Folder::new();
    let with =
        |words: &[&str], said: &[&str]| folder.fails(&[&["run"], words, &["true"]].concat(), 125, said);
    with(
        &["--kernel", "vmlinuz"],
        &["drivers of Linux 6.0.0-99-amd64 are modules", "/lib/modules/6.0.0-99-amd64", "`--modules DIR`"],
    );
    with(
        &["--kernel", "vmlinuz", "--modules", "."],
        &["the directory . has no modules for Linux 6.0.0-99-amd64"],
    );
    let modules = folder.path("mine/6.0.0-99-amd64/kernel");
    fs::create_dir_all(&modules).unwrap();
    with(&["--kernel", "vmlinuz", "--modules", "mine"], &["has no module virtio_pci", "not built in"]);
    fs::write(modules.join("virtio_pci.ko.xz"), b"\xfd7zXZ\0 damaged").unwrap();
    with(&["--kernel", "vmlinuz", "--modules", "mine"], &["virtio_pci.ko.xz cannot be read"]);
    with(&["--kernel", "own", "--root", "nope"], &["--root nope: there is no such folder"]);
    with(&["--kernel", "own", "--root", "own"], &["--root own: it is no folder"]);
    fs::create_dir_all(folder.path("tree/bin")).unwrap();
    fs::write(folder.path("tree/bin/sh"), "").unwrap();
    with(&["--kernel", "own", "--root", "tree", "--mem", "20"], &["20 MiB", "too little", "--mem "]);
    fs::File::create(folder.path("tree/big")).unwrap().set_len(300 << 20).unwrap();
    with(
        &["--kernel", "own", "--root", "tree", "--mem", "256"],
        &["more than the guest's memory of 256 MiB"],
    );
    with(&["--kernel", "own", "--root", "tree", "--mem", "512"], &["too little", "--mem "]);
    fs::File::create(folder.path("tree/big")).unwrap().set_len(4 << 30).unwrap();
    with(&["--kernel", "own", "--root", "tree", "--mem", "16G"], &["big has 4294967296 bytes", "on a disk"]);
}

/// Whichever way a folder was asked for, the sentence names that and the cure.
#[test]
fn shares_that_are_wrong_are_told_by_what_asked_for_them() {
    let folder = Folder::new();
    fs::create_dir(folder.path("d")).unwrap();
    fs::write(folder.path("file"), "").unwrap();
    std::os::unix::fs::symlink("ring", folder.path("ring")).unwrap();
    let machine = ["--kernel", "own", "--initrd", "none"];
    let share = |text: &str, said: &str| {
        folder.fails(
            &[&machine[..], &["--share", text]].concat(),
            FAILED,
            &[&format!("minivmm: --share {said}")],
        );
    };
    share("none", "none: there is no such folder; make it with `mkdir -p none`, or name another\n");
    share("file", "file: it is no folder; name a folder, such as the one that it is in\n");
    share("file/x", "file/x: file, which is on the way to it, is no folder; name another\n");
    share(
        "ring",
        "ring: symbolic links on the way to it lead round in a circle (`namei ring`); mend one of them, ",
    );
    share(
        "/proc",
        "/proc: it is no folder of files, but what the kernel shows of the host (`findmnt -T /proc`), ",
    );
    share(
        "d:/x:/y",
        "d:/x: there is no such folder, and a share has one mount, and `/x` and `/y` are two: write `d:/x` ",
    );
    share(
        "d:",
        "d:: there is no such folder, and there is no mount behind the colon: write `d` without one, or as in ",
    );
    share(
        "mis\u{1b}[31msing\n2",
        r"mis\u{1b}[31msing\n2: there is no such folder; make it with `mkdir -p $'mis\x1b[31msing\x0a2'`",
    );
    // Nor does any other sentence control the terminal.
    folder.fails(&["--kernel", "own", "--mem", "\u{1b}[31m"], USAGE, &[r"\u{1b}[31m"]);
    folder.fails(&["clone", "mis\u{1b}[31msing", "vm1"], FAILED, &[r"mis\u{1b}[31msing"]);
    // In a file it is the line, and what nothing can be is refused as by the flag.
    let with_file = |text: &str, status, said: &str| {
        fs::write(folder.path("m.toml"), format!("kernel = 'own'\ninitrd = 'none'\n{text}\n")).unwrap();
        folder.fails(&["--config", "m.toml"], status, &[&format!("minivmm: m.toml, line {said}")]);
    };
    with_file(
        "share = [\n{ path = 'none' }]",
        FAILED,
        "4: the shared folder none: there is no such folder; make it ",
    );
    with_file(
        "[[share]]\npath = 'd'\n[[share]]\npath = 'd:'\n",
        FAILED,
        "5: the shared folder d:: there is no such folder, ",
    );
    with_file("share = [{ path = \"\" }]", USAGE, "3: `path` is empty");
    with_file("share = [{ path = \"d\\u0000x\" }]", USAGE, "3: the text of `path` has a NUL character");
    with_file("share = [{ path = 'd', cache = 'foo' }]", USAGE, "3: `cache`: unknown variant `foo`");
    let run = |words: &[&str], said: &str| {
        folder.fails(
            &[&["run", "--kernel", "own"], words, &["true"]].concat(),
            125,
            &[&format!("minivmm: --{said}")],
        );
    };
    run(&["--volume", "none:/x"], "volume none: there is no such folder");
    run(&["--volume", "d:/x:/y"], "volume d:/x: there is no such folder, and a share has one mount");
    run(&["--volume", "ring:/x"], "volume ring: symbolic links on the way to it lead round in a circle");
    run(&["--root", "ring"], "root ring: symbolic links on the way to it lead round in a circle");
    run(&["--out", "/proc/x"], "out /proc/x: no directory can be made in /proc");
    run(&["--out", "file/x"], "out file/x: file is no directory; name one that is");
}

/// An ordinary user for the programs of a test. Nobody, if that is who runs the test.
fn ordinary_user() -> Option<u32> {
    let this_user = fs::metadata("/proc/self").unwrap().uid();
    (this_user == 0).then_some(54_321)
}

/// The folder that is closed is named, and who can open it.
#[test]
fn what_an_ordinary_user_may_not_enter_is_told_with_who_can_change_that() {
    let user =
        ordinary_user().expect("this test makes folders of root and of an ordinary user: run it as root");
    let folder = Folder::new();
    fs::set_permissions(folder.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    for (name, owner) in [("roots", "0"), ("own", "54321")] {
        let path = folder.path(&format!("closed-{name}"));
        fs::create_dir_all(path.join("in")).unwrap();
        fs::write(path.join("kernel"), "").unwrap();
        assert!(Command::new("chown").arg(owner).arg(&path).status().unwrap().success());
        let mode = if owner == "0" { 0o700 } else { 0o000 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    for (link, to) in [("linked", "closed-own/kernel"), ("roots-kernel", "closed-roots/kernel")] {
        std::os::unix::fs::symlink(to, folder.path(link)).unwrap();
    }
    fs::write(folder.path("mine.toml"), "").unwrap();
    fs::set_permissions(folder.path("mine.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    let says = |words: &[&str], said: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        let output = command.args(words).current_dir(folder.path(".")).uid(user).gid(user).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(
            stderr.contains(said) && output.status.code().is_some_and(|code| code > 0),
            "{words:?}: {stderr}"
        );
    };
    let machine = ["--kernel", "own", "--initrd", "none", "--share"];
    let mend = |missing: &str| {
        format!(
            "it belongs to root, who can let you with `setfacl -m u:54321:{missing} closed-roots`, or everybody with `chmod o+{missing} \
             closed-roots`"
        )
    };
    let share =
        |path: &str, said: &str| says(&[&machine[..], &[path]].concat(), &format!("--share {path}: {said}"));
    share(
        "closed-own",
        "this user may not read closed-own; `chmod u+rx closed-own` lets you; or name another folder\n",
    );
    share("closed-own/in", "this user may not enter closed-own; `chmod u+x closed-own` lets you; ");
    share("closed-roots", &format!("this user may not read closed-roots; {}; ", mend("rx")));
    share("closed-roots/none/x", &format!("this user may not enter closed-roots; {}; ", mend("x")));
    let run =
        |words: &[&str], said: &str| says(&[&["run", "--kernel", "own"], words, &["true"]].concat(), said);
    run(
        &["--volume", "closed-own:/x"],
        "--volume closed-own: this user may not read closed-own; `chmod u+rx closed-own`",
    );
    run(
        &["--root", "closed-own"],
        "--root closed-own: this user may not read closed-own; `chmod u+rx closed-own`",
    );
    run(
        &["--root", "closed-own/in"],
        "--root closed-own/in: this user may not enter closed-own; `chmod u+x closed-own`",
    );
    run(
        &["--out", "closed-own/x"],
        "--out closed-own/x: this user may not write to closed-own; `chmod u+rwx closed-own`",
    );
    run(&["--out", "x"], "--out x: this user may not write to .; it belongs to root, ");
    for kernel in ["closed-own/kernel", "linked"] {
        says(
            &["--kernel", kernel],
            &format!("the kernel {kernel} cannot be opened: this user may not enter closed-own; "),
        );
    }
    says(
        &["--kernel", "roots-kernel"],
        &format!(
            "the kernel roots-kernel cannot be opened: this user may not enter closed-roots; {}",
            mend("x")
        ),
    );
    says(
        &["--config", "closed-own/kernel"],
        "the machine's file closed-own/kernel cannot be opened: this user may not enter closed-own; `chmod u+x closed-own` lets you\n",
    );
    says(
        &["--config", "mine.toml"],
        "the machine's file mine.toml may not be read by this user; `sudo chmod a+r mine.toml`",
    );
}

#[test]
fn run_leaves_out_what_an_ordinary_user_may_not_read_and_says_so() {
    let folder = Folder::new();
    for place in ["root/bin", "root/closed"] {
        fs::create_dir_all(folder.path(place)).unwrap();
    }
    for (name, mode) in
        [("bin/sh", 0o755), ("shadow", 0o000), ("bin/sudo", 0o4111), ("closed/file", 0o644), ("last", 0)]
    {
        let path = folder.path("root").join(name);
        fs::write(&path, "x").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(folder.path("root/closed"), fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.args(["run", "--kernel", "own", "--root", "root", "--mem", "20", "true"]);
    if let Some(user) = ordinary_user() {
        let chown =
            Command::new("chown").args(["-R", &user.to_string()]).arg(folder.0.path()).status().unwrap();
        assert!(chown.success());
        command.uid(user).gid(user);
    }
    let output = command.current_dir(folder.0.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let warning = "minivmm: warning: the guest is without last, shadow, closed and 1 more of --root root, which this user may not \
                   read; let it with `chmod -R u+rX`, or run as root\n";
    assert!(said.contains(warning) && said.contains("too little"), "{said}");
}

#[test]
fn run_whose_guest_cannot_be_read_ends_in_time_and_by_a_signal() {
    let folder = Folder::new();
    // Opening it would block until it has a writer.
    assert!(Command::new("mkfifo").arg(folder.path("busybox")).status().unwrap().success());
    let stuck = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command.args([&["run", "--kernel", "own"], words, &["true"]].concat()).current_dir(folder.path("."));
        command.env("PATH", folder.path(".")).stderr(Stdio::piped()).spawn().unwrap()
    };
    let says = |output: Output, status, said: &str| {
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(status) && stderr.contains(said), "{}: {stderr}", output.status);
    };
    let begin = Instant::now();
    let late = stuck(&["--timeout", "1"]).wait_with_output().unwrap();
    says(late, 124, "the machine was not up after 1 s (--timeout)");
    let told = stuck(&[]);
    // Once SIGTERM (15) is blocked, it waits until it is read.
    let blocks_the_signal = || {
        let status = fs::read_to_string(format!("/proc/{}/status", told.id())).unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(blocked.trim(), 16).unwrap() & 1 << (15 - 1) != 0
    };
    while !blocks_the_signal() {
        assert!(begin.elapsed() < Duration::from_secs(30), "it does not block the signals that it reads");
        sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").arg(told.id().to_string()).status().unwrap().success());
    says(told.wait_with_output().unwrap(), 128 + 15, "ended by signal 15");
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
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
