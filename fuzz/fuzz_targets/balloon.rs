//! A guest that does anything to the balloon, while its host changes the target and wants statistics.
//!
//! Promises: no panic and no hang; what is given back starts and ends at pages of the balloon; after all of it and a
//! reset, pages leave, and statistics come.
//!
//! Input: steps of 8 bytes, see `steps.rs`.
#![no_main]

#[path = "steps.rs"]
mod steps;

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use virtio::balloon::{Balloon, BalloonControl, set_target};
use virtio::poll::Epoll;
use virtio::testing::Guest;

fuzz_target!(|input: &[u8]| {
    let control = BalloonControl::new(1);
    let mut guest = Guest::new(Box::new(Balloon::new("balloon", &control)), Box::new(Epoll::new));
    control.attach(guest.handle());
    let mut own = |guest: &mut Guest<Epoll>, what: u8, queue: usize, [a, b, c]: [u16; 3]| {
        match what % 16 {
            11 => set_target(&control, u64::from(a) << (b % 40)),
            12 => control.request_statistics(),
            13 => drop((control.target(), control.actual(), control.statistics())),
            14 => {
                let numbers: Vec<u8> = (0..u32::from(b % 5000))
                    .flat_map(|n| n.wrapping_mul(c.into()).wrapping_add(u32::from(a) << 8).to_le_bytes())
                    .collect();
                guest.add(queue, &[&[0], &numbers], &[]);
            }
            _ => return false,
        }
        true
    };
    steps::run(&mut guest, input, &mut own, |guest| {
        guest.request(0, &[&7u32.to_le_bytes()], &[]);
        assert_eq!(guest.discards.all().last(), Some(&(7 << 12, 4096)));
        guest.add(2, &[&[4, 0, 9, 0, 0, 0, 0, 0, 0, 0]], &[]);
        guest.kick(2);
        guest.wait_until("statistics come", |_| control.statistics().is_some_and(|now| now.free == Some(9)));
        assert_eq!(control.fresh_statistics(Duration::ZERO), None);
    });
});
