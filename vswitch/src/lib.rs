//! A learning Ethernet switch: frames of its ports go in, frames for its ports come out.
//!
//! The crate owns VLANs (IEEE 802.1Q), the table of MAC addresses, isolation, impairments, and what a frame's virtio header
//! asks for where a port cannot take it: checksums and segmentation. It makes no system call, and time is an argument, so
//! that tests and fuzz targets drive it with ports of their own. Everything that a port can make grow has a limit in
//! [`Limits`].

mod config;
mod counters;
mod frame;
mod hash;
mod offload;
mod packet;
mod port;
mod ports;
mod random;
mod segment;
mod slots;
mod sum;
mod switch;
mod table;
#[cfg(test)]
mod tests;
mod vlan;
mod wire;

pub use config::{Impairment, Limits, PortConfig, VlanId, VlanMode, VlanSet};
pub use counters::{Counters, DropReason, Tally};
pub use ports::{Accepts, PortId, Ports};
pub use switch::{Port, Station, Switch};

/// Bytes of `struct virtio_net_hdr` with `num_buffers` (virtio 1.3 §5.1.6), in front of each frame.
pub const HEADER_LEN: usize = 12;

/// The longest frame: an IP packet of 64 KiB behind an Ethernet header with a VLAN tag.
pub const LONGEST_FRAME: usize = 65535 + 14 + 4;
