//! Any bytes as a guest's disk: either it is refused, or every file found lies within it.
//!
//! Most of an image is zero, and a fuzzer shall not waste its time there: the input is the blocks of 1 KiB that are not, each
//! behind its number, over an image of 4 MiB.
//!
//! `cargo +nightly fuzz run image_explore fuzz/corpus/image_explore fuzz/seeds/image_explore`
#![no_main]

use libfuzzer_sys::fuzz_target;

const IMAGE: usize = 4 << 20;
const BLOCK: usize = 1024;
/// The budget of a start: what any search may cost at most.
const STEPS: u64 = 1 << 30;

fuzz_target!(|input: &[u8]| {
    let mut image = vec![0; IMAGE];
    for part in input.chunks(2 + BLOCK) {
        let Some((place, bytes)) = part.split_first_chunk::<2>() else { continue };
        let at = usize::from(u16::from_le_bytes(*place)) % (IMAGE / BLOCK) * BLOCK;
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
    for (sector, release) in [(512, None), (4096, None), (512, Some("6.1.0-9-amd64"))] {
        let search = minivmm::explore_bytes(&image, sector, release);
        assert!(!search.text.is_empty());
        assert!(search.steps <= STEPS, "{} steps for an image of 4 MiB", search.steps);
        assert_eq!(search, minivmm::explore_bytes(&image, sector, release), "the same image costs the same");
    }
});
