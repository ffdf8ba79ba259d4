//! The ports between a guest whose init runs one command, and the program that gives it: `minivmm run`, or
//! [`Template::exec`](super::Template::exec).
//!
//! On `minivmm.run` init says `ready`, and reads one line: shell text that sets what the command is (see [`Task::line`]). It says `up` when
//! the command begins, and `exit N` when it has ended with status N. It may say `init A B` before: its clock when it began, and when it
//! was ready. `nodir` says that the directory for the command is not there, which then does not run. On `minivmm.out` and `minivmm.err` is the command's output, behind
//! whose last byte init writes a random token; the host says there with a line that nobody reads any more. `minivmm.in` is the command's
//! input, where there can be one. A command with a terminal has the guest's second virtio console, `hvc1`, for all three; the host says its size in lines that follow
//! that of the command: rows and columns. If the command's files are wanted, init sends them as a tar archive on `minivmm.files` when the command
//! has ended, and says `packed N` with the status of its tar.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::task::{Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use devices::console::ByteQueue;
use virtio::console::TerminalSize;

use super::run_resources::StreamPort;
use super::saved::SavedState;
use super::{Exit, Machine};

/// Size of a buffer; when it is full the writer waits. Memory is allocated as bytes come.
const CAPACITY: usize = 1 << 20;
/// The same of what is shown at a terminal: who presses Ctrl-C does not want to see much more.
const SHOWN: usize = 64 << 10;
/// Most bytes of a line from init.
const LINE_MAX: usize = 256;
/// Name of the port for the command's input.
const INPUT: &str = "minivmm.in";
/// Name of the port for the command's files.
const FILES: &str = "minivmm.files";
/// Tells init that nobody reads a stream any more.
pub(crate) const READER_CLOSED: &[u8] = b"\n";

/// The ends in this process.
#[derive(Debug)]
pub(crate) struct CommandPorts {
    /// Standard output and standard error.
    pub(crate) output: [Arc<ByteQueue>; 2],
    /// The opposite direction of each: takes [`READER_CLOSED`].
    pub(crate) reader_closed: [Arc<ByteQueue>; 2],
    /// What init says of itself.
    pub(crate) run: Arc<ByteQueue>,
    /// The opposite direction: takes the command.
    command: Arc<ByteQueue>,
    /// What the command reads. Without a port for it nobody does.
    pub(crate) input: Arc<ByteQueue>,
    has_input: bool,
    /// A tar archive of the files that the command has left, if they are wanted.
    pub(crate) files: Option<Arc<ByteQueue>>,
    /// What the command reads from its terminal and writes to it, if it has one.
    pub(crate) terminal: Option<[Arc<ByteQueue>; 2]>,
}

/// What a guest that waits for a command has besides: that of a run with `--stdin`, `--out` or `--tty`. Each port costs its init exits, and only a
/// guest that is kept for further commands has one that its first command does not need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MorePorts {
    pub(crate) input: bool,
    pub(crate) files: bool,
    pub(crate) terminal: bool,
}

impl MorePorts {
    /// Those of a guest that is booted for commands of any kind.
    pub(super) const OF_ANY: Self = MorePorts { input: true, files: false, terminal: false };

    /// Those of a saved machine.
    pub(super) fn of_saved(saved: &SavedState) -> Self {
        let ports =
            saved.states().filter_map(|(_, state)| state.data.pointer("/device/data/ports")?.as_array());
        let names: Vec<_> = ports.flatten().filter_map(|port| port.get("name")).collect();
        MorePorts {
            input: names.iter().any(|name| name.as_str() == Some(INPUT)),
            files: names.iter().any(|name| name.as_str() == Some(FILES)),
            // The first console is the machine's.
            terminal: names.iter().filter(|name| name.is_null()).count() > 1,
        }
    }
}

impl CommandPorts {
    /// For a guest that has these.
    pub(crate) fn with(more: MorePorts) -> Self {
        let queue = |capacity| Arc::new(ByteQueue::new(capacity));
        let pair = |capacity| [queue(capacity), queue(capacity)];
        CommandPorts {
            output: pair(CAPACITY),
            reader_closed: pair(READER_CLOSED.len()),
            run: queue(CAPACITY),
            command: queue(CAPACITY),
            input: queue(CAPACITY),
            has_input: more.input,
            files: more.files.then(|| queue(CAPACITY)),
            terminal: more.terminal.then(|| [queue(CAPACITY), queue(SHOWN)]),
        }
    }

