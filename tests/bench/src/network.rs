//! TCP between host and guest over a TAP, both ways, under minivmm and under Debian's QEMU (its own virtio-net, no vhost) in the
//! same interleaved rounds: how much, and what 64 KiB cost the host.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Cmd, Lab};

use crate::numbers::Series;
use crate::rivals::{Guest, Rival};
use crate::window::{self, Amount, Window};

const ROUNDS: usize = 3;
/// How long one look takes, without counting and with.
const SECONDS: u32 = 2;
/// What costs are counted for.
const UNIT: f64 = 65536.0;

#[derive(Debug, Clone, Copy)]
enum Way {
    ToHost,
    ToGuest,
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
        for _ in 0..ROUNDS {
            for (guest, tally) in guests.iter_mut().zip(&mut tallies) {
                measure(lab, guest, way, tally)
                    .with_context(|| format!("{}, {way:?}", guest.rival.name()))?;
            }
        }
        print(way, &tallies);
    }
    Ok(())
}

fn measure(lab: &Lab, guest: &mut Guest<'_>, way: Way, tally: &mut Tally) -> Result<()> {
    let network = guest.rival.network();
    let (reverse, counter) = match way {
        Way::ToHost => ("", "rx_bytes"),
        Way::ToGuest => ("-R", "tx_bytes"),
    };
    guest.sh(&format!(
        "chroot /programs /usr/bin/iperf3 -c 192.0.{network}.1 -t 600 {reverse} >/tmp/iperf 2>&1 & iperf=$!"
    ))?;
    let file = format!("/sys/class/net/{}/statistics/{counter}", guest.rival.tap());
    let bytes = || -> Result<f64> { Ok(lab.sh(&format!("cat {file}"))?.trim().parse()?) };
    let (begin, first) = (Instant::now(), bytes()?);
    while bytes()? < first + 20e6 {
        ensure!(
            begin.elapsed() < Duration::from_secs(30),
            "iperf3 moves nothing: {}",
            guest.sh("cat /tmp/iperf")?
        );
        std::thread::sleep(Duration::from_millis(300));
    }
    let before = guest.numbers("interrupts /sys/class/net/eth0")?;
    let from = bytes()?;
    let window = window::look(lab, guest.pid, SECONDS, &Amount::File(file.clone()))?;
    let moved = bytes()? - from;
    let after = guest.numbers("interrupts /sys/class/net/eth0")?;
    guest.sh("kill $iperf; wait $iperf; true")?;
    let interrupts = after.first().zip(before.first()).map_or(0.0, |(a, b)| a - b);
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
