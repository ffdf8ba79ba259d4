use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::Wake;
use std::time::Duration;

use devices::component::Component;
use devices::console::ByteQueue;

use super::*;
use crate::testing::Guest;
use crate::transport::VirtioFunction;

type Queues = (Arc<ByteQueue>, Arc<ByteQueue>);

fn stream(capacity: usize) -> (Queues, Box<dyn Backend>) {
    let [input, output] = [0; 2].map(|_| Arc::new(ByteQueue::new(capacity)));
    let backend = Stream::new(input.clone(), output.clone()).unwrap();
    ((input, output), Box::new(backend))
}

/// A guest whose driver plays Linux's.
struct Driver {
    guest: Guest<Epoll>,
    control: u64,
}

fn message(port: u32, event: u16, value: u16) -> Vec<u8> {
    [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
}

impl Driver {
    fn new(console: Console) -> Self {
        let mut driver = Driver { guest: Guest::new(Box::new(console), Box::new(Epoll::new)), control: 0 };
        driver.start();
        driver
    }

    fn start(&mut self) {
        self.guest.start(u64::MAX, 16);
        self.control = self.guest.add(2, &[], &[64]).1[0];
        self.guest.kick(2);
    }

    fn say(&mut self, port: u32, event: u16, value: u16) {
        self.guest.request(3, &[&message(port, event, value)], &[]);
    }

    /// The next message of the device.
    fn hear(&mut self) -> Vec<u8> {
        let used = self.guest.rings[2].wait_used();
        let bytes = self.guest.bytes(self.control, used.len as usize);
        self.control = self.guest.add(2, &[], &[64]).1[0];
        self.guest.kick(2);
        bytes
    }

    /// Has the worker look at everything once more, and waits for it.
    fn look_again(&mut self) {
        for _ in 0..2 {
            self.guest.function.quiesce();
            self.guest.function.go();
        }
    }

    fn hears_nothing(&mut self) -> bool {
        self.look_again();
        self.guest.rings[2].poll_used().is_none()
    }

    /// All that happens until port 1, called `name`, is open in the guest.
    fn open_port(&mut self, name: &str) {
        self.say(0, 0, 1);
        assert_eq!([self.hear(), self.hear()], [message(0, 1, 1), message(1, 1, 1)]);
        self.say(1, 3, 1);
        assert_eq!(self.hear(), [&message(1, 7, 1), name.as_bytes()].concat());
        self.say(1, 6, 1);
    }

    /// Reads `len` bytes from port 1.
    fn read(&mut self, len: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < len {
            let (_, outs) = self.guest.add(4, &[], &[1000]);
            self.guest.kick(4);
            let used = self.guest.rings[4].wait_used();
            got.extend(self.guest.bytes(outs[0], used.len as usize));
        }
        got
    }
}

struct Socket {
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
    backend: SocketBackend,
}

impl Socket {
    fn new() -> Self {
        Self::with(SocketBackend::new)
    }

    fn with(backend: impl FnOnce(UnixListener) -> io::Result<SocketBackend>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("port");
        let backend = backend(UnixListener::bind(&path).unwrap()).unwrap();
        Socket { _folder: folder, path, backend }
    }

    fn console(&self) -> Console {
        Console::new("console", Box::new(Nobody)).with_port("org.test.0", Box::new(self.backend.clone()))
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }
}

#[test]
fn terminal_speaks_both_ways() {
    let ((input, output), backend) = stream(1 << 16);
    let mut driver = Driver::new(Console::new("console", backend).with_port("p", Box::new(Nobody)));
    driver.say(0, 0, 1);
    assert_eq!([driver.hear(), driver.hear()], [message(0, 1, 1), message(1, 1, 1)]);
    driver.say(0, 3, 1);
    assert_eq!([driver.hear(), driver.hear()], [message(0, 4, 1), message(0, 6, 1)]);
    driver.guest.request(1, &[b"hello ", b"host"], &[]);
    let mut text = [0; 64];
    let count = output.pop(&mut text);
    assert_eq!(&text[..count], b"hello host");

    let (_, outs) = driver.guest.add(0, &[], &[3, 100]);
    driver.guest.kick(0);
    input.push(b"early").unwrap();
    driver.look_again();
    assert_eq!(driver.guest.rings[0].poll_used(), None, "nobody in the guest has it open");
    driver.say(0, 6, 1);
    assert_eq!(driver.guest.rings[0].wait_used().len, 5);
    assert_eq!([driver.guest.bytes(outs[0], 3), driver.guest.bytes(outs[1], 2)].concat(), b"early");
    // Another thread's push wakes the worker.
    let (_, outs) = driver.guest.add(0, &[], &[64]);
    driver.guest.kick(0);
    input.push(b"late").unwrap();
    assert_eq!(driver.guest.rings[0].wait_used().len, 4);
    assert_eq!(driver.guest.bytes(outs[0], 4), b"late");
}

const SMALL: TerminalSize = TerminalSize { columns: 80, rows: 24 };
const LARGE: TerminalSize = TerminalSize { columns: 0x101, rows: 50 };

#[test]
fn a_console_alone_has_its_terminals_size_in_its_configuration() {
    let (_, backend) = stream(16);
    let mut guest = Guest::new(Box::new(Console::new("console", backend)), Box::new(Epoll::new));
    let info = guest.function().info().clone();
    assert_eq!(info.features & 3, 1, "no ports, no control messages");
    // A driver of version 0.2.0 uses them all the same, and goes on from its state.
    let console = Console::new("console", Box::new(Nobody));
    assert_eq!((console.tolerated() & 2, info.queues.len()), (2, 4));
    let size = |guest: &mut Guest<Epoll>| guest.function().info().config.read_u32(0).to_le_bytes();
    assert_eq!(size(&mut guest), [0; 4]);
    guest.function().tell(DeviceMessage::ConsoleSize { size: SMALL }).unwrap();
    guest.start(u64::MAX, 8);
    guest.wait_until("the driver is told when it begins", |guest| guest.config_interrupts() == 1);
    assert_eq!(size(&mut guest), [80, 0, 24, 0], "columns, rows");
    guest.function().tell(DeviceMessage::ConsoleSize { size: LARGE }).unwrap();
    guest.wait_until("the driver is told of a change", |guest| guest.config_interrupts() == 2);
    assert_eq!(size(&mut guest), [1, 1, 50, 0]);
}

#[test]
fn a_console_with_ports_tells_its_size_by_messages() {
    let (_, backend) = stream(16);
    let mut driver = Driver::new(Console::new("console", backend).with_port("p", Box::new(Nobody)));
    driver.guest.function().tell(DeviceMessage::ConsoleSize { size: SMALL }).unwrap();
    driver.say(0, 0, 1);
    assert_eq!([driver.hear(), driver.hear()], [message(0, 1, 1), message(1, 1, 1)]);
    driver.say(0, 3, 1);
    assert_eq!(driver.hear(), message(0, 4, 1));
    assert_eq!(driver.hear(), [&message(0, 5, 0)[..], &[80, 0, 24, 0]].concat(), "§5.3.6.2: columns, rows");
    assert_eq!(driver.hear(), message(0, 6, 1));
    driver.guest.function().tell(DeviceMessage::ConsoleSize { size: SMALL }).unwrap();
    assert!(driver.hears_nothing(), "it is as before");
    driver.guest.function().tell(DeviceMessage::ConsoleSize { size: LARGE }).unwrap();
    assert_eq!(driver.hear(), [&message(0, 5, 0)[..], &[1, 1, 50, 0]].concat());
}

#[test]
fn driver_without_multiport_has_a_terminal() {
    let ((input, output), backend) = stream(16);
    let mut guest = Guest::new(Box::new(Console::new("console", backend)), Box::new(Epoll::new));
    guest.start(0, 8);
    input.push(b"in").unwrap();
    assert_eq!(guest.request(0, &[], &[16]).1[0][..2], *b"in");
    guest.request(1, &[b"out"], &[]);
    let mut said = [0; 16];
    let count = output.try_pop(&mut said);
    assert_eq!(&said[..count], b"out");
    let counters = guest.counters();
    assert_eq!((counters.requests.now(), counters.bytes_in.now(), counters.bytes_out.now()), (2, 2, 3));
}

#[test]
fn a_console_takes_what_its_driver_waits_for_and_has_the_guest_held_up() {
    #[derive(Default)]
    struct Held(AtomicUsize);
    impl Wake for Held {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let (input, output) = (Arc::new(ByteQueue::new(64)), Arc::new(ByteQueue::new(64)));
    let held = Arc::<Held>::default();
    let stream = Stream::new(input, output.clone()).unwrap().that_holds_up(held.clone().into());
    let mut guest = Guest::new(Box::new(Console::new("console", Box::new(stream))), Box::new(Epoll::new));
    guest.start(0, 8);
    let times = || held.0.load(Ordering::SeqCst);
    guest.request(1, &[&[b'a'; 64]], &[]);
    assert_eq!(times(), 0, "it fits");
    guest.request(1, &[&[b'b'; 1000]], &[]);
    assert_eq!(times(), 1, "it is taken, and the guest is held up");
    // A vCPU that is not out of the guest yet.
    guest.add(1, &[&[b'c'; 10]], &[]);
    guest.kick(1);
    guest.add(1, &[&[b'd'; 10]], &[]);
    guest.kick(1);
    let mut got = vec![0; 1064];
    let mut taken = 0;
    // Up to the last byte that is more than the queue shall hold.
    while taken < 999 {
        taken += output.pop(&mut got[taken..999]);
        assert_eq!((guest.rings[1].poll_used(), times()), (None, 1), "no more is taken until there is room");
    }
    while taken < got.len() {
        taken += output.pop(&mut got[taken..]);
    }
    assert_eq!((guest.rings[1].wait_used().len, guest.rings[1].wait_used().len), (0, 0));
    let mut rest = [0; 20];
    let first = output.pop(&mut rest);
    let second = if first < 20 { output.pop(&mut rest[first..]) } else { 0 };
    assert_eq!((first + second, &rest), (20, b"ccccccccccdddddddddd"));
    assert_eq!(got, [vec![b'a'; 64], vec![b'b'; 1000]].concat());
    guest.request(1, &[&[b'e'; 100]], &[]);
    assert_eq!(times(), 2, "the next time it is told again");
}

#[test]
fn slow_reader_of_a_stream_holds_up_its_writer_and_loses_nothing() {
    let ((_, output), backend) = stream(64);
    let mut guest = Guest::new(Box::new(Console::new("console", backend)), Box::new(Epoll::new));
    guest.start(0, 8);
    let sent: Vec<u8> = (0..250).cycle().take(1000).collect();
    guest.add(1, &[&sent[..500], &sent[500..]], &[]);
    guest.kick(1);
    let mut got: Vec<u8> = Vec::new();
    let mut part = [0; 7];
    while got.len() < sent.len() {
        assert_eq!(guest.rings[1].poll_used(), None);
        let count = output.pop(&mut part);
        got.extend_from_slice(&part[..count]);
        if got.len() >= sent.len() - 64 {
            break;
        }
    }
    guest.rings[1].wait_used();
    while !output.is_empty() {
        let count = output.pop(&mut part);
        got.extend(&part[..count]);
    }
    assert_eq!(got, sent);
}

#[test]
fn port_has_a_name_and_says_when_a_client_comes_and_goes() {
    let socket = Socket::new();
    let mut driver = Driver::new(socket.console());
    assert_eq!(driver.guest.config(4, 4), [2, 0, 0, 0]);
    driver.open_port("org.test.0");
    assert!(driver.hears_nothing());
    let client = socket.connect();
    assert_eq!(driver.hear(), message(1, 6, 1));
    drop(client);
    assert_eq!(driver.hear(), message(1, 6, 0));
}

#[test]
fn second_client_is_turned_away_and_the_next_one_is_not() {
    let socket = Socket::new();
    let mut driver = Driver::new(socket.console());
    driver.open_port("org.test.0");
    let mut first = socket.connect();
    assert_eq!(driver.hear(), message(1, 6, 1));
    assert_eq!(socket.connect().read(&mut [0; 1]).unwrap(), 0);
    first.write_all(b"still here").unwrap();
    assert_eq!(driver.read(10), b"still here");
    drop(first);
    let mut next = socket.connect();
    assert_eq!([driver.hear(), driver.hear()], [message(1, 6, 0), message(1, 6, 1)]);
    next.write_all(b"me too").unwrap();
    assert_eq!(driver.read(6), b"me too");
}

#[test]
fn client_for_whom_the_host_has_no_descriptor_is_served_when_there_is_one() {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    // EMFILE twice, then a client that has gone again (ECONNABORTED), then one that is there.
    let socket = Socket::with(|listener| {
        SocketBackend::with_accept(listener, |listener| match CALLS.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Err(io::Error::from_raw_os_error(24)),
            2 => Err(io::ErrorKind::ConnectionAborted.into()),
            _ => listener.accept().map(|(stream, _)| stream),
        })
    });
    let mut client = socket.connect();
    let begin = Instant::now();
    let mut driver = Driver::new(socket.console());
    driver.open_port("org.test.0");
    assert_eq!(driver.hear(), message(1, 6, 1));
    client.write_all(b"still here").unwrap();
    assert_eq!(driver.read(10), b"still here");
    // Its listener says nothing in between: the timer came back, and not at once.
    assert!(begin.elapsed() >= Duration::from_millis(400), "{:?}", begin.elapsed());
}

#[test]
fn guest_that_writes_before_a_client_comes_loses_nothing() {
    let socket = Socket::new();
    let mut driver = Driver::new(socket.console());
    driver.open_port("org.test.0");
    for part in [&b"one "[..], b"two ", b"three"] {
        driver.guest.add(5, &[part], &[]);
        driver.guest.kick(5);
    }
    assert!(driver.hears_nothing() && driver.guest.rings[5].poll_used().is_none());
    let mut client = socket.connect();
    let mut text = [0; 13];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"one two three");
    for _ in 0..3 {
        driver.guest.rings[5].wait_used();
    }
}

