//! Tests of both kinds of sockets through the calls that the device makes.
#![allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use devices::thread::{self, Role};
use tempfile::TempDir;
use virtio::net::{HEADER_LEN, Net};
use virtio::poll::{Epoll, Interest, Poller};
use virtio::testing::Guest;

use super::testing::{End, LIMIT, frame};
use super::*;

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wire");
    (folder, path)
}

fn stream(path: &std::path::Path, role: PeerRole) -> StreamSocket {
    StreamSocket::open(path, role, 1500).unwrap()
}

/// Two machines on one stream socket: first the one that listens.
struct Joined {
    listens: End,
    connects: End,
    _sockets: [StreamSocket; 2],
    _folder: TempDir,
}

fn joined() -> Joined {
    let (folder, path) = folder();
    let sockets = [PeerRole::Listen, PeerRole::Connect].map(|role| stream(&path, role));
    let [mut listens, mut connects] = [0, 1].map(|index: usize| End::new(sockets[index].backend()));
    listens.wait_link(true);
    connects.wait_link(true);
    Joined { listens, connects, _sockets: sockets, _folder: folder }
}

/// `frame` as it is on the stream.
fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes(), frame].concat()
}

/// A listening end, and a peer that this test plays.
fn with_peer() -> (End, UnixStream, StreamSocket, TempDir) {
    let (folder, path) = folder();
    let socket = stream(&path, PeerRole::Listen);
    let mut end = End::new(socket.backend());
    let peer = UnixStream::connect(&path).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    end.wait_link(true);
    (end, peer, socket, folder)
}

#[test]
fn frames_of_all_sizes_pass_both_ways() {
    let Joined { listens: one, connects: other, .. } = &mut joined();
    let lengths = [14, 15, 60, 633, 634, 1514, 1518, 9014, 40_000, LONGEST_FRAME];
    for (seed, len) in lengths.into_iter().enumerate() {
        let sent = frame(len, seed);
        one.send(&sent).unwrap();
        assert!(other.receive() == sent, "{len} bytes to the one that connected");
        other.send(&sent).unwrap();
        assert!(one.receive() == sent, "{len} bytes to the one that listens");
    }
    assert_eq!(one.try_receive().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(one.send(&frame(LONGEST_FRAME + 1, 0)).is_err());
}

#[test]
fn the_bytes_on_the_stream_are_those_of_qemu() {
    let (mut end, mut peer, ..) = with_peer();
    end.send(&frame(60, 1)).unwrap();
    let mut got = [0; 64];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(got[..4], [0, 0, 0, 60]);
    assert_eq!(got[4..], frame(60, 1));
    // Two frames in one write, the second in two writes.
    let bytes = [framed(&frame(1514, 2)), framed(&frame(60, 3))].concat();
    peer.write_all(&bytes[..1530]).unwrap();
    assert_eq!(end.receive(), frame(1514, 2));
    assert_eq!(end.try_receive().unwrap_err().kind(), ErrorKind::WouldBlock);
    peer.write_all(&bytes[1530..]).unwrap();
    assert_eq!(end.receive(), frame(60, 3));
}

#[test]
fn a_peer_that_does_not_read_blocks_the_sender_and_nothing_is_lost_or_cut() {
    for len in [60, 1514, LONGEST_FRAME] {
        let (mut end, mut peer, ..) = with_peer();
        let total = 40 * (1 + 100_000 / len);
        let mut sent = 0;
        while let Ok(()) = end.send(&frame(len, sent)) {
            sent += 1;
        }
        assert!(sent > 0 && sent < total, "{len}: {sent} frames");
        // It is full: no event says otherwise, however often it is asked.
        assert_eq!(end.send(&frame(len, sent)).unwrap_err().kind(), ErrorKind::WouldBlock);
        let fd = end.backend.fd(0).unwrap();
        end.poller.unwatch(fd, 0).unwrap();
        end.poller.watch(fd, 0, Interest::Both).unwrap();
        assert!(end.events(Duration::ZERO).is_empty(), "{len}");
        let reader = thread::spawn(Role::Cli, "reader", move || {
            for seed in 0..total {
                let mut got = vec![0; 4 + len];
                peer.read_exact(&mut got).unwrap();
                assert!(got == framed(&frame(len, seed)), "{len}: frame {seed}");
            }
            peer
        });
        while sent < total {
            match end.send(&frame(len, sent)) {
                Ok(()) => sent += 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WouldBlock);
                    end.wait_room();
                }
            }
        }
        // The end of the last frame, if the socket took only its beginning.
        let reader = reader.unwrap();
        while !reader.is_finished() {
            let _ = end.backend.link_is_up();
        }
        reader.join().unwrap();
    }
}

