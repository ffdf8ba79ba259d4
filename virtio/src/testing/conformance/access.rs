//! Reads and writes of every width at every offset of the function's registers.

use super::{RING, Subject};
use crate::poll::Poller;
use crate::testing::Guest;

const DEVICE: u64 = 0x2000;
const WIDTHS: [usize; 4] = [1, 2, 4, 8];

/// No access does harm, at rest or at work, and what is read-only stays.
pub fn config_accesses_of_every_kind<S: Subject>(subject: &mut S) {
    let device = subject.device();
    let config = device.info().config;
    let make = subject.poller();
    let mut guest = Guest::new(device, make);
    let (offered, queues) = (guest.offered(), guest.queues());
    guest.start(subject.wanted(), RING);
    let before = guest.config(0, config.len());
    for value in [[0xff; 8], [0; 8], [0xa5; 8], *b"\x01\0\x02\0\x03\0\x04\0"] {
        for (offset, width) in places(DEVICE, config.len() + 16) {
            touch(&mut guest, offset, &value[..width]);
        }
    }
    let after = guest.config(0, config.len());
    for (at, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(before & !config.mask(at), after & !config.mask(at), "byte {at} is not the driver's");
    }
    assert!(guest.config(config.len() as u64, 64).iter().all(|byte| *byte == 0), "nothing is behind the end");
    guest.start(subject.wanted(), RING);
    subject.work(&mut guest);

    // The other structures; what lies between and behind; the doorbells of queues that are not there.
    let areas = [(0, 0x48), (0x1000, 16), (0x3000 - 8, 64), (0x4000 - 8, 64), (0x7000 - 8, 32), (0x7ff0, 16)];
    for value in [[0u8; 8], [0xff; 8], [0x5a; 8]] {
        for (start, len) in areas {
            for (offset, width) in places(start, len) {
                touch(&mut guest, offset, &value[..width.min((0x8000 - offset) as usize)]);
            }
        }
    }
    guest.reset();
    assert_eq!((guest.offered(), guest.queues()), (offered, queues), "read-only registers stay");
    guest.start(subject.wanted(), RING);
    subject.work(&mut guest);
}

fn places(start: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
    (start..start + len as u64).flat_map(|offset| WIDTHS.map(|width| (offset, width)))
}

fn touch<P: Poller>(guest: &mut Guest<P>, offset: u64, value: &[u8]) {
    guest.write(offset, value);
    guest.read(offset, &mut [0; 8][..value.len()]);
}
