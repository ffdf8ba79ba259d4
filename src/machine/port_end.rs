//! The host's ends of a machine's named ports.

use virtio::console::Backend;

use super::deadline::Progress;
use super::generation::GenerationEnd;
use crate::host::ports::{PortError, PortSocket};
use crate::shown::path as shown;
use crate::spec::PortSpec;

/// One of them, for all boots.
#[derive(Debug)]
pub(super) struct PortEnd {
    name: String,
    kind: PortKind,
}

#[derive(Debug)]
enum PortKind {
    Socket(PortSocket),
    /// The machine itself.
    Generation(GenerationEnd),
}

impl PortEnd {
    /// Makes its socket, if it has one.
    pub(super) fn open(spec: &PortSpec, progress: &Progress) -> Result<Self, PortError> {
        let kind = match &spec.socket {
            Some(socket) => {
                progress.begin(format!("making the socket {}", shown(socket)));
                PortKind::Socket(PortSocket::open(&spec.name, socket)?)
            }
            None => PortKind::Generation(GenerationEnd::default()),
        };
        Ok(PortEnd { name: spec.name.to_string(), kind })
    }

    /// Its name in the guest.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A backend for the device of one boot.
    pub(super) fn backend(&self) -> Box<dyn Backend> {
        match &self.kind {
            PortKind::Socket(socket) => socket.backend(),
            PortKind::Generation(end) => end.backend(),
        }
    }

    /// Where the machine says that its guest goes on.
    pub(super) fn generation(&self) -> Option<&GenerationEnd> {
        match &self.kind {
            PortKind::Generation(end) => Some(end),
            PortKind::Socket(_) => None,
        }
    }
}
