//! The network card: sixteen frames in each direction, each in one piece behind its virtio header.

use core::sync::atomic::{Ordering, fence};

use crate::device::{Arena, Device, FOR_EVER, NEEDS_RESET, SIZE, WRITE, describe, offer, used};
use crate::packet::HEADER;
use crate::platform::{peek, ticks};

const ARENA: Arena = Arena(4 << 20);
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Room for a frame: the longest has 65,553 bytes and a header.
pub const ROOM: usize = 0x11_000;
const RECEIVED: u64 = 6 << 20;
const SENT: u64 = 8 << 20;

pub struct Card {
    device: Device,
    /// Frames that were offered to the device, which has not read all of them.
    offered: u16,
    /// Received ones that were looked at.
    seen: u16,
    /// All of them.
    pub taken: u64,
    /// Sums may be left to the device (VIRTIO_NET_F_CSUM).
    sums: bool,
}

fn room(base: u64, slot: u16) -> &'static mut [u8] {
    let address = base + u64::from(slot) * ROOM as u64;
    // SAFETY: memory that nothing else of this program is in; the device has it only while it is offered, and nobody
    // looks at it then.
    unsafe { core::slice::from_raw_parts_mut(address as *mut u8, ROOM) }
}

impl Card {
    pub fn start(device: Device) -> Self {
        device.start(ARENA, u64::MAX);
        for slot in 0..SIZE {
            let at = ARENA.descriptors(RECEIVE) + 16 * u64::from(slot);
            describe(at, room(RECEIVED, slot).as_ptr() as u64, ROOM as u32, WRITE, 0);
            offer(ARENA, RECEIVE, slot);
        }
        device.kick(RECEIVE);
        Card { device, offered: 0, seen: 0, taken: 0, sums: device.features() & 1 != 0 }
    }

    /// Sends the header and frame of the length that `write` says, or nothing if that is 0; the device may be told later.
    pub fn send(&mut self, write: impl FnOnce(&mut [u8]) -> usize) {
        let slot = self.offered % SIZE;
        if slot == 0 {
            self.flush();
        }
        let frame = room(SENT, slot);
        let len = write(frame).min(ROOM);
        if len == 0 {
            return;
        }
        if !self.sums {
            frame[..HEADER].fill(0);
        }
        describe(ARENA.descriptors(TRANSMIT) + 16 * u64::from(slot), frame.as_ptr() as u64, len as u32, 0, 0);
        fence(Ordering::SeqCst);
        offer(ARENA, TRANSMIT, slot);
        self.offered = self.offered.wrapping_add(1);
    }

    /// Waits until the device has read all frames.
    pub fn flush(&mut self) {
        if used(ARENA, TRANSMIT) != self.offered {
            self.device.kick(TRANSMIT);
        }
        let (start, mut spins) = (ticks(), 0u32);
        while used(ARENA, TRANSMIT) != self.offered {
            // Each look at a register is an exit.
            spins = spins.wrapping_add(1);
            let status = if spins.is_multiple_of(1 << 20) { self.device.status() } else { 0 };
            assert!(status & NEEDS_RESET == 0, "the network card needs a reset");
            assert!(ticks() - start < FOR_EVER, "the network card sends no more");
            core::hint::spin_loop();
        }
        fence(Ordering::SeqCst);
    }

    /// Gives the next frame, behind its header, to `look`, if there is one.
    pub fn receive(&mut self, look: impl FnOnce(&[u8], &mut Self)) {
        if used(ARENA, RECEIVE) == self.seen {
            return;
        }
        fence(Ordering::SeqCst);
        let element = ARENA.used(RECEIVE) + 4 + 8 * u64::from(self.seen % SIZE);
        let (slot, len) = (peek::<u32>(element) as u16, peek::<u32>(element + 4) as usize);
        assert!(slot < SIZE && len <= ROOM, "slot {slot} with {len} bytes was received");
        self.seen = self.seen.wrapping_add(1);
        self.taken += 1;
        look(&room(RECEIVED, slot)[..len], self);
        fence(Ordering::SeqCst);
        offer(ARENA, RECEIVE, slot);
        self.device.kick(RECEIVE);
    }
}
