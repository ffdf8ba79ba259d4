//! How `minivmm run` ends, whatever becomes of its command, of its machine and of whoever reads its output. The guest is the tiny one of
//! `native_warm.rs`; the lab has Debian's.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Far more than any of this takes.
const LIMIT: Duration = Duration::from_secs(120);

struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Home(tempfile::tempdir().unwrap());
        fs::write(home.0.path().join("kernel"), tiny_guest::COMMAND).unwrap();
        fs::create_dir_all(home.0.path().join("root/bin")).unwrap();
        fs::write(home.0.path().join("root/bin/sh"), "#!").unwrap();
        home
    }

    fn minivmm(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command.args(words).current_dir(self.0.path()).env("XDG_RUNTIME_DIR", self.0.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, options: &[&str], command: &[&str]) -> Command {
        let own = ["run", "--kernel", "kernel", "--root", "root", "--mem", "32"];
        self.minivmm(&[&own, options, &["--"], command].concat())
    }
}

/// A child that is killed if its test fails, and has its time.
struct Running(Option<Child>);

impl Running {
    fn start(command: &mut Command) -> Self {
        Running(Some(command.spawn().unwrap()))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    /// Its end, and what it said where nobody else reads that.
    #[track_caller]
    fn ends(mut self) -> Output {
        let deadline = Instant::now() + LIMIT;
        while self.child().try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[track_caller]
fn is(out: &Output, status: i32, sentences: &[&str]) {
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(status), "{said}");
    for sentence in sentences {
        assert!(said.contains(sentence), "{sentence}: {said}");
    }
}

#[test]
fn reader_that_stalls_does_not_hold_up_the_limit() {
    let home = Home::new();
    // Full before anything is said: neither the command's output nor a word of minivmm's own finds room.
    let (reader, mut writer) = UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    while writer.write(&[0; 4096]).is_ok() {}
    writer.set_nonblocking(false).unwrap();
    let [out, err] = [(); 2].map(|()| OwnedFd::from(writer.try_clone().unwrap()));
    let run = Running::start(home.run(&["-v", "--timeout", "2"], &["flood"]).stdout(out).stderr(err));
    is(&run.ends(), 124, &[]);
    drop(reader);
}

#[test]
fn output_that_the_host_does_not_take_ends_the_run_as_a_failure() {
    let home = Home::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let run = Running::start(home.run(&[], &["flood"]).stdout(full));
    let sentences = ["the command's standard output could not be written", "No space left on device"];
    is(&run.ends(), 125, &sentences);
}

#[test]
fn guest_that_takes_no_notice_of_a_reader_that_left_is_ended() {
    let home = Home::new();
    let mut run = Running::start(&mut home.run(&[], &["flood"]));
    let mut output = run.child().stdout.take().unwrap();
    output.read_exact(&mut [0; 5]).unwrap();
    drop(output);
    is(&run.ends(), 128 + libc::SIGPIPE, &["ended by signal 13"]);
}

#[test]
fn run_with_a_name_is_found_by_the_verbs() {
    let home = Home::new();
    let volume = ["--name", "job", "--volume", "root:/work:ro"];
    let mut run = Running::start(&mut home.run(&volume, &["flood", "it is"]));
    let (mut output, mut some) = (run.child().stdout.take().unwrap(), [0; 1000]);
    output.read_exact(&mut some).unwrap();
    let reader = thread::spawn(move || io::copy(&mut output, &mut io::sink()).unwrap());
    let lines = BufReader::new(run.child().stderr.take().unwrap()).lines();
    let listed = home.minivmm(&["ls"]).output().unwrap();
    assert!(
        String::from_utf8_lossy(&listed.stdout).lines().any(|line| line.starts_with("job ")),
        "{listed:?}"
    );
    let info = home.minivmm(&["info", "job"]).output().unwrap();
    let text = String::from_utf8_lossy(&info.stdout);
    let root = home.0.path().join("root");
    let share = format!("share0 = {} at /work, read-only", root.display());
    for (name, value) in
        [("command", "flood 'it is'"), ("kernel", "/kernel ("), ("share", &share), ("ram", "32")]
    {
        let has = |line: &str| line.starts_with(name) && line.contains(value);
        assert!(text.lines().any(has), "{name}: {text}");
    }
    assert!(!text.contains("systemd"), "a run mounts it itself: {text}");
    let second = Running::start(&mut home.run(&["--name", "job"], &["exit", "0"])).ends();
    is(&second, 125, &["a machine called job runs already"]);
    is(&home.minivmm(&["kill", "job"]).output().unwrap(), 0, &[]);
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(run.ends().status.code(), Some(122), "{said:?}");
    reader.join().unwrap();
    let why = "killed, with `minivmm kill` or `stop`, before its command had ended";
    assert!(said.iter().any(|line| line.contains(why)), "{said:?}");
    let listed = home.minivmm(&["ls", "--json"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&listed.stdout).contains("job"), "{listed:?}");
}

#[test]
fn command_that_is_cut_off_has_the_status_and_the_reason() {
    let home = Home::new();
    let run = |options: &[&str], command: &[&str]| Running::start(&mut home.run(options, command)).ends();
    is(&run(&["--timeout", "1"], &["hang"]), 124, &["the command had not ended after 1 s (--timeout)"]);
    let why = "the guest switched itself off before its command had ended";
    is(&run(&[], &["off"]), 122, &[why, "the console said last", "booted"]);
    let off = run(&["-v"], &["off"]);
    // The console was shown already.
    is(&off, 122, &[why, "booted"]);
    assert!(!String::from_utf8_lossy(&off.stderr).contains("the console said"), "{off:?}");
    let mute = run(&["--append", "mute=1", "--boot-timeout", "1"], &["hang"]);
    is(&mute, 123, &["did not come up within 1 s", "the console said last", "booted"]);
}

#[test]
fn a_signal_ends_it_all() {
    let home = Home::new();
    let mut run = Running::start(&mut home.run(&["-v"], &["hang"]));
    let mut lines = BufReader::new(run.child().stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("booted")));
    let pid = run.child().id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(run.ends().status.code(), Some(128 + 15));
    assert!(said.iter().any(|line| line.contains("ended by signal 15")), "{said:?}");
}
