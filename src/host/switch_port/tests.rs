//! A port against a switch that the test plays.
#![allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use virtio::net::HEADER_LEN;

use super::super::net_socket::testing::{End, LIMIT, frame};
use super::*;

const HEAD: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: minivmm-frames\r\nPort-Name: vm0.net0\r\n\r\n";
/// The switch's first message: it takes all that ports offer.
const FIRST: [u8; 6] = [0x80, 0, 0, 2, 1, 0b1111];
/// A header that leaves a checksum, and one that leaves a segmentation too.
const CSUM: [u8; HEADER_LEN] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
const TSO4: [u8; HEADER_LEN] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];

fn lab() -> SwitchName {
    "lab".parse().unwrap()
}

fn request() -> PortRequest {
    PortRequest {
        machine: Some("vm0".parse().unwrap()),
        interface: "net0".parse().unwrap(),
        mac: "02:00:00:00:00:01".parse().unwrap(),
        mtu: 1500,
        options: "vlan=2,delay-in=20ms".parse().unwrap(),
    }
}

fn open(path: &Path) -> Result<SwitchPort, SwitchPortError> {
    SwitchPort::open_at(&lab(), vec![path.into()], &request())
}

/// A switch: a listener, and its folder.
fn switch() -> (UnixListener, PathBuf, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lab.sock");
    (UnixListener::bind(&path).unwrap(), path, folder)
}

