//! Machines that move to another process while they run. The guest writes its memory all the time and looks at every page: none is lost
//! or old. Whatever fails before the target is told to run, the source runs on, with a sentence; and there are never two of them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "native_migrate/disks.rs"]
mod disks;
#[path = "support/host.rs"]
mod host;
#[path = "support/load.rs"]
mod load;
#[path = "support/switch.rs"]
mod switch;
#[path = "support/vmm.rs"]
mod vmm;
#[path = "support/without.rs"]
mod without;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use host::Host;
use switch::{Client, Switch, socket};
use vmm::{Heard, Launch, Owned, Vmm, count, wait};

/// One host, on which machines move.
struct Bench {
    host: Host,
}

/// A process that has taken a machine over, or waits for one.
struct Target {
    child: Owned,
    stdout: Heard,
    stderr: Heard,
    /// Ends with the last of what it says.
    listener: JoinHandle<()>,
}

impl Target {
    fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    #[track_caller]
    fn says(&self, word: &str) {
        let seen = self.stdout.wait(|heard| count(heard, word) > 0);
        assert!(seen, "no {word:?}: {} {}", self.stdout.text(), self.stderr.text());
    }

    /// As [`Target::end`], of one whose stream was hit in this frame. Where that is the first, no source has come, and it still waits.
    fn end_after(self, frame: usize) -> Option<i32> {
        if frame > 0 {
            return self.end().0;
        }
        let refused = self.stderr.wait(|heard| count(heard, "a connection was refused") > 0);
        assert!(refused, "{}", self.stderr.text());
        vmm::send_signal(self.pid(), libc::SIGTERM);
        let (status, said) = self.end();
        assert!(status == Some(143) && said.contains("no machine has come"), "{said}");
        Some(1)
    }

    fn end(mut self) -> (Option<i32>, String) {
        let (stdout, stderr) = (self.stdout.clone(), self.stderr.clone());
        drop(self.child.stdin.take());
        let status = wait(&mut self.child, || format!("{} {}", stdout.text(), stderr.text()));
        self.listener.join().unwrap();
        (status.code(), self.stderr.text())
    }

    /// Its guest has missed nothing.
    #[track_caller]
    fn ends_well(mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"!!").unwrap();
        // A machine that only moves is the same one.
        self.says(" renewed=0\n");
        assert!(!self.stdout.text().contains("failed"), "{}", self.stdout.text());
        assert_eq!(self.end().0, Some(0));
    }
}

impl Bench {
    fn new() -> Self {
        Bench { host: Host::new() }
    }

    fn folder(&self) -> &Path {
        self.host.0.path()
    }

    fn start(&self, words: &[&str]) -> Vmm {
        let kernel = self.folder().join("kernel");
        fs::write(&kernel, tiny_guest::WRITER).unwrap();
        let mut launch = Launch::kernel(&kernel, tempfile::tempdir().unwrap());
        launch.command.env("XDG_RUNTIME_DIR", self.folder());
        let launch = launch.args(&["--name", "vm0", "--mem", "16", "--append", "pages=512"]).args(words);
        let machine = launch.stdin(Stdio::piped()).spawn();
        machine.expect("round=4\n", 1);
        machine
    }

    /// A process that waits at `socket`.
    fn receive(&self, socket: &str, words: &[&str]) -> Target {
        let listen = format!("unix:{socket}");
        let mut command = self.host.verb(&[&["receive", "--listen", &listen], words].concat());
        let mut child = Owned::start(command.current_dir(self.folder()).stdin(Stdio::piped()));
        let (stdout, _) = Heard::listen(child.stdout.take().unwrap());
        let (stderr, listener) = Heard::listen(child.stderr.take().unwrap());
        assert!(stderr.wait(|heard| count(heard, "waiting for a machine") > 0), "{}", stderr.text());
        Target { child, stdout, stderr, listener }
    }

