//! What goes over a machine's network is out for harm: the guest's frames, and the peers of forwards and sockets.
//!
//! A guest (`tests/guest/frames`) sends anything, and echoes what comes to its port 7. Here it is seen that the machine goes on,
//! holds no more memory and descriptors than early in the run, and that its forwards lead to the guest all the time.
//! `HOSTILE_OPS` sets the number of frames (a million), `HOSTILE_SEED` their seed. Each test runs in a network namespace of its own,
//! in which all addresses of the world are this host's; it needs root, or the right to make user namespaces.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/host.rs"]
mod host;
#[path = "support/memory.rs"]
mod memory;
#[path = "support/switch.rs"]
mod switch;
#[path = "support/vmm.rs"]
mod vmm;

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use dose::dose;
use host::Host;
use memory::private_memory;
use socket2::SockRef;
use switch::{Client, Switch, socket};
use vmm::{LIMIT, Launch, Vmm};

/// Pieces of the guest's run.
const PIECES: usize = 20;
/// KiB that a piece or a round may add without a leak, and all of them together: the allocator keeps the buffers of a busy moment.
const ADDED: u64 = 64;
const KEPT: u64 = 8 << 10;
/// Descriptors of the process: a quarter is for connections, another for flows.
const FILES: usize = 1024;
/// Those that a machine has beside them, echo sockets among them.
const OWN_FILES: usize = 128;
/// Where the host's programs answer; nobody accepts connections at the next one.
const SERVICE: u16 = 7777;
const DEAF: u16 = SERVICE + 1;
const FORWARD: u16 = 5007;

/// Runs the command in a network of its own, in which every address is this host's, or unreachable.
const ALONE: &str = "ip link set lo up
ip route add local 0.0.0.0/0 dev lo
ip -6 route add local ::/0 dev lo
ip route add unreachable 203.0.113.0/24
exec \"$@\"";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Runs the test `name` again in a network of its own. True: this is that run.
fn is_alone(name: &str) -> bool {
    const INSIDE: &str = "MINIVMM_TEST_ALONE";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut command = Command::new("unshare");
    // SAFETY: it reads a number.
    #[allow(unsafe_code, reason = "geteuid(2) has no safe wrapper in std")]
    if unsafe { libc::geteuid() } != 0 {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "sh", "-ec", ALONE, "alone"]).arg(std::env::current_exe().unwrap());
    let output = command.args([name, "--exact", "--nocapture"]).env(INSIDE, "1").output().unwrap();
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    println!("{said}");
    assert!(output.status.success() && said.contains("1 passed"), "{}: {said}", output.status);
    false
}

/// A machine with the guest, on `nets`, and as few descriptors as [`FILES`].
fn launch(append: &str, nets: &[&str]) -> Launch {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("frames");
    fs::write(&kernel, tiny_guest::FRAMES).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {FILES} && exec \"$@\""), "few", env!("CARGO_BIN_EXE_minivmm")]);
    command.args(["--mem", "16", "--append", append, "--kernel"]).arg(&kernel);
    command.args(nets.iter().flat_map(|net| ["--net", net]));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Launch { command, folder: Arc::new(folder) }
}

fn start(append: &str, nets: &[&str]) -> Vmm {
    let machine = launch(append, nets).spawn();
    machine.expect("ready\n", 1);
    machine
}

/// Frames and seed of a run of the guest.
fn run_of(frames: u64) -> (u64, u64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = number("HOSTILE_SEED").unwrap_or(now.subsec_nanos().into());
    (number("HOSTILE_OPS").unwrap_or(dose(frames)), seed)
}

fn user_network() -> String {
    format!("user,host-loopback=on,forward={FORWARD}:7,forward={FORWARD}:7/udp")
}

/// What a machine holds: KiB of its own, and descriptors.
fn held(machine: &Vmm) -> (u64, usize) {
    let files = fs::read_dir(format!("/proc/{}/fd", machine.pid())).unwrap().count();
    (private_memory(machine.pid()), files)
}

fn forward() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, FORWARD).into()
}

