//! TCP and UDP between host and guest, under minivmm and under Debian's QEMU in the same interleaved rounds: how much, and what
//! it costs the host. Over a TAP (QEMU's own virtio-net, no vhost), through user-mode networks, and between two guests.

use anyhow::{Result, bail};
use lab::{Cmd, Lab, Process};

use crate::rivals::{Guest, Rival};
use crate::setups::{GATEWAY, Setup, network, tap};
use crate::traffic::{Load, compare};
use crate::window::Amount;

const ROUNDS: usize = 3;
/// What costs are counted for.
const UNIT: (f64, &str) = (65536.0, "64 KiB");
const MBIT: (f64, &str) = (8e-6, "Mbit/s");
const ETH0: &str = "/sys/class/net/eth0";
/// Where `echo` listens.
const ECHO: u16 = 5300;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToHost,
    ToGuest,
}

impl Way {
    const BOTH: [Way; 2] = [Way::ToHost, Way::ToGuest];

    fn name(self) -> &'static str {
        match self {
            Way::ToHost => "guest to host",
            Way::ToGuest => "host to guest",
        }
    }

    /// Bytes as the guest counts them.
    fn bytes(self) -> &'static str {
        match self {
            Way::ToHost => "cat /sys/class/net/eth0/statistics/tx_bytes",
            Way::ToGuest => "cat /sys/class/net/eth0/statistics/rx_bytes",
        }
    }

    fn line(self, server: &str) -> String {
        let reverse = if self == Way::ToGuest { "-R" } else { "" };
        format!("chroot /programs /usr/bin/iperf3 -c {server} -t 3600 {reverse}")
    }
}

/// Prints the tables of `which` network: all without one.
pub fn on(lab: &Lab, which: Option<&str>) -> Result<()> {
    match which {
        None => {
            over_tap(lab)?;
            through_user_networks(lab)?;
            between_guests(lab)
        }
        Some("tap") => over_tap(lab),
        Some("user") => through_user_networks(lab),
        Some("switch") => between_guests(lab),
        Some(other) => bail!("no such network: {other} (tap, user, switch)"),
    }
}

fn over_tap(lab: &Lab) -> Result<()> {
    println!(
        "TCP by iperf3 over a TAP ({:?} lab), {ROUNDS} interleaved rounds, medians (least to most); QEMU without vhost:",
        lab.kind()
    );
    let (mut servers, mut guests) = (Vec::new(), Vec::new());
    for rival in Rival::ALL {
        guests.push(Guest::start(lab, Setup::tap(rival))?);
        servers.push(iperf3(lab, &format!("192.0.{}.1", network(rival)))?);
    }
    for way in Way::BOTH {
        let load = |rival: Rival| {
            let counter = if way == Way::ToHost { "rx_bytes" } else { "tx_bytes" };
            let amount = Amount::File(format!("/sys/class/net/{}/statistics/{counter}", tap(rival)));
            tcp(way, &format!("192.0.{}.1", network(rival)), amount)
        };
        compare(lab, &mut guests, &Rival::ALL.map(load), ROUNDS)?;
    }
    Ok(())
}

fn through_user_networks(lab: &Lab) -> Result<()> {
    println!(
        "TCP by iperf3, and UDP request and response, through user-mode networks to the host's loopback ({:?} lab), \
         {ROUNDS} interleaved rounds, medians (least to most):",
        lab.kind()
    );
    // iperf3 serves one client, and another waits.
    let ports: Vec<u16> = (5201..).take(3).collect();
    let setups = [Setup::user(Rival::Minivmm), Setup::user(Rival::Q35), Setup::passt(Rival::Q35)];
    let mut guests = setups.into_iter().map(|setup| Guest::start(lab, setup)).collect::<Result<Vec<_>>>()?;
    let _servers =
        ports.iter().map(|port| iperf3(lab, &format!("127.0.0.1 -p {port}"))).collect::<Result<Vec<_>>>()?;
    let _echo = lab.spawn(&Cmd::sh(format!("exec ./echo serve 127.0.0.1:{ECHO}")))?;
    for way in Way::BOTH {
        // Only one of the guests works at a time, and nothing else uses the loopback.
        let amount = Amount::File("/sys/class/net/lo/statistics/rx_bytes".into());
        let loads: Vec<Load> =
            ports.iter().map(|port| tcp(way, &format!("{GATEWAY} -p {port}"), amount.clone())).collect();
        compare(lab, &mut guests, &loads, ROUNDS)?;
    }
    let echo = Load {
        name: "UDP request and response".into(),
        device: ETH0,
        line: format!("/bin/echo-udp ask {GATEWAY}:{ECHO}"),
        counter: "cat /sys/class/net/eth0/statistics/rx_packets",
        begun: 100.0,
        counted: 1.0,
        amount: Amount::File("/sys/class/net/lo/statistics/rx_packets".into()),
        unit: (2.0, "one"),
        rate: (0.5, "a second"),
    };
    compare(lab, &mut guests, &vec![echo; ports.len()], ROUNDS)
}

fn between_guests(lab: &Lab) -> Result<()> {
    println!(
        "TCP by iperf3 between two guests, over a switch and over a stream socket between two QEMUs ({:?} lab), {ROUNDS} \
         interleaved rounds, medians (least to most); costs are of both guests and of the switch, and of rounds half of which \
         were slowed down by counting:",
        lab.kind()
    );
    let (mut guests, mut servers) = (Vec::new(), Vec::new());
    for rival in [Rival::Minivmm, Rival::Q35] {
        let mut first = Guest::start(lab, Setup::paired(rival, true))?;
        let mut second = Guest::start(lab, Setup::paired(rival, false))?;
        second.begin("chroot /programs /usr/bin/iperf3 -s")?;
        first.pids.extend(&second.pids);
        guests.push(first);
        servers.push(second);
    }
    let load = Load { name: "guest to guest".into(), ..tcp(Way::ToHost, "192.0.30.2", Amount::Time) };
    compare(lab, &mut guests, &[load.clone(), load], ROUNDS)
}

fn iperf3(lab: &Lab, at: &str) -> Result<Process> {
    Ok(lab.spawn(&Cmd::sh(format!("exec iperf3 -s -B {at}")))?)
}

fn tcp(way: Way, server: &str, amount: Amount) -> Load {
    Load {
        name: way.name().into(),
        device: ETH0,
        line: way.line(server),
        counter: way.bytes(),
        begun: 2e6,
        counted: UNIT.0,
        amount,
        unit: UNIT,
        rate: MBIT,
    }
}
