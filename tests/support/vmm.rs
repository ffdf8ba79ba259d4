//! The minivmm command on a tiny guest: started, listened to, ended within a time limit.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tiny_guest::Guest;

/// A machine that takes longer than this for any step hangs: guests take milliseconds, on a busy host a
/// second.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Signals that come closer together count as one.
pub(crate) const APART: Duration = Duration::from_millis(1100);

/// Bytes from a reader thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heard(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Heard {
    /// Collects what `from` gives until its end.
    pub(crate) fn listen(mut from: impl Read + Send + 'static) -> (Heard, JoinHandle<()>) {
        let heard = Heard::default();
        let into = heard.clone();
        let thread = thread::spawn(move || {
            let mut bytes = [0; 4096];
            // A terminal ends with an error (EIO) where a pipe ends with nothing.
            while let Ok(n @ 1..) = from.read(&mut bytes) {
                into.0.0.lock().unwrap().extend(&bytes[..n]);
                into.0.1.notify_all();
            }
        });
        (heard, thread)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().clone()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Waits until `enough`; false if that does not happen within [`LIMIT`].
    pub(crate) fn wait(&self, enough: impl FnMut(&[u8]) -> bool) -> bool {
        self.wait_for(LIMIT, enough)
    }

    pub(crate) fn wait_for(&self, limit: Duration, mut enough: impl FnMut(&[u8]) -> bool) -> bool {
        let heard = self.0.0.lock().unwrap();
        let (_heard, timeout) = self.0.1.wait_timeout_while(heard, limit, |heard| !enough(heard)).unwrap();
        !timeout.timed_out()
    }
}

pub(crate) fn count(text: &[u8], word: &str) -> usize {
    text.windows(word.len()).filter(|window| *window == word.as_bytes()).count()
}

/// A child that is killed and waited for when its test is done with it, whichever way that is.
#[derive(Debug)]
pub(crate) struct Owned(pub(crate) Child);

impl Owned {
    pub(crate) fn start(command: &mut Command) -> Self {
        Owned(command.spawn().unwrap())
    }
}