    /// What `minivmm migrate` ends with and says.
    fn migrate(&self, name: &str, to: &str, words: &[&str]) -> (Option<i32>, String, String) {
        // All of it may be left when the machine is paused: these tests are of other things.
        let words = [&["migrate", name, "--to", to, "--downtime", "10s"], words].concat();
        let output = self.host.verb(&words).current_dir(self.folder()).output().unwrap();
        let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code(), stdout, stderr)
    }

    fn state(&self, name: &str) -> String {
        self.host.json(&["info", name, "--json"])["state"].as_str().unwrap().to_owned()
    }

    /// It runs here, and its guest has missed nothing.
    #[track_caller]
    fn runs_on(&self, machine: &mut Vmm) {
        assert_eq!(self.state("vm0"), "running");
        let before = count(&machine.stdout.bytes(), "finished");
        machine.type_in(b"?+");
        machine.expect("finished", before + 1);
        assert!(!machine.stdout.text().contains("failed"), "{}", machine.stdout.text());
        // It may notice a moment later that the verb has gone.
        let begun = std::time::Instant::now();
        while self.host.http("vm0", "GET", "/v1/copy", "").0 != 204 {
            assert!(begun.elapsed() < vmm::LIMIT);
            thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

#[test]
fn a_machine_moves_on_and_on_and_its_guest_misses_nothing() {
    let bench = Bench::new();
    let source = bench.start(&[]);
    for round in 0..4 {
        let next = format!("vm{}", round + 1);
        let target = bench.receive(&next, &["--name", &next]);
        let (status, stdout, stderr) =
            bench.migrate(&format!("vm{round}"), &format!("unix:{next}"), &["--json"]);
        assert_eq!(status, Some(0), "{stderr} {}", target.stderr.text());
        let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert!(
            report["rounds"].as_u64().unwrap() > 1 && report["sent"].as_u64().unwrap() > 1 << 20,
            "{report}"
        );
        assert_eq!(bench.state(&next), "running");
        assert!(!bench.host.does(&["ls"]).contains(&format!("vm{round} ")));
        target.says("round=");
        if round == 3 {
            target.ends_well();
        } else {
            thread::spawn(move || drop(target.end()));
        }
    }
    let ended = source.end();
    assert!(ended.status.success() && !ended.stdout.contains("failed"), "{ended:?}");
}

#[test]
fn a_command_leads_to_the_target_which_goes_on_in_the_background() {
    let bench = Bench::new();
    let source = bench.start(&[]);
    let to = format!("{} receive --name vm1", env!("CARGO_BIN_EXE_minivmm"));
    let (status, stdout, stderr) = bench.migrate("vm0", &to, &[]);
    assert!(status == Some(0) && stdout.starts_with("migrated in "), "{stdout} {stderr}");
    assert!(source.end().status.success());
    let mut console = bench.host.verb(&["console", "vm1"]);
    let mut console = Owned::start(console.stdin(Stdio::piped()));
    let (said, _) = Heard::listen(console.stdout.take().unwrap());
    console.stdin.as_mut().unwrap().write_all(b"!").unwrap();
    assert!(said.wait(|heard| count(heard, "finished rounds=") > 0), "{}", said.text());
    assert!(!said.text().contains("failed"));
    console.stdin.as_mut().unwrap().write_all(b"!").unwrap();
    assert!(wait(&mut console, || said.text()).success());
}

#[test]
fn what_connects_and_is_no_source_is_refused_and_a_source_is_still_taken() {
    let bench = Bench::new();
    let source = bench.start(&[]);
    let socket = bench.folder().join("target");
    let connect = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    let silent = bench.receive("target", &["--timeout", "1s"]);
    let waits = connect(b"\x01");
    assert!(silent.stderr.wait(|heard| count(heard, "does not say what it wants") == 1));
    drop(waits);
    bench.host.fails(
        &["receive", "--listen", &format!("unix:{}", socket.display())],
        1,
        "another process waits there",
    );
    vmm::send_signal(silent.pid(), libc::SIGINT);
    let (status, said) = silent.end();
    assert!(status == Some(130) && said.contains("no machine has come"), "{said}");
    assert!(!socket.exists());
    // What SIGKILL leaves is in nobody's way.
    drop(UnixListener::bind(&socket).unwrap());
    let target = bench.receive("target", &["--name", "vm1"]);
    for (number, bytes) in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[1; 100]].into_iter().enumerate() {
        drop(connect(bytes));
        assert!(target.stderr.wait(|heard| count(heard, "a connection was refused") == number + 1));
    }
    let (status, _, stderr) = bench.migrate("vm0", "unix:target", &[]);
    assert_eq!(status, Some(0), "{stderr} {}", target.stderr.text());
    assert!(!socket.exists());
    target.ends_well();
    assert!(source.end().status.success());
}

#[test]
fn what_does_not_fit_is_refused_before_the_memory_and_the_source_runs_on() {
    let bench = Bench::new();
    let image = bench.folder().join("image");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    let share = bench.folder().join("share");
    fs::create_dir(&share).unwrap();
    let words = [format!("{},ro", image.display()), format!("{},ro", share.display())];
    let mut source = bench.start(&["--disk", &words[0], "--share", &words[1]]);
    let mut refused = |to: &str, words: &[&str]| {
        let (status, _, stderr) = bench.migrate("vm0", to, &[]);
        assert_eq!(status, Some(1), "{stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
        bench.runs_on(&mut source);
    };
    for (to, word) in [("tcp:192.0.2.1:4444", "ssh"), ("unix:", "give unix:PATH"), ("", "give a command")] {
        let (status, _, stderr) = bench.migrate("vm0", to, &[]);
        assert!(status == Some(2) && stderr.contains(word), "{to}: {stderr}");
    }
    let receive = format!("{} receive", env!("CARGO_BIN_EXE_minivmm"));
    refused(&receive, &["a machine called vm0 runs there already", "it runs on here"]);
    refused("exit 3", &["runs on here"]);
    refused(
        "unix:/none/there",
        &["nobody waits at unix:/none/there", "minivmm receive --listen", "runs on here"],
    );
    refused("echo this is no migration; cat >/dev/null", &["runs on here"]);
    fs::rename(&image, image.with_extension("gone")).unwrap();
    refused(&format!("{receive} --name vm1"), &["image", "same path", "runs on here"]);
    fs::rename(image.with_extension("gone"), &image).unwrap();
    fs::rename(&share, share.with_extension("gone")).unwrap();
    refused(&format!("{receive} --name vm1"), &["share", "same path", "runs on here"]);
    fs::write(&share, "").unwrap();
    refused(&format!("{receive} --name vm1"), &["it is no folder", "same path", "runs on here"]);
    fs::remove_file(&share).unwrap();
    fs::rename(share.with_extension("gone"), &share).unwrap();
    // Another version, another processor, more memory than it says.
    for (from, to, word) in [
        ("\"protocol\":2", "\"protocol\":3", "version 3"),
        ("\"vendor\":\"", "\"vendor\":\"Another", "Another"),
        ("\"memory\":16777216", "\"memory\":16777217", "16777217"),
    ] {
        let target = bench.receive("target", &["--name", "vm1"]);
        let proxy = Proxy::start(&bench, "proxy", "target", move |_, kind, body| {
            let text = String::from_utf8_lossy(body).replace(from, to);
            if kind == 1 { Pass::Instead(text.into_bytes()) } else { Pass::On }
        });
        refused("unix:proxy", &[word, "runs on here"]);
        proxy.end();
        let (status, said) = target.end();
        assert!(status == Some(1) && said.contains(word), "{said}");
    }
    source.type_in(b"!!");
    assert!(source.end().status.success());
}

/// What becomes of a frame of the source.
enum Pass {
    On,
    Instead(Vec<u8>),
    /// So many of its bytes, and no more.
    Cut(usize),
    /// With a bit of this byte wrong.
    Flip(usize),
    /// Nothing comes back behind it.
    Deaf,
}

/// Stands between source and target.
struct Proxy {
    thread: JoinHandle<()>,
    sent: Arc<Mutex<Vec<u32>>>,
}

fn frame(from: &mut impl Read) -> Option<(u32, Vec<u8>, Vec<u8>)> {
    let mut head = [0; 16];
    from.read_exact(&mut head).ok()?;
    let mut body = vec![0; u64::from_le_bytes(head[8..].try_into().unwrap()).try_into().unwrap()];
    from.read_exact(&mut body).ok()?;
    let kind = u32::from_le_bytes(head[..4].try_into().unwrap());
    let bytes = [head.as_slice(), &body].concat();
    Some((kind, body, bytes))
}

fn framed(kind: u32, body: &[u8]) -> Vec<u8> {
    let (kind, len) = (kind.to_le_bytes(), (body.len() as u64).to_le_bytes());
    let crc = crc32fast::hash(&[&kind, &len[..], body].concat()).to_le_bytes();
    [&kind, &crc[..], &len, body].concat()
}

impl Proxy {
    fn start(
        bench: &Bench,
        at: &str,
        to: &str,
        mut pass: impl FnMut(usize, u32, &[u8]) -> Pass + Send + 'static,
    ) -> Self {
        let [at, to] = [at, to].map(|name| bench.folder().join(name));
        let listener = UnixListener::bind(&at).unwrap();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let kinds = sent.clone();
        let thread = thread::spawn(move || {
            let (source, _) = listener.accept().unwrap();
            fs::remove_file(&at).unwrap();
            let target = UnixStream::connect(&to).unwrap();
            let [mut back_from, mut back_to] = [&target, &source].map(|stream| stream.try_clone().unwrap());
            let back = thread::spawn(move || {
                let _ = std::io::copy(&mut back_from, &mut back_to);
                let _ = back_to.shutdown(Shutdown::Both);
            });
            for number in 0.. {
                let Some((kind, body, mut bytes)) = frame(&mut &source) else { break };
                kinds.lock().unwrap().push(kind);
                let cut = match pass(number, kind, &body) {
                    Pass::On => false,
                    Pass::Instead(body) => {
                        bytes = framed(kind, &body);
                        false
                    }
                    Pass::Cut(len) => {
                        bytes.truncate(len);
                        true
                    }
                    Pass::Flip(at) => {
                        let at = at % bytes.len();
                        bytes[at] ^= 4;
                        false
                    }
                    Pass::Deaf => {
                        source.shutdown(Shutdown::Both).unwrap();
                        false
                    }
                };
                if (&target).write_all(&bytes).is_err() || cut {
                    break;
                }
            }
            let _ = target.shutdown(Shutdown::Write);
            back.join().unwrap();
        });
        Proxy { thread, sent }
    }

    /// The kinds of the frames that came.
    fn end(self) -> Vec<u32> {
        self.thread.join().unwrap();
        let sent = self.sent.lock().unwrap();
        sent.clone()
    }
}

/// A number of a frame, and what is done to it.
type Fault = (usize, fn(usize) -> Pass);

#[test]
fn a_stream_that_is_cut_or_damaged_anywhere_leaves_the_machine_where_it_was() {
    let bench = Bench::new();
    let mut source = bench.start(&[]);
    // One without a fault, but for the end, says how many frames there are: of all but the last, `Go`, each may be hit.
    let mut fails = |fault: Fault| {
        let target = bench.receive("target", &["--name", "vm1"]);
        let (at, hit) = fault;
        let is_last = |body: &[u8]| body.starts_with(b"{\"complete\"");
        let proxy = Proxy::start(&bench, "proxy", "target", move |number, _, body| {
            // The number of frames differs by what the guest has written: what comes last is hit at the latest.
            if number == at || is_last(body) { hit(number) } else { Pass::On }
        });
        let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &[]);
        assert!(status == Some(1) && stderr.contains("runs on here"), "{at}: {stderr}");
        let frames = proxy.end().len();
        assert_eq!(target.end_after(at), Some(1), "{at}");
        assert!(!bench.host.does(&["ls"]).contains("vm1"));
        bench.runs_on(&mut source);
        frames
    };
    let cuts: [fn(usize) -> Pass; 3] =
        [|_| Pass::Cut(0), |_| Pass::Cut(9), |number| Pass::Flip(number * 7919)];
    let frames = fails((usize::MAX, cuts[0]));
    assert!(frames > 20, "{frames}");
    for hit in cuts {
        for tenth in 0..=10 {
            fails((frames * tenth / 10, hit));
        }
    }
    for number in 0..3 {
        fails((number, |_| Pass::Flip(0)));
    }
    source.type_in(b"!!");
    assert!(source.end().status.success());
}

/// A step of a migration: whether a frame, by its kind and body, begins it.
type Step = fn(u32, &[u8]) -> bool;

/// Those before the target is told to run.
const STEPS: [Step; 5] = [
    |_, body| body.starts_with(b"{\"hello\""),
    |_, body| body.starts_with(b"{\"machine\""),
    |kind, _| kind == 2,
    |_, body| body.starts_with(b"{\"section\""),
    |_, body| body.starts_with(b"{\"complete\""),
];

fn is_go(_: u32, body: &[u8]) -> bool {
    body == b"\"go\""
}

impl Bench {
    /// A proxy that sends `signal` to a process when a step comes, before it passes on.
    fn signals_at(&self, step: Step, pid: i32, signal: i32) -> Proxy {
        let mut sent = false;
        Proxy::start(self, "proxy", "target", move |_, kind, body| {
            if !sent && step(kind, body) {
                vmm::send_signal(pid, signal);
                sent = true;
            }
            Pass::On
        })
    }
}

#[test]
fn a_target_that_dies_leaves_the_machine_where_it_was() {
    let bench = Bench::new();
    let mut source = bench.start(&[]);
    for step in STEPS {
        let target = bench.receive("target", &["--name", "vm1"]);
        let proxy = bench.signals_at(step, target.pid(), libc::SIGKILL);
        let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &[]);
        assert!(status == Some(1) && stderr.contains("runs on here"), "{stderr}");
        // Nobody has cancelled it.
        assert!(stderr.contains("broke off: the other end has closed the stream"), "{stderr}");
        proxy.end();
        target.end();
        bench.runs_on(&mut source);
    }
    // Nobody can know that it has not begun to run.
    let target = bench.receive("target", &["--name", "vm1", "--timeout", "1s"]);
    let proxy = bench.signals_at(is_go, target.pid(), libc::SIGKILL);
    let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &[]);
    assert!(status == Some(1) && stderr.contains("paused here"), "{stderr}");
    proxy.end();
    target.end();
    assert_eq!(bench.state("vm0"), "paused");
    bench.host.does(&["resume", "vm0"]);
    bench.runs_on(&mut source);
    source.type_in(b"!!");
    assert!(source.end().status.success());
}

