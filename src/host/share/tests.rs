//! The files of a share, as a guest's requests reach them, in a temporary folder beside which lies something secret.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use tempfile::TempDir;
use virtio::fs::{
    Answer, Caller, Change, Entry, Errno, FileSystem, Handle, Lock, LockKind, Name, New, Node, OpenMode,
    Rename, Seek, SetTime, SetXattr, Space, Time, Work, WriteAt,
};
use virtio::memory::{Memory, Segment};
use virtio::testing::memory;
use vm_memory::{Bytes, GuestAddress};

mod changes;
mod locks;

use super::known::{MOST_NAMES, MOST_NODES};
use super::*;
use crate::spec::{ShareLocks, ShareOrigin, ShareOwner, ShareSpec};

const READ: OpenMode = OpenMode {
    read: true,
    write: false,
    sync: false,
    truncate: false,
    exclusive: false,
    drops_privileges: false,
};
const WRITE: OpenMode = OpenMode { write: true, ..READ };

/// A share, what is outside of it, and a guest's memory.
struct World {
    base: TempDir,
    share: Share,
    memory: Memory,
}

/// The only one of its machine.
fn open_alone(spec: &ShareSpec) -> Result<Arc<SharedFolder>, Box<ShareError>> {
    SharedFolder::open(spec, 1)
}

fn name(bytes: &[u8]) -> Name<'_> {
    Name::new(bytes).unwrap()
}

impl World {
    fn new() -> Self {
        Self::with(|spec| spec)
    }

    fn with(spec: impl FnOnce(ShareSpec) -> ShareSpec) -> Self {
        Self::at(tempfile::tempdir().unwrap(), spec)
    }

    fn at(base: TempDir, spec: impl FnOnce(ShareSpec) -> ShareSpec) -> Self {
        fs::create_dir(base.path().join("dir")).unwrap();
        fs::write(base.path().join("secret"), "secret").unwrap();
        let spec = spec(ShareSpec::new(base.path().join("dir")));
        let share = Share::new(open_alone(&spec).unwrap(), Arc::default());
        World { base, share, memory: memory(1 << 20).0 }
    }

    /// It knows no more from now on.
    fn limit_known(&mut self, nodes: usize, names: usize) {
        let together = &mut self.share.nodes.together;
        *together = Arc::new(together.limited(nodes, names));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join("dir").join(name)
    }

    fn find(&mut self, parent: Node, of: &str) -> Answer<Entry> {
        self.share.lookup(parent, name(of.as_bytes()))
    }

    fn node(&mut self, path: &str) -> Node {
        path.split('/').fold(Node::ROOT, |parent, name| self.find(parent, name).unwrap().node)
    }

    fn folder(&mut self, parent: Node, of: &str) -> Node {
        self.share.make(parent, name(of.as_bytes()), New::Folder(0o755), Caller::default()).unwrap().node
    }

    fn create(&mut self, of: &str) -> (Node, Handle) {
        let made =
            self.share.create(Node::ROOT, name(of.as_bytes()), 0o644, WRITE, Caller::default()).unwrap();
        (made.0.node, made.1)
    }

    fn put(&mut self, handle: Handle, offset: u64, bytes: &[u8]) -> Answer<u64> {
        self.put_at(handle, WriteAt::Offset(offset), bytes)
    }

    fn put_at(&mut self, handle: Handle, at: WriteAt, bytes: &[u8]) -> Answer<u64> {
        self.put_dropping(handle, at, bytes, false)
    }

    fn put_dropping(&mut self, handle: Handle, at: WriteAt, bytes: &[u8], drops: bool) -> Answer<u64> {
        self.memory.write_slice(bytes, GuestAddress(0)).unwrap();
        // In two pieces.
        let half = bytes.len() / 2;
        let pieces = [(0, half), (half, bytes.len() - half)]
            .map(|(at, len)| Segment { address: GuestAddress(at as u64), len: u32::try_from(len).unwrap() });
        self.share.write(handle, at, &self.memory, &pieces, drops)
    }

    fn take(&mut self, handle: Handle, offset: u64) -> Answer<Vec<u8>> {
        let room = [Segment { address: GuestAddress(0x8000), len: 64 }];
        let len = self.share.read(handle, offset, &self.memory, &room)?;
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.memory.read_slice(&mut bytes, GuestAddress(0x8000)).unwrap();
        Ok(bytes)
    }

    fn moved(&mut self) {
        let state = self.share.save().unwrap();
        // The old one ends first, with its locks.
        self.share = self.share.anew();
        self.share.load(&state).unwrap();
        assert_eq!(self.share.save().unwrap(), state);
    }

