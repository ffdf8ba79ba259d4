//! A machine that is killed amid its guest's writes leaves images that QEMU finds sound but for clusters that leak, and that hold
//! what the guest was told is durable. The guest is that of `native_power.rs`; here the host's page cache stays.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "power/mod.rs"]
#[allow(dead_code, reason = "no power is cut here")]
mod power;
#[path = "support/vmm.rs"]
mod vmm;
#[path = "support/without.rs"]
#[allow(dead_code, reason = "no power is cut here")]
mod without;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use dose::dose;
use power::image::Format;
use power::machine::{WITNESS, machine};
use power::promise::Promise;
use power::recording::Folder;
use tiny_guest::plan::Chance;
use vmm::{LIMIT, Owned};

/// More than any guest comes to.
const ROUNDS: u64 = 1 << 40;

/// The last round that the guest has noted.
fn noted(folder: &Path) -> u64 {
    let witness = fs::read(folder.join(WITNESS)).unwrap();
    u64::from_le_bytes(witness[8..16].try_into().unwrap())
}

fn kill_one(format: Format, seed: u64) {
    // In memory: what counts here is not the medium.
    let at = tempfile::tempdir_in("/dev/shm").unwrap();
    let before = format.make();
    for (name, node) in &before.names {
        fs::write(at.path().join(str::from_utf8(name).unwrap()), &before.files[node]).unwrap();
    }
    fs::write(at.path().join(WITNESS), [0; 4096]).unwrap();
    let words = format!("seed={seed} rounds={ROUNDS} space=1 through=0");
    let (mut command, _kernel) = machine(at.path(), &format.disk(at.path()), &words);
    let mut machine = Owned(command.spawn().unwrap());
    let (wanted, began) = (1 + Chance(seed).below(60), Instant::now());
    let ended = loop {
        if let Some(status) = machine.try_wait().unwrap() {
            break Some(status);
        }
        if noted(at.path()) >= wanted {
            break None;
        }
        assert!(began.elapsed() < LIMIT, "seed {seed}, {format:?}: round {wanted} does not come");
        thread::sleep(Duration::from_micros(300));
    };
    machine.kill().unwrap();
    machine.wait().unwrap();
    let mut said = String::new();
    machine.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(ended, None, "seed {seed}, {format:?}: {said}");
    let mut folder = Folder::default();
    for entry in fs::read_dir(at.path()).unwrap().map(Result::unwrap) {
        folder.add(entry.file_name().to_str().unwrap(), fs::read(entry.path()).unwrap());
    }
    let acknowledged = noted(at.path());
    let promise = Promise::new(seed, acknowledged, true, format.on_base(), &[]);
    let held = format.read(&folder).and_then(|disk| promise.check(&disk));
    held.unwrap_or_else(|error| {
        panic!("seed {seed}, {format:?}, killed after round {acknowledged}: {error}")
    });
}

#[test]
fn a_killed_machine_leaves_sound_images_with_what_was_flushed() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed: u64 = now.subsec_nanos().into();
    for number in 0..dose(10) {
        for format in [
            Format::Qcow2(64 << 10),
            Format::Qcow2(512),
            Format::Overlay(64 << 10),
            Format::Chain(4096),
            Format::Made,
        ] {
            kill_one(format, seed + number);
        }
    }
}
