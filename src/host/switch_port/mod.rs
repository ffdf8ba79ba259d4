//! A port of a virtual switch (`minivmm switch`) as the wire of a virtio-net device.
//!
//! The connection begins as a request to the switch's control socket, and then carries frames behind their virtio headers: what
//! two guests have negotiated passes between them as it is. A machine attaches once, for all its boots. A switch that goes away
//! is a link that is down: the machine looks for one of that name until there is one again.

mod answer;
mod attach;
mod error;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use virtio::net::{NetBackend, Offloads};

pub(crate) use attach::FRAMES;
pub(super) use attach::{Attached, Attacher};
pub use error::SwitchPortError;

use super::net_socket::{Link, Side, StreamBackend};
use super::runtime_folders::switch_folders;
use crate::spec::{MacAddress, MachineName, NetId, PortOptions, SwitchName};

/// What every switch takes from a port and can give to it.
pub(crate) const OFFLOADS: Offloads =
    Offloads::CSUM.union(Offloads::TSO4).union(Offloads::TSO6).union(Offloads::ECN);

/// What the switch is told of a port: the body of the request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PortRequest {
    /// The machine, if it has a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) machine: Option<MachineName>,
    /// The machine's interface.
    pub(crate) interface: NetId,
    /// The guest's address.
    pub(crate) mac: MacAddress,
    /// Largest packet of the interface.
    pub(crate) mtu: u16,
    /// The options of the port.
    #[serde(flatten)]
    pub(crate) options: PortOptions,
}

/// A port of a network interface, for all boots of its machine.
#[derive(Debug)]
pub(crate) struct SwitchPort {
    link: Arc<Mutex<Link>>,
    mtu: u16,
}

impl SwitchPort {
    /// Attaches to the switch `name`, which must run. Waits for its answer.
    pub(crate) fn open(name: &SwitchName, request: &PortRequest) -> Result<Self, SwitchPortError> {
        let folders = switch_folders();
        let sockets = folders.iter().map(|folder| folder.join(format!("{name}.sock"))).collect();
        Self::open_at(name, sockets, request)
    }

    fn open_at(
        name: &SwitchName,
        sockets: Vec<PathBuf>,
        request: &PortRequest,
    ) -> Result<Self, SwitchPortError> {
        let mut attacher = Attacher::new(name.clone(), sockets, request)?;
        let attached = attacher.attach()?;
        let link = Link::new(format!("the switch {name}"), Side::Switch(attacher));
        let mut link = link.map_err(|source| SwitchPortError::host(name, source))?;
        link.attached(attached);
        Ok(SwitchPort { link: Arc::new(Mutex::new(link)), mtu: request.mtu })
    }

    /// A backend for the device of one boot. The connection stays; frames from before are dropped.
    pub(crate) fn backend(&self) -> Box<dyn NetBackend> {
        Box::new(StreamBackend::new(self.link.clone(), OFFLOADS, self.mtu))
    }
}
