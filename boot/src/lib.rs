//! Puts a kernel into guest memory and says how to enter it. Knows no KVM and no device.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod layout;
