//! The lab without nesting: the same agent as a process of this host. What it runs here needs no /dev/kvm.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use lab::{Cmd, Lab, LabConfig, LabKind, Status};
use std::io::ErrorKind::NotFound;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

fn direct(config: &LabConfig) -> Lab {
    Lab::start_kind(LabKind::Direct, config).unwrap()
}

#[test]
fn files_are_in_the_working_directory_until_the_lab_ends() {
    let lab = direct(&LabConfig::default().file("/bin/true", "bin/yes"));
    let directory = PathBuf::from(lab.sh("./bin/yes && pwd").unwrap().trim());
    assert!(directory.is_absolute() && directory.exists());
    let mut sleep = lab.spawn(&Cmd::sh("echo $$; exec sleep 1000")).unwrap();
    let pid = sleep.expect("\n", SOON).unwrap();
    drop(lab);
    assert!(!directory.exists());
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "the process outlived its lab");
}

#[test]
fn directory_of_a_lab_that_was_killed_is_removed_by_the_next() {
    let left = lab::cache_dir().unwrap().join("direct/lab.new-4194305-0");
    // Another test's lab may clean up just now, too.
    while std::fs::create_dir_all(left.join("sub")).is_err_and(|error| error.kind() == NotFound) {}
    drop(direct(&LabConfig::default()));
    assert!(!left.exists());
}

#[test]
fn a_megabyte_goes_both_ways_unchanged() {
    let bytes: Vec<u8> = (0..1_048_576_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let out = direct(&LabConfig::default()).exec(&Cmd::new("cat").stdin(bytes.clone())).unwrap();
    assert!(out.stdout == bytes && out.status == Status::Exited(0));
}

#[test]
fn lab_run_on_a_terminal_is_raw_while_it_lasts_and_restored_after() {
    let lab = direct(&LabConfig::default());
    // Short sleeps: a signal that comes between two commands is seen before the next one.
    // `noflsh`: what is written while Ctrl-C is still being handled would be thrown away with what was written before it.
    let inner = "trap 'echo inner caught it; exit 9' INT; stty noflsh; tty; while :; do sleep 0.1; done";
    let script = format!(
        "before=$(stty -g); MINIVMM_LAB=direct {} run -- sh -c \"{inner}\"
         echo status-$?; test \"$before\" = \"$(stty -g)\" && echo restored",
        env!("CARGO_BIN_EXE_lab")
    );
    let mut outer = lab.spawn(&Cmd::sh(script).tty()).unwrap();
    outer.expect("/dev/pts/", SOON).unwrap();
    // On a terminal that is not raw this would end `lab run` itself.
    outer.send("\x03").unwrap();
    outer.expect("inner caught it", SOON).unwrap();
    outer.expect("status-9", SOON).unwrap();
    outer.expect("restored", SOON).unwrap();
    assert_eq!(outer.wait(SOON).unwrap().status, Status::Exited(0));
}
