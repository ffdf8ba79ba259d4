//! Machines in the background and under a service manager: the caller's output, the files that are left, and
//! notifications.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/vmm.rs"]
mod vmm;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tiny_guest::Guest;
use vmm::{LIMIT, Launch, Owned, send_signal};

/// An interface that is not there, with an address that is no other one each time.
const NO_TAP: &str = "minivmm-none,mac=02:00:00:00:00:01";

/// A folder with a guest in it, which is also where its machines are found and what the command is run in.
struct Lab(TempDir);

impl Lab {
    fn new(guest: Guest) -> Self {
        // Orphans are reparented to this process, so it gets their exit status, and their pids are not reused
        // before.
        adopt_orphans();
        let folder = tempfile::tempdir().unwrap();
        let kernel = guest.write(folder.path()).unwrap();
        fs::rename(kernel, folder.path().join("guest")).unwrap();
        Lab(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command.args(words).current_dir(self.0.path()).env("XDG_RUNTIME_DIR", self.0.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The command with these words, and with the guest and little memory where they say nothing else.
    fn machine(&self, words: &[&str]) -> Command {
        let mut command = self.command(words);
        for (flag, value) in [("--kernel", "guest"), ("--mem", "4")] {
            if !words.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command
    }

    /// A machine in the background, whose log is the file `log`.
    #[track_caller]
    fn start(&self, words: &[&str]) -> Daemon {
        Daemon::from(&ends(&mut self.machine(&[&["-d", "--log", "log"], words].concat())))
    }

    /// The output of a verb that succeeds.
    #[track_caller]
    fn does(&self, words: &[&str]) -> String {
        let output = ends(&mut self.command(words));
        assert_eq!(output.status.code(), Some(0), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Fails after the command was understood, with this on stderr, nothing on stdout and nothing left.
    #[track_caller]
    fn fails(&self, words: &[&str], status: i32) -> String {
        let before = self.files();
        let output = ends(&mut self.machine(words));
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(status), &b""[..]), "{output:?}");
        assert_eq!(self.files(), before);
        String::from_utf8(output.stderr).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let folders = [self.0.path().to_owned(), self.path("minivmm")];
        let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
        let mut names: Vec<_> =
            entries.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        // The folder of the control sockets stays.
        names.retain(|name| name != "minivmm");
        names.sort();
        names
    }

    /// The guest's console, from its last output on.
    fn console(&self, name: &str) -> Console {
        let mut stream = UnixStream::connect(self.path(&format!("minivmm/{name}.sock"))).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let head =
            "GET /v1/console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: minivmm-console\r\n\r\n".as_bytes();
        stream.write_all(head).unwrap();
        Console { stream, said: String::new() }
    }
}

struct Console {
    stream: UnixStream,
    said: String,
}

impl Console {
    #[track_caller]
    fn expect(&mut self, word: &str, times: usize) {
        let mut bytes = [0; 4096];
        let mut seen = self.said.matches(word).count();
        while seen < times {
            let n = self.stream.read(&mut bytes).unwrap_or_else(|error| panic!("{error}: {:?}", self.said));
            assert_ne!(n, 0, "no {word:?} (times {times}) came: {}", self.said);
            // The earlier check could only match its beginning.
            let at = self.said.len().saturating_sub(word.len() - 1);
            self.said += std::str::from_utf8(&bytes[..n]).unwrap();
            seen += self.said[at..].matches(word).count();
        }
    }

    fn type_in(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }
}

/// Runs a command until both its streams are closed by all their owners.
#[track_caller]
fn ends(command: &mut Command) -> Output {
    let mut child = Owned::start(command);
    let (stdout, first) = vmm::Heard::listen(child.stdout.take().unwrap());
    let (stderr, second) = vmm::Heard::listen(child.stderr.take().unwrap());
    let status = vmm::wait(&mut child, || format!("{}{}", stdout.text(), stderr.text()));
    until("its streams are closed", || first.is_finished() && second.is_finished());
    Output { status, stdout: stdout.bytes(), stderr: stderr.bytes() }
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A process in the background. It is killed when its test is done with it.
struct Daemon {
    pid: i32,
    ended: bool,
}

impl Daemon {
    /// The one that a command has started which ended well.
    #[track_caller]
    fn from(output: &Output) -> Self {
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let pid = text.strip_suffix('\n').unwrap().parse().unwrap();
        Daemon { pid, ended: false }
    }

    fn of(&self, what: &str) -> PathBuf {
        Path::new("/proc").join(self.pid.to_string()).join(what)
    }

    fn signal(&self, signal: i32) {
        send_signal(self.pid, signal);
    }

    /// Its exit status.
    #[track_caller]
    fn end(mut self) -> i32 {
        let mut status = None;
        until("the machine ends", || {
            status = wait_for(self.pid, false);
            status.is_some()
        });
        self.ended = true;
        status.unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.ended {
            self.signal(libc::SIGKILL);
            wait_for(self.pid, true);
        }
    }
}

#[allow(unsafe_code, reason = "prctl(2) has no safe wrapper in std")]
fn adopt_orphans() {
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }, 0);
}

/// The status of a process that has ended; -1 if a signal ended it.
#[allow(unsafe_code, reason = "waitpid(2) has no safe wrapper in std for an orphan")]
fn wait_for(pid: i32, patiently: bool) -> Option<i32> {
    let (mut status, flags) = (0, if patiently { 0 } else { libc::WNOHANG });
    // SAFETY: `status` is valid for writing; the process is an orphan of ours that only this test waits for.
    match unsafe { libc::waitpid(pid, &mut status, flags) } {
        0 => None,
        found => {
            assert_eq!(found, pid, "{}", std::io::Error::last_os_error());
            Some(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 })
        }
    }
}

/// A service manager's socket.
struct Manager(UnixDatagram);

impl Manager {
    fn new(lab: &Lab) -> Self {
        let socket = UnixDatagram::bind(lab.path("notify")).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Manager(socket)
    }

    #[track_caller]
    fn is_told(&self, expected: &str) {
        let mut bytes = [0; 1024];
        let n = self.0.recv(&mut bytes).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes[..n]), expected);
    }

