//! The networks of the command line: what a machine opens for them, shows of them and leaves behind.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/host.rs"]
mod host;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs;
use std::io::{ErrorKind, Read, Write, read_to_string};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use host::Host;
use tiny_guest::Guest;
use vmm::{LIMIT, Launch, Owned, Vmm, count};

/// Where the host listens, by the banner.
fn forwards(machine: &Vmm) -> Vec<SocketAddr> {
    let text = machine.stderr.text();
    let lines = text.lines().filter_map(|line| line.strip_prefix("~> Forward     : "));
    lines.map(|line| line.split_once(" to port ").unwrap().0.parse().unwrap()).collect()
}

#[test]
fn a_forward_is_shown_serves_over_reboots_and_ends_with_the_machine() {
    let host = Host::new();
    let flags = ["-p", "0:22", "-p", "[::1]:0:80", "-p", "0:53/udp"];
    let mut machine = host.launch(Guest::Obedient, "vm0").args(&flags).spawn();
    machine.expect("ready\n", 1);
    assert!(machine.stderr.wait(|text| count(text, "~> Forward") == 3), "{}", machine.stderr.text());
    let at = forwards(&machine);
    assert!(at[0].ip().is_loopback() && at[0].is_ipv4() && at[1].is_ipv6(), "{at:?}");
    assert!(machine.stderr.text().contains("~> Network     : user, guest 10.0.2.15 by DHCP, MAC "));
    TcpStream::connect_timeout(&at[0], LIMIT).unwrap();
    TcpStream::connect_timeout(&at[1], LIMIT).unwrap();
    assert_eq!(UdpSocket::bind(at[2]).unwrap_err().kind(), ErrorKind::AddrInUse);
    let info = host.json(&["info", "--json", "vm0"]);
    assert_eq!(info["forwards"][0]["address"], at[0].to_string());
    assert_eq!(
        (&info["forwards"][2]["net"], &info["forwards"][2]["forward"]),
        (&"net0".into(), &"0:53/udp".into())
    );
    assert!(host.does(&["info", "vm0"]).contains(&format!("{} to port 22 of the guest", at[0])));
    machine.type_in(b"r");
    machine.expect("ready\n", 2);
    TcpStream::connect_timeout(&at[0], LIMIT).unwrap();
    machine.type_in(b"q");
    assert!(machine.end().status.success());
    assert_eq!(TcpStream::connect(at[0]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    UdpSocket::bind(at[2]).unwrap();
}

#[test]
fn a_machine_without_a_word_on_networks_has_one_and_none_has_none() {
    let host = Host::new();
    let networks = |flags: &[&str]| {
        let mut machine = host.launch(Guest::Obedient, "vm0").args(flags).spawn();
        machine.expect("ready\n", 1);
        let files = fs::read_dir(format!("/proc/{}/fd", machine.pid())).unwrap().flatten();
        let links = files.filter_map(|file| fs::read_link(file.path()).ok());
        // Each user network has a timer.
        let timers = links.filter(|link| link.to_str() == Some("anon_inode:[timerfd]")).count();
        machine.type_in(b"q");
        let ended = machine.end();
        assert!(ended.status.success(), "{ended:?}");
        (count(ended.stderr.as_bytes(), "~> Network"), timers)
    };
    let (none, others) = networks(&["--net", "none"]);
    assert_eq!(none, 0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.toml");
    fs::write(&file, "cpus = 1\n").unwrap();
    assert_eq!(networks(&["--config", file.to_str().unwrap()]), (1, others + 1));
    fs::write(
        &file,
        "net = [{ user = {}, id = 'lan' }, { user = { restrict = true, subnet = '10.0.5.0/24' } }]\n",
    )
    .unwrap();
    assert_eq!(networks(&["--config", file.to_str().unwrap()]), (2, others + 2));
}

#[test]
fn a_port_that_is_taken_is_a_sentence_with_its_owner() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let flag = format!("{}:22", held.local_addr().unwrap().port());
    let ended = Launch::new(Guest::Obedient).args(&["-p", &flag]).run();
    ended.is("", 1).said(&["is in use by", &format!("(process {})", std::process::id()), "`-p 0:22`"]);
}

#[test]
fn sockets_and_captures_are_opened_with_the_machine() {
    let host = Host::new();
    let path = |name: &str| host.0.path().join(name);
    let (socket, pcap, dgram) = (path("wire"), path("a.pcapng"), path("local"));
    let nets = [
        format!("socket={},listen,pcap={}", socket.display(), pcap.display()),
        format!("dgram={}:{}", dgram.display(), path("remote").display()),
    ];
    let flags = ["--net", &nets[0], "--net", &nets[1]];
    let mut machine = host.launch(Guest::Obedient, "vm0").args(&flags).spawn();
    machine.expect("ready\n", 1);
    let peer = UnixStream::connect(&socket).unwrap();
    assert!(dgram.exists());
    // A second machine on the same sockets does not begin.
    let second = host.launch(Guest::Obedient, "vm1").args(&flags).run();
    second.is("", 1).said(&["another program uses the socket"]);
    machine.type_in(b"q");
    assert!(machine.end().status.success());
    assert!(!socket.exists() && !dgram.exists());
    drop(peer);
    // The section header of pcapng.
    assert_eq!(fs::read(pcap).unwrap()[..4], [0x0a, 0x0d, 0x0d, 0x0a]);
}

#[test]
fn a_start_that_fails_leaves_an_earlier_capture_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let earlier = folder.path().join("a.pcapng");
    let content = [&[0x0a, 0x0d, 0x0d, 0x0a], b"precious frames".as_slice()].concat();
    fs::write(&earlier, &content).unwrap();
    let first = format!("user,pcap={}", earlier.display());
    let second = format!("user,subnet=10.0.5.0/24,pcap={}", folder.path().join("no/b.pcapng").display());
    Launch::new(Guest::Obedient)
        .args(&["--net", &first, "--net", &second])
        .run()
        .is("", 1)
        .said(&["mkdir -p"]);
    assert_eq!(fs::read(&earlier).unwrap(), content);
    let log = Launch::new(Guest::Obedient).args(&["--net", &first, "--log", earlier.to_str().unwrap()]).run();
    log.is("", 1).said(&["the log and the frames of a network interface have the same file"]);
    assert_eq!(fs::read(&earlier).unwrap(), content);
}

/// A machine whose guest echoes what comes to its port 7.
fn echoing(host: &Host) -> Vmm {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("frames");
    fs::write(&kernel, tiny_guest::FRAMES).unwrap();
    let flags = ["--name", "vm0", "--mem", "16", "-p", "0:7", "-p", "0:7/udp"];
    let mut launch = Launch::kernel(&kernel, folder).args(&flags).stdin(Stdio::piped());
    launch.command.env("XDG_RUNTIME_DIR", host.0.path());
    let machine = launch.spawn();
    machine.expect("ready\n", 1);
    machine
}

/// Sends a word through a forward, and waits for the guest to echo it.
fn echoes(at: SocketAddr, word: &str) {
    let mut stream = TcpStream::connect_timeout(&at, LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(word.as_bytes()).unwrap();
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, word.as_bytes());
}

/// Sends a word as one datagram, and waits for the guest to echo it.
fn echoes_once(at: SocketAddr, word: &str) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.send_to(word.as_bytes(), at).unwrap();
    let mut back = [0; 64];
    let (count, _) = socket.recv_from(&mut back).unwrap();
    assert_eq!(&back[..count], word.as_bytes());
}

