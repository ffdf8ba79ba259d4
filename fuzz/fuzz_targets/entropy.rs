//! A guest that does anything to the entropy device, resets, pauses and restores in between.
//!
//! Promises: no panic and no hang; after all of it and a reset, a request is answered.
//!
//! Input: steps of 8 bytes, see `steps.rs`.
#![no_main]

#[path = "steps.rs"]
mod steps;

use libfuzzer_sys::fuzz_target;
use virtio::entropy::Entropy;
use virtio::poll::Epoll;
use virtio::testing::Guest;

fuzz_target!(|input: &[u8]| {
    let mut guest = Guest::new(Box::new(Entropy::new("rng")), Box::new(Epoll::new));
    steps::run(&mut guest, input, &mut |_, _, _, _| false, |guest| {
        assert_eq!(guest.request(0, &[], &[64]).0.len, 64);
    });
});
