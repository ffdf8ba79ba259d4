//! Locks of the guest and of the host's programs.

use super::*;

fn ranged(handle: Handle, owner: u64, kind: LockKind, start: u64, end: u64) -> Lock {
    Lock { handle, owner, is_flock: false, kind, start, end }
}

#[test]
fn locks_of_the_guest_are_told_apart_and_are_the_hosts_too() {
    let mut world = World::with(|spec| spec.with_locks(ShareLocks::Host));
    let (node, one) = world.create("a");
    let two = world.share.open(node, WRITE).unwrap();
    let set = |world: &mut World, handle, owner, kind, start, end| {
        world.share.lock(&ranged(handle, owner, kind, start, end))
    };
    let end = i64::MAX.cast_unsigned();
    assert_eq!(set(&mut world, one, 1, LockKind::Write, 0, 99), Ok(()));
    // The same process by another file, and another process by the same file.
    assert_eq!(set(&mut world, two, 1, LockKind::Write, 50, 149), Ok(()));
    assert_eq!(set(&mut world, one, 2, LockKind::Read, 149, 149), Err(Errno::AGAIN));
    assert_eq!(set(&mut world, one, 2, LockKind::Read, 150, end), Ok(()));
    let found = world.share.conflict(&ranged(one, 2, LockKind::Read, 0, end)).unwrap();
    assert!(matches!(found, Some((LockKind::Write, ..))), "{found:?}");
    // A program of the host.
    let file = fs::File::options().read(true).write(true).open(world.path("a")).unwrap();
    let host = |kind, start, end| sys::lock(&file, kind, start, end).is_ok();
    assert!(
        !host(LockKind::Read, 100, 100) && !host(LockKind::Write, 200, 200) && host(LockKind::Read, 200, 200)
    );
    assert_eq!(set(&mut world, one, 2, LockKind::Write, 200, 210), Err(Errno::AGAIN));
    let found = world.share.conflict(&ranged(one, 2, LockKind::Write, 190, 210)).unwrap();
    assert_eq!(found, Some((LockKind::Read, 200, 200)));
    assert!(host(LockKind::None, 0, end));
    // What one gives up, the other still holds.
    assert_eq!(set(&mut world, one, 1, LockKind::Read, 0, 149), Ok(()));
    assert_eq!(set(&mut world, one, 2, LockKind::Read, 0, 9), Ok(()));
    assert_eq!(set(&mut world, one, 1, LockKind::None, 0, 19), Ok(()));
    assert!(!host(LockKind::Write, 5, 5) && host(LockKind::Write, 15, 15) && !host(LockKind::Write, 20, 20));
    assert!(host(LockKind::None, 0, end));
    world.moved();
    assert!(!host(LockKind::Write, 5, 5) && !host(LockKind::Write, 20, 20));
    // A process that closes a file loses all that it has on it.
    world.share.closed(two, 1).unwrap();
    assert!(!host(LockKind::Write, 5, 5) && host(LockKind::Write, 20, 149));
    assert!(host(LockKind::None, 0, end));
    world.share.release(one);
    world.share.release(two);
    assert!(host(LockKind::Write, 0, end));
}

#[test]
fn locks_on_whole_files_belong_to_open_files() {
    let mut world = World::with(|spec| spec.with_locks(ShareLocks::Host));
    let (node, one) = world.create("a");
    let two = world.share.open(node, READ).unwrap();
    let flock = |handle, kind| Lock { is_flock: true, ..ranged(handle, 7, kind, 0, u64::MAX >> 1) };
    assert_eq!(world.share.lock(&flock(one, LockKind::Write)), Ok(()));
    assert_eq!(world.share.lock(&flock(two, LockKind::Read)), Err(Errno::AGAIN));
    world.moved();
    assert_eq!(world.share.lock(&flock(two, LockKind::Read)), Err(Errno::AGAIN));
    world.share.release(one);
    assert_eq!(world.share.lock(&flock(two, LockKind::Read)), Ok(()));
    let file = fs::File::open(world.path("a")).unwrap();
    assert!(!crate::host::lock::try_lock_folder(&file).unwrap());
    assert_eq!(world.share.lock(&flock(two, LockKind::None)), Ok(()));
    assert!(crate::host::lock::try_lock_folder(&file).unwrap());
}

#[test]
fn locks_are_bounded_and_stay_in_the_guest_unless_asked_for() {
    let mut world = World::with(|spec| spec.with_locks(ShareLocks::Host));
    let (_, handle) = world.create("a");
    let mut lock = |n: u64| world.share.lock(&ranged(handle, n, LockKind::Read, n * 10, n * 10));
    let first = (0..10_000).find_map(|n| lock(n).err());
    assert_eq!(first, Some(Errno::NOLCK));
    let mut world = World::new();
    let (_, handle) = world.create("a");
    assert!(!world.share.has_locks());
    assert_eq!(world.share.lock(&ranged(handle, 1, LockKind::Read, 0, 1)), Err(Errno::NOSYS));
    assert_eq!(world.share.closed(handle, 1).unwrap_err(), Errno::NOSYS);
}