#[test]
fn a_full_socket_and_a_guest_without_buffers_do_not_keep_the_worker_busy() {
    let (mut end, mut peer, ..) = with_peer();
    let mut sent = 0;
    while let Ok(()) = end.send(&frame(1514, sent)) {
        sent += 1;
    }
    // Frames come, and the guest takes one of them.
    peer.write_all(&framed(&frame(60, 0)).repeat(2000)).unwrap();
    assert_eq!(end.receive(), frame(60, 0));
    for _ in 0..3 {
        assert_eq!(end.send(&frame(60, 0)).unwrap_err().kind(), ErrorKind::WouldBlock);
        let fd = end.backend.fd(0).unwrap();
        end.poller.unwatch(fd, 0).unwrap();
        end.poller.watch(fd, 0, Interest::Both).unwrap();
        assert!(end.events(Duration::ZERO).is_empty());
    }
    // Once it takes frames again, it gets them all, and hears of the next.
    for _ in 1..2000 {
        assert_eq!(end.receive(), frame(60, 0));
    }
    assert!(end.try_receive().is_err());
    peer.write_all(&framed(&frame(60, 1))).unwrap();
    assert_eq!(end.receive(), frame(60, 1));
}

#[test]
fn a_length_that_no_frame_has_ends_the_connection_and_the_next_one_works() {
    for junk in [0u32, 13, LONGEST_FRAME as u32 + 1, u32::MAX] {
        let (mut end, mut peer, _socket, folder) = with_peer();
        peer.write_all(&[&framed(&frame(60, 1))[..], &junk.to_be_bytes(), &[0; 5000]].concat()).unwrap();
        assert_eq!(end.receive(), frame(60, 1));
        end.wait_link(false);
        assert_eq!(end.send(&frame(60, 1)).unwrap_err().kind(), ErrorKind::NotConnected);
        let mut peer = UnixStream::connect(folder.path().join("wire")).unwrap();
        end.wait_link(true);
        peer.write_all(&framed(&frame(60, 2))).unwrap();
        assert_eq!(end.receive(), frame(60, 2));
    }
}

#[test]
fn a_peer_that_goes_takes_the_link_down_and_the_next_one_brings_it_up() {
    let (mut end, mut peer, _socket, folder) = with_peer();
    // What it sent before it went is heard; half a frame is not.
    peer.write_all(&[framed(&frame(60, 1)), framed(&frame(60, 2))[..9].to_vec()].concat()).unwrap();
    drop(peer);
    assert_eq!(end.receive(), frame(60, 1));
    end.wait_link(false);
    let mut peer = UnixStream::connect(folder.path().join("wire")).unwrap();
    peer.write_all(&framed(&frame(60, 3))).unwrap();
    end.wait_link(true);
    assert_eq!(end.receive(), frame(60, 3));
    // Found out by sending, too.
    drop(peer);
    assert!(end.send(&frame(60, 1)).is_err());
    assert!(!end.backend.link_is_up());
}

#[test]
fn one_socket_under_two_names_is_no_wire() {
    let (folder, path) = folder();
    let same = folder.path().join(".").join("wire");
    std::os::unix::fs::symlink(&path, folder.path().join("link")).unwrap();
    for other in [path.clone(), same, folder.path().join("link")] {
        let error = DgramSocket::open(&path, &other, 1500).unwrap_err();
        assert!(matches!(error, NetSocketError::SamePath(_)), "{error}");
        assert!(!path.exists(), "its socket is left there");
    }
    DgramSocket::open(&path, &folder.path().join("other"), 1500).unwrap();
}

#[test]
fn a_second_peer_is_refused_unless_the_first_has_gone() {
    let (mut end, peer, _socket, folder) = with_peer();
    let path = folder.path().join("wire");
    let mut second = UnixStream::connect(&path).unwrap();
    second.set_read_timeout(Some(LIMIT)).unwrap();
    assert!(end.events(LIMIT).contains(&1) && end.backend.link_is_up());
    assert_eq!(second.read(&mut [0; 1]).unwrap(), 0, "it is closed");
    // The device may look at the link before it finds out that the first one has gone.
    drop(peer);
    let mut third = UnixStream::connect(&path).unwrap();
    assert!(end.backend.link_is_up());
    third.write_all(&framed(&frame(60, 3))).unwrap();
    assert_eq!(end.receive(), frame(60, 3));
}