#[test]
fn a_silent_target_is_given_up_and_the_machine_runs_on() {
    let bench = Bench::new();
    let mut source = bench.start(&[]);
    for step in STEPS {
        let target = bench.receive("target", &["--name", "vm1"]);
        let pid = target.pid();
        let proxy = bench.signals_at(step, pid, libc::SIGSTOP);
        let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &["--timeout", "1s"]);
        assert!(status == Some(1) && stderr.contains("runs on here"), "{stderr}");
        assert!(stderr.contains("nothing for 1s"), "{stderr}");
        bench.runs_on(&mut source);
        vmm::send_signal(pid, libc::SIGCONT);
        proxy.end();
        assert_eq!(target.end().0, Some(1));
        assert!(!bench.host.does(&["ls"]).contains("vm1"));
    }
    source.type_in(b"!!");
    assert!(source.end().status.success());
}

impl Bench {
    /// `minivmm migrate`, amid its copy.
    fn migrating(&self, to: &str) -> Owned {
        let words = ["migrate", "vm0", "--to", to, "--bandwidth", "64K"];
        let verb = Owned::start(self.host.verb(&words).current_dir(self.folder()));
        let begun = std::time::Instant::now();
        let sent = |(status, body): (u16, String)| {
            status == 200
                && serde_json::from_str::<serde_json::Value>(&body).unwrap()["sent"].as_u64() > Some(0)
        };
        while !sent(self.host.http("vm0", "GET", "/v1/copy", "")) {
            assert!(begun.elapsed() < vmm::LIMIT);
            thread::sleep(std::time::Duration::from_millis(1));
        }
        verb
    }
}

