//! An interrupt as a capability: its holder can raise it, and knows no number, no route, no controller.

use std::fmt::Debug;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

/// One interrupt line or message, edge-triggered.
pub trait Irq: Debug + Send + Sync {
    /// Raises the interrupt once.
    ///
    /// # Errors
    /// The host refused (in practice: never, for an eventfd with room in its counter).
    fn trigger(&self) -> io::Result<()>;

    /// The eventfd to which [`Irq::trigger`] would write 1 now, for a caller with a cheaper way to write than a system call.
    /// It stays open as long as the interrupt is held.
    fn event(&self) -> Option<RawFd> {
        None
    }
}

/// A message-signalled interrupt whose message the guest decides (PCI 3.0 §6.8.2).
pub trait MsiIrq: Irq {
    /// From now on [`Irq::trigger`] delivers `data` to `address`.
    ///
    /// # Errors
    /// The host refused the route; the interrupt then stays silent.
    fn set_route(&self, address: u64, data: u32) -> io::Result<()>;

    /// Takes the route away: a trigger is dropped until the next [`MsiIrq::set_route`].
    ///
    /// # Errors
    /// As [`MsiIrq::set_route`].
    fn clear_route(&self) -> io::Result<()>;
}

/// Hands out message-signalled interrupts.
pub trait MsiAllocator: Debug + Send + Sync {
    /// A new interrupt with no route yet.
    ///
    /// # Errors
    /// The host has none left.
    fn allocate(&self) -> io::Result<Arc<dyn MsiIrq>>;
}
