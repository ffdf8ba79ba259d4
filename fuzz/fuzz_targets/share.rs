//! A guest that speaks FUSE to a folder of the host, and a host that changes the folder meanwhile: names that lead elsewhere, numbers of
//! nodes and open files that it has, had or makes up, restores in between.
//!
//! Promises: no panic, no hang; a file that lies beside the folder is not read, changed or linked to, whatever link or `..` leads to it;
//! what was open is closed when the guest begins anew.
//!
//! Input: steps of 8 bytes: what, two numbers that choose from nodes and open files, names, and two words.
#![no_main]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use devices::component::Component;
use libfuzzer_sys::fuzz_target;
use virtio::fs::Fs;
use virtio::fs::testing::{init, request};
use virtio::poll::Epoll;
use virtio::testing::Guest;

const SECRET: &[u8] = b"what lies beside the folder";
const NAMES: [&[u8]; 16] = [
    b"f\0",
    b"sub\0",
    b"g\0",
    b"link\0",
    b"up\0",
    b"absolute\0",
    b"new\0",
    b"other\0",
    b"..\0",
    b".\0",
    b"a/b\0",
    b"/\0",
    b"\0",
    b"no end",
    b"../secret\0",
    &[b'n'; 300],
];
/// Ways to the secret that the host puts in the place of what was there.
const WAYS: [&str; 4] = ["../secret", "..", "../elsewhere", "../../secret"];
/// Bits of FUSE_INIT: all that a guest may ask for.
const ALL: u32 = u32::MAX;
const READS: [u32; 3] = [15, 28, 44];

/// A folder, and a secret beside it.
struct Host {
    base: PathBuf,
}

impl Host {
    fn new() -> Self {
        let base = std::env::temp_dir().join(format!("minivmm-fuzz-share-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        fs::create_dir_all(base.join("dir/sub")).expect("a temporary folder");
        fs::create_dir(base.join("elsewhere")).expect("a folder");
        fs::write(base.join("secret"), SECRET).expect("a file");
        let old = fs::FileTimes::new().set_accessed(std::time::UNIX_EPOCH + Duration::from_secs(1));
        let secret = fs::File::options().write(true).open(base.join("secret"));
        secret.and_then(|file| file.set_times(old)).expect("a file of ours");
        fs::write(base.join("dir/f"), b"in the folder").expect("a file");
        fs::write(base.join("dir/sub/g"), b"deeper").expect("a file");
        let secret = base.join("secret");
        let absolute = secret.to_str().expect("a path of this program's");
        for (name, to) in [("link", "../secret"), ("up", ".."), ("absolute", absolute)] {
            symlink(to, base.join("dir").join(name)).expect("a link");
        }
        Host { base }
    }

    fn dir(&self) -> PathBuf {
        self.base.join("dir")
    }

    /// What the host does to the folder while the guest uses it.
    fn acts(&self, what: u8, way: u8) {
        let dir = self.dir();
        let way = WAYS[usize::from(way) % WAYS.len()];
        let put = |path: &Path| {
            let _ = fs::rename(path, dir.join("away"));
            let _ = symlink(way, path);
        };
        match what % 6 {
            0 => put(&dir.join("sub")),
            1 => put(&dir.join("f")),
            2 => put(&dir.join("sub/g")),
            3 => drop(fs::rename(dir.join("away"), dir.join("sub"))),
            4 => drop(fs::rename(dir.join("sub"), dir.join("new"))),
            _ => drop(fs::remove_file(dir.join("f"))),
        }
    }

    fn see(&self) -> (u64, i64, i64, i64, u32, u64) {
        let of = fs::metadata(self.base.join("secret")).expect("the secret");
        (of.len(), of.atime(), of.mtime(), of.ctime(), of.mode(), of.nlink())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.base);
    }
}

/// What the guest knows.
struct Known {
    nodes: Vec<u64>,
    handles: Vec<u64>,
}

impl Known {
    fn one(of: &[u64], n: u8) -> u64 {
        // Now and then one that was made up.
        if n % 16 == 15 { u64::from(n) << (n % 60) } else { of[usize::from(n) % of.len()] }
    }

