//! What runs in the guest, and where both sides write on the host too: this test program, started with `--ignored --exact` and the name
//! of one of these. Each says by its status whether a file system was one.
//!
//! `EXERCISE` is the path that it works on, `ROUNDS` how often, `ME` who it is among several.

use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, SeekFrom as Place};

fn place() -> PathBuf {
    env::var_os("EXERCISE").expect("the path to work on").into()
}

fn rounds() -> usize {
    env::var("ROUNDS").unwrap().parse().unwrap()
}

fn me() -> String {
    env::var("ME").unwrap()
}

/// The same numbers each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// A file, and what must be in it.
struct Model {
    path: PathBuf,
    file: File,
    bytes: Vec<u8>,
    chance: Chance,
    most: usize,
}

impl Model {
    fn new(path: PathBuf, most: usize) -> Self {
        let file = Self::open(&path);
        file.set_len(0).unwrap();
        Model { path, file, bytes: Vec::new(), chance: Chance(1), most }
    }

    fn open(path: &Path) -> File {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    /// Random writes, reads, truncations and holes, each compared with what a file in memory would have. `reopens`: it is closed and opened
    /// now and then.
    fn step(&mut self, round: usize, reopens: bool) {
        let (at, len) = (self.chance.below(self.most), self.chance.below(self.most / 13));
        match self.chance.below(10) {
            0..=3 => {
                let bytes: Vec<u8> = (0..len).map(|n| ((n + round) % 255) as u8 | 1).collect();
                self.file.write_all_at(&bytes, at as u64).unwrap();
                self.bytes.resize(self.bytes.len().max(at + len), 0);
                self.bytes[at..at + len].copy_from_slice(&bytes);
            }
            4..=6 => {
                let mut bytes = vec![0; len];
                let mut got = 0;
                while got < len {
                    match self.file.read_at(&mut bytes[got..], (at + got) as u64).unwrap() {
                        0 => break,
                        n => got += n,
                    }
                }
                let wanted = self.bytes.get(at..self.bytes.len().min(at + len)).unwrap_or_default();
                assert!(&bytes[..got] == wanted, "round {round}: {len} bytes at {at}");
            }
            7 => {
                self.file.set_len(at as u64).unwrap();
                self.bytes.resize(at, 0);
            }
            8 => {
                let end = self.file.seek(SeekFrom::End(0)).unwrap();
                assert_eq!(end, self.bytes.len() as u64, "round {round}");
                self.file.write_all(b"tail").unwrap();
                self.bytes.extend(b"tail");
            }
            _ => {
                if self.chance.below(4) == 0 {
                    self.file.sync_all().unwrap();
                }
                if reopens {
                    self.file = Self::open(&self.path);
                }
                let len = self.file.metadata().unwrap().len();
                assert_eq!(len, self.bytes.len() as u64, "round {round}");
            }
        }
    }

    fn ends(&self) {
        assert!(fs::read(&self.path).unwrap() == self.bytes, "at the end");
    }
}

#[test]
#[ignore = "runs in the guest"]
fn exerciser() {
    let mut model = Model::new(place(), 256 << 10);
    (0..rounds()).for_each(|round| model.step(round, true));
    model.ends();
}

/// Names of any bytes, places of holes, a file that has no name any more; `ROUNDS` files in a folder.
#[test]
#[ignore = "runs in the guest"]
fn corners() {
    let dir = place();
    fs::create_dir(&dir).unwrap();
    names_of_any_bytes(&dir);
    // Behind 4 GiB.
    let path = dir.join("big");
    let file = Model::open(&path);
    const AT: u64 = 5 << 30;
    file.write_all_at(b"x", AT).unwrap();
    file.set_len(AT + (1 << 20)).unwrap();
    let at = |place| rustix::fs::seek(&file, place).unwrap();
    assert_eq!((at(Place::Data(0)) >> 20, at(Place::Hole(0))), (AT >> 20, 0));
    let hole = at(Place::Hole(AT));
    assert!((AT + 1..=AT + (1 << 16)).contains(&hole), "{hole}");
    assert_eq!(rustix::fs::seek(&file, Place::Data(hole)), Err(rustix::io::Errno::NXIO));
    // Without a name: read, written, cut and asked for its length.
    fs::remove_file(&path).unwrap();
    file.set_len(10).unwrap();
    file.write_all_at(b"kept", 20).unwrap();
    let mut bytes = [1; 24];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..20] == [0; 20] && &bytes[20..] == b"kept" && file.metadata().unwrap().len() == 24);
    assert!(fs::metadata(&path).is_err());
    drop(file);
    many(&dir.join("many"), rounds());
    fs::remove_dir(&dir).unwrap();
}

