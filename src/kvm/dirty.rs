//! Bits of KVM's log of written pages.

/// The numbers of the bits that are set in `words`, in ascending order.
pub(super) fn set_bits(words: &[u64]) -> impl Iterator<Item = u64> + '_ {
    words.iter().zip((0u64..).step_by(64)).flat_map(|(word, first)| {
        let mut left = *word;
        std::iter::from_fn(move || {
            let bit = u64::from((left != 0).then(|| left.trailing_zeros())?);
            left &= left - 1;
            Some(first + bit)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_bit_is_given_once() {
        let words = [1 | 1 << 63, 0, u64::MAX, 1 << 5];
        let bits: Vec<_> = set_bits(&words).collect();
        let expected: Vec<_> = [0, 63].into_iter().chain(128..192).chain([197]).collect();
        assert_eq!(bits, expected);
    }
}
