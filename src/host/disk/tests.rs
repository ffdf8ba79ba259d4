//! The same promises for every engine. On a host without io_uring these tests fail; with
//! `MINIVMM_TEST_WITHOUT=io_uring` in the environment they print that they were skipped, and pass.
#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of the tests are small, and bytes of patterns wrap"
)]

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::num::NonZeroU16;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use virtio::block::{AnyEngine, Completion, Extent, Operation};
use virtio::memory::{Memory, Segment};
use virtio::poll::{Interest, Token};
use virtio::testing;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

#[path = "../../../tests/support/without.rs"]
mod without;

pub(super) use without::lacks;

use super::engine::{engine, make_engine};
use super::file::DiskFile;
use super::*;

const DONE: Token = 7;
const MIB: u64 = 1 << 20;

/// A disk on an engine.
struct Rig {
    engine: AnyEngine,
    memory: Memory,
    path: PathBuf,
    _folder: TempDir,
}

/// Runs a test on each engine, with an image of `size` bytes: byte `n` of sector `s` is `s + n`, in 8 bits.
fn on_each(size: u64, access: Access, test: impl Fn(&mut Rig)) {
    for kind in EngineKind::ALL {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let contents: Vec<u8> = (0..size).map(expected).collect();
        fs::write(&path, contents).unwrap();
        let file = Arc::new(DiskFile::open(&path, access).unwrap());
        let Some(mut engine) = engine_or_skip(file, kind) else { continue };
        let (memory, _) = testing::memory(32 << 20);
        engine.attach(DONE, &memory);
        test(&mut Rig { engine, memory, path, _folder: folder });
    }
}

/// An engine of this kind; `None` where the host has no io_uring and the environment allows that.
fn engine_or_skip(file: Arc<DiskFile>, kind: EngineKind) -> Option<AnyEngine> {
    or_skip(engine(file, kind), kind)
}

/// The same for an engine that was made.
pub(super) fn or_skip(made: io::Result<AnyEngine>, kind: EngineKind) -> Option<AnyEngine> {
    let error = match made {
        Ok(engine) => return Some(engine),
        Err(error) => error,
    };
    assert_eq!(kind, EngineKind::Uring, "{error}");
    let reason = format!(
        "the host gives no {kind:?} engine: {error}. Allow io_uring (sysctl kernel.io_uring_disabled=0; in a container, its \
         seccomp profile)"
    );
    lacks("io_uring", &reason);
    None
}

fn expected(at: u64) -> u8 {
    (at / 512 + at % 512) as u8
}

fn segment(address: u64, len: u64) -> Segment {
    Segment { address: GuestAddress(address), len: len as u32 }
}

impl Rig {
    /// Waits for the next completion.
    fn next(&mut self) -> Completion {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut ready = Vec::new();
        loop {
            if let Some(completion) = self.engine.completed() {
                return completion;
            }
            assert!(Instant::now() < deadline, "nothing completes in time");
            self.engine.wait(Some(Duration::from_secs(60)), &mut ready).unwrap();
            assert!(ready.drain(..).all(|token| token == DONE));
        }
    }

    fn run(&mut self, operation: Operation, offset: u64, segments: &[Segment]) -> io::Result<()> {
        let len = virtio::memory::total(segments);
        self.engine.submit(3, operation, Extent { offset, len }, segments);
        let completion = self.next();
        assert_eq!(completion.tag, 3);
        assert!(self.engine.completed().is_none(), "one operation completes once");
        completion.result
    }

    fn space(&mut self, operation: Operation, offset: u64, len: u64) -> io::Result<()> {
        self.engine.submit(0, operation, Extent { offset, len }, &[]);
        self.next().result
    }