fn names(dir: &Path) -> BTreeSet<OsString> {
    let mut count = 0;
    let names: BTreeSet<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).inspect(|_| count += 1).collect();
    assert_eq!(names.len(), count, "a name was listed twice");
    names
}

fn names_of_any_bytes(dir: &Path) {
    let dir = dir.join("names");
    fs::create_dir(&dir).unwrap();
    let bytes: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let mut all: BTreeSet<OsString> =
        bytes.chunks(11).map(|bytes| OsStr::from_bytes(bytes).to_owned()).collect();
    all.extend(["...", ". ", "-rf", "a\nb", &"l".repeat(255)].map(OsString::from));
    all.insert(OsStr::from_bytes(&[0xff; 255]).to_owned());
    for (n, name) in all.iter().enumerate() {
        // Links and folders among them.
        match n % 8 {
            0 => symlink(name, dir.join(name)).unwrap(),
            1 => fs::create_dir(dir.join(name)).unwrap(),
            _ => fs::write(dir.join(name), name.as_bytes()).unwrap(),
        }
    }
    assert!(names(&dir) == all);
    for (n, name) in all.iter().enumerate() {
        let path = dir.join(name);
        match n % 8 {
            0 => assert_eq!(fs::read_link(&path).unwrap(), Path::new(name)),
            1 => fs::remove_dir(&path).unwrap(),
            _ => assert_eq!(fs::read(&path).unwrap(), name.as_bytes()),
        }
        if n % 8 != 1 {
            fs::remove_file(&path).unwrap();
        }
    }
    let too_long = fs::write(dir.join("l".repeat(256)), "").unwrap_err();
    assert_eq!(too_long.raw_os_error(), Some(rustix::io::Errno::NAMETOOLONG.raw_os_error()));
    fs::remove_dir(&dir).unwrap();
}

fn many(dir: &Path, count: usize) {
    fs::create_dir(dir).unwrap();
    let all: BTreeSet<OsString> = (0..count).map(|n| format!("file-{n:06}").into()).collect();
    for name in &all {
        File::create_new(dir.join(name)).unwrap();
    }
    assert!(names(dir) == all);
    // Those that are still there when some go while it is read.
    let mut left = fs::read_dir(dir).unwrap();
    let mut seen: BTreeSet<OsString> = (&mut left).take(count / 2).map(|e| e.unwrap().file_name()).collect();
    let gone: BTreeSet<OsString> = seen.iter().take(count / 4).cloned().collect();
    for name in &gone {
        fs::remove_file(dir.join(name)).unwrap();
    }
    seen.extend(left.map(|entry| entry.unwrap().file_name()));
    assert!(seen.is_superset(&all.difference(&gone).cloned().collect()));
    for name in all.difference(&gone) {
        fs::remove_file(dir.join(name)).unwrap();
    }
    fs::remove_dir(dir).unwrap();
}

/// Works in a folder of its own, in which each call must do what it is asked for and nothing twice, until `STOP` is there: nothing
/// of it can be done again unnoticed. It counts its rounds in `PROGRESS`. With `MODE=data` it works only on a file that stays.
#[test]
#[ignore = "runs in the guest"]
fn worker() {
    let (dir, stop, progress) = (place(), env::var_os("STOP").unwrap(), env::var_os("PROGRESS").unwrap());
    let only_data = env::var("MODE").is_ok_and(|mode| mode == "data");
    fs::create_dir(&dir).unwrap();
    let mut log = OpenOptions::new().append(true).create_new(true).open(dir.join("log")).unwrap();
    let mut data = Model::new(dir.join("data"), 64 << 10);
    let mut wanted = String::new();
    let mut round = 0;
    while !Path::new(&stop).exists() {
        for n in 0..8 {
            data.step(round * 8 + n, !only_data);
        }
        if !only_data {
            let line = format!("{round}\n");
            log.write_all(line.as_bytes()).unwrap();
            wanted += &line;
            once(&dir, round);
        }
        round += 1;
        fs::write(&progress, round.to_string()).unwrap();
    }
    data.ends();
    assert_eq!(fs::read_to_string(dir.join("log")).unwrap(), wanted, "a line is lost or doubled");
    let left: BTreeSet<OsString> = ["log", "data"].map(OsString::from).into();
    assert_eq!(names(&dir), left);
}

