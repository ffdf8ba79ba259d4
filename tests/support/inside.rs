//! A test in a mount namespace of its own: what it mounts is not seen on the host, and is gone when it ends, however it does.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::without::lacks;

/// Set in the process that runs in a mount namespace of its own.
const INSIDE: &str = "MINIVMM_TEST_INSIDE";

/// Runs `test`, called `name`, in a mount namespace of its own.
pub(crate) fn inside(name: &str, test: fn()) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let unshare = |program: &Path| {
        let mut command = Command::new("unshare");
        command.args(if root { &["-m"][..] } else { &["-Urm"] }).arg(program).stdin(Stdio::null());
        command
    };
    if !unshare(Path::new("true")).output().is_ok_and(|done| done.status.success()) {
        return lacks("mount", "this user can mount nothing (`unshare -Urm`): run it as root");
    }
    let own = std::env::current_exe().unwrap();
    let output = unshare(&own).args(["--exact", name, "--nocapture"]).env(INSIDE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    // What was left out there is said here.
    for line in said.lines().filter(|line| line.starts_with("SKIPPED")) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

pub(crate) fn mount(at: &Path, arguments: &[&str]) -> bool {
    Command::new("mount").args(arguments).arg(at).status().unwrap().success()
}