    fn guest(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn on_disk(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        File::open(&self.path).unwrap().read_exact_at(&mut bytes, offset).unwrap();
        bytes
    }
}

#[test]
fn reads_scatter_into_guest_memory() {
    on_each(MIB, Access::default(), |rig| {
        let pieces = [segment(0x1000, 512), segment(0x8001, 1024), segment(0x20_0000, 2560)];
        rig.run(Operation::Read, 1024, &pieces).unwrap();
        let mut at = 1024;
        for piece in pieces {
            let want: Vec<u8> = (at..at + u64::from(piece.len)).map(expected).collect();
            assert_eq!(rig.guest(piece.address.0, want.len()), want);
            at += u64::from(piece.len);
        }
        assert_eq!(rig.guest(0x8000, 1), [0], "not a byte before");
    });
}

#[test]
fn the_last_sector_is_read_and_written() {
    on_each(MIB, Access::default(), |rig| {
        rig.memory.write_slice(&[0xa5; 512], GuestAddress(0x3000)).unwrap();
        rig.run(Operation::Write, MIB - 512, &[segment(0x3000, 512)]).unwrap();
        rig.run(Operation::Read, MIB - 512, &[segment(0x5000, 512)]).unwrap();
        assert_eq!(rig.guest(0x5000, 512), [0xa5; 512]);
        rig.run(Operation::Flush, 0, &[]).unwrap();
        assert_eq!(rig.on_disk(MIB - 512, 512), [0xa5; 512]);
        assert_eq!(fs::metadata(&rig.path).unwrap().len(), MIB);
    });
}

#[test]
fn a_file_that_was_cut_short_is_an_error_and_not_a_hang() {
    on_each(MIB, Access::default(), |rig| {
        File::options().write(true).open(&rig.path).unwrap().set_len(4096 + 512).unwrap();
        let error = rig.run(Operation::Read, 4096, &[segment(0x1000, 4096)]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        rig.run(Operation::Read, 0, &[segment(0x1000, 4096)]).unwrap();
    });
}

#[test]
fn a_read_only_disk_is_read_and_not_written() {
    on_each(MIB, Access { read_only: true, direct: false }, |rig| {
        rig.run(Operation::Read, 0, &[segment(0, 512)]).unwrap();
        rig.run(Operation::Flush, 0, &[]).unwrap();
        assert!(rig.run(Operation::Write, 0, &[segment(0x1000, 512)]).is_err());
        assert_eq!(rig.on_disk(0, 2), [expected(0), expected(1)]);
    });
}

#[test]
fn last_sector_of_an_odd_image_that_is_only_read_is_filled_with_zeros() {
    for direct in [false, true] {
        on_each(1024 + 77, Access { read_only: true, direct }, |rig| {
            rig.memory.write_slice(&[0xff; 1536], GuestAddress(0x1000)).unwrap();
            rig.run(Operation::Read, 0, &[segment(0x1000, 512), segment(0x1200, 1024)]).unwrap();
            let bytes = rig.guest(0x1000, 1536);
            assert!((0..1101).all(|at| bytes[at as usize] == expected(at)));
            assert!(bytes[1101..].iter().all(|byte| *byte == 0));
        });
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.zip");
    fs::write(&path, [1; 1101]).unwrap();
    let queues = NonZeroU16::MIN;
    let open = |read_only| DiskFile::open(&path, Access { read_only, direct: false }).unwrap();
    assert_eq!(open(true).disk("", queues).sectors, 3);
    assert_eq!(open(false).disk("", queues).sectors, 2);
    assert_eq!(fs::metadata(&path).unwrap().len(), 1101);
}

#[test]
fn what_is_missing_or_too_small_is_told_without_harm() {
    let folder = tempfile::tempdir().unwrap();
    let said =
        |name: &str| DiskFile::open(&folder.path().join(name), Access::default()).unwrap_err().to_string();
    fs::write(folder.path().join("notes"), "five!").unwrap();
    assert!(said("notes").contains("has 5 bytes") && !said("notes").contains("disk resize"));
    fs::write(folder.path().join("none"), "").unwrap();
    assert!(said("none").contains("is empty") && said("none").contains("minivmm disk resize"));
    assert!(said("no.qcow2").contains("minivmm disk create") && !said("no.qcow2").contains("truncate"));
    assert!(said("no.vmdk").contains("qemu-img convert") && !said("no.vmdk").contains("disk create"));
}

#[test]
fn many_operations_in_flight_all_complete_each_once() {
    on_each(4 * MIB, Access::default(), |rig| {
        for round in 0..3u64 {
            for tag in 0..1500u16 {
                let offset = u64::from(tag) * 2048 + round * 512;
                let extent = Extent { offset, len: 512 };
                rig.engine.submit(tag, Operation::Read, extent, &[segment(u64::from(tag) * 4096, 512)]);
            }
            let mut seen = vec![false; 1500];
            for _ in 0..1500 {
                let completion = rig.next();
                completion.result.unwrap();
                assert!(!std::mem::replace(&mut seen[usize::from(completion.tag)], true), "twice");
            }
            for tag in 0..1500u64 {
                assert_eq!(rig.guest(tag * 4096, 1), [expected(tag * 2048 + round * 512)]);
            }
        }
    });
}

#[test]
fn requests_of_the_most_segments_are_one_operation() {
    on_each(8 * MIB, Access::default(), |rig| {
        let pieces: Vec<Segment> = (0..1024).map(|n| segment(n * 8192, 4096)).collect();
        rig.run(Operation::Read, 0, &pieces).unwrap();
        assert_eq!(rig.guest(1023 * 8192 + 5, 1), [expected(1023 * 4096 + 5)]);
    });
}

#[test]
fn discarded_space_leaves_the_host_and_reads_as_zeros() {
    on_each(4 * MIB, Access::default(), |rig| {
        File::open(&rig.path).unwrap().sync_all().unwrap();
        let before = fs::metadata(&rig.path).unwrap().blocks();
        rig.space(Operation::Discard, MIB, 2 * MIB).unwrap();
        let after = fs::metadata(&rig.path).unwrap();
        assert!(after.blocks() + 4096 <= before, "{before} blocks became {}", after.blocks());
        assert_eq!(after.len(), 4 * MIB);
        rig.run(Operation::Read, 2 * MIB, &[segment(0x1000, 512)]).unwrap();
        assert_eq!(rig.guest(0x1000, 512), [0; 512]);
        assert_eq!(rig.on_disk(MIB - 1, 1), [expected(MIB - 1)]);
        assert_eq!(rig.on_disk(3 * MIB + 3, 1), [expected(3 * MIB + 3)]);
    });
}

#[test]
fn zeroed_space_reads_as_zeros_to_the_byte() {
    for unmap in [false, true] {
        on_each(MIB, Access::default(), |rig| {
            rig.space(Operation::WriteZeroes { unmap }, 1536, 70_144).unwrap();
            assert_eq!(rig.on_disk(1535, 1), [expected(1535)]);
            assert!(rig.on_disk(1536, 70_144).iter().all(|byte| *byte == 0));
            assert_eq!(rig.on_disk(1536 + 70_144, 1), [expected(1536 + 70_144)]);
        });
    }
}

#[test]
fn direct_io_takes_whatever_the_guest_does() {
    on_each(MIB, Access { read_only: false, direct: true }, |rig| {
        for (offset, address, len) in
            [(0, 0x1000, 4096), (512, 0x2000, 512), (1536, 0x3001, 2560), (4096, 0x5003, 8192)]
        {
            let want: Vec<u8> = (offset..offset + len).map(expected).collect();
            rig.run(Operation::Read, offset, &[segment(address, len)]).unwrap();
            assert_eq!(rig.guest(address, want.len()), want);
        }
        rig.run(Operation::Write, 8192, &[segment(0x1000, 4096)]).unwrap();
        rig.run(Operation::Write, 8192 + 512, &[segment(0x3001, 512)]).unwrap();
        rig.run(Operation::Read, 8192, &[segment(0x9000, 4096)]).unwrap();
        assert_eq!(rig.guest(0x9000, 1), [expected(0)]);
        assert_eq!(rig.guest(0x9000 + 512, 1), [expected(1536)]);
    });
}

#[test]
fn doorbells_ring_once_for_each_time_and_not_after_they_are_unwatched() {
    on_each(MIB, Access::default(), |rig| {
        let bell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let short = Some(Duration::from_millis(20));
        let mut ready = Vec::new();
        rig.engine.watch(bell.as_raw_fd(), 42, Interest::Read).unwrap();
        for _ in 0..3 {
            rig.engine.wait(short, &mut ready).unwrap();
            assert!(ready.is_empty(), "no bell has rung");
            bell.write(1).unwrap();
            rig.engine.wait(None, &mut ready).unwrap();
            assert_eq!(std::mem::take(&mut ready), [42]);
        }
        rig.engine.unwatch(bell.as_raw_fd(), 42).unwrap();
        bell.write(1).unwrap();
        rig.engine.wait(short, &mut ready).unwrap();
        assert!(ready.is_empty());
    });
}

#[test]
fn a_bell_that_rings_while_requests_are_drained_is_heard_afterwards() {
    on_each(MIB, Access::default(), |rig| {
        let bell = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        rig.engine.watch(bell.as_raw_fd(), 42, Interest::Read).unwrap();
        bell.write(1).unwrap();
        rig.engine.submit(1, Operation::Read, Extent { offset: 0, len: 512 }, &[segment(0, 512)]);
        rig.engine.drain().unwrap();
        let mut ready = Vec::new();
        while !ready.contains(&42) {
            rig.engine.wait(Some(Duration::from_secs(60)), &mut ready).unwrap();
            assert!(!ready.is_empty(), "the bell is lost");
        }
        assert_eq!(rig.engine.completed().map(|completion| completion.tag), Some(1));
    });
}

#[test]
fn an_engine_that_is_dropped_waits_for_its_operations() {
    on_each(8 * MIB, Access { read_only: false, direct: true }, |rig| {
        for tag in 0..64u16 {
            let extent = Extent { offset: u64::from(tag) << 16, len: 65536 };
            let operation = if tag % 2 == 0 { Operation::Read } else { Operation::Write };
            rig.engine.submit(tag, operation, extent, &[segment(u64::from(tag) << 16, 65536)]);
        }
        let spare = spare(rig);
        drop(std::mem::replace(&mut rig.engine, spare));
        let old = rig.memory.clone();
        let snapshot = |memory: &Memory| {
            let mut bytes = vec![0; 4 << 20];
            memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
            bytes
        };
        let first = snapshot(&old);
        std::thread::sleep(Duration::from_millis(20));
        assert!(first == snapshot(&old), "guest memory changed after the drop");
    });
}

/// Another engine, for a test that drops its own.
fn spare(rig: &Rig) -> AnyEngine {
    let path = rig.path.with_extension("spare");
    fs::write(&path, [0; 512]).unwrap();
    engine(Arc::new(DiskFile::open(&path, Access::default()).unwrap()), EngineKind::Sync).unwrap()
}

mod opening {
    use super::*;

    fn image(folder: &Path, contents: &[u8]) -> PathBuf {
        let path = folder.join("vm0.raw");
        fs::write(&path, contents).unwrap();
        path
    }

    fn sentence(path: &Path, access: Access) -> String {
        DiskFile::open(path, access).unwrap_err().to_string()
    }

    const READ_ONLY: Access = Access { read_only: true, direct: false };

    #[test]
    fn a_second_machine_on_the_same_image_is_refused_with_the_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = image(folder.path(), &[0; 4096]);
        let first = DiskFile::open(&path, Access::default()).unwrap();
        for access in [Access::default(), READ_ONLY] {
            let text = sentence(&path, access);
            assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
        }
        drop(first);
        let readers = [READ_ONLY; 2].map(|access| DiskFile::open(&path, access).unwrap());
        assert!(sentence(&path, Access::default()).contains("in use"));
        drop(readers);
        DiskFile::open(&path, Access::default()).unwrap();
    }

    #[test]
    fn what_is_no_disk_is_refused_with_its_cure() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("vm9.raw");
        assert!(sentence(&missing, Access::default()).contains("minivmm disk create"));
        assert!(sentence(folder.path(), Access::default()).contains("a directory"));
        assert!(sentence(Path::new("/dev/null"), Access::default()).contains("block device"));
        assert!(sentence(&image(folder.path(), b""), Access::default()).contains("is empty"));
        let mut qcow2 = vec![0; 4096];
        qcow2[..4].copy_from_slice(b"QFI\xfb");
        let text = sentence(&image(folder.path(), &qcow2), Access::default());
        assert!(text.contains("vm0.raw,format=qcow2`") && text.contains("vm0.raw,format=raw`"), "{text}");
        let text = sentence(&image(folder.path(), &[&b"KDMV"[..], &[0; 4096]].concat()), Access::default());
        assert!(text.contains("a VMDK image") && text.contains("qemu-img convert -O raw"), "{text}");
        // Converting a file onto itself would destroy it.
        assert!(text.contains("vm0.new.raw`"), "{text}");
    }

    #[test]
    fn a_sparse_image_is_what_its_length_says_and_can_be_discarded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm0.raw");
        File::create(&path).unwrap().set_len((60 << 30) + 100).unwrap();
        let file = DiskFile::open(&path, Access::default()).unwrap();
        assert_eq!(file.disk("", NonZeroU16::MIN).sectors, (60 << 30) / 512, "in whole sectors");
        let disk = file.disk("serial", NonZeroU16::MIN);
        assert_eq!((disk.sectors, disk.topology.physical_block), (60 << 21, 512));
        assert_eq!(disk.discard, Some(4096));
        assert_eq!(fs::metadata(&path).unwrap().blocks(), 0, "opening takes no space");
        assert_eq!(fs::metadata(&path).unwrap().len(), (60 << 30) + 100);
    }
}

