//! What a PCI function is to the root.

use std::ops::Range;

use super::bar::BarIndex;
use super::config::ConfigSpace;
use crate::bus::Effect;
use crate::component::Component;

/// A PCI function: a configuration space, and what is behind its BARs.
///
/// The root calls these with the function locked; a function must not call the root. Offsets are within the BAR, and
/// the whole access lies inside it; `data.len()` is 1, 2, 4 or 8, at any alignment.
///
/// The state of a function as a [`Component`] is what its BARs hold. The root saves and loads the configuration spaces, and
/// loads them first.
pub trait PciFunction: Component {
    /// The configuration space. Changes are published by themselves.
    fn config(&self) -> &ConfigSpace;

    /// The configuration space, to change it.
    fn config_mut(&mut self) -> &mut ConfigSpace;

    /// The guest wrote to `written` bytes of the configuration space; what was writable is changed and published. Also
    /// called when nothing changed, and after a load for the whole space. There is no call for reads: the guest
    /// reads without telling. What a read shall give must be set before, here.
    fn config_written(&mut self, written: Range<u16>);

    /// The guest reads from a BAR: fill `data`.
    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) -> Option<Effect>;

    /// The guest writes to a BAR.
    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) -> Option<Effect>;

    /// From now on the guest finds `bar` at `address`, or nowhere. Called for changes only; doorbells follow the BAR.
    /// Between the old and the new place there is always a call with nowhere, so that places never collide.
    fn bar_changed(&mut self, bar: BarIndex, address: Option<u64>);
}