    /// Nothing outside is there that was not, or is changed.
    fn is_contained(&self) {
        let names: Vec<_> =
            fs::read_dir(self.base.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        let secret = self.base.path().join("secret");
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
        assert_eq!(fs::metadata(secret).unwrap().mode() & 0o7777, 0o644);
    }
}

/// What is another thread's in a machine.
fn done(work: Answer<Work>) -> Answer<u64> {
    work?.run(&AtomicBool::new(false))
}

fn of(error: Errno) -> Answer<Vec<u8>> {
    Err(error)
}

#[test]
fn file_is_made_written_read_and_removed_while_it_is_open() {
    let mut world = World::new();
    let (node, handle) = world.create("a");
    assert_eq!(world.put(handle, 2, b"hello"), Ok(5));
    assert_eq!(fs::read(world.path("a")).unwrap(), b"\0\0hello");
    assert_eq!(world.take(handle, 3), Ok(b"ello".to_vec()));
    assert_eq!(world.take(handle, 100), Ok(vec![]));
    world.share.remove(Node::ROOT, name(b"a"), false).unwrap();
    assert!(!world.path("a").exists());
    // It lives on while it is open.
    assert_eq!(world.take(handle, 3), Ok(b"ello".to_vec()));
    let attr = world.share.attr(node, None).unwrap();
    assert_eq!((attr.size, attr.nlink, attr.uid, attr.gid), (7, 0, 0, 0));
    // As /proc/self/fd of a process in the guest opens it.
    let again = world.share.open(node, READ).unwrap();
    assert_eq!(world.take(again, 3), Ok(b"ello".to_vec()));
    world.share.release(again);
    let change = Change { size: Some(1), mode: Some(0o600), mtime: Some(SetTime::Now), ..Change::default() };
    assert_eq!(world.share.set_attr(node, Some(handle), &change).unwrap().size, 1);
    world.share.release(handle);
    assert_eq!(world.take(handle, 0), of(Errno::BADF));
    assert_eq!(world.share.attr(node, None), Err(Errno::STALE));
    world.share.forget(node, u64::MAX);
    assert_eq!((world.share.nodes.len(), world.share.handles.len()), (0, 0));
}

#[test]
fn links_are_text_and_lead_nowhere() {
    let mut world = World::new();
    symlink("../secret", world.path("up")).unwrap();
    symlink("/etc", world.path("etc")).unwrap();
    symlink(".", world.path("here")).unwrap();
    for (link, text) in [("up", "../secret"), ("etc", "/etc"), ("here", ".")] {
        let entry = world.find(Node::ROOT, link).unwrap();
        assert_eq!(entry.attr.mode & 0o170_000, 0o120_000);
        let mut read = Vec::new();
        world.share.read_link(entry.node, &mut read).unwrap();
        assert_eq!(read, text.as_bytes());
        assert!(world.share.open(entry.node, WRITE).is_err());
        assert!(world.share.open_folder(entry.node).is_err());
        assert_eq!(world.find(entry.node, "passwd").unwrap_err(), Errno::NOTDIR);
        assert!(world.share.make(entry.node, name(b"x"), New::File(0o644), Caller::default()).is_err());
        let change = Change { mode: Some(0o777), ..Change::default() };
        assert_eq!(world.share.set_attr(entry.node, None, &change), Err(Errno::NOTSUP));
        assert!(world.share.set_attr(entry.node, None, &Change { size: Some(0), ..change }).is_err());
        assert!(world.share.set_xattr(entry.node, b"user.x", b"1", SetXattr::Any).is_err());
    }
    let made = world.share.create(Node::ROOT, name(b"up"), 0o644, WRITE, Caller::default());
    assert!(made.is_err(), "{made:?}");
    let made =
        world.share.make(Node::ROOT, name(b"l"), New::Link(b"/etc/passwd"), Caller::default()).unwrap();
    assert_eq!(fs::read_link(world.path("l")).unwrap(), Path::new("/etc/passwd"));
    let change = Change { mtime: Some(SetTime::At(Time { seconds: 5, nanos: 0 })), ..Change::default() };
    assert_eq!(world.share.set_attr(made.node, None, &change).unwrap().mtime.seconds, 5);
    world.is_contained();
}

#[test]
fn folders_that_become_links_lead_nowhere() {
    let mut world = World::new();
    let folder = world.folder(Node::ROOT, "f");
    let inner = world.folder(folder, "g");
    fs::write(world.path("f/g/secret"), "mine").unwrap();
    let file = world.find(inner, "secret").unwrap().node;
    // The host replaces the folder by a way out while nothing of it is open here.
    world.share.nodes.close_folders(100);
    world.share.nodes.close_folders(100);
    fs::rename(world.path("f/g"), world.path("old")).unwrap();
    symlink("../..", world.path("f/g")).unwrap();
    assert_eq!(world.share.open(file, READ), Err(Errno::STALE));
    assert_eq!(world.share.attr(file, None), Err(Errno::STALE));
    assert_eq!(world.find(inner, "secret").unwrap_err(), Errno::STALE);
    let change = Change { mode: Some(0o777), size: Some(0), ..Change::default() };
    assert_eq!(world.share.set_attr(file, None, &change), Err(Errno::STALE));
    assert_eq!(world.share.remove(inner, name(b"secret"), false), Err(Errno::STALE));
    // Found again under its new name, it is the same node.
    assert_eq!(world.find(Node::ROOT, "old").unwrap().node, inner);
    assert_eq!(world.find(inner, "secret").unwrap().node, file);
    world.is_contained();
}

#[test]
fn moves_of_another_machine_in_a_loop_open_no_way_out() {
    let mut world = World::new();
    for path in ["a", "a/b", "a/b/c", "x"] {
        fs::create_dir(world.path(path)).unwrap();
    }
    fs::write(world.path("a/b/c/secret"), "mine").unwrap();
    symlink("../..", world.path("link")).unwrap();
    let folder = world.share.folder.clone();
    let (c, file) = (world.node("a/b/c"), world.node("a/b/c/secret"));
    let end = AtomicBool::new(false);
    let root = world.path("");
    std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let at = |name: &str| root.join(name);
            while !end.load(Ordering::Relaxed) {
                // The folder leaves, and a link is in its place.
                let _ = fs::rename(at("a/b"), at("x/b"));
                let _ = fs::rename(at("link"), at("a/b"));
                let _ = fs::rename(at("a/b"), at("link"));
                let _ = fs::rename(at("x/b"), at("a/b"));
            }
        });
        let mut found = 0;
        for round in 0..20_000 {
            world.share.nodes.close_folders(100);
            if let Ok(handle) = world.share.open(file, READ) {
                assert_eq!(world.take(handle, 0), Ok(b"mine".to_vec()));
                world.share.release(handle);
                found += 1;
            }
            let _ = world.find(c, "secret").map(|entry| assert_eq!(entry.attr.size, 4));
            if let Ok(entry) = world.find(Node::ROOT, "a")
                && let Ok(entry) = world.find(entry.node, "b")
            {
                assert!(world.find(entry.node, "secret").is_err());
            }
            if round > 500 && found > 50 {
                break;
            }
        }
        end.store(true, Ordering::Relaxed);
        mover.join().unwrap();
        assert!(found > 0);
    });
    assert!(world.share.nodes.len() < 10 && folder.identity == world.share.folder.identity);
    world.is_contained();
}

#[test]
fn numbers_that_were_made_up_are_errors() {
    let mut world = World::new();
    let (node, handle) = world.create("a");
    let stale = [0, 2 + node.0, 3, 1 << 32 | 1, node.0 | 1 << 40, u64::MAX, u64::MAX >> 32];
    for number in stale.map(Node) {
        assert_eq!(world.find(number, "a").unwrap_err(), Errno::STALE, "{number:?}");
        assert_eq!(world.share.attr(number, None), Err(Errno::STALE));
        assert_eq!(world.share.open(number, READ), Err(Errno::STALE));
        world.share.forget(number, u64::MAX);
    }
    for number in [handle.0 + 1, 1 << 32, u64::MAX].map(Handle) {
        assert_eq!(world.take(number, 0), of(Errno::BADF));
        assert_eq!(world.share.sync(number, true).unwrap_err(), Errno::BADF);
        world.share.release(number);
    }
    assert_eq!(world.find(node, "a").unwrap_err(), Errno::NOTDIR);
    // Offsets that no file can have.
    assert!(world.put(handle, u64::MAX, b"x").is_err() && world.take(handle, u64::MAX).is_err());
    // The root cannot be forgotten, and is no name in a folder.
    world.share.forget(Node::ROOT, u64::MAX);
    assert!(world.share.attr(Node::ROOT, None).is_ok());
    assert!(world.share.link(Node::ROOT, Node::ROOT, name(b"r")).is_err());
    assert!(
        world.share.set_attr(Node::ROOT, None, &Change { mode: Some(0o700), ..Change::default() }).is_ok()
    );
    // A file's number comes again with another generation.
    world.share.release(handle);
    world.share.remove(Node::ROOT, name(b"a"), false).unwrap();
    world.share.forget(node, 1);
    let (second, _) = world.create("a");
    assert!(second != node && second.0 & 0xffff_ffff == node.0 & 0xffff_ffff);
    assert_eq!(world.share.attr(node, None), Err(Errno::STALE));
}