    #[track_caller]
    fn is_told_no_more(&self) {
        self.0.set_nonblocking(true).unwrap();
        assert!(self.0.recv(&mut [0]).is_err());
    }
}

fn ready(pid: i32) -> String {
    format!("READY=1\nSTATUS=The machine runs.\nMAINPID={pid}\n")
}

#[test]
fn caller_gets_a_machine_that_runs_and_its_own_things_back() {
    let lab = Lab::new(Guest::Obedient);
    File::create(lab.path("lock")).unwrap();
    // As scripts do: a descriptor of the shell's, its output taken.
    let script = format!(
        "exec 9>lock; pid=$({} -d --kernel guest --mem 4 --name vm0 --log log); echo $pid",
        env!("CARGO_BIN_EXE_minivmm")
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(lab.0.path()).env("XDG_RUNTIME_DIR", lab.0.path());
    let output = ends(shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let daemon = Daemon::from(&output);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("~> Kernel      : guest") && !said.contains("minivmm: "), "{said}");
    let list: Value = serde_json::from_str(&lab.does(&["ls", "--json"])).unwrap();
    assert_eq!(
        (&list[0]["name"], &list[0]["pid"], &list[0]["state"]),
        (&"vm0".into(), &daemon.pid.into(), &"running".into())
    );
    let open: Vec<_> = fs::read_dir(daemon.of("fd"))
        .unwrap()
        .filter_map(|entry| Some((entry.as_ref().ok()?.file_name(), fs::read_link(entry.ok()?.path()).ok()?)))
        .collect();
    assert!(open.iter().all(|(_, file)| !file.ends_with("lock")), "{open:?}");
    for stream in ["0", "1", "2"] {
        assert!(open.contains(&(stream.into(), "/dev/null".into())), "{open:?}");
    }
    let stat = fs::read_to_string(daemon.of("stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let (session, terminal) = (fields[3].parse::<i32>().unwrap(), fields[4]);
    // In a session without being its leader, which has exited.
    assert!(session != daemon.pid && !Path::new("/proc").join(session.to_string()).exists(), "{stat}");
    assert_eq!(terminal, "0");
    let mut console = lab.console("vm0");
    console.expect("ready\n", 1);
    console.type_in(b"q");
    assert_eq!(daemon.end(), 0);
    assert_eq!(lab.files(), ["guest", "lock", "log"]);
}

#[test]
fn what_goes_wrong_is_said_and_counted_as_in_the_foreground() {
    let lab = Lab::new(Guest::Obedient);
    let disk = lab.path("disk.raw");
    File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let daemon = lab.start(&["--name", "vm0", "--disk", "disk.raw,serial=a", "--pidfile", "pid"]);
    // Some are seen before the machine is begun, some while it is.
    for (words, status, said) in [
        (&["--kernel", "missing"][..], 1, "the kernel missing does not exist"),
        (&["--mem", "1"], 1, "Use `--mem "),
        (&["--disk", "a", "--disk", "a"], 2, "a"),
        (&["--pidfile", "pid"], 1, &format!("that of a machine that runs, as process {};", daemon.pid)),
        (&["--pidfile", "guest"], 1, "guest is there and is no pidfile"),
        (&["--pidfile", "no/pid"], 1, "the pidfile no/pid cannot be written"),
        (&["--log", "no/log"], 1, "the log no/log cannot be written"),
        (&["--log", "."], 1, "the log . cannot be written"),
        (&["--name", "vm0", "--pidfile", "new"], 1, "a machine called vm0 runs already, as process "),
        (&["--name", "vm1", "--disk", "disk.raw", "--pidfile", "new"], 1, "disk.raw"),
        (&["--name", "vm1", "--tap", NO_TAP, "--pidfile", "new"], 1, "no network interface minivmm-none"),
    ] {
        let foreground = lab.fails(words, status);
        let background = lab.fails(&[words, &["-d"]].concat(), status);
        // In the background a machine may have something to be warned of besides.
        let kept = |line: &&str| !line.contains("`--name`") && !line.contains("logged nowhere");
        let background: Vec<_> = background.lines().filter(kept).collect();
        assert_eq!(background, foreground.lines().collect::<Vec<_>>(), "{words:?}");
        assert!(foreground.contains(said), "{words:?}: {foreground}");
    }
    assert_eq!(lab.read("pid"), format!("{}\n", daemon.pid));
    lab.does(&["kill", "vm0"]);
    assert_eq!(daemon.end(), 6);
    assert!(!lab.path("pid").exists());
}

/// Whoever asks is in another folder than the one that it was started from.
#[test]
fn machine_tells_its_paths_so_that_they_are_found_from_anywhere() {
    let lab = Lab::new(Guest::Obedient);
    fs::create_dir(lab.path("src")).unwrap();
    File::create(lab.path("disk.raw")).unwrap().set_len(1 << 20).unwrap();
    let daemon = lab.start(&["--name", "vm0", "--share", "src:/mnt/src,ro", "--disk", "disk.raw"]);
    let info = lab.does(&["info", "vm0"]);
    let here = lab.0.path().display();
    for line in [
        format!(
            "share0 = {here}/src at /mnt/src, read-only; before systemd 254: `mount -t virtiofs share0 /mnt/src`\n"
        ),
        format!("{here}/guest ("),
        format!("vda = {here}/disk.raw (1 MiB"),
        format!("     -    {here}/disk.raw\n"),
        format!("kernel = \"{here}/guest\"\n"),
        format!("path = \"{here}/src\"\n"),
        format!("path = \"{here}/disk.raw\"\n"),
    ] {
        assert!(info.contains(&line), "{line}\n{info}");
    }
    lab.does(&["kill", "vm0"]);
    daemon.end();
}

#[test]
fn folder_that_a_saved_machine_shares_is_to_be_put_back_and_another_one_is_told() {
    let lab = Lab::new(Guest::Obedient);
    fs::create_dir(lab.path("src")).unwrap();
    let daemon = lab.start(&["--name", "vm0", "--share", "src"]);
    lab.does(&["save", "vm0", "saved"]);
    assert_eq!(daemon.end(), 0);
    let [here, src] = ["", "src"].map(|name| lab.path(name).display().to_string());
    let again = |words: &[&str]| {
        let output = ends(&mut lab.command(words));
        (output.status.code(), String::from_utf8(output.stderr.clone()).unwrap(), output)
    };
    fs::rename(lab.path("src"), lab.path("moved")).unwrap();
    let gone = format!(
        "minivmm: the shared folder {src} of the saved machine {here}saved: there is no such folder; put it back, or mount it again: \
         the guest goes on with the files that were in it\n"
    );
    for words in [&["restore", "saved"][..], &["clone", "saved", "vm1"]] {
        let (status, said, _) = again(words);
        assert!(status == Some(1) && said.ends_with(&gone), "{words:?}: {said}");
    }
    File::create(lab.path("src")).unwrap();
    let (status, said, _) = again(&["restore", "saved"]);
    assert!(status == Some(1) && said.contains("it is no folder; move that away, as with `mv "), "{said}");
    fs::remove_file(lab.path("src")).unwrap();
    fs::create_dir(lab.path("src")).unwrap();
    let warning = "is another one than the machine was saved with";
    let (_, said, output) = again(&["restore", "saved", "-d", "--log", "log"]);
    let other = Daemon::from(&output);
    assert_eq!(said.matches(warning).count(), 1, "{said}");
    lab.does(&["kill", "vm0"]);
    other.end();
    fs::remove_dir(lab.path("src")).unwrap();
    fs::rename(lab.path("moved"), lab.path("src")).unwrap();
    let (_, said, output) = again(&["restore", "saved", "-d", "--log", "log"]);
    let same = Daemon::from(&output);
    assert!(!said.contains(warning), "{said}");
    lab.does(&["kill", "vm0"]);
    same.end();
}

#[test]
fn pidfile_is_there_while_the_machine_runs_and_a_dead_ones_is_replaced() {
    let lab = Lab::new(Guest::PowerButton);
    for background in [false, true] {
        fs::write(lab.path("pid"), "4194304\n").unwrap();
        let words = ["--name", "vm0", "--pidfile", "pid"];
        if background {
            let daemon = lab.start(&words);
            // It exists as soon as the caller continues.
            assert_eq!(lab.read("pid"), format!("{}\n", daemon.pid));
            lab.console("vm0").expect("ready\n", 1);
            let pid: i32 = lab.read("pid").trim().parse().unwrap();
            send_signal(pid, libc::SIGTERM);
            assert_eq!(daemon.end(), 0);
        } else {
            let mut machine = Owned::start(&mut lab.machine(&words));
            let pid = machine.id();
            until("the pidfile is there", || lab.read("pid") == format!("{pid}\n"));
            lab.console("vm0").expect("ready\n", 1);
            send_signal(i32::try_from(pid).unwrap(), libc::SIGTERM);
            assert_eq!(vmm::wait(&mut machine, String::new).code(), Some(0));
        }
        assert!(!lab.path("pid").exists());
    }
    // After a kill, its stale file must not be an obstacle.
    let daemon = lab.start(&["--pidfile", "pid"]);
    daemon.signal(libc::SIGKILL);
    let pid = daemon.pid;
    assert_eq!(daemon.end(), -1);
    assert_eq!(lab.read("pid"), format!("{pid}\n"));
    let daemon = lab.start(&["--name", "vm0", "--pidfile", "pid"]);
    assert_eq!(lab.read("pid"), format!("{}\n", daemon.pid));
    // The next one may have it as soon as this one is known to have ended.
    lab.console("vm0").expect("ready\n", 1);
    lab.does(&["stop", "vm0"]);
    let next = lab.start(&["--name", "vm1", "--pidfile", "pid"]);
    assert_eq!((daemon.end(), lab.read("pid")), (0, format!("{}\n", next.pid)));
    assert_eq!(lab.files(), ["guest", "log", "pid", "vm1.lock", "vm1.sock"]);
}

#[test]
fn log_has_all_that_is_said_from_the_banner_to_the_end() {
    let lab = Lab::new(Guest::Halt);
    let daemon = lab.start(&["--name", "vm0"]);
    let begin = format!("minivmm[{}]: vm0: ", daemon.pid);
    daemon.signal(libc::SIGTERM);
    until("the button is pressed", || lab.read("log").contains("power button pressed"));
    thread::sleep(vmm::APART);
    daemon.signal(libc::SIGHUP);
    assert_eq!(daemon.end(), 129);
    let log = lab.read("log");
    let said: Vec<_> = log
        .lines()
        .map(|line| {
            let (time, rest) = line.split_once(' ').unwrap();
            assert!(time.len() == 29 && time.starts_with("20"), "{line}");
            rest.strip_prefix(&begin).unwrap_or_else(|| panic!("{line}"))
        })
        .collect();
    assert!(said[0].starts_with("~> Kernel"), "{log}");
    let end = &said[said.len() - 3..];
    assert_eq!(end[0], "the machine runs");
    assert!(end[1].starts_with("power button pressed; a second signal, or 90 s"), "{log}");
    assert_eq!(end[2], "ended by signal 1");
    // In the foreground both have it, and what cannot be started is logged as well.
    let log = lab.path("second");
    let mut machine = lab.machine(&["--log", "second", "--name", "vm0", "--tap", NO_TAP]);
    let output = ends(&mut machine);
    let (stderr, log) = (String::from_utf8(output.stderr).unwrap(), fs::read_to_string(log).unwrap());
    let last = stderr.lines().last().unwrap().strip_prefix("minivmm: ").unwrap();
    assert!(log.lines().last().unwrap().ends_with(&format!("]: vm0: {last}")), "{log}\n{stderr}");
}

#[test]
fn stop_and_wait_know_a_machine_in_the_background() {
    let lab = Lab::new(Guest::Obedient);
    let daemon = lab.start(&["--name", "vm0"]);
    let mut waiting = Owned::start(&mut lab.command(&["wait", "vm0"]));
    let mut console = lab.console("vm0");
    console.expect("ready\n", 1);
    vmm::until_connected(&lab.path("minivmm/vm0.sock"), 2);
    vmm::until_it_listens(waiting.id());
    console.type_in(b"k");
    assert_eq!(vmm::wait(&mut waiting, String::new).code(), Some(4));
    assert_eq!(daemon.end(), 4);
    assert!(lab.read("log").ends_with("vm0: the guest's kernel panicked\n"), "{}", lab.read("log"));
    let lab = Lab::new(Guest::PowerButton);
    let daemon = lab.start(&["--name", "vm0"]);
    lab.console("vm0").expect("ready\n", 1);
    lab.does(&["stop", "vm0"]);
    assert_eq!(daemon.end(), 0);
    assert!(lab.read("log").ends_with("vm0: the guest powered off\n"), "{}", lab.read("log"));
    // As a service manager stops it, also one that rests.
    let daemon = lab.start(&["--name", "vm0"]);
    lab.console("vm0").expect("ready\n", 1);
    lab.does(&["pause", "vm0"]);
    daemon.signal(libc::SIGTERM);
    assert_eq!(daemon.end(), 0);
}

#[test]
fn relative_paths_are_good_for_every_boot() {
    let lab = Lab::new(Guest::Obedient);
    fs::create_dir(lab.path("run")).unwrap();
    File::create(lab.path("run/disk.raw")).unwrap().set_len(1 << 20).unwrap();
    let port = "name=p,socket=run/p.sock";
    let daemon = lab.start(&[
        "--name",
        "vm0",
        "--initrd",
        "guest",
        "--disk",
        "run/disk.raw",
        "--port",
        port,
        "--pidfile",
        "run/pid",
    ]);
    let mut console = lab.console("vm0");
    for boots in 1..=3 {
        console.expect("ready\n", boots);
        console.type_in(if boots < 3 { b"r" } else { b"q" });
    }
    assert_eq!(daemon.end(), 0);
    assert_eq!(fs::read_dir(lab.path("run")).unwrap().count(), 1, "but the disk");
}

#[test]
fn guest_talks_with_nobody_listening_and_its_last_words_can_be_read_later() {
    let lab = Lab::new(Guest::EchoPolled);
    let daemon = lab.start(&["--name", "vm0"]);
    let mut console = lab.console("vm0");
    console.expect("ready\n", 1);
    console.type_in(&[b'x'; 1000]);
    console.type_in(b"end");
    console.expect("xend", 1);
    drop(console);
    let mut console = lab.console("vm0");
    console.expect("xend", 1);
    assert!(console.said.ends_with(&format!("ready\n{}end", "x".repeat(1000))), "{}", console.said);
    console.type_in(b"\x04");
    assert_eq!(daemon.end(), 0);
    // A guest with endless output ends all the same.
    let lab = Lab::new(Guest::Flood);
    assert_eq!(lab.start(&[]).end(), 0);
}

#[test]
fn a_machine_without_a_name_is_told_to_be_out_of_reach() {
    let lab = Lab::new(Guest::PowerButton);
    let output = ends(&mut lab.machine(&["-d", "--log", "log"]));
    let daemon = Daemon::from(&output);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.ends_with("no verb finds it, and its console cannot be opened\n"), "{said}");
    assert_eq!(lab.does(&["ls"]).lines().count(), 1);
    daemon.signal(libc::SIGTERM);
    until("it is heard", || lab.read("log").contains("power button pressed"));
    // Where the guest did not listen yet.
    thread::sleep(vmm::APART);
    daemon.signal(libc::SIGTERM);
    assert!([0, 143].contains(&daemon.end()));
}

#[test]
fn service_manager_is_told_when_the_machine_runs_and_when_it_will_end() {
    let lab = Lab::new(Guest::Obedient);
    let manager = Manager::new(&lab);
    let start = |words: &[&str]| {
        let mut command = lab.machine(&[&["--name", "vm0", "--log", "log"], words].concat());
        command.env("NOTIFY_SOCKET", lab.path("notify"));
        command
    };
    // In the foreground: the end by the guest itself.
    let mut machine = Owned::start(&mut start(&[]));
    let pid = i32::try_from(machine.id()).unwrap();
    manager.is_told(&ready(pid));
    let mut console = lab.console("vm0");
    console.expect("ready\n", 1);
    console.type_in(b"q");
    manager.is_told("STOPPING=1\nSTATUS=the guest powered off\n");
    assert_eq!(vmm::wait(&mut machine, String::new).code(), Some(0));
    // A signal, to a guest that does not care.
    let mut machine = Owned::start(&mut start(&[]));
    let pid = i32::try_from(machine.id()).unwrap();
    manager.is_told(&ready(pid));
    let mut console = lab.console("vm0");
    console.expect("ready\n", 1);
    send_signal(pid, libc::SIGTERM);
    manager.is_told("STOPPING=1\nSTATUS=The guest is asked to shut down.\n");
    console.type_in(b"k");
    assert_eq!(vmm::wait(&mut machine, String::new).code(), Some(4));
    // In the background the machine's process is the one meant.
    let daemon = Daemon::from(&ends(&mut start(&["-d"])));
    manager.is_told(&ready(daemon.pid));
    lab.does(&["kill", "vm0"]);
    manager.is_told("STOPPING=1\nSTATUS=killed over its control socket\n");
    assert_eq!(daemon.end(), 6);
    // A machine that never ran is not logged.
    assert_eq!(ends(&mut start(&["--tap", NO_TAP])).status.code(), Some(1));
    assert_eq!(ends(&mut start(&["-d", "--tap", NO_TAP])).status.code(), Some(1));
    manager.is_told_no_more();
    assert!(!lab.read("log").contains("NOTIFY_SOCKET"));
}

/// A background start that blocks at its banner, because standard error is full.
struct HeldUp {
    caller: Owned,
    /// The process in the background.
    pid: i32,
    /// The other end of standard error.
    full: UnixStream,
}

impl HeldUp {
    fn start(lab: &Lab) -> Self {
        let (full, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        while (&theirs).write(&[b'.'; 4096]).is_ok() {}
        theirs.set_nonblocking(false).unwrap();
        let mut command = lab.machine(&["-d", "--log", "log", "--name", "vm0", "--pidfile", "pid"]);
        let caller = Owned::start(command.stderr(OwnedFd::from(theirs)));
        let mut pid = None;
        until("the start is under way", || {
            let log = lab.read("log");
            let number = log.split_once("minivmm[").and_then(|(_, rest)| rest.split_once(']'));
            pid = number.and_then(|(pid, _)| pid.parse().ok());
            pid.is_some()
        });
        HeldUp { caller, pid: pid.unwrap(), full }
    }
}

#[test]
fn machine_whose_caller_was_killed_meanwhile_does_not_stay() {
    for signal in [libc::SIGINT, libc::SIGKILL] {
        let lab = Lab::new(Guest::Obedient);
        let HeldUp { mut caller, pid, full } = HeldUp::start(&lab);
        send_signal(i32::try_from(caller.id()).unwrap(), signal);
        assert_eq!(vmm::wait(&mut caller, String::new).code(), None);
        // It continues, starts the machine, and finds no parent.
        let (heard, _thread) = vmm::Heard::listen(full);
        assert_eq!(Daemon { pid, ended: false }.end(), 1);
        let gone = "vm0: the machine is ended: the process that started it ended before the machine ran\n";
        assert!(lab.read("log").ends_with(gone), "{}", lab.read("log"));
        assert_eq!(lab.files(), ["guest", "log"]);
        assert!(heard.wait(|said| vmm::count(said, "~> Kernel") > 0), "{}", heard.text());
    }
}

#[test]
fn caller_whose_machine_was_killed_meanwhile_says_so() {
    let lab = Lab::new(Guest::Obedient);
    let HeldUp { mut caller, pid, full } = HeldUp::start(&lab);
    send_signal(pid, libc::SIGKILL);
    let (heard, thread) = vmm::Heard::listen(full);
    assert_eq!(vmm::wait(&mut caller, String::new).code(), Some(1));
    assert_eq!(Daemon { pid, ended: false }.end(), -1);
    thread.join().unwrap();
    assert!(heard.text().contains("minivmm: the process in the background died before the machine ran"));
    // It had its name by then, and could not release it: the next machine takes the stale name.
    assert_eq!(lab.files(), ["guest", "log", "vm0.lock", "vm0.sock"]);
}

#[test]
fn launcher_of_other_tests_sees_the_end_of_both_streams() {
    let ended = Launch::new(Guest::Ports).args(&["-d", "--log", "/dev/null"]).run();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.trim().parse::<u32>().is_ok(), "{ended:?}");
}

#[test]
fn a_machine_whose_number_cannot_be_printed_is_named_on_standard_error() {
    let full = || File::options().write(true).open("/dev/full").unwrap().into();
    let left = || OwnedFd::from(std::io::pipe().unwrap().1);
    let outputs: [(OwnedFd, &str); 2] = [(full(), "No space left on device"), (left(), "Broken pipe")];
    for (output, why) in outputs {
        let lab = Lab::new(Guest::PowerButton);
        let output = lab.machine(&["-d", "--name", "vm0"]).stdout(output).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let info = lab.command(&["info", "vm0", "--json"]).output().unwrap();
        let info: Value = serde_json::from_slice(&info.stdout).unwrap();
        let daemon = Daemon { pid: i32::try_from(info["pid"].as_i64().unwrap()).unwrap(), ended: false };
        assert!(said.contains(&format!("the machine runs as process {}, ", daemon.pid)), "{said}");
        assert!(said.contains(why), "{said}");
        // As the message advises.
        daemon.signal(libc::SIGTERM);
        assert_eq!(daemon.end(), 0);
    }
}