/// Whether a process has SIGINT blocked, to be told of it.
fn blocks_interrupts(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
    u64::from_str_radix(blocked.trim(), 16).unwrap() >> (libc::SIGINT - 1) & 1 == 1
}

fn ended(mut verb: Owned) -> (Option<i32>, String) {
    let (stderr, reader) = Heard::listen(verb.stderr.take().unwrap());
    let status = wait(&mut verb, || stderr.text());
    reader.join().unwrap();
    (status.code(), stderr.text())
}

#[test]
fn a_migration_that_is_interrupted_or_cancelled_says_so_and_the_machine_runs_on() {
    let bench = Bench::new();
    let mut source = bench.start(&[]);
    let interrupt = |verb: Owned| {
        vmm::send_signal(verb.id().try_into().unwrap(), libc::SIGINT);
        let (status, said) = ended(verb);
        assert!(
            status == Some(130) && said.contains("interrupted; vm0 has not migrated, and is here"),
            "{said}"
        );
    };
    let target = bench.receive("target", &["--name", "vm1"]);
    interrupt(bench.migrating("unix:target"));
    assert_eq!(target.end().0, Some(1));
    bench.runs_on(&mut source);
    // Before anybody has answered.
    let begun = bench.folder().join("begun");
    let words = ["migrate", "vm0", "--to", "touch begun; cat >/dev/null"];
    let verb = Owned::start(bench.host.verb(&words).current_dir(bench.folder()));
    let began = std::time::Instant::now();
    // Its command runs, and it waits for signals.
    while !(begun.exists() && blocks_interrupts(verb.id())) {
        assert!(began.elapsed() < vmm::LIMIT);
        thread::sleep(std::time::Duration::from_millis(1));
    }
    interrupt(verb);
    bench.runs_on(&mut source);
    let target = bench.receive("target", &["--name", "vm1"]);
    let verb = bench.migrating("unix:target");
    assert_eq!(bench.host.http("vm0", "DELETE", "/v1/copy", "").0, 204);
    let (status, said) = ended(verb);
    assert!(status == Some(1) && said.contains("the copy was cancelled; it runs on here"), "{said}");
    assert_eq!(target.end().0, Some(1));
    bench.runs_on(&mut source);
    source.type_in(b"!!");
    assert!(source.end().status.success());
}