#[test]
fn what_a_client_sent_before_it_left_reaches_the_guest_before_the_next_ones() {
    let socket = Socket::new();
    let mut driver = Driver::new(socket.console());
    let mut first = socket.connect();
    first.write_all(&[1; 9000]).unwrap();
    drop(first);
    let mut second = socket.connect();
    second.write_all(&[2; 9000]).unwrap();
    driver.open_port("org.test.0");
    assert_eq!(driver.hear(), message(1, 6, 1));
    assert_eq!(driver.read(18_000), [[1; 9000], [2; 9000]].concat());
    assert_eq!([driver.hear(), driver.hear()], [message(1, 6, 0), message(1, 6, 1)]);
}

#[test]
fn half_closed_client_still_hears() {
    let socket = Socket::new();
    let mut driver = Driver::new(socket.console());
    driver.open_port("org.test.0");
    let mut client = socket.connect();
    assert_eq!(driver.hear(), message(1, 6, 1));
    client.write_all(b"question").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(driver.read(8), b"question");
    assert!(driver.hears_nothing());
    driver.guest.request(5, &[b"answer"], &[]);
    let mut text = [0; 6];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"answer");
    drop(client);
    assert_eq!(driver.hear(), message(1, 6, 0));
}

/// Bytes whose order can be checked.
fn pattern(len: usize) -> Vec<u8> {
    (0u32..).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(len).collect()
}

