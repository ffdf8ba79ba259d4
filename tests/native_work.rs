//! `minivmm run` as a way to work: environment, folder, terminal, files that come out, what it took. The guest is a tiny one that speaks as the
//! init of a run does; tests/lab_run.rs has Debian's.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/pty.rs"]
mod pty;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pty::OnTerminal;
use tempfile::TempDir;

struct Home(Arc<TempDir>);

impl Home {
    fn new() -> Self {
        let home = Home(Arc::new(tempfile::tempdir().unwrap()));
        fs::write(home.path("kernel"), tiny_guest::COMMAND).unwrap();
        fs::create_dir_all(home.path("root/bin")).unwrap();
        fs::write(home.path("root/bin/sh"), "#!").unwrap();
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A run with these options, and its command behind them.
    fn run(&self, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command.args(["run", "--kernel", "kernel", "--root", "root", "--mem", "32"]).args(options);
        command.current_dir(self.0.path()).env("XDG_STATE_HOME", self.path("state"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn out(&self, options: &[&str]) -> Output {
        self.run(options).output().unwrap()
    }

    /// With this on its standard input.
    fn fed(&self, options: &[&str], bytes: &[u8]) -> Output {
        fed(&mut self.run(options), bytes)
    }

    /// A tar archive of these files.
    fn archive(&self, files: &[(&str, &[u8])]) -> Vec<u8> {
        self.archive_of(|source| {
            for (name, content) in files {
                let path = source.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
        })
    }

    /// One of what this puts into a folder.
    fn archive_of(&self, fill: impl FnOnce(&Path)) -> Vec<u8> {
        let source = tempfile::tempdir().unwrap();
        fill(source.path());
        Command::new("tar").args(["-c", "-f", "-", "-C"]).arg(source.path()).arg(".").output().unwrap().stdout
    }

    /// What is beside the folders of every test.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> =
            entries.filter(|name| !["kernel", "root", "state"].contains(&name.as_str())).collect();
        names.sort();
        names
    }
}

fn fed(command: &mut Command, bytes: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&bytes)));
    let out = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    out
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[track_caller]
fn is(out: &Output, status: i32, text: &str) {
    let stdout = String::from_utf8_lossy(&out.stdout);
    assert_eq!((out.status.code(), &*stdout), (Some(status), text), "{}", said(out));
}

#[test]
fn command_has_the_environment_and_the_folder_that_were_asked_for() {
    let home = Home::new();
    is(&home.out(&["environment"]), 0, "\n");
    let mut run = home.run(&["-e", "A=it's", "-e", "HERE", "-e", "NOT_HERE", "-e", "B=", "environment"]);
    let out = run.env("HERE", "here").env_remove("NOT_HERE").output().unwrap();
    is(&out, 0, "; export A='it'\\''s'; export HERE='here'; export B=''\n");
    let mut run = home.run(&["--env-host", "environment"]);
    is(&run.env_clear().env("A", "1").env("HOME", "/h").output().unwrap(), 0, "; export A='1'\n");
    is(&home.out(&["-w", "/a b", "folder"]), 0, "/a b\n");
    let out = home.out(&["--workdir", "/none", "folder"]);
    is(&out, 125, "");
    assert_eq!(said(&out), "minivmm: the guest has no directory /none (--workdir)\n");
    // Each run on a warm machine has its own.
    for value in ["A=1", "A=2"] {
        is(
            &home.out(&["--warm", "box", "-e", value, "environment"]),
            0,
            &format!("; export A='{}'\n", &value[2..]),
        );
    }
}

#[test]
fn times_are_those_of_a_start_and_nothing_is_said_without_being_asked() {
    let home = Home::new();
    let out = home.out(&["--time", "exit", "3"]);
    is(&out, 3, "");
    let text = said(&out);
    let line = text.strip_prefix("minivmm: time: ").unwrap_or_else(|| panic!("{text}"));
    let names: Vec<_> = line.trim_end().split(", ").map(|part| part.split(' ').next().unwrap()).collect();
    // This guest has no init that tells.
    assert_eq!(names, ["monitor", "kernel", "command"], "{text}");
    assert_eq!(said(&home.out(&["exit", "3"])), "");
    let warm = || said(&home.out(&["--warm", "box", "--time", "exit", "3"]));
    assert!(warm().contains("kernel"));
    let text = warm();
    assert!(text.contains("monitor ") && text.contains(", resume ") && !text.contains("kernel"), "{text}");
}

#[test]
fn kernel_of_a_build_tree_is_found_and_one_that_is_not_built_says_so() {
    let home = Home::new();
    let run = |kernel: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command.args(["run", "--kernel", kernel, "--root", "root", "--mem", "32", "say", "hello"]);
        command.current_dir(home.0.path()).output().unwrap()
    };
    fs::create_dir_all(home.path("linux/arch/x86/boot")).unwrap();
    fs::write(home.path("linux/Kbuild"), "").unwrap();
    let out = run("linux");
    is(&out, 125, "");
    assert!(
        said(&out).contains("--kernel linux is a tree of Linux that is not built: `make`"),
        "{}",
        said(&out)
    );
    fs::copy(home.path("kernel"), home.path("linux/vmlinux")).unwrap();
    is(&run("linux"), 0, "hello\n");
    let out = run("root");
    is(&out, 125, "");
    assert!(said(&out).contains("no tree of Linux"), "{}", said(&out));
}

#[test]
fn files_of_the_command_come_out_whole_or_not_at_all() {
    let home = Home::new();
    let big = vec![7; 3_000_000];
    let archive = home.archive(&[("report.xml", b"<ok/>"), ("logs/big", &big)]);
    is(&home.fed(&["-i", "--out", "results", "--", "pack"], &archive), 0, "");
    assert_eq!(fs::read(home.path("results/report.xml")).unwrap(), b"<ok/>");
    assert!(fs::read(home.path("results/logs/big")).unwrap() == big);
    // Nothing is mixed with what is there.
    let out = home.fed(&["-i", "--out", "results", "--", "pack"], &archive);
    is(&out, 125, "");
    assert!(said(&out).contains("--out results is not empty"), "{}", said(&out));
    assert_eq!(home.names(), ["results"]);
    fs::create_dir(home.path("empty")).unwrap();
    is(&home.fed(&["-i", "--out", "empty", "--", "pack"], &archive), 0, "");
    assert!(home.path("empty/report.xml").is_file());
    for bytes in [&archive[..archive.len() / 2], b"no archive at all"] {
        let out = home.fed(&["-i", "--timeout", "60", "--out", "half", "--", "pack", "1"], bytes);
        is(&out, 125, "");
        assert!(
            said(&out).contains("could not pack the files for --out, and ended with status 1"),
            "{}",
            said(&out)
        );
    }
    // Nobody waits for what will not come.
    let out = home.out(&["--timeout", "60", "--out", "half", "--", "say", "said"]);
    is(&out, 125, "said\n");
    assert!(said(&out).contains("ended the command and sent no files for --out"), "{}", said(&out));
    let evil = [&[0xff; 512][..], &archive].concat();
    let out = home.fed(&["-i", "--out", "evil", "--", "pack"], &evil);
    is(&out, 125, "");
    assert!(said(&out).contains("--out evil: what the guest sent is no tar archive"), "{}", said(&out));
    let out = home.fed(
        &["-i", "--out", "up", "--", "pack"],
        &home.archive_of(|source| {
            symlink("/etc/passwd", source.join("passwd")).unwrap();
        }),
    );
    is(&out, 0, "");
    assert!(said(&out).contains("1 of the files for --out were left out: passwd ("), "{}", said(&out));
    assert_eq!(fs::read_dir(home.path("up")).unwrap().count(), 0);
    fs::remove_dir(home.path("up")).unwrap();
    is(&home.out(&["--out", "off", "--", "off"]), 122, "");
    is(&home.out(&["--timeout", "2", "--out", "hang", "--", "hang"]), 124, "");
    assert_eq!(home.names(), ["empty", "results"]);
}

#[test]
fn files_that_the_host_does_not_take_are_none() {
    let home = Home::new();
    let archive = home.archive(&[("a", b"small"), ("big", &[7; 5_000_000])]);
    let run = home.run(&["-i", "--out", "results", "--", "pack"]);
    // As a full disk, but for the error: no file may be larger than 2 MiB.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 4096; exec \"$0\" \"$@\""]).arg(run.get_program()).args(run.get_args());
    let out = fed(limited.current_dir(home.0.path()).stdout(Stdio::piped()).stderr(Stdio::piped()), &archive);
    is(&out, 125, "");
    assert!(
        said(&out).contains(
            "the files of the command are not kept: --out results: cannot write big: File too large"
        ),
        "{}",
        said(&out)
    );
    assert!(home.names().is_empty(), "{:?}", home.names());
}

#[test]
fn runs_with_files_go_on_from_warm_machines() {
    let home = Home::new();
    for name in ["one", "two"] {
        let archive = home.archive(&[("name", name.as_bytes())]);
        is(&home.fed(&["-i", "--warm", "box", "--out", name, "--", "pack"], &archive), 0, "");
        assert_eq!(fs::read(home.path(name).join("name")).unwrap(), name.as_bytes());
    }
}

#[test]
fn runs_leave_nothing_behind() {
    let home = Home::new();
    fs::create_dir(home.path("run")).unwrap();
    fs::create_dir(home.path("tmp")).unwrap();
    for number in 0..if dose::soak() { 500 } else { 10 } {
        let archive = home.archive(&[("n", number.to_string().as_bytes())]);
        let mut run =
            home.run(&["-i", "--name", "box", "--volume", "root:/work", "--out", "out", "--", "pack"]);
        run.env("XDG_RUNTIME_DIR", home.path("run")).env("TMPDIR", home.path("tmp"));
        let mut child = run.stdin(Stdio::piped()).spawn().unwrap();
        // Why it was not taken, if it was not, the run says.
        let _ = child.stdin.take().unwrap().write_all(&archive);
        let out = child.wait_with_output().unwrap();
        is(&out, 0, "");
        fs::remove_dir_all(home.path("out")).unwrap();
    }
    assert_eq!(home.names(), ["run", "tmp"]);
    // No program that a run has started is there any more.
    let programs =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path().join("cwd")).ok());
    assert_eq!(programs.filter(|cwd| cwd == home.0.path()).count(), 0);
    let left = |folder: PathBuf| {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    // The folder of the machines, and in it the lock of a name perhaps.
    let left: Vec<_> = left(home.path("run"))
        .into_iter()
        .flat_map(left)
        .filter(|path| path.extension().is_some_and(|end| end == "sock"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(fs::read_dir(home.path("tmp")).unwrap().count(), 0);
}

#[test]
fn folders_that_are_none_are_refused_by_their_option() {
    let home = Home::new();
    let refused = |options: &[&str], words: &str| {
        let out = home.out(options);
        is(&out, 125, "");
        assert!(said(&out).contains(words), "{words}: {}", said(&out));
    };
    refused(
        &["--volume", "none:/work", "true"],
        "--volume none: there is no such folder; make it with `mkdir -p none`, or name another",
    );
    refused(&["--volume", "kernel:/work", "true"], "--volume kernel: it is no folder");
    refused(
        &["--warm", "box", "--volume", "root:/work", "true"],
        "leave out --volume and --share, or --warm",
    );
    refused(&["--volume", "root", "true"], "such as .:/work");
    is(&home.out(&["--volume", "root:/a", "--volume", "root:/b:ro", "exit", "4"]), 4, "");
    // Init needs what would be covered. The unit tests of that have all cases.
    for folder in ["/dev", "/dev/hvc1", "/dev/virtio-ports", "/proc", "/sys/fs", "/.minivmm", "/run"] {
        for (option, value) in [("volume", format!("root:{folder}")), ("share", format!("root:{folder},ro"))]
        {
            let out = home.out(&[&format!("--{option}"), &value, "true"]);
            is(&out, 125, "");
            let (begin, end) = (
                format!("--{option} root at {folder} would cover "),
                format!("; name another path of the guest, such as /mnt{folder}\n"),
            );
            assert!(said(&out).contains(&begin) && said(&out).ends_with(&end), "{}", said(&out));
        }
    }
    is(&home.out(&["--volume", "root:/bin", "--volume", "root:/tmp", "exit", "4"]), 4, "");
    // The guest could exchange what is unpacked there.
    refused(
        &["--volume", ".:/work", "--out", "new", "true"],
        "--out new is in the directory . of --volume, where the guest can write",
    );
    refused(&["--share", ".", "--out", "new", "true"], "of --share, where");
    assert!(home.names().is_empty(), "{:?}", home.names());
}

#[test]
fn volume_that_has_no_place_in_the_one_around_it_is_refused_before_a_boot() {
    let home = Home::new();
    fs::create_dir_all(home.path("proj/sub")).unwrap();
    fs::write(home.path("root/file"), "").unwrap();
    let nested = |place: &str| {
        home.out(&["--volume", "./proj:/work:ro", "--volume", &format!("./root:{place}"), "exit", "4"])
    };
    for (place, words) in [
        ("/work/sub2", "which has no folder sub2; make it with `mkdir ./proj/sub2`"),
        ("/work/a/b", "which has no folder a/b; make it with `mkdir -p ./proj/a/b`"),
    ] {
        let out = nested(place);
        is(&out, 125, "");
        let sentence = format!("--volume ./root:{place} is inside the read-only ./proj, {words}\n");
        assert!(said(&out).ends_with(&sentence), "{}", said(&out));
    }
    let out = home.out(&["--volume", "proj:/file", "exit", "4"]);
    is(&out, 125, "");
    let sentence =
        "--volume proj:/file is inside root, where root/file is no folder; name another path of the guest\n";
    assert!(said(&out).ends_with(sentence), "{}", said(&out));
    is(&nested("/work/sub"), 4, "");
    is(&nested("/other"), 4, "");
}

#[test]
fn input_that_cannot_be_read_and_output_that_nobody_has_are_failures() {
    let home = Home::new();
    let mut run = home.run(&["-i", "--timeout", "60", "hang"]);
    let out = run.stdin(fs::File::open(home.path("root")).unwrap()).output().unwrap();
    is(&out, 125, "");
    let sentence = "standard input could not be read to its end, so the run was ended: Is a directory";
    assert!(said(&out).contains(sentence) && !said(&out).contains("console"), "{}", said(&out));
    // As `>&-` in a shell leaves it.
    let closed = |words: &[&str]| {
        let (run, mut shell) = (home.run(words), Command::new("sh"));
        shell.args(["-c", "exec \"$0\" \"$@\" >&-"]).arg(run.get_program()).args(run.get_args());
        shell.current_dir(home.0.path()).stdin(Stdio::null()).output().unwrap()
    };
    let out = closed(&["--timeout", "60", "flood"]);
    is(&out, 125, "");
    assert!(said(&out).contains("standard output could not be written"), "{}", said(&out));
    is(&closed(&["-t", "--timeout", "60", "pour", "1"]), 125, "");
    // Who says nothing does not need it.
    is(&closed(&["exit", "3"]), 3, "");
}

/// Whether the thread `vcpu0` of this process waits for another thread (futex(2)), and so is not in the guest.
fn vcpu_waits(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path());
    let said = |task: &PathBuf, file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
    let vcpu = tasks.into_iter().find(|task| said(task, "comm") == "vcpu0\n");
    vcpu.is_some_and(|task| said(&task, "syscall").starts_with(&format!("{} ", libc::SYS_futex)))
}

#[test]
fn terminal_that_is_read_slowly_holds_up_the_guest_and_loses_nothing() {
    const PAGES: usize = 600;
    let home = Home::new();
    let mut child = home.run(&["-t", "--", "pour", &PAGES.to_string()]).spawn().unwrap();
    let deadline = Instant::now() + vmm::LIMIT;
    while !vcpu_waits(child.id()) {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "the guest spins");
        std::thread::sleep(Duration::from_millis(2));
    }
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", said(&out));
    assert_eq!(out.stdout.len(), PAGES * 4096);
    // A limit is kept, whoever reads.
    let mut child = home.run(&["-t", "--timeout", "3", "--", "pour", "100000"]).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(124));
}