    /// Opcode and fields of a request.
    fn request(&self, [what, one, two, names, a, b, c, d]: [u8; 8]) -> (u32, u64, Vec<u8>) {
        let node = Self::one(&self.nodes, one);
        let other = Self::one(&self.nodes, two);
        let handle = Self::one(&self.handles, two);
        let (first, second) = (NAMES[usize::from(names & 15)], NAMES[usize::from(names >> 4)]);
        let word = u32::from_le_bytes([a, b, c, d]);
        // An offset is small, or beyond all files, and a length is small: what is between would fill a disk.
        let near = |n: u8| u64::from(n) << (n % 12);
        let offset = if a > 250 { u64::MAX << (a - 251) >> 1 } else { near(a) };
        let len = near(b);
        let opcode = [
            1, 1, 1, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 14, 15, 16, 17, 18, 20, 21, 22, 23, 24, 25, 27,
            28, 29, 31, 32, 35, 42, 43, 44, 45, 46, 47, 50, 52, 2,
        ][usize::from(what) % 40];
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let longs = |longs: &[u64]| longs.iter().flat_map(|long| long.to_le_bytes()).collect::<Vec<u8>>();
        let body = match opcode {
            1 | 10 | 11 => first.to_vec(),
            2 => longs(&[u64::from(a)]),
            3 | 52 => [words(&[u32::from(a & 1), 0]), longs(&[handle, 0])].concat(),
            4 => [
                words(&[word >> 16, 0]),
                longs(&[handle, len, 0, u64::from(word), 0, 0]),
                words(&[0, 0, 0, word & 0o7777, 0, word >> 20, 0, 0]),
            ]
            .concat(),
            6 => [first, second].concat(),
            8 => [words(&[word & 0o170_777, word, 0, 0]), first.to_vec()].concat(),
            9 => [words(&[word & 0o7777, 0]), first.to_vec()].concat(),
            12 => [longs(&[other]), first.to_vec(), second.to_vec()].concat(),
            45 => [longs(&[other]), words(&[word % 5, 0]), first.to_vec(), second.to_vec()].concat(),
            13 => [longs(&[other]), first.to_vec()].concat(),
            14 | 27 => words(&[word & 0o37_777_777, 0]),
            15 | 28 | 44 => {
                [longs(&[handle, offset]), words(&[u32::from(c) << 4, 0, 0, 0]), longs(&[0])].concat()
            }
            16 => [longs(&[handle, offset]), words(&[64, u32::from(d), 0, 0]), longs(&[0]), vec![b'w'; 64]]
                .concat(),
            18 | 29 => [longs(&[handle]), words(&[0, 0]), longs(&[u64::from(b)])].concat(),
            20 => [longs(&[handle]), words(&[u32::from(a), 0])].concat(),
            21 => [words(&[4, u32::from(a % 4)]), b"user.x\0".to_vec(), b"four".to_vec()].concat(),
            22 => [words(&[u32::from(b), 0]), b"user.x\0".to_vec()].concat(),
            23 => words(&[u32::from(b), 0]),
            24 => b"user.x\0".to_vec(),
            25 => longs(&[handle, 0, u64::from(b)]),
            31 | 32 => [
                longs(&[handle, u64::from(c % 4), offset, len]),
                words(&[u32::from(d % 3), 0, u32::from(a & 1), 0]),
            ]
            .concat(),
            35 => [words(&[word & 0o37_777_777, word & 0o7777, 0, 0]), first.to_vec()].concat(),
            42 => [words(&[2, 0]), longs(&[node, u64::from(a), other, u64::from(b)])].concat(),
            43 => [longs(&[handle, offset, len]), words(&[u32::from(c % 24), 0])].concat(),
            46 => [longs(&[handle, offset]), words(&[u32::from(c % 6), 0])].concat(),
            47 => longs(&[handle, offset, other, Self::one(&self.handles, d), len, u64::from(c), 0]),
            _ => Vec::new(),
        };
        (opcode, node, body)
    }

    /// Takes up what an answer tells.
    fn hear(&mut self, opcode: u32, answer: &[u8]) {
        let long = |at: usize| {
            answer.get(at..at + 8).map_or(0, |raw| u64::from_le_bytes(raw.try_into().expect("8 bytes")))
        };
        let is_error = answer.get(4..8).is_none_or(|error| error != [0; 4]);
        if is_error {
            return;
        }
        if [1, 6, 8, 9, 13, 35].contains(&opcode) {
            self.nodes.push(long(16));
        }
        match opcode {
            14 | 27 => self.handles.push(long(16)),
            35 => self.handles.push(long(16 + 128)),
            _ => {}
        }
    }
}

/// Descriptors of what lies in `folder`, or did.
fn open_in(folder: &Path) -> usize {
    let links = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    links.filter(|link| fs::read_link(link.path()).is_ok_and(|to| to.starts_with(folder))).count()
}

fuzz_target!(|input: &[u8]| {
    let begin = Instant::now();
    let host = Host::new();
    let before = host.see();
    let options = [",cache=auto", ",cache=always", ",cache=never", ",owner=xattr", ",locks=host", ",ro"]
        [input.len() % 6];
    let share = format!("{}{options}", host.dir().display()).parse().expect("a share");
    let files = minivmm::share_for_fuzzer(&share).expect("the folder");
    let mut guest = Guest::new(Box::new(Fs::new("fs0", "work", files)), Box::new(Epoll::new));
    guest.start(u64::MAX, 16);
    let begin_session = |guest: &mut Guest<Epoll>| {
        assert_eq!(guest.request(1, &[&request(26, 1, 0, &init(38, ALL))], &[80]).0.len, 80, "FUSE_INIT");
    };
    begin_session(&mut guest);
    let open = open_in(&host.base);
    let mut known = Known { nodes: vec![1], handles: vec![u64::MAX] };
    for (n, raw) in input.chunks_exact(8).take(128).enumerate() {
        let step: [u8; 8] = raw.try_into().expect("8 bytes");
        match step[0] {
            240.. => host.acts(step[1], step[2]),
            239 => {
                guest.function().quiesce();
                let state = guest.function().save().expect("its thread lives");
                guest.function().load(&state).expect("its own state");
                guest.function().go();
            }
            _ => {
                let (opcode, node, body) = known.request(step);
                let room = if READS.contains(&opcode) { 4096 } else { 512 };
                let asked = request(opcode, n as u64 + 2, node, &body);
                let (used, bytes) = guest.request(1, &[&asked], &[room]);
                let answer = &bytes[0][..room.min(used.len as usize)];
                assert!(
                    !answer.windows(SECRET.len()).any(|part| part == SECRET),
                    "{opcode} reads what lies beside the folder"
                );
                known.hear(opcode, answer);
            }
        }
    }
    assert_eq!(host.see(), before, "what lies beside the folder was used");
    begin_session(&mut guest);
    assert!(open_in(&host.base) <= open, "files stay open");
    assert!(begin.elapsed() < Duration::from_secs(30), "something held the device up");
});
