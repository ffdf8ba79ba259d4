//! A folder whose file system is this process (FUSE): programs see it as any other, and each change and each sync of theirs
//! is recorded. Below it there is no cache of the kernel that could keep what was not written, and none is left after it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tiny_guest::plan::Chance;

use crate::without::lacks;

use super::recording::{Change, Event, Folder, Recording};
use super::wire::{Answer, HEADER, MOST, ROOT, Request, failure, op};

/// How long an operation takes at most.
const SYNC: u64 = 3000;
const WRITE: u64 = 500;

/// A recorded folder, and programs that see it: in a mount namespace that only they are in, so that nothing of it is left, whichever way
/// the test ends.
pub(crate) struct Recorded {
    path: TempDir,
    recording: Arc<Mutex<Recording>>,
    server: JoinHandle<()>,
    /// Programs are started by a thread that is in the namespace.
    starter: mpsc::Sender<Start>,
}

type Start = (Command, mpsc::Sender<io::Result<std::process::Child>>);

impl Recorded {
    /// With these files in it, which are durable. `None` where the host has no FUSE, and the environment allows that.
    /// `failing`: of which file what number of sync fails.
    pub(crate) fn new(before: Folder, seed: u64, failing: Option<(&str, u64)>) -> Option<Self> {
        let path = TempDir::new().unwrap();
        let recording = Arc::new(Mutex::new(Recording { before: before.clone(), events: Vec::new() }));
        let (starter, starts) = mpsc::channel();
        let (mounted, device) = mpsc::channel();
        let at = path.path().to_owned();
        thread::spawn(move || start_programs(&at, &mounted, &starts));
        let device = match device.recv().unwrap() {
            Ok(device) => device,
            Err(error) => {
                lacks("fuse", &format!("{error}: run it as root, with /dev/fuse (modprobe fuse)"));
                return None;
            }
        };
        let log = recording.clone();
        let failing = failing.map(|(name, number)| (before.names[name.as_bytes()], number));
        let server = thread::spawn(move || Server::new(device, before, log, seed, failing).serve());
        Some(Recorded { path, recording, server, starter })
    }

    pub(crate) fn path(&self) -> &Path {
        self.path.path()
    }

    /// Starts a program that sees the folder.
    pub(crate) fn start(&self, command: Command) -> io::Result<std::process::Child> {
        let (started, child) = mpsc::channel();
        self.starter.send((command, started)).unwrap();
        child.recv().unwrap()
    }

    /// What happened, when all programs that were started have ended.
    pub(crate) fn end(self) -> Recording {
        drop(self.starter);
        // With the last member of the namespace goes the mount.
        self.server.join().unwrap();
        std::mem::take(&mut self.recording.lock().unwrap())
    }
}

/// Mounts the folder where only this thread and what it starts see it, and starts programs until there are no more.
fn start_programs(path: &Path, mounted: &mpsc::Sender<io::Result<File>>, starts: &Receiver<Start>) {
    let mount = mount(path);
    let failed = mount.is_err();
    mounted.send(mount).unwrap();
    if !failed {
        for (mut command, started) in starts {
            started.send(command.spawn()).unwrap();
        }
    }
}

#[allow(unsafe_code, reason = "unshare(2) and mount(2) have no safe wrapper in std")]
fn mount(path: &Path) -> io::Result<File> {
    let device = OpenOptions::new().read(true).write(true).open("/dev/fuse")?;
    let text = |text: &str| std::ffi::CString::new(text).unwrap();
    let options = text(&format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd()));
    let (name, kind, root, at) = (text("power"), text("fuse"), text("/"), text(path.to_str().unwrap()));
    let (private, none) = (libc::MS_REC | libc::MS_PRIVATE, std::ptr::null());
    // SAFETY: the pointers are to strings that live through the calls; this thread's namespace is its own.
    let done = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(none, root.as_ptr(), none, private, none.cast()) == 0
            && libc::mount(
                name.as_ptr(),
                at.as_ptr(),
                kind.as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                options.as_ptr().cast(),
            ) == 0
    };
    if done { Ok(device) } else { Err(io::Error::last_os_error()) }
}

/// The file system.
struct Server {
    device: File,
    now: Folder,
    next: u64,
    log: Arc<Mutex<Recording>>,
    /// Answers that are held back, with the events that end with them.
    held: Vec<(Instant, usize, Vec<u8>)>,
    chance: Chance,
    /// A node, and how many of its syncs there are up to the one that fails.
    failing: Option<(u64, u64)>,
}

