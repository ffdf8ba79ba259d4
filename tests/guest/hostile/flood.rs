//! What Linux's hvc driver does, and no more: it puts a piece on `hvc0` and spins, with interrupts off, until the device has
//! taken it.

use crate::device::{Arena, Device, FOR_EVER, Kind, describe, offer, used};
use crate::platform::{poke, ticks};

const ARENA: Arena = Arena(8 << 20);
/// The first port's (virtio 1.3 §5.3.2).
const TRANSMIT: u16 = 1;
const LINE: usize = 64;

/// So many lines: their number, as eight hexadecimal digits, and dots.
pub fn hvc0(lines: u64) {
    let console = (0..32).filter_map(Device::find).find(|device| device.kind == Kind::Console);
    let console = console.expect("a console");
    // No feature: one port, which is open.
    console.start(ARENA, 0);
    for number in 0..lines {
        let buffer = ARENA.buffer();
        for at in 0..LINE {
            let digit = b"0123456789abcdef"[(number >> (4 * (7 - at.min(7)))) as usize & 15];
            let byte = match at {
                0..8 => digit,
                63 => b'\n',
                _ => b'.',
            };
            poke::<u8>(buffer + at as u64, byte);
        }
        describe(ARENA.descriptors(TRANSMIT), buffer, LINE as u32, 0, 0);
        offer(ARENA, TRANSMIT, 0);
        console.kick(TRANSMIT);
        let begin = ticks();
        while used(ARENA, TRANSMIT) != number as u16 + 1 {
            assert!(ticks() - begin < FOR_EVER, "hvc0 takes nothing");
        }
    }
}
