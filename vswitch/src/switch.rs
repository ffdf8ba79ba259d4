//! The switch.

use std::time::{Duration, Instant};

use crate::HEADER_LEN;
use crate::config::{Limits, PortConfig, VlanId};
use crate::counters::Counters;
use crate::ports::{PortId, Ports};

/// A port, for reports.
#[derive(Debug)]
#[non_exhaustive]
pub struct Port<'a> {
    /// Which port.
    pub id: PortId,
    /// Its settings.
    pub config: &'a PortConfig,
    /// What it has counted.
    pub counters: Counters,
    /// Frames that wait because of impairments.
    pub waiting: usize,
}

/// An address in the table, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Station {
    /// Its VLAN.
    pub vlan: VlanId,
    /// Its address.
    pub mac: [u8; 6],
    /// Where it is.
    pub port: PortId,
    /// Time since its last frame, to the second.
    pub age: Duration,
}

/// A switch. It has one owner, and no thread.
#[derive(Debug)]
pub struct Switch {
    limits: Limits,
}

impl Switch {
    /// A switch without ports.
    pub fn new(limits: Limits) -> Self {
        Switch { limits }
    }

    /// Adds a port, unless there are as many as may be.
    pub fn add(&mut self, config: PortConfig) -> Option<PortId> {
        let _ = config;
        (self.limits.ports > 0).then_some(PortId { slot: 0, generation: 0 })
    }

    /// Changes a port's settings. Frames that wait are planned anew. Returns whether there is such a port.
    pub fn set(&mut self, port: PortId, config: PortConfig) -> bool {
        let _ = (port, config);
        false
    }

    /// Removes a port, and all frames that wait for it or came from it.
    pub fn remove(&mut self, port: PortId) {
        let _ = port;
    }

    /// A port's settings.
    pub fn config(&self, port: PortId) -> Option<&PortConfig> {
        let _ = port;
        None
    }

    /// What a port has counted.
    pub fn counters(&self, port: PortId) -> Option<Counters> {
        let _ = port;
        None
    }

    /// All ports.
    pub fn ports(&self) -> impl Iterator<Item = Port<'_>> {
        std::iter::empty()
    }

    /// The addresses that are known.
    pub fn table(&self, now: Instant) -> impl Iterator<Item = Station> {
        let _ = now;
        std::iter::empty()
    }

    /// A frame came from a port.
    pub fn input(
        &mut self,
        from: PortId,
        header: &[u8; HEADER_LEN],
        frame: &[u8],
        now: Instant,
        out: &mut impl Ports,
    ) {
        let _ = (from, header, frame, now, out);
    }

    /// When [`Switch::timeout`] is to be called.
    pub fn next_timeout(&self) -> Option<Instant> {
        None
    }

    /// Sends what has waited long enough.
    pub fn timeout(&mut self, now: Instant, out: &mut impl Ports) {
        let _ = (now, out);
    }
}
