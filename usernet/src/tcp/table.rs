//! All connections, by slot and by flow.
//!
//! A slot is used again only when its entry in the list of those with something to send has gone: so the list is never longer
//! than the table.

use std::collections::HashMap;

use super::connection::Connection;
use crate::flow::Flow;
use crate::host::Host;
use crate::shares::{GuestId, Shares, Side};
use crate::token::{Kind, Token};

#[derive(Debug)]
struct Slot<H: Host> {
    generation: u32,
    /// Whose the connection is, and who began it.
    guest: GuestId,
    side: Side,
    connection: Option<Box<Connection<H>>>,
}

/// The table.
#[derive(Debug)]
pub(super) struct Table<H: Host> {
    slots: Vec<Slot<H>>,
    free: Vec<u32>,
    flows: HashMap<Flow, u32>,
    taken: Shares,
    most: usize,
}

impl<H: Host> Table<H> {
    pub(super) fn new(most: usize, guests: u16) -> Self {
        let taken = Shares::new(guests);
        Table { slots: Vec::new(), free: Vec::new(), flows: HashMap::new(), taken, most }
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn find(&self, flow: &Flow) -> Option<u32> {
        self.flows.get(flow).copied()
    }

    pub(super) fn get(&mut self, slot: u32) -> Option<&mut Connection<H>> {
        self.slots.get_mut(slot as usize)?.connection.as_deref_mut()
    }

    /// All connections.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Connection<H>> {
        self.slots.iter_mut().filter_map(|slot| slot.connection.as_deref_mut())
    }

    /// The slot that `token` names, if it is still used as it was then.
    pub(super) fn slot(&self, token: Token) -> Option<u32> {
        let slot = self.slots.get(token.slot as usize)?;
        (slot.connection.is_some() && slot.generation & 0xff_ffff == token.generation).then_some(token.slot)
    }

    /// Whose the connection in a slot is, and who began it.
    pub(super) fn account(&self, slot: u32) -> (GuestId, Side) {
        self.slots.get(slot as usize).map_or((GuestId::FIRST, Side::Guest), |slot| (slot.guest, slot.side))
    }

    /// The name of the next connection; `None`: the table is full, or one side of the guest has its share of it. It stays free until
    /// [`Table::insert`].
    pub(super) fn next(&mut self, (guest, side): (GuestId, Side)) -> Option<Token> {
        if !self.taken.has_room(guest, side, self.most) {
            return None;
        }
        if self.free.is_empty() {
            if self.slots.len() >= self.most {
                return None;
            }
            self.free.push(u32::try_from(self.slots.len()).ok()?);
            self.slots.push(Slot { generation: 0, guest, side, connection: None });
        }
        let slot = *self.free.last()?;
        let generation = self.slots.get(slot as usize)?.generation & 0xff_ffff;
        Some(Token { kind: Kind::Tcp, generation, slot })
    }

    /// Adds a connection under the name that [`Table::next`] gave.
    pub(super) fn insert(&mut self, connection: Connection<H>, (guest, side): (GuestId, Side)) {
        let number = connection.token.slot;
        if self.free.last() != Some(&number) {
            return;
        }
        if let Some(slot) = self.slots.get_mut(number as usize) {
            self.free.pop();
            self.flows.insert(connection.flow, number);
            self.taken.add(guest, side);
            (slot.guest, slot.side) = (guest, side);
            slot.connection = Some(Box::new(connection));
        }
    }

    /// Takes a connection out.
    pub(super) fn remove(&mut self, number: u32) -> Option<Connection<H>> {
        let slot = self.slots.get_mut(number as usize)?;
        let connection = slot.connection.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.flows.remove(&connection.flow);
        self.taken.remove(slot.guest, slot.side);
        if !connection.queued {
            self.free.push(number);
        }
        Some(*connection)
    }

    /// The entry of a slot has left the list: of one whose connection has gone, the slot is free.
    pub(super) fn unlisted(&mut self, number: u32) {
        if let Some(slot) = self.slots.get_mut(number as usize) {
            match &mut slot.connection {
                Some(connection) => connection.queued = false,
                None => self.free.push(number),
            }
        }
    }
}