/// Takes a connection and reads its request: the head, and the body.
fn take(listener: &UnixListener) -> (UnixStream, String, serde_json::Value) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut bytes = Vec::new();
    let end = loop {
        let mut byte = [0; 1];
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
        if bytes.ends_with(b"\r\n\r\n") {
            break bytes.len();
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (stream, head, serde_json::from_slice(&body).unwrap())
}

/// Takes a connection and gives it a port.
fn serve(listener: &UnixListener) -> UnixStream {
    let (mut stream, ..) = take(listener);
    stream.write_all(&[HEAD.as_bytes(), &FIRST].concat()).unwrap();
    stream
}

/// An attached port whose device is running, and the switch's end.
fn attached() -> (End, UnixStream, UnixListener, SwitchPort, TempDir) {
    let (listener, path, folder) = switch();
    let serving = thread::spawn(move || (serve(&listener), listener));
    let port = open(&path).unwrap();
    let (stream, listener) = serving.join().unwrap();
    let mut end = End::new(port.backend());
    end.wait_link(true);
    (end, stream, listener, port, folder)
}

/// What is on the stream for a frame.
fn framed(header: &[u8; HEADER_LEN], frame: &[u8]) -> Vec<u8> {
    [&((HEADER_LEN + frame.len()) as u32).to_be_bytes(), header.as_slice(), frame].concat()
}

fn expect(stream: &mut UnixStream, bytes: &[u8]) {
    let mut got = vec![0; bytes.len()];
    stream.read_exact(&mut got).unwrap();
    assert!(got == bytes, "{got:x?} is not {bytes:x?}");
}

/// Offloads as a control message.
fn takes(bits: u8) -> [u8; 6] {
    [0x80, 0, 0, 2, 1, bits]
}

/// Has the device see what has come so far, which is no frame.
fn settle(end: &mut End) {
    end.backend.link_is_up();
    assert_eq!(end.try_receive().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn the_switch_is_asked_for_a_port_with_all_that_it_has_to_know() {
    let (listener, path, _folder) = switch();
    let asked = thread::spawn(move || {
        let (mut stream, head, body) = take(&listener);
        // The answer may come in any pieces.
        for piece in [HEAD.as_bytes(), &FIRST].concat().chunks(7) {
            stream.write_all(piece).unwrap();
            thread::yield_now();
        }
        (head, body)
    });
    open(&path).unwrap();
    let (head, body) = asked.join().unwrap();
    assert!(head.starts_with("POST /v1/ports HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nConnection: Upgrade\r\nUpgrade: minivmm-frames\r\n"), "{head}");
    let expected = serde_json::json!({
        "machine": "vm0", "interface": "net0", "mac": "02:00:00:00:00:01", "mtu": 1500, "vlan": 2, "delay-in": "20ms",
    });
    assert_eq!(body, expected);
}

#[test]
fn frames_pass_behind_their_headers_and_offloads_are_what_both_ends_take() {
    let (mut end, mut stream, ..) = attached();
    assert_eq!(end.backend.offloads(), OFFLOADS);
    end.backend.set_offloads(Offloads::CSUM | Offloads::TSO4).unwrap();
    expect(&mut stream, &takes(3));
    for (seed, len) in [14, 60, 1514, 9014, 65535 + 18].into_iter().enumerate() {
        let sent = frame(len, seed);
        end.send_behind(&TSO4, &sent).unwrap();
        expect(&mut stream, &framed(&TSO4, &sent));
    }
    stream.write_all(&[framed(&CSUM, &frame(60, 1)), framed(&TSO4, &frame(3000, 2))].concat()).unwrap();
    assert!(end.events(LIMIT).contains(&0));
    assert!(end.try_receive_both().unwrap() == (CSUM, frame(60, 1)));
    assert!(end.try_receive_both().unwrap() == (TSO4, frame(3000, 2)));
    // The guest takes no segmentation any more: what was under way is lost, and what comes behind it is not.
    end.backend.set_offloads(Offloads::CSUM).unwrap();
    expect(&mut stream, &takes(1));
    stream.write_all(&[framed(&TSO4, &frame(3000, 3)), framed(&CSUM, &frame(60, 4))].concat()).unwrap();
    assert!(end.try_receive_both().unwrap() == (CSUM, frame(60, 4)));
    // The switch takes no segmentation any more.
    stream.write_all(&takes(1)).unwrap();
    settle(&mut end);
    assert_eq!(end.send_behind(&TSO4, &frame(3000, 5)).unwrap_err().kind(), ErrorKind::Unsupported);
    end.send_behind(&CSUM, &frame(60, 6)).unwrap();
    expect(&mut stream, &framed(&CSUM, &frame(60, 6)));
}

#[test]
fn frames_that_come_with_the_answer_are_received_without_another_event() {
    let (mut end, stream, listener, _port, _folder) = attached();
    drop(stream);
    let serving = thread::spawn(move || {
        let (mut stream, ..) = take(&listener);
        let frames = framed(&[0; HEADER_LEN], &frame(60, 1)).repeat(200);
        stream.write_all(&[HEAD.as_bytes(), &FIRST, &frames].concat()).unwrap();
        stream
    });
    let mut got = 0;
    while got < 200 {
        match end.try_receive() {
            Ok(received) => {
                assert_eq!(received, frame(60, 1));
                got += 1;
            }
            Err(_) => {
                let events = end.events(LIMIT);
                assert!(!events.is_empty(), "{got} frames came");
                end.backend.link_is_up();
            }
        }
    }
    drop(serving.join().unwrap());
}

#[test]
fn control_messages_of_later_versions_are_skipped() {
    let (mut end, mut stream, ..) = attached();
    let unknown = [0x80, 0, 0, 5, 9, 1, 2, 3, 4];
    let plain = framed(&[0; HEADER_LEN], &frame(60, 1));
    stream.write_all(&[&unknown.repeat(100), plain.as_slice()].concat()).unwrap();
    assert_eq!(end.receive(), frame(60, 1));
}

#[test]
fn a_switch_that_goes_away_is_a_link_that_is_down_until_it_is_back() {
    let (mut end, stream, listener, _port, folder) = attached();
    end.backend.set_offloads(Offloads::CSUM).unwrap();
    drop((stream, listener));
    end.wait_link(false);
    assert!(end.send(&frame(60, 1)).is_err());
    let path = folder.path().join("lab.sock");
    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let serving = thread::spawn(move || serve(&listener));
    end.wait_link(true);
    let mut stream = serving.join().unwrap();
    // The new switch is told at once what the guest takes.
    expect(&mut stream, &takes(1));
    end.send_behind(&CSUM, &frame(60, 2)).unwrap();
    expect(&mut stream, &framed(&CSUM, &frame(60, 2)));
}

#[test]
fn a_switch_that_refuses_or_says_nothing_is_tried_again() {
    let (mut end, stream, listener, _port, _folder) = attached();
    drop(stream);
    end.wait_link(false);
    let serving = thread::spawn(move || {
        let (mut refused, ..) = take(&listener);
        refused.write_all(b"HTTP/1.1 409 Conflict\r\nContent-Length: 15\r\n\r\n{\"error\":\"No.\"}").unwrap();
        drop(take(&listener));
        let (mut foreign, ..) = take(&listener);
        foreign.write_all(b"SSH-2.0\r\n").unwrap();
        serve(&listener)
    });
    end.wait_link(true);
    serving.join().unwrap();
}

#[test]
fn a_switch_that_does_not_read_holds_up_its_guest_and_its_messages_do_not_pile_up() {
    let (mut end, mut stream, ..) = attached();
    let sent = frame(60_000, 1);
    let mut count = 0;
    while end.send_behind(&CSUM, &sent).is_ok() {
        count += 1;
        assert!(count < 1000, "the socket has no end");
    }
    for bits in [0, 1, 3, 1, 0, 1] {
        end.backend.set_offloads(Offloads::from_bits_truncate(bits)).unwrap();
    }
    let reading = thread::spawn(move || {
        (0..count).for_each(|_| expect(&mut stream, &framed(&CSUM, &sent)));
        // Only the last one of those that could not be sent.
        expect(&mut stream, &takes(1));
        expect(&mut stream, &framed(&CSUM, &frame(60, 2)));
    });
    while end.send_behind(&CSUM, &frame(60, 2)).is_err() {
        end.wait_room();
    }
    reading.join().unwrap();
}

#[test]
fn a_switch_that_breaks_the_framing_is_disconnected() {
    for bytes in [[0, 0, 0, 25], [0, 2, 0, 0], [0x80, 0, 0, 0], [0x80, 0, 0, 65], [0xff; 4]] {
        let (mut end, mut stream, ..) = attached();
        stream.write_all(&bytes).unwrap();
        end.wait_link(false);
    }
}

#[test]
fn each_boot_begins_without_frames_and_settings_of_the_one_before() {
    let (mut end, mut stream, _listener, port, _folder) = attached();
    end.backend.set_offloads(Offloads::CSUM).unwrap();
    expect(&mut stream, &takes(1));
    stream.write_all(&framed(&[0; HEADER_LEN], &frame(60, 1))).unwrap();
    drop(end);
    let mut end = End::new(port.backend());
    expect(&mut stream, &takes(0));
    stream.write_all(&framed(&CSUM, &frame(60, 2))).unwrap();
    stream.write_all(&framed(&[0; HEADER_LEN], &frame(60, 3))).unwrap();
    assert_eq!(end.receive(), frame(60, 3));
}

#[test]
fn a_machine_without_its_switch_is_told_why() {
    let (listener, path, folder) = switch();
    let said = |path: &Path| open(path).unwrap_err().to_string();
    assert_eq!(said(&folder.path().join("none")), "no switch lab runs; start it with `minivmm switch lab`");
    assert!(said(&folder.path().join("x".repeat(108))).contains("too long for a socket"));
    let answered = |answer: &'static [u8]| {
        let listener = listener.try_clone().unwrap();
        let answering = thread::spawn(move || take(&listener).0.write_all(answer).unwrap());
        let said = said(&path);
        answering.join().unwrap();
        said
    };
    assert_eq!(
        answered(b"HTTP/1.1 409 Conflict\r\n\r\n{\"error\":\"Port vm1.net0 has the address; use `mac=`.\"}"),
        "the switch lab gives no port: port vm1.net0 has the address; use `mac=`"
    );
    assert!(answered(b"SSH-2.0\r\n").contains("is no switch of minivmm: its answer is not HTTP"));
    assert!(answered(&HEAD.as_bytes()[..50]).contains("closes the connection before it has answered"));
    assert!(answered(HEAD.as_bytes()).contains("it sends no first message"));
    drop(listener);
    // The socket of a switch that was killed.
    assert!(said(&path).contains("no switch lab runs"));
}

#[test]
fn a_full_backlog_is_waited_for_and_the_second_folder_is_looked_into() {
    let (listener, path, folder) = switch();
    let serving = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        serve(&listener)
    });
    let sockets = vec![folder.path().join("other/lab.sock"), path];
    SwitchPort::open_at(&lab(), sockets, &request()).unwrap();
    serving.join().unwrap();
}
