//! The hash of addresses: quick, and with a secret, so that no guest can choose addresses that collide.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::random::high_half;

/// The secret.
#[derive(Debug, Clone)]
pub(crate) struct Seed([u64; 2]);

impl Seed {
    /// A secret of this process.
    pub(crate) fn random() -> Self {
        Seed([RandomState::new().hash_one(0), RandomState::new().hash_one(1)])
    }
}

impl BuildHasher for Seed {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded { seed: self.0, state: 0 }
    }
}

/// Both halves of a product with the secret, twice.
#[derive(Debug)]
pub(crate) struct Folded {
    seed: [u64; 2],
    state: u64,
}

fn fold(a: u64, b: u64) -> u64 {
    a.wrapping_mul(b) ^ high_half(a, b)
}

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.state
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, value: u64) {
        let [first, second] = self.seed;
        let once = fold(value ^ self.state ^ first, second | 1);
        self.state = fold(once ^ second, first | 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_a_row_are_spread_over_low_and_high_bits() {
        let seed = Seed([0x1234_5678_9abc_def1, 0xfedc_ba98_7654_3211]);
        for shift in [0, 57] {
            let mut counts = [0; 128];
            for address in 0..12_800u64 {
                counts[usize::try_from((seed.hash_one(address) >> shift) & 127).unwrap()] += 1;
            }
            assert!(counts.iter().all(|count| (50..180).contains(count)), "{shift} {counts:?}");
        }
        assert_ne!(Seed::random().hash_one(5), Seed::random().hash_one(5));
    }
}
