//! The host's programs and files: found, run and read, each failure with its sentence.

use crate::LabError;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Programs of Debian packages that the lab is made of: (program, package).
pub(crate) const TOOLS: [(&str, &str); 14] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("busybox", "busybox-static"),
    ("setpriv", "util-linux"),
    ("setsid", "util-linux"),
    ("ldd", "libc-bin"),
    ("gzip", "gzip"),
    ("xz", "xz-utils"),
    ("lz4", "lz4"),
    ("zstd", "zstd"),
    ("mmdebstrap", "mmdebstrap"),
    ("sfdisk", "fdisk"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
];

/// Says what is being done where it takes long. Standard error is the place, also in a test: it is rare.
pub(crate) fn say(line: &str) {
    drop(writeln!(io::stderr(), "lab: {line}"));
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, LabError> {
    fs::read(path).map_err(LabError::path("read", path))
}

/// A program in PATH, or in the system directories that an ordinary user's PATH may lack.
pub(crate) fn tool(name: &str) -> Result<PathBuf, LabError> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/bin:/bin";
    let found = path.split(':').map(|dir| Path::new(dir).join(name)).find(|p| p.is_file());
    found.ok_or_else(|| {
        let package = TOOLS.iter().find(|(tool, _)| *tool == name).map_or(name, |(_, package)| package);
        LabError::Missing {
            what: format!("the program `{name}`"),
            mend: format!("apt-get install {package}, or make install-deps"),
        }
    })
}

/// Runs a command to its end and gives its standard output; a status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>, LabError> {
    let line = format!("{command:?}").replace('"', "");
    let out = command.stdin(Stdio::null()).output().map_err(LabError::io(format!("cannot run `{line}`")))?;
    if out.status.success() {
        return Ok(out.stdout);
    }
    let stderr = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    Err(LabError::Command { command: line, status: out.status.to_string(), stderr })
}

/// Sends bytes through a filter such as `xz -dc`.
pub(crate) fn filter(program: &str, args: &[&str], input: &[u8]) -> Result<Vec<u8>, LabError> {
    let what = format!("cannot run `{program}`");
    let mut command = Command::new(tool(program)?);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(LabError::io(&what))?;
    let stdin = child.stdin.take();
    let out = std::thread::scope(|scope| {
        // A filter that stops reading says why in its status.
        scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
        child.wait_with_output()
    });
    let out = out.map_err(LabError::io(&what))?;
    if out.status.success() {
        return Ok(out.stdout);
    }
    let stderr = String::from_utf8_lossy(&out.stderr).trim().to_owned();
    Err(LabError::Command {
        command: format!("{program} {}", args.join(" ")),
        status: out.status.to_string(),
        stderr,
    })
}

/// The packages whose programs are missing.
pub(crate) fn missing_packages() -> Vec<&'static str> {
    let mut packages: Vec<_> =
        TOOLS.iter().filter(|(t, _)| tool(t).is_err()).map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}

/// Installs the missing packages if we are root; otherwise says the command.
pub(crate) fn install_tools() -> Result<(), LabError> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !rustix::process::geteuid().is_root() {
        let mend = format!("sudo apt-get install -y {names}");
        return Err(LabError::Missing { what: format!("the Debian packages {names}"), mend });
    }
    let _one_at_a_time = crate::cache::lock()?;
    say(&format!("installing {names}"));
    let apt = |args: &[&str]| {
        run(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-y"]).args(args))
    };
    let install: Vec<&str> = ["install", "--no-install-recommends"].into_iter().chain(missing).collect();
    apt(&install).or_else(|_| apt(&["update"]).and_then(|_| apt(&install))).map(drop)
}