mod giving_space_back {
    use super::*;
    use crate::spec::DiskDiscard;

    /// Whether a guest is offered discards on an image of 4 MiB that `prepare` prepares.
    fn offered(wish: DiskDiscard, prepare: impl Fn(&File)) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vm0.raw");
        let image = File::create(&path).unwrap();
        image.set_len(4 * MIB).unwrap();
        prepare(&image);
        let file = DiskFile::open(&path, Access::default()).unwrap().discarding(wish);
        file.disk("", NonZeroU16::MIN).discard.is_some()
    }

    fn allocate(image: &File, len: u64) {
        // SAFETY: a call on an open descriptor, without memory.
        assert_eq!(unsafe { libc::fallocate(image.as_raw_fd(), 0, 0, len as i64) }, 0);
    }

    #[test]
    fn an_image_whose_space_is_all_there_keeps_it_unless_asked_otherwise() {
        let all = |image: &File| allocate(image, 4 * MIB);
        let half = |image: &File| allocate(image, 2 * MIB);
        assert!(offered(DiskDiscard::Auto, |_| ()) && offered(DiskDiscard::Auto, half));
        assert!(!offered(DiskDiscard::Auto, all) && offered(DiskDiscard::On, all));
        assert!(!offered(DiskDiscard::Off, |_| ()) && !offered(DiskDiscard::Off, all));
    }

    #[test]
    fn an_image_that_was_written_full_gives_space_back() {
        let write = |image: &File, len: u64| {
            image.write_all_at(&vec![1; len as usize], 0).unwrap();
            // Space that was reserved is known as written after that.
            image.sync_all().unwrap();
        };
        assert!(offered(DiskDiscard::Auto, |image| write(image, 4 * MIB)));
        assert!(!offered(DiskDiscard::Auto, |image| {
            allocate(image, 4 * MIB);
            write(image, 3 * MIB);
        }));
    }

    #[test]
    fn zeroing_leaves_an_allocated_image_allocated() {
        for kind in EngineKind::ALL {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk.raw");
            let image = File::create(&path).unwrap();
            allocate(&image, MIB);
            image.write_all_at(&vec![1; 600 << 10], 0).unwrap();
            image.sync_all().unwrap();
            let before = fs::metadata(&path).unwrap().blocks();
            let file = DiskFile::open(&path, Access::default()).unwrap().discarding(DiskDiscard::Auto);
            let file = Arc::new(file);
            if engine_or_skip(file.clone(), kind).is_none() {
                continue;
            }
            let block = virtio::block::Block::new("vda", file.disk("s", NonZeroU16::MIN));
            let mut guest = testing::Guest::new(Box::new(block), make_engine(file, kind));
            guest.start(u64::MAX, 16);
            // VIRTIO_BLK_T_WRITE_ZEROES of 1024 sectors, with unmap.
            let head = [&13u64.to_le_bytes()[..], &0u64.to_le_bytes()].concat();
            let range = [&0u64.to_le_bytes()[..], &1024u32.to_le_bytes(), &1u32.to_le_bytes()].concat();
            let (_, out) = guest.request(0, &[&head, &range], &[1]);
            assert_eq!(out[0], [0]);
            assert_eq!(fs::metadata(&path).unwrap().blocks(), before, "{kind:?}");
            assert!(fs::read(&path).unwrap()[..512 << 10].iter().all(|byte| *byte == 0));
        }
    }
}