#[test]
fn a_share_that_is_only_read_stays_as_it_is() {
    let mut world = World::with(ShareSpec::read_only);
    fs::write(world.path("a"), "text").unwrap();
    let node = world.node("a");
    let (root, rofs) = (Node::ROOT, Errno::ROFS);
    assert_eq!(world.share.open(node, WRITE), Err(rofs));
    assert_eq!(world.share.create(root, name(b"b"), 0o644, WRITE, Caller::default()).unwrap_err(), rofs);
    assert_eq!(world.share.make(root, name(b"b"), New::Folder(0o755), Caller::default()).unwrap_err(), rofs);
    assert_eq!(world.share.remove(root, name(b"a"), false), Err(rofs));
    assert_eq!(world.share.rename((root, name(b"a")), (root, name(b"b")), Rename::Replace), Err(rofs));
    assert_eq!(world.share.link(node, root, name(b"b")).unwrap_err(), rofs);
    assert_eq!(world.share.set_attr(node, None, &Change { size: Some(0), ..Change::default() }), Err(rofs));
    assert_eq!(world.share.set_xattr(node, b"user.x", b"", SetXattr::Any), Err(rofs));
    assert_eq!(world.share.remove_xattr(node, b"user.x"), Err(rofs));
    let handle = world.share.open(node, READ).unwrap();
    assert_eq!(world.put(handle, 0, b"x"), Err(Errno::BADF));
    let allocated = world.share.allocate(handle, 0, 10, Space::Allocate { keep_size: false });
    assert!(done(allocated).is_err());
    assert_eq!(fs::read(world.path("a")).unwrap(), b"text");
}

#[test]
fn rights_of_the_host_are_not_given_away() {
    let mut world = World::new();
    let mode = |path: PathBuf| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
    for (made, new) in [
        ("file", New::File(0o6777)),
        ("folder", New::Folder(0o7777)),
        ("fifo", New::Fifo(0o666)),
        ("socket", New::Socket(0o600)),
    ] {
        let entry = world.share.make(Node::ROOT, name(made.as_bytes()), new, Caller::default()).unwrap();
        assert_eq!(entry.attr.mode & 0o777, mode(world.path(made)) & 0o777);
    }
    // The guest's umask counts, and the bits that give rights do not.
    assert_eq!((mode(world.path("file")), mode(world.path("folder"))), (0o777, 0o1777));
    let (fifo, socket) = (world.node("fifo"), world.node("socket"));
    assert!(fs::metadata(world.path("fifo")).unwrap().file_type().is_fifo());
    // The guest's kernel opens these itself; here nobody waits for their other end.
    assert_eq!(world.share.open(fifo, READ), Err(Errno::ACCES));
    assert_eq!(world.share.open(socket, WRITE), Err(Errno::ACCES));
    let file = world.node("file");
    let change = Change { mode: Some(0o4755), uid: Some(33), gid: Some(33), ..Change::default() };
    let attr = world.share.set_attr(file, None, &change).unwrap();
    assert_eq!((attr.mode & 0o7777, attr.uid, mode(world.path("file"))), (0o755, 0, 0o755));
    let (created, handle) =
        world.share.create(Node::ROOT, name(b"c"), 0o6666, WRITE, Caller::default()).unwrap();
    assert_eq!((created.attr.mode & 0o7777, mode(world.path("c"))), (0o666, 0o666));
    // Not one that is found where a file is to be made, either.
    let found = world.share.create(Node::ROOT, name(b"fifo"), 0o600, WRITE, Caller::default());
    assert_eq!(found.unwrap_err(), Errno::STALE);
    // A file that becomes a FIFO is not opened.
    world.share.release(handle);
    fs::rename(world.path("fifo"), world.path("c")).unwrap();
    assert!(world.share.open(created.node, READ).is_err());
    assert!(world.share.create(Node::ROOT, name(b"c"), 0o600, WRITE, Caller::default()).is_err());
}

#[test]
fn names_of_any_bytes_are_listed_with_and_without_attributes() {
    let mut world = World::new();
    let names: Vec<Vec<u8>> = (1..=255u8)
        .filter(|byte| *byte != b'/' && *byte != b'.')
        .map(|byte| vec![byte; if byte % 2 == 0 { 1 } else { 255 }])
        .collect();
    for of in &names {
        world.share.make(Node::ROOT, name(of), New::File(0o600), Caller::default()).unwrap();
    }
    assert_eq!(world.listed(true), names.len() + 2);
    assert_eq!(world.listed(false), names.len() + 2);
}

impl World {
    /// How many entries the root has, by listings of a few at a time, with steps back.
    fn listed(&mut self, plus: bool) -> usize {
        let handle = self.share.open_folder(Node::ROOT).unwrap();
        let all = virtio::fs::testing::list(&mut self.share, handle, 4096, plus);
        // The same from a place in the middle, as seekdir(3) goes.
        let (half, _) = all[all.len() / 2].clone();
        let again = virtio::fs::testing::list_from(&mut self.share, handle, half, 4096, plus);
        assert_eq!(again, all[all.len() / 2 + 1..]);
        self.share.release(handle);
        all.len()
    }
}

#[test]
fn a_hundred_thousand_files_take_few_descriptors_and_go_when_forgotten() {
    // A disk takes a minute to make them.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
    let mut world = World::at(folder, |spec| spec);
    fs::create_dir(world.path("d")).unwrap();
    for n in 0..100_000 {
        fs::File::create(world.path(&format!("d/{n}"))).unwrap();
    }
    let before = fs::read_dir("/proc/self/fd").unwrap().count();
    let folder = world.node("d");
    let handle = world.share.open_folder(folder).unwrap();
    let all = virtio::fs::testing::list(&mut world.share, handle, 64 << 10, true);
    assert_eq!((all.len(), world.share.nodes.len()), (100_002, 100_001));
    let found = world.find(folder, "77777").unwrap();
    assert!(world.share.attr(found.node, None).is_ok());
    // Other tests open files too.
    assert!(fs::read_dir("/proc/self/fd").unwrap().count() < before + 500);
    world.moved();
    assert!(world.share.attr(found.node, None).is_ok());
    let nodes: Vec<_> = world.share.nodes.all().map(|(slot, _)| world.share.nodes.number(slot)).collect();
    for node in nodes {
        world.share.forget(node, u64::MAX);
    }
    // The open folder stays.
    assert_eq!(world.share.nodes.len(), 1);
    world.share.release(handle);
    assert_eq!(world.share.nodes.len(), 0);
}

#[test]
fn descriptors_of_folders_are_bounded_and_come_again() {
    let mut world = World::new();
    world.share.nodes.most_open = 16;
    let mut nodes = Vec::new();
    for n in 0..100 {
        let node = world.folder(Node::ROOT, &n.to_string());
        nodes.push(world.folder(node, "in"));
    }
    assert!(world.share.nodes.open.len() <= 16);
    for node in nodes {
        world.share.make(node, name(b"f"), New::File(0o600), Caller::default()).unwrap();
        assert!(world.share.nodes.open.len() <= 16);
    }
    assert!(world.path("0/in/f").exists() && world.path("99/in/f").exists());
}

