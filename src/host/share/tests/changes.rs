//! Changes of what is known of a file, and of files whose names are others' by now.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use super::super::attributes::stat_at;
use super::*;

/// In a range that no file can have nothing is lost, and nothing takes for ever.
#[test]
fn holes_beyond_all_files_are_refused_before_anything_is_lost() {
    // The second has no limit but that of all files.
    let bases = [tempfile::tempdir().ok(), tempfile::tempdir_in("/dev/shm").ok()];
    for base in bases.into_iter().flatten() {
        let mut world = World::at(base, |spec| spec);
        let (_, handle) = world.create("a");
        assert_eq!(world.put(handle, 0, b"kept"), Ok(4));
        // Others would fill a file system without such a limit.
        for len in [17 << 40, 1 << 62, i64::MAX.cast_unsigned()] {
            let is_punched = done(world.share.allocate(handle, 0, len, Space::Punch)).is_ok();
            let content = if is_punched { b"\0\0\0\0" } else { b"kept" };
            assert_eq!(world.take(handle, 0), Ok(content.to_vec()), "{len}");
            assert_eq!(world.put(handle, 0, b"kept"), Ok(4));
        }
        // More than a part, and not from its beginning on.
        assert_eq!(world.put(handle, 4, &[7; 9000]), Ok(9000));
        assert_eq!(done(world.share.allocate(handle, 5000, 3 << 30, Space::Punch)), Ok(0));
        let bytes = fs::read(world.path("a")).unwrap();
        assert_eq!((&bytes[4998..5002], bytes.len()), ([7, 7, 0, 0].as_slice(), 9004));
        assert!(bytes[5000..].iter().all(|byte| *byte == 0));
    }
}

/// The guest looks up again what is stale; what is not there it takes for removed.
#[test]
fn file_whose_name_is_gone_and_that_has_another_is_stale_to_every_call() {
    let mut world = World::new();
    let (node, handle) = world.create("a");
    world.share.release(handle);
    fs::hard_link(world.path("a"), world.path("b")).unwrap();
    world.find(Node::ROOT, "b").unwrap();
    fs::remove_file(world.path("b")).unwrap();
    let times = Change { mtime: Some(SetTime::Now), ..Change::default() };
    let mode = Change { mode: Some(0o600), ..Change::default() };
    assert_eq!(world.share.set_attr(node, None, &times).unwrap_err(), Errno::STALE);
    assert_eq!(world.share.set_attr(node, None, &mode).unwrap_err(), Errno::STALE);
    assert_eq!(world.share.set_xattr(node, b"user.x", b"1", SetXattr::Any), Err(Errno::STALE));
    assert_eq!(world.share.link(node, Node::ROOT, name(b"c")).unwrap_err(), Errno::STALE);
    assert_eq!(world.share.open(node, READ).unwrap_err(), Errno::STALE);
    assert_eq!(world.find(Node::ROOT, "a").unwrap().node, node);
    assert!(
        world.share.set_attr(node, None, &times).is_ok()
            && world.share.link(node, Node::ROOT, name(b"c")).is_ok()
    );
    // A link's text too.
    let made = world.share.make(Node::ROOT, name(b"l"), New::Link(b"x"), Caller::default()).unwrap();
    fs::remove_file(world.path("l")).unwrap();
    assert_eq!(world.share.read_link(made.node, &mut Vec::new()), Err(Errno::STALE));
    fs::write(world.path("l"), "").unwrap();
    assert_eq!(world.share.read_link(made.node, &mut Vec::new()), Err(Errno::STALE));
}

/// A hard link is made of the file that is meant, and of no other one.
#[test]
fn link_to_a_name_that_is_another_files_makes_nothing() {
    let mut world = World::new();
    let (node, handle) = world.create("a");
    world.share.release(handle);
    fs::write(world.path("other"), "").unwrap();
    fs::rename(world.path("other"), world.path("a")).unwrap();
    assert_eq!(world.share.link(node, Node::ROOT, name(b"b")).unwrap_err(), Errno::STALE);
    assert!(!world.path("b").exists());
}

