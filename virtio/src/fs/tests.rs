//! The protocol, spoken by a driver, over a file system in memory.

use super::testing::{MemoryFs, init, request};
use super::*;
use crate::shared_registers::NEEDS_RESET;
use crate::testing::{Guest, RawDescriptor};
use devices::component::Component;

const REQ: usize = REQUESTS as usize;
const HIGH: usize = HIGH_PRIORITY as usize;

struct Driver {
    guest: Guest<Epoll>,
    unique: u64,
}

impl Driver {
    fn new(fs: &MemoryFs) -> Self {
        Self::of(Fs::new("fs0", "work", Box::new(fs.clone())))
    }

    fn of(device: Fs) -> Self {
        let mut guest = Guest::new(Box::new(device), Box::new(Epoll::new));
        guest.start(0, 64);
        let mut driver = Driver { guest, unique: 0 };
        assert_eq!(driver.ask(opcode::INIT, 0, &init(38, 0), 64).0, 0);
        driver
    }

    /// Error, and what follows the answer's header.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8], room: usize) -> (i32, Vec<u8>) {
        self.unique += 1;
        let bytes = request(opcode, self.unique, node, body);
        let (header, rest) = bytes.split_at(IN_HEADER);
        let (used, outs) = self.guest.request(REQ, &[header, rest], &[OUT_HEADER, room]);
        let out: Vec<u8> = outs.concat();
        assert_eq!(used.len, u32::from_le_bytes(out[..4].try_into().unwrap()), "length");
        assert_eq!(u64::from_le_bytes(out[8..16].try_into().unwrap()), self.unique);
        let error = i32::from_le_bytes(out[4..8].try_into().unwrap());
        (-error, out[OUT_HEADER..used.len as usize].to_vec())
    }

    /// Makes and opens a file: node and handle.
    fn create(&mut self, name: &[u8]) -> (u64, u64) {
        let body = [&words(&[2, 0o644, 0, 0]), name, b"\0"].concat();
        let (error, out) = self.ask(opcode::CREATE, 1, &body, 144);
        assert_eq!(error, 0);
        (word(&out, 0), word(&out, 128))
    }

    fn lock(&mut self, opcode: u32, handle: u64, owner: u64, kind: u32) -> (i32, Vec<u8>) {
        self.ask(opcode, 1, &lock(handle, owner, kind), 24)
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn longs(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn lock(handle: u64, owner: u64, kind: u32) -> Vec<u8> {
    [longs(&[handle, owner, 0, i64::MAX.cast_unsigned()]), words(&[kind, 0, 0, 0])].concat()
}

#[test]
fn configuration_has_the_tag_and_one_request_queue() {
    let mut driver = Driver::new(&MemoryFs::new(Caching::Auto));
    let config = driver.guest.config(0, 40);
    assert_eq!((&config[..5], &config[36..]), (b"work\0".as_slice(), [1, 0, 0, 0].as_slice()));
    assert_eq!(driver.guest.queues(), 2);
}

#[test]
fn file_is_made_written_read_and_forgotten() {
    let fs = MemoryFs::new(Caching::Auto);
    let mut driver = Driver::new(&fs);
    let (node, handle) = driver.create(b"a");
    let write = [longs(&[handle, 3]), words(&[5, 0]), longs(&[0, 0]), b"hello".to_vec()].concat();
    assert_eq!(driver.ask(opcode::WRITE, node, &write, 8), (0, longs(&[5])));
    let read = [longs(&[handle, 1]), words(&[100, 0]), longs(&[0, 0])].concat();
    assert_eq!(driver.ask(opcode::READ, node, &read, 200), (0, b"\0\0hello".to_vec()));
    // No more than there is room for.
    assert_eq!(driver.ask(opcode::READ, node, &read, 4), (0, b"\0\0he".to_vec()));
    // O_APPEND: to the end, wherever the guest thinks that it is; but pages of its cache have their places (FUSE_WRITE_CACHE).
    for (flags, end) in [(0, b"hello!".as_slice()), (1, b"?ello!")] {
        let write = [longs(&[handle, 3]), words(&[1, flags]), longs(&[0]), words(&[0o2001, 0])].concat();
        let byte = if flags == 0 { b"!" } else { b"?" };
        assert_eq!(driver.ask(opcode::WRITE, node, &[write, byte.to_vec()].concat(), 8), (0, longs(&[1])));
        let read = [longs(&[handle, 3]), words(&[100, 0]), longs(&[0, 0])].concat();
        assert_eq!(driver.ask(opcode::READ, node, &read, 200), (0, end.to_vec()));
    }
    let (error, found) = driver.ask(opcode::LOOKUP, 1, b"a\0", 128);
    assert_eq!((error, word(&found, 0), word(&found, 48)), (0, node, 9), "{found:?}");
    assert_eq!(fs.lookups(), 2);
    let forget = request(opcode::FORGET, 9, node, &longs(&[2]));
    assert_eq!(driver.guest.request(HIGH, &[&forget], &[]).0.len, 0);
    assert_eq!(fs.lookups(), 0);
    let counters = driver.guest.counters();
    assert_eq!((counters.bytes_in.now(), counters.bytes_out.now()), (7 + 4 + 6 + 6, 5 + 2));
}

#[test]
fn guest_is_told_of_what_it_forgot_together_and_before_the_device_rests() {
    let fs = MemoryFs::new(Caching::Auto);
    let forget = |driver: &mut Driver| {
        driver.guest.request(HIGH, &[&request(opcode::FORGET, 9, 2, &longs(&[1]))], &[]);
    };
    // That of its mounting.
    let is_told = |driver: &mut Driver, times| {
        driver.guest.wait_until("it is told", |guest| guest.interrupts_of_all() == times);
    };
    let new = || Fs::new("fs0", "work", Box::new(fs.clone()));
    let mut driver = Driver::of(Fs { collected: Duration::from_secs(3600), ..new() });
    is_told(&mut driver, 1);
    (0..3).for_each(|_| forget(&mut driver));
    assert_eq!(driver.guest.interrupts_of_all(), 1);
    driver.guest.function.quiesce();
    assert_eq!(driver.guest.interrupts_of_all(), 2);
    let mut driver = Driver::of(new());
    is_told(&mut driver, 1);
    forget(&mut driver);
    is_told(&mut driver, 2);
}

#[test]
fn answers_without_room_do_nothing() {
    let fs = MemoryFs::new(Caching::Auto);
    let mut driver = Driver::new(&fs);
    driver.create(b"a");
    let before = fs.lookups();
    assert_eq!(driver.ask(opcode::LOOKUP, 1, b"a\0", 127).0, Errno::INVAL.raw());
    let body = [words(&[2, 0o644, 0, 0]), b"b\0".to_vec()].concat();
    assert_eq!(driver.ask(opcode::CREATE, 1, &body, 143).0, Errno::INVAL.raw());
    assert_eq!(driver.ask(opcode::LOOKUP, 1, b"b\0", 128).0, Errno::NOENT.raw());
    assert_eq!(fs.lookups(), before);
}

#[test]
fn listings_end_where_the_buffer_does_and_go_on_there() {
    let fs = MemoryFs::new(Caching::Auto);
    let mut driver = Driver::new(&fs);
    for n in 0..9u8 {
        driver.create(&[b'a' + n; 9]);
    }
    let opened = driver.ask(opcode::OPENDIR, 1, &words(&[0, 0]), 16).1;
    let handle = word(&opened, 0);
    for (opcode, size, each) in [(opcode::READDIR, 40, 2), (opcode::READDIRPLUS, 168, 1)] {
        let (mut offset, mut names, before) = (0, 0, fs.lookups());
        loop {
            let room = u32::try_from(size * each + 8).unwrap();
            let read = [longs(&[handle, offset]), words(&[room, 0]), longs(&[0, 0])].concat();
            let (error, out) = driver.ask(opcode, 1, &read, 4096);
            assert_eq!(error, 0);
            if out.is_empty() {
                break;
            }
            assert!(out.len().is_multiple_of(size) && out.len() <= size * each);
            names += out.len() / size;
            offset = word(&out, out.len() - 40 + 8);
        }
        assert_eq!(names, 9);
        assert_eq!(fs.lookups() - before, if opcode == opcode::READDIR { 0 } else { 9 });
    }
}

#[test]
fn missing_names_are_remembered_where_nobody_else_makes_files() {
    for (caching, error) in
        [(Caching::Auto, Errno::NOENT.raw()), (Caching::Never, Errno::NOENT.raw()), (Caching::Always, 0)]
    {
        let mut driver = Driver::new(&MemoryFs::new(caching));
        let (found, out) = driver.ask(opcode::LOOKUP, 1, b"x\0", 128);
        assert_eq!(found, error);
        assert!(found != 0 || (word(&out, 0), word(&out, 16)) == (0, 86400));
    }
}

/// FUSE_WRITEBACK_CACHE: what was written is not all at the host.
#[test]
fn holes_are_not_told_to_a_guest_that_collects_writes() {
    for (caching, error) in [(Caching::Auto, Errno::new(6)), (Caching::Always, Errno::NOSYS)] {
        let mut driver = Driver::new(&MemoryFs::new(caching));
        driver.ask(opcode::INIT, 0, &init(38, 1 << 16), 64);
        let (node, handle) = driver.create(b"a");
        let seek = [longs(&[handle, 0]), words(&[4, 0])].concat();
        assert_eq!(driver.ask(opcode::LSEEK, node, &seek, 8).0, error.raw(), "{caching:?}");
    }
}

#[test]
fn malformed_requests_are_errors() {
    let mut driver = Driver::new(&MemoryFs::new(Caching::Auto));
    let (node, handle) = driver.create(b"a");
    let inval = Errno::INVAL.raw();
    for name in [b"..\0".as_slice(), b".\0", b"\0", b"a/b\0", b"/etc\0", b"no end"] {
        assert_eq!(driver.ask(opcode::LOOKUP, 1, name, 128).0, inval, "{name:?}");
    }
    let device = [words(&[0o020_644, 0, 0, 0]), b"d\0".to_vec()].concat();
    assert_eq!(driver.ask(opcode::MKNOD, 1, &device, 128).0, Errno::PERM.raw());
    for (opcode, body, error) in [
        (0, vec![], Errno::NOSYS.raw()),
        (4711, vec![0; 100], Errno::NOSYS.raw()),
        (opcode::GETATTR, vec![0; 15], inval),
        (opcode::OPEN, words(&[3, 0]), inval),
        (opcode::RENAME2, [longs(&[1]), words(&[4, 0]), b"a\0b\0".to_vec()].concat(), inval),
        (opcode::SYMLINK, b"l\0\0".to_vec(), Errno::NOENT.raw()),
        (opcode::SYMLINK, [b"l\0".to_vec(), vec![b'x'; 4096], vec![0]].concat(), Errno::NAMETOOLONG.raw()),
        (opcode::SETXATTR, [words(&[u32::MAX, 0]), b"user.x\0v".to_vec()].concat(), inval),
        (opcode::SETXATTR, vec![1; 100 << 10], Errno::TOO_BIG.raw()),
        // A write of more than is there, or less.
        (opcode::WRITE, [longs(&[handle, 0]), words(&[5, 0]), longs(&[0, 0]), vec![0; 4]].concat(), inval),
        (opcode::WRITE, [longs(&[handle, 0]), words(&[3, 0]), longs(&[0, 0]), vec![0; 4]].concat(), inval),
        (opcode::READ, [longs(&[!0, 0]), words(&[5, 0]), longs(&[0, 0])].concat(), Errno::BADF.raw()),
        (opcode::SETLK, [longs(&[handle, 0, 5, 4]), words(&[1, 0, 0, 0])].concat(), inval),
    ] {
        assert_eq!(driver.ask(opcode, node, &body, 300).0, error, "{opcode}");
    }
    // A length that is not the chain's.
    let mut lying = request(opcode::GETATTR, 7, 1, &[0; 16]);
    lying[0] += 1;
    let (_, out) = driver.guest.request(REQ, &[&lying], &[200]);
    assert_eq!(out[0][4..8], (-inval).to_le_bytes());
    // Forgetting has no answer, whatever is wrong with it.
    let bytes = request(opcode::BATCH_FORGET, 7, 0, &words(&[u32::MAX, 0, 1, 0, 1, 0]));
    assert_eq!(driver.guest.request(HIGH, &[&bytes], &[64]).0.len, 0);
    assert_eq!(driver.ask(opcode::STATFS, 1, &[], 80).0, 0);
}

#[test]
fn nothing_is_served_before_it_is_mounted_and_nothing_after_it_is_unmounted() {
    let fs = MemoryFs::new(Caching::Auto);
    let mut driver = Driver::new(&fs);
    driver.create(b"a");
    assert_eq!(driver.ask(opcode::DESTROY, 0, &[], 0).0, 0);
    assert_eq!(driver.ask(opcode::LOOKUP, 1, b"a\0", 128).0, Errno::IO.raw());
    assert_eq!(fs.lookups(), 0);
    assert_eq!(driver.ask(opcode::INIT, 0, &init(31, 0), 64).0, 0);
    assert_eq!(driver.ask(opcode::LOOKUP, 1, b"a\0", 128).0, 0);
    driver.guest.start(0, 64);
    assert_eq!(driver.ask(opcode::LOOKUP, 1, b"a\0", 128).0, Errno::IO.raw());
    assert_eq!(fs.lookups(), 0);
}

#[test]
fn lock_that_is_held_is_waited_for_without_holding_up_others() {
    let mut driver = Driver::new(&MemoryFs::new(Caching::Auto));
    let (_, handle) = driver.create(b"a");
    assert_eq!(driver.lock(opcode::SETLK, handle, 1, 1).0, 0);
    assert_eq!(driver.lock(opcode::SETLK, handle, 2, 1).0, Errno::AGAIN.raw());
    let (error, found) = driver.lock(opcode::GETLK, handle, 2, 1);
    assert_eq!((error, found[16]), (0, 1));
    for (unique, owner) in [(77, 2), (78, 3)] {
        let wait = request(opcode::SETLKW, unique, 1, &lock(handle, owner, 1));
        driver.guest.add(REQ, &[&wait], &[OUT_HEADER]);
        driver.guest.kick(REQ);
    }
    assert_eq!(driver.ask(opcode::STATFS, 1, &[], 80).0, 0, "others go on");
    // The first gets it with the unlock, the second is interrupted.
    let (queue, unlock) = (REQ, request(opcode::SETLK, 80, 1, &lock(handle, 1, 2)));
    let (_, unlocked) = driver.guest.add(queue, &[&unlock], &[OUT_HEADER]);
    driver.guest.kick(queue);
    let heads = [driver.guest.rings[REQ].wait_used(), driver.guest.rings[REQ].wait_used()];
    assert_eq!(driver.guest.bytes(unlocked[0] + 8, 8), longs(&[80]));
    assert_eq!(heads.map(|used| used.len), [16, 16]);
    let interrupt = request(opcode::INTERRUPT, 81, 0, &longs(&[78]));
    driver.guest.request(HIGH, &[&interrupt], &[]);
    assert_eq!(driver.guest.rings[REQ].wait_used().len, 16);
    assert_eq!(driver.lock(opcode::SETLK, handle, 4, 1).0, Errno::AGAIN.raw(), "2 has it");
}

#[test]
fn who_would_wait_for_itself_gets_an_error_and_the_others_go_on() {
    let mut driver = Driver::new(&MemoryFs::new(Caching::Auto));
    let files = [b"a", b"b", b"c"].map(|name| driver.create(name).1);
    for (owner, handle) in (1..).zip(files) {
        assert_eq!(driver.lock(opcode::SETLK, handle, owner, 1).0, 0);
    }
    // Each waits for the next one's; the last one would for the first one's.
    let mut waits = |owner, handle| send(&mut driver, opcode::SETLKW, 70 + owner, &lock(handle, owner, 1));
    let outs = [waits(1, files[1]), waits(2, files[2])];
    assert_eq!(driver.lock(opcode::SETLKW, files[0], 3, 1).0, Errno::DEADLK.raw());
    assert_eq!(driver.guest.rings[REQ].poll_used(), None);
    assert_eq!(driver.lock(opcode::SETLK, files[2], 3, 2).0, 0);
    assert_eq!(driver.guest.rings[REQ].wait_used().len, 16);
    assert_eq!(answer(&driver.guest, outs[1]), (0, 72));
    // That it waits for nobody any more is seen too.
    assert_eq!(driver.lock(opcode::SETLK, files[1], 2, 2).0, 0);
    assert_eq!(driver.guest.rings[REQ].wait_used().len, 16);
    assert_eq!(answer(&driver.guest, outs[0]), (0, 71));
}

#[test]
fn lock_of_somebody_on_the_host_is_asked_for_again_also_after_a_move() {
    let fs = MemoryFs::new(Caching::Auto);
    let mut driver = Driver::new(&fs);
    let (_, handle) = driver.create(b"a");
    fs.lock_all(true);
    let wait = request(opcode::SETLKW, 77, 1, &lock(handle, 2, 1));
    let (_, outs) = driver.guest.add(REQ, &[&wait], &[OUT_HEADER]);
    driver.guest.kick(REQ);
    assert_eq!(driver.ask(opcode::STATFS, 1, &[], 80).0, 0);
    let device = Fs::new("fs0", "work", Box::new(fs.clone()));
    let mut guest = driver.guest.moved(Box::new(device), Box::new(Epoll::new));
    fs.lock_all(false);
    assert_eq!(guest.rings[REQ].wait_used().len, 16);
    assert_eq!(guest.bytes(outs[0] + 4, 4), [0; 4]);
}

#[test]
fn guest_that_waits_for_too_many_locks_gets_an_error() {
    let fs = MemoryFs::new(Caching::Auto);
    let device = Fs::new("fs0", "work", Box::new(fs.clone()));
    let mut guest = Guest::new(Box::new(device), Box::new(Epoll::new));
    guest.start(0, 1024);
    let mut driver = Driver { guest, unique: 0 };
    driver.ask(opcode::INIT, 0, &init(38, 0), 64);
    let (_, handle) = driver.create(b"a");
    fs.lock_all(true);
    for unique in 0..=MOST_WAITING as u64 {
        let wait = request(opcode::SETLKW, 1000 + unique, 1, &lock(handle, unique, 1));
        driver.guest.add(REQ, &[&wait], &[OUT_HEADER]);
    }
    driver.guest.kick(REQ);
    driver.guest.rings[REQ].wait_used();
    assert_eq!(driver.guest.rings[REQ].poll_used(), None);
    driver.guest.start(0, 64);
    assert_eq!(driver.ask(opcode::INIT, 0, &init(38, 0), 64).0, 0, "a reset ends them");
}

/// Sends a request that is not waited for.
fn send(driver: &mut Driver, opcode: u32, unique: u64, body: &[u8]) -> u64 {
    let bytes = request(opcode, unique, 1, body);
    let (_, outs) = driver.guest.add(REQ, &[&bytes], &[OUT_HEADER + 8]);
    driver.guest.kick(REQ);
    outs[0]
}

/// Error and number of the request that an answer is for.
fn answer(guest: &Guest<Epoll>, at: u64) -> (i32, u64) {
    let bytes = guest.bytes(at, OUT_HEADER);
    (-i32::from_le_bytes(bytes[4..8].try_into().unwrap()), word(&bytes, 8))
}

#[test]
fn calls_that_take_long_hold_up_nobody() {
    let fs = MemoryFs::new(Caching::Auto);
    let mut driver = Driver::new(&fs);
    let (_, handle) = driver.create(b"a");
    fs.hold(true);
    let copy = longs(&[handle, 0, 1, handle, 0, 100, 0]);
    let all = [
        (opcode::SYNCFS, longs(&[0])),
        (opcode::FSYNC, longs(&[handle, 0])),
        (opcode::FSYNCDIR, longs(&[handle, 0])),
        (opcode::COPY_FILE_RANGE, copy.clone()),
        // Those have no thread yet.
        (opcode::FALLOCATE, longs(&[handle, 0, 100, 0])),
        (opcode::COPY_FILE_RANGE, copy),
    ];
    let outs: Vec<_> =
        (70..).zip(&all).map(|(unique, (opcode, body))| send(&mut driver, *opcode, unique, body)).collect();
    assert_eq!(driver.ask(opcode::STATFS, 1, &[], 80).0, 0, "others go on");
    assert_eq!(driver.lock(opcode::SETLK, handle, 1, 1).0, 0);
    // One without a thread is ended, one with a thread is not.
    for unique in [74, 70] {
        driver.guest.request(HIGH, &[&request(opcode::INTERRUPT, 90, 0, &longs(&[unique]))], &[]);
    }
    assert_eq!(driver.guest.rings[REQ].wait_used().len, 16);
    assert_eq!(answer(&driver.guest, outs[4]), (Errno::INTR.raw(), 74));
    assert_eq!(driver.guest.rings[REQ].poll_used(), None);
    fs.hold(false);
    let mut lens: Vec<_> = (0..5).map(|_| driver.guest.rings[REQ].wait_used().len).collect();
    lens.sort_unstable();
    assert_eq!(lens, [16, 16, 16, 24, 24]);
    for (unique, at) in (70..).zip(outs).filter(|(unique, _)| *unique != 74) {
        assert_eq!(answer(&driver.guest, at), (0, unique));
    }
    // What is wrong is told at once.
    assert_eq!(driver.ask(opcode::FSYNC, 1, &longs(&[!0, 0]), 0).0, Errno::BADF.raw());
}

#[test]
fn device_that_rests_waits_for_no_call_and_has_it_made_again_when_it_goes_on() {
    for (opcode, is_copy) in [(opcode::SYNCFS, false), (opcode::COPY_FILE_RANGE, true)] {
        let fs = MemoryFs::new(Caching::Auto);
        let mut driver = Driver::new(&fs);
        let (_, handle) = driver.create(b"a");
        fs.hold(true);
        let body = if is_copy { longs(&[handle, 0, 1, handle, 0, 100, 0]) } else { longs(&[0]) };
        // More than there are threads.
        let outs: Vec<_> = (0..6).map(|n| send(&mut driver, opcode, 70 + n, &body)).collect();
        assert_eq!(driver.ask(opcode::STATFS, 1, &[], 80).0, 0, "all are begun");
        let device = Fs::new("fs0", "work", Box::new(fs.clone()));
        let mut guest = driver.guest.moved(Box::new(device), Box::new(Epoll::new));
        assert_eq!(guest.rings[REQ].poll_used(), None);
        fs.hold(false);
        (0..6).for_each(|_| assert_eq!(guest.rings[REQ].wait_used().len, if is_copy { 24 } else { 16 }));
        for (unique, at) in (70..).zip(outs) {
            assert_eq!(answer(&guest, at), (0, unique));
        }
    }
}

#[test]
fn request_that_is_no_request_when_the_device_goes_on_breaks_its_queue_and_the_driver_is_told() {
    let fs = MemoryFs::new(Caching::Auto);
    let mut driver = Driver::new(&fs);
    fs.hold(true);
    let body = request(opcode::SYNCFS, 70, 1, &longs(&[0]));
    let (head, _) = driver.guest.add(REQ, &[&body], &[OUT_HEADER]);
    driver.guest.kick(REQ);
    assert_eq!(driver.ask(opcode::STATFS, 1, &[], 80).0, 0, "it is begun");
    driver.guest.function.quiesce();
    let nowhere = RawDescriptor { address: u64::MAX - 7, len: 16, ..RawDescriptor::default() };
    driver.guest.rings[REQ].set_descriptor(head, nowhere);
    driver.guest.function.go();
    driver.guest.wait_until("the device needs a reset", |guest| guest.status() & NEEDS_RESET != 0);
    fs.hold(false);
}

/// The host tells of data that it lost once. Who hears it may be a call that nobody waits for any more.
#[test]
fn sync_that_fails_while_the_device_rests_is_told_to_the_guest() {
    let fs = MemoryFs::new(Caching::Auto);
    let mut driver = Driver::new(&fs);
    fs.hold(true);
    fs.lose(Errno::IO);
    let outs = [70, 71].map(|unique| send(&mut driver, opcode::SYNCFS, unique, &longs(&[0])));
    assert_eq!(driver.ask(opcode::STATFS, 1, &[], 80).0, 0, "they are begun");
    driver.guest.function.quiesce();
    driver.guest.function.go();
    assert_eq!(driver.ask(opcode::STATFS, 1, &[], 80).0, 0, "they are begun again");
    fs.hold(false);
    assert_eq!(outs.map(|_| driver.guest.rings[REQ].wait_used().len), [16; 2]);
    // One of them, whichever the host told.
    let mut errors: Vec<_> = outs.iter().map(|out| answer(&driver.guest, *out).0).collect();
    errors.sort_unstable();
    assert_eq!(errors, [0, Errno::IO.raw()]);
    let out = send(&mut driver, opcode::SYNCFS, 72, &longs(&[0]));
    assert_eq!(driver.guest.rings[REQ].wait_used().len, 16);
    assert_eq!(answer(&driver.guest, out), (0, 72));
}

#[test]
fn calls_of_a_guest_that_is_gone_are_answered_to_nobody() {
    let fs = MemoryFs::new(Caching::Auto);
    let mut driver = Driver::new(&fs);
    fs.hold(true);
    for unique in 70..76 {
        send(&mut driver, opcode::SYNCFS, unique, &longs(&[0]));
    }
    assert_eq!(driver.ask(opcode::STATFS, 1, &[], 80).0, 0, "all are begun");
    driver.guest.start(0, 64);
    assert_eq!(driver.ask(opcode::INIT, 0, &init(38, 0), 64).0, 0);
    let out = send(&mut driver, opcode::SYNCFS, 80, &longs(&[0]));
    fs.hold(false);
    assert_eq!(driver.guest.rings[REQ].wait_used().len, 16);
    assert_eq!(answer(&driver.guest, out), (0, 80));
    assert_eq!(driver.ask(opcode::STATFS, 1, &[], 80).0, 0);
    assert_eq!(driver.guest.rings[REQ].poll_used(), None);
}