#[test]
fn the_kernels_own_file_systems_are_not_shared_with_the_folder_that_they_are_mounted_in() {
    let world = World::new();
    let mut share = Share::new(open_alone(&ShareSpec::new("/")).unwrap(), Arc::default());
    let proc = share.lookup(Node::ROOT, name(b"proc")).unwrap().node;
    for inside in ["self", "1", "meminfo"] {
        assert_eq!(share.lookup(proc, name(inside.as_bytes())).unwrap_err(), Errno::ACCES, "{inside}");
    }
    assert_eq!(share.open_folder(proc).unwrap_err(), Errno::ACCES);
    let refused = open_alone(&ShareSpec::new("/proc/self")).unwrap_err();
    assert!(matches!(refused.fault, ShareFault::Kernels(_)), "{refused}");
    // Other mounts are, but for the host's devices, which are in no folder of files. A container's /dev may be a tmpfs.
    let dev = share.lookup(Node::ROOT, name(b"dev")).unwrap().node;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let has_devtmpfs =
        mounts.lines().any(|mount| mount.contains(" / /dev ") && mount.contains(" - devtmpfs "));
    assert!(world.path("").exists());
    if has_devtmpfs {
        assert_eq!(share.lookup(dev, name(b"null")).unwrap_err(), Errno::ACCES);
        let refused = open_alone(&ShareSpec::new("/dev")).unwrap_err();
        assert!(matches!(refused.fault, ShareFault::Kernels(_)), "{refused}");
    } else {
        assert!(share.lookup(dev, name(b"null")).is_ok());
    }
}

#[test]
fn limits_are_divided_among_shares_and_leave_the_machine_its_part() {
    for (count, files) in [(1, 1024), (3, 1024), (24, 1024), (24, 1 << 20), (2, 64)] {
        let limits = shared_folder::Limits::of(count, files);
        assert!(
            (limits.handles + limits.folders) * count <= files * 3 / 4 || files < 1024,
            "{count} {limits:?}"
        );
        assert!(limits.handles > 0 && limits.folders > 0);
    }
    let mut world = World::new();
    world.limit_known(2, MOST_NAMES);
    world.create("a");
    world.create("b");
    let made = world.share.make(Node::ROOT, name(b"c"), New::Folder(0o755), Caller::default());
    assert_eq!((made.unwrap_err(), world.path("c").exists()), (Errno::NFILE, false));
    // More names than it may have, as a share that was restored: none gets longer.
    world.limit_known(100, MOST_NAMES);
    for ino in 0..2 {
        let identity = attributes::Identity { device: 0, ino, ..world.share.folder.identity };
        world.share.nodes.intern(nodes::ROOT, &[b'x'; 200], identity, nodes::Found::Alone).unwrap();
    }
    world.limit_known(100, 0);
    let mut rename = |to: &str| {
        world.share.rename((Node::ROOT, name(b"a")), (Node::ROOT, name(to.as_bytes())), Rename::Replace)
    };
    assert_eq!((rename("long"), rename("d")), (Err(Errno::NFILE), Ok(())));
}

#[test]
fn births_do_not_count_where_they_change() {
    let world = World::new();
    let mut stat = attributes::stat_of(&world.share.folder.root).unwrap();
    let mut folder = SharedFolder {
        keeps_births: false,
        ..Arc::into_inner(open_alone(&ShareSpec::new(world.path(""))).unwrap()).unwrap()
    };
    let before = folder.identify(&stat);
    stat.stx_btime.tv_sec += 1;
    assert_eq!(folder.identify(&stat), before);
    folder.keeps_births = true;
    assert_ne!(folder.identify(&stat), before);
}

#[test]
fn a_very_deep_folder_is_reached_beyond_the_longest_path() {
    let mut world = World::new();
    let mut node = Node::ROOT;
    for _ in 0..60 {
        node = world.folder(node, &"d".repeat(200));
    }
    world.share.nodes.close_folders(100);
    world.share.nodes.close_folders(100);
    world.share.make(node, name(b"f"), New::File(0o600), Caller::default()).unwrap();
    assert!(world.find(node, "f").is_ok());
    // Which std::fs cannot remove by its path.
    let status = std::process::Command::new("rm").arg("-rf").arg(world.path(&"d".repeat(200))).status();
    assert!(status.unwrap().success());
}

#[test]
fn open_handles_are_bounded() {
    let mut world = World::new();
    fs::write(world.path("a"), "").unwrap();
    world.share.handles = Handles::new(5);
    let node = world.node("a");
    let handles: Vec<_> = (0..5).map(|_| world.share.open(node, READ).unwrap()).collect();
    assert_eq!(world.share.open(node, READ), Err(Errno::NFILE));
    assert_eq!(world.share.open_folder(Node::ROOT), Err(Errno::NFILE));
    assert_eq!(
        world.share.create(Node::ROOT, name(b"b"), 0o600, WRITE, Caller::default()).unwrap_err(),
        Errno::NFILE
    );
    assert!(!world.path("b").exists());
    world.share.release(handles[2]);
    assert!(world.share.open(node, READ).is_ok());
}

#[test]
fn renames_take_along_what_is_known() {
    let mut world = World::new();
    let (a, b) = (world.folder(Node::ROOT, "a"), world.folder(Node::ROOT, "b"));
    let inner = world.folder(a, "inner");
    fs::write(world.path("a/inner/f"), "1").unwrap();
    let file = world.find(inner, "f").unwrap().node;
    world.share.rename((a, name(b"inner")), (b, name(b"moved")), Rename::Keep).unwrap();
    world.share.nodes.close_folders(100);
    world.share.nodes.close_folders(100);
    assert!(world.share.open(file, READ).is_ok() && world.path("b/moved/f").exists());
    assert_eq!(
        world.share.rename((Node::ROOT, name(b"a")), (Node::ROOT, name(b"b")), Rename::Keep),
        Err(Errno::EXIST)
    );
    world.share.rename((Node::ROOT, name(b"a")), (Node::ROOT, name(b"b")), Rename::Exchange).unwrap();
    world.share.nodes.close_folders(100);
    world.share.nodes.close_folders(100);
    assert!(world.find(b, "moved").is_ok() && world.path("a/moved").exists());
    // A file over another: the other one is gone.
    fs::write(world.path("x"), "x").unwrap();
    fs::write(world.path("y"), "yy").unwrap();
    let (x, y) = (world.node("x"), world.node("y"));
    world.share.rename((Node::ROOT, name(b"y")), (Node::ROOT, name(b"x")), Rename::Replace).unwrap();
    assert_eq!(world.share.attr(x, None), Err(Errno::STALE));
    assert_eq!(world.share.attr(y, None).unwrap().size, 2);
    // Into itself.
    let into = world.share.rename((Node::ROOT, name(b"a")), (b, name(b"a")), Rename::Replace);
    assert_eq!(into, Err(Errno::INVAL));
}

