//! MSI-X (PCI 3.0 §6.8.2): a function's table of messages, and the interrupts that its parts trigger.
//!
//! A message is a write to memory: while the function is no bus master (§6.2.2), its vectors count as masked.
//!
//! Masking is ours alone: a masked vector sets its pending bit here and never reaches the host. A route stays in the
//! host while its vector is masked, because drivers mask and unmask far more often than they change a message, and
//! changing routes is dear.

#[cfg(test)]
mod tests;
mod vector;

use std::ops::Range;
use std::sync::Arc;

use super::bar::BarIndex;
use super::config::{CapabilityTooLong, ConfigSpace};
use super::registers as reg;
use super::state::MsixVectorState;
use crate::irq::MsiAllocator;
pub use vector::MsixVector;
use vector::Vector;

/// Capability id.
const MSIX: u8 = 0x11;
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Bytes of a table entry: address, upper address, data, control.
const ENTRY: u64 = 16;
/// Most vectors that the table size field can say.
const MOST_VECTORS: u16 = 2048;

/// Where table and pending bits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixLayout {
    /// BAR of both.
    pub bar: BarIndex,
    /// Offset of the table in it, a multiple of 8.
    pub table: u32,
    /// Offset of the pending bits in it, a multiple of 8.
    pub pending: u32,
}

/// A function's MSI-X capability, table and pending bits.
#[derive(Debug)]
pub struct Msix {
    vectors: Vec<Arc<Vector>>,
    layout: MsixLayout,
    /// Offset of the message control register.
    control: u16,
}

/// An MSI-X capability that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MsixError {
    /// Limits of the table size field.
    #[error("an MSI-X table cannot have {0} vectors, only 1 to {MOST_VECTORS}")]
    Vectors(u16),
    /// Offsets share their register with the BAR's number.
    #[error("MSI-X table and pending bits must be at multiples of 8 in their BAR and must not overlap")]
    Layout,
    /// No room in configuration space.
    #[error(transparent)]
    Capability(#[from] CapabilityTooLong),
}

impl Msix {
    /// Adds an MSI-X capability of `vectors` vectors to `config`. Interrupts come from `allocator` when the guest
    /// first gives a vector a message: one that it does not use costs the host nothing.
    ///
    /// # Errors
    /// [`MsixError`].
    pub fn new(
        config: &mut ConfigSpace,
        vectors: u16,
        layout: MsixLayout,
        allocator: &Arc<dyn MsiAllocator>,
    ) -> Result<Self, MsixError> {
        if vectors == 0 || vectors > MOST_VECTORS {
            return Err(MsixError::Vectors(vectors));
        }
        let count = usize::from(vectors);
        let mut msix = Msix { vectors: Vec::with_capacity(count), layout, control: 0 };
        msix.vectors.extend((0..count).map(|_| Arc::new(Vector::new(allocator.clone()))));
        let (table, pending) = (msix.table_range(), msix.pending_range());
        let overlap = table.start < pending.end && pending.start < table.end;
        if overlap || table.start % 8 != 0 || pending.start % 8 != 0 {
            return Err(MsixError::Layout);
        }
        let bar = u32::from(layout.bar.get());
        let [size_low, size_high] = (vectors - 1).to_le_bytes();
        let [t0, t1, t2, t3] = (layout.table | bar).to_le_bytes();
        let [p0, p1, p2, p3] = (layout.pending | bar).to_le_bytes();
        let body = [size_low, size_high, t0, t1, t2, t3, p0, p1, p2, p3];
        let writable = (CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes();
        msix.control = config.add_capability(MSIX, &body, &writable)? + 2;
        Ok(msix)
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Never: there is at least one vector.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// The interrupt of vector `index`.
    pub fn vector(&self, index: u16) -> Option<MsixVector> {
        self.vectors.get(usize::from(index)).cloned().map(MsixVector)
    }

    /// To be called from [`super::function::PciFunction::config_written`].
    pub fn config_written(&mut self, config: &ConfigSpace, written: &Range<u16>) {
        let touched = |register: u16| written.start < register + 2 && register < written.end;
        if touched(self.control) || touched(reg::COMMAND) {
            self.apply_control(config);
        }
    }

    /// Reads at an offset of the BAR. Bytes of an access that reach past table and pending bits are zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.read_byte(at).unwrap_or(0);
        }
    }

    /// Writes at an offset of the BAR: 4 or 8 bytes, aligned, into the table (PCI 3.0 §6.8.2 defines no other).
    /// Anything else is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let table = self.table_range();
        if !matches!(data.len(), 4 | 8)
            || !offset.is_multiple_of(data.len() as u64)
            || !table.contains(&offset)
        {
            log::debug!("MSI-X: ignored a write of {} bytes at {offset:#x} of its BAR", data.len());
            return;
        }
        let at = offset - table.start;
        let Some(vector) = usize::try_from(at / ENTRY).ok().and_then(|index| self.vectors.get(index)) else {
            return;
        };
        vector.write(at % ENTRY, data);
    }

    /// What the table holds, vector by vector.
    pub fn state(&self) -> Vec<MsixVectorState> {
        self.vectors.iter().map(|vector| vector.state()).collect()
    }

    /// Takes over a table of as many vectors as this one has. All vectors are silent until [`Msix::go`].
    pub fn load(&mut self, saved: &[MsixVectorState]) {
        for (vector, saved) in self.vectors.iter().zip(saved) {
            vector.load(saved);
        }
    }

    /// Continues with the enable, mask and bus master bits of `config`, and delivers what is pending.
    pub fn go(&mut self, config: &ConfigSpace) {
        self.apply_control(config);
    }

    fn apply_control(&self, config: &ConfigSpace) {
        let control = config.read_u16(self.control);
        let enabled = control & CONTROL_ENABLE != 0;
        let open = control & CONTROL_MASK_ALL == 0 && config.master_enabled();
        for vector in &self.vectors {
            vector.set_function(enabled, open);
        }
    }

    fn read_byte(&self, offset: u64) -> Option<u8> {
        let (table, pending) = (self.table_range(), self.pending_range());
        if table.contains(&offset) {
            let at = offset - table.start;
            let vector = self.vectors.get(usize::try_from(at / ENTRY).ok()?)?;
            return vector.entry().get(usize::try_from(at % ENTRY).ok()?).copied();
        }
        if !pending.contains(&offset) {
            return None;
        }
        let first = usize::try_from(offset - pending.start).ok()?.checked_mul(8)?;
        let eight = self.vectors.iter().skip(first).take(8).enumerate();
        Some(eight.fold(0, |bits, (bit, vector)| bits | u8::from(vector.is_pending()) << bit))
    }

    fn table_range(&self) -> Range<u64> {
        let start = u64::from(self.layout.table);
        start..start + self.vectors.len() as u64 * ENTRY
    }

    /// One bit a vector, in whole quadwords.
    fn pending_range(&self) -> Range<u64> {
        let start = u64::from(self.layout.pending);
        start..start + self.vectors.len().div_ceil(64) as u64 * 8
    }
}
