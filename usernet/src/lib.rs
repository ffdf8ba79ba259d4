//! A network for one guest, or for several that share it, on the host's ordinary sockets: Ethernet frames on one side, a [`Host`] on the other.
//!
//! The crate owns the protocols (ARP, NDP, DHCP, ICMP, the NAT of UDP and TCP) and their tables. It makes no system call, and
//! time is an argument, so that tests and fuzz targets drive it with a host of their own. Everything that the guest and
//! remote peers can make grow has a limit in [`Limits`].

mod arp;
mod config;
mod counters;
mod datagrams;
mod dhcp;
mod flow;
mod forwards;
mod fragments;
mod host;
mod icmp;
mod leases;
mod link;
mod nat;
mod ndp;
mod neighbours;
mod network;
mod offload;
mod packet;
mod questions;
mod shared;
mod shares;
mod slab;
mod sum;
mod tcp;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod token;
mod udp;

pub use config::{Config, Destination, Forward, Guests, Ipv4Subnet, Ipv6Subnet, Limits, Protocol};
pub use counters::Counters;
pub use host::{Host, Ready};
pub use network::{LONGEST_FRAME, Network};
pub use offload::{Accepts, Checksum, Gso, GsoKind, Offload};
