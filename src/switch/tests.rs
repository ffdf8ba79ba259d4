//! The loop with clients that play machines.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::EventSet;

use super::accepting::PAUSE;
use super::command::{self, Command, Commands, Reserved};
use super::refusal::Refusal;
use super::run_loop::SwitchLoop;
use super::{End, Keeper, SwitchInfo, uplink};
use crate::host::capture::{CaptureLimits, CaptureStream, StreamState};
use crate::host::frame_link::{Cutter, Framing, HEADER, Item};
use crate::host::switch_port::PortRequest;
use crate::spec::{PortOptions, Uplink};

pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// A switch in a thread.
pub(super) struct Running {
    commands: Commands,
    thread: Option<JoinHandle<End>>,
}

impl Running {
    pub(super) fn new(keeper: Keeper, uplinks: &[&str]) -> Self {
        let (commands, mut running) = at_rest(keeper, uplinks);
        Running { commands, thread: Some(thread::spawn(move || running.run())) }
    }

    fn reserve(&self, number: u8, options: &str) -> Result<Reserved, Refusal> {
        let request = request(number, options);
        self.commands.ask(|answer| Command::Reserve(request, answer)).unwrap()
    }

    pub(super) fn attach(&self, number: u8, options: &str) -> Client {
        let reserved = self.reserve(number, options).unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        self.commands.send(Command::Attach(reserved.ticket, there, Vec::new()));
        here.set_read_timeout(Some(LIMIT)).unwrap();
        here.set_write_timeout(Some(LIMIT)).unwrap();
        let mut client = Client { stream: here, number, bytes: Vec::new() };
        assert_eq!(client.next(), Got::Control(vec![1, 0b1111]), "what the switch takes");
        client
    }

    pub(super) fn set(&self, port: &str, change: &str) -> Result<(), Refusal> {
        let (port, change) = (port.to_owned(), change.parse().unwrap());
        self.commands.ask(|answer| Command::Set { port, change, answer }).unwrap()
    }

    pub(super) fn capture(&self, port: &str) -> Result<CaptureStream, Refusal> {
        let (port, limits) = (port.to_owned(), CaptureLimits::default());
        self.commands.ask(|answer| Command::Capture { port, limits, answer }).unwrap()
    }

    pub(super) fn info(&self) -> SwitchInfo {
        self.commands.ask(Command::Show).unwrap()
    }