    /// The ports of the machine.
    pub(crate) fn streams(&self) -> Vec<StreamPort> {
        let ([out, err], [out_left, err_left]) = (&self.output, &self.reader_closed);
        let port = |name, input: &Arc<ByteQueue>, output: &Arc<ByteQueue>| StreamPort {
            name: Some(name),
            input: input.clone(),
            output: output.clone(),
        };
        let mut ports = vec![
            port("minivmm.out", out_left, out),
            port("minivmm.err", err_left, err),
            port("minivmm.run", &self.command, &self.run),
        ];
        // Nothing comes from the one, and nothing goes to the other.
        let nothing = || Arc::new(ByteQueue::new(1));
        ports.extend(self.has_input.then(|| port(INPUT, &self.input, &nothing())));
        ports.extend(self.files.as_ref().map(|files| port(FILES, &nothing(), files)));
        ports.extend(self.terminal.as_ref().map(|[input, output]| StreamPort {
            name: None,
            input: input.clone(),
            output: output.clone(),
        }));
        ports
    }

    /// Gives init its command. Does not wait.
    pub(crate) fn give(&self, line: &[u8]) {
        self.take_back();
        self.command.push_over(line);
    }

    /// Tells init that the command's terminal has another size. One that does not listen misses it.
    pub(crate) fn resize(&self, size: TerminalSize) {
        self.command.try_push(format!("{}\n", size_words(size)).as_bytes());
    }

    /// Takes back what an init before, or none, has not taken of its command.
    pub(crate) fn take_back(&self) {
        while self.command.try_pop(&mut [0; 4096]) > 0 {}
    }

    /// Closes the ports; buffered bytes are still read.
    pub(crate) fn close(&self) {
        let terminal = self.terminal.iter().flatten().chain(&self.files);
        self.output.iter().chain([&self.run, &self.input]).chain(terminal).for_each(|queue| queue.close());
    }
}

/// Rows and columns, as stty(1) has them.
fn size_words(size: TerminalSize) -> String {
    format!("{} {}", size.rows, size.columns)
}

/// What init says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// It waits for its command.
    Ready,
    /// The command is about to begin.
    Up,
    /// The command has ended with this status.
    Exited(u8),
    /// The files of the command are packed, with this status.
    Packed(u8),
    /// The guest has no such directory to run the command in.
    NoDirectory,
    /// Init took so long until it was ready.
    Init(Duration),
}

/// Makes lines of what init says; those that are unknown are ignored.
#[derive(Debug, Default)]
pub(crate) struct InitLines(Vec<u8>);

impl InitLines {
    /// Takes the next bytes, and tells `heard` what they say.
    pub(crate) fn push(&mut self, bytes: &[u8], mut heard: impl FnMut(Said)) {
        for &byte in bytes {
            if byte != b'\n' {
                if self.0.len() < LINE_MAX {
                    self.0.push(byte);
                }
                continue;
            }
            if let Some(said) = parse(&self.0) {
                heard(said);
            }
            self.0.clear();
        }
    }
}

fn parse(line: &[u8]) -> Option<Said> {
    match std::str::from_utf8(line).ok()?.split_once(' ') {
        None if line == b"ready" => Some(Said::Ready),
        None if line == b"nodir" => Some(Said::NoDirectory),
        None => (line == b"up").then_some(Said::Up),
        Some(("exit", status)) => status.parse().ok().map(Said::Exited),
        Some(("packed", status)) => status.parse().ok().map(Said::Packed),
        Some(("init", times)) => {
            let (began, ready) = times.split_once(' ')?;
            let took = ready.parse::<f64>().ok()? - began.parse::<f64>().ok()?;
            Duration::try_from_secs_f64(took).ok().map(Said::Init)
        }
        Some(_) => None,
    }
}

/// What init is told of a command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Task<'a> {
    pub(crate) words: &'a [OsString],
    /// Names are those of shell variables.
    pub(crate) environment: &'a [(OsString, OsString)],
    /// Where it runs, if not in `/`.
    pub(crate) directory: Option<&'a Path>,
    /// The command runs at its terminal, which has this size if one is known.
    pub(crate) terminal: Option<Option<TerminalSize>>,
    /// Whether the command reads from the port for its input.
    pub(crate) input: bool,
    pub(crate) token: &'a str,
}