/// The guest echoes a datagram and a stream that come in by the forwards.
fn answers(word: &str) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.connect(forward()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let begun = Instant::now();
    let mut room = [0; 100];
    loop {
        // Datagrams may be lost.
        socket.send(word.as_bytes()).unwrap();
        if socket.recv(&mut room).is_ok_and(|len| room[..len] == *word.as_bytes()) {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "{word}: no datagram comes back");
    }
    // Of too many peers whose connections the guest leaves half-open, the last are refused.
    while let Err(error) = streams(word.as_bytes()) {
        assert!(begun.elapsed() < LIMIT, "{word}: no stream comes back: {error}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn streams(word: &[u8]) -> io::Result<()> {
    let mut stream = TcpStream::connect(forward())?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(word)?;
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back)?;
    assert_eq!(back, word);
    Ok(())
}

/// Programs of this host that the guest reaches: they answer, hang, end at once or with a reset.
fn serve() {
    let streams = TcpListener::bind(("::", SERVICE)).unwrap();
    let deaf = TcpListener::bind(("::", DEAF)).unwrap();
    let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SERVICE)).unwrap();
    thread::spawn(move || {
        let _deaf = deaf;
        let mut kept = VecDeque::new();
        for (number, mut stream) in streams.incoming().flatten().enumerate() {
            stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            stream.set_write_timeout(Some(Duration::from_millis(5))).unwrap();
            let mut bytes = [b'x'; 5000];
            match number % 4 {
                0 => {}
                1 => drop(stream.write(&bytes)),
                2 => drop(stream.read(&mut bytes).and_then(|len| stream.write(&bytes[..len]))),
                _ => kept.push_back(stream),
            }
            if kept.len() > 64 {
                kept.pop_front();
            }
        }
    });
    thread::spawn(move || {
        let mut room = [0; 70_000];
        loop {
            if let Ok((len, from)) = datagrams.recv_from(&mut room) {
                let _ = datagrams.send_to(&room[..len], from);
            }
        }
    });
}

/// Peers of the forwards, while the guest does as it likes: streams that end at once, amid bytes, or not.
fn come_and_go(over: &AtomicBool) {
    let mut kept = VecDeque::new();
    for number in 0.. {
        if over.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(stream) = TcpStream::connect_timeout(&forward(), Duration::from_secs(1)) {
            stream.set_write_timeout(Some(Duration::from_millis(5))).unwrap();
            if number % 2 == 0 {
                let _ = (&stream).write(&[b'y'; 3000]);
            }
            if number % 3 == 0 {
                kept.push_back(stream);
            }
        }
        if kept.len() > 8 {
            kept.pop_front();
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_guest_that_sends_junk_neither_harms_its_machine_nor_loses_its_forwards() {
    if !is_alone("a_guest_that_sends_junk_neither_harms_its_machine_nor_loses_its_forwards") {
        return;
    }
    let (frames, seed) = run_of(1_000_000);
    serve();
    let begun = Instant::now();
    let mut machine = start(&format!("frames={frames} seed={seed} port={SERVICE}"), &[&user_network()]);
    answers("before all of it");
    let over = AtomicBool::new(false);
    let mut all = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| come_and_go(&over));
        let _end = OnDrop(&over);
        for piece in 1..=PIECES {
            machine.type_in(b"!");
            machine.expect("at=", piece);
            answers(&format!("after piece {piece}"));
            all.push(held(&machine));
        }
    });
    machine.type_in(b"!");
    let ended = machine.end();
    println!("seed {seed}, {frames} frames in {:?}: {all:?}\n{ended:?}", begun.elapsed());
    assert!(ended.status.success() && ended.stdout.ends_with("\ndone\n"));
    assert!(!ended.stderr.contains("panicked") && !ended.stderr.contains("has died"));
    assert!(ended.stderr.lines().count() < 100, "the guest fills the terminal");
    nothing_leaks(&all);
    let files = all.iter().map(|(_, files)| *files).max().unwrap();
    assert!(files <= FILES / 2 + OWN_FILES, "it had {files} descriptors");
}

/// KiB of a switch's own, and its descriptors.
fn held_by(switch: &Switch) -> (u64, usize) {
    let status = fs::read_to_string(format!("/proc/{}/status", switch.pid())).unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let files = fs::read_dir(format!("/proc/{}/fd", switch.pid())).unwrap().count();
    (own.trim().trim_end_matches(" kB").parse().unwrap(), files)
}

/// The guest echoes a datagram that comes over the switch.
fn echoes_over(path: &Path, word: &str) {
    let mut peer = Client::attach(path, 1, "").unwrap();
    peer.send_frame(&framed(word.as_bytes())[4..]);
    while !peer.next().unwrap().ends_with(word.as_bytes()) {}
}