#[test]
fn a_file_with_the_number_of_a_removed_one_is_another() {
    let mut world = World::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..50 {
        let (node, handle) = world.create("a");
        world.share.release(handle);
        world.share.remove(Node::ROOT, name(b"a"), false).unwrap();
        assert!(seen.insert(node), "the guest still knows the one before");
    }
    // Made by the host: known by its time of birth.
    fs::write(world.path("b"), "").unwrap();
    let mut stat = attributes::stat_at(&world.share.folder.root, b"b").unwrap();
    let first = attributes::Identity::of(&stat);
    stat.stx_btime.tv_sec += 1;
    let second = attributes::Identity::of(&stat);
    let mut intern =
        |identity| world.share.nodes.intern(nodes::ROOT, b"b", identity, nodes::Found::Alone).unwrap();
    assert_ne!(intern(first), intern(second));
}

#[test]
fn a_saved_share_knows_the_later_one_of_two_files_with_one_number() {
    let mut world = World::new();
    let (first, handle) = world.create("a");
    world.share.release(handle);
    fs::write(world.path("b"), "").unwrap();
    let stat = attributes::stat_at(&world.share.folder.root, b"b").unwrap();
    let mut earlier = world.share.folder.identify(&stat);
    earlier.born.0 -= 1;
    let slot = world.share.nodes.intern(nodes::ROOT, b"gone", earlier, nodes::Found::Alone).unwrap();
    world.share.nodes.get_mut(slot).unwrap().lookups = 1;
    // The later one gets the slot in front of it.
    world.share.forget(first, 1);
    let later = world.find(Node::ROOT, "b").unwrap().node;
    assert!(later.0 & 0xffff_ffff < u64::from(slot), "{later:?}");
    world.moved();
    assert_eq!(world.find(Node::ROOT, "b").unwrap().node, later);
}

#[test]
fn hard_links_are_one_node() {
    let mut world = World::new();
    let (node, handle) = world.create("a");
    world.share.release(handle);
    let linked = world.share.link(node, Node::ROOT, name(b"b")).unwrap();
    assert_eq!((linked.node, linked.attr.nlink), (node, 2));
    world.share.remove(Node::ROOT, name(b"b"), false).unwrap();
    // Its name is gone, and it has the other one still.
    assert_eq!(world.share.attr(node, None).unwrap().nlink, 1);
    assert_eq!(world.find(Node::ROOT, "a").unwrap().node, node);
    assert_eq!(world.share.attr(node, None).unwrap().nlink, 1);
}

/// As `mv` and `sed -i` do, which look the name up before. Of the other one the guest's cache knows, and asks nothing.
#[test]
fn file_whose_last_name_became_another_files_has_its_other_name() {
    let mut world = World::new();
    let node = ["a", "t"].map(|file| {
        let (node, handle) = world.create(file);
        world.share.release(handle);
        node
    })[0];
    world.share.link(node, Node::ROOT, name(b"b")).unwrap();
    world.find(Node::ROOT, "a").unwrap();
    world.share.rename((Node::ROOT, name(b"t")), (Node::ROOT, name(b"a")), Rename::Replace).unwrap();
    let mtime = Some(SetTime::At(Time { seconds: 5, nanos: 0 }));
    let set = world.share.set_attr(node, None, &Change { mtime, ..Change::default() });
    assert_eq!(set.map(|attr| (attr.nlink, attr.mtime.seconds)), Ok((1, 5)));
    let handle = world.share.open(node, WRITE).unwrap();
    world.put(handle, 0, b"more").unwrap();
    assert_eq!(fs::read(world.path("b")).unwrap(), b"more");
    world.share.release(handle);
    // So has a symbolic link.
    let link = world.share.make(Node::ROOT, name(b"l"), New::Link(b"one"), Caller::default()).unwrap();
    world.share.link(link.node, Node::ROOT, name(b"m")).unwrap();
    world.share.make(Node::ROOT, name(b"n"), New::Link(b"two"), Caller::default()).unwrap();
    world.find(Node::ROOT, "l").unwrap();
    world.share.rename((Node::ROOT, name(b"n")), (Node::ROOT, name(b"l")), Rename::Replace).unwrap();
    let mut text = Vec::new();
    assert_eq!((world.share.read_link(link.node, &mut text), text.as_slice()), (Ok(()), b"one".as_slice()));
    // Both are gone, and the folder of one of them.
    let folder = world.folder(Node::ROOT, "d");
    world.share.link(node, folder, name(b"c")).unwrap();
    world.find(Node::ROOT, "b").unwrap();
    for (parent, file, is_folder) in [(folder, "c", false), (Node::ROOT, "d", true), (Node::ROOT, "b", false)]
    {
        world.share.remove(parent, name(file.as_bytes()), is_folder).unwrap();
    }
    world.share.forget(folder, 1);
    assert_eq!(world.share.attr(node, None).unwrap_err(), Errno::STALE);
    let known = world.share.nodes.len();
    world.share.forget(node, u64::MAX);
    assert_eq!(world.share.nodes.len(), known - 1);
}

#[test]
fn holes_and_files_over_four_gigabytes_are_kept() {
    let mut world = World::new();
    let (node, handle) = world.create("a");
    let far = 5 << 30;
    world.put(handle, far, b"end").unwrap();
    assert_eq!(world.share.attr(node, None).unwrap().size, far + 3);
    assert_eq!(world.take(handle, far), Ok(b"end".to_vec()));
    assert_eq!(world.share.seek(handle, 0, Seek::Data).unwrap() & !0xffff, far & !0xffff);
    assert_eq!(world.share.seek(handle, 0, Seek::Hole), Ok(0));
    assert_eq!(world.share.seek(handle, far + 3, Seek::Data), Err(Errno::new(6)));
    assert!(fs::metadata(world.path("a")).unwrap().blocks() < 1024);
    done(world.share.allocate(handle, 0, 4096, Space::Allocate { keep_size: true })).unwrap();
    let (_, other) = world.create("b");
    assert_eq!(done(world.share.copy((handle, far), (other, 1), 100)), Ok(3));
    assert_eq!(world.take(other, 0), Ok(b"\0end".to_vec()));
}