/// What becomes of a request.
enum Reply {
    Now(Answer),
    Error(i32),
    /// A change or a sync that takes so many microseconds at most.
    Later(Answer, Event, u64),
    Nothing,
}

impl Server {
    fn new(
        device: File,
        now: Folder,
        log: Arc<Mutex<Recording>>,
        seed: u64,
        failing: Option<(u64, u64)>,
    ) -> Self {
        let next = ROOT + 1 + now.files.len() as u64;
        Server { device, now, next, log, held: Vec::new(), chance: Chance(seed), failing }
    }

    /// Until the folder is mounted nowhere.
    fn serve(mut self) {
        let mut buffer = vec![0; MOST + (64 << 10)];
        loop {
            self.release();
            let due = self.held.iter().map(|(due, _, _)| *due).min();
            if !self.readable(due) {
                continue;
            }
            match self.device.read(&mut buffer) {
                Ok(len @ HEADER..) => self.answer(&buffer[..len]),
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::ENOENT)) => {}
                _ => return,
            }
        }
    }

    #[allow(unsafe_code, reason = "poll(2) has no safe wrapper in std")]
    fn readable(&self, due: Option<Instant>) -> bool {
        let limit = due.map_or(-1, |due| {
            let left = due.saturating_duration_since(Instant::now());
            i32::try_from(left.as_millis() + 1).unwrap()
        });
        let mut poll = libc::pollfd { fd: self.device.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one entry, which lives through the call.
        unsafe { libc::poll(&raw mut poll, 1, limit) > 0 }
    }

    /// Sends what has been held back for long enough.
    fn release(&mut self) {
        let now = Instant::now();
        let (due, held) = std::mem::take(&mut self.held).into_iter().partition(|(due, _, _)| *due <= now);
        self.held = held;
        let due: Vec<_> = due;
        for (_, event, message) in due {
            self.log.lock().unwrap().events.push(Event::Done(event));
            self.send(&message);
        }
    }

    fn send(&mut self, message: &[u8]) {
        // Who asked may have gone.
        let _ = self.device.write_all(message);
    }

    fn answer(&mut self, message: &[u8]) {
        let mut request = Request::new(message);
        let unique = request.unique;
        match self.reply(&mut request) {
            Reply::Nothing => {}
            Reply::Error(errno) => self.send(&failure(unique, errno)),
            Reply::Now(answer) => self.send(&answer.message(unique)),
            Reply::Later(answer, event, most) => {
                if let Event::Change(node, change) = &event {
                    self.now.apply(*node, change);
                }
                let mut log = self.log.lock().unwrap();
                log.events.push(event);
                let place = log.events.len() - 1;
                drop(log);
                let takes = Duration::from_micros(self.chance.below(most + 1));
                self.held.push((Instant::now() + takes, place, answer.message(unique)));
            }
        }
    }

    fn size(&self, node: u64) -> u64 {
        self.now.files.get(&node).map_or(0, |file| file.len() as u64)
    }

    fn reply(&mut self, request: &mut Request<'_>) -> Reply {
        let node = request.node;
        match request.opcode {
            op::INIT => Reply::Now(Answer::default().init()),
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => Reply::Nothing,
            op::GETATTR => Reply::Now(Answer::default().node(node, self.size(node))),
            op::OPEN | op::OPENDIR => Reply::Now(Answer::default().open()),
            op::STATFS => Reply::Now(Answer::default().statfs()),
            op::RELEASE | op::RELEASEDIR | op::FLUSH | op::ACCESS | op::DESTROY => {
                Reply::Now(Answer::default())
            }
            op::FSYNC if self.fails(node) => {
                self.log.lock().unwrap().events.push(Event::Lost(node));
                Reply::Error(libc::EIO)
            }
            op::FSYNC | op::FSYNCDIR => Reply::Later(Answer::default(), Event::Sync(node), SYNC),
            op::READDIR => self.list(request),
            op::LOOKUP | op::LINK | op::CREATE | op::UNLINK | op::RENAME | op::RENAME2 => self.name(request),
            op::READ | op::WRITE | op::SETATTR | op::FALLOCATE | op::LSEEK => self.content(request),
            _ => Reply::Error(libc::ENOSYS),
        }
    }

    /// Whether this sync of a node is the one that fails.
    fn fails(&mut self, node: u64) -> bool {
        let failing = self.failing.as_mut().filter(|(of, left)| *of == node && *left > 0);
        let Some((_, left)) = failing else { return false };
        *left -= 1;
        *left == 0
    }

    fn list(&self, request: &mut Request<'_>) -> Reply {
        let (_handle, offset) = (request.u64(), request.u64());
        let from = usize::try_from(offset).unwrap();
        let all = self.now.names.iter().zip(1..).skip(from);
        Reply::Now(all.fold(Answer::default(), |answer, ((name, node), next)| answer.name(*node, next, name)))
    }

    fn name(&mut self, request: &mut Request<'_>) -> Reply {
        let changes = |change| Event::Change(ROOT, change);
        match request.opcode {
            op::LOOKUP => match self.now.names.get(&request.name()) {
                Some(node) => Reply::Now(Answer::default().entry(*node, self.size(*node))),
                None => Reply::Error(libc::ENOENT),
            },
            op::CREATE => {
                request.take(16);
                let (node, name) = (self.next, request.name());
                self.next += 1;
                self.now.files.insert(node, Vec::new());
                Reply::Later(Answer::default().entry(node, 0).open(), changes(Change::Name { name, node }), 0)
            }
            op::LINK => {
                let (node, name) = (request.u64(), request.name());
                if self.now.names.contains_key(&name) {
                    return Reply::Error(libc::EEXIST);
                }
                let answer = Answer::default().entry(node, self.size(node));
                Reply::Later(answer, changes(Change::Name { name, node }), 0)
            }
            op::UNLINK => Reply::Later(Answer::default(), changes(Change::NoName(request.name())), 0),
            _ => {
                let _folder = request.u64();
                let flags = if request.opcode == op::RENAME2 { request.u64() } else { 0 };
                let (from, to) = (request.name(), request.name());
                if flags & !u64::from(libc::RENAME_NOREPLACE) != 0 {
                    return Reply::Error(libc::EINVAL);
                }
                if flags != 0 && self.now.names.contains_key(&to) {
                    return Reply::Error(libc::EEXIST);
                }
                Reply::Later(Answer::default(), changes(Change::Rename { from, to }), 0)
            }
        }
    }

    fn content(&mut self, request: &mut Request<'_>) -> Reply {
        let node = request.node;
        let Some(file) = self.now.files.get(&node) else { return Reply::Error(libc::EISDIR) };
        let number = |number: u64| usize::try_from(number).unwrap();
        match request.opcode {
            op::READ => {
                let (_handle, offset, len) = (request.u64(), number(request.u64()), request.u32());
                let from = offset.min(file.len());
                let to = (offset + number(len.into())).min(file.len());
                Reply::Now(Answer::default().bytes(&file[from..to.max(from)]))
            }
            op::WRITE => {
                let (_handle, offset, len) = (request.u64(), number(request.u64()), request.u32());
                request.take(20);
                let data = request.take(number(len.into())).to_vec();
                Reply::Later(
                    Answer::default().u32(len).u32(0),
                    Event::Change(node, Change::Write { offset, data }),
                    WRITE,
                )
            }
            op::SETATTR => {
                const SIZE: u32 = 1 << 3;
                let (what, _, _handle, size) = (request.u32(), request.u32(), request.u64(), request.u64());
                if what & SIZE == 0 {
                    return Reply::Now(Answer::default().node(node, file.len() as u64));
                }
                Reply::Later(
                    Answer::default().node(node, size),
                    Event::Change(node, Change::Size(number(size))),
                    0,
                )
            }
            op::FALLOCATE => {
                let (_handle, offset, len) = (request.u64(), number(request.u64()), number(request.u64()));
                let (mode, end) = (request.u32().cast_signed(), offset + len);
                let zero = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
                let change = match (zero, mode & libc::FALLOC_FL_KEEP_SIZE != 0) {
                    (true, true) => Change::Zero { offset, len: end.min(file.len()).saturating_sub(offset) },
                    (true, false) => return Reply::Error(libc::EOPNOTSUPP),
                    (false, true) => return Reply::Now(Answer::default()),
                    (false, false) => Change::Size(end.max(file.len())),
                };
                Reply::Later(Answer::default(), Event::Change(node, change), WRITE)
            }
            _ => {
                let (_handle, offset, whence) = (request.u64(), request.u64(), request.u32().cast_signed());
                let end = file.len() as u64;
                match whence {
                    _ if offset >= end => Reply::Error(libc::ENXIO),
                    libc::SEEK_DATA => Reply::Now(Answer::default().u64(offset)),
                    libc::SEEK_HOLE => Reply::Now(Answer::default().u64(end)),
                    _ => Reply::Error(libc::EINVAL),
                }
            }
        }
    }
}
