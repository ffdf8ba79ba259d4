//! Emulated machines saved at the point where they wait for a lab's files: each lab goes on from there instead of booting one.

use crate::backend::Drive;
use crate::host::{read, say};
use crate::{Kernel, LabConfig, LabError, cache};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// The line of the machine's init that says that it waits.
const WAITS: &str = "lab: waits for its files";
/// Time to boot, and to be written, on a busy host.
const LIMIT: Duration = Duration::from_secs(180);
/// A state that nobody has used for so long is not kept.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// Begins a file of QEMU's.
const MAGIC: &[u8] = b"QEVM";

/// What a saved machine is named after: all that must be the same where it goes on.
pub(crate) fn make(
    qemu: &str,
    config: &LabConfig,
    initramfs: &[u8],
    kernel: &Kernel,
    drives: &[Drive],
) -> Result<u64, LabError> {
    let mut hasher = DefaultHasher::new();
    // This file's number goes up with changes of the command line in backend.rs.
    (3_u32, qemu, config.mem_mib, config.cpus, initramfs).hash(&mut hasher);
    (&kernel.bzimage, drives.len()).hash(&mut hasher);
    for drive in drives {
        drive.size()?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// How QEMU is told to go on from a state.
pub(crate) fn incoming(state: &Path) -> String {
    format!("exec:cat '{}'", state.display())
}

/// The state of this make, saved now if there is none. `machine` is the command line that boots one.
pub(crate) fn state(make: u64, machine: Command) -> Result<PathBuf, LabError> {
    let home = cache::cache_dir()?.join("states");
    let state = home.join(format!("{make:016x}"));
    let used = || {
        fs::OpenOptions::new()
            .append(true)
            .open(&state)
            .and_then(|f| f.set_modified(SystemTime::now()))
            .is_ok()
    };
    if used() {
        return Ok(state);
    }
    fs::create_dir_all(&home).map_err(LabError::path("create", &home))?;
    let _one_at_a_time = cache::lock_named("states")?;
    if used() {
        return Ok(state);
    }
    discard(&home);
    let new = cache::beside(&state);
    let saved = save(machine, &new).and_then(|()| {
        let begins = read(&new)?.starts_with(MAGIC);
        if begins { Ok(()) } else { Err(LabError::format(&new, "QEMU did not write a state into it")) }
    });
    let saved = saved.and_then(|()| fs::rename(&new, &state).map_err(LabError::path("write", &state)));
    saved.inspect_err(|_| drop(fs::remove_file(&new)))?;
    Ok(state)
}

/// States that nobody uses, and what an interrupted run left.
fn discard(home: &Path) {
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > KEEP) {
            drop(fs::remove_file(entry.path()));
        }
    }
}

/// Boots a machine to where it waits, and has QEMU write it to a file and end.
fn save(mut machine: Command, to: &Path) -> Result<(), LabError> {
    say("booting an emulated machine once, to save it");
    let failed = || LabError::io("cannot save an emulated machine");
    let ((_agent, port), (mut monitor, commands)) =
        (UnixStream::pair().map_err(failed())?, UnixStream::pair().map_err(failed())?);
    // Standard error is free: the machine's console is its standard output.
    machine.args(["-chardev", "socket,id=monitor,fd=2", "-mon", "chardev=monitor,mode=readline"]);
    machine.stdin(OwnedFd::from(port)).stdout(Stdio::piped()).stderr(OwnedFd::from(commands));
    let mut child = Killed(machine.spawn().map_err(failed())?);
    drop(machine);
    let console = child.0.stdout.take().ok_or_else(|| failed()(std::io::Error::other("no console")))?;
    let waits = BufReader::new(console).lines().map_while(Result::ok).any(|line| line.contains(WAITS));
    if !waits {
        return Err(LabError::format(to, "the machine to save ended before it was up"));
    }
    // The second command is taken when the first has been carried out.
    write!(monitor, "migrate \"exec:cat >'{}'\"\nquit\n", to.display()).map_err(failed())?;
    let until = Instant::now() + LIMIT;
    while child.0.try_wait().map_err(failed())?.is_none() {
        if Instant::now() > until {
            return Err(LabError::format(to, "QEMU did not write it in time"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A machine that ends with this value.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
