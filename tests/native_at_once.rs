//! Several verbs at once on one machine with the load guest: each does its work or says why not, the machine runs on as its user wants it,
//! its guest misses nothing, and each folder that was made is whole.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/bench.rs"]
mod bench;
#[path = "support/dose.rs"]
mod dose;
#[path = "support/host.rs"]
mod host;
#[path = "support/load.rs"]
mod load;
#[path = "support/vmm.rs"]
mod vmm;

use std::thread;

use bench::{Bench, finish};
use dose::dose;

/// What one verb may say of another one that is at work.
const IN_EACH_OTHERS_WAY: [&str; 4] = [
    "memory is being copied already",
    // By the revert, or by the one that lets it go on.
    "was resumed or reset before it was paused",
    "was resumed or reset while its memory was saved",
    "was reset while its memory was copied",
];

/// Runs a verb; false if another one was in its way.
#[track_caller]
fn try_verb(bench: &Bench, words: &[&str]) -> bool {
    let output = bench.verb(words).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let in_the_way = IN_EACH_OTHERS_WAY.iter().any(|why| said.contains(why));
    assert!(output.status.success() || output.status.code() == Some(1) && in_the_way, "{words:?}: {said}");
    output.status.success()
}

#[test]
fn verbs_at_once_do_their_work_or_say_why_not() {
    let bench = Bench::new();
    let machine = bench.start("", "at=1536\n");
    bench.does(&["snapshot", "vm0", "first"]);
    let rounds = dose(60);
    let saved = thread::scope(|scope| {
        let each = |of: &'static str| {
            let bench = &bench;
            scope.spawn(move || {
                let name = |round| format!("{of}{round}");
                // A revert ends whatever is being saved: so that there is something left, it comes seldom.
                let rounds = if of == "revert" { rounds.div_ceil(6) } else { rounds };
                (0..rounds)
                    .filter(|round| {
                        let name = name(*round);
                        match of {
                            "saved" => try_verb(
                                bench,
                                &["save", "vm0", &name, "--keep-running", "--with-disks", "--downtime", "0"],
                            ),
                            "snapshot" => {
                                let made = try_verb(bench, &["snapshot", "vm0", &name]);
                                assert_eq!(bench.snapshot(&name).exists(), made);
                                made && try_verb(bench, &["snapshot", "vm0", "--delete", &name])
                            }
                            "revert" => try_verb(bench, &["revert", "vm0", "first"]),
                            "stats" => try_verb(bench, &["stats", "vm0"]),
                            _ => try_verb(bench, &["info", "vm0"]),
                        }
                    })
                    .map(name)
                    .collect::<Vec<_>>()
            })
        };
        let threads = ["saved", "snapshot", "revert", "stats", "info"].map(each);
        let [saved, ..] = threads.map(|thread| thread.join().unwrap());
        saved
    });
    // On a busy host all of them may have met another verb.
    let last = ["save", "vm0", "last", "--keep-running", "--with-disks"];
    assert!(try_verb(&bench, &last));
    let saved: Vec<String> = ["last".to_owned()].into_iter().chain(saved).collect();
    assert_eq!(bench.host.json(&["info", "vm0", "--json"])["state"], "running");
    let now = vmm::count(&machine.stdout.bytes(), "at=");
    machine.expect("at=", now + 2);
    let (writes, _) = finish(machine);
    bench.assert_disk(&bench.image, &[], writes);
    for folder in saved.iter().take(3) {
        let restored = bench.restore(&[folder, "--disks", &format!("{folder}.disks")]);
        restored.says("at=");
        let (writes, _) = restored.finish();
        let top = bench.path(&format!("{folder}.disks/vda.qcow2"));
        bench.assert_disk(&top, &[bench.path(&format!("{folder}/vda.raw"))], writes);
    }
}

/// Whoever pauses it has it paused, whatever is saved meanwhile.
#[test]
fn a_machine_that_is_paused_while_it_is_saved_stays_paused() {
    let bench = Bench::new();
    let machine = bench.start("", "at=1536\n");
    let state = || bench.host.json(&["info", "vm0", "--json"])["state"].as_str().unwrap().to_owned();
    for round in 0..dose(100) {
        thread::scope(|scope| {
            let name = format!("s{round}");
            let verb = bench.verb(&["snapshot", "vm0", &name]).spawn().unwrap();
            let saving = scope.spawn(move || verb.wait_with_output().unwrap());
            thread::sleep(std::time::Duration::from_micros(round * 7919 % 15_000));
            bench.does(&["pause", "vm0"]);
            let output = saving.join().unwrap();
            assert!(output.status.success(), "{output:?}");
            assert_eq!(state(), "paused", "{round}");
            bench.does(&["resume", "vm0"]);
        });
    }
    let (writes, _) = finish(machine);
    bench.assert_disk(&bench.image, &[], writes);
}