#[test]
fn calls_that_take_long_end_between_two_parts_when_they_are_to_stop() {
    let mut world = World::new();
    let (node, handle) = world.create("a");
    world.put(handle, 5 << 30, b"end").unwrap();
    let (_, other) = world.create("b");
    let all = |world: &mut World| {
        [
            world.share.allocate(handle, 0, 5 << 30, Space::Punch),
            world.share.copy((handle, 0), (other, 0), 64 << 20),
        ]
    };
    let ended = all(&mut world).map(|work| work.unwrap().run(&AtomicBool::new(true)));
    assert_eq!(ended[0], Err(Errno::INTR), "it is done again from its beginning");
    assert!(ended[1].is_ok_and(|copied| 0 < copied && copied <= 8 << 20), "{ended:?}");
    assert_eq!(all(&mut world).map(done), [Ok(0), Ok(64 << 20)]);
    assert_eq!(world.share.attr(node, None).unwrap().size, (5 << 30) + 3);
    for work in [world.share.sync(handle, true), world.share.sync(handle, false), world.share.sync_all()] {
        assert_eq!(done(work), Ok(0));
    }
}

#[test]
fn appends_and_truncations_do_what_they_say() {
    let mut world = World::new();
    fs::write(world.path("a"), "0123").unwrap();
    let node = world.node("a");
    let append = world.share.open(node, WRITE).unwrap();
    world.put_at(append, WriteAt::End, b"45").unwrap();
    // A page of a mapping of the same open file has its place.
    world.put(append, 1, b"_").unwrap();
    assert_eq!(fs::read(world.path("a")).unwrap(), b"0_2345");
    let empty = world.share.open(node, OpenMode { truncate: true, ..WRITE }).unwrap();
    assert_eq!(fs::metadata(world.path("a")).unwrap().len(), 0);
    world.put(empty, 0, b"x").unwrap();
    let read = world.share.open(node, OpenMode { truncate: true, ..READ }).unwrap();
    assert_eq!((world.take(read, 0), fs::read(world.path("a")).unwrap()), (Ok(vec![]), vec![]));
    // A guest that collects writes reads, too.
    world.share.collects_writes = true;
    let other = world.share.open(node, OpenMode { read: false, ..WRITE }).unwrap();
    world.put(other, 0, b"y").unwrap();
    assert_eq!(world.take(other, 0), Ok(b"y".to_vec()));
}

#[test]
fn attributes_of_users_are_kept_and_others_refused() {
    let mut world = World::new();
    let (node, handle) = world.create("a");
    for open in [true, false] {
        world.share.set_xattr(node, b"user.x", b"value", SetXattr::Any).unwrap();
        let mut value = Vec::new();
        world.share.xattr(node, b"user.x", &mut value).unwrap();
        let mut names = Vec::new();
        world.share.xattrs(node, &mut names).unwrap();
        assert_eq!((value.as_slice(), names.as_slice()), (b"value".as_slice(), b"user.x\0".as_slice()));
        let exists = world.share.set_xattr(node, b"user.x", b"", SetXattr::Create);
        assert_eq!(exists, Err(Errno::EXIST));
        world.share.remove_xattr(node, b"user.x").unwrap();
        assert_eq!(world.share.xattr(node, b"user.x", &mut value), Err(Errno::NODATA));
        for other in
            ["security.selinux", "trusted.x", "system.posix_acl_access", "user.containers.override_stat"]
        {
            let set = world.share.set_xattr(node, other.as_bytes(), b"1", SetXattr::Any);
            assert_eq!(set, Err(Errno::NOTSUP), "{other}");
            assert_eq!(world.share.xattr(node, other.as_bytes(), &mut value), Err(Errno::NOTSUP));
        }
        assert_eq!(world.share.xattr(node, b"security.capability", &mut value), Err(Errno::NODATA));
        if open {
            world.share.release(handle);
        }
    }
    world.share.set_xattr(Node::ROOT, b"user.root", b"1", SetXattr::Any).unwrap();
}

#[test]
fn owners_and_rights_can_be_kept_in_attributes() {
    let mut world = World::with(|spec| spec.with_owner(ShareOwner::Xattr));
    let caller = Caller { uid: 1000, gid: 100 };
    let entry = world.share.make(Node::ROOT, name(b"d"), New::Folder(0o2750), caller).unwrap();
    assert_eq!((entry.attr.uid, entry.attr.gid, entry.attr.mode), (1000, 100, 0o042_750));
    let (entry, handle) = world.share.create(Node::ROOT, name(b"f"), 0o400, WRITE, caller).unwrap();
    assert_eq!((entry.attr.uid, entry.attr.mode), (1000, 0o100_400));
    let change = Change { mode: Some(0o4711), uid: Some(0), ..Change::default() };
    let attr = world.share.set_attr(entry.node, None, &change).unwrap();
    assert_eq!((attr.uid, attr.gid, attr.mode), (0, 100, 0o104_711));
    assert_eq!(fs::metadata(world.path("f")).unwrap().mode() & 0o7777, 0o711);
    // A write takes the rights away.
    let piece = [Segment { address: GuestAddress(0), len: 4 }];
    world.share.write(handle, WriteAt::Offset(0), &world.memory, &piece, true).unwrap();
    assert_eq!(world.share.attr(entry.node, None).unwrap().mode, 0o100_711);
    world.share.release(handle);
    assert_eq!(world.find(Node::ROOT, "f").unwrap().attr.gid, 100);
    let mut names = Vec::new();
    world.share.xattrs(entry.node, &mut names).unwrap();
    assert_eq!(names, b"");
}

#[test]
fn files_of_others_are_nobodys_and_their_rights_are_not_the_guests_roots() {
    let mut world = World::new();
    fs::write(world.path("a"), "").unwrap();
    fs::set_permissions(world.path("a"), fs::Permissions::from_mode(0o4755)).unwrap();
    let folder = world.share.folder.clone();
    let stat = attributes::stat_at(&folder.root, b"a").unwrap();
    let seen = |user, own, owner| {
        let spec = ShareSpec::new(world.path("")).with_owner(owner);
        let folder =
            SharedFolder { user: own, group: own, ..Arc::into_inner(open_alone(&spec).unwrap()).unwrap() };
        let mut stat = stat;
        (stat.stx_uid, stat.stx_gid) = (user, user);
        let attr = folder.attr(&stat, None);
        (attr.uid, attr.gid, attr.mode & 0o7777)
    };
    let map = ShareOwner::Map;
    assert_eq!(seen(0, 1000, map), (0, 0, 0o4755));
    assert_eq!(seen(1000, 1000, map), (0, 0, 0o755));
    assert_eq!(seen(33, 1000, map), (65534, 65534, 0o755));
    // A user of the guest in the place of its root.
    let other = ShareOwner::User { uid: 7, gid: 8 };
    assert_eq!(seen(1000, 1000, other), (7, 8, 0o755));
    assert_eq!(seen(0, 1000, other), (0, 0, 0o4755));
    assert_eq!(seen(33, 1000, other), (65534, 65534, 0o755));
    assert_eq!(seen(0, 0, other), (7, 8, 0o4755));
    assert!(world.find(Node::ROOT, "a").is_ok());
}

