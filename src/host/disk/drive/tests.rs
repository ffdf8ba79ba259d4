//! A disk is taken out of a drive and another one put in while an engine serves it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use virtio::block::{AnyEngine, Completion, Extent, Operation};
use virtio::memory::{Memory, Segment};
use virtio::poll::{Interest, Token};
use virtio::testing;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::super::open::Access;
use super::super::tests::or_skip;
use super::*;
use crate::host::lock::Kind;
use crate::host::lock_soon::lock_soon;

const DONE: Token = 7;
const KICK: Token = 8;
const SOON: Duration = Duration::from_secs(60);

/// A drive with an engine, and images whose bytes are all their number.
struct Rig {
    drive: Arc<Drive>,
    engine: AnyEngine,
    memory: Memory,
    folder: TempDir,
}

fn open(folder: &TempDir, number: u8) -> (OpenDisk, PathBuf) {
    let path = folder.path().join(number.to_string());
    fs::write(&path, vec![number; 4096 * usize::from(number)]).unwrap();
    let access = Access { read_only: true, ..Access::default() };
    (OpenDisk::Raw(Arc::new(DiskFile::open(&path, access).unwrap())), path)
}

/// On each kind of engine.
fn on_each(test: impl Fn(&mut Rig)) {
    for kind in EngineKind::ALL {
        let folder = tempfile::tempdir().unwrap();
        let (disk, path) = open(&folder, 1);
        let drive = Arc::new(Drive::new(disk, path, true));
        let Some(mut engine) = or_skip(drive.make_engine(kind)(), kind) else { continue };
        let (memory, _) = testing::memory(1 << 20);
        engine.attach(DONE, &memory);
        test(&mut Rig { drive, engine, memory, folder });
    }
}

impl Rig {
    fn submit(&mut self, tag: u16) {
        self.memory.write_obj(0u64, GuestAddress(0x1000)).unwrap();
        let segments = [Segment { address: GuestAddress(0x1000), len: 512 }];
        self.engine.submit(tag, Operation::Read, Extent { offset: 512, len: 512 }, &segments);
    }

    fn next(&mut self) -> Completion {
        let deadline = Instant::now() + SOON;
        let mut ready = Vec::new();
        loop {
            if let Some(completion) = self.engine.completed() {
                return completion;
            }
            assert!(Instant::now() < deadline, "nothing completes");
            self.engine.wait(Some(SOON), &mut ready).unwrap();
        }
    }

    /// What a read gives.
    fn read(&mut self) -> io::Result<u8> {
        self.submit(3);
        let Completion { tag, result } = self.next();
        assert_eq!(tag, 3);
        result.map(|()| self.memory.read_obj::<u8>(GuestAddress(0x1000)).unwrap())
    }

    /// A turn of the disk's thread, which waits for nothing.
    fn turn(&mut self) -> Vec<Token> {
        let mut ready = Vec::new();
        self.engine.wait(Some(Duration::ZERO), &mut ready).unwrap();
        ready
    }

    /// Whether another program could write to an image.
    fn is_free(&self, number: u8) -> bool {
        let path = self.folder.path().join(number.to_string());
        let file = File::options().write(true).open(path).unwrap();
        lock_soon(&file, Kind::Exclusive).unwrap()
    }
}

#[test]
fn a_disk_is_closed_and_unlocked_when_it_is_out_and_the_next_one_is_served() {
    on_each(|rig| {
        assert_eq!(rig.read().unwrap(), 1);
        for number in 2..=20 {
            assert!(!rig.is_free(number - 1));
            rig.drive.eject().unwrap();
            assert_eq!((rig.drive.medium().path(), rig.drive.medium().sectors()), (None, 0));
            rig.turn();
            rig.turn();
            assert!(rig.drive.is_released(Duration::ZERO) && rig.is_free(number - 1));
            let (disk, path) = open(&rig.folder, number);
            rig.drive.insert(disk, path.clone()).unwrap();
            assert_eq!(rig.drive.medium().path(), Some(path.as_path()));
            assert_eq!(rig.drive.medium().sectors(), u64::from(number) * 8);
            assert_eq!(rig.read().unwrap(), number);
        }
    });
}

