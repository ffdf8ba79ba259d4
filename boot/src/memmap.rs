//! The guest's memory map, the same for every boot protocol.

use crate::layout::{ACPI, ECAM, HIMEM, LOW_MEMORY_END, RamLayout};

/// Kinds of guest-physical address ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// Usable RAM. E820 type 1, `XEN_HVM_MEMMAP_TYPE_RAM`.
    Ram,
    /// Not usable as RAM. E820 type 2, `XEN_HVM_MEMMAP_TYPE_RESERVED`.
    Reserved,
}

impl MemoryKind {
    /// Its number in both protocols.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
        }
    }
}

/// A range of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Length; never 0.
    pub len: u64,
    /// Its kind.
    pub kind: MemoryKind,
}

/// Maximum number of ranges.
pub(crate) const MAX_RANGES: usize = 5;

/// The memory map of a machine with `ram`, by address. The ECAM is reserved because Linux uses an MCFG table
/// only if the firmware's map or an ACPI device reserves its range (arch/x86/pci/mmconfig-shared.c).
pub fn memory_map(ram: &RamLayout) -> Vec<MemoryRange> {
    use MemoryKind::{Ram, Reserved};
    let high = ram.high.clone().unwrap_or(0..0);
    let ranges: [_; MAX_RANGES] = [
        (ram.low.start, LOW_MEMORY_END.min(ram.low.end), Ram),
        (ACPI, HIMEM, Reserved),
        (HIMEM, ram.low.end, Ram),
        (ECAM.start, ECAM.end, Reserved),
        (high.start, high.end, Ram),
    ];
    ranges
        .into_iter()
        .filter(|(start, end, _)| start < end)
        .map(|(start, end, kind)| MemoryRange { start, len: end - start, kind })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use MemoryKind::{Ram, Reserved};

    fn map(mib: u64) -> Vec<(u64, u64, MemoryKind)> {
        let ranges = memory_map(&RamLayout::new(mib << 20));
        ranges.iter().map(|r| (r.start, r.start + r.len, r.kind)).collect()
    }

    #[test]
    fn map_of_128_mib() {
        assert_eq!(
            map(128),
            [
                (0, 0x9_fc00, Ram),
                (0xe_0000, 0x10_0000, Reserved),
                (0x10_0000, 0x800_0000, Ram),
                (0xe000_0000, 0xe010_0000, Reserved),
            ]
        );
    }

    #[test]
    fn map_of_3_gib_ends_at_the_hole() {
        assert_eq!(map(3 << 10)[2], (0x10_0000, 0xc000_0000, Ram));
        assert_eq!(map(3 << 10).len(), 4);
    }

    #[test]
    fn map_of_6_gib_continues_above_the_hole() {
        assert_eq!(map(6 << 10)[2..4], [(0x10_0000, 0xc000_0000, Ram), (0xe000_0000, 0xe010_0000, Reserved)]);
        assert_eq!(map(6 << 10)[4], (0x1_0000_0000, 0x1_c000_0000, Ram));
    }

    #[test]
    fn ranges_are_in_order_and_apart() {
        for mib in [0, 1, 2, 128, 3071, 3072, 3073, 6144, 1 << 20] {
            let map = map(mib);
            assert!(map.len() <= MAX_RANGES);
            assert!(map.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{map:x?}");
        }
    }
}
