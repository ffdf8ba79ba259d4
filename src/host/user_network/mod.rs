//! A user-mode network: the guest's packets leave the host through ordinary sockets of this process, without root.
//!
//! The crate `usernet` has the protocols. This module owns its sockets ([`sockets`]), the wire to it ([`Wire`]), and what is
//! between the wire and a machine's network device ([`UserBackend`]).

mod backend;
mod limits;
mod ports;
mod resolver;
mod sockets;
#[cfg(test)]
mod speed;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::net::SocketAddr;

use usernet::{Config, Forward};

use super::open_files;

pub(crate) use backend::UserBackend;
pub(crate) use ports::Ports;
use resolver::Resolver;
pub(crate) use wire::Wire;

/// Warns if the host has no name server that guests could ask. It may get one while they run.
pub(crate) fn warn_without_name_server() {
    if Resolver::default().server().is_none() {
        log::warn!(
            "no name server in {}: the guest resolves no names; add a line `nameserver ADDRESS`",
            resolver::PATH
        );
    }
}

/// Why a user-mode network cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum UserNetworkError {
    /// A port of the host cannot be opened.
    #[error("cannot open port {} of {} for a forward: {source}", address.port(), address.ip())]
    Bind {
        /// What was asked for.
        forward: Forward,
        /// The address.
        address: SocketAddr,
        /// The host's error.
        source: io::Error,
    },
    /// The host has no descriptors left.
    #[error("the host has no files left for a network: {0}")]
    Host(#[source] io::Error),
}

/// A user-mode network of a machine: its ports on the host stay open over reboots.
///
/// Each boot has a [`UserBackend`] of its own: connections of the boot before end with it.
#[derive(Debug)]
pub(crate) struct UserNetwork {
    config: Config,
    ports: Ports,
}

impl UserNetwork {
    /// Opens the ports of `forwards`. `networks`: user-mode networks of the machine, this one among them, which share the
    /// descriptors of the process.
    ///
    /// # Errors
    /// A port is taken, privileged, or there is no such address.
    pub(crate) fn open(
        config: Config,
        forwards: &[Forward],
        networks: usize,
    ) -> Result<Self, UserNetworkError> {
        let limits = limits::within_descriptors(config.limits, open_files::limit(), networks);
        let config = Config { limits, ..config };
        let network = UserNetwork { config, ports: Ports::default() };
        for forward in forwards {
            network.ports.open(*forward).map_err(|source| UserNetworkError::Bind {
                forward: *forward,
                address: forward.bind,
                source,
            })?;
        }
        Ok(network)
    }

    /// What was asked for, and the address that each port has.
    pub(crate) fn forwards(&self) -> Vec<(Forward, SocketAddr)> {
        self.ports.list()
    }

    /// The ports of the host that lead to the guest.
    pub(crate) fn ports(&self) -> &Ports {
        &self.ports
    }

    /// The network for one boot.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub(crate) fn backend(&self) -> io::Result<UserBackend> {
        let mut wire = Wire::new(self.config.clone())?;
        let changes = self.ports.attach(&mut wire)?;
        Ok(UserBackend::new(wire, changes))
    }
}

/// Opens a network that several guests share, with its ports. Returns it with the address of each. `networks`: as for
/// [`UserNetwork::open`].
///
/// # Errors
/// As for [`UserNetwork::open`], or the host has no descriptors left.
#[cfg(feature = "cli")]
pub(crate) fn open_shared(
    config: Config,
    forwards: &[(Forward, usernet::Destination)],
    networks: usize,
) -> Result<(Wire, Vec<SocketAddr>), UserNetworkError> {
    let limits = limits::within_descriptors(config.limits, open_files::limit(), networks);
    let mut wire = Wire::new(Config { limits, ..config }).map_err(UserNetworkError::Host)?;
    let mut addresses = Vec::new();
    for (forward, to) in forwards {
        let refused = |source| UserNetworkError::Bind { forward: *forward, address: forward.bind, source };
        let bound = sockets::BoundSocket::open(forward.protocol, forward.bind).map_err(refused)?;
        addresses.push(bound.address());
        wire.forward_to(bound, *forward, to.clone()).map_err(UserNetworkError::Host)?;
    }
    Ok((wire, addresses))
}