#[test]
fn a_disk_stays_open_for_what_is_in_flight_and_takes_nothing_more() {
    on_each(|rig| {
        rig.submit(1);
        rig.drive.eject().unwrap();
        rig.submit(2);
        let ended = [rig.next(), rig.next()].map(|Completion { tag, result }| (tag, result.is_ok()));
        assert!(ended.contains(&(1, true)) && ended.contains(&(2, false)), "{ended:?}");
        rig.turn();
        assert!(rig.drive.is_released(Duration::ZERO) && rig.is_free(1));
        // One whose end its thread has not taken yet.
        let (disk, path) = open(&rig.folder, 2);
        rig.drive.insert(disk, path).unwrap();
        rig.submit(1);
        rig.drive.eject().unwrap();
        rig.turn();
        assert!(!rig.drive.is_released(Duration::ZERO) && !rig.is_free(2));
        assert!(matches!(rig.drive.can_insert(), Err(DriveError::InFlight)));
        assert!(rig.next().result.is_ok());
        rig.turn();
        assert!(rig.drive.is_released(Duration::ZERO) && rig.is_free(2));
        assert!(rig.read().is_err(), "there is nothing in it");
    });
}

#[test]
fn doorbells_ring_whatever_is_in_the_drive() {
    on_each(|rig| {
        let bell = EventFd::new(0).unwrap();
        rig.engine.watch(bell.as_raw_fd(), KICK, Interest::Read).unwrap();
        for round in 0..10 {
            if round % 2 == 0 {
                rig.drive.eject().unwrap();
            } else {
                let (disk, path) = open(&rig.folder, round);
                rig.drive.insert(disk, path).unwrap();
            }
            // Seen by the engine before, and by the one that comes.
            bell.write(1).unwrap();
            let deadline = Instant::now() + SOON;
            while !rig.turn().contains(&KICK) {
                assert!(Instant::now() < deadline, "round {round}");
            }
        }
        rig.turn();
        rig.engine.unwatch(bell.as_raw_fd(), KICK).unwrap();
        rig.drive.eject().unwrap();
        bell.write(1).unwrap();
        assert!((0..5).all(|_| !rig.turn().contains(&KICK)));
    });
}

#[test]
fn a_thread_that_waits_lets_the_disk_go_at_once() {
    on_each(|rig| {
        let drive = rig.drive.clone();
        let waiter = std::thread::spawn(move || {
            drive.eject().unwrap();
            drive.is_released(SOON)
        });
        let deadline = Instant::now() + SOON;
        while !waiter.is_finished() {
            assert!(Instant::now() < deadline, "it is not let go");
            rig.engine.wait(Some(Duration::from_millis(20)), &mut Vec::new()).unwrap();
        }
        assert!(waiter.join().unwrap() && rig.is_free(1));
    });
}

#[test]
fn what_cannot_be_exchanged_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, path) = open(&folder, 1);
    let fixed = Drive::new(disk, path, false);
    assert!(matches!(fixed.eject(), Err(DriveError::Fixed)));
    let (disk, path) = open(&folder, 2);
    assert!(matches!(fixed.insert(disk, path.clone()), Err(DriveError::Fixed)));
    let (disk, other) = open(&folder, 3);
    let drive = Drive::new(disk, other.clone(), true);
    let (disk, _) = open(&folder, 2);
    assert!(matches!(drive.insert(disk, path), Err(DriveError::Full(full)) if full == other));
    drive.eject().unwrap();
    assert!(matches!(drive.eject(), Err(DriveError::Empty)));
    assert!(drive.is_released(Duration::ZERO), "no engine holds it");
}
