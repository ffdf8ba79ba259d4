//! A machine's place on a virtual switch: the switch's name, and the options of its port there.

mod impairment;
mod name;
#[cfg(feature = "cli")]
mod nat;
mod options;
#[cfg(test)]
mod tests;
#[cfg(feature = "cli")]
mod uplink;
mod vlan;

pub use impairment::{Delay, Impairment, Loss, Rate};
pub use name::SwitchName;
#[cfg(feature = "cli")]
pub(crate) use nat::{ForwardedTo, GuestForward, NatNetwork};
pub use options::PortOptions;
pub(super) use options::{PortTable, join_trunks};
#[cfg(feature = "cli")]
pub(crate) use uplink::{Uplink, UplinkLink};
pub use vlan::{Trunk, VlanId};
