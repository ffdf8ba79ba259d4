//! The examples do what they say. The one that needs a Linux guest runs in the lab.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say so by a panic")]

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use tiny_guest::Guest;

/// An example as it stands: cargo builds none for a single file of tests.
fn example(name: &str) -> PathBuf {
    static EXAMPLES: OnceLock<PathBuf> = OnceLock::new();
    let folder = EXAMPLES.get_or_init(|| {
        let out = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--workspace", "--example", "pool", "--example", "warm"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        Path::new(env!("CARGO_BIN_EXE_minivmm")).with_file_name("examples")
    });
    folder.join(name)
}

/// The pool on this guest.
fn pool(guest: Guest, words: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let kernel = guest.write(folder.path()).unwrap();
    let spec = folder.path().join("vm.toml");
    std::fs::write(&spec, format!("kernel = '{}'\nmem = 4\n", kernel.display())).unwrap();
    Command::new(example("pool")).arg(spec).args(words).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn pool_does_every_job_and_says_how_fast() {
    let out = pool(Guest::EchoInterrupt, &["8", "400", "ready\n", "question", "question\n"]);
    let said = text(&out.stdout);
    assert!(out.status.success(), "{said}{}", text(&out.stderr));
    assert!(
        said.starts_with("400 jobs done, 0 failed; ") && said.contains(" a second, the slowest in "),
        "{said}"
    );
    assert_eq!(text(&out.stderr), "", "the library says nothing");
}

#[test]
fn pool_replaces_machines_that_fail() {
    // At `k` this guest panics: each job ends its machine.
    let out = pool(Guest::Obedient, &["2", "6", "ready\n", "k", "never"]);
    let (said, why) = (text(&out.stdout), text(&out.stderr));
    assert!(!out.status.success() && said.starts_with("0 jobs done, 6 failed; "), "{said}{why}");
    assert_eq!(why.matches("pool: the guest's kernel panicked: ").count(), 6, "{why}");
}

#[test]
fn pool_that_cannot_start_a_machine_says_why() {
    let out = pool(Guest::Halt, &["2", "x", "", "", ""]);
    assert!(!out.status.success() && text(&out.stderr).starts_with("pool: invalid digit"), "{out:?}");
}

#[test]
fn requests_are_served_by_a_clone_each_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("kernel"), tiny_guest::COMMAND).unwrap();
    std::fs::create_dir_all(path("root/bin")).unwrap();
    std::fs::write(path("root/bin/sh"), "").unwrap();
    let mut keep = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    keep.args([
        "run", "--warm", "box", "--kernel", "kernel", "--root", "root", "--mem", "32", "--", "say", "kept",
    ]);
    let kept = keep.current_dir(folder.path()).env("XDG_STATE_HOME", path("state")).output().unwrap();
    assert_eq!((text(&kept.stdout).as_str(), text(&kept.stderr).as_str()), ("kept\n", ""));
    let serve = |command: &[&str], requests: &str| {
        let mut warm = Command::new(example("warm"));
        warm.arg(path("state/minivmm/warm/box")).arg("3").args(command);
        warm.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = warm.spawn().unwrap();
        child.stdin.take().unwrap().write_all(requests.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let requests: String = (0..30).map(|number| format!("request {number}\n")).collect();
    let out = serve(&["copy"], &requests);
    assert!(out.status.success() && text(&out.stdout) == requests, "{out:?}");
    assert!(text(&out.stderr).starts_with("30 requests, half of them in "), "{}", text(&out.stderr));
    // Each has a guest that has had no other one.
    assert_eq!(text(&serve(&["count"], "a\nb\nc\n").stdout), "1\n1\n1\n");
    assert_eq!(text(&serve(&["exit", "9"], "a\n").stdout), " (status 9)\n");
    let out = serve(&["off"], "a\n");
    assert!(
        !out.status.success() && text(&out.stdout).starts_with("no answer: the machine ended"),
        "{out:?}"
    );
}

/// The embedder's program: without the command line's crates, and it starts and ends machines.
#[test]
fn embedder_needs_no_command_line() {
    let cargo = |words: &[&str]| {
        let out = Command::new(env!("CARGO"))
            .args(words)
            .arg("--offline")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        text(&out.stdout)
    };
    let tree =
        cargo(&["tree", "--package", "embed", "--edges", "normal", "--prefix", "none", "--format", "{p}"]);
    let crates: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains("kvm-ioctls"), "{tree}");
    for other in ["clap", "clap_builder", "toml", "httparse"] {
        assert!(!crates.contains(other), "{other} is in the library's tree: {tree}");
    }
    // The whole workspace and an example are selected so that cargo chooses the same features as for the tests, and builds the
    // library once. The lints check that it compiles without its default feature.
    cargo(&["build", "--quiet", "--workspace", "--bin", "embed", "--example", "pool"]);
    let folder = tempfile::tempdir().unwrap();
    let kernel = Guest::EchoInterrupt.write(folder.path()).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_minivmm")).with_file_name("embed");
    let out = Command::new(program).arg(kernel).arg("3").output().unwrap();
    let said = text(&out.stdout);
    assert!(out.status.success(), "{said}{}", text(&out.stderr));
    assert!(
        said.starts_with("a machine runs after ") && said.contains(", its guest speaks after "),
        "{said}"
    );
    assert_eq!(text(&out.stderr), "", "the library says nothing");
}
