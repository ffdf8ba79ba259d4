//! What other threads ask of the loop. Each message wakes it, and has a channel for its answer.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::info::SwitchInfo;
use super::refusal::Refusal;
use crate::host::capture::{CaptureLimits, CaptureStream};
use crate::host::switch_port::PortRequest;
use crate::spec::PortOptions;

/// Limit for an answer. The loop never waits for anything but events.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A message.
#[derive(Debug)]
pub(super) enum Command {
    /// What the switch is.
    Show(Sender<SwitchInfo>),
    /// A place for a port.
    Reserve(PortRequest, Sender<Result<Reserved, Refusal>>),
    /// The connection of a reserved port, and what was read of it.
    Attach(u64, UnixStream, Vec<u8>),
    /// A reserved port will not come.
    Release(u64),
    /// Changes a port.
    Set { port: String, change: PortOptions, answer: Sender<Result<(), Refusal>> },
    /// Captures the frames of a port.
    Capture { port: String, limits: CaptureLimits, answer: Sender<Result<CaptureStream, Refusal>> },
    /// A port will come soon: do not end before.
    Hold(Sender<()>),
    /// End.
    Stop(End),
}

/// A reserved port.
#[derive(Debug)]
pub(super) struct Reserved {
    pub(super) ticket: u64,
    pub(super) name: String,
}

/// Why the switch ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By this signal.
    Signal(libc::c_int),
    /// A client asked for it.
    Stopped,
    /// The last port left.
    Unused,
    /// Nobody came.
    NobodyCame,
    /// The host failed.
    Failed,
}

/// The sending end, for any thread.
#[derive(Debug, Clone)]
pub(crate) struct Commands {
    sender: Sender<Command>,
    bell: Arc<EventFd>,
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Inbox {
    receiver: Receiver<Command>,
    bell: Arc<EventFd>,
}

/// Both ends.
pub(super) fn channel() -> io::Result<(Commands, Inbox)> {
    let bell = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (sender, receiver) = mpsc::channel();
    Ok((Commands { sender, bell: bell.clone() }, Inbox { receiver, bell }))
}

impl Commands {
    /// Sends a message. False if the switch has ended.
    pub(super) fn send(&self, command: Command) -> bool {
        let sent = self.sender.send(command).is_ok();
        // The counter of an eventfd has room for 2^64 of these.
        let _ = self.bell.write(1);
        sent
    }

    /// Sends a message and waits for the answer.
    pub(super) fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, Refusal> {
        let (sender, answer) = mpsc::channel();
        if !self.send(command(sender)) {
            return Err(Refusal::ended());
        }
        answer.recv_timeout(ANSWER_LIMIT).map_err(|error| match error {
            RecvTimeoutError::Disconnected => Refusal::ended(),
            RecvTimeoutError::Timeout => Refusal::new(504, "the switch does not answer; ask again"),
        })
    }

    /// Ends the switch.
    pub(crate) fn end(&self, why: End) {
        self.send(Command::Stop(why));
    }
}

impl Inbox {
    pub(super) fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// The next message.
    pub(super) fn next(&self) -> Option<Command> {
        self.receiver.try_recv().ok()
    }

    /// What rang is dealt with from here on.
    pub(super) fn hush(&self) {
        // It may not have rung.
        let _ = self.bell.read();
    }
}
