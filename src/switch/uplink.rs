//! Opens the uplinks of a switch: what connects it to the world beside its machines.

use super::config;
use super::error::SwitchError;
use super::info::PortKind;
use super::link::Link;
use super::ports::{Port, Ports};
use super::socket_uplink::SocketUplink;
use super::user_uplink::UserUplink;
use crate::NetSocketError;
use crate::host::tap::TapPort;
use crate::host::user_network::warn_without_name_server;
use crate::spec::{Uplink, UplinkLink};

/// What to do where another program listens on the socket.
const CURE: &str = ", or choose another path";

/// Opens an uplink. Returns it with a warning for the user. `networks`: how many uplinks `user` the switch has.
pub(super) fn open(
    uplink: &Uplink,
    others: &Ports,
    networks: usize,
) -> Result<(Port, Option<String>), SwitchError> {
    let options = uplink.options.clone();
    let kind = match &uplink.link {
        UplinkLink::Tap(_) => PortKind::Tap,
        UplinkLink::Socket(_) => PortKind::Socket,
        UplinkLink::User(_) => PortKind::User,
    };
    config::port_config(kind, &options, None)
        .map_err(|error| SwitchError::Uplink { uplink: uplink.to_string(), reason: error.to_string() })?;
    match &uplink.link {
        UplinkLink::Tap(name) => {
            let tap = TapPort::open(name.as_str(), config::OFFLOADS)?;
            let (accepts, warning) = (config::accepts(tap.offloads()), tap.warning());
            let mut port = Port::new(free_name(name.as_str(), others), Link::Tap(tap), options);
            port.accepts = accepts;
            Ok((port, warning.map(|warning| warning.to_string())))
        }
        UplinkLink::User(nat) => {
            let user = UserUplink::open(nat, networks)?;
            warn_without_name_server();
            let mut port = Port::new(free_name("user", others), Link::User(Box::new(user)), options);
            port.accepts = config::accepts(config::OFFLOADS);
            Ok((port, None))
        }
        UplinkLink::Socket(path) => {
            let socket =
                SocketUplink::listen(path).map_err(|fault| NetSocketError::fault(path, fault, CURE))?;
            Ok((Port::new(free_name("socket", others), Link::Socket(socket), options), None))
        }
    }
}

/// A name that no other port has.
fn free_name(wanted: &str, others: &Ports) -> String {
    let is_free = |name: &String| others.iter().all(|(_, port)| port.name != *name);
    let numbered = (2..u32::MAX).map(|number| format!("{wanted}{number}"));
    std::iter::once(wanted.to_owned()).chain(numbered).find(is_free).unwrap_or_default()
}
