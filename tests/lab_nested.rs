//! A guest that has a guest of its own is saved while that runs, and goes on with it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/dose.rs"]
mod dose;

use std::time::{Duration, Instant};

use dose::dose;
use lab::{Cmd, Lab, LabConfig, Process, Status};
use tiny_guest::Guest;

/// Under two emulations, on a busy machine.
const SOON: Duration = Duration::from_secs(120);

/// How far the inner guest has counted.
fn counted(guest: &mut Process) -> u64 {
    guest.send("c").unwrap();
    guest.expect("counted=", SOON).unwrap();
    let said = guest.expect("\n", SOON).unwrap();
    u64::from_str_radix(said.trim(), 16).unwrap()
}

/// How far the inner guest has counted, once that is further than `before`: its processor has its turns when the host gives them.
fn has_counted_on(guest: &mut Process, before: u64) -> u64 {
    let began = Instant::now();
    loop {
        let now = counted(guest);
        assert!(now >= before, "it counts on and does not begin anew: {before} {now}");
        if now > before {
            return now;
        }
        assert!(began.elapsed() < SOON, "it runs: {before} {now}");
    }
}

/// A processor without SVM has no such guest: the lab's emulated one has SVM, and a host that boots Linux itself may have VMX.
#[test]
fn the_guest_of_a_guest_goes_on_where_it_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = Guest::Svm.write(folder.path()).unwrap();
    let config = LabConfig::default().file(env!("CARGO_BIN_EXE_minivmm"), "minivmm").file(&kernel, "svm.elf");
    let lab = Lab::start(&config).unwrap();
    let start = |line: &str| lab.spawn(&Cmd::sh(format!("exec ./minivmm {line}")).tty()).unwrap();
    let mut guest = start("--kernel svm.elf --name vm0 --mem 64 --net none");
    guest.expect("ready", SOON).unwrap();
    let mut last = counted(&mut guest);
    for round in 0..dose(5) {
        // It has something to lose, and not only what the first time it ran has left.
        last = has_counted_on(&mut guest, last);
        let out = lab.exec(&Cmd::sh(format!("./minivmm save vm0 saved{round}")).limit(SOON)).unwrap();
        assert_eq!(out.status, Status::Exited(0), "{}", out.err_text());
        guest.wait(SOON).unwrap();
        let saved = lab.sh(&format!("grep -c '\"nested\":\"' saved{round}/state")).unwrap();
        assert_eq!(saved.trim(), "1", "its state is there");
        guest = start(&format!("restore saved{round}"));
        last = has_counted_on(&mut guest, last);
    }
    guest.send("\u{4}").unwrap();
    guest.expect("done", SOON).unwrap();
    assert_eq!(guest.wait(SOON).unwrap().status, Status::Exited(0));
}
