//! TCP between host and guest over a TAP, both ways, under minivmm and under Debian's QEMU (its own virtio-net, no vhost) in the
//! same interleaved rounds: how much, and what 64 KiB cost the host.

use anyhow::{Context, Result};
use lab::{Cmd, Lab};

use crate::numbers::Series;
use crate::rivals::{Guest, Rival};
use crate::window::{self, Amount, Window};

const ROUNDS: usize = 5;
/// How long one look takes, without counting and with.
const SECONDS: u32 = 1;
/// What costs are counted for.
const UNIT: f64 = 65536.0;

#[derive(Debug, Clone, Copy)]
enum Way {
    ToHost,
    ToGuest,
}

impl Way {
    /// Bytes as the guest counts them.
    fn bytes(self) -> &'static str {
        match self {
            Way::ToHost => "cat /sys/class/net/eth0/statistics/tx_bytes",
            Way::ToGuest => "cat /sys/class/net/eth0/statistics/rx_bytes",
        }
    }

    /// The same bytes, counted by the host.
    fn file(self, tap: &str) -> String {
        let counter = match self {
            Way::ToHost => "rx_bytes",
            Way::ToGuest => "tx_bytes",
        };
        format!("/sys/class/net/{tap}/statistics/{counter}")
    }
}

/// What one rival came to one way, over the rounds.
#[derive(Debug, Default)]
struct Tally {
    rate: Series,
    calls: Series,
    cpu: Series,
    exits: Series,
    user_exits: Series,
    kicks: Series,
    interrupts: Series,
    last: Window,
}

/// Prints a table each way.
pub fn on(lab: &Lab) -> Result<()> {
    println!(
        "TCP by iperf3 over a TAP ({:?} lab), {ROUNDS} interleaved rounds, medians (least to most); QEMU without vhost:",
        lab.kind()
    );
    let mut servers = Vec::new();
    let mut guests = Vec::new();
    for rival in Rival::ALL {
        guests.push(Guest::start(lab, rival)?);
        servers.push(lab.spawn(&Cmd::sh(format!("exec iperf3 -s -B 192.0.{}.1", rival.network())))?);
    }
    for way in [Way::ToHost, Way::ToGuest] {
        let mut tallies: Vec<Tally> = guests.iter().map(|_| Tally::default()).collect();
        guests.iter_mut().try_for_each(|guest| begin(guest, way))?;
        for _ in 0..ROUNDS {
            for (guest, tally) in guests.iter_mut().zip(&mut tallies) {
                measure(lab, guest, way, tally)
                    .with_context(|| format!("{}, {way:?}", guest.rival.name()))?;
            }
        }
        guests.iter_mut().try_for_each(Guest::end)?;
        print(way, &tallies);
    }
    Ok(())
}

/// Of the guest's, and of its interface's bytes.
const COUNTS: &str = "interrupts /sys/class/net/eth0";

fn begin(guest: &mut Guest<'_>, way: Way) -> Result<()> {
    let (network, reverse) = (guest.rival.network(), if matches!(way, Way::ToGuest) { "-R" } else { "" });
    guest.begin(&format!("/usr/bin/iperf3 -c 192.0.{network}.1 -t 3600 {reverse}"))?;
    guest.grows(way.bytes(), 1e6)?;
    guest.work(false)
}

fn measure(lab: &Lab, guest: &mut Guest<'_>, way: Way, tally: &mut Tally) -> Result<()> {
    let (file, counts) = (way.file(&guest.rival.tap()), format!("{COUNTS}; {}", way.bytes()));
    guest.work(true)?;
    guest.grows(way.bytes(), 1e7)?;
    let before = guest.numbers(&counts)?;
    let window = window::look(lab, guest.pid, SECONDS, &Amount::File(file))?;
    let after = guest.numbers(&counts)?;
    guest.work(false)?;
    let [interrupts, moved] = [0, 1].map(|at| after.get(at).zip(before.get(at)).map_or(0.0, |(a, b)| a - b));
    tally.rate.add(window.rate * 8.0 / 1e6);
    tally.calls.add(window.calls(UNIT));
    tally.cpu.add(window.cpu_us(UNIT));
    tally.exits.add(window.exits(UNIT));
    tally.user_exits.add(window.user_exits(UNIT));
    tally.kicks.add(window.kicks(UNIT));
    tally.interrupts.add(interrupts * UNIT / moved);
    tally.last = window;
    Ok(())
}

fn print(way: Way, tallies: &[Tally]) {
    println!(
        "  {}:",
        match way {
            Way::ToHost => "guest to host",
            Way::ToGuest => "host to guest",
        }
    );
    let Some(own) = tallies.first() else { return };
    for (rival, tally) in Rival::ALL.iter().zip(tallies) {
        println!(
            "    {}: {:.0} Mbit/s; 64 KiB: {:.2} system calls, {:.2} exits, {:.3} to user space, {:.2} kicks, {:.2} interrupts,",
            rival.name(),
            tally.rate,
            tally.calls,
            tally.exits,
            tally.user_exits,
            tally.kicks,
            tally.interrupts
        );
        println!("      {:.0} us of threads beside the vCPU", tally.cpu);
        println!("      calls: {}", tally.last.calls_by_name(UNIT));
    }
    for (rival, tally) in Rival::ALL.iter().zip(tallies).skip(1) {
        println!(
            "    minivmm to {}: throughput {:.2}, system calls {:.2}, processor time {:.2}",
            rival.name(),
            own.rate.over(&tally.rate),
            own.calls.over(&tally.calls),
            own.cpu.over(&tally.cpu)
        );
    }
}
