//! What the network interfaces of guests are on: TAPs, user-mode networks, passt, other guests; and the disk that a guest works on.

use crate::rivals::Rival;

/// The disk that a guest works on.
#[derive(Debug, Clone)]
pub struct Data {
    pub file: String,
    pub format: &'static str,
    pub read_only: bool,
}

impl Default for Data {
    /// One that all guests read.
    fn default() -> Self {
        Data { file: "data.raw".into(), format: "raw", read_only: true }
    }
}

/// What the network interface of a guest is on, and its disk.
#[derive(Debug, Clone)]
pub struct Setup {
    pub name: String,
    pub rival: Rival,
    pub data: Data,
    /// How it is started, if not with that disk and that interface.
    pub line: Option<String>,
    /// As minivmm's `--net` or QEMU's `-netdev` has it.
    pub net: String,
    /// What the lab does first, and at the end.
    pub before: String,
    pub after: String,
    /// A program of the lab that the guest's network is made by, and a line that succeeds when it is ready.
    pub helper: Option<(String, String)>,
    /// What the guest does.
    pub inside: String,
}

impl Setup {
    /// A TAP of its own: the host has 192.0.N.1 there and the guest 192.0.N.2.
    pub fn tap(rival: Rival) -> Self {
        let (tap, network) = (tap(rival), network(rival));
        Setup {
            name: rival.name().into(),
            rival,
            data: Data::default(),
            line: None,
            net: match rival {
                Rival::Minivmm => format!("tap={tap}"),
                _ => format!("tap,ifname={tap},script=no,downscript=no,vhost=off"),
            },
            before: format!(
                "ip tuntap add mode tap dev {tap} vnet_hdr && ip addr add 192.0.{network}.1/24 dev {tap} && ip link set {tap} up"
            ),
            after: format!("ip link del {tap}"),
            helper: None,
            inside: address(&format!("192.0.{network}.2/24"), &format!("192.0.{network}.1")),
        }
    }

    /// Its own user-mode network.
    pub fn user(rival: Rival) -> Self {
        Setup {
            name: format!("{}, user", rival.name()),
            rival,
            data: Data::default(),
            line: None,
            net: if rival == Rival::Minivmm { "user,host-loopback=on".into() } else { "user".into() },
            before: "true".into(),
            after: "true".into(),
            helper: None,
            inside: address("10.0.2.15/24", GATEWAY),
        }
    }

    /// On a disk of its own.
    pub fn on(self, data: Data) -> Self {
        Setup { name: data.file.clone(), data, ..self }
    }

    /// passt behind a stream socket. What its interface has, the guest has; its gateway is the host's loopback.
    pub fn passt(rival: Rival) -> Self {
        let (out, socket) = (format!("out{}", network(rival)), format!("passt{}.sock", network(rival)));
        let passt = format!(
            "exec passt --foreground --stderr --quiet --runas 0 --socket $PWD/{socket} --interface {out} --outbound-if4 {out} \
             --address 10.0.2.15 --netmask 24 --gateway {GATEWAY} --ipv4-only --mtu {PASST_MTU}"
        );
        Setup {
            name: format!("{}, passt", rival.name()),
            rival,
            data: Data::default(),
            line: None,
            net: match rival {
                Rival::Minivmm => format!("socket={socket}"),
                _ => format!("stream,server=off,addr.type=unix,addr.path={socket}"),
            },
            before: format!(
                "ip tuntap add mode tap dev {out} && ip addr add 10.0.2.15/24 dev {out} && ip link set {out} up && \
                 ip route add default via {GATEWAY} dev {out}"
            ),
            after: format!("ip link del {out}"),
            helper: Some((passt, format!("[ -e {socket} ]"))),
            inside: format!("{}; ip link set eth0 mtu {PASST_MTU}", address("10.0.2.15/24", GATEWAY)),
        }
    }

    /// One of two guests on a wire of their own: a switch of minivmm's, or a stream socket between two QEMUs. The first one starts
    /// the switch.
    pub fn paired(rival: Rival, first: bool) -> Self {
        let switch = "exec ./minivmm switch pair --keep";
        let ready = "./minivmm switch show pair >/dev/null 2>&1";
        let (name, net) = match rival {
            Rival::Minivmm => {
                ("minivmm, switch", format!("switch=pair,mac=02:00:00:00:30:{:02x}", u8::from(first)))
            }
            _ => {
                let server = if first { "on" } else { "off" };
                ("QEMU, stream", format!("stream,server={server},addr.type=unix,addr.path=pair.sock"))
            }
        };
        Setup {
            name: name.into(),
            rival,
            data: Data::default(),
            line: None,
            net,
            before: "true".into(),
            after: "true".into(),
            helper: (rival == Rival::Minivmm && first).then(|| (switch.into(), ready.into())),
            inside: address(if first { "192.0.30.1/24" } else { "192.0.30.2/24" }, "192.0.30.2"),
        }
    }
}

/// Leads to the host's loopback in all user-mode networks.
pub const GATEWAY: &str = "10.0.2.2";
/// What passt's DHCP tells guests.
const PASST_MTU: u16 = 65520;

/// The TAP of a guest that has one.
pub fn tap(rival: Rival) -> String {
    format!("tap{}", network(rival))
}

pub fn network(rival: Rival) -> u8 {
    match rival {
        Rival::Minivmm => 21,
        Rival::Q35 => 22,
        Rival::Microvm => 23,
    }
}

/// Gives the guest's interface an address.
fn address(own: &str, gateway: &str) -> String {
    format!(
        "ip addr add {own} dev eth0; ip link set lo up; ip link set eth0 up; ip route add default via {gateway}"
    )
}
