//! Tests that read captures back, block by block.
#![allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use virtio::memory::{Memory, Segment};
use virtio::net::testing::{Frame, Wire};
use virtio::net::{HEADER_LEN, NetBackend, Offloads};
use vm_memory::{Bytes, GuestAddress};

use super::*;

const GUARD: Duration = Duration::from_secs(60);

/// A block: its type and its body.
type Block = (u32, Vec<u8>);

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Cuts a capture into blocks; both lengths of each must agree.
fn blocks(mut bytes: &[u8]) -> Vec<Block> {
    let mut blocks = Vec::new();
    while !bytes.is_empty() {
        let len = u32_at(bytes, 4) as usize;
        assert!(len.is_multiple_of(4) && u32_at(bytes, len - 4) as usize == len);
        blocks.push((u32_at(bytes, 0), bytes[8..len - 4].to_vec()));
        bytes = &bytes[len..];
    }
    blocks
}

/// The options in `bytes` up to the end of options.
fn options(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut options = Vec::new();
    loop {
        let (code, len) = (u16_at(bytes, 0), usize::from(u16_at(bytes, 2)));
        if code == 0 {
            assert_eq!(bytes, [0; 4]);
            return options;
        }
        options.push((code, bytes[4..4 + len].to_vec()));
        bytes = &bytes[4 + len.next_multiple_of(4)..];
    }
}

/// A captured frame: flags, nanoseconds since 1970, bytes.
fn packet((kind, body): &Block) -> (u32, u64, Vec<u8>) {
    assert_eq!((*kind, u32_at(body, 0)), (6, 0));
    let len = u32_at(body, 12) as usize;
    assert_eq!(u32_at(body, 16) as usize, len, "it is whole");
    let options = options(&body[20 + len.next_multiple_of(4)..]);
    assert_eq!((options.len(), options[0].0), (1, 2));
    let time = u64::from(u32_at(body, 4)) << 32 | u64::from(u32_at(body, 8));
    (u32_at(&options[0].1, 0), time, body[20..20 + len].to_vec())
}

/// Frames seen and lost, of the last block.
fn statistics((kind, body): &Block) -> (u64, u64) {
    assert_eq!((*kind, u32_at(body, 0)), (5, 0));
    let options = options(&body[12..]);
    let count = |code| {
        let (_, value) = options.iter().find(|(other, _)| *other == code).unwrap();
        u64::from_le_bytes(value[..].try_into().unwrap())
    };
    (count(4), count(5))
}

fn frame(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 7 + seed * 13) % 251) as u8).collect()
}

/// A captured wire that ends in memory.
struct Link {
    wire: Wire,
    captured: Box<dyn NetBackend>,
    memory: Memory,
    point: CapturePoint,
}

impl Link {
    fn new() -> Link {
        let (wire, point) = (Wire::new(1, Offloads::all()), CapturePoint::default());
        let captured = point.around(Box::new(wire.clone()));
        let (memory, _) = virtio::testing::memory(1 << 18);
        Link { wire, captured, memory, point }
    }

    fn attach(&self, path: &Path) -> Result<Capture, CaptureError> {
        self.point.attach(CaptureFile::open(path)?, "net0")
    }

    fn send(&mut self, frame: &[u8]) -> std::io::Result<()> {
        let (first, second) = frame.split_at(10);
        self.memory.write_slice(first, GuestAddress(0x1001)).unwrap();
        self.memory.write_slice(second, GuestAddress(0x10000)).unwrap();
        let pieces = [(0x1001, 10), (0x10000, second.len() as u32)];
        let pieces = pieces.map(|(at, len)| Segment { address: GuestAddress(at), len });
        self.captured.send(0, &[0; HEADER_LEN], &self.memory, &pieces)
    }

    fn receive(&mut self, frame: &[u8]) {
        self.wire.give(0, [Frame { header: [0; HEADER_LEN], bytes: frame.to_vec() }]);
        let room = [(0x5000, 20), (0x7001, 100)];
        let room = room.map(|(at, len)| Segment { address: GuestAddress(at), len });
        let (mut header, mut spill) = ([0; HEADER_LEN], vec![0; 1 << 17]);
        let len = self.captured.receive(0, &mut header, &self.memory, &room, &mut spill).unwrap();
        assert_eq!(len, frame.len());
    }
}

