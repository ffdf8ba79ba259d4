//! The folder of a saved machine that was tampered with: values of its description and of its sections changed, missing, doubled or of
//! another kind, with lengths and checksums that are right again or not; and any bytes in its files.
//!
//! Promises: no panic and no hang; it is refused in a sentence, or is a machine up to where its VM would be made. Nothing outside of the
//! folder is read before that, and nothing in it is changed.
//!
//! Input: a byte of flags (below), then changes of 13 bytes each: what is changed (the description, or one of the sections) and 12 bytes
//! as `changed.rs` says. With [`RAW`] the rest are bytes that take the place of others: file, place (four bytes), byte.
#![no_main]

#[path = "changed.rs"]
mod changed;

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use changed::{CHANGE, change};
use libfuzzer_sys::fuzz_target;
use minivmm::SavedMachine;
use serde_json::Value;

const MANIFEST: &[u8] = include_bytes!("../saved_machine/machine.json");
const STATE: &[u8] = include_bytes!("../saved_machine/state");
const MEMORY: u64 = 4 << 20;

/// Lengths and checksums of the sections stay as they were.
const STALE: u8 = 1;
/// Any bytes.
const RAW: u8 = 2;
/// The state ends early.
const CUT: u8 = 4;
/// The memory has another length.
const OTHER_MEMORY: u8 = 8;
/// With a note of what is read ahead, which is the rest of the input.
const NOTE: u8 = 16;
/// The machine has a copy of its disk.
const COPY: u8 = 32;

/// The folder, in memory.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = PathBuf::from("/dev/shm").join(format!("minivmm-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder in /dev/shm");
    fs::write(folder.join("vda.raw"), [0; 512]).expect("a file");
    fs::write(folder.join("vda.qcow2"), b"QFI\xfb").expect("a file");
    folder
});

/// The sections as they were, by the description.
static SECTIONS: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let manifest: Value = serde_json::from_slice(MANIFEST).expect("JSON");
    let mut at = 0;
    let lengths = manifest["sections"].as_array().expect("sections").iter();
    let lengths = lengths.map(|section| section["length"].as_u64().expect("a length") as usize);
    lengths
        .map(|length| {
            at += length;
            serde_json::from_slice(&STATE[at - length..at]).expect("JSON")
        })
        .collect()
});

/// The two files with what the input changes in them.
fn changed(flags: u8, input: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut manifest: Value = serde_json::from_slice(MANIFEST).expect("JSON");
    if flags & COPY != 0 {
        manifest["disks"][0] = "vda.raw".into();
    }
    let mut sections = SECTIONS.clone();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for raw in input.chunks_exact(1 + CHANGE).take(16) {
        match usize::from(raw[0]) % (sections.len() + 1) {
            0 => first.push(&raw[1..]),
            section => second.push((section - 1, &raw[1..])),
        }
    }
    second.into_iter().for_each(|(section, raw)| change(&mut sections[section], raw));
    let texts: Vec<_> = sections.iter().map(|section| section.to_string().into_bytes()).collect();
    if flags & STALE == 0 {
        for (said, text) in manifest["sections"].as_array_mut().expect("sections").iter_mut().zip(&texts) {
            said["length"] = text.len().into();
            said["crc32"] = crc32fast::hash(text).into();
        }
    }
    first.into_iter().for_each(|raw| change(&mut manifest, raw));
    (manifest.to_string().into_bytes(), texts.concat())
}

/// The two files with other bytes in them.
fn overwritten(input: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut files = [MANIFEST.to_vec(), STATE.to_vec()];
    for raw in input.chunks_exact(6) {
        let file = &mut files[usize::from(raw[0]) % 2];
        let at = u32::from_le_bytes([raw[1], raw[2], raw[3], raw[4]]) as usize % file.len();
        file[at] = raw[5];
    }
    let [manifest, state] = files;
    (manifest, state)
}

fuzz_target!(|input: &[u8]| {
    let Some((flags, input)) = input.split_first() else { return };
    let begin = Instant::now();
    let (manifest, mut state) = if flags & RAW != 0 { overwritten(input) } else { changed(*flags, input) };
    if flags & CUT != 0 {
        state.truncate(state.len() * input.len() / 256);
    }
    let folder = &*FOLDER;
    let write = |name: &str, bytes: &[u8]| fs::write(folder.join(name), bytes).expect("room in /dev/shm");
    write("machine.json", &manifest);
    write("state", &state);
    let memory = File::create(folder.join("memory")).expect("a file");
    let other = flags & OTHER_MEMORY != 0;
    memory.set_len(if other { (input.len() as u64) << 12 } else { MEMORY }).expect("a length");
    if flags & NOTE != 0 {
        write("working-set", input);
    } else {
        // Of the input before.
        let _ = fs::remove_file(folder.join("working-set"));
    }
    match SavedMachine::open(folder) {
        Ok(mut saved) => {
            saved.prefetch();
            let settled = saved.spec().clone().settled();
            assert!(settled.is_ok() || settled.is_err_and(|error| is_sentence(&error.to_string())));
            // Its guest's processor is read there.
            drop(saved.into_builder());
        }
        Err(error) => assert!(is_sentence(&error.to_string()), "{error:?}"),
    }
    assert!(fs::read(folder.join("machine.json")).expect("a file") == manifest, "the folder was written");
    assert!(begin.elapsed() < Duration::from_secs(30), "something held it up");
});

/// Whether it can be shown on a terminal, in a line.
fn is_sentence(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_control) && text.len() < 64 << 10
}