#[test]
fn megabytes_pass_both_ways_unharmed_and_a_client_that_does_not_read_holds_up_the_guest() {
    let socket = Socket::new();
    let mut driver = Driver::new(socket.console());
    driver.open_port("org.test.0");
    let mut client = socket.connect();
    let sent = pattern(4 << 20);
    let mut chunks = sent.chunks(100_000);
    let mut used = 0;
    let mut added = 0;
    for chunk in chunks.by_ref().take(16) {
        driver.guest.add(5, &[chunk], &[]);
        driver.guest.kick(5);
        added += 1;
    }
    driver.look_again();
    while driver.guest.rings[5].poll_used().is_some() {
        used += 1;
    }
    assert!(used < 8, "{used} chunks are gone, and nobody has read one");
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 4 << 20];
        client.read_exact(&mut got).unwrap();
        (client, got)
    });
    for chunk in chunks {
        driver.guest.rings[5].wait_used();
        used += 1;
        driver.guest.add(5, &[chunk], &[]);
        driver.guest.kick(5);
        added += 1;
    }
    for _ in used..added {
        driver.guest.rings[5].wait_used();
    }
    let (mut client, got) = reader.join().unwrap();
    assert!(got == sent);
    let back = sent.clone();
    let writer = std::thread::spawn(move || client.write_all(&back).unwrap());
    assert!(driver.read(4 << 20) == sent);
    writer.join().unwrap();
}

