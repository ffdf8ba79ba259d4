//! The machine whose guest writes by the plan, and notes what was acknowledged on a witness.

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::NamedTempFile;

/// The name of the witness, beside the disk.
pub(crate) const WITNESS: &str = "witness";

/// A machine with `disk` and a witness in `folder`, and its kernel, which is there as long as this is kept.
pub(crate) fn machine(folder: &Path, disk: &str, words: &str) -> (Command, NamedTempFile) {
    let kernel = NamedTempFile::new().unwrap();
    std::fs::write(&kernel, tiny_guest::POWER).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_minivmm"));
    command.arg("--kernel").arg(kernel.path()).args(["--mem", "16", "--net", "none", "--append", words]);
    command.args(["--disk", disk, "--disk"]).arg(folder.join(WITNESS));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    (command, kernel)
}
