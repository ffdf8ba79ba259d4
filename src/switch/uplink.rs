//! Opens the uplinks of a switch: what connects it to the world beside its machines.

use super::config;
use super::error::SwitchError;
use super::info::PortKind;
use super::link::Link;
use super::ports::{Port, Ports};
use super::socket_uplink::SocketUplink;
use super::user_uplink::{UserUplink, in_use};
use crate::NetSocketError;
use crate::host::switch_port::OFFLOADS;
use crate::host::tap::TapPort;
use crate::host::user_network::warn_without_name_server;
use crate::spec::{Subnet, Uplink, UplinkLink, VlanId};

/// What to do where another program listens on the socket.
const CURE: &str = ", or choose another path";

/// Checks that uplinks can be on one switch together.
pub(super) fn check(uplinks: &[Uplink]) -> Result<(), SwitchError> {
    let users = || {
        uplinks.iter().filter_map(|uplink| match &uplink.link {
            UplinkLink::User(nat) => Some((nat, uplink.options.vlan.unwrap_or(VlanId::DEFAULT))),
            UplinkLink::Tap(_) | UplinkLink::Socket(_) => None,
        })
    };
    for (index, (nat, vlan)) in users().enumerate() {
        let (mut same, mut cure) = (Vec::new(), String::new());
        if users().take(index).any(|(other, _)| other.subnet().overlaps(nat.subnet())) {
            let is_free = |free: &Subnet| users().all(|(nat, _)| !nat.subnet().overlaps(*free));
            same.push("addresses");
            cure += &format!(",subnet={}", Subnet::examples().find(is_free).unwrap_or_default());
        }
        if users().take(index).any(|(_, other)| other == vlan) {
            let is_free = |free: &u16| users().all(|(_, vlan)| vlan.get() != *free);
            same.push("VLAN");
            cure += &format!(",vlan={}", (2..VlanId::MAX).find(is_free).unwrap_or(VlanId::MAX));
        }
        if !same.is_empty() {
            return Err(SwitchError::Uplink {
                uplink: "user".into(),
                reason: format!(
                    "another uplink user has the same {}; give one of them `{cure}`",
                    same.join(" and ")
                ),
            });
        }
    }
    let forwards = || users().flat_map(|(nat, _)| &nat.forwards);
    for (index, asked) in forwards().enumerate() {
        if let Some(before) = forwards().take(index).find(|before| before.ports.clashes(&asked.ports)) {
            return Err(in_use(asked, format!("`forward={before}`")));
        }
    }
    Ok(())
}

/// Opens an uplink. Returns it with a warning for the user. `networks`: how many uplinks `user` the switch has.
pub(super) fn open(
    uplink: &Uplink,
    others: &Ports,
    networks: usize,
) -> Result<(Port, Option<String>), SwitchError> {
    let options = uplink.options.clone();
    let kind = match &uplink.link {
        UplinkLink::Tap(_) => PortKind::Tap,
        UplinkLink::Socket(_) => PortKind::Socket,
        UplinkLink::User(_) => PortKind::User,
    };
    config::port_config(kind, &options, None)
        .map_err(|error| SwitchError::Uplink { uplink: uplink.to_string(), reason: error.to_string() })?;
    match &uplink.link {
        UplinkLink::Tap(name) => {
            let tap = TapPort::open(name.as_str(), OFFLOADS)?;
            let (accepts, warning) = (config::accepts(tap.offloads()), tap.warning());
            let mut port = Port::new(free_name(name.as_str(), others), Link::Tap(tap), options);
            port.accepts = accepts;
            Ok((port, warning.map(|warning| warning.to_string())))
        }
        UplinkLink::User(nat) => {
            let user = UserUplink::open(nat, networks)?;
            warn_without_name_server();
            let mut port = Port::new(free_name("user", others), Link::User(Box::new(user)), options);
            port.accepts = config::accepts(OFFLOADS);
            Ok((port, None))
        }
        UplinkLink::Socket(path) => {
            let socket =
                SocketUplink::listen(path).map_err(|fault| NetSocketError::fault(path, fault, CURE))?;
            Ok((Port::new(free_name("socket", others), Link::Socket(socket), options), None))
        }
    }
}

/// A name that no other port has.
fn free_name(wanted: &str, others: &Ports) -> String {
    let is_free = |name: &String| others.iter().all(|(_, port)| port.name != *name);
    let numbered = (2..u32::MAX).map(|number| format!("{wanted}{number}"));
    std::iter::once(wanted.to_owned()).chain(numbered).find(is_free).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(uplinks: &[&str]) -> String {
        let uplinks: Vec<_> = uplinks.iter().map(|text| Uplink::parse(text.as_ref()).unwrap()).collect();
        check(&uplinks).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn networks_of_one_switch_differ_in_addresses_and_vlan() {
        for good in [&["user", "tap=tap0"][..], &["user,vlan=4"], &["user", "user,subnet=10.0.5.0/24,vlan=2"]]
        {
            assert_eq!(checked(good), "");
        }
        for (wrong, said) in [
            (["user", "user"], "same addresses and VLAN; give one of them `,subnet=10.0.5.0/24,vlan=2`"),
            (
                ["user,subnet=10.0.0.0/16", "user,vlan=2"],
                "same addresses; give one of them `,subnet=10.1.5.0/24`",
            ),
            (["user,vlan=2", "user,vlan=2,subnet=10.0.5.0/24"], "same VLAN; give one of them `,vlan=3`"),
        ] {
            let error = checked(&wrong);
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn forwards_of_one_switch_have_ports_of_their_own() {
        assert_eq!(
            checked(&["user,forward=0:vm0:22,forward=0:vm1:22,forward=2222:vm0:22,forward=2222:vm0:22/udp"]),
            ""
        );
        for wrong in [
            &["user,forward=2222:vm0:22,forward=2222:vm1:22"][..],
            &["user,forward=2222:vm0:22", "user,vlan=2,subnet=10.0.5.0/24,forward=2222:vm1:22"],
        ] {
            assert_eq!(
                checked(wrong),
                "cannot forward 2222:vm1:22: tcp 127.0.0.1:2222 is in use by `forward=2222:vm0:22`; take another port of the \
                 host, or 0 for any that is free (`forward=0:vm1:22`)"
            );
        }
    }
}