#[test]
fn a_leave_to_run_that_comes_too_late_is_ignored() {
    let bench = Bench::new();
    let mut source = bench.start(&[]);
    let target = bench.receive("target", &["--name", "vm1", "--timeout", "4s"]);
    let pid = target.pid();
    let proxy = bench.signals_at(is_go, pid, libc::SIGSTOP);
    let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &["--timeout", "4s"]);
    assert!(status == Some(1) && stderr.contains("paused here"), "{stderr}");
    assert_eq!(bench.state("vm0"), "paused");
    // Somebody has seen that it does not run there.
    bench.host.does(&["resume", "vm0"]);
    bench.runs_on(&mut source);
    vmm::send_signal(pid, libc::SIGCONT);
    let (status, said) = target.end();
    assert!(status == Some(1) && said.contains("is good no more"), "{said}");
    proxy.end();
    bench.runs_on(&mut source);
    source.type_in(b"!!");
    assert!(source.end().status.success());
}

#[test]
fn a_silent_source_is_given_up_and_runs_on_when_it_comes_back() {
    let bench = Bench::new();
    let mut source = bench.start(&[]);
    for step in STEPS {
        let target = bench.receive("target", &["--name", "vm1", "--timeout", "1s"]);
        let stopped = source.pid();
        let proxy = bench.signals_at(step, stopped, libc::SIGSTOP);
        let (status, stderr) = thread::scope(|scope| {
            let migration = scope.spawn(|| bench.migrate("vm0", "unix:proxy", &[]));
            let (status, said) = target.end();
            // First: the migration would be waited for without end if this fails.
            vmm::send_signal(stopped, libc::SIGCONT);
            assert!(status == Some(1) && (said.contains("has said nothing for 1s")), "{said}");
            let (status, _, stderr) = migration.join().unwrap();
            (status, stderr)
        });
        assert!(status == Some(1) && stderr.contains("runs on here"), "{stderr}");
        proxy.end();
        bench.runs_on(&mut source);
    }
    // One that sends little at a time is not silent, and says so in between.
    let target = bench.receive("target", &["--name", "vm1", "--timeout", "1s"]);
    let seen = Arc::new(AtomicBool::new(false));
    let proxy = Proxy::start(&bench, "proxy", "target", {
        let seen = seen.clone();
        move |_, kind, body| {
            seen.fetch_or(kind == 1 && body == b"\"alive\"", Ordering::Relaxed);
            Pass::On
        }
    });
    let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &["--bandwidth", "256K"]);
    assert_eq!(status, Some(0), "{stderr}");
    assert!(seen.load(Ordering::Relaxed), "it is silent between two pieces");
    proxy.end();
    target.ends_well();
    assert!(source.end().status.success());
}