mod on_a_ring {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn engine_on_ring() -> Option<AnyEngine> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        fs::write(&path, [0; 4096]).unwrap();
        let file = Arc::new(DiskFile::open(&path, Access::default()).unwrap());
        engine_or_skip(file, EngineKind::Uring)
    }

    /// Whether the kernel can leave out the completion of a success, without which the engine takes no signal (5.17).
    fn signals_are_taken() -> bool {
        ring::new().unwrap().params().is_feature_skip_cqe_on_success()
    }

    #[test]
    fn a_signal_is_written_with_the_next_wait_and_does_not_end_it() {
        let Some(mut engine) = engine_on_ring() else { return };
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        assert_eq!(engine.signal(event.as_raw_fd()), signals_are_taken());
        assert_eq!(event.read().unwrap_err().kind(), ErrorKind::WouldBlock);
        let (begin, limit) = (Instant::now(), Duration::from_millis(30));
        let mut ready = Vec::new();
        engine.wait(Some(limit), &mut ready).unwrap();
        assert_eq!((event.read().ok(), ready), (signals_are_taken().then_some(1), Vec::new()));
        assert!(begin.elapsed() >= limit, "a success is no event");
    }

    #[test]
    fn a_signal_is_written_when_a_watch_ends() {
        let Some(mut engine) = engine_on_ring() else { return };
        let (event, watched) = (EventFd::new(EFD_NONBLOCK).unwrap(), EventFd::new(EFD_NONBLOCK).unwrap());
        engine.watch(watched.as_raw_fd(), 1, Interest::Read).unwrap();
        let taken = engine.signal(event.as_raw_fd());
        engine.unwatch(watched.as_raw_fd(), 1).unwrap();
        assert_eq!((event.read().is_ok(), taken), (signals_are_taken(), signals_are_taken()));
    }
}

