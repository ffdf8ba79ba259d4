//! The switch as `minivmm switch show` has it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};
use vswitch::{Counters, Tally};

use crate::spec::{MacAddress, PortOptions};

/// The answer to `GET /v1/switch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct SwitchInfo {
    /// Its name.
    pub(crate) name: String,
    /// Its process.
    pub(crate) pid: u32,
    /// The version of minivmm.
    pub(crate) version: String,
    /// Seconds since its start.
    pub(crate) uptime: f64,
    /// Whether it goes on without a port.
    pub(crate) kept: bool,
    /// Its ports, uplinks first.
    pub(crate) ports: Vec<PortInfo>,
    /// The addresses that it has learned.
    pub(crate) table: Vec<StationInfo>,
}

/// What is behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PortKind {
    /// A machine.
    Machine,
    /// A TAP of the host.
    Tap,
    /// A socket that a program connects to.
    Socket,
    /// A network of its own behind the host's sockets.
    User,
}

impl PortKind {
    /// In a table.
    pub(crate) fn word(self) -> &'static str {
        match self {
            PortKind::Machine => "machine",
            PortKind::Tap => "tap",
            PortKind::Socket => "socket",
            PortKind::User => "user",
        }
    }
}

/// A port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct PortInfo {
    /// Its name.
    pub(crate) name: String,
    /// What is behind it.
    pub(crate) kind: PortKind,
    /// Whether something is there.
    pub(crate) link: bool,
    /// The machine, if it has a name.
    pub(crate) machine: Option<String>,
    /// The machine's interface.
    pub(crate) interface: Option<String>,
    /// Its address.
    pub(crate) mac: Option<MacAddress>,
    /// Its options.
    pub(crate) options: PortOptions,
    /// Frames that wait because of delay or rate.
    pub(crate) waiting: usize,
    /// Frames to the guest.
    #[serde(rename = "in")]
    pub(crate) to_guest: Direction,
    /// Frames from the guest.
    #[serde(rename = "out")]
    pub(crate) from_guest: Direction,
    /// Stations that came to this port from another one.
    pub(crate) moves: u64,
    /// Addresses that were forgotten early because the port had too many.
    pub(crate) evicted: u64,
    /// Ports of the host that lead through it to machines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) forwards: Vec<ForwardInfo>,
}

/// A port of the host that leads to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ForwardInfo {
    /// Where it listens.
    pub(crate) listen: SocketAddr,
    /// The machine, by name or address, and its port.
    pub(crate) to: String,
    /// `tcp` or `udp`.
    pub(crate) protocol: String,
}

impl fmt::Display for ForwardInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} leads to {}", self.protocol, self.listen, self.to)
    }
}

/// One direction of a port, seen from the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Direction {
    /// Frames that passed.
    pub(crate) frames: u64,
    /// Bytes of these frames.
    pub(crate) bytes: u64,
    /// Frames that were dropped, by reason, where there are any.
    pub(crate) drops: BTreeMap<String, u64>,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct StationInfo {
    /// Its VLAN.
    pub(crate) vlan: u16,
    /// It.
    pub(crate) mac: String,
    /// The name of its port.
    pub(crate) port: String,
    /// Seconds since its last frame.
    pub(crate) age: u64,
    /// The IPv4 address that it has from an uplink `user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ip: Option<Ipv4Addr>,
}

impl Direction {
    pub(super) fn of(tally: &Tally) -> Self {
        let drops = tally.drops().filter(|(_, count)| *count > 0);
        let drops = drops.map(|(reason, count)| (reason.name().to_owned(), count)).collect();
        Direction { frames: tally.frames, bytes: tally.bytes, drops }
    }

    /// Frames that were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.drops.values().sum()
    }
}

impl PortInfo {
    /// Takes over what a port has counted.
    pub(super) fn count(&mut self, counters: &Counters, waiting: usize) {
        self.to_guest = Direction::of(&counters.to_port);
        self.from_guest = Direction::of(&counters.from_port);
        (self.moves, self.evicted, self.waiting) = (counters.moves, counters.evicted, waiting);
    }
}

/// An address as people write it.
pub(super) fn mac_text(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}
