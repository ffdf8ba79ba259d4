//! The examples do what they say. The one that needs a Linux guest runs in the lab.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall say so by a panic")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use tiny_guest::Guest;

/// The example as it stands: cargo builds none for a single file of tests.
fn example() -> &'static Path {
    static EXAMPLE: OnceLock<PathBuf> = OnceLock::new();
    EXAMPLE.get_or_init(|| {
        let out = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--workspace", "--example", "pool"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", text(&out.stderr));
        Path::new(env!("CARGO_BIN_EXE_minivmm")).with_file_name("examples/pool")
    })
}

/// The pool on this guest.
fn pool(guest: Guest, words: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let kernel = guest.write(folder.path()).unwrap();
    let spec = folder.path().join("vm.toml");
    std::fs::write(&spec, format!("kernel = '{}'\nmem = 4\n", kernel.display())).unwrap();
    Command::new(example()).arg(spec).args(words).stdin(Stdio::null()).output().unwrap()
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
