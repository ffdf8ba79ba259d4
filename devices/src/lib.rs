//! Buses, interrupts as capabilities, PCI, and the few devices that are not virtio.
//!
//! Nothing here knows KVM: what a device wants from the host it gets as a capability ([`irq::Irq`]), what it wants
//! from the machine it returns ([`bus::Effect`]).
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::cast_possible_truncation, reason = "tests cut counters down to bytes on purpose")
)]

pub mod bus;
pub mod component;
pub mod console;
pub mod irq;
pub mod pci;
pub mod ports;
pub mod power;
pub mod pvpanic;
pub mod ration;
pub mod reset;
pub mod rtc;
pub mod serial;
pub mod thread;
