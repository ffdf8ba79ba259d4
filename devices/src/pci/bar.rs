//! Base address registers (PCI 3.0 §6.2.5.1): what one is, and how it looks in configuration space.
//!
//! Memory only: I/O BARs are for machines with ports to spare. Sizing needs no code: a BAR's size bits are
//! read-only zeros, so that all ones written read back as the size.

use std::ops::Range;

use super::registers::BAR0;

/// Which of a function's six BARs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BarIndex(u8);

impl BarIndex {
    /// `index` 0 to 5; `None` for others.
    pub const fn new(index: u8) -> Option<Self> {
        if index < 6 { Some(BarIndex(index)) } else { None }
    }

    /// As a number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Its register.
    pub(super) const fn register(self) -> u16 {
        // Lossless: `u16::from` is not const.
        BAR0 + 4 * self.0 as u16
    }
}

/// How wide a BAR's address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// One register; the address is below 4 GiB.
    Memory32,
    /// Two registers; the address is anywhere.
    Memory64,
}

/// A BAR: which, how wide, how large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    index: BarIndex,
    kind: BarKind,
    size: u64,
}

/// A BAR that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// Size rules of PCI 3.0 §6.2.5.1.
    #[error(
        "a BAR of {0:#x} bytes is not possible: the size must be a power of two of at least 16, and at most 2 GiB for a 32-bit one"
    )]
    Size(u64),
    /// No register for the upper half.
    #[error("BAR 5 cannot be 64 bits wide: there is no register after it for the upper half")]
    NoUpperHalf,
    /// Register in use.
    #[error("BAR {0} is taken already, or is the upper half of the one before it")]
    Taken(u8),
}

impl Bar {
    /// A BAR of `size` bytes.
    ///
    /// # Errors
    /// [`BarError`] for a size or place that PCI does not have.
    pub fn new(index: BarIndex, kind: BarKind, size: u64) -> Result<Self, BarError> {
        let most = match kind {
            BarKind::Memory32 => 1 << 31,
            BarKind::Memory64 => 1 << 62,
        };
        if !size.is_power_of_two() || size < 16 || size > most {
            return Err(BarError::Size(size));
        }
        if kind == BarKind::Memory64 && index.0 == 5 {
            return Err(BarError::NoUpperHalf);
        }
        Ok(Bar { index, kind, size })
    }

    /// Which one.
    pub fn index(&self) -> BarIndex {
        self.index
    }

    /// How wide.
    pub fn kind(&self) -> BarKind {
        self.kind
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Read-only low bits: memory, type.
    pub(super) fn flags(&self) -> u64 {
        if self.kind == BarKind::Memory64 { 0b100 } else { 0 }
    }

    /// Bits of the register (pair) that hold the address.
    pub(super) fn address_mask(&self) -> u64 {
        let width = if self.kind == BarKind::Memory64 { u64::MAX } else { u32::MAX.into() };
        !(self.size - 1) & width
    }

    /// Registers that it takes, as bytes of configuration space.
    pub(super) fn registers(&self) -> Range<u16> {
        let start = self.index.register();
        start..start + if self.kind == BarKind::Memory64 { 8 } else { 4 }
    }

    /// Addresses that it covers at `base`; `None` if that wraps.
    pub(super) fn range_at(&self, base: u64) -> Option<Range<u64>> {
        Some(base..base.checked_add(self.size)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_pci_does_not_have_are_refused() {
        let bar = |size, kind| Bar::new(BarIndex(0), kind, size).map(|bar| bar.size());
        for size in [0, 1, 8, 24, 0x1001, 1 << 32, u64::MAX] {
            assert_eq!(bar(size, BarKind::Memory32), Err(BarError::Size(size)));
        }
        assert_eq!(bar(1 << 31, BarKind::Memory32), Ok(1 << 31));
        assert_eq!(bar(1 << 40, BarKind::Memory64), Ok(1 << 40));
        assert_eq!(bar(1 << 63, BarKind::Memory64), Err(BarError::Size(1 << 63)));
    }

    #[test]
    fn the_last_bar_has_no_upper_half() {
        assert_eq!(Bar::new(BarIndex(5), BarKind::Memory64, 4096), Err(BarError::NoUpperHalf));
        assert_eq!(BarIndex::new(6), None);
    }
}