#[test]
fn a_source_that_dies_when_it_has_given_leave_leaves_the_machine_to_the_target() {
    let bench = Bench::new();
    let source = bench.start(&[]);
    let target = bench.receive("target", &["--name", "vm1", "--pidfile", "pid"]);
    let proxy = bench.signals_at(is_go, source.pid(), libc::SIGKILL);
    assert_ne!(bench.migrate("vm0", "unix:proxy", &[]).0, Some(0));
    target.says("round=");
    assert_eq!(bench.state("vm1"), "running");
    proxy.end();
    target.ends_well();
    source.end();
}

#[test]
fn a_target_whose_parent_dies_at_its_leave_to_run_runs_on() {
    let bench = Bench::new();
    let source = bench.start(&[]);
    let target = bench.receive("target", &["--name", "vm1", "-d", "--pidfile", "pid"]);
    // The process that was called has the machine in a child.
    let proxy = bench.signals_at(is_go, target.pid(), libc::SIGKILL);
    let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &[]);
    assert_eq!(status, Some(0), "{stderr}");
    proxy.end();
    target.end();
    assert!(source.end().status.success());
    assert_eq!(bench.state("vm1"), "running");
    let pid = fs::read_to_string(bench.folder().join("pid")).unwrap();
    bench.host.does(&["kill", "vm1"]);
    assert!(!bench.folder().join("pid").exists(), "{pid}");
}

#[test]
fn a_machine_that_leaves_is_not_resumed_by_anybody() {
    let bench = Bench::new();
    let source = bench.start(&[]);
    let target = bench.receive("target", &["--name", "vm1"]);
    let (folder, seen) = (bench.folder().to_owned(), Arc::new(Mutex::new(Vec::new())));
    let states = seen.clone();
    let proxy = Proxy::start(&bench, "proxy", "target", move |_, kind, body| {
        // It rests, has said all, and may run there at any moment.
        if STEPS[4](kind, body) {
            let verb = |words: &[&str]| {
                let mut verb = std::process::Command::new(env!("CARGO_BIN_EXE_minivmm"));
                let output = verb.args(words).env("XDG_RUNTIME_DIR", &folder).output().unwrap();
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            verb(&["resume", "vm0"]);
            states.lock().unwrap().push(verb(&["info", "vm0", "--json"]));
        }
        Pass::On
    });
    let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &[]);
    assert_eq!(status, Some(0), "{stderr} {}", target.stderr.text());
    proxy.end();
    let seen = seen.lock().unwrap();
    assert!(seen.len() == 1 && seen[0].contains("\"state\": \"paused\""), "{seen:?}");
    target.ends_well();
    assert!(source.end().status.success());
}

impl Bench {
    /// A proxy that has the machine at the source killed when a step comes, before it passes on.
    fn killed_at(&self, step: Step) -> Proxy {
        let (folder, mut killed) = (self.folder().to_owned(), false);
        Proxy::start(self, "proxy", "target", move |_, kind, body| {
            if !killed && step(kind, body) {
                killed = true;
                let mut verb = std::process::Command::new(env!("CARGO_BIN_EXE_minivmm"));
                let ended = verb.args(["kill", "vm0"]).env("XDG_RUNTIME_DIR", &folder).output().unwrap();
                assert!(ended.status.success(), "{ended:?}");
            }
            Pass::On
        })
    }
}

#[test]
fn a_machine_that_is_killed_while_it_leaves_runs_nowhere_before_its_leave_and_there_behind_it() {
    let bench = Bench::new();
    for step in STEPS {
        let source = bench.start(&[]);
        let target = bench.receive("target", &["--name", "vm1"]);
        let proxy = bench.killed_at(step);
        let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &[]);
        assert!(status == Some(1) && !stderr.contains("runs on here"), "{stderr}");
        proxy.end();
        assert_eq!(target.end().0, Some(1));
        source.end();
    }
    let source = bench.start(&[]);
    let target = bench.receive("target", &["--name", "vm1"]);
    let proxy = bench.killed_at(is_go);
    let (status, stdout, stderr) = bench.migrate("vm0", "unix:proxy", &[]);
    assert!(status == Some(0) && stdout.starts_with("migrated in "), "{stdout} {stderr}");
    proxy.end();
    source.end();
    assert_eq!(bench.state("vm1"), "running");
    target.ends_well();
}

