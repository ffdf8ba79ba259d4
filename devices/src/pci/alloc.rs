//! Where BARs are before the guest runs. The guest may move them; this machine has no firmware to place them.

use std::ops::Range;

use super::bar::{Bar, BarKind};

/// The addresses at which PCI functions may answer. Nothing else may be there: no RAM, no ECAM, no other device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Below 4 GiB, for 32-bit BARs.
    pub low: Range<u64>,
    /// Above all memory, for 64-bit BARs; may be empty.
    pub high: Range<u64>,
}

impl Windows {
    /// Whether all of `range` is in one window.
    pub fn hold(&self, range: &Range<u64>) -> bool {
        [&self.low, &self.high].iter().any(|window| window.start <= range.start && range.end <= window.end)
    }
}

/// A window is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no PCI window has room for a BAR of {0:#x} bytes; use fewer devices")]
pub struct WindowFull(pub u64);

/// Hands out addresses, upwards, each aligned to its size.
#[derive(Debug)]
pub struct BarAllocator {
    low: Range<u64>,
    high: Range<u64>,
}

impl BarAllocator {
    /// All of `windows` is free.
    pub fn new(windows: &Windows) -> Self {
        BarAllocator { low: windows.low.clone(), high: windows.high.clone() }
    }

    /// An address for `bar`: a 64-bit one goes into the high window, or where that is full into the low one.
    ///
    /// # Errors
    /// [`WindowFull`].
    pub fn allocate(&mut self, bar: &Bar) -> Result<u64, WindowFull> {
        let high = match bar.kind() {
            BarKind::Memory64 => take(&mut self.high, bar.size()),
            BarKind::Memory32 => None,
        };
        high.or_else(|| take(&mut self.low, bar.size())).ok_or(WindowFull(bar.size()))
    }
}

fn take(free: &mut Range<u64>, size: u64) -> Option<u64> {
    let start = free.start.checked_next_multiple_of(size)?;
    let end = start.checked_add(size).filter(|end| *end <= free.end)?;
    free.start = end;
    Some(start)
}

#[cfg(test)]
mod tests {
    use super::super::bar::BarIndex;
    use super::*;

    fn bar(kind: BarKind, size: u64) -> Bar {
        Bar::new(BarIndex::new(0).unwrap(), kind, size).unwrap()
    }

    #[test]
    fn addresses_are_aligned_and_in_the_window_of_their_kind() {
        let windows = Windows { low: 0x1010..0x4000, high: 1 << 32..1 << 33 };
        let mut free = BarAllocator::new(&windows);
        assert_eq!(free.allocate(&bar(BarKind::Memory32, 0x1000)), Ok(0x2000));
        assert_eq!(free.allocate(&bar(BarKind::Memory32, 0x10)), Ok(0x3000));
        assert_eq!(free.allocate(&bar(BarKind::Memory64, 0x4000)), Ok(1 << 32));
        assert_eq!(free.allocate(&bar(BarKind::Memory32, 0x1000)), Err(WindowFull(0x1000)));
        assert_eq!(free.allocate(&bar(BarKind::Memory64, 1 << 32)), Err(WindowFull(1 << 32)));
        assert_eq!(free.allocate(&bar(BarKind::Memory32, 0x800)), Ok(0x3800));
    }

    #[test]
    fn a_wide_bar_goes_low_where_there_is_no_high_window_and_never_wraps() {
        let mut free = BarAllocator::new(&Windows { low: 0..0x1000, high: 0..0 });
        assert_eq!(free.allocate(&bar(BarKind::Memory64, 0x1000)), Ok(0));
        let top = Windows { low: 0..0, high: u64::MAX - 0x800..u64::MAX };
        assert!(BarAllocator::new(&top).allocate(&bar(BarKind::Memory64, 0x1000)).is_err());
    }
}