#[test]
fn a_capture_reads_back_as_what_passed_both_ways_with_times_and_directions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net0.pcapng");
    let mut link = Link::new();
    link.send(&frame(60, 99)).unwrap();
    let before = SystemTime::now();
    let capture = link.attach(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let lengths = [14, 60, 61, 62, 63, 120, 121, 1514, 65553];
    for (seed, len) in lengths.into_iter().enumerate() {
        link.send(&frame(len, seed)).unwrap();
        link.receive(&frame(len, seed + 50));
    }
    drop(capture);
    let after = SystemTime::now();
    link.send(&frame(60, 99)).unwrap();

    let blocks = blocks(&fs::read(&path).unwrap());
    let (kind, section) = &blocks[0];
    assert_eq!((*kind, u32_at(section, 0)), (0x0a0d_0d0a, 0x1a2b_3c4d));
    assert_eq!((u16_at(section, 4), u16_at(section, 6), &section[8..16]), (1, 0, &[0xff; 8][..]));
    let [(4, program)] = &options(&section[16..])[..] else { panic!("the program is missing") };
    assert!(program.starts_with(b"minivmm "));
    let (kind, interface) = &blocks[1];
    assert_eq!((*kind, u16_at(interface, 0), u32_at(interface, 4)), (1, 1, 0));
    assert_eq!(options(&interface[8..]), [(2, b"net0".to_vec()), (9, vec![9])]);
    let packets = blocks[2..blocks.len() - 1].iter().map(packet).collect::<Vec<_>>();
    assert_eq!(packets.len(), 2 * lengths.len());
    let [from, until] =
        [before, after].map(|time| time.duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
    for (index, (flags, time, bytes)) in packets.iter().enumerate() {
        let (len, seed) = (lengths[index / 2], index / 2 + 50 * (index % 2));
        assert!(*bytes == frame(len, seed), "frame {index}");
        assert_eq!(*flags, if index % 2 == 0 { 2 } else { 1 }, "outbound, then inbound");
        assert!((from..=until).contains(time), "frame {index} at {time}");
    }
    assert_eq!(statistics(blocks.last().unwrap()), (packets.len() as u64, 0));
}

#[test]
fn a_frame_that_waits_for_the_wire_is_captured_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net0.pcapng");
    let mut link = Link::new();
    let capture = link.attach(&path).unwrap();
    link.wire.ends().credit = Some(0);
    assert_eq!(link.send(&frame(60, 1)).unwrap_err().kind(), ErrorKind::WouldBlock);
    link.wire.ends().credit = None;
    link.send(&frame(60, 1)).unwrap();
    drop(capture);
    let blocks = blocks(&fs::read(&path).unwrap());
    assert_eq!((blocks.len(), packet(&blocks[2]).2), (4, frame(60, 1)));
}