#[test]
fn a_stream_that_breaks_when_the_target_is_told_to_run_leaves_one_machine() {
    let bench = Bench::new();
    let source = bench.start(&[]);
    let target = bench.receive("target", &["--name", "vm1", "--timeout", "2s"]);
    let proxy =
        Proxy::start(
            &bench,
            "proxy",
            "target",
            |_, _, body| {
                if body == b"\"go\"" { Pass::Deaf } else { Pass::On }
            },
        );
    let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &[]);
    assert!(
        status == Some(1) && stderr.contains("paused here") && stderr.contains("`minivmm resume`"),
        "{stderr}"
    );
    proxy.end();
    target.says("round=");
    assert_eq!((bench.state("vm0"), bench.state("vm1")), ("paused".into(), "running".into()));
    target.ends_well();
    // It is for somebody who has looked.
    bench.host.does(&["resume", "vm0"]);
    assert_eq!(bench.state("vm0"), "running");
    let mut source = source;
    source.type_in(b"!!");
    assert!(source.end().status.success());
}

impl Bench {
    /// A machine whose guest keeps this disk busy, and judges all that it reads.
    fn start_load(&self, disk: &str) -> Vmm {
        let kernel = self.folder().join("load");
        fs::write(&kernel, tiny_guest::LOAD).unwrap();
        let mut launch = Launch::kernel(&kernel, tempfile::tempdir().unwrap());
        launch.command.env("XDG_RUNTIME_DIR", self.folder()).current_dir(self.folder());
        let machine =
            launch.args(&["--name", "vm0", "--mem", "16", "--disk", disk]).stdin(Stdio::piped()).spawn();
        machine.expect("ready\n", 1);
        machine
    }

    /// Another machine cannot have the image.
    #[track_caller]
    fn is_taken(&self, disk: &str) {
        let kernel = self.folder().join("load");
        let mut command = self.host.verb(&["--mem", "16", "--net", "none", "--disk", disk, "--kernel"]);
        let output = command.arg(&kernel).current_dir(self.folder()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains("in use"), "{stderr}");
    }
}

#[test]
fn a_machine_moves_with_the_disks_that_it_writes_to() {
    let bench = Bench::new();
    let file = |name: &str| bench.folder().join(name).display().to_string();
    fs::File::create(file("vda.raw")).unwrap().set_len(8 << 20).unwrap();
    fs::File::create(file("base.raw")).unwrap().set_len(8 << 20).unwrap();
    bench.host.does(&["disk", "create", &file("vda.qcow2"), "8M"]);
    // Paths as the machine has them: they count from its folder.
    for disk in ["vda.raw", "vda.qcow2", "base.raw,overlay=top.qcow2"] {
        let source = bench.start_load(disk);
        let target = bench.receive("target", &["--name", "vm1"]);
        let (status, _, stderr) = bench.migrate("vm0", "unix:target", &[]);
        assert_eq!(status, Some(0), "{disk}: {stderr} {}", target.stderr.text());
        assert!(source.end().status.success());
        bench.is_taken(disk);
        let mut target = target;
        target.child.stdin.as_mut().unwrap().write_all(b"!").unwrap();
        target.says(" kicks=");
        target.child.stdin.as_mut().unwrap().write_all(b"!").unwrap();
        assert_eq!(target.end().0, Some(0), "{disk}");
    }
    for image in ["vda.qcow2", "top.qcow2"] {
        bench.host.does(&["disk", "check", &file(image)]);
    }
}

#[test]
fn a_machine_that_runs_on_has_its_disks_again_before() {
    let bench = Bench::new();
    let image = bench.folder().join("vda.qcow2");
    bench.host.does(&["disk", "create", image.to_str().unwrap(), "8M"]);
    let mut source = bench.start_load("vda.qcow2");
    let is_complete = STEPS[4];
    let fails = |target: Target, proxy: Proxy, word: &str| {
        let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &[]);
        assert!(status == Some(1) && stderr.contains("runs on here") && stderr.contains(word), "{stderr}");
        proxy.end();
        assert_ne!(target.end().0, Some(0));
        assert_eq!(bench.state("vm0"), "running");
        bench.is_taken("vda.qcow2");
    };
    // There is no target, and what to do is said.
    for (to, said) in [
        ("exit 3", "ended with status 3 before a target answered"),
        ("cat", "is not `minivmm receive`"),
        ("unix:nobody", "start `minivmm receive --listen unix:nobody` first"),
    ] {
        let (status, _, stderr) = bench.migrate("vm0", to, &[]);
        assert!(
            status == Some(1) && stderr.contains(said) && stderr.contains("runs on here"),
            "{to}: {stderr}"
        );
    }
    // The target never hears of it, dies with it, or finds another file.
    let target = || bench.receive("target", &["--name", "vm1"]);
    let cut = Proxy::start(&bench, "proxy", "target", move |_, kind, body| {
        if is_complete(kind, body) { Pass::Cut(0) } else { Pass::On }
    });
    fails(target(), cut, "broke off");
    let dies = target();
    let proxy = bench.signals_at(is_complete, dies.pid(), libc::SIGKILL);
    fails(dies, proxy, "broke off");
    let changed = Proxy::start(&bench, "proxy", "target", move |_, kind, body| {
        if !is_complete(kind, body) {
            return Pass::On;
        }
        Pass::Instead(String::from_utf8_lossy(body).replace("\"bytes\":", "\"bytes\":1").into_bytes())
    });
    fails(target(), changed, "is another file there");
    // It has the disk, and goes before it has leave to run.
    let refused = Proxy::start(&bench, "proxy", "target", move |_, kind, body| {
        if is_go(kind, body) { Pass::Instead(b"\"accepted\"".to_vec()) } else { Pass::On }
    });
    fails(target(), refused, "could not be started there");
    // Nobody can know whether it runs there: it does not, and somebody has seen that.
    let dies = bench.receive("target", &["--name", "vm1", "--timeout", "1s"]);
    let proxy = bench.signals_at(is_go, dies.pid(), libc::SIGKILL);
    let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &[]);
    assert!(status == Some(1) && stderr.contains("paused here"), "{stderr}");
    proxy.end();
    dies.end();
    bench.host.does(&["resume", "vm0"]);
    bench.is_taken("vda.qcow2");
    source.type_in(b"!");
    source.expect(" kicks=", 1);
    source.type_in(b"!");
    assert!(source.end().status.success());
    bench.host.does(&["disk", "check", image.to_str().unwrap()]);
}