#[test]
fn saved_share_finds_its_files_again_and_what_is_gone_is_stale() {
    let mut world = World::new();
    let folder = world.folder(Node::ROOT, "d");
    fs::write(world.path("d/here"), "here").unwrap();
    fs::write(world.path("d/other"), "other").unwrap();
    let (here, other) = (world.node("d/here"), world.node("d/other"));
    let (gone, gone_handle) = world.create("gone");
    let [kept, swapped] = [here, other].map(|node| world.share.open(node, WRITE).unwrap());
    let listing = world.share.open_folder(folder).unwrap();
    let state = world.share.save().unwrap();
    fs::remove_file(world.path("gone")).unwrap();
    fs::write(world.path("new"), "another").unwrap();
    fs::rename(world.path("new"), world.path("d/other")).unwrap();
    world.share = world.share.anew();
    world.share.load(&state).unwrap();
    assert_eq!(world.share.save().unwrap(), state);
    assert_eq!(world.take(kept, 0), Ok(b"here".to_vec()));
    world.put(kept, 0, b"HE").unwrap();
    assert_eq!(fs::read(world.path("d/here")).unwrap(), b"HEre");
    assert_eq!((world.take(swapped, 0), world.take(gone_handle, 0)), (of(Errno::STALE), of(Errno::STALE)));
    assert_eq!(world.share.attr(gone, None), Err(Errno::STALE));
    assert_eq!(world.find(Node::ROOT, "d").unwrap().node, folder);
    assert!(world.find(folder, "other").unwrap().node != other);
    assert_eq!(virtio::fs::testing::list(&mut world.share, listing, 4096, false).len(), 4);
    [kept, swapped, gone_handle, listing].into_iter().for_each(|handle| world.share.release(handle));
    assert_eq!(world.share.handles.len(), 0);
}

#[test]
fn a_network_file_system_is_asked_at_close_what_became_of_writes() {
    let mut world = World::new();
    let (_, handle) = world.create("a");
    assert_eq!(world.share.closed(handle, 1).unwrap_err(), Errno::NOSYS, "the guest asks no more");
    let own = Arc::into_inner(open_alone(&ShareSpec::new(world.path(""))).unwrap()).unwrap();
    world.share = Share::new(Arc::new(SharedFolder { tells_at_close: true, ..own }), Arc::default());
    let (_, handle) = world.create("b");
    let work = world.share.closed(handle, 1).unwrap().unwrap();
    assert_eq!(work.run(&AtomicBool::new(false)), Ok(0));
    world.put(handle, 0, b"it is open still").unwrap();
}

#[test]
fn set_group_id_folders_of_the_host_stay_so_until_the_guest_takes_that_from_them() {
    const BIT: u32 = 0o2000;
    let mut world = World::new();
    let mode = |world: &World, path: &str| fs::metadata(world.path(path)).unwrap().mode() & 0o7777;
    let folder = world.folder(Node::ROOT, "d");
    fs::set_permissions(world.path("d"), fs::Permissions::from_mode(0o2775)).unwrap();
    let change = |mode| Change { mode: Some(mode), ..Change::default() };
    world.share.set_attr(folder, None, &change(0o2755)).unwrap();
    assert_eq!(mode(&world, "d"), 0o2755);
    // What is made in it, also with permissions that the umask takes.
    world.share.make(folder, name(b"in"), New::Folder(0o777), Caller::default()).unwrap();
    assert_eq!(mode(&world, "d/in") & BIT, BIT);
    world.share.set_attr(folder, None, &change(0o755)).unwrap();
    world.share.set_attr(folder, None, &change(0o2755)).unwrap();
    assert_eq!(mode(&world, "d"), 0o755, "the guest makes none");
}

#[test]
fn shares_of_a_machine_divide_what_they_know_as_they_need_it() {
    let mut world = World::new();
    world.limit_known(3, MOST_NAMES);
    let mut other = world.share.anew();
    for file in ["a", "b", "c"] {
        fs::write(world.path(file), "").unwrap();
    }
    world.node("a");
    let b = world.node("b");
    assert!(other.lookup(Node::ROOT, name(b"c")).is_ok());
    assert_eq!(other.lookup(Node::ROOT, name(b"a")).unwrap_err(), Errno::NFILE);
    world.share.forget(b, 1);
    assert!(other.lookup(Node::ROOT, name(b"a")).is_ok());
    drop(other);
    assert!(world.find(Node::ROOT, "b").is_ok() && world.find(Node::ROOT, "c").is_ok());
}

/// As git has its objects while it writes them.
#[test]
fn saved_share_has_files_open_that_their_owner_may_not_open_again() {
    let mut world = World::new();
    let _obeys = WithoutOverride::new();
    let made = world.share.create(Node::ROOT, name(b"object"), 0o444, WRITE, Caller::default());
    let (_, handle) = made.unwrap();
    world.put(handle, 0, b"first").unwrap();
    world.moved();
    world.put(handle, 5, b" and last").unwrap();
    assert_eq!(fs::read(world.path("object")).unwrap(), b"first and last");
    assert_eq!(fs::metadata(world.path("object")).unwrap().permissions().mode() & 0o7777, 0o444);
}

/// This thread obeys permissions, also as root, while it has this. The next test may be in the same thread.
struct WithoutOverride(CapabilitySets);

impl WithoutOverride {
    fn new() -> Self {
        let before = capabilities(None).unwrap();
        let mut own = before;
        own.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
        set_capabilities(None, own).unwrap();
        WithoutOverride(before)
    }
}

impl Drop for WithoutOverride {
    fn drop(&mut self) {
        set_capabilities(None, self.0).unwrap();
    }
}

#[test]
fn saved_share_that_is_damaged_is_refused_and_changes_nothing() {
    type Saved = Vec<(nodes::Slot, u32, nodes::File)>;
    let mut world = World::new();
    let folder = world.folder(Node::ROOT, "d");
    world.folder(folder, "e");
    let (_, handle) = world.create("a");
    let good = world.share.save().unwrap();
    // The table of nodes with a change: of `d`, `e` in it and `a`.
    let nodes = |change: &dyn Fn(&mut Saved)| {
        let mut nodes = table::parse(good["nodes"].as_str().unwrap()).unwrap();
        change(&mut nodes);
        let files = nodes.iter().map(|(slot, generation, file)| (*slot, *generation, file));
        serde_json::Value::from(table::text(files))
    };
    assert_eq!(nodes(&|_| ()), good["nodes"]);
    for (place, odd) in [
        ("/nodes", nodes(&|all| all[0].0 = 1)),
        ("/nodes", nodes(&|all| all[2].0 = u32::MAX)),
        ("/nodes", nodes(&|all| all[1].0 = all[0].0)),
        ("/nodes", nodes(&|all| all[0].2.parent = 4)),
        ("/nodes", nodes(&|all| all[0].2.parent = 0)),
        ("/nodes", nodes(&|all| all[0].2.name = b"..".as_slice().into())),
        ("/nodes", nodes(&|all| all[0].2.name = b"a/b".as_slice().into())),
        ("/nodes", nodes(&|all| all[0].2.name = b"".as_slice().into())),
        ("/nodes", serde_json::json!("=")),
        ("/handles/0/node", serde_json::json!(77)),
        ("/handles/0/slot", serde_json::json!(u32::MAX)),
        ("/nodes", serde_json::json!({})),
    ] {
        let mut state = good.clone();
        *state.pointer_mut(place).unwrap() = odd;
        assert!(world.share.load(&state).is_err(), "{place}");
        assert_eq!(world.share.save().unwrap(), good, "{place}");
    }
    // A circle is found when it is walked.
    let mut state = good.clone();
    state["nodes"] = nodes(&|all| all[0].2.parent = 3);
    world.share.load(&state).unwrap();
    assert_eq!(world.find(folder, "e").unwrap_err(), Errno::STALE);
    world.share.load(&good).unwrap();
    assert_eq!(world.put(handle, 0, b"x"), Ok(1));
    assert!(world.find(folder, "e").is_ok());
}