#[test]
fn captures_come_and_go_while_frames_pass() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["first", "second"].map(|name| folder.path().join(name));
    let mut link = Link::new();
    let first = link.attach(&paths[0]).unwrap();
    link.send(&frame(60, 1)).unwrap();
    let second = link.attach(&paths[1]).unwrap();
    link.send(&frame(60, 2)).unwrap();
    drop(first);
    link.send(&frame(60, 3)).unwrap();
    assert_eq!(second.counts(), (2, 0));
    drop(second);
    let seeds = paths.map(|path| {
        let blocks = blocks(&fs::read(path).unwrap());
        blocks[2..blocks.len() - 1].iter().map(|block| packet(block).2).collect::<Vec<_>>()
    });
    assert_eq!(seeds, [[1, 2].map(|seed| frame(60, seed)), [2, 3].map(|seed| frame(60, seed))]);
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_slow_reader_loses_frames_that_are_counted_and_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    fifo(&path);
    let mut link = Link::new();
    link.wire.ends().forget = true;
    let capture = link.attach(&path).unwrap();
    let sent = 3 * MOST_WAITING / 1514;
    for seed in 0..sent {
        link.send(&frame(1514, seed)).unwrap();
    }
    let (seen, lost) = capture.counts();
    assert!(seen == sent as u64 && lost > 0 && lost < seen, "{lost} of {seen}");
    // The reader comes at last, and reads what there was room for, from the beginning on.
    let heard = AtomicUsize::new(0);
    let read = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut bytes, mut part) = (Vec::new(), vec![0; 1 << 16]);
            let mut file = File::open(&path).unwrap();
            loop {
                let count = file.read(&mut part).unwrap();
                if count == 0 {
                    return bytes;
                }
                bytes.extend(&part[..count]);
                heard.store(bytes.len(), Ordering::Relaxed);
            }
        });
        let begin = Instant::now();
        let wait = |until: &mut dyn FnMut() -> bool| {
            while !until() {
                assert!(begin.elapsed() < GUARD, "nothing is read");
                std::thread::yield_now();
            }
        };
        // Frames find room again.
        wait(&mut || {
            let before = capture.counts().1;
            link.send(&frame(1514, 0)).unwrap();
            capture.counts().1 == before
        });
        let (seen, lost) = capture.counts();
        let all = usize::try_from(seen - lost).unwrap() * pcapng::packet_len(1514);
        wait(&mut || heard.load(Ordering::Relaxed) > all);
        drop(capture);
        reader.join().unwrap()
    });
    let blocks = blocks(&read);
    let (seen, lost) = statistics(blocks.last().unwrap());
    assert_eq!(blocks.len() as u64, 3 + seen - lost, "each frame is there or counted");
    assert_eq!(packet(&blocks[2]).2, frame(1514, 0));
}

#[test]
fn a_reader_that_never_comes_or_stops_does_not_keep_the_machine_from_ending() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    fifo(&path);
    let mut link = Link::new();
    let capture = link.attach(&path).unwrap();
    link.send(&frame(60, 1)).unwrap();
    drop(capture);
    // One that is there, and reads nothing.
    let reader = File::options().read(true).write(true).open(&path).unwrap();
    let capture = link.attach(&path).unwrap();
    for seed in 0..100 {
        link.send(&frame(1514, seed)).unwrap();
    }
    drop(capture);
    drop(reader);
}

#[test]
fn a_reader_that_goes_ends_the_capture_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    fifo(&path);
    let mut link = Link::new();
    let capture = link.attach(&path).unwrap();
    let mut start = [0; 4];
    File::open(&path).unwrap().read_exact(&mut start).unwrap();
    assert_eq!(u32_at(&start, 0), 0x0a0d_0d0a);
    // Frames are not counted any more once the writer has found out.
    let begin = Instant::now();
    let mut before = capture.counts();
    loop {
        link.send(&frame(60, 1)).unwrap();
        let now = capture.counts();
        if now == before {
            break;
        }
        before = now;
        assert!(begin.elapsed() < GUARD, "the capture goes on without a reader");
    }
}

#[test]
fn only_a_new_file_or_an_earlier_capture_is_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net0.pcapng");
    let mut link = Link::new();
    let capture = link.attach(&path).unwrap();
    let says = |link: &Link, path: &Path| link.attach(path).unwrap_err().to_string();
    assert!(says(&link, &path).contains("another capture writes to it"));
    for seed in 0..50 {
        link.send(&frame(60, seed)).unwrap();
    }
    drop(capture);
    drop(link.attach(&path).unwrap());
    assert_eq!(blocks(&fs::read(&path).unwrap()).len(), 3, "the capture of before is gone");
    for precious in ["precious", "x"] {
        let disk = folder.path().join("disk.raw");
        fs::write(&disk, precious).unwrap();
        assert!(says(&link, &disk).contains("is no capture; remove it"));
        assert_eq!(fs::read_to_string(&disk).unwrap(), precious);
    }
    let symlink = folder.path().join("symlink");
    std::os::unix::fs::symlink(&path, &symlink).unwrap();
    for other in [folder.path(), &symlink, Path::new("/dev/null")] {
        assert!(says(&link, other).contains("is no regular file"), "{}", other.display());
    }
    assert!(says(&link, &folder.path().join("no/file")).contains("mkdir -p"));
}

