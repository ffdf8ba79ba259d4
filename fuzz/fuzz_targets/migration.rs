//! Any bytes as a machine that migrates here, framed rightly or not: it is refused in a sentence, or has come up to where it would be
//! made.
//!
//! Input: a byte of flags, then what is sent one behind the other: a byte that says what (below) and what that needs. [`RAW`]: all
//! else is the stream as it is.
#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const RAW: u8 = 1;
/// The stream does not begin with what it should.
const WITHOUT_BEGIN: u8 = 2;
/// Frames of the stream (`src/migration/protocol.rs`).
const MESSAGE: u32 = 1;
const PAGES: u32 = 2;
const ZEROS: u32 = 3;
const DISK_BYTES: u32 = 5;
const DISK_ZEROS: u32 = 6;
const MEMORY: u64 = 4 << 20;
/// Bytes of the disk that comes with the machine.
const DISK: u64 = 1 << 24;

/// A machine that any host of this vendor takes.
static MACHINE: LazyLock<Value> = LazyLock::new(|| {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let vendor = cpuinfo.lines().find_map(|line| line.strip_prefix("vendor_id")?.split(": ").nth(1));
    json!({ "machine": {
        "spec": { "version": 1, "kernel": "/srv/vmlinuz", "mem": MEMORY >> 20, "net": [{ "none": {} }], "disk": [{ "path": "/srv/vda" }] },
        "memory": MEMORY,
        "disks": [DISK],
        "cpu": {
            "vendor": vendor.unwrap_or("GenuineIntel"), "family": 6, "model": 1, "stepping": 1,
            "physical-address-bits": 36, "linear-address-bits": 48, "tsc-khz": null, "features": {}, "xsave": {},
        },
    } })
});

fn frame(kind: u32, body: &[u8], damage: u8) -> Vec<u8> {
    let len = (body.len() as u64).to_le_bytes();
    let sum = crc32fast::hash(&[&kind.to_le_bytes()[..], &len, body].concat());
    [&kind.to_le_bytes()[..], &(sum ^ u32::from(damage)).to_le_bytes(), &len, body].concat()
}

fn message(message: &Value) -> Vec<u8> {
    frame(MESSAGE, message.to_string().as_bytes(), 0)
}

/// So many bytes of the input, as a number.
fn number(input: &mut &[u8], bytes: usize) -> u64 {
    let (taken, rest) = input.split_at(bytes.min(input.len()));
    *input = rest;
    taken.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn taken<'a>(input: &mut &'a [u8]) -> &'a [u8] {
    let len = number(input, 1) as usize;
    let (taken, rest) = input.split_at(len.min(input.len()));
    *input = rest;
    taken
}

/// What the input says, as a stream.
fn stream(flags: u8, mut input: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    if flags & WITHOUT_BEGIN == 0 {
        stream.extend(message(&json!({ "hello": { "protocol": 2, "program": "fuzz" } })));
        stream.extend(message(&MACHINE));
    }
    while !input.is_empty() {
        let next = match number(&mut input, 1) % 11 {
            0 => frame(PAGES, &[&(number(&mut input, 3) << 4).to_le_bytes(), taken(&mut input)].concat(), 0),
            1 => {
                let (offset, len) = (number(&mut input, 3), number(&mut input, 2));
                frame(ZEROS, &[offset.to_le_bytes(), len.to_le_bytes()].concat(), 0)
            }
            2 => {
                let (offset, len) = (number(&mut input, 8), number(&mut input, 8));
                frame(ZEROS, &[offset.to_le_bytes(), len.to_le_bytes()].concat(), 0)
            }
            3 => {
                let id = String::from_utf8_lossy(taken(&mut input));
                let data = serde_json::from_slice(taken(&mut input)).unwrap_or(json!([1, 2]));
                let (kind, version) = (taken(&mut input).len().to_string(), number(&mut input, 2));
                let state = json!({ "kind": kind, "version": version, "data": data });
                message(&json!({ "section": { "id": id, "state": state } }))
            }
            4 => {
                let (version, panic_timeout) = (number(&mut input, 1), number(&mut input, 8) as i64);
                message(
                    &json!({ "complete": { "version": version, "panic_timeout": panic_timeout, "marks": [] } }),
                )
            }
            5 => frame(MESSAGE, taken(&mut input), 0),
            6 => {
                let mut machine = MACHINE.clone();
                let spec = machine.pointer_mut("/machine/spec").expect("a spec");
                *spec = serde_json::from_slice(taken(&mut input)).unwrap_or(spec.take());
                message(&machine)
            }
            8 => {
                let (disk, offset) = (number(&mut input, 1) as u32 % 3, number(&mut input, 3));
                let place = [&disk.to_le_bytes()[..], &offset.to_le_bytes()].concat();
                frame(DISK_BYTES, &[&place[..], taken(&mut input)].concat(), 0)
            }
            9 => {
                let (disk, offset) = (number(&mut input, 1) as u32 % 3, number(&mut input, 8));
                let place = [&disk.to_le_bytes()[..], &offset.to_le_bytes()].concat();
                frame(DISK_ZEROS, &[&place[..], &number(&mut input, 8).to_le_bytes()].concat(), 0)
            }
            7 => message(&["go", "alive", "ready", "accepted"][number(&mut input, 1) as usize % 4].into()),
            _ => {
                let (kind, damage) = (number(&mut input, 1) as u32, number(&mut input, 1) as u8);
                frame(kind, taken(&mut input), damage)
            }
        };
        stream.extend(next);
    }
    stream
}

fuzz_target!(|input: &[u8]| {
    let Some((flags, input)) = input.split_first() else { return };
    let begin = Instant::now();
    let stream = if flags & RAW != 0 { input.to_vec() } else { stream(*flags, input) };
    if let Err(sentence) = minivmm::receive_bytes(&stream) {
        assert!(!sentence.is_empty() && !sentence.contains(char::is_control), "{sentence:?}");
    }
    assert!(begin.elapsed() < Duration::from_secs(30), "something held it up");
});