#[test]
fn client_stays_connected_while_the_guest_reboots() {
    let socket = Socket::new();
    let mut driver = Driver::new(socket.console());
    driver.open_port("org.test.0");
    let mut client = socket.connect();
    assert_eq!(driver.hear(), message(1, 6, 1));
    client.write_all(b"before").unwrap();
    drop(driver);
    let mut driver = Driver::new(socket.console());
    driver.open_port("org.test.0");
    assert_eq!(driver.hear(), message(1, 6, 1));
    assert_eq!(driver.read(6), b"before");
    driver.start();
    driver.open_port("org.test.0");
    assert_eq!(driver.hear(), message(1, 6, 1));
    driver.guest.request(5, &[b"after"], &[]);
    let mut text = [0; 5];
    client.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"after");
}

#[test]
fn nonsense_on_the_control_queue_is_ignored() {
    let socket = Socket::new();
    let mut driver = Driver::new(socket.console());
    for (port, event, value) in
        [(9, 3, 1), (u32::MAX, 6, 1), (0, 1, 1), (0, 99, 7), (1, 6, 0xffff), (0, 2, 1), (1, 3, 0)]
    {
        driver.say(port, event, value);
    }
    driver.guest.request(3, &[b"short"], &[]);
    driver.guest.request(3, &[], &[8]);
    assert!(driver.hears_nothing());
    driver.say(0, 0, 1);
    assert_eq!(driver.hear(), message(0, 1, 1));
}