/// Calls of which none can be made twice, and whose answers depend on each other.
fn once(dir: &Path, round: usize) {
    let [one, other, folder, moved] = ["one", "other", "folder", "moved"].map(|name| dir.join(name));
    let text = format!("text of round {round}");
    fs::create_dir(&folder).unwrap();
    let mut file = File::create_new(folder.join("file")).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    drop(file);
    fs::rename(&folder, &moved).unwrap();
    fs::hard_link(moved.join("file"), &one).unwrap();
    assert_eq!(names(dir).len(), 4);
    fs::remove_file(moved.join("file")).unwrap();
    fs::remove_dir(&moved).unwrap();
    assert_eq!(fs::read_to_string(&one).unwrap(), text);
    fs::rename(&one, &other).unwrap();
    symlink("other", &one).unwrap();
    assert_eq!(fs::read_to_string(&one).unwrap(), text);
    fs::remove_file(&one).unwrap();
    fs::remove_file(&other).unwrap();
}

/// One of several that do the same in one folder at the same time, each where it is: they count together under each kind of lock, each
/// takes what no other has taken, and all move one folder to and fro. Says what it took and how often it was told that something is stale.
#[test]
#[ignore = "runs in guests and on their host"]
#[allow(clippy::print_stdout, reason = "the test reads it")]
fn racer() {
    let (dir, me, rounds) = (place(), me(), rounds());
    let own = dir.join(format!("of-{me}"));
    fs::create_dir(&own).unwrap();
    let (mut taken, mut stale) = (0, 0);
    for round in 0..rounds {
        counts_by_an_exclusive_file(&dir);
        counts_by_a_lock(&dir, round);
        // All begin at the same end.
        let ticket = format!("{round}");
        match fs::rename(dir.join("tickets").join(&ticket), own.join(&ticket)) {
            Ok(()) => taken += 1,
            Err(error) => stale += is_stale(&error),
        }
        for (from, to) in [("here", "there"), ("there", "here")] {
            let (from, to) = (dir.join(from), dir.join(to));
            if let Err(error) = fs::rename(&from, &to) {
                stale += is_stale(&error);
            }
            match fs::read_to_string(to.join("file")) {
                Ok(text) => assert_eq!(text, "whole"),
                Err(error) => stale += is_stale(&error),
            }
        }
        // It replaces a file that others read.
        let new = own.join("new");
        fs::write(&new, format!("{me} ").repeat(1000)).unwrap();
        fs::rename(&new, dir.join("replaced")).unwrap();
        match fs::read_to_string(dir.join("replaced")) {
            Ok(text) => assert!(text.split(' ').collect::<BTreeSet<_>>().len() == 2, "it is torn"),
            Err(error) => stale += is_stale(&error),
        }
    }
    println!("taken={taken} stale={stale}.");
}

/// Whether it is that of a file which another one has moved away meanwhile. That it is gone is not, and others there must not be.
fn is_stale(error: &io::Error) -> u32 {
    let is = |errno: rustix::io::Errno| error.raw_os_error() == Some(errno.raw_os_error());
    assert!(error.kind() == ErrorKind::NotFound || is(rustix::io::Errno::STALE), "{error}");
    is(rustix::io::Errno::STALE).into()
}

fn counts_by_an_exclusive_file(dir: &Path) {
    let lock = dir.join("lock");
    while let Err(error) = File::create_new(&lock) {
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        thread::sleep(Duration::from_millis(2));
    }
    one_more(&dir.join("by-file"));
    fs::remove_file(&lock).unwrap();
}

fn counts_by_a_lock(dir: &Path, round: usize) {
    let path = dir.join("locked");
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    if round.is_multiple_of(2) {
        rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
        one_more(&dir.join("by-flock"));
    } else {
        rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
        one_more(&dir.join("by-fcntl"));
    }
}

fn one_more(path: &Path) {
    let count: u64 = fs::read_to_string(path).unwrap().parse().unwrap();
    fs::write(path, (count + 1).to_string()).unwrap();
}
