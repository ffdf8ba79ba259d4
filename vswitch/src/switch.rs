//! The switch: from a frame that comes in to those that go out.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::HEADER_LEN;
use crate::config::{Limits, PortConfig, VlanId};
use crate::counters::{Counters, DropReason};
use crate::frame::Edit;
use crate::offload::Offload;
use crate::packet::Packet;
use crate::port::{Admitted, PortState};
use crate::ports::{PortId, Ports};
use crate::slots::Slots;
use crate::table::{Key, Learned, Table};
use crate::wire::{Direction, Entered, Wire, Wires};

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
    ports: Slots<PortState>,
    table: Table,
    wires: Wires,
}

impl Switch {
    /// A switch without ports.
    pub fn new(limits: Limits) -> Self {
        Switch::with_seed(limits, RandomState::new().hash_one(0))
    }

    /// A switch whose random impairments can be repeated.
    pub fn with_seed(limits: Limits, seed: u64) -> Self {
        Switch {
            ports: Slots::new(),
            table: Table::new(limits.addresses, limits.ageing),
            wires: Wires::new(limits, seed),
        }
    }

    /// Adds a port, unless there are as many as may be.
    pub fn add(&mut self, config: PortConfig) -> Option<PortId> {
        if self.ports.len() >= self.wires.limits.ports {
            return None;
        }
        let id = self.ports.insert(PortState::default());
        self.set(id, config);
        Some(id)
    }

    /// Changes a port's settings. Frames on impaired wires are planned anew, as if they had just met the new impairments; those
    /// that are on the way to a port whose VLANs or isolation changed are dropped. Returns whether there is such a port.
    pub fn set(&mut self, id: PortId, config: PortConfig) -> bool {
        let Some(port) = self.ports.get_mut(id) else { return false };
        let old = std::mem::replace(&mut port.config, config);
        let PortState { config, counters, from_port, to_port } = port;
        if (&old.vlan, old.isolated) != (&config.vlan, config.isolated) {
            let dropped = self.wires.clear(to_port, (id, Direction::ToPort));
            (0..dropped).for_each(|_| counters.to_port.drop(DropReason::Reconfigured));
        }
        if (&old.vlan, old.secure) != (&config.vlan, config.secure) {
            self.table.flush(id);
        }
        self.wires.set(from_port, (id, Direction::FromPort), config.from_port);
        self.wires.set(to_port, (id, Direction::ToPort), config.to_port);
        true
    }

    /// Removes a port with its addresses, and the frames that wait on its two wires.
    pub fn remove(&mut self, id: PortId) {
        if let Some(mut port) = self.ports.remove(id) {
            self.wires.clear(&mut port.from_port, (id, Direction::FromPort));
            self.wires.clear(&mut port.to_port, (id, Direction::ToPort));
            self.table.flush(id);
        }
    }

    /// A port's settings.
    pub fn config(&self, port: PortId) -> Option<&PortConfig> {
        Some(&self.ports.get(port)?.config)
    }

    /// What a port has counted.
    pub fn counters(&self, port: PortId) -> Option<Counters> {
        Some(self.ports.get(port)?.counters)
    }

    /// All ports.
    pub fn ports(&self) -> impl Iterator<Item = Port<'_>> {
        let waiting = |wire: &Option<Box<Wire>>| wire.as_ref().map_or(0, |wire| wire.waiting());
        self.ports.iter().map(move |(id, port)| Port {
            id,
            config: &port.config,
            counters: port.counters,
            waiting: waiting(&port.from_port) + waiting(&port.to_port),
        })
    }

    /// The addresses that are known, in no order.
    pub fn table(&self, now: Instant) -> impl Iterator<Item = Station> {
        self.table.iter(now).filter_map(|(key, port, age)| {
            let (vlan, mac) = key.parts();
            Some(Station { vlan: vlan?, mac, port, age })
        })
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
        // What is due makes room, and goes first.
        self.timeout(now, out);
        let Some(port) = self.ports.get_mut(from) else { return };
        port.counters.from_port.count(frame.len());
        if let Some(admitted) = port.admit(header, frame) {
            let entered = match &mut port.from_port {
                None => Entered::Passes,
                Some(wire) => {
                    let packet = Packet { bytes: frame, edit: Edit::Keep, offload: admitted.offload };
                    let tally = &mut port.counters.from_port;
                    self.wires.enter(wire, (from, Direction::FromPort), tally, &packet, now)
                }
            };
            if entered == Entered::Passes {
                self.forward(from, &admitted, now, out);
            }
        }
        self.timeout(now, out);
    }

    /// When [`Switch::timeout`] is to be called.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.wires.next()
    }

    /// Sends what has waited long enough.
    pub fn timeout(&mut self, now: Instant, out: &mut impl Ports) {
        // A frame passes two wires at most, so this ends.
        while let Some((due, wire)) = self.wires.take_due(now) {
            let (id, direction) = wire;
            let Some(port) = self.ports.get_mut(id) else { continue };
            match direction {
                Direction::FromPort => {
                    let Some(waiting) = self.wires.take(&mut port.from_port, wire) else { continue };
                    // Settings may have changed since.
                    if let Some(admitted) = port.admit(&waiting.header, &waiting.frame) {
                        self.forward(id, &admitted, due, out);
                    }
                }
                Direction::ToPort => {
                    let Some(waiting) = self.wires.take(&mut port.to_port, wire) else { continue };
                    let offload = Offload::parse(&waiting.header, &waiting.frame).unwrap_or_default();
                    port.send(id, &Packet { bytes: &waiting.frame, edit: Edit::Keep, offload }, out);
                }
            }
        }
    }

    /// A frame has come through the wire of its port: learns where its sender is, and sends it on.
    fn forward(&mut self, from: PortId, admitted: &Admitted<'_>, now: Instant, out: &mut impl Ports) {
        let count = self.ports.len();
        let Some(port) = self.ports.get_mut(from) else { return };
        let key = Key::new(admitted.vlan, admitted.frame.source);
        let isolated = port.config.isolated;
        match self.table.learn(key, from, port.config.secure.is_some(), count, now) {
            Learned::Known | Learned::New { evicted: None } => {}
            Learned::Moved => port.counters.moves += 1,
            Learned::Refused => port.counters.moves_refused += 1,
            Learned::New { evicted: Some(loser) } => {
                if let Some(port) = self.ports.get_mut(loser) {
                    port.counters.evicted += 1;
                }
            }
        }
        let known = match admitted.frame.is_group() {
            true => None,
            false => self.table.find(Key::new(admitted.vlan, admitted.frame.destination), now),
        };
        let dropped = match known {
            None => return self.flood(from, isolated, admitted, now, out),
            Some(to) if to == from => DropReason::SamePort,
            Some(to) => {
                let Some(port) = self.ports.get_mut(to) else { return };
                if !(isolated && port.config.isolated) {
                    return port.egress(to, &mut self.wires, admitted, now, out);
                }
                DropReason::Isolated
            }
        };
        if let Some(port) = self.ports.get_mut(from) {
            port.counters.from_port.drop(dropped);
        }
    }

    /// Sends a frame to all ports that may have it.
    fn flood(
        &mut self,
        from: PortId,
        isolated: bool,
        admitted: &Admitted<'_>,
        now: Instant,
        out: &mut impl Ports,
    ) {
        for (id, port) in self.ports.iter_mut() {
            if id != from && !(isolated && port.config.isolated) {
                port.egress(id, &mut self.wires, admitted, now, out);
            }
        }
    }
}
