//! A network for one guest on the host's ordinary sockets: Ethernet frames on one side, a [`Host`] on the other.
//!
//! The crate owns the protocols (ARP, NDP, DHCP, ICMP, the NAT of UDP and TCP) and their tables. It makes no system call, and
//! time is an argument, so that tests and fuzz targets drive it with a host of their own. Everything that the guest and
//! remote peers can make grow has a limit in [`Limits`].

#![allow(dead_code, reason = "the network that uses the parts follows")]

mod config;
mod flow;
mod host;
mod offload;
mod tcp;
mod token;

pub use config::{Config, Forward, Ipv4Subnet, Ipv6Subnet, Limits, Protocol};
pub use host::{Host, Ready};
pub use offload::{Accepts, Checksum, Gso, GsoKind, Offload};