    /// Waits until `is` holds of the switch.
    pub(super) fn until(&self, is: impl Fn(&SwitchInfo) -> bool) -> SwitchInfo {
        let begun = Instant::now();
        loop {
            let info = self.info();
            if is(&info) {
                return info;
            }
            assert!(begun.elapsed() < LIMIT, "{info:#?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn end(mut self) -> End {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.commands.end(End::Stopped);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A switch that the test itself turns.
fn at_rest(keeper: Keeper, uplinks: &[&str]) -> (Commands, SwitchLoop) {
    let (commands, inbox) = command::channel().unwrap();
    let mut running = SwitchLoop::new("lab".parse().unwrap(), keeper, inbox).unwrap();
    for text in uplinks {
        let (port, _) = uplink::open(&Uplink::parse(text.as_ref()).unwrap(), &running.ports, 1).unwrap();
        running.begin(port).unwrap();
    }
    (commands, running)
}

/// Attaches a machine to it.
fn attach_to(running: &mut SwitchLoop, number: u8) -> Client {
    let reserved = running.reserve(request(number, "")).unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    running.command(Command::Attach(reserved.ticket, there, Vec::new()));
    here.set_read_timeout(Some(LIMIT)).unwrap();
    let mut client = Client { stream: here, number, bytes: Vec::new() };
    assert_eq!(client.next(), Got::Control(vec![1, 0b1111]), "what the switch takes");
    client
}

/// What machine `number` asks for.
fn request(number: u8, options: &str) -> PortRequest {
    PortRequest {
        machine: Some(format!("vm{number}").parse().unwrap()),
        interface: "net0".parse().unwrap(),
        mac: mac(number).unwrap(),
        mtu: 1500,
        options: if options.is_empty() { PortOptions::default() } else { options.parse().unwrap() },
    }
}

fn mac(number: u8) -> Option<crate::spec::MacAddress> {
    crate::spec::MacAddress::new([2, 0, 0, 0, 0, number]).ok()
}

/// What came from the switch.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Frame(Vec<u8>),
    Control(Vec<u8>),
    End,
}

/// A machine's end of a port.
pub(super) struct Client {
    pub(super) stream: UnixStream,
    number: u8,
    bytes: Vec<u8>,
}

/// A frame of an experimental type (IEEE 802 §9.2.3) to guest `to`, 255 for all.
fn frame(from: u8, to: u8, text: &[u8]) -> Vec<u8> {
    let to = if to == 255 { [255; 6] } else { [2, 0, 0, 0, 0, to] };
    [to.as_slice(), &[2, 0, 0, 0, 0, from], &[0x88, 0xb5], text].concat()
}

pub(super) fn framed(frame: &[u8]) -> Vec<u8> {
    let word = u32::try_from(HEADER + frame.len()).unwrap().to_be_bytes();
    [word.as_slice(), &[0; HEADER], frame].concat()
}

impl Client {
    fn send(&mut self, to: u8, text: &[u8]) {
        self.stream.write_all(&framed(&frame(self.number, to, text))).unwrap();
    }

    fn next(&mut self) -> Got {
        loop {
            let mut cutter = Cutter::new(Framing::Header);
            let got = match cutter.next(&self.bytes).unwrap() {
                Some(Item::Frame { at, .. }) => Some(Got::Frame(self.bytes[at].to_vec())),
                Some(Item::Control(at)) => Some(Got::Control(self.bytes[at].to_vec())),
                None => None,
            };
            if let Some(got) = got {
                self.bytes.drain(..cutter.taken());
                return got;
            }
            let mut more = [0; 4096];
            match self.stream.read(&mut more) {
                Ok(count @ 1..) => self.bytes.extend(&more[..count]),
                Ok(0) => return Got::End,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Got::End,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next frame is this one.
    #[track_caller]
    fn hears(&mut self, from: u8, to: u8, text: &[u8]) {
        assert_eq!(self.next(), Got::Frame(frame(from, to, text)));
    }
}

#[test]
fn frames_go_where_their_address_was_learned() {
    let running = Running::new(Keeper::Kept, &[]);
    let (mut one, mut two, mut three) =
        (running.attach(1, ""), running.attach(2, ""), running.attach(3, "vlan=3"));
    one.send(255, b"who is there?");
    two.hears(1, 255, b"who is there?");
    two.send(1, b"me");
    one.hears(2, 1, b"me");
    let info = running.until(|info| info.table.len() == 2);
    let names: Vec<_> = info.ports.iter().map(|port| port.name.as_str()).collect();
    assert_eq!(names, ["vm1.net0", "vm2.net0", "vm3.net0"]);
    assert_eq!((info.table[0].port.as_str(), info.table[0].vlan), ("vm1.net0", 1));
    assert_eq!((info.ports[0].from_guest.frames, info.ports[1].to_guest.frames), (1, 1));
    // The first that the other VLAN hears is of its own.
    let mut four = running.attach(4, "vlan=3");
    four.send(255, b"only three");
    three.hears(4, 255, b"only three");
}

#[test]
fn frames_that_come_in_pieces_or_many_at_once_are_all_switched_in_order() {
    let running = Running::new(Keeper::Kept, &[]);
    let (mut one, mut two) = (running.attach(1, ""), running.attach(2, ""));
    let texts: Vec<Vec<u8>> = (0..300).map(|at| vec![u8::try_from(at % 251).unwrap(); 1 + at * 7]).collect();
    let bytes: Vec<u8> = texts.iter().flat_map(|text| framed(&frame(1, 2, text))).collect();
    let sender = thread::spawn(move || {
        let (start, rest) = bytes.split_at(3000);
        start.iter().for_each(|byte| one.stream.write_all(&[*byte]).unwrap());
        one.stream.write_all(rest).unwrap();
        one
    });
    texts.iter().for_each(|text| two.hears(1, 2, text));
    sender.join().unwrap();
}

#[test]
fn slow_reader_loses_frames_that_are_counted_and_delays_nobody() {
    let running = Running::new(Keeper::Kept, &[]);
    let (mut one, mut slow, mut three) =
        (running.attach(1, ""), running.attach(2, ""), running.attach(3, ""));
    slow.send(255, b"from here on I do not read");
    one.hears(2, 255, b"from here on I do not read");
    three.hears(2, 255, b"from here on I do not read");
    let text = vec![7; 1400];
    for round in 0..2000_u32 {
        one.send(2, &text);
        if round % 100 == 0 {
            one.send(3, &round.to_be_bytes());
        }
    }
    (0..20_u32).for_each(|round| three.hears(1, 3, &(round * 100).to_be_bytes()));
    let lost = |info: &SwitchInfo| info.ports[1].to_guest.drops.get("port-full").copied().unwrap_or(0);
    // Those to the third one go to all: it has said nothing.
    let info = running.until(|info| lost(info) + info.ports[1].to_guest.frames == 2000 + 20);
    assert!(lost(&info) > 0, "2.8 MB do not fit: {info:#?}");
}

#[test]
fn bad_length_ends_its_port_alone_and_unknown_control_messages_are_skipped() {
    let running = Running::new(Keeper::Kept, &[]);
    let (mut bad, mut one, mut two) = (running.attach(9, ""), running.attach(1, ""), running.attach(2, ""));
    one.stream.write_all(&[0x80, 0, 0, 3, 77, 1, 2]).unwrap();
    one.stream.write_all(&[0x80, 0, 0, 1, 1]).unwrap();
    bad.stream.write_all(&u32::MAX.to_be_bytes()).unwrap();
    assert_eq!(bad.next(), Got::End);
    one.send(2, b"still here");
    two.hears(1, 2, b"still here");
    running.until(|info| info.ports.len() == 2);
}

#[test]
fn a_name_and_an_address_belong_to_one_port_until_it_leaves() {
    let running = Running::new(Keeper::Kept, &[]);
    let one = running.attach(1, "");
    let refused = running.reserve(1, "").unwrap_err();
    assert!(refused.status == 409 && refused.sentence.contains("vm1.net0"), "{refused:?}");
    let same_mac = PortRequest {
        machine: None,
        interface: "net0".parse().unwrap(),
        mac: mac(1).unwrap(),
        mtu: 1500,
        options: PortOptions::default(),
    };
    let ask =
        |request: PortRequest| running.commands.ask(|answer| Command::Reserve(request, answer)).unwrap();
    let refused = ask(same_mac.clone()).unwrap_err();
    assert!(refused.status == 409 && refused.sentence.contains("mac="), "{refused:?}");
    drop(one);
    // At once: the switch looks whether the other one has gone.
    let reserved = ask(same_mac).unwrap();
    assert_eq!(reserved.name, "port1");
    assert_eq!(running.reserve(1, "").unwrap_err().status, 409, "a reserved address is taken as well");
    running.commands.send(Command::Release(reserved.ticket));
    assert!(running.reserve(1, "").is_ok());
}

#[test]
fn machine_that_the_switch_has_no_room_for_is_told_so() {
    let (_, mut running) = at_rest(Keeper::Kept, &[]);
    running.most_ports = 2;
    let one = attach_to(&mut running, 1);
    let awaited = running.reserve(request(2, "")).unwrap();
    let refused = running.reserve(request(3, "")).unwrap_err();
    assert!(refused.status == 503 && refused.sentence.contains("lab has 2 ports already"), "{refused:?}");
    running.command(Command::Release(awaited.ticket));
    assert!(running.reserve(request(3, "")).is_ok());
    assert_eq!(running.reserve(request(4, "")).unwrap_err().status, 503);
    drop(one);
    assert!(running.reserve(request(4, "")).is_ok(), "one has gone");
}

#[test]
fn options_change_while_frames_pass() {
    let running = Running::new(Keeper::Kept, &[]);
    let (mut one, mut two) = (running.attach(1, ""), running.attach(2, ""));
    let set = |port: &str, change: &str| running.set(port, change);
    let unknown = set("vm7.net0", "delay=1ms").unwrap_err();
    assert!(unknown.status == 404 && unknown.sentence.contains("vm1.net0, vm2.net0"), "{unknown:?}");
    set("vm2.net0", "loss=100%").unwrap();
    one.send(2, b"lost");
    running.until(|info| info.ports[1].to_guest.drops.get("loss") == Some(&1));
    set("vm2.net0", "loss=0,delay-in=50ms").unwrap();
    let begun = Instant::now();
    one.send(2, b"late");
    two.hears(1, 2, b"late");
    assert!(begun.elapsed() >= Duration::from_millis(50));
    let info = running.info();
    assert_eq!(info.ports[1].options.to_string(), "delay-in=50ms");
    set("vm1.net0", "vlan=5").unwrap();
    one.send(2, b"another VLAN");
    running.until(|info| info.ports[0].from_guest.frames == 3);
    set("vm1.net0", "vlan=1").unwrap();
    one.send(2, b"the same VLAN");
    two.hears(1, 2, b"the same VLAN");
}

#[test]
fn switch_ends_after_its_last_port_unless_it_is_kept() {
    let running = Running::new(Keeper::User, &[]);
    let (one, two) = (running.attach(1, ""), running.attach(2, ""));
    drop(one);
    running.until(|info| info.ports.len() == 1);
    drop(two);
    assert_eq!(running.end(), End::Unused);
    let kept = Running::new(Keeper::Kept, &[]);
    drop(kept.attach(1, ""));
    kept.until(|info| info.ports.is_empty());
    kept.commands.end(End::Stopped);
    assert_eq!(kept.end(), End::Stopped);
}

#[test]
fn program_on_an_uplinks_socket_has_qemus_bytes_and_may_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wire");
    let running = Running::new(Keeper::Kept, &[&format!("socket={}", path.display())]);
    let mut one = running.attach(1, "");
    assert!(!running.info().ports[0].link);
    for round in 0..3_u8 {
        let mut peer = UnixStream::connect(&path).unwrap();
        peer.set_read_timeout(Some(LIMIT)).unwrap();
        let up = running.until(|info| info.ports[0].link);
        assert_eq!(up.ports[0].name, "socket");
        let said = frame(50, 1, &[round; 46]);
        peer.write_all(&u32::try_from(said.len()).unwrap().to_be_bytes()).unwrap();
        peer.write_all(&said).unwrap();
        assert_eq!(one.next(), Got::Frame(said));
        one.send(50, &[round; 100]);
        let mut answer = [0; 118];
        peer.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [&[0, 0, 0, 114], frame(1, 50, &[round; 100]).as_slice()].concat()[..]);
        // A second one is sent away.
        let mut second = UnixStream::connect(&path).unwrap();
        second.set_read_timeout(Some(LIMIT)).unwrap();
        assert_eq!(second.read(&mut [0]).unwrap(), 0);
        drop(peer);
    }
    drop(running);
    assert!(!path.exists());
}

#[test]
fn program_that_comes_again_before_its_end_was_seen_is_the_peer_and_its_frames_have_passed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wire");
    let (_, mut running) = at_rest(Keeper::Kept, &[&format!("socket={}", path.display())]);
    let mut one = attach_to(&mut running, 1);
    let mut peer = UnixStream::connect(&path).unwrap();
    running.accept(0);
    for round in 0..3_u8 {
        let said = frame(50, 1, &[round; 46]);
        peer.write_all(&u32::try_from(said.len()).unwrap().to_be_bytes()).unwrap();
        peer.write_all(&said).unwrap();
        // One that has gone already waits in front of it.
        drop(UnixStream::connect(&path).unwrap());
        peer = UnixStream::connect(&path).unwrap();
        running.accept(0);
        assert_eq!(one.next(), Got::Frame(said));
        assert!(!running.ports.socket(0).unwrap().is_peer_gone());
        one.send(50, &[round; 100]);
        running.serve(1, EventSet::IN);
        peer.set_read_timeout(Some(LIMIT)).unwrap();
        let mut answer = [0; 118];
        peer.read_exact(&mut answer).unwrap();
    }
}

#[test]
fn clients_that_cannot_be_accepted_are_left_alone_until_a_while_later_or_a_port_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wire");
    let (_, mut running) = at_rest(Keeper::Kept, &[&format!("socket={}", path.display())]);
    let one = attach_to(&mut running, 1);
    let _peer = UnixStream::connect(&path).unwrap();
    let (full, now) = (std::io::Error::from_raw_os_error(libc::EMFILE), Instant::now());
    assert_eq!(running.ready(), 1);
    running.ignore(0, &full, now);
    assert_eq!(running.ready(), 0);
    assert_eq!(running.tick(now + PAUSE), None);
    assert_eq!(running.ready(), 1);
    running.ignore(0, &full, now);
    drop(one);
    assert!(running.close_if_gone(1));
    assert_eq!(running.ready(), 1);
    running.accept(0);
    assert!(running.ports.socket(0).unwrap().peer().is_some());
}

#[test]
fn junk_ends_its_port_at_most() {
    let running = Running::new(Keeper::Kept, &[]);
    let (mut one, mut two) = (running.attach(1, ""), running.attach(2, ""));
    let mut state = 1_u32;
    for round in 0..50_u8 {
        let mut bad = running.attach(100 + round, "");
        let mut junk: Vec<u8> = (0..3000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            })
            .collect();
        // A length that is possible, so that some of it is switched, with headers of any kind.
        junk[..4].copy_from_slice(&(40 + u32::from(round) * 20).to_be_bytes());
        let _ = bad.stream.write_all(&junk);
        drop(bad);
        one.send(2, &[round]);
        loop {
            match two.next() {
                Got::Frame(got) if got == frame(1, 2, &[round]) => break,
                // A broadcast of junk is one, too.
                Got::Frame(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    running.until(|info| info.ports.len() == 2);
}

#[test]
fn beginning_of_a_frame_that_never_ends_is_all_that_is_kept() {
    let running = Running::new(Keeper::Kept, &[]);
    let mut slow = running.attach(9, "");
    let longest = u32::try_from(HEADER + crate::host::frame_link::LONGEST_FRAME).unwrap();
    slow.stream.write_all(&longest.to_be_bytes()).unwrap();
    slow.stream.write_all(&vec![0; 60_000]).unwrap();
    let (mut one, mut two) = (running.attach(1, ""), running.attach(2, ""));
    one.send(2, b"not held up");
    two.hears(1, 2, b"not held up");
    // With the rest it is a frame: from the address zero, which is no station's.
    slow.stream.write_all(&vec![0; usize::try_from(longest).unwrap() - 60_000]).unwrap();
    running.until(|info| info.ports.iter().any(|port| port.from_guest.drops.contains_key("malformed")));
}

#[test]
fn frames_of_a_port_are_captured_both_ways_until_it_leaves() {
    let running = Running::new(Keeper::Kept, &[]);
    let (mut one, mut two) = (running.attach(1, ""), running.attach(2, ""));
    assert!(running.capture("vm9.net0").unwrap_err().sentence.contains("its ports are: vm1.net0, vm2.net0"));
    let mut frames = running.capture("vm1.net0").unwrap();
    one.send(2, b"sent to two");
    two.hears(1, 2, b"sent to two");
    two.send(1, b"sent to one");
    one.hears(2, 1, b"sent to one");
    drop(one);
    let (mut all, mut buffer) = (Vec::<u8>::new(), Vec::new());
    loop {
        match frames.next(&mut buffer, LIMIT) {
            StreamState::Bytes => all.extend(&buffer),
            StreamState::Nothing => panic!("the capture goes on"),
            StreamState::Ended => break,
        }
    }
    for expected in [frame(1, 2, b"sent to two"), frame(2, 1, b"sent to one")] {
        assert_eq!(all.windows(expected.len()).filter(|window| *window == expected).count(), 1);
    }
}