impl Task<'_> {
    /// The line: shell text without a newline in it, whatever bytes the words have. Besides the command it has the host's time, in
    /// seconds, and random bytes for the guest's pool, because clones of one guest have one pool.
    pub(crate) fn line(&self) -> io::Result<Vec<u8>> {
        let Task { words, environment, directory, terminal, input, token } = *self;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let seed = random_hex(32)?;
        let head = format!("token={token}; input={}; now={now}; seed={seed}; ", u8::from(input));
        let mut line = head.into_bytes();
        if let Some(directory) = directory {
            line.extend(b"workdir=");
            quote(&mut line, directory.as_os_str(), b"$n");
            line.extend(b"; ");
        }
        if let Some(size) = terminal {
            line.extend(format!("terminal=1; size='{}'; ", size.map(size_words).unwrap_or_default()).bytes());
        }
        line.extend(b"environment() { :");
        // A variable of the command's may be called n.
        if environment.iter().any(|(_, value)| value.as_bytes().contains(&b'\n')) {
            line.extend(b"; set -- \"$n\"");
        }
        for (name, value) in environment {
            line.extend(b"; export ");
            line.extend(name.as_bytes());
            line.push(b'=');
            quote(&mut line, value, b"$1");
        }
        line.extend(b"; }; set --");
        for word in words {
            line.push(b' ');
            quote(&mut line, word, b"$n");
        }
        line.push(b'\n');
        Ok(line)
    }
}

/// Adds a word of the shell, which has this for a newline.
fn quote(line: &mut Vec<u8>, word: &OsStr, newline: &[u8]) {
    line.push(b'\'');
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => line.extend(b"'\\''"),
            b'\n' => line.extend([&b"'\""[..], newline, b"\"'"].concat()),
            _ => line.push(byte),
        }
    }
    line.push(b'\'');
}

