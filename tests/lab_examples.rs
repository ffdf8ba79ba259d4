//! The example that runs a command in a guest, with a Debian kernel and an initrd that has nothing but busybox.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use lab::{Cmd, InitramfsSpec, Lab, LabConfig, Output, Status, initramfs, kernels};

/// Time for a guest to boot under two emulations, on a busy machine, and to do a little.
const LIMIT: Duration = Duration::from_secs(150);

fn command(line: &str) -> Output {
    static LAB: OnceLock<Lab> = OnceLock::new();
    let lab = LAB.get_or_init(|| {
        let kernel = kernels().unwrap().cloud;
        let initrd = initramfs(&kernel, &InitramfsSpec::default()).unwrap();
        let example = Path::new(env!("CARGO_BIN_EXE_minivmm")).with_file_name("examples/command");
        assert!(example.exists(), "this test runs an example: cargo build --examples (make lab does)");
        let config = LabConfig::default()
            .file(example, "command")
            .file(&kernel.bzimage, "vmlinuz")
            .file(initrd, "initrd");
        Lab::start(&config).unwrap()
    });
    lab.exec(&Cmd::new("./command").args(["vmlinuz", "initrd", line]).limit(LIMIT)).unwrap()
}

#[test]
fn output_is_the_commands_and_so_is_the_status() {
    let out = command("echo out; echo err >&2; seq 3000 | tail -n 1; printf %s \"it's  partly\"; exit 7");
    assert_eq!(out.status, Status::Exited(7), "{}{}", out.text(), out.err_text());
    assert_eq!((out.text().as_str(), out.err_text().as_str()), ("out\nerr\n3000\nit's  partly", ""));
    let out = command("seq 20000");
    let all: String = (1..=20_000).map(|number| format!("{number}\n")).collect();
    assert_eq!((out.status, out.text() == all), (Status::Exited(0), true), "{}", out.err_text());
    assert_eq!(command("no-such-command").status, Status::Exited(127));
}

#[test]
fn guest_that_ends_before_its_command_is_an_error_with_the_consoles_last_words() {
    let out = command("mount -t proc proc /proc; echo c >/proc/sysrq-trigger; sleep 1000");
    assert_eq!(out.status, Status::Exited(125), "{}{}", out.text(), out.err_text());
    let why = out.err_text();
    assert!(
        why.contains("before its machine ended; it said last:") && why.contains("Kernel panic - not syncing"),
        "{why}"
    );
}
