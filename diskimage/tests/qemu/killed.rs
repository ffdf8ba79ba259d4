//! A process that writes, flushes and commits is killed at any point: what it flushed is there, nothing else is, and the images are
//! sound but for clusters that leak.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use diskimage::{CreateOptions, Format, Image, NoProgress, commit};

use crate::support::{Folder, Random, create, dose, image, open, run, text};

const SECTOR: u64 = 512;
const SECTORS: u64 = 4096;
/// Names the folder to the process that is to be killed, and the number of its first write.
const FOLDER: &str = "MINIVMM_TEST_KILLED";

struct Files {
    base: PathBuf,
    top: PathBuf,
    log: PathBuf,
}

impl Files {
    fn of(folder: &Path) -> Files {
        let path = |name: &str| folder.join(name);
        Files { base: path("base.qcow2"), top: path("top.qcow2"), log: path("log") }
    }
}

/// Each write has a number, which stands in all of its sectors; zeroes are number 0.
fn write_until_killed(folder: &Path, mut number: u64) {
    let files = Files::of(folder);
    let mut random = Random::new(number);
    let mut log = File::options().append(true).open(&files.log).unwrap();
    // One call a line: a line is there whole or not.
    let mut say = |line: String| log.write_all(format!("{line}\n").as_bytes()).unwrap();
    loop {
        let mut top = image(&files.top, Format::Qcow2, true);
        for _ in 0..random.below(12) {
            let start = random.below(SECTORS);
            let count = (random.below(300) + 1).min(SECTORS - start);
            let (offset, length) = (start * SECTOR, count * SECTOR);
            let zeroes = random.below(4) == 0;
            let written = if zeroes { 0 } else { number };
            // Said before it is done: from here on it may be there.
            say(format!("write {written} {start} {count}"));
            match random.below(2) {
                0 if zeroes => top.discard(offset, length).unwrap(),
                _ if zeroes => top.write_zeroes(offset, length).unwrap(),
                _ => top.write_at(&number.to_le_bytes().repeat((length / 8) as usize), offset).unwrap(),
            }
            number += 1;
            if random.below(3) == 0 {
                top.flush().unwrap();
                say("flushed".into());
            }
        }
        drop(top);
        if random.below(3) == 0 {
            let top = Image::alone(open(&files.top, true), &files.top, Format::Qcow2, true).unwrap();
            commit(top, &image(&files.base, Format::Qcow2, true), &mut NoProgress).unwrap();
            say("committed".into());
        }
    }
}

/// What each sector may hold.
struct Allowed(Vec<Vec<u64>>);

impl Allowed {
    /// By the log: what was flushed, and all that was written since.
    fn follow(&mut self, log: &Path) -> u64 {
        let mut highest = 0;
        let mut since: Vec<(u64, u64, u64)> = Vec::new();
        for line in BufReader::new(File::open(log).unwrap()).lines().map(Result::unwrap) {
            let words: Vec<&str> = line.split(' ').collect();
            if words[0] == "write" {
                let [number, start, count] = [1, 2, 3].map(|at| words[at].parse::<u64>().unwrap());
                highest = highest.max(number);
                since.push((number, start, count));
            } else {
                for (number, start, count) in since.drain(..) {
                    self.0[start as usize..(start + count) as usize].fill(vec![number]);
                }
            }
        }
        for (number, start, count) in since {
            self.0[start as usize..(start + count) as usize]
                .iter_mut()
                .for_each(|sector| sector.push(number));
        }
        highest
    }

    /// What is there now is what a next round begins with.
    fn compare(&mut self, top: &Path, why: &str) {
        let disk = image(top, Format::Qcow2, false);
        let mut bytes = [0; SECTOR as usize];
        for (index, allowed) in self.0.iter_mut().enumerate() {
            disk.read_at(&mut bytes, index as u64 * SECTOR).unwrap();
            let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert!(bytes.chunks(8).all(|part| part == &bytes[..8]), "{why}: sector {index} is torn");
            assert!(
                allowed.contains(&number),
                "{why}: sector {index} holds {number}, not one of {allowed:?}"
            );
            *allowed = vec![number];
        }
    }
}

fn lines(log: &Path) -> u64 {
    let bytes = std::fs::read(log).unwrap();
    bytes.iter().fold(0, |lines, byte| lines + u64::from(*byte == b'\n'))
}

#[test]
fn killed_writer_leaves_what_it_flushed() {
    if let Ok(said) = std::env::var(FOLDER) {
        let (number, folder) = said.split_once(' ').unwrap();
        return write_until_killed(Path::new(folder), number.parse().unwrap());
    }
    let folder = Folder::new();
    let files = Files::of(&folder.path(""));
    let options = CreateOptions::new(Format::Qcow2, SECTORS * SECTOR).cluster_size(4096);
    diskimage::create(&create(&files.base), &files.base, &options).unwrap();
    let options = options.backing("base.qcow2", Format::Qcow2);
    diskimage::create(&create(&files.top), &files.top, &options).unwrap();
    let (mut allowed, mut number, mut random) = (Allowed(vec![vec![0]; SECTORS as usize]), 1, Random::new(3));
    for round in 0..dose(30) {
        File::create(&files.log).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["killed::killed_writer_leaves_what_it_flushed", "--exact", "--nocapture"])
            .env(FOLDER, format!("{number} {}", folder.path("").display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (wanted, begun) = (random.below(150) + 1, Instant::now());
        while lines(&files.log) < wanted {
            assert_eq!(child.try_wait().unwrap(), None, "the writer ended by itself");
            assert!(begun.elapsed() < Duration::from_secs(120), "the writer is stuck");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let why = format!("round {round}, killed after {} lines", lines(&files.log));
        number = allowed.follow(&files.log).max(number) + 1;
        for path in [&files.base, &files.top] {
            let output = run("qemu-img", &["check", "-f", "qcow2", text(path)]);
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(matches!(output.status.code(), Some(0 | 3)), "{why}: {path:?}: {said}");
        }
        allowed.compare(&files.top, &why);
    }
}
