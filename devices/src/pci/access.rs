//! The bus seen from the machine: configuration space and windows as devices. They hold no lock of their own, so that a
//! vCPU busy with one function stops no other vCPU at another.

use std::ops::Range;
use std::sync::Arc;

use super::bar::BarIndex;
use super::root::{PciRoot, SharedFunction, lock};
use super::{ECAM_SIZE, FUNCTION_ECAM};
use crate::bus::{Effect, SharedDevice};

/// Offset and length of the pieces of an access that each lie in one function's 4 KiB.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>)> {
    let left = usize::try_from(FUNCTION_ECAM - offset % FUNCTION_ECAM).unwrap_or(len).min(len);
    [(offset, 0..left), (offset.saturating_add(left as u64), left..len)]
        .into_iter()
        .filter(|(_, range)| !range.is_empty())
}

/// Configuration space as a device on the bus.
#[derive(Debug)]
pub struct Ecam(pub(super) Arc<PciRoot>);

impl SharedDevice for Ecam {
    fn size(&self) -> u64 {
        ECAM_SIZE
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Option<Effect> {
        for (offset, range) in pieces(offset, data.len()) {
            if let Some(piece) = data.get_mut(range) {
                self.0.config_read(offset, piece);
            }
        }
        None
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Effect> {
        for (offset, range) in pieces(offset, data.len()) {
            if let Some(piece) = data.get(range) {
                self.0.config_write(offset, piece);
            }
        }
        None
    }
}

/// A window of BARs as a device on the bus.
#[derive(Debug)]
pub struct PciWindow {
    pub(super) root: Arc<PciRoot>,
    pub(super) range: Range<u64>,
}

impl PciWindow {
    fn find(&self, offset: u64, len: usize) -> Option<(SharedFunction, BarIndex, u64)> {
        self.root.find(self.range.start.checked_add(offset)?, len)
    }
}

impl SharedDevice for PciWindow {
    fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// What no BAR claims whole reads as all ones (PCI 3.0 §6.2.5, master abort).
    fn read(&self, offset: u64, data: &mut [u8]) -> Option<Effect> {
        let Some((function, bar, offset)) = self.find(offset, data.len()) else {
            data.fill(0xff);
            return None;
        };
        lock(&function).bar_read(bar, offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<Effect> {
        let (function, bar, offset) = self.find(offset, data.len())?;
        lock(&function).bar_write(bar, offset, data)
    }
}
