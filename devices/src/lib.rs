//! Buses, interrupts as capabilities, PCI, and the few devices that are not virtio.
//!
//! Nothing here knows KVM: what a device wants from the host it gets as a capability ([`irq::Irq`]), what it wants
//! from the machine it returns ([`bus::Effect`]).
#![forbid(unsafe_code)]

pub mod bus;
pub mod irq;
pub mod ports;
