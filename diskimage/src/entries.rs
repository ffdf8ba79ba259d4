//! Entries of an image's tables: the bits of pointers, and reference counts of every width (qcow2 specification).

/// Bits 9 to 55 of an entry of an L1 or L2 table: where the cluster lies.
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// A compressed cluster, in an entry of an L2 table.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// Bits of an entry of the refcount table that are no offset.
pub(crate) const REFCOUNT_TABLE_RESERVED: u64 = 0x1ff;
/// Where the refcount block lies, in an entry of the refcount table.
pub(crate) const BLOCK_OFFSET: u64 = !REFCOUNT_TABLE_RESERVED;

/// The reference count `index`, of 2^`order` bits, in a refcount block or in a part that begins with a whole count. Counts of less
/// than a byte begin with the lowest bits of each byte ("Refcount block entry").
pub(crate) fn refcount(block: &[u8], order: u32, index: u64) -> Option<u64> {
    let bits = 1_u64 << order;
    let at = usize::try_from(index * bits / 8).ok()?;
    if order < 3 {
        let (shift, mask) = (index * bits % 8, (1_u8 << bits) - 1);
        return Some(u64::from(block.get(at)? >> shift & mask));
    }
    let bytes = block.get(at..at + usize::try_from(bits / 8).ok()?)?;
    Some(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// Sets the reference count `index` to `count`, which fits.
pub(crate) fn set_refcount(block: &mut [u8], order: u32, index: u64, count: u64) -> Option<()> {
    let bits = 1_u64 << order;
    let at = usize::try_from(index * bits / 8).ok()?;
    if order < 3 {
        let (shift, mask) = (index * bits % 8, (1_u8 << bits) - 1);
        let byte = block.get_mut(at)?;
        *byte = *byte & !(mask << shift) | u8::try_from(count).ok()? << shift;
        return Some(());
    }
    let bytes = block.get_mut(at..at + usize::try_from(bits / 8).ok()?)?;
    for (byte, value) in bytes.iter_mut().rev().zip(count.to_le_bytes()) {
        *byte = value;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_each_width_are_where_the_specification_has_them() {
        let block = [0b1000_0001, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde];
        let all = |order, count| {
            (0..count).map(|index| refcount(&block, order, index).unwrap()).collect::<Vec<_>>()
        };
        // One bit: the lowest bit of the first byte is the first.
        assert_eq!(all(0, 8), [1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(all(1, 4), [1, 0, 0, 2]);
        assert_eq!(all(2, 4), [1, 8, 2, 1]);
        assert_eq!(all(3, 3), [0x81, 0x12, 0x34]);
        assert_eq!(all(4, 4), [0x8112, 0x3456, 0x789a, 0xbcde]);
        assert_eq!(all(5, 2), [0x8112_3456, 0x789a_bcde]);
        assert_eq!(all(6, 1), [u64::from_be_bytes(block)]);
    }

    #[test]
    fn a_count_is_set_without_its_neighbours() {
        for order in 0..=6 {
            let mut block = [0xff; 24];
            assert_eq!(set_refcount(&mut block, order, 1, 0), Some(()));
            let largest = refcount(&[0xff; 24], order, 0);
            let counts = [0, 1, 2].map(|index| refcount(&block, order, index));
            assert_eq!(counts, [largest, Some(0), largest], "{order}");
            assert_eq!(set_refcount(&mut block, order, 1, 1), Some(()));
            assert_eq!(refcount(&block, order, 1), Some(1));
            assert_eq!(refcount(&block, order, 192), None, "outside of it");
        }
    }
}