/// Whether a shell takes this as the name of a variable.
pub(crate) fn is_variable(name: &OsStr) -> bool {
    let first = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    let (bytes, other) = (name.as_bytes(), |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_');
    bytes.first().is_some_and(first) && bytes.iter().all(other)
}

/// Random, so that no command prints it by chance.
pub(crate) fn token() -> io::Result<String> {
    random_hex(16)
}

fn random_hex(count: usize) -> io::Result<String> {
    let mut bytes = vec![0; count];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Why a wait for a guest has ended without what was waited for.
#[derive(Debug)]
pub(super) enum Missed {
    /// The machine has ended.
    Ended(Arc<Exit>),
    /// The limit was over.
    TimedOut,
}

/// Wakes the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits until `look` finds something, which wakes by its waker when it is worth another look.
pub(super) fn wait_for<T>(
    machine: &Machine,
    limit: Duration,
    mut look: impl FnMut(&Waker) -> Option<T>,
) -> Result<T, Missed> {
    // A limit beyond what a clock can say is none.
    let deadline = Instant::now().checked_add(limit);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    machine.controls.outcome.wake_at_end(&waker);
    loop {
        // In this order: what a guest said last is there before its end is.
        let exit = machine.exit_status();
        if let Some(found) = look(&waker) {
            return Ok(found);
        }
        if let Some(exit) = exit {
            return Err(Missed::Ended(exit));
        }
        match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => return Err(Missed::TimedOut),
            Some(left) => thread::park_timeout(left),
            None => thread::park(),
        }
    }
}

/// Gives what is in a queue to `take`, in pieces. `waker` is woken when there is more: not all is taken at once of a guest that never
/// stops.
pub(super) fn drain(queue: &ByteQueue, waker: &Waker, mut take: impl FnMut(&[u8])) {
    const PIECES: usize = 64;
    let mut bytes = [0; 16 << 10];
    for _ in 0..PIECES {
        let Poll::Ready(count @ 1..) = queue.poll_pop(waker, &mut bytes) else { return };
        take(bytes.get(..count).unwrap_or_default());
    }
    waker.wake_by_ref();
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::ffi::OsStringExt;
    use std::process::{Command, Stdio};

    use super::*;

    /// What shells make of the line, as init reads it: `script` runs behind it.
    fn shells_say(task: &Task<'_>, script: &str) -> Vec<Vec<u8>> {
        let line = task.line().unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let read = format!("n='\n'; IFS= read -r line; eval \"$line\"; {script}");
        let say = |shell: &[&str]| {
            let mut command = Command::new(shell[0]);
            command.args(&shell[1..]).args(["-c", &read]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().ok()?;
            child.stdin.take().unwrap().write_all(&line).unwrap();
            Some(child.wait_with_output().unwrap().stdout)
        };
        let said: Vec<_> =
            [&["sh"][..], &["bash"], &["dash"], &["busybox", "sh"]].into_iter().filter_map(say).collect();
        assert!(!said.is_empty());
        said
    }

    #[test]
    fn command_reaches_the_shell_byte_by_byte() {
        let all = OsString::from_vec((1..=255).collect());
        let words = ["sh", "-c", "echo 'it''s' $HOME \"x\"\n", "", "\\", " a\t", "\n\n", "%s"];
        let words: Vec<_> = words.map(OsString::from).into_iter().chain([all]).collect();
        let task = Task {
            words: &words,
            environment: &[],
            directory: None,
            terminal: None,
            input: true,
            token: "t0",
        };
        let mut expected: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), b"|"].concat()).collect();
        expected.extend(b"t0 1");
        for said in shells_say(&task, "printf '%s|' \"$@\"; printf %s \"$token $input\"") {
            assert!(said == expected, "{}", String::from_utf8_lossy(&said));
        }
    }

    #[test]
    fn environment_time_and_seed_are_the_commands() {
        let words = ["env".into()];
        // One of the command's takes nothing away from init's, whatever its name.
        let environment = [("n", "5"), ("A", "it's\n$B"), ("B", "")];
        let environment = environment.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let directory = Some(Path::new("/it's here"));
        let terminal = Some(Some(TerminalSize { columns: 100, rows: 30 }));
        let task =
            Task { words: &words, environment: &environment, directory, terminal, input: false, token: "t" };
        let script = "(environment; exec sh -c 'echo \"<$A|$B|$n|$0>\"' \"$@\"); echo \"$A$input\" \"$workdir\" $terminal $size \"${#seed}\" \"$now\"";
        for said in shells_say(&task, script) {
            let text = String::from_utf8(said).unwrap();
            let now = text
                .strip_prefix("<it's\n$B||5|env>\n0 /it's here 1 30 100 64 ")
                .unwrap_or_else(|| panic!("{text}"));
            let now = UNIX_EPOCH + Duration::from_secs(now.trim().parse().unwrap());
            assert!(SystemTime::now().duration_since(now).unwrap() < Duration::from_secs(600), "{text}");
        }
        assert_ne!(task.line().unwrap(), task.line().unwrap(), "each command has a seed of its own");
    }

    #[test]
    fn ports_are_those_that_are_wanted() {
        let names =
            |more| CommandPorts::with(more).streams().iter().filter_map(|port| port.name).collect::<Vec<_>>();
        assert_eq!(names(MorePorts::default()), ["minivmm.out", "minivmm.err", "minivmm.run"]);
        assert_eq!(names(MorePorts::OF_ANY)[3..], ["minivmm.in"]);
        let all = MorePorts { input: true, files: true, terminal: true };
        assert_eq!(names(all)[3..], ["minivmm.in", "minivmm.files"]);
        assert_eq!(CommandPorts::with(all).streams().len(), 6, "a terminal has no name");
    }

    #[test]
    fn lines_of_init_are_understood_and_others_are_not() {
        let (mut lines, mut heard) = (InitLines::default(), Vec::new());
        let long = [&[b'x'; 5000][..], b"\n"].concat();
        for piece in [
            &b"rea"[..],
            b"dy\nup\nexit 7\nexit 300\nexit\nup now\n\xff\n",
            &long,
            b"exit 0\nexit 9",
            b"\nnodir\ninit 1.25 1.5\ninit 2 1\ninit 1\ninit NaN inf\npacked 1\n",
        ] {
            lines.push(piece, |said| heard.push(said));
        }
        let init = Said::Init(Duration::from_millis(250));
        let exits = [Said::Exited(7), Said::Exited(0), Said::Exited(9)];
        assert_eq!(
            heard,
            [&[Said::Ready, Said::Up], &exits[..], &[Said::NoDirectory, init, Said::Packed(1)]].concat()
        );
    }
}