mod behind_a_driver {
    use devices::component::Component;
    use virtio::block::Block;
    use virtio::dirty;
    use virtio::testing::Guest;

    use super::*;

    fn header(sector: u64) -> Vec<u8> {
        [&[0; 8][..], &sector.to_le_bytes()].concat()
    }

    /// Reads `rounds` times `depth` requests of 4 KiB, with one kick per round.
    fn read_rounds(kind: EngineKind, depth: u64, rounds: u64) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        fs::write(&path, (0..MIB).map(expected).collect::<Vec<u8>>()).unwrap();
        let file = Arc::new(DiskFile::open(&path, Access::default()).unwrap());
        if engine_or_skip(file.clone(), kind).is_none() {
            return;
        }
        let block = Block::new("blk0", file.disk("s", NonZeroU16::MIN));
        let mut guest = Guest::new(Box::new(block), make_engine(file, kind));
        guest.start(0, 128);
        for round in 0..rounds {
            let sector = |n: u64| (round * 37 + n * 8) % 2040;
            let reads: Vec<_> =
                (0..depth).map(|n| guest.add(0, &[&header(sector(n))], &[4096, 1]).1).collect();
            guest.kick(0);
            reads.iter().for_each(|_| assert_eq!(guest.rings[0].wait_used().len, 4097));
            for (n, outs) in (0..).zip(&reads) {
                assert_eq!(guest.bytes(outs[0], 1), [expected(sector(n) * 512)]);
                assert_eq!(guest.bytes(outs[1], 1), [0]);
            }
        }
    }

    #[test]
    fn what_a_disk_reads_into_memory_is_logged_page_by_page() {
        for kind in EngineKind::ALL {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk.raw");
            fs::write(&path, vec![7; 64 << 10]).unwrap();
            let file = Arc::new(DiskFile::open(&path, Access::default()).unwrap());
            if engine_or_skip(file.clone(), kind).is_none() {
                continue;
            }
            let block = Block::new("vda", file.disk("s", NonZeroU16::MIN));
            let mut guest = Guest::new(Box::new(block), make_engine(file, kind));
            guest.start(0, 16);
            // Without a log nothing is marked, and nothing is left of it when it begins.
            for logged in [false, true] {
                dirty::set_on(&guest.memory, logged);
                guest.function().quiesce();
                let reads = [16usize << 10, 512].map(|len| (len, guest.add(0, &[&header(0)], &[len, 1]).1));
                let mut pages = Vec::new();
                // The driver's own writes.
                dirty::take(&guest.memory, |_| ());
                guest.function().go();
                reads.iter().for_each(|_| assert!(guest.rings[0].wait_used().len > 1));
                // Until it has said whether it wants kicks.
                guest.function().quiesce();
                dirty::take(&guest.memory, |page| pages.push(page));
                let page = |address: u64| address & !0xfff;
                let mut expected = vec![page(guest.rings[0].config().device)];
                for (len, outs) in &reads {
                    expected.extend((page(outs[0])..outs[0] + *len as u64).step_by(4096));
                    expected.push(page(outs[1]));
                }
                expected.sort_unstable();
                expected.dedup();
                assert_eq!(pages, if logged { expected } else { Vec::new() }, "{kind:?}");
                guest.function().go();
            }
        }
    }

    #[test]
    fn uring_at_depth_1() {
        read_rounds(EngineKind::Uring, 1, 200);
    }

    #[test]
    fn uring_at_depth_32() {
        read_rounds(EngineKind::Uring, 32, 200);
    }

    #[test]
    fn sync_at_depth_1() {
        read_rounds(EngineKind::Sync, 1, 200);
    }

    #[test]
    fn sync_at_depth_32() {
        read_rounds(EngineKind::Sync, 32, 200);
    }
}