/// The address in the line that adding a forward prints.
fn added(host: &Host, words: &[&str]) -> SocketAddr {
    let said = host.does(words);
    said.split_once(" to port ").unwrap().0.parse().unwrap()
}

#[test]
fn a_forward_is_added_serves_over_reboots_and_is_removed_while_the_machine_runs() {
    let host = Host::new();
    let mut machine = host.launch(Guest::Obedient, "vm0").args(&["-p", "0:22"]).spawn();
    machine.expect("ready\n", 1);
    let at = added(&host, &["forward", "vm0", "0:80"]);
    let settled = format!("{}:80", at.port());
    TcpStream::connect_timeout(&at, LIMIT).unwrap();
    let list = host.does(&["forward", "vm0"]);
    assert!(list.starts_with("NET   HOST") && list.lines().count() == 3, "{list}");
    assert!(
        list.lines().any(|line| line.starts_with(&format!("net0  {at} ")) && line.ends_with("80     tcp"))
    );
    let json = host.json(&["forward", "vm0", "--json", "--net", "net0"]);
    assert_eq!(json[1]["address"], at.to_string());
    host.fails(&["forward", "vm0", "--json", "--net", "net1"], 1, "its interfaces are: net0");
    let info = host.does(&["info", "vm0"]);
    assert_eq!(info.matches("forward").count(), 3, "two forwards, and the spec's: {info}");
    host.fails(&["forward", "vm0", &settled], 1, "leads to port 80 of the guest already");
    host.fails(&["forward", "vm0", "0:80", "--net", "lan"], 1, "its interfaces are: net0");
    host.fails(&["forward", "vm1", "0:80"], 1, "no machine called vm1 runs here");
    host.fails(&["forward", "vm0", "80"], 2, "`5555:22`");
    machine.type_in(b"r");
    machine.expect("ready\n", 2);
    TcpStream::connect_timeout(&at, LIMIT).unwrap();
    host.does(&["pause", "vm0"]);
    let at_rest = added(&host, &["forward", "vm0", "0:81"]);
    TcpStream::connect_timeout(&at_rest, LIMIT).unwrap();
    host.does(&["forward", "vm0", "--remove", &format!("{}:81", at_rest.port())]);
    assert_eq!(TcpStream::connect(at_rest).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    host.does(&["resume", "vm0"]);
    host.does(&["forward", "vm0", "--remove", &settled]);
    assert_eq!(TcpStream::connect(at).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    host.fails(
        &["forward", "vm0", "--remove", &settled],
        1,
        "is no forward of network interface net0; its forwards are: ",
    );
    machine.type_in(b"q");
    assert!(machine.end().status.success());
}

/// Blocks of a capture: type and body.
fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut blocks = Vec::new();
    while !bytes.is_empty() {
        let len = word(bytes, 4) as usize;
        assert_eq!(word(bytes, len - 4) as usize, len);
        blocks.push((word(bytes, 0), bytes[8..len - 4].to_vec()));
        bytes = &bytes[len..];
    }
    blocks
}

const FRAME: u32 = 6;
const STATISTICS: u32 = 5;

fn frames(blocks: &[(u32, Vec<u8>)]) -> usize {
    blocks.iter().filter(|(kind, _)| *kind == FRAME).count()
}

/// A capture to standard output that has begun, and what it has given so far.
struct Piped(Owned, Vec<u8>);

impl Piped {
    fn start(host: &Host, words: &[&str]) -> Self {
        let mut child = Owned::start(&mut host.verb(&[&["capture", "vm0"], words].concat()));
        let mut start = vec![0; 4];
        let begun = child.stdout.as_mut().unwrap().read_exact(&mut start);
        assert!(begun.is_ok(), "{}", read_to_string(child.stderr.take().unwrap()).unwrap());
        Piped(child, start)
    }

    /// All of it, and what it says at its end.
    fn end(mut self) -> (Vec<u8>, String) {
        self.0.stdout.take().unwrap().read_to_end(&mut self.1).unwrap();
        let said = read_to_string(self.0.stderr.take().unwrap()).unwrap();
        assert!(self.0.wait().unwrap().success(), "{said}");
        (self.1, said)
    }
}

fn interrupt(child: &Owned) {
    // SAFETY: a signal to a child that was not waited for.
    #[allow(unsafe_code, reason = "kill(2) has no safe wrapper in std")]
    let sent = unsafe { libc::kill(i32::try_from(child.id()).unwrap(), libc::SIGINT) };
    assert_eq!(sent, 0);
}

#[test]
fn frames_are_captured_while_the_machine_runs() {
    let host = Host::new();
    let machine = echoing(&host);
    let at = forwards(&machine);
    // Then each side knows where the other is, and no datagram is dropped for want of that.
    echoes(at[0], "hello");
    echoes_once(at[1], "before");
    let at = at[0];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.pcapng");
    let mut to_file =
        Owned::start(&mut host.verb(&["capture", "vm0", "-w", file.to_str().unwrap(), "--net", "net0"]));
    let begun = Instant::now();
    while !fs::metadata(&file).is_ok_and(|file| file.len() > 0) {
        assert!(begun.elapsed() < LIMIT, "the capture does not begin");
        thread::sleep(Duration::from_millis(5));
    }
    let counted = Piped::start(&host, &["-w", "-", "-c", "4"]);
    echoes(at, "captured word");
    let (bytes, said) = counted.end();
    let read = blocks(&bytes);
    assert_eq!((said.as_str(), frames(&read)), ("minivmm: 4 frames, 0 lost\n", 4));
    assert_eq!(read.last().unwrap().0, STATISTICS);
    interrupt(&to_file);
    assert!(to_file.wait().unwrap().success());
    let said = read_to_string(to_file.stderr.take().unwrap()).unwrap();
    let bytes = fs::read(&file).unwrap();
    let read = blocks(&bytes);
    assert_eq!(said, format!("minivmm: {} frames, 0 lost\n", frames(&read)));
    assert!(frames(&read) >= 4 && read.last().unwrap().0 == STATISTICS);
    // To the guest and back it was before, and nobody sends a datagram again.
    assert_eq!(count(&bytes, "before"), 0);
    assert!(count(&bytes, "captured word") >= 2, "to the guest and back");
    // A reboot is within one capture, and the end of the machine is its end.
    let over_reboot = Piped::start(&host, &[]);
    host.does(&["reset", "vm0"]);
    machine.expect("ready\n", 2);
    echoes(at, "second boot");
    host.does(&["kill", "vm0"]);
    let (bytes, _) = over_reboot.end();
    assert!(count(&bytes, "second boot") >= 2 && blocks(&bytes).last().unwrap().0 == STATISTICS);
    drop(machine.end());
}

#[test]
fn readers_of_a_capture_may_be_slow_or_go_and_the_guest_sees_nothing_of_it() {
    let host = Host::new();
    let machine = echoing(&host);
    let at = forwards(&machine);
    // Eight that read nothing.
    let connect = |_| {
        let mut stream = host.connect("vm0");
        stream.write_all(b"POST /v1/nets/net0/capture HTTP/1.1\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 15]).unwrap();
        stream
    };
    let mut slow = (0..8).map(connect).collect::<Vec<_>>();
    host.fails(&["capture", "vm0", "-w", "-"], 1, "8 captures of this interface are in progress already");
    let (status, said) = host.http("vm0", "POST", "/v1/nets/-/capture", "{\"frames\":-1}");
    assert!(status == 400 && said.contains("Send nothing, or"), "{said}");
    host.fails(&["capture", "vm0", "-w", "-", "--net", "net1"], 1, "its interfaces are: net0");
    // More than their buffers hold.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let begun = Instant::now();
    while host.json(&["stats", "vm0", "--json"])["devices"][0]["bytes-in"].as_u64().unwrap() < 8 << 20 {
        assert!(begun.elapsed() < LIMIT, "the guest gets no frames");
        for _ in 0..1000 {
            socket.send_to(&[b'x'; 1400], at[1]).unwrap();
        }
    }
    echoes(at[0], "not held up");
    let mut late = slow.pop().unwrap();
    late.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    late.read_to_end(&mut rest).unwrap();
    let start = rest.windows(4).position(|window| window == [0x0a, 0x0d, 0x0d, 0x0a]).unwrap();
    let read = blocks(&rest[start..]);
    let (kind, body) = read.last().unwrap();
    let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
    let (seen, lost) = (number(16), number(28));
    assert!(*kind == STATISTICS && lost > 0 && frames(&read) as u64 == seen - lost, "{lost} of {seen}");
    // Those that go make room.
    drop(slow);
    let begun = Instant::now();
    let one_frame = || host.run(&["capture", "vm0", "-w", "-", "--seconds", "1"]).status;
    let all = |_| {
        thread::scope(|scope| {
            (0..8)
                .map(|_| scope.spawn(one_frame))
                .collect::<Vec<_>>()
                .into_iter()
                .all(|run| run.join().unwrap().success())
        })
    };
    while !all(()) {
        assert!(begun.elapsed() < LIMIT, "captures without readers stay");
    }
    let mut gone = Piped::start(&host, &["-w", "-"]).0;
    drop(gone.stdout.take());
    assert!(gone.wait().unwrap().success(), "its reader is gone");
    echoes(at[0], "still here");
    host.does(&["kill", "vm0"]);
    drop(machine.end());
}
