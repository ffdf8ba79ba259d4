//! The options of a port as settings of the switch.

use std::num::NonZeroU64;
use std::time::Duration;

use virtio::net::Offloads;
use vswitch::{Accepts, Impairment, PortConfig, VlanId, VlanMode};

use super::info::PortKind;
use crate::spec::{Delay, Impairment as Wanted, Loss, MacAddress, PortOptions, Rate, Trunk};

/// Why options do not fit a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum OptionsError {
    /// `secure` without an address.
    #[error("`secure` keeps a port to its machine's address, and this port has none; leave `secure` out")]
    NoAddress,
    /// `trunk` for a network behind the host's sockets.
    #[error(
        "an uplink `user` takes no frames with tags; leave `trunk` out, or have an uplink `user,vlan=` for each VLAN"
    )]
    NoTags,
}

/// The settings of a port of this kind, whose machine has the address `mac`.
pub(super) fn port_config(
    kind: PortKind,
    options: &PortOptions,
    mac: Option<MacAddress>,
) -> Result<PortConfig, OptionsError> {
    if kind == PortKind::User && options.trunk.is_some() {
        return Err(OptionsError::NoTags);
    }
    let secure = options.secure.unwrap_or(false);
    let secure = match (secure, mac) {
        (false, _) => None,
        (true, Some(mac)) => Some(mac.bytes()),
        (true, None) => return Err(OptionsError::NoAddress),
    };
    Ok(PortConfig {
        vlan: vlan_mode(options),
        isolated: options.isolated.unwrap_or(false),
        secure,
        from_port: impairment(&options.from_guest),
        to_port: impairment(&options.to_guest),
    })
}

fn vlan_mode(options: &PortOptions) -> VlanMode {
    // A number of the spec is one of the switch: both are 1 to 4094.
    let id = |id: crate::spec::VlanId| VlanId::new(id.get());
    match (&options.trunk, options.vlan) {
        (Some(Trunk::All), _) => VlanMode::trunk_all(),
        (Some(Trunk::Vlans(vlans)), _) => VlanMode::trunk(vlans.iter().filter_map(|vlan| id(*vlan))),
        (None, Some(vlan)) => VlanMode::Access(id(vlan).unwrap_or_default()),
        (None, None) => VlanMode::default(),
    }
}

fn impairment(wanted: &Wanted) -> Impairment {
    let time = |delay: Option<Delay>| delay.map_or(Duration::ZERO, Delay::duration);
    Impairment {
        delay: time(wanted.delay),
        jitter: time(wanted.jitter),
        loss_ppm: wanted.loss.map_or(0, Loss::per_million),
        rate: wanted.rate.and_then(Rate::bits_per_second).and_then(NonZeroU64::new),
    }
}

/// What a port takes, by the bits of its control message.
pub(super) fn accepts(offloads: Offloads) -> Accepts {
    let has = |one| offloads.contains(Offloads::CSUM | one);
    Accepts {
        checksum: has(Offloads::CSUM),
        tso4: has(Offloads::TSO4),
        tso6: has(Offloads::TSO6),
        ecn: has(Offloads::ECN),
    }
}