#[test]
fn a_file_that_grows_is_measured_and_one_that_shrinks_keeps_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    let raw = File::create(&path).unwrap();
    raw.set_len(MIB).unwrap();
    let file = DiskFile::open(&path, Access::default()).unwrap();
    for (len, sectors) in [(MIB, 2048), (2 * MIB + 511, 4096), (MIB, 4096)] {
        raw.set_len(len).unwrap();
        assert_eq!(file.measure().unwrap(), sectors);
        assert_eq!(file.disk("", NonZeroU16::MIN).sectors, sectors, "for the device of the next boot");
    }
}

mod discards_that_take_long {
    use std::sync::mpsc;

    use super::super::helper::{Helper, Job};
    use super::super::sync::SyncEngine;
    use super::super::uring::UringEngine;
    use super::*;

    /// Runs a test on each engine with an image of 1 MiB that counts as a block device, whose discards each
    /// wait for a message.
    fn on_each(test: impl Fn(&mut Rig, mpsc::Sender<()>)) {
        for kind in EngineKind::ALL {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk.raw");
            fs::write(&path, (0..MIB).map(expected).collect::<Vec<u8>>()).unwrap();
            let file = DiskFile::open(&path, Access::default()).unwrap();
            let file = Arc::new(DiskFile { device: true, ..file });
            let (go, words) = mpsc::channel();
            let space = Helper::with("space", move |_: Job| words.recv().map_err(io::Error::other)).unwrap();
            let mut engine: AnyEngine = match kind {
                EngineKind::Sync => Box::new(SyncEngine::new(vec![file], Some(space), None).unwrap()),
                _ => {
                    let Ok(mut engine) = UringEngine::new(vec![file]) else { continue };
                    engine.discard_on(space).unwrap();
                    Box::new(engine)
                }
            };
            let (memory, _) = testing::memory(1 << 20);
            engine.attach(DONE, &memory);
            test(&mut Rig { engine, memory, path, _folder: folder }, go);
        }
    }