#[test]
fn the_one_that_connects_comes_back_by_itself() {
    let (_folder, path) = folder();
    let socket = stream(&path, PeerRole::Connect);
    let mut end = End::new(socket.backend());
    assert!(!end.backend.link_is_up(), "nobody listens");
    for turn in 0..2 {
        let listener = UnixListener::bind(&path).unwrap();
        end.wait_link(true);
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(&framed(&frame(60, turn))).unwrap();
        assert_eq!(end.receive(), frame(60, turn));
        drop((listener, peer));
        std::fs::remove_file(&path).unwrap();
        end.wait_link(false);
    }
}

#[test]
fn a_boot_hears_nothing_of_the_boot_before_on_the_same_connection() {
    let (mut end, mut peer, socket, _folder) = with_peer();
    let bytes = framed(&frame(1514, 1)).repeat(20);
    peer.write_all(&bytes[..bytes.len() - 100]).unwrap();
    assert_eq!(end.receive(), frame(1514, 1));
    drop(end);
    let mut end = End::new(socket.backend());
    assert!(end.backend.link_is_up());
    peer.write_all(&bytes[bytes.len() - 100..]).unwrap();
    peer.write_all(&framed(&frame(60, 2))).unwrap();
    // The frame that was under way is whole.
    assert_eq!(end.receive(), frame(1514, 1));
    assert_eq!(end.receive(), frame(60, 2));
}