/// Everything that a stream gives until it ends.
fn drain(stream: &mut CaptureStream) -> Vec<Block> {
    let (mut all, mut buffer) = (Vec::new(), Vec::new());
    loop {
        match stream.next(&mut buffer, GUARD) {
            StreamState::Bytes => all.extend(&buffer),
            StreamState::Nothing => panic!("nothing comes"),
            StreamState::Ended => return blocks(&all),
        }
    }
}

#[test]
fn stream_ends_behind_its_number_of_frames_and_counts_them() {
    let mut link = Link::new();
    let limits = CaptureLimits { frames: Some(2), time: None };
    let mut stream = link.point.stream("net0", limits).unwrap();
    for seed in 0..5 {
        link.send(&frame(60, seed)).unwrap();
    }
    let blocks = drain(&mut stream);
    assert_eq!(blocks.len(), 5);
    assert_eq!([2, 3].map(|at| packet(&blocks[at]).2), [0, 1].map(|seed| frame(60, seed)));
    assert_eq!(statistics(&blocks[4]), (2, 0));
}

#[test]
fn stream_gives_frames_as_they_come_and_the_rest_when_it_is_finished_or_its_time_is_over() {
    let mut link = Link::new();
    let mut stream = link.point.stream("net0", CaptureLimits::default()).unwrap();
    let mut buffer = Vec::new();
    assert_eq!(stream.next(&mut buffer, GUARD), StreamState::Bytes);
    assert_eq!(blocks(&buffer).len(), 2, "header and interface are there before any frame");
    assert_eq!(stream.next(&mut buffer, Duration::from_millis(1)), StreamState::Nothing);
    link.send(&frame(60, 1)).unwrap();
    assert_eq!(stream.next(&mut buffer, GUARD), StreamState::Bytes);
    assert_eq!(packet(&blocks(&buffer)[0]).2, frame(60, 1));
    link.send(&frame(60, 2)).unwrap();
    stream.finish();
    link.send(&frame(60, 3)).unwrap();
    let rest = drain(&mut stream);
    assert_eq!((rest.len(), packet(&rest[0]).2, statistics(&rest[1])), (2, frame(60, 2), (2, 0)));
    let limits = CaptureLimits { frames: None, time: Some(Duration::from_millis(20)) };
    let mut stream = link.point.stream("net0", limits).unwrap();
    assert_eq!(stream.next(&mut buffer, GUARD), StreamState::Bytes);
    let begin = Instant::now();
    while stream.next(&mut buffer, Duration::from_millis(5)) != StreamState::Ended {
        assert!(begin.elapsed() < GUARD);
    }
}

#[test]
fn frames_that_a_stream_has_no_room_for_are_counted_as_lost() {
    let mut link = Link::new();
    link.wire.ends().forget = true;
    let mut stream = link.point.stream("net0", CaptureLimits::default()).unwrap();
    let sent = 2 * MOST_WAITING / 1514;
    for seed in 0..sent {
        link.send(&frame(1514, seed)).unwrap();
    }
    stream.finish();
    let blocks = drain(&mut stream);
    let (seen, lost) = statistics(blocks.last().unwrap());
    assert!(seen == sent as u64 && lost > 0 && lost < seen, "{lost} of {seen}");
    assert_eq!(blocks.len() as u64, 3 + seen - lost);
}

#[test]
fn file_that_is_opened_and_not_begun_keeps_what_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("net0.pcapng");
    let mut link = Link::new();
    let capture = link.attach(&path).unwrap();
    link.send(&frame(60, 1)).unwrap();
    drop(capture);
    let before = fs::read(&path).unwrap();
    drop(CaptureFile::open(&path).unwrap());
    assert_eq!(fs::read(&path).unwrap(), before);
}