/// What is said of a share that cannot be used.
fn refusal(spec: &ShareSpec) -> String {
    open_alone(spec).unwrap_err().to_string()
}

fn asked_by(path: impl Into<PathBuf>, origin: ShareOrigin) -> ShareSpec {
    ShareSpec::new(path).asked_by(origin)
}

#[test]
fn folders_that_cannot_be_shared_are_told_with_who_asked_for_them_and_a_cure() {
    let folder = tempfile::tempdir().unwrap();
    let (missing, file, ring) =
        (folder.path().join("my none"), folder.path().join("file"), folder.path().join("ring"));
    fs::write(&file, "").unwrap();
    symlink(&ring, &ring).unwrap();
    let path = missing.display();
    for (origin, said) in [
        (ShareOrigin::Caller, format!("the shared folder {path}: ")),
        (ShareOrigin::Option("--volume"), format!("--volume {path}: ")),
        (
            ShareOrigin::File { path: "m.toml".into(), line: 3 },
            format!("m.toml, line 3: the shared folder {path}: "),
        ),
    ] {
        assert_eq!(
            refusal(&asked_by(&missing, origin)),
            format!("{said}there is no such folder; make it with `mkdir -p '{path}'`, or name another")
        );
    }
    for (origin, who) in [
        (ShareOrigin::Saved("s".into()), "of the saved machine s"),
        (ShareOrigin::Machine("vm0".into()), "of the machine vm0"),
        (ShareOrigin::Received, "of the machine that comes"),
    ] {
        for path in [&missing, &file, &ring] {
            let said = refusal(&asked_by(path, origin.clone()));
            assert!(said.contains(who) && said.contains("mount it "), "{said}");
            assert!(!said.contains("mkdir") && !said.contains("another"), "{said}");
        }
        let said = refusal(&asked_by(&file, origin.clone()));
        let is_here = !matches!(origin, ShareOrigin::Received);
        assert_eq!(
            said.contains(&format!("move that away, as with `mv {0} {0}.old`", file.display())),
            is_here,
            "{said}"
        );
    }
    let share = |path: &Path| refusal(&asked_by(path, ShareOrigin::Option("--share")));
    assert!(share(&file).ends_with("file: it is no folder; name a folder, such as the one that it is in"));
    let said = share(&file.join("in"));
    assert!(said.contains(&format!("{}, which is on the way to it, is no folder", file.display())), "{said}");
    let said = share(&ring);
    assert!(said.contains("lead round in a circle (`namei ") && !said.contains("os error"), "{said}");
}

#[test]
fn mounts_that_are_not_written_as_they_are_meant_are_told_how_to_write_them() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("d");
    fs::create_dir(&dir).unwrap();
    let dir = dir.display();
    let said = |text: &str| {
        let share: ShareSpec = text.replace("DIR", &dir.to_string()).parse().unwrap();
        let of = |share| refusal(&share).replace(&dir.to_string(), "DIR");
        let file = ShareOrigin::File { path: "m.toml".into(), line: 3 };
        (of(share.clone().asked_by(ShareOrigin::Option("--share"))), of(share.asked_by(file)))
    };
    for (text, flag, file) in [
        (
            "DIR:/x:/y",
            "a share has one mount, and `/x` and `/y` are two: write `DIR:/x` or `DIR:/y`",
            "write `path = \"DIR\"` and `mount = \"/x\"` or `path = \"DIR\"` and `mount = \"/y\"`",
        ),
        (
            "DIR:",
            "there is no mount behind the colon: write `DIR` without one, or as in `DIR:/mnt/work`",
            "write `path = \"DIR\"` without one",
        ),
        (
            "DIR:mnt",
            "`mnt` is no absolute path of the guest: write `DIR:/mnt`",
            "write `path = \"DIR\"` and `mount = \"/mnt\"`",
        ),
        (
            "DIR::/y",
            "there is a colon too many: write `DIR:/y`",
            "write `path = \"DIR\"` and `mount = \"/y\"`",
        ),
    ] {
        let (by_flag, by_file) = said(text);
        assert!(by_flag.ends_with(&format!("there is no such folder, and {flag}")), "{text}: {by_flag}");
        assert!(by_file.contains(file), "{text}: {by_file}");
    }
    // As a shell, a flag and a file read it.
    for (name, word, key) in [
        ("my dir", r"'DIR/my dir:/x'", r#""DIR/my dir""#),
        ("a,b", "DIR/a,,b:/x", r#""DIR/a,b""#),
        ("it\"s\u{1b}", r#"$'DIR/it"s\x1b:/x'"#, r#""DIR/it\"s\u001b""#),
    ] {
        fs::create_dir(Path::new(&dir.to_string()).join(name)).unwrap();
        let (by_flag, by_file) = said(&format!("DIR/{}:x", name.replace(',', ",,")));
        assert!(by_flag.ends_with(&format!("write `{word}`")), "{by_flag}");
        assert!(by_file.ends_with(&format!("write `path = {key}` and `mount = \"/x\"`")), "{by_file}");
    }
    // A table has the mount beside the path.
    let in_table = asked_by(format!("{dir}:/x"), ShareOrigin::File { path: "m.toml".into(), line: 3 });
    let text = refusal(&in_table);
    assert!(text.contains("a key of its own: write `path = ") && text.contains("`mount = \"/x\"`"), "{text}");
    // There is nothing in front of the colon, or it was there.
    assert!(said("none:").0.contains("mkdir -p none:"));
    for text in ["~/none", "~/none:/work"] {
        let (by_flag, by_file) = said(text);
        assert!(
            by_flag.ends_with("put a blank in place of `=` behind --share, or write $HOME for it"),
            "{by_flag}"
        );
        assert!(by_file.contains("mkdir -p"), "{by_file}");
    }
    let saved = refusal(&asked_by(format!("{dir}:"), ShareOrigin::Saved("s".into())));
    assert!(saved.contains("put it back"), "{saved}");
    assert!(refusal(&asked_by(format!("{dir}:"), ShareOrigin::Option("--root"))).contains("mkdir -p"));
}
