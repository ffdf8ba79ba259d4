//! What the load guest (`tests/guest/load`) leaves behind.

use std::fs;
use std::path::Path;

pub(crate) const BLOCK: usize = 4096;
/// Blocks that it writes one after the other, again and again.
pub(crate) const BLOCKS: u64 = 2048;

/// The number behind `key` in the guest's last line.
pub(crate) fn number(line: &str, key: &str) -> u64 {
    let rest = line.split_once(key).unwrap_or_else(|| panic!("no {key} in {line}")).1;
    rest.split(' ').next().unwrap().trim().parse().unwrap()
}

/// Asserts that each block of `image` is that of its last of `writes` writes.
pub(crate) fn assert_last_writes(image: &Path, writes: u64) {
    let image = fs::read(image).unwrap();
    for (at, block) in (0..BLOCKS).zip(image.chunks_exact(BLOCK)) {
        let last =
            ((writes + BLOCKS - at) / BLOCKS * BLOCKS + at).checked_sub(BLOCKS).filter(|last| *last > 0);
        let words = block.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        let right = |(word, found)| last.map_or(0, |number| tiny_guest::load_word(number, word)) == found;
        assert!((0..).zip(words).all(right), "block {at} is not that of write {last:?} of {writes}");
    }
}