#[test]
fn junk_on_a_secure_port_of_a_switch_keeps_its_address_and_leaves_nothing_behind() {
    let (frames, seed) = run_of(200_000);
    let host = Host::new();
    let lab = Switch::start(&host, &["lab", "--keep"]);
    let path = socket(&host, "lab");
    let append = format!("frames={frames} seed={seed} port={SERVICE}");
    let mut launch = launch(&append, &["switch=lab,secure=on,delay=1ms,mac=02:00:00:00:00:15"]);
    launch.command.env("XDG_RUNTIME_DIR", host.0.path());
    let mut machine = launch.spawn();
    machine.expect("ready\n", 1);
    echoes_over(&path, "before all of it");
    let mut listener = Client::attach(&path, 3, "").unwrap();
    let listens = thread::spawn(move || {
        let (mut heard, mut foreign) = (0u64, 0u64);
        while let Some(frame) = listener.next() {
            heard += 1;
            foreign += u64::from(![0x15, 1].contains(&frame[11]) || frame[6..11] != [2, 0, 0, 0, 0]);
        }
        (heard, foreign)
    });
    let mut all = Vec::new();
    for piece in 1..=PIECES {
        machine.type_in(b"!");
        machine.expect("at=", piece);
        echoes_over(&path, &format!("after piece {piece}"));
        all.push((held(&machine), held_by(&lab)));
    }
    let shown = host.json(&["switch", "show", "lab", "--json"]);
    machine.type_in(b"!");
    let ended = machine.end();
    host.does(&["switch", "stop", "lab"]);
    let (status, said) = lab.end();
    let (heard, foreign) = listens.join().unwrap();
    println!("seed {seed}, {frames} frames, {heard} heard: {all:?}\n{shown:#}\n{ended:?}\n{said}");
    assert!(ended.status.success() && ended.stdout.ends_with("\ndone\n") && status == Some(0));
    assert!(ended.stderr.lines().count() + said.lines().count() < 100, "the guest fills the terminal");
    assert!(heard > 0 && foreign == 0, "{foreign} frames of {heard} came from other addresses");
    let port =
        shown["ports"].as_array().unwrap().iter().find(|port| port["mac"] == "02:00:00:00:00:15").unwrap();
    assert!(port["out"]["drops"]["secure"].as_u64().unwrap() > 0);
    for part in [0, 1] {
        let held: Vec<_> = all.iter().map(|both| [both.0, both.1][part]).collect();
        nothing_leaks(&held);
        assert!(held[PIECES - 1].1 <= held[0].1 + 1, "KiB and descriptors: {held:?}");
    }
}