/// A machine moves on one host: until the one that it comes from has ended, that one has the locks.
#[test]
fn locks_that_the_old_machine_has_still_are_taken_when_it_ends() {
    let mut old = World::with(|spec| spec.with_locks(ShareLocks::Host));
    let (node, handle) = old.create("a");
    let whole = |kind| Lock { is_flock: true, ..ranged(handle, 7, kind, 0, u64::MAX >> 1) };
    assert_eq!(old.share.lock(&ranged(handle, 1, LockKind::Write, 0, 9)), Ok(()));
    assert_eq!(old.share.lock(&ranged(handle, 2, LockKind::Read, 20, 29)), Ok(()));
    assert_eq!(old.share.lock(&whole(LockKind::Write)), Ok(()));
    let state = old.share.save().unwrap();
    let mut new = old.share.anew();
    new.load(&state).unwrap();
    // What two may have is there at once.
    assert_eq!(new.reacquire_locks(false), 2);
    assert_eq!(new.save().unwrap(), state);
    // Nobody else in the guest gets them, and what is given up of one is not asked for.
    assert_eq!(new.lock(&ranged(handle, 3, LockKind::Read, 5, 5)), Err(Errno::AGAIN));
    assert_eq!(new.lock(&ranged(handle, 1, LockKind::None, 0, 4)), Ok(()));
    assert_eq!(new.lock(&whole(LockKind::None)), Ok(()));
    assert_eq!(new.reacquire_locks(false), 1);
    let left: Vec<_> = new.locks.saved().iter().map(|lock| (lock.owner, lock.start, lock.end)).collect();
    assert_eq!(left, [(1, 5, 9), (2, 20, 29)]);
    drop(new);
    let mut new = old.share.anew();
    new.load(&state).unwrap();
    old.share.release(handle);
    assert_eq!(new.reacquire_locks(false), 0);
    let file = fs::File::options().read(true).write(true).open(old.path("a")).unwrap();
    assert!(
        sys::lock(&file, LockKind::Write, 5, 5).is_err()
            && sys::lock(&file, LockKind::Write, 25, 25).is_err()
    );
    assert!(!crate::host::lock::try_lock_folder(&file).unwrap());
    // Another program was faster.
    let state = new.save().unwrap();
    drop(new);
    assert!(
        sys::lock(&file, LockKind::Write, 0, 100).is_ok()
            && crate::host::lock::try_lock_folder(&file).unwrap()
    );
    let mut new = old.share.anew();
    new.load(&state).unwrap();
    assert_eq!(
        (new.reacquire_locks(false), new.reacquire_locks(true), new.reacquire_locks(false)),
        (3, 3, 0)
    );
    drop(file);
    assert_eq!(new.lock(&ranged(handle, 3, LockKind::Write, 0, 100)), Ok(()));
    let other = new.open(node, READ).unwrap();
    assert_eq!(new.lock(&Lock { handle: other, ..whole(LockKind::Write) }), Ok(()));
}

/// As programs make what nobody shall change behind them.
#[test]
fn file_that_only_its_maker_may_write_is_locked_by_its_open_file() {
    let mut world = World::with(|spec| spec.with_locks(ShareLocks::Host));
    let _obeys = WithoutOverride::new();
    let both = OpenMode { write: true, ..READ };
    let made = world.share.create(Node::ROOT, name(b"a"), 0o444, both, Caller::default());
    let (_, handle) = made.unwrap();
    for kind in [LockKind::Read, LockKind::Write] {
        assert_eq!(world.share.lock(&ranged(handle, 1, kind, 0, 9)), Ok(()));
    }
    let file = fs::File::open(world.path("a")).unwrap();
    assert!(sys::lock(&file, LockKind::Read, 5, 5).is_err());
    assert!(world.share.closed(handle, 1).is_ok());
    assert!(sys::lock(&file, LockKind::Read, 5, 5).is_ok());
}

/// Linux tells of the end of a process's locks, and not of those that an open file has.
#[test]
fn locks_of_an_open_file_end_when_it_is_closed() {
    let mut world = World::with(|spec| spec.with_locks(ShareLocks::Host));
    let (node, one) = world.create("a");
    let two = world.share.open(node, WRITE).unwrap();
    assert_eq!(world.share.lock(&ranged(one, 1, LockKind::Write, 0, 9)), Ok(()));
    assert_eq!(world.share.lock(&ranged(two, 2, LockKind::Write, 20, 29)), Ok(()));
    assert_eq!(world.share.lock(&ranged(two, 2, LockKind::Write, 5, 5)), Err(Errno::AGAIN));
    world.moved();
    world.share.release(one);
    assert_eq!(world.share.lock(&ranged(two, 2, LockKind::Write, 5, 5)), Ok(()));
    let file = fs::File::options().read(true).write(true).open(world.path("a")).unwrap();
    let host = |at| sys::lock(&file, LockKind::Write, at, at).is_ok();
    assert!(host(0) && !host(5) && !host(25));
}