#[test]
fn buffers_without_room_do_not_stop_a_port() {
    let socket = Socket::new();
    let mut driver = Driver::new(socket.console());
    driver.open_port("org.test.0");
    let mut client = socket.connect();
    driver.guest.add(4, &[b"no room"], &[]);
    driver.guest.kick(4);
    driver.guest.rings[4].wait_used();
    client.write_all(b"x").unwrap();
    assert_eq!(driver.read(1), b"x");
}

#[test]
fn every_port_has_queues_of_its_own() {
    assert_eq!([0, 1, 2, 30].map(queues), [(0, 1), (4, 5), (6, 7), (62, 63)]);
    for port in 0..40 {
        let (receive, transmit) = queues(port);
        assert_eq!([place(receive), place(transmit)], [QueueOwner::Port(port); 2]);
    }
    assert_eq!([place(2), place(3)], [QueueOwner::Control; 2]);
}

#[test]
fn state_goes_to_a_machine_with_the_same_ports_only() {
    let socket = Socket::new();
    let mut console = socket.console();
    console.driver_ready = true;
    console.ports[1].state.guest_open = true;
    let state = console.save().unwrap();
    let mut other = socket.console();
    other.load(&state).unwrap();
    assert_eq!(other.save().unwrap(), state);
    let mut less = Console::new("console", Box::new(Nobody));
    assert!(matches!(less.load(&state), Err(StateError::Mismatch { .. })));
    assert!(other.load(&State { data: serde_json::json!([]), ..state }).is_err());
}