#[test]
fn a_socket_is_its_owners_alone_and_faults_are_sentences_with_cures() {
    let (folder, path) = folder();
    let socket = stream(&path, PeerRole::Listen);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let says = |path: &std::path::Path, role| StreamSocket::open(path, role, 1500).unwrap_err().to_string();
    assert!(says(&path, PeerRole::Listen).contains("leave out `listen`"));
    drop(socket);
    assert!(!path.exists());
    let datagrams = DgramSocket::open(&path, &folder.path().join("none"), 1500).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(says(&path, PeerRole::Listen).contains("another program uses the socket"));
    drop(datagrams);
    assert!(!path.exists());
    drop(UnixListener::bind(&path).unwrap());
    let inode = std::fs::metadata(&path).unwrap().ino();
    let socket = stream(&path, PeerRole::Listen);
    assert!(UnixStream::connect(&path).is_ok(), "a stale socket ({inode}) is replaced");
    drop(socket);
    std::fs::write(&path, "precious").unwrap();
    for role in [PeerRole::Listen, PeerRole::Connect] {
        assert!(says(&path, role).contains("is no socket; remove it"));
        assert!(says(&folder.path().join("x".repeat(108)), role).contains("107 bytes at most"));
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert!(says(&folder.path().join("no/wire"), PeerRole::Listen).contains("mkdir -p"));
    let other = folder.path().join("other");
    let _datagrams = UnixDatagram::bind(&other).unwrap();
    assert!(says(&other, PeerRole::Connect).contains("--net dgram=LOCAL:REMOTE"));
    let says = |local, remote| DgramSocket::open(local, remote, 1500).unwrap_err().to_string();
    assert!(says(&path, &other).contains("is no socket; remove it"));
    assert!(says(&other, &other).contains("two paths"));
    let (third, fourth) = (folder.path().join("third"), folder.path().join("fourth"));
    let _stream = UnixListener::bind(&third).unwrap();
    assert!(says(&fourth, &third).contains("--net socket=PATH"));
    assert!(!fourth.exists());
}

/// Two machines on a pair of datagram sockets.
fn dgram_pair(folder: &TempDir) -> ([DgramSocket; 2], End, End) {
    let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
    let sockets = [DgramSocket::open(&a, &b, 1500).unwrap(), DgramSocket::open(&b, &a, 1500).unwrap()];
    let [one, other] = [0, 1].map(|index: usize| End::new(sockets[index].backend()));
    (sockets, one, other)
}

#[test]
fn datagrams_of_all_sizes_pass_both_ways_and_junk_is_dropped() {
    let (folder, _) = folder();
    let (_sockets, mut one, mut other) = dgram_pair(&folder);
    assert!(other.backend.link_is_up(), "its peer was there first");
    one.wait_link(true);
    for (seed, len) in [14, 60, 633, 634, 1514, 9014, LONGEST_FRAME].into_iter().enumerate() {
        let sent = frame(len, seed);
        one.send(&sent).unwrap();
        assert!(other.receive() == sent, "{len} bytes");
        other.send(&sent).unwrap();
        assert!(one.receive() == sent, "{len} bytes");
    }
    let stranger = UnixDatagram::unbound().unwrap();
    stranger.connect(folder.path().join("a")).unwrap();
    for junk in [0, 13] {
        stranger.send(&frame(junk, 0)).unwrap();
    }
    stranger.send(&frame(LONGEST_FRAME + 100, 0)).unwrap();
    stranger.send(&frame(60, 9)).unwrap();
    assert!(one.receive().len() > LONGEST_FRAME, "the device drops a frame that is too long");
    assert_eq!(one.receive(), frame(60, 9));
}

#[test]
fn a_datagram_peer_that_goes_takes_the_link_down_until_it_answers() {
    let (folder, _) = folder();
    let (sockets, mut one, other) = dgram_pair(&folder);
    one.wait_link(true);
    let [first, second] = sockets;
    drop((second, other));
    assert!(one.send(&frame(60, 1)).is_err());
    assert!(!one.backend.link_is_up());
    // It is there again: the timer finds it.
    let second = DgramSocket::open(&folder.path().join("b"), &folder.path().join("a"), 1500).unwrap();
    let mut other = End::new(second.backend());
    one.wait_link(true);
    one.send(&frame(60, 2)).unwrap();
    assert_eq!(other.receive(), frame(60, 2));
    // Killed, it leaves its file behind; after a restart it is heard at once, and seen at the next look.
    drop((second, other));
    let path = folder.path().join("b");
    drop(UnixDatagram::bind(&path).unwrap());
    assert_eq!(one.send(&frame(60, 3)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(!one.backend.link_is_up());
    std::fs::remove_file(&path).unwrap();
    let peer = UnixDatagram::bind(&path).unwrap();
    peer.send_to(&frame(60, 4), folder.path().join("a")).unwrap();
    assert_eq!(one.receive(), frame(60, 4));
    one.wait_link(true);
    drop(first);
}

#[test]
fn datagrams_of_others_do_not_bring_up_the_link_to_a_peer_that_is_not_there() {
    let (folder, _) = folder();
    let [local, remote] = ["a", "b"].map(|name| folder.path().join(name));
    let socket = DgramSocket::open(&local, &remote, 1500).unwrap();
    let mut one = End::new(socket.backend());
    let stranger = UnixDatagram::unbound().unwrap();
    for seed in 0..5 {
        stranger.send_to(&frame(60, seed), &local).unwrap();
        assert_eq!(one.receive(), frame(60, seed));
        assert!(!one.backend.link_is_up());
        assert!(one.send(&frame(60, seed)).is_err());
        std::thread::sleep(RETRY / 2);
        assert!(!one.backend.link_is_up());
    }
    // A guest that sends without a link does not put off the look that finds the peer.
    let _peer = UnixDatagram::bind(&remote).unwrap();
    one.wait_link(true);
}

#[test]
fn a_datagram_peer_that_does_not_read_blocks_the_sender_and_nothing_is_lost() {
    let (folder, _) = folder();
    let (_sockets, mut one, mut other) = dgram_pair(&folder);
    one.wait_link(true);
    let mut sent = 0;
    while let Ok(()) = one.send(&frame(1514, sent)) {
        sent += 1;
    }
    assert_eq!(one.send(&frame(1514, sent)).unwrap_err().kind(), ErrorKind::WouldBlock);
    let total = 3 * sent;
    let reader = thread::spawn(Role::Cli, "reader", move || {
        for seed in 0..total {
            assert!(other.receive() == frame(1514, seed), "frame {seed}");
        }
    });
    while sent < total {
        match one.send(&frame(1514, sent)) {
            Ok(()) => sent += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                one.wait_room();
            }
        }
    }
    reader.unwrap().join().unwrap();
}

#[test]
fn a_driver_behind_the_device_talks_through_a_stream_both_ways_and_sees_the_link_go() {
    let (_folder, path) = folder();
    let socket = stream(&path, PeerRole::Listen);
    let mut peer = UnixStream::connect(&path).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    let device = Net::<Epoll>::new("net0", [2, 0, 0, 0, 0, 9], socket.backend(), 1);
    let mut guest = Guest::new(Box::new(device), Box::new(Epoll::new));
    guest.start(u64::MAX, 256);
    for turn in 0..200 {
        let sent = frame(1000, turn);
        guest.request(1, &[&[0; HEADER_LEN], &sent], &[]);
        let mut got = vec![0; 1004];
        peer.read_exact(&mut got).unwrap();
        assert!(got == framed(&sent), "frame {turn}");
        peer.write_all(&got).unwrap();
        let (_, buffer) = guest.add(0, &[], &[1526]);
        guest.kick(0);
        assert_eq!(guest.rings[0].wait_used().len as usize, HEADER_LEN + 1000);
        assert_eq!(guest.bytes(buffer[0] + HEADER_LEN as u64, 1000), sent, "frame {turn}");
    }
    drop(peer);
    guest.wait_until("the guest sees that the link has gone", |guest| guest.config(6, 1) == [0]);
    let _peer = UnixStream::connect(&path).unwrap();
    guest.wait_until("the guest sees the link", |guest| guest.config(6, 1) == [1]);
}
