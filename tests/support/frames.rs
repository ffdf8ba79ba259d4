//! The other end of the load guest's network (`frames=1`, tests/guest/load/wire.rs): it sends numbered frames and looks at those that come.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use minivmm::spec::NetSpec;

/// Of the guest, of this end, and a kind for experiments.
const ADDRESSES: [u8; 14] = [2, 0, 0, 0, 0, 0x15, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
/// Words of eight bytes in a frame to the guest, and those at a frame's beginning that do not follow from its number.
const WORDS: u64 = 100;
const FIRST: u64 = 3;

/// What came, and what was sent.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    /// Frames to the guest that the socket took, and those of them that were in the socket when its machine ended.
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    /// Frames of the guest.
    pub(crate) came: u64,
    /// By the last of them: how many frames the guest has, and the number of the last.
    pub(crate) guest_has: u64,
    pub(crate) guest_last: u64,
    /// What is wrong with what came.
    fault: Option<String>,
}

#[derive(Debug)]
struct Shared {
    /// Where the guest's frames come, and what sends: without a pause if there is no room.
    socket: UnixDatagram,
    sender: UnixDatagram,
    guest: PathBuf,
    /// Not held while anything waits.
    counts: Mutex<Counts>,
    news: Condvar,
    /// Frames are sent: a machine is there.
    open: Mutex<State>,
}

#[derive(Debug, PartialEq, Clone, Copy)]
enum State {
    Sends,
    Rests,
    Over,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Peer {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// What the socket has of a frame that nobody has read.
    weight: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn frame(number: u64) -> Vec<u8> {
    let mut frame = ADDRESSES.to_vec();
    frame.extend(number.to_le_bytes());
    for at in 1..WORDS {
        let word = if at < FIRST { 0 } else { tiny_guest::load_word(number, at) };
        frame.extend(word.to_le_bytes());
    }
    frame
}

/// Bytes that are in the socket of whoever they were sent to, as the kernel counts them.
#[allow(unsafe_code, reason = "std does not ask for this")]
fn unread(socket: &UnixDatagram) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the ioctl writes an int.
    assert_eq!(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) }, 0);
    bytes.try_into().unwrap()
}

impl Peer {
    /// An end in `folder`, and the network of the machine at the other one.
    pub(crate) fn new(folder: &Path) -> (Self, NetSpec) {
        let [here, guest] = ["peer", "guest"].map(|name| folder.join(name));
        let (socket, sender) = (UnixDatagram::bind(&here).unwrap(), UnixDatagram::unbound().unwrap());
        let nobody = UnixDatagram::bind(&guest).unwrap();
        sender.send_to(&frame(1), &guest).unwrap();
        let weight = unread(&sender);
        drop(nobody);
        std::fs::remove_file(&guest).unwrap();
        assert_eq!(unread(&sender), 0);
        sender.set_nonblocking(true).unwrap();
        let net = format!("dgram={}:{}", guest.display(), here.display()).parse().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let shared = Shared {
            socket,
            sender,
            guest,
            counts: Mutex::default(),
            news: Condvar::new(),
            open: Mutex::new(State::Rests),
        };
        let shared = Arc::new(shared);
        let threads = [receive as fn(&Shared), send].map(|end| {
            let shared = shared.clone();
            thread::spawn(move || end(&shared))
        });
        (Peer { shared, threads: threads.into(), weight }, net)
    }

    /// A machine is there.
    pub(crate) fn begin(&self) {
        *lock(&self.shared.open) = State::Sends;
    }

    /// The machine that is paused will end. Gives what its socket has, which is lost.
    pub(crate) fn rest(&self) {
        *lock(&self.shared.open) = State::Rests;
        let bytes = unread(&self.shared.sender);
        assert_eq!(bytes % self.weight, 0, "{bytes} bytes of frames that weigh {}", self.weight);
        lock(&self.shared.counts).lost += bytes / self.weight;
    }

    /// Nothing more is sent, to a machine that runs.
    pub(crate) fn finish(&self) {
        *lock(&self.shared.open) = State::Rests;
    }

    /// Waits until what is known is as `done` wants it, and gives it.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, limit: Duration, done: impl Fn(&Counts) -> bool) -> Counts {
        let counts = lock(&self.shared.counts);
        let go_on = |counts: &mut Counts| counts.fault.is_none() && !done(counts);
        let (counts, waited) = self.shared.news.wait_timeout_while(counts, limit, go_on).unwrap();
        assert!(counts.fault.is_none() && !waited.timed_out(), "{what}: {counts:?}");
        counts.clone()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        *lock(&self.shared.open) = State::Over;
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

fn send(shared: &Shared) {
    let mut number = 1;
    loop {
        let sent = {
            let state = lock(&shared.open);
            match *state {
                State::Over => return,
                State::Rests => false,
                State::Sends => shared.sender.send_to(&frame(number), &shared.guest).is_ok(),
            }
        };
        if sent {
            lock(&shared.counts).sent = number;
            number += 1;
        } else {
            // The kernel tells nobody that there is room in a socket to which this one is not connected.
            thread::sleep(Duration::from_micros(300));
        }
    }
}

/// Looks at what comes. Now and then it is slow, so that frames of the guest wait.
fn receive(shared: &Shared) {
    let mut buffer = vec![0; 4096];
    let mut came = 0u64;
    loop {
        if *lock(&shared.open) == State::Over {
            return;
        }
        let Ok(len) = shared.socket.recv(&mut buffer) else { continue };
        let result = look(&buffer[..len], came + 1);
        let mut counts = lock(&shared.counts);
        match result {
            Ok([has, last]) => {
                came += 1;
                (counts.came, counts.guest_has, counts.guest_last) = (came, has, last);
            }
            Err(fault) => counts.fault = Some(fault),
        }
        drop(counts);
        shared.news.notify_all();
        if came.is_multiple_of(64) {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// What the guest says in the frame with this number.
fn look(bytes: &[u8], number: u64) -> Result<[u64; 2], String> {
    let Some((addresses, rest)) = bytes.split_at_checked(ADDRESSES.len()) else {
        return Err(format!("{} bytes came", bytes.len()));
    };
    if addresses[12..] != ADDRESSES[12..] || rest.len() % 8 != 0 {
        return Err(format!("{bytes:x?} came"));
    }
    let words: Vec<u64> =
        rest.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    if words[0] != number {
        return Err(format!("frame {} came instead of {number}", words[0]));
    }
    for (at, word) in (0..).zip(&words).skip(3) {
        if *word != tiny_guest::load_word(number, at) {
            return Err(format!("word {at} of frame {number} is another one"));
        }
    }
    Ok([words[1], words[2]])
}
