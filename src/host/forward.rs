//! Why a port of the host could not be opened for a forward. Each message ends with the cure.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use super::port_owner::{self, PortOwner};
use crate::spec::PortForward;

/// Ports below this number are root's, unless the host has it otherwise.
const UNPRIVILEGED: u16 = 1024;
const UNPRIVILEGED_START: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Why a port of the host could not be opened for a forward.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// The port is taken.
    #[error(
        "cannot forward {forward}: {} {} is in use by {}; take another port of the host, or 0 for any that is free (`-p {}`)",
        forward.protocol, forward.bind(), words(owner.as_ref()), with_host(*forward, 0)
    )]
    InUse {
        /// The forward.
        forward: PortForward,
        /// The process, if known.
        owner: Option<PortOwner>,
    },
    /// The port is root's.
    #[error(
        "cannot forward {forward}: ports of the host below {first} are for root; take a higher one, such as `-p {}`, or open \
         it to all users: sudo sysctl net.ipv4.ip_unprivileged_port_start={}", higher(*forward), forward.host
    )]
    Privileged {
        /// The forward.
        forward: PortForward,
        /// The first port that all users may have.
        first: u16,
    },
    /// The host has no such address.
    #[error(
        "cannot forward {forward}: this host has no address {}; leave it out for 127.0.0.1, or write {} for all addresses",
        forward.bind().ip(), if forward.bind().is_ipv4() { "0.0.0.0" } else { "[::]" }
    )]
    NoAddress {
        /// The forward.
        forward: PortForward,
    },
    /// Nothing can listen there.
    #[error("cannot forward {forward}: {why}; write `-p {cure}`")]
    Address {
        /// The forward.
        forward: PortForward,
        /// Why not.
        why: &'static str,
        /// A forward that can be had.
        cure: PortForward,
    },
    /// The host refused.
    #[error("cannot forward {forward}: the host does not open {} {}: {source}", forward.protocol, forward.bind())]
    Host {
        /// The forward.
        forward: PortForward,
        /// Its error.
        source: io::Error,
    },
}

/// Who has a port, as messages name it.
pub(crate) fn words(owner: Option<&PortOwner>) -> String {
    match owner {
        Some(PortOwner { pid, program }) => format!("{program} (process {pid})"),
        None => "another program".to_owned(),
    }
}

/// The same forward from another port of the host.
fn with_host(forward: PortForward, host: u16) -> PortForward {
    PortForward { host, ..forward }
}

/// The same forward from a port that is like the one that was wanted, and anyone's.
fn higher(forward: PortForward) -> PortForward {
    with_host(forward, forward.host.saturating_add(20_000))
}

/// Why nothing can listen on an IPv6 address that hosts may have, and a forward that is like it.
fn usable(forward: PortForward) -> Option<(&'static str, PortForward)> {
    let Some(IpAddr::V6(address)) = forward.address else { return None };
    let at = |address: IpAddr| PortForward { address: Some(address), ..forward };
    if let Some(mapped) = address.to_ipv4_mapped() {
        Some(("an IPv4 address is written as such", at(mapped.into())))
    } else if address.is_unicast_link_local() {
        let why = "a link-local address belongs to one interface, and none is named; all addresses of IPv6 are `[::]`";
        Some((why, at(Ipv6Addr::UNSPECIFIED.into())))
    } else {
        None
    }
}

impl ForwardError {
    /// What an error of binding means.
    pub(crate) fn new(forward: PortForward, source: io::Error) -> Self {
        match source.kind() {
            ErrorKind::AddrInUse => {
                let owner = port_owner::find(Path::new("/proc"), forward.protocol, forward.bind());
                ForwardError::InUse { forward, owner }
            }
            ErrorKind::PermissionDenied => {
                let first = fs::read_to_string(UNPRIVILEGED_START).ok();
                let first = first.and_then(|text| text.trim().parse().ok()).unwrap_or(UNPRIVILEGED);
                if forward.host < first {
                    ForwardError::Privileged { forward, first }
                } else {
                    ForwardError::Host { forward, source }
                }
            }
            ErrorKind::InvalidInput => match usable(forward) {
                Some((why, cure)) => ForwardError::Address { forward, why, cure },
                None => ForwardError::Host { forward, source },
            },
            ErrorKind::AddrNotAvailable => ForwardError::NoAddress { forward },
            _ => ForwardError::Host { forward, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn error(forward: &str, kind: ErrorKind) -> String {
        ForwardError::new(forward.parse().unwrap(), kind.into()).to_string()
    }

    #[test]
    fn a_port_that_cannot_be_had_is_explained_with_its_cure() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = error(&format!("{}:22", held.local_addr().unwrap().port()), ErrorKind::AddrInUse);
        assert!(taken.contains(&format!("(process {})", std::process::id())), "{taken}");
        assert!(taken.ends_with("(`-p 0:22`)"), "{taken}");
        let gone = error("1:53/udp", ErrorKind::AddrInUse);
        assert!(gone.contains("udp 127.0.0.1:1 is in use by another program"), "{gone}");
        let forward = "22:22".parse().unwrap();
        let privileged = ForwardError::Privileged { forward, first: 1024 }.to_string();
        assert!(privileged.contains("below 1024 are for root") && privileged.contains("`-p 20022:22`"));
        assert!(privileged.ends_with("sudo sysctl net.ipv4.ip_unprivileged_port_start=22"), "{privileged}");
        // A cure is the forward itself, with its address and protocol.
        for (text, cure) in [("53:53/udp", "`-p 20053:53/udp`"), ("[::1]:22:22", "`-p [::1]:20022:22`")] {
            let privileged = ForwardError::Privileged { forward: text.parse().unwrap(), first: 1024 };
            assert!(privileged.to_string().contains(cure), "{privileged}");
        }
        let gone = error("0.0.0.0:1:53/udp", ErrorKind::AddrInUse);
        assert!(gone.ends_with("(`-p 0.0.0.0:0:53/udp`)"), "{gone}");
        let nowhere = error("192.0.2.1:5555:22", ErrorKind::AddrNotAvailable);
        assert!(nowhere.contains("no address 192.0.2.1;"), "{nowhere}");
        for (text, cure) in [
            ("[::ffff:127.0.0.1]:5555:22", "write `-p 127.0.0.1:5555:22`"),
            ("[fe80::1]:5353:53/udp", "write `-p [::]:5353:53/udp`"),
        ] {
            let unusable = error(text, ErrorKind::InvalidInput);
            assert!(unusable.ends_with(cure), "{unusable}");
        }
        // No port is this high: it is another refusal.
        let refused = error("65535:22", ErrorKind::PermissionDenied);
        assert!(refused.contains("does not open tcp 127.0.0.1:65535"), "{refused}");
    }
}