    const ALL: Extent = Extent { offset: 0, len: MIB };

    #[test]
    fn hold_up_no_reads_and_end_with_an_event_of_their_own() {
        on_each(|rig, go| {
            for _ in 0..3 {
                rig.engine.submit(1, Operation::Discard, ALL, &[]);
                rig.engine.submit(2, Operation::Discard, ALL, &[]);
                rig.run(Operation::Read, 512, &[segment(0x1000, 512)]).unwrap();
                rig.run(Operation::Flush, 0, &[]).unwrap();
                go.send(()).unwrap();
                assert_eq!(rig.next().tag, 1);
                go.send(()).unwrap();
                let second = rig.next();
                assert_eq!((second.tag, second.result.is_ok()), (2, true));
            }
        });
    }

    #[test]
    fn and_flushes_that_do_hold_up_no_reads_without_io_uring() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        fs::write(&path, (0..MIB).map(expected).collect::<Vec<u8>>()).unwrap();
        let file = Arc::new(DiskFile::open(&path, Access::default()).unwrap());
        let (go, words) = mpsc::channel();
        let flush = Helper::with("flush", move |_: Job| words.recv().map_err(io::Error::other)).unwrap();
        let space = Helper::new("space", file.clone()).unwrap();
        let mut engine: AnyEngine = Box::new(SyncEngine::new(vec![file], Some(space), Some(flush)).unwrap());
        let (memory, _) = testing::memory(1 << 20);
        engine.attach(DONE, &memory);
        let mut rig = Rig { engine, memory, path, _folder: folder };
        rig.engine.submit(1, Operation::Flush, Extent::default(), &[]);
        rig.run(Operation::Read, 512, &[segment(0x1000, 512)]).unwrap();
        rig.space(Operation::Discard, 0, MIB).unwrap();
        go.send(()).unwrap();
        assert_eq!(rig.next().tag, 1);
    }

    #[test]
    fn are_waited_for_when_the_disk_stops() {
        on_each(|rig, go| {
            rig.engine.submit(1, Operation::Discard, ALL, &[]);
            rig.engine.submit(2, Operation::Read, Extent { offset: 0, len: 512 }, &[segment(0, 512)]);
            let later = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                go.send(()).unwrap();
            });
            rig.engine.drain().unwrap();
            let mut tags: Vec<u16> =
                std::iter::from_fn(|| rig.engine.completed()).map(|end| end.tag).collect();
            tags.sort_unstable();
            assert_eq!(tags, [1, 2]);
            later.join().unwrap();
        });
    }
}

