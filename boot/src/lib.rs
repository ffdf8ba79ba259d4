//! Puts a kernel into guest memory and defines its entry state. Knows no KVM and no device.
//!
//! [`Kernel::parse`] reads headers, [`plan()`] decides addresses, the caller copies the pieces in
//! [`BootPlan`], and [`BootPlan::write_tables`] and [`BootPlan::cpu_state`] do the rest.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod cmdline;
mod compression;
pub mod cpio;
pub mod entry;
#[cfg(test)]
mod hostile_tests;
pub mod initrd;
pub mod inspect;
pub mod kernel;
pub mod layout;
pub mod memmap;
pub mod modules;
pub mod plan;
pub mod read;
pub mod smbios;
mod tables;
#[cfg(test)]
mod testing;
mod xz;

pub use initrd::Initrd;
pub use kernel::Kernel;
pub use plan::{BootPlan, Load, PlanRequest, plan};
pub use tables::TablesError;
