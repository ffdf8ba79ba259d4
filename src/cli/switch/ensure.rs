//! A switch for a machine: the one that runs, or a new one.
//!
//! Machines that start at once may all find none. Each starts one then; the lock of the name lets one of them live, and the
//! others find that one. A switch that is just ending is waited for and followed by a new one.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::client::reason;
use crate::control::client::{ClientError, request};
use crate::control::{RunningMachine, find_switch};
use crate::host::lock::pid_clause;
use crate::host::process::with_original_fd_limit;
use crate::spec::{NetLink, Spec, SwitchName};

/// Limit for all attempts.
const LIMIT: Duration = Duration::from_secs(20);
/// Limit for an answer of the switch.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two attempts.
const RETRY_DELAY: Duration = Duration::from_millis(20);
/// The program that runs, also if its file was replaced.
const SELF: &str = "/proc/self/exe";

/// Why a machine has no switch.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum EnsureError {
    /// No process can be started.
    #[error(
        "the switch {name} cannot be started: {source}; start it yourself with `minivmm switch {name}`, in another terminal or \
         with `-d`"
    )]
    Spawn { name: SwitchName, source: io::Error },
    /// The process says why it does not run.
    #[error("the switch {name} cannot be started: {reason}")]
    Refused { name: SwitchName, reason: String },
    /// It does not answer.
    #[error("the switch {name} runs{} and cannot be used: {}; `kill -9` ends it in any case", pid_clause(.pid), reason(.error))]
    Unusable { name: SwitchName, pid: Option<u32>, error: ClientError },
}

/// Finds or starts the switches that the networks of `spec` name.
pub(in crate::cli) fn ensure_for(spec: &Spec) -> Result<(), EnsureError> {
    let names = spec.net.iter().filter_map(|net| match &net.link {
        NetLink::Switch { name, .. } => Some(name),
        _ => None,
    });
    // Each once.
    names.collect::<BTreeSet<_>>().into_iter().try_for_each(ensure)
}

/// Finds or starts the switch called `name`. It does not end within the next minute, so that the caller can attach.
fn ensure(name: &SwitchName) -> Result<(), EnsureError> {
    let until = Instant::now() + LIMIT;
    loop {
        let is_last = Instant::now() >= until;
        match find_switch(name) {
            Some(running) => match hold(&running) {
                Ok(()) => return Ok(()),
                // It ends, or has not begun to listen.
                Err(ClientError::Unreachable(_) | ClientError::Refused { status: 503, .. }) if !is_last => {}
                Err(error) => {
                    return Err(EnsureError::Unusable { name: name.clone(), pid: running.pid, error });
                }
            },
            None => match start(name) {
                Ok(()) => continue,
                // Another machine has started it meanwhile.
                Err(_) if !is_last && find_switch(name).is_some() => {}
                Err(error) => return Err(error),
            },
        }
        thread::sleep(RETRY_DELAY);
    }
}

/// Has the switch wait for a port.
fn hold(running: &RunningMachine) -> Result<(), ClientError> {
    request(&running.socket, "POST", "/v1/hold", None, ANSWER_LIMIT).map(drop)
}

/// Starts a switch and waits until it listens. It has a session of its own and none of this process's files.
fn start(name: &SwitchName) -> Result<(), EnsureError> {
    let failed = |source| EnsureError::Spawn { name: name.clone(), source };
    let mut command = Command::new(program());
    command.arg0("minivmm").args(["switch", name.as_str(), "--daemonize", "--for-machine"]);
    // No folder and no service manager are kept.
    command.current_dir("/").env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = with_original_fd_limit(&mut command).spawn().map_err(failed)?;
    let mut said = String::new();
    if let Some(mut messages) = child.stderr.take() {
        // Bounded: its sentence, and lines on the way.
        let _ = (&mut messages).take(64 << 10).read_to_string(&mut said);
    }
    if child.wait().map_err(failed)?.success() {
        return Ok(());
    }
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it says nothing");
    let reason = last.trim().trim_start_matches("minivmm: ").to_owned();
    Err(EnsureError::Refused { name: name.clone(), reason })
}

/// This program by a path that `ps` shows well, or at least by one that is there.
fn program() -> PathBuf {
    std::env::current_exe().ok().filter(|path| path.is_file()).unwrap_or_else(|| Path::new(SELF).to_owned())
}