/// A run on a terminal.
fn on_terminal(home: &Home, options: &[&str]) -> OnTerminal {
    OnTerminal::command(&mut home.run(options), home.0.clone())
}

#[test]
fn terminal_is_the_commands_while_it_runs_and_given_back_after_it() {
    let home = Home::new();
    let mut terminal = on_terminal(&home, &["-it", "show"]);
    terminal.expect("shows\r\n", 1);
    terminal.until_raw();
    // Ctrl-C is the command's.
    terminal.type_in(b"it is \x03 here");
    terminal.expect("it is \x03 here", 1);
    terminal.resize(30, 100);
    terminal.expect("30 100\n", 1);
    terminal.type_in(b"\x1d?");
    terminal.expect("Ctrl-] q ends the run", 1);
    terminal.type_in(b"q");
    terminal.end().is(0);
}

#[test]
fn terminal_is_given_back_on_every_way_out() {
    let home = Home::new();
    let started = |options: &[&str]| {
        let terminal = on_terminal(&home, &[&["-it"], options].concat());
        terminal.until_raw();
        terminal
    };
    started(&["--timeout", "5", "hang"]).end().is(124).said("had not ended after 5 s");
    let terminal = started(&["hang"]);
    terminal.signal(libc::SIGTERM);
    terminal.end().is(143).said("ended by signal 15");
    let mut terminal = started(&["hang"]);
    terminal.type_in(b"\x1dq");
    terminal.end().is(143).said("minivmm: ended with Ctrl-] q");
    // Too quick for a check that it is raw.
    on_terminal(&home, &["-it", "off"]).end().is(122).said("switched itself off");
    on_terminal(&home, &["-it", "exit", "7"]).end().is(7);
    on_terminal(&home, &["-it", "-w", "/none", "exit", "7"]).end().is(125).said("no directory /none");
}

#[test]
fn terminal_without_input_is_not_raw_and_ctrl_c_ends_the_run() {
    let home = Home::new();
    let mut terminal = on_terminal(&home, &["-t", "show"]);
    // The terminal makes a line end of its own of it.
    terminal.expect("shows\r", 1);
    assert!(!terminal.mode().is_raw());
    terminal.type_in(b"\x03");
    terminal.end().is(130);
    let mut terminal = on_terminal(&home, &["-t", "--warm", "box", "size"]);
    terminal.expect("\n", 1);
    terminal.type_in(b"");
    terminal.end().is(0);
    let out = home.out(&["-it", "show"]);
    is(&out, 125, "");
    assert!(said(&out).contains("standard input is not one: leave out -t or -i"), "{}", said(&out));
}