impl std::ops::Deref for Owned {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl std::ops::DerefMut for Owned {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Both fail for one that was waited for already, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a child at most [`LIMIT`], then kills it; its output so far is `seen`.
pub(crate) fn wait(child: &mut Child, seen: impl FnOnce() -> String) -> ExitStatus {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("it did not end within {LIMIT:?}, and had said:\n{}", seen());
}

/// Waits until this many clients are connected to a socket, according to the kernel.
#[track_caller]
pub(crate) fn until_connected(socket: &Path, clients: usize) {
    const CONNECTED: &str = " 03 ";
    let deadline = Instant::now() + LIMIT;
    loop {
        let all = std::fs::read_to_string("/proc/net/unix").unwrap();
        let ours = all.lines().filter(|line| line.ends_with(socket.to_str().unwrap()));
        if ours.filter(|line| line.contains(CONNECTED)).count() >= clients {
            return;
        }
        assert!(Instant::now() < deadline, "they do not connect: {all}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a verb that is connected has asked, too: it waits in a system call that reads from a socket.
#[track_caller]
pub(crate) fn until_it_listens(verb: u32) {
    let begun = Instant::now();
    let reads = || {
        let call = std::fs::read_to_string(format!("/proc/{verb}/syscall")).unwrap();
        // Number and arguments.
        let mut words = call.split_whitespace();
        let number = words.next().and_then(|number| number.parse().ok());
        let from = words.next().and_then(|fd| u32::from_str_radix(fd.trim_start_matches("0x"), 16).ok());
        let is_socket = |fd| {
            let open = std::fs::read_link(format!("/proc/{verb}/fd/{fd}"));
            open.is_ok_and(|open| open.to_string_lossy().starts_with("socket:"))
        };
        matches!(number, Some(libc::SYS_read | libc::SYS_recvfrom)) && from.is_some_and(is_socket)
    };
    while !reads() {
        assert!(begun.elapsed() < LIMIT, "it does not read");
        thread::sleep(Duration::from_millis(5));
    }
}

/// How a run of the command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) status: ExitStatus,
}

impl Ended {
    /// The guest printed exactly `stdout`, and the command ended with `status`.
    #[track_caller]
    pub(crate) fn is(&self, stdout: &str, status: i32) -> &Self {
        assert_eq!(self.stdout, stdout, "{self:?}");
        assert_eq!(self.status.code(), Some(status), "{self:?}");
        self
    }

    /// The command itself printed all of `words` on stderr.
    #[track_caller]
    pub(crate) fn said(&self, words: &[&str]) {
        for word in words {
            assert!(self.stderr.contains(word), "stderr has no {word:?}: {self:?}");
        }
    }
}

/// The command with a guest, about to be started.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) command: Command,
    /// The guest's kernel file, until its last user is dropped.
    pub(crate) folder: Arc<TempDir>,
}

impl Launch {
    pub(crate) fn new(guest: Guest) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = guest.write(folder.path()).unwrap();
        Self::kernel(&kernel, folder)
    }

    /// Of the file `kernel`, which lies in `folder`.
    pub(crate) fn kernel(kernel: &Path, folder: TempDir) -> Self {
        let folder = Arc::new(folder);
        let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
        command.arg("--kernel").arg(kernel);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Launch { command, folder }
    }

    pub(crate) fn args(mut self, words: &[&str]) -> Self {
        self.command.args(words);
        self
    }

    /// The command with its arguments: the minimum memory for guests, unless the test sets it.
    pub(crate) fn command(&mut self) -> &mut Command {
        if !self.command.get_args().any(|word| word == "--mem") {
            self.command.args(["--mem", "4"]);
        }
        // A network is the affair of the tests that are about it.
        if !self
            .command
            .get_args()
            .any(|word| ["--net", "--tap", "-p", "--config"].iter().any(|flag| word == *flag))
        {
            self.command.args(["--net", "none"]);
        }
        &mut self.command
    }

    pub(crate) fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.command.stdin(stdin);
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn spawn(mut self) -> Vmm {
        let mut child = Owned::start(self.command());
        let (stdout, first) = Heard::listen(child.stdout.take().unwrap());
        let (stderr, second) = Heard::listen(child.stderr.take().unwrap());
        let stdin = child.stdin.take();
        Vmm { child, stdin, stdout, stderr, threads: [first, second], _folder: self.folder }
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Ended {
        self.spawn().end()
    }
}

/// Runs a guest that needs nothing.
pub(crate) fn run(guest: Guest, words: &[&str]) -> Ended {
    Launch::new(guest).args(words).run()
}

/// The command, running, with pipes.
#[derive(Debug)]
pub(crate) struct Vmm {
    child: Owned,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Heard,
    pub(crate) stderr: Heard,
    threads: [JoinHandle<()>; 2],
    _folder: Arc<TempDir>,
}

impl Vmm {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Waits until the guest has printed `word` this many times.
    #[track_caller]
    pub(crate) fn expect(&self, word: &str, times: usize) {
        let seen = self.stdout.wait(|heard| count(heard, word) >= times);
        assert!(seen, "no {word:?} (times {times}) came: {:?} {:?}", self.stdout.text(), self.stderr.text());
    }

    pub(crate) fn type_in(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    pub(crate) fn signal(&self, signal: i32) {
        send_signal(self.pid(), signal);
    }

    pub(crate) fn end(mut self) -> Ended {
        let (stdout, stderr) = (self.stdout.clone(), self.stderr.clone());
        let status = wait(&mut self.child, || format!("{}\n{}", stdout.text(), stderr.text()));
        drop(self.stdin.take());
        for thread in self.threads {
            thread.join().unwrap();
        }
        Ended { stdout: self.stdout.text(), stderr: self.stderr.text(), status }
    }
}

#[allow(unsafe_code, reason = "kill(2) has no safe wrapper in std")]
pub(crate) fn send_signal(pid: i32, signal: i32) {
    // SAFETY: takes and returns numbers; the process is a child that was not waited for, so its pid is still
    // its own.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// io_uring_setup(2) is EPERM from here on; the other two are of no use without it.
pub(crate) fn forbid_io_uring(command: &mut Command) {
    const NUMBER: u32 = 0;
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code.try_into().unwrap(), jt, jf, k };
    let setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let refused = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap();
    let steps = [
        step(load, 0, 0, NUMBER),
        step(equal, 0, 1, setup),
        step(give, 0, 0, refused),
        step(give, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = move || {
        let mut steps = steps;
        let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
        // SAFETY: both calls take numbers, the second a pointer to a filter that outlives it; they are safe after a fork.
        #[allow(unsafe_code, reason = "prctl(2) has no safe wrapper in std")]
        let set = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
        };
        if set { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes two system calls and allocates nothing.
    #[allow(unsafe_code, reason = "what a child does before it becomes a program is unsafe to say")]
    unsafe {
        command.pre_exec(filter);
    }
}
