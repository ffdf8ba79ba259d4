//! The two ends of a conversation, as the guest sees them.

use std::net::SocketAddr;

/// The two ends of a conversation, as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    /// The guest's end.
    pub(crate) guest: SocketAddr,
    /// The other end: for the guest it is this address, wherever the host's socket leads.
    pub(crate) remote: SocketAddr,
}

/// Where a new connection of the guest leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// To this address of the host's network.
    Address(SocketAddr),
    /// Nobody listens there, as far as the guest is concerned.
    Refused,
}

/// Why a peer cannot be reached: codes of ICMP's destination unreachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreachable {
    /// No route to the network.
    Network,
    /// The host does not answer.
    Host,
    /// Nobody listens at the port.
    Port,
    /// The network forbids it.
    Prohibited,
}

impl Unreachable {
    /// The code for an error of a socket, if the error says that a peer is unreachable.
    pub(crate) fn of(error: &std::io::Error) -> Option<Self> {
        use std::io::ErrorKind;
        Some(match error.kind() {
            ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => Unreachable::Network,
            ErrorKind::HostUnreachable | ErrorKind::TimedOut | ErrorKind::NetworkDown => Unreachable::Host,
            ErrorKind::ConnectionRefused => Unreachable::Port,
            ErrorKind::PermissionDenied => Unreachable::Prohibited,
            _ => return None,
        })
    }
}
