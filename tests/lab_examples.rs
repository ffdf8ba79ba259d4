//! The examples, with Debian's kernel and the initrd that Debian made for it.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/dose.rs"]
mod dose;

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use lab::{Cmd, InitramfsSpec, Lab, LabConfig, Output, Status, debian, initramfs, kernels};

/// Time for a guest to boot under two emulations, on a busy machine, and to do a little.
const LIMIT: Duration = Duration::from_secs(300);

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let (debian, cloud) = (debian().unwrap(), kernels().unwrap().cloud);
        let files = vec![(cloud.busybox().unwrap(), "bin/sh".to_owned())];
        let small = initramfs(&cloud, &InitramfsSpec { files, ..InitramfsSpec::default() }).unwrap();
        let mut config = LabConfig::default();
        for name in ["command", "pool", "save"] {
            let example = Path::new(env!("CARGO_BIN_EXE_minivmm")).with_file_name("examples").join(name);
            assert!(example.exists(), "this test runs an example: cargo build --examples (make lab does)");
            config = config.file(example, name);
        }
        let config =
            config.file(debian.file("vmlinuz"), "vmlinuz").file(debian.file("initrd.img"), "initrd.img");
        // For those to whom it does not matter: it boots sooner.
        let config = config.file(&cloud.vmlinux, "vmlinux").file(small, "initrd");
        Lab::start(&config).unwrap()
    })
}

fn command(line: &str) -> Output {
    lab().exec(&Cmd::new("./command").args(["vmlinuz", "initrd.img", line]).limit(LIMIT)).unwrap()
}

#[test]
fn output_is_the_commands_and_so_is_the_status() {
    let count = "i=0; while [ $i -lt 5000 ]; do i=$((i + 1)); echo $i; done";
    let out = command(&format!("{count}; echo err >&2; printf %s \"it's  partly\"; exit 7"));
    assert_eq!(out.status, Status::Exited(7), "{}{}", out.text(), out.err_text());
    let mut all: String = (1..=5000).map(|number| format!("{number}\n")).collect();
    all.push_str("err\nit's  partly");
    assert!(out.text() == all, "{}", out.text());
    assert_eq!(out.err_text(), "");
    if dose::soak() {
        let out = command("no-such-command");
        assert_eq!(out.status, Status::Exited(127), "{}{}", out.text(), out.err_text());
    }
}

#[test]
fn guest_that_ends_before_its_command_is_an_error_with_the_consoles_last_words() {
    let out = command("mkdir -p /proc; mount -t proc proc /proc; echo c >/proc/sysrq-trigger; sleep 1000");
    assert_eq!(out.status, Status::Exited(125), "{}{}", out.text(), out.err_text());
    let why = out.err_text();
    let words =
        ["before its machine ended; it said last:", "Kernel panic - not syncing: sysrq triggered crash"];
    assert!(words.iter().all(|words| why.contains(words)), "{why}");
}

#[test]
fn pool_of_linux_guests_answers() {
    let spec = "kernel = 'vmlinux'\ninitrd = 'initrd'\nappend = 'quiet rdinit=/bin/sh'\n";
    lab().put("vm.toml", spec.as_bytes()).unwrap();
    let pool = Cmd::new("./pool").args(["vm.toml", "2", "20", "# ", "echo $((6 * 7))", "42"]);
    let out = lab().exec(&pool.limit(LIMIT)).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{}{}", out.text(), out.err_text());
    assert!(out.text().starts_with("20 jobs done, 0 failed; "), "{}", out.text());
}

/// Clocks, timers, interrupts and both processors of a Linux guest survive it.
#[test]
fn linux_guest_goes_on_in_a_fresh_machine_each_time_that_it_is_saved() {
    let spec =
        "kernel = 'vmlinux'\ninitrd = 'initrd'\ncpus = 2\nmem = 256\nappend = 'quiet rdinit=/bin/sh'\n";
    lab().put("save.toml", spec.as_bytes()).unwrap();
    let out = lab().exec(&Cmd::new("./save").args(["save.toml", "2", "# "]).limit(2 * LIMIT)).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{}{}", out.text(), out.err_text());
    assert!(out.text().ends_with("2 times, and nothing is missing\n"), "{}", out.text());
}
