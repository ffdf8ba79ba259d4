//! What follows when something was done to a connection: it is listed, gets a timer, waits for memory, or is gone.

use std::time::Instant;

use super::Tcp;
use super::connection::{Connection, Context, Fate, Phase};
use super::segment::Header;
use crate::host::Host;
use crate::shares::GuestId;

/// Least memory that feeds one.
const LEAST_FOOD: usize = 16 << 10;

impl<H: Host> Tcp<H> {
    /// Does something to a connection, and what follows from it.
    pub(super) fn act(
        &mut self,
        slot: u32,
        host: &mut H,
        now: Instant,
        what: impl FnOnce(&mut Connection<H>, &mut Context<'_, H>) -> Fate,
    ) {
        let (guest, side) = self.table.account(slot);
        self.pool.guest = guest;
        let Some(connection) = self.table.get(slot) else { return };
        let was_embryonic = connection.is_embryonic();
        let fate = what(connection, &mut Context { host, pool: &mut self.pool, now });
        if was_embryonic && !connection.is_embryonic() {
            self.embryonic.remove(guest, side);
        }
        self.settle(slot, fate, host, now);
    }

    pub(super) fn settle(&mut self, slot: u32, fate: Fate, host: &mut H, now: Instant) {
        match fate {
            Fate::Lives => self.list(slot, now),
            Fate::Answers(header) => {
                self.reply(header);
                self.list(slot, now);
            }
            Fate::Over => drop(self.remove(slot)),
            Fate::ResetGuest => self.reset_guest(slot),
            Fate::ResetHost => self.reset_host(slot, host),
            Fate::ResetBoth => {
                self.reset_guest_of(slot);
                self.reset_host(slot, host);
            }
            Fate::Failed(why) => {
                if let Some(connection) = self.remove(slot) {
                    self.fail(connection.flow, connection.receiver.nxt().back(1), why);
                }
            }
        }
    }

    fn reset_guest(&mut self, slot: u32) {
        self.reset_guest_of(slot);
        self.remove(slot);
    }

    fn reset_guest_of(&mut self, slot: u32) {
        if let Some(connection) = self.table.get(slot) {
            // Before its SYN came there is nothing to acknowledge.
            let ack = (connection.phase != Phase::SynSent).then(|| connection.receiver.nxt());
            let bare = Header::bare(connection.flow, connection.sender.nxt(), ack);
            self.reply(Header { rst: true, ..bare });
        }
    }

    fn reset_host(&mut self, slot: u32, host: &mut H) {
        if let Some(connection) = self.remove(slot) {
            host.reset(connection.stream);
        }
    }

    /// Puts a connection where it belongs: among those with something to send, with a timer, starved, or over.
    fn list(&mut self, slot: u32, now: Instant) {
        let guest = self.table.account(slot).0;
        let Some(connection) = self.table.get(slot) else { return };
        let has_output = connection.has_output();
        if connection.is_over() && !has_output {
            self.remove(slot);
            return;
        }
        if has_output && !connection.queued {
            connection.queued = true;
            self.outputs.push_back(slot);
        }
        if connection.watch.starved {
            self.starved.insert((guest, slot));
        }
        let deadline = connection.deadline(now);
        match connection.timer.queued {
            Some(at) if at <= deadline => {}
            earlier => {
                connection.timer.queued = Some(deadline);
                if let Some(at) = earlier {
                    self.timers.remove(&(at, slot));
                }
                self.timers.insert((deadline, slot));
            }
        }
    }

    fn remove(&mut self, slot: u32) -> Option<Connection<H>> {
        let (guest, side) = self.table.account(slot);
        let mut connection = self.table.remove(slot)?;
        if connection.is_embryonic() {
            self.embryonic.remove(guest, side);
        }
        if let Some(at) = connection.timer.queued {
            self.timers.remove(&(at, slot));
        }
        self.starved.remove(&(guest, slot));
        self.pool.guest = guest;
        self.pool.release(&mut connection.sender.ring);
        self.pool.release(&mut connection.receiver.ring);
        Some(connection)
    }

    /// Lets connections read on that had no memory, one after the other, while there is some: the event that comes next may be
    /// one that they wait for. Each that starves now has one turn.
    pub(super) fn feed(&mut self, host: &mut H, now: Instant) {
        for _ in 0..self.starved.len() {
            let Some(next) = self.next_to_feed() else { break };
            self.starved.remove(&next);
            self.fed = next;
            self.act(next.1, host, now, Connection::feed);
        }
    }

    /// The connection that follows the one that was fed last, of a guest that may have more memory.
    fn next_to_feed(&self) -> Option<(GuestId, u32)> {
        let (guest, slot) = self.fed;
        let has_food = |next: &(GuestId, u32)| self.pool.available_to(next.0) >= LEAST_FOOD;
        let same = self.starved.range((guest, slot.saturating_add(1))..=(guest, u32::MAX)).next();
        if let Some(next) = same.filter(|next| has_food(next)) {
            return Some(*next);
        }
        // The first of each other guest, and at last of this one again.
        let mut from = GuestId(guest.0.saturating_add(1));
        let mut wrapped = false;
        loop {
            match self.starved.range((from, 0)..).next() {
                Some(next) if has_food(next) => return Some(*next),
                Some(next) if wrapped && next.0 >= guest => return None,
                Some(next) if next.0 < GuestId(u16::MAX) => from = GuestId(next.0.0 + 1),
                _ if wrapped => return None,
                _ => (from, wrapped) = (GuestId::FIRST, true),
            }
        }
    }
}
