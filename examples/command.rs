//! One command in a guest: `command KERNEL INITRD LINE` boots a Linux kernel, runs LINE in the shell of its initrd, prints
//! the output, and ends with LINE's exit status. Every initrd has a shell: Debian's, or one made of busybox.
//!
//! ```text
//! cargo run --example command -- /boot/vmlinuz-6.1.0-25-cloud-amd64 /boot/initrd.img-6.1.0-25-cloud-amd64 'uname -r; exit 7'
//! ```
//!
//! Everything goes over the guest's console: standard output and standard error are one stream, and only the last 1 MiB of a
//! longer output is kept. To have them separate and byte for byte, give the guest two ports (`Spec::with_port`), or use the
//! command `minivmm run`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a program for people")]

use std::error::Error;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use minivmm::Machine;
use minivmm::spec::Spec;

/// Time for the guest to come up, and for the command.
const BOOT: Duration = Duration::from_secs(120);
const RUN: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, line] = args.as_slice() else {
        eprintln!("usage: command KERNEL INITRD LINE");
        return ExitCode::from(125);
    };
    match run(kernel, initrd, line) {
        Ok((output, status)) => {
            print!("{output}");
            ExitCode::from(status)
        }
        // The error has the last lines of the guest's console.
        Err(error) => {
            eprintln!("command: {error}");
            ExitCode::from(125)
        }
    }
}

/// Runs a line of shell in a guest of its own. Returns its output and its exit status.
fn run(kernel: &str, initrd: &str, line: &str) -> Result<(String, u8), Box<dyn Error>> {
    // The shell is the guest's first process and has the console.
    let spec = Spec::new(kernel).with_initrd(initrd).with_append("quiet rdinit=/bin/sh");
    let machine = Machine::builder(&spec).start()?;
    let mut console = machine.console();
    console.expect("# ", BOOT)?;
    // A random mark, which the command cannot know, encloses its output. It is typed with quotes inside, so that the
    // console's echo of the typed line does not match.
    let mark = format!("{:016x}", RandomState::new().build_hasher().finish());
    let (begin, end) = (format!("{mark}<\r\n"), format!("{mark}>"));
    let quoted = line.replace('\'', r"'\''");
    writeln!(console, "echo {mark}'<'; sh -c '{quoted}'; echo {mark}'>'$?")?;
    console.expect(&begin, BOOT)?;
    let missed = console.missed();
    let said = console.expect(&end, RUN)?;
    let status = console.expect("\r\n", BOOT)?.trim().parse()?;
    if console.missed() > missed {
        return Err("the guest printed faster than this program read; some output is lost".into());
    }
    let output = said.strip_suffix(&end).unwrap_or(&said).replace("\r\n", "\n");
    // Dropping the machine ends it.
    Ok((output, status))
}
