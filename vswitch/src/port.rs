//! One port: which frames may come in, and how they go out.

use std::time::Instant;

use crate::HEADER_LEN;
use crate::config::{PortConfig, VlanId};
use crate::counters::{Counters, DropReason};
use crate::frame::Frame;
use crate::offload::Offload;
use crate::packet::Packet;
use crate::ports::{PortId, Ports};
use crate::wire::{Direction, Entered, Wire, Wires};

/// A port.
#[derive(Debug, Default)]
pub(crate) struct PortState {
    pub(crate) config: PortConfig,
    pub(crate) counters: Counters,
    /// The two directions of its wire, where they are impaired.
    pub(crate) from_port: Option<Box<Wire>>,
    pub(crate) to_port: Option<Box<Wire>>,
}

/// A frame that may come in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admitted<'a> {
    pub(crate) frame: Frame<'a>,
    pub(crate) vlan: VlanId,
    pub(crate) offload: Offload,
}

impl PortState {
    /// Checks a frame of this port; one that may not come in is counted.
    pub(crate) fn admit<'a>(&mut self, header: &[u8; HEADER_LEN], bytes: &'a [u8]) -> Option<Admitted<'a>> {
        let admitted = self.config.admit(header, bytes);
        if let Err(reason) = admitted {
            self.counters.from_port.drop(reason);
        }
        admitted.ok()
    }

    /// Sends a frame to this port, if it is in its VLAN.
    pub(crate) fn egress(
        &mut self,
        id: PortId,
        wires: &mut Wires,
        admitted: &Admitted<'_>,
        now: Instant,
        out: &mut impl Ports,
    ) {
        let Some(edit) = self.config.vlan.egress(admitted.vlan, &admitted.frame) else { return };
        let packet = Packet { bytes: admitted.frame.bytes, edit, offload: admitted.offload };
        if let Some(wire) = &mut self.to_port {
            let tally = &mut self.counters.to_port;
            if wires.enter(wire, (id, Direction::ToPort), tally, &packet, now) == Entered::Stays {
                return;
            }
        }
        self.send(id, &packet, out);
    }

    /// Sends what has come through the wire to this port.
    pub(crate) fn send(&mut self, id: PortId, packet: &Packet<'_>, out: &mut impl Ports) {
        let tally = &mut self.counters.to_port;
        packet.send(id, out.accepts(id), out, |sent, len| match sent {
            true => tally.count(len),
            false => tally.drop(DropReason::PortFull),
        });
    }
}

impl PortConfig {
    fn admit<'a>(&self, header: &[u8; HEADER_LEN], bytes: &'a [u8]) -> Result<Admitted<'a>, DropReason> {
        let frame = Frame::parse(bytes).ok_or(DropReason::Malformed)?;
        if frame.is_reserved() {
            return Err(DropReason::Reserved);
        }
        if self.secure.is_some_and(|own| own != frame.source) {
            return Err(DropReason::Secure);
        }
        let vlan = self.vlan.ingress(&frame).ok_or(DropReason::Vlan)?;
        let offload = Offload::parse(header, bytes).ok_or(DropReason::Offload)?;
        Ok(Admitted { frame, vlan, offload })
    }
}