mod logs {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::super::block_set::BlockSet;
    use super::super::drive::Drive;
    use super::super::open_disk::OpenDisk;
    use super::*;
    use crate::spec::DiskSpec;

    /// A copy ends while the next one begins, on another thread, and that one misses no write.
    #[test]
    fn reader_that_is_dropped_ends_no_log_that_has_begun_meanwhile() {
        const LEN: u64 = 1 << 20;
        const ROUNDS: u64 = 30_000;
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(LEN).unwrap();
        let drive =
            Arc::new(Drive::new(OpenDisk::open(&DiskSpec::new(image.path())).unwrap(), image.path(), false));
        let mut engine = drive.make_engine(EngineKind::Sync)().unwrap();
        let (memory, _) = testing::memory(1 << 20);
        engine.attach(DONE, &memory);
        let round = AtomicU64::new(0);
        let wait_for = |number| {
            while round.load(Ordering::SeqCst) < number {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            let (begun, begins) = std::sync::mpsc::sync_channel(1);
            let (drive, wait_for) = (&drive, &wait_for);
            scope.spawn(move || {
                for number in 1..=ROUNDS {
                    wait_for(number);
                    if begun.send(drive.log_writes(LEN)).is_err() {
                        return;
                    }
                }
            });
            for number in 1..=ROUNDS {
                let first = drive.log_writes(LEN);
                round.store(number, Ordering::SeqCst);
                // At any moment of the other's begin.
                (0..number % 64).for_each(|_| std::hint::spin_loop());
                drop(first);
                let second = begins.recv().unwrap();
                engine.submit(
                    0,
                    Operation::WriteZeroes { unmap: false },
                    Extent { offset: 0, len: 512 },
                    &[],
                );
                engine.drain().unwrap();
                engine.completed().unwrap().result.unwrap();
                let mut written = BlockSet::new(LEN);
                second.take_to(&mut written);
                // The other thread waits for a round that does not come if this fails.
                round.store(if written.is_empty() { ROUNDS } else { number }, Ordering::SeqCst);
                assert!(!written.is_empty(), "{number}");
            }
        });
    }
}