/// Connections of the forward that carry nothing, that end with a reset, and whose peers send without reading.
fn misuse(connections: u64) {
    let mut kept = VecDeque::new();
    for _ in 0..connections {
        kept.extend(TcpStream::connect(forward()));
        if kept.len() > FILES / 2 {
            kept.pop_front();
        }
    }
    drop(kept);
    for _ in 0..connections / 4 {
        let Ok(stream) = TcpStream::connect(forward()) else { continue };
        let _ = (&stream).write(b"and then not");
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    let slow: Vec<_> = (0..4).flat_map(|_| TcpStream::connect(forward())).collect();
    for mut stream in &slow {
        stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        let _ = (0..128).try_for_each(|_| stream.write_all(&[b'z'; 64 << 10]));
    }
}

#[test]
fn peers_of_a_forward_that_misuse_it_leave_nothing_behind() {
    if !is_alone("peers_of_a_forward_that_misuse_it_leave_nothing_behind") {
        return;
    }
    let connections = number("HOSTILE_OPS").unwrap_or(dose(10_000)) / 4;
    let mut machine = start("frames=0", &[&user_network()]);
    answers("before all of it");
    let (_, before) = held(&machine);
    let mut all = Vec::new();
    for round in 1..=4 {
        misuse(connections);
        answers(&format!("after round {round}"));
        all.push(until_over(&machine, before));
    }
    println!("{connections} connections a round: {all:?}");
    machine.type_in(b"!");
    let ended = machine.end();
    assert!(ended.status.success() && ended.stdout.ends_with("\ndone\n"), "{ended:?}");
    assert!(ended.stderr.lines().count() < 50, "they fill the terminal: {}", ended.stderr);
    nothing_leaks(&all);
}

/// Of KiB and descriptors after each round. A leak adds to every round; the buffers of a busy moment are added once, in any round,
/// and used again in the next ones.
#[track_caller]
fn nothing_leaks(held: &[(u64, usize)]) {
    let mut added: Vec<_> = held.windows(2).map(|pair| pair[1].0.saturating_sub(pair[0].0)).collect();
    added.sort_unstable();
    assert!(added[added.len() / 4] < ADDED, "KiB and descriptors: {held:?}");
    assert!(held[held.len() - 1].0 < held[0].0 + KEPT, "KiB and descriptors: {held:?}");
}

/// What the machine holds when it has no more than so many descriptors.
fn until_over(machine: &Vmm, files: usize) -> (u64, usize) {
    let begun = Instant::now();
    loop {
        let held = held(machine);
        if held.1 <= files {
            return held;
        }
        assert!(begun.elapsed() < LIMIT, "it keeps more than {files} descriptors: {held:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A UDP datagram to the guest's port 7 in a frame behind its length, as QEMU's stream sockets carry it.
fn framed(word: &[u8]) -> Vec<u8> {
    let len = |extra: usize| u16::try_from(word.len() + extra).unwrap().to_be_bytes();
    let mut bytes = vec![0, 0];
    bytes.extend(len(42));
    bytes.extend([2, 0, 0, 0, 0, 0x15, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0]);
    bytes.extend(len(28));
    bytes.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 2, 10, 0, 2, 15, 0x10, 0, 0, 7]);
    bytes.extend(len(8));
    bytes.extend([0, 0]);
    bytes.extend(word);
    bytes
}

/// Reads frames until one ends with `word`.
fn hears(mut peer: &UnixStream, word: &[u8]) -> io::Result<()> {
    let mut frame = Vec::new();
    while !frame.ends_with(word) {
        let mut len = [0; 4];
        peer.read_exact(&mut len)?;
        frame.resize(u32::from_be_bytes(len) as usize, 0);
        peer.read_exact(&mut frame)?;
    }
    Ok(())
}

/// The guest echoes a datagram of a peer that does as it should.
fn echoes(path: &Path, word: &str) {
    let begun = Instant::now();
    let try_once = || {
        let peer = UnixStream::connect(path)?;
        peer.set_read_timeout(Some(LIMIT))?;
        (&peer).write_all(&framed(word.as_bytes()))?;
        hears(&peer, word.as_bytes())
    };
    // It is refused as long as the peer before it has not been seen to leave.
    while let Err(error) = try_once() {
        assert!(begun.elapsed() < LIMIT, "{word}: no frame comes back: {error}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Peers that break the framing, stop amid a frame, send bytes one by one, come and go, or do not read what they asked for.
fn break_off(path: &Path, peers: u64) {
    let connect = || UnixStream::connect(path).unwrap();
    let good = framed(b"good");
    // A peer that was refused hears so by an error.
    let _ = connect().write_all(&[0xff; 100]);
    let _ = connect().write_all(&[0, 0, 0, 13, 1, 2, 3]);
    let silent = connect();
    let _ = (&silent).write_all(&good[..20]);
    for byte in &good {
        if (&silent).write_all(&[*byte]).is_err() {
            break;
        }
    }
    drop(silent);
    for _ in 0..peers {
        let _ = connect().write_all(&good[..10]);
    }
    let deaf = connect();
    deaf.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
    let all_sent = (0..2000).all(|_| (&deaf).write_all(&framed(&[b'w'; 1400])).is_ok());
    assert!(!all_sent, "nobody takes so much");
}

#[test]
fn peers_of_a_socket_that_break_off_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wire");
    let mut machine = start("frames=0", &[&format!("socket={},listen", path.display())]);
    echoes(&path, "before all of it");
    let mut all = Vec::new();
    for round in 1..=4 {
        break_off(&path, dose(1000));
        echoes(&path, &format!("after round {round}"));
        all.push(held(&machine));
    }
    println!("{all:?}");
    machine.type_in(b"!");
    let ended = machine.end();
    assert!(ended.status.success() && ended.stdout.ends_with("\ndone\n"), "{ended:?}");
    assert!(ended.stderr.lines().count() < 50, "they fill the terminal: {}", ended.stderr);
    nothing_leaks(&all);
    assert!(all[3].1 <= all[0].1 + 1, "KiB and descriptors: {all:?}");
}

#[test]
fn a_machine_that_a_socket_refuses_says_so_once() {
    const SAID: &str = "takes one at a time";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wire");
    let listener = UnixListener::bind(&path).unwrap();
    let mut machine = start("frames=0", &[&format!("socket={}", path.display())]);
    for _ in 0..4 {
        drop(listener.accept().unwrap());
    }
    let (peer, _) = listener.accept().unwrap();
    assert!(machine.stderr.text().contains(SAID), "{}", machine.stderr.text());
    (&peer).write_all(&framed(b"at last")).unwrap();
    hears(&peer, b"at last").unwrap();
    machine.type_in(b"!");
    let ended = machine.end();
    assert!(ended.status.success() && ended.stderr.matches(SAID).count() == 1, "{ended:?}");
}

/// Says that it is over, whichever way that is.
struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
