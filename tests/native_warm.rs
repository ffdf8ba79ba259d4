//! `minivmm run --warm`: the first run boots, later ones go on from what it has kept, and nobody sees a difference but in time. The guest
//! is a tiny one that speaks as the init of a run does; the lab has Debian's.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use minivmm::{GuestCommand, SavedMachine, Template};
use serde_json::Value;
use tempfile::TempDir;

/// A folder for everything: kernel, the guest's files, and the state of this user.
struct Home(TempDir);

const CLONE: &str = "the command runs in a clone of it";
const SAVED: &str = "it is saved";

impl Home {
    fn new() -> Self {
        let home = Home(tempfile::tempdir().unwrap());
        fs::write(home.path("kernel"), tiny_guest::COMMAND).unwrap();
        fs::create_dir_all(home.path("root/bin")).unwrap();
        fs::write(home.path("root/bin/sh"), "#!").unwrap();
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn warm(&self) -> PathBuf {
        self.path("state/minivmm/warm/box")
    }

    fn minivmm(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command.args(words).current_dir(self.0.path());
        command.env("XDG_STATE_HOME", self.path("state")).env("XDG_RUNTIME_DIR", self.0.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// `run` with these options and this command.
    fn run(&self, options: &[&str], command: &[&str]) -> Command {
        let own = ["run", "--kernel", "kernel", "--root", "root", "--mem", "32"];
        self.minivmm(&[&own, options, &["--"], command].concat())
    }

    /// A run of the warm machine `box`, which says what it does.
    fn warm_run(&self, options: &[&str], command: &[&str]) -> Output {
        self.run(&[&["--warm", "box", "-v"], options].concat(), command).output().unwrap()
    }

    /// A run whose guest boots, and is kept if `why` says so.
    #[track_caller]
    fn boots(&self, options: &[&str], why: &str) {
        let out = self.warm_run(options, &["say", "hello"]);
        is(&out, 0, "hello\n");
        let text = said(&out);
        assert!(text.contains(why) && text.contains("booted") && text.contains(SAVED), "{why}: {text}");
    }

    /// A run in a clone of what was kept.
    #[track_caller]
    fn goes_on(&self, options: &[&str]) {
        let out = self.warm_run(options, &["say", "hello"]);
        is(&out, 0, "hello\n");
        assert!(said(&out).contains(CLONE) && !said(&out).contains("booted"), "{}", said(&out));
    }
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[track_caller]
fn is(out: &Output, status: i32, text: &str) {
    assert_eq!(
        (out.status.code(), &*String::from_utf8_lossy(&out.stdout)),
        (Some(status), text),
        "{}",
        said(out)
    );
}

fn feed(mut child: Child, bytes: &[u8]) -> Output {
    let (mut stdin, bytes) = (child.stdin.take().unwrap(), bytes.to_vec());
    // Meanwhile its output is read: what lies between holds less.
    let writer = thread::spawn(move || stdin.write_all(&bytes));
    let out = child.wait_with_output().unwrap();
    // A run that ended before it read all says more than a broken pipe.
    let written = writer.join().unwrap();
    assert!(written.is_ok(), "{written:?}: {:?} {}", out.status, said(&out));
    out
}

/// What is in the folder of warm machines.
fn names(home: &Home) -> Vec<String> {
    let entries = fs::read_dir(home.path("state/minivmm/warm")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn cold_first_and_later_runs_have_one_result() {
    let home = Home::new();
    let input: Vec<u8> = (0..3_000_000u32).map(|at| (at / 3).to_le_bytes()[0]).collect();
    let mut runs: Vec<Vec<&str>> = vec![vec![]];
    runs.extend([vec!["--warm", "box"], vec!["--warm", "box"], vec!["--warm", "box"]]);
    for options in runs {
        let run = |words: &[&str]| home.run(&options, words).output().unwrap();
        is(&run(&["count"]), 0, "1\n");
        let out = run(&["complain", "it's", "so"]);
        is(&out, 0, "");
        assert_eq!(said(&out), "it's so\n");
        is(&run(&["exit", "7"]), 7, "");
        is(&run(&["nothing"]), 127, "");
        let mut copy = home.run(&[&options[..], &["-i"]].concat(), &["copy"]);
        let out = feed(copy.stdin(Stdio::piped()).spawn().unwrap(), &input);
        assert!(out.status.success() && out.stdout == input, "{}", said(&out));
        let out = run(&["off"]);
        is(&out, 122, "");
        assert!(said(&out).contains("switched itself off before its command had ended"), "{}", said(&out));
        let limited = [&options[..], &["--timeout", "2"]].concat();
        let out = home.run(&limited, &["hang"]).output().unwrap();
        is(&out, 124, "");
        assert!(said(&out).contains("the command had not ended after 2 s"), "{}", said(&out));
    }
    // Those were quiet. The machine is there, and each clone has bytes of its own for its random pool.
    home.goes_on(&[]);
    let seed = || home.warm_run(&[], &["seed"]).stdout;
    assert_ne!(seed(), seed());
    assert_eq!(names(&home), ["box"]);
}

#[test]
fn machine_is_made_anew_when_what_it_is_made_from_changes() {
    let home = Home::new();
    home.boots(&[], "there is none yet");
    home.goes_on(&[]);
    // What has nothing to do with the guest changes nothing.
    home.goes_on(&["--timeout", "60", "--boot-timeout", "50", "-i", "--name", "job"]);
    let changed = "an option or this program has changed";
    home.boots(&["--append", "more"], changed);
    home.goes_on(&["--append", "more"]);
    home.boots(&[], changed);
    let kernel = File::options().write(true).open(home.path("kernel")).unwrap();
    kernel.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    home.boots(&[], changed);
    fs::write(home.path("root/bin/sh"), "#?").unwrap();
    home.boots(&[], changed);
    home.goes_on(&[]);
    assert_eq!(names(&home), ["box"]);
}

#[test]
fn machine_that_is_damaged_is_made_anew_and_the_run_does_not_fail() {
    let home = Home::new();
    home.boots(&[], "there is none yet");
    let (folder, file) = (home.warm(), |name: &str| home.warm().join(name));
    let cut = |name: &str| {
        File::options().write(true).open(file(name)).unwrap().set_len(100).unwrap();
    };
    let change = |name: &str, from: &str, to: &str| {
        let text = fs::read_to_string(file(name)).unwrap();
        assert!(text.contains(from), "{name}: {from}");
        fs::write(file(name), text.replacen(from, to, 1)).unwrap();
    };
    let damages: [(&str, &dyn Fn()); 12] = [
        // Found on the way, and not there then.
        ("kernel has changed", &|| {
            let mut note: Value = serde_json::from_slice(&fs::read(file("warm.json")).unwrap()).unwrap();
            note["files"][home.path("kernel").to_str().unwrap()] = Value::Null;
            fs::write(file("warm.json"), note.to_string()).unwrap();
        }),
        ("warm.json is damaged", &|| cut("warm.json")),
        ("warm.json cannot be read", &|| fs::remove_file(file("warm.json")).unwrap()),
        ("has changed", &|| change("warm.json", "\"format\": 1", "\"format\": 9")),
        ("machine.json", &|| cut("machine.json")),
        ("has format 77", &|| change("machine.json", "\"format\": 1", "\"format\": 77")),
        ("no command", &|| change("machine.json", "\"takes-commands\": true,", "")),
        ("state", &|| cut("state")),
        ("its memory has 100 bytes", &|| cut("memory")),
        ("holds no saved machine", &|| fs::remove_file(file("machine.json")).unwrap()),
        // It is whole, and its guest cannot go on.
        ("its guest did not go on", &|| {
            let memory = File::options().write(true).open(file("memory")).unwrap();
            let len = memory.metadata().unwrap().len();
            memory.set_len(0).unwrap();
            memory.set_len(len).unwrap();
        }),
        ("is no folder of this user", &|| {
            fs::rename(&folder, home.path("elsewhere")).unwrap();
            symlink(home.path("elsewhere"), &folder).unwrap();
        }),
    ];
    for (why, damage) in damages {
        damage();
        home.boots(&[], why);
        home.goes_on(&[]);
        assert_eq!(names(&home), ["box"], "{why}");
    }
    // A file of that name goes the same way; what is not this program's affair stays.
    fs::remove_dir_all(&folder).unwrap();
    fs::write(&folder, "").unwrap();
    home.boots(&[], "is no folder of this user");
    assert!(home.path("elsewhere/memory").exists());
}

#[test]
fn place_that_takes_nothing_is_told_and_the_command_runs() {
    let home = Home::new();
    fs::create_dir_all(home.path("state/minivmm")).unwrap();
    fs::write(home.path("state/minivmm/warm"), "in the way").unwrap();
    let out = home.run(&["--warm", "box"], &["exit", "5"]).output().unwrap();
    is(&out, 5, "");
    assert!(
        said(&out).contains("warning: the machine is not kept, and the next run boots too"),
        "{}",
        said(&out)
    );
}

#[test]
fn runs_at_once_on_one_name_do_not_disturb_each_other() {
    let home = Home::new();
    for options in [&[][..], &["--append", "changed"]] {
        let options = [&["--warm", "box"], options].concat();
        let runs: Vec<_> = (0..6)
            .map(|number| (number, home.run(&options, &["say", &number.to_string()]).spawn().unwrap()))
            .collect();
        for (number, child) in runs {
            let out = child.wait_with_output().unwrap();
            is(&out, 0, &format!("{number}\n"));
            assert_eq!(said(&out), "");
        }
        assert_eq!(names(&home), ["box"]);
        let out = home.run(&[&options[..], &["-v"]].concat(), &["count"]).output().unwrap();
        is(&out, 0, "1\n");
        assert!(said(&out).contains(CLONE), "{}", said(&out));
    }
}

#[test]
fn clone_that_cannot_boot_again_is_not_reset_and_its_command_runs_on() {
    let home = Home::new();
    home.boots(&[], "there is none yet");
    let mut run = home.run(&["--warm", "box", "--name", "job", "-i"], &["copy"]);
    let child = run.stdin(Stdio::piped()).spawn().unwrap();
    let verb = |word: &str| home.minivmm(&[word, "job"]).output().unwrap();
    let begun = Instant::now();
    while !verb("info").status.success() {
        assert!(begun.elapsed() < Duration::from_secs(300), "the run has no name");
        thread::sleep(Duration::from_millis(5));
    }
    let out = verb("reset");
    is(&out, 1, "");
    assert!(
        said(&out).contains("initial RAM disk") && said(&out).contains("start another run"),
        "{}",
        said(&out)
    );
    let out = feed(child, b"still here");
    is(&out, 0, "still here");
}

#[test]
fn each_clone_hears_on_a_port_that_it_is_another_one() {
    let home = Home::new();
    let options = ["--port", "generation"];
    home.boots(&options, "there is none yet");
    let line = || {
        let out = home.warm_run(&options, &["generation"]);
        assert!(out.status.success() && said(&out).contains(CLONE), "{}", said(&out));
        let line = String::from_utf8(out.stdout).unwrap();
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        let names: Vec<_> = words.iter().map(|word| word.split_once('=').unwrap().0).collect();
        assert_eq!(names, ["generation", "random", "time"]);
        words
    };
    let (one, other) = (line(), line());
    assert!(one.iter().zip(&other).all(|(one, other)| one != other), "{one:?} {other:?}");
    // Nothing is said to one that boots: it would wait for ever.
    let out = home.run(&["--port", "generation", "--timeout", "2"], &["generation"]).output().unwrap();
    is(&out, 124, "");
}

#[test]
fn warm_machines_are_listed_with_their_size_and_removed() {
    let home = Home::new();
    let verb = |words: &[&str]| home.minivmm(&[&["warm"], words].concat()).output().unwrap();
    let text = |out: &Output| String::from_utf8_lossy(&out.stdout).into_owned();
    is(&verb(&["ls", "--json"]), 0, "[]\n");
    home.boots(&[], "there is none yet");
    fs::create_dir(home.path("state/minivmm/warm/other")).unwrap();
    let list = text(&verb(&["ls"]));
    let lines: Vec<_> = list.lines().collect();
    assert!(
        lines[0].starts_with("NAME ") && lines[1].starts_with("box ") && lines[1].ends_with(" 32 MiB"),
        "{list}"
    );
    assert!(lines[2].starts_with("other: ") && lines[2].contains("holds no saved machine"), "{list}");
    let json: Value = serde_json::from_slice(&verb(&["ls", "--json"]).stdout).unwrap();
    assert_eq!(json[0]["folder"].as_str().map(Path::new), Some(&*home.warm()));
    assert_eq!((json[0]["name"].as_str(), json[0]["memory"].as_u64()), (Some("box"), Some(32 << 20)));
    let size = json[0]["size"].as_u64().unwrap();
    assert!(size > 16 << 10 && size < 32 << 20, "{size}");
    assert!(json[1]["problem"].is_string());
    // It is of no use to those who have no command for it.
    let out = home.minivmm(&["restore", home.warm().to_str().unwrap()]).output().unwrap();
    is(&out, 1, "");
    assert!(
        said(&out).contains("waits for a command") && said(&out).contains("run --warm"),
        "{}",
        said(&out)
    );
    is(&verb(&["rm", "box", "other"]), 0, "");
    is(&verb(&["ls"]), 0, "NAME  TIME  SIZE  MEM\n");
    let out = verb(&["rm", "box"]);
    is(&out, 1, "");
    assert!(
        said(&out).contains("no warm machine called box") && said(&out).contains("warm ls"),
        "{}",
        said(&out)
    );
    assert_eq!(verb(&["rm", "../box"]).status.code(), Some(2));
}

#[test]
fn what_many_runs_cannot_have_at_once_is_refused() {
    let home = Home::new();
    File::create(home.path("disk.raw")).unwrap().set_len(1 << 20).unwrap();
    for (option, why) in [
        (["--disk", "disk.raw"], "cannot all write to its disk vda; add `ro` or `snapshot`"),
        (["--net", "tap=tap9"], "cannot all have its address on the TAP tap9; use `--net user`"),
    ] {
        let out = home.warm_run(&option, &["say"]);
        is(&out, 125, "");
        assert!(said(&out).contains(why), "{}", said(&out));
    }
    for disk in ["disk.raw,ro", "disk.raw,snapshot"] {
        home.boots(&["--disk", disk, "--net", "user"], "");
        home.goes_on(&["--disk", disk, "--net", "user"]);
    }
    File::options().write(true).open(home.path("disk.raw")).unwrap().set_len(2 << 20).unwrap();
    home.boots(&["--disk", "disk.raw,snapshot", "--net", "user"], "has changed");
    let mut nowhere = home.run(&["--warm", "box"], &["say"]);
    let out = nowhere.env_remove("XDG_STATE_HOME").env_remove("HOME").output().unwrap();
    is(&out, 125, "");
    assert!(said(&out).contains("no place for warm machines"), "{}", said(&out));
}

#[test]
fn machine_of_a_run_with_a_terminal_or_files_is_a_template_as_well() {
    for options in [&[][..], &["-t"], &["--out", "left"], &["-t", "--out", "more"]] {
        let home = Home::new();
        // It is kept before the command begins, whatever becomes of that.
        let out = home.warm_run(&[options, &["--timeout", "5"]].concat(), &["say", "hello"]);
        assert!(said(&out).contains(SAVED), "{options:?}: {}", said(&out));
        let template = Template::from_saved(SavedMachine::open(home.warm()).unwrap()).unwrap();
        let command = GuestCommand::new(["say", "hello"]);
        let output = template.exec(&command, Duration::from_secs(300)).unwrap();
        assert_eq!((output.status, &*output.stdout), (0, &b"hello\n"[..]), "{options:?}");
    }
}
