//! The ports of a switch: their links, and the frames on their way out.

use std::net::Ipv4Addr;
use std::time::Instant;

use vswitch::{Accepts, HEADER_LEN, PortId, Switch};

use super::info::{Direction, PortInfo};
use super::link::Link;
use super::socket_uplink::SocketUplink;
use super::user_uplink::UserUplink;
use crate::host::capture::{CapturePoint, Direction as Captured};
use crate::spec::{MacAddress, PortOptions};

/// A port.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) machine: Option<String>,
    pub(super) interface: Option<String>,
    pub(super) mac: Option<MacAddress>,
    pub(super) options: PortOptions,
    pub(super) link: Link,
    /// Its number in the switch, while there is a link.
    pub(super) id: Option<PortId>,
    /// What it takes.
    pub(super) accepts: Accepts,
    /// Its frames, for captures.
    pub(super) point: CapturePoint,
    /// The loop is told when there is room in its socket.
    pub(super) waits_for_room: bool,
    /// Frames of the present batch are for it.
    has_frames: bool,
}

impl Port {
    pub(super) fn new(name: String, link: Link, options: PortOptions) -> Self {
        Port {
            name,
            machine: None,
            interface: None,
            mac: None,
            options,
            link,
            id: None,
            accepts: Accepts::default(),
            point: CapturePoint::default(),
            waits_for_room: false,
            has_frames: false,
        }
    }

    pub(super) fn is_machine(&self) -> bool {
        matches!(self.link, Link::Machine(_))
    }

    /// The IPv4 addresses that machines have from it.
    pub(super) fn leases(&self) -> Vec<([u8; 6], Ipv4Addr)> {
        match &self.link {
            Link::User(user) => user.leases(),
            _ => Vec::new(),
        }
    }

    /// Itself, with counters that are filled in later.
    pub(super) fn info(&self) -> PortInfo {
        PortInfo {
            name: self.name.clone(),
            kind: self.link.kind(),
            link: self.link.is_up(),
            machine: self.machine.clone(),
            interface: self.interface.clone(),
            mac: self.mac,
            options: self.options.clone(),
            waiting: 0,
            to_guest: Direction::default(),
            from_guest: Direction::default(),
            moves: 0,
            evicted: 0,
            forwards: match &self.link {
                Link::User(user) => user.forwards().to_vec(),
                _ => Vec::new(),
            },
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.point.close();
    }
}

/// All ports, each in a slot of its own.
#[derive(Debug, Default)]
pub(super) struct Ports {
    slots: Vec<Option<Port>>,
    /// Slots by the number in the switch.
    by_id: Vec<usize>,
    /// Slots that frames of the present batch are for.
    pending: Vec<usize>,
}

impl Ports {
    /// Adds a port and returns its slot.
    pub(super) fn add(&mut self, port: Port) -> usize {
        let free = self.slots.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(empty) => *empty = Some(port),
            None => self.slots.push(Some(port)),
        }
        slot
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<Port> {
        self.slots.get_mut(slot)?.take()
    }

    pub(super) fn get(&self, slot: usize) -> Option<&Port> {
        self.slots.get(slot)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Port> {
        self.slots.get_mut(slot)?.as_mut()
    }

    /// The uplink in a slot whose link is a socket of ours.
    pub(super) fn socket(&mut self, slot: usize) -> Option<&mut SocketUplink> {
        match &mut self.get_mut(slot)?.link {
            Link::Socket(uplink) => Some(uplink),
            _ => None,
        }
    }

    /// All of them, with their slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Port)> {
        self.slots.iter().enumerate().filter_map(|(slot, port)| Some((slot, port.as_ref()?)))
    }

    /// The networks behind the host's sockets.
    pub(super) fn users(&mut self) -> impl Iterator<Item = &mut UserUplink> {
        self.slots.iter_mut().flatten().filter_map(|port| match &mut port.link {
            Link::User(user) => Some(&mut **user),
            _ => None,
        })
    }

    /// Records the number of a port in the switch.
    pub(super) fn set_id(&mut self, slot: usize, id: PortId) {
        if self.by_id.len() <= id.slot() {
            self.by_id.resize(id.slot() + 1, usize::MAX);
        }
        if let (Some(place), Some(port)) =
            (self.by_id.get_mut(id.slot()), self.slots.get_mut(slot).and_then(Option::as_mut))
        {
            *place = slot;
            port.id = Some(id);
        }
    }

    /// The port with this number in the switch.
    pub(super) fn by_id(&self, id: PortId) -> Option<&Port> {
        self.get(*self.by_id.get(id.slot())?).filter(|port| port.id == Some(id))
    }

    /// A port that frames of the present batch are for, until there is none.
    pub(super) fn next_pending(&mut self) -> Option<usize> {
        let slot = self.pending.pop()?;
        if let Some(port) = self.get_mut(slot) {
            port.has_frames = false;
        }
        Some(slot)
    }
}

/// The ports while frames are switched that lie in `received`.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    pub(super) ports: &'a mut Ports,
    pub(super) received: &'a [u8],
}

impl Batch<'_> {
    /// A frame came in at the port in a slot, which has this number in the switch.
    pub(super) fn input(
        &mut self,
        switch: &mut Switch,
        (slot, id): (usize, PortId),
        header: &[u8; HEADER_LEN],
        frame: &[u8],
        now: Instant,
    ) {
        if let Some(port) = self.ports.get(slot) {
            port.point.frame(Captured::Outbound, frame.len(), |into| into.extend(frame));
        }
        switch.input(id, header, frame, now, self);
    }
}

impl vswitch::Ports for Batch<'_> {
    fn accepts(&self, id: PortId) -> Accepts {
        self.ports.by_id(id).map(|port| port.accepts).unwrap_or_default()
    }

    fn send(&mut self, id: PortId, header: &[u8; HEADER_LEN], parts: &[&[u8]]) -> bool {
        let Some(slot) = self.ports.by_id.get(id.slot()).copied() else { return false };
        let Some(port) = self.ports.slots.get_mut(slot).and_then(Option::as_mut) else { return false };
        if port.id != Some(id) || !port.link.send(header, parts, self.received) {
            return false;
        }
        let len = parts.iter().map(|part| part.len()).sum();
        port.point.frame(Captured::Inbound, len, |into| parts.iter().for_each(|part| into.extend(*part)));
        if !std::mem::replace(&mut port.has_frames, true) {
            self.ports.pending.push(slot);
        }
        true
    }
}