#[test]
fn a_machine_that_may_run_elsewhere_does_not_go_on_with_disks_that_it_has_there() {
    let bench = Bench::new();
    fs::File::create(bench.folder().join("vda.raw")).unwrap().set_len(8 << 20).unwrap();
    let source = bench.start_load("vda.raw");
    let mut target = bench.receive("target", &["--name", "vm1", "--timeout", "2s"]);
    let proxy =
        Proxy::start(
            &bench,
            "proxy",
            "target",
            |_, kind, body| {
                if is_go(kind, body) { Pass::Deaf } else { Pass::On }
            },
        );
    let (status, _, stderr) = bench.migrate("vm0", "unix:proxy", &[]);
    assert!(status == Some(1) && stderr.contains("paused here"), "{stderr}");
    proxy.end();
    bench.host.fails(&["resume", "vm0"], 1, "another process has it locked");
    bench.host.fails(&["migrate", "vm0", "--to", "exit 3"], 1, "may run elsewhere");
    target.child.stdin.as_mut().unwrap().write_all(b"!").unwrap();
    target.says(" kicks=");
    target.child.stdin.as_mut().unwrap().write_all(b"!").unwrap();
    assert_eq!(target.end().0, Some(0));
    bench.host.fails(&["resume", "vm0"], 1, "another process has written to it");
    assert_eq!(bench.state("vm0"), "paused");
    bench.host.does(&["kill", "vm0"]);
    source.end();
}

#[test]
fn the_network_of_the_target_hears_where_the_guest_is() {
    let (bench, there) = (Bench::new(), Host::new());
    let kernel = bench.folder().join("frames");
    fs::write(&kernel, tiny_guest::FRAMES).unwrap();
    let mut launch = Launch::kernel(&kernel, tempfile::tempdir().unwrap());
    launch.command.env("XDG_RUNTIME_DIR", bench.folder());
    let source =
        launch.args(&["--name", "vm0", "--mem", "16", "--net", "switch=lab"]).stdin(Stdio::piped()).spawn();
    source.expect("ready\n", 1);
    // Another host: it has a switch of the same name.
    let _lab = Switch::start(&there, &["lab"]);
    let mut client = Client::attach(&socket(&there, "lab"), 9, "").unwrap();
    let listen = format!("unix:{}", bench.folder().join("target").display());
    let mut child = Owned::start(there.verb(&["receive", "--listen", &listen]).stdin(Stdio::piped()));
    let (stdout, _) = Heard::listen(child.stdout.take().unwrap());
    let (stderr, listener) = Heard::listen(child.stderr.take().unwrap());
    assert!(stderr.wait(|heard| count(heard, "waiting for a machine") > 0), "{}", stderr.text());
    let mut target = Target { child, stdout, stderr, listener };
    let (status, _, said) = bench.migrate("vm0", "unix:target", &[]);
    assert_eq!(status, Some(0), "{said} {}", target.stderr.text());
    assert!(source.end().status.success());
    let mac = there.json(&["switch", "show", "lab", "--json"])["ports"]
        .as_array()
        .unwrap()
        .iter()
        .find(|port| port["name"] == "vm0.net0")
        .unwrap()["mac"]
        .as_str()
        .unwrap()
        .to_owned();
    for _ in 0..5 {
        let frame = client.next().unwrap();
        let from: Vec<_> = frame[6..12].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((frame.len(), from.join(":")), (60, mac.clone()), "{frame:x?}");
        assert!(frame.starts_with(&[255; 6]) && frame[12..14] == [0x80, 0x35]);
    }
    target.child.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    assert_eq!(target.end().0, Some(0));
}