/// Whoever waits for the other end of a FIFO of the host is not let go by a guest that had a file of that name.
#[test]
fn what_has_a_files_name_now_is_not_opened() {
    let mut world = World::new();
    let (node, handle) = world.create("x");
    world.share.release(handle);
    rustix::fs::mknodat(rustix::fs::CWD, world.path("p"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    fs::rename(world.path("p"), world.path("x")).unwrap();
    let script = "echo begun; echo written >\"$0\"";
    let mut writer =
        Command::new("sh").args(["-c", script]).arg(world.path("x")).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 6];
    writer.stdout.take().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(world.share.open(node, WRITE).unwrap_err(), Errno::STALE);
    let size = Change { size: Some(0), ..Change::default() };
    assert_eq!(world.share.set_attr(node, None, &size).unwrap_err(), Errno::STALE);
    // It waits still, or has yet to come.
    let flags = libc::O_NONBLOCK;
    let mut other_end = fs::File::options().read(true).custom_flags(flags).open(world.path("x")).unwrap();
    let (mut bytes, mut ended) = ([0; 8], None);
    while !other_end.read(&mut bytes).is_ok_and(|len| len > 0) {
        assert_eq!(ended, None, "it was let go by the guest");
        ended = writer.try_wait().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(bytes == *b"written\n" && writer.wait().unwrap().success());
}

#[test]
fn names_are_counted_when_they_grow_too() {
    let mut world = World::new();
    world.limit_known(MOST_NODES, 10);
    let long = [b'l'; 255];
    for n in 0..3u8 {
        world.create(&n.to_string());
    }
    assert!(world.share.rename((Node::ROOT, name(b"0")), (Node::ROOT, name(&long)), Rename::Replace).is_ok());
    let more = [b'm'; 255];
    let renamed = world.share.rename((Node::ROOT, name(b"1")), (Node::ROOT, name(&more)), Rename::Replace);
    assert_eq!(renamed, Err(Errno::NFILE));
    assert!(world.path("1").exists());
    // The host's long name is not taken up, and the file is found.
    fs::rename(world.path("1"), world.path(std::str::from_utf8(&more).unwrap())).unwrap();
    assert!(world.share.lookup(Node::ROOT, name(&more)).is_ok());
    world.moved();
}

#[test]
fn set_group_id_folder_passes_its_group_on_where_owners_are_kept() {
    let mut world = World::with(|spec| spec.with_owner(ShareOwner::Xattr));
    let folder = world.folder(Node::ROOT, "d");
    let change = Change { gid: Some(50), mode: Some(0o2775), ..Change::default() };
    world.share.set_attr(folder, None, &change).unwrap();
    let caller = Caller { uid: 7, gid: 8 };
    let below = world.share.make(folder, name(b"e"), New::Folder(0o755), caller).unwrap().attr;
    let (made, handle) = world.share.create(folder, name(b"f"), 0o644, WRITE, caller).unwrap();
    let of = |attr: virtio::fs::Attr| (attr.uid, attr.gid, attr.mode & 0o7777);
    assert_eq!((of(below), of(made.attr)), ((7, 50, 0o2755), (7, 50, 0o644)));
    // And a program that somebody empties has its owner's rights no more.
    let mode = Change { mode: Some(0o6775), ..Change::default() };
    world.share.set_attr(made.node, None, &mode).unwrap();
    let again = OpenMode { truncate: true, drops_privileges: true, ..WRITE };
    world.share.open(made.node, again).unwrap();
    assert_eq!(of(world.share.attr(made.node, None).unwrap()), (7, 50, 0o775));
    // Without permission to execute it is a mark for locks, not a privilege.
    let mode = Change { mode: Some(0o2664), ..Change::default() };
    world.share.set_attr(made.node, None, &mode).unwrap();
    let drops = Change { drops_privileges: true, ..Change::default() };
    assert_eq!(of(world.share.set_attr(made.node, Some(handle), &drops).unwrap()), (7, 50, 0o2664));
}

/// The host's kernel does not do it to root.
#[test]
fn programs_of_a_hosts_root_lose_their_privileges_when_they_are_changed() {
    let mut world = World::new();
    if world.share.folder.user != 0 {
        return;
    }
    let (node, handle) = world.create("a");
    let set =
        |world: &World| fs::set_permissions(world.path("a"), fs::Permissions::from_mode(0o6755)).unwrap();
    let mode = |world: &World| fs::metadata(world.path("a")).unwrap().mode() & 0o7777;
    set(&world);
    assert_eq!(world.put_dropping(handle, WriteAt::Offset(0), b"x", true), Ok(1));
    assert_eq!(mode(&world), 0o755);
    set(&world);
    let again = OpenMode { truncate: true, drops_privileges: true, ..WRITE };
    world.share.open(node, again).unwrap();
    assert_eq!(mode(&world), 0o755);
    set(&world);
    let drops = Change { drops_privileges: true, size: Some(0), ..Change::default() };
    world.share.set_attr(node, None, &drops).unwrap();
    assert_eq!(mode(&world), 0o755);
}

/// The guest hears that nothing was made, and may try again.
#[test]
fn what_cannot_be_finished_is_removed_unless_another_file_has_the_name() {
    let mut world = World::new();
    world.folder(Node::ROOT, "d");
    let stat = stat_at(&world.share.folder.root, b"d").unwrap();
    world.share.unmake(&world.share.folder.root, name(b"d"), &stat);
    assert!(!world.path("d").exists());
    fs::write(world.path("d"), "").unwrap();
    world.share.unmake(&world.share.folder.root, name(b"d"), &stat);
    assert!(world.path("d").exists(), "another file has the name");
}
