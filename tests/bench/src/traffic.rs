//! What guests do at their networks and disks, and what that costs their hosts, in interleaved rounds.

use std::time::Instant;

use anyhow::{Context, Result};
use lab::Lab;

use crate::numbers::Series;
use crate::rivals::Guest;
use crate::window::{self, Amount, Window};

/// How long one look takes, without counting and with.
const SECONDS: u32 = 2;

/// Something that a guest does until it is told to stop.
#[derive(Debug, Clone)]
pub struct Load {
    pub name: String,
    /// The line that starts it.
    pub line: String,
    /// The device in the guest's /sys.
    pub device: &'static str,
    /// A counter of the guest that grows with it, and by how much before it is measured.
    pub counter: &'static str,
    pub begun: f64,
    /// How much of it is one unit.
    pub counted: f64,
    /// The same on the host, or time if the host does not see it.
    pub amount: Amount,
    /// What costs are counted for, in the counters' unit, and its name.
    pub unit: (f64, &'static str),
    /// The rate that is printed, for an amount of 1, and its unit.
    pub rate: (f64, &'static str),
}

/// What one guest came to, over the rounds.
#[derive(Debug, Default)]
struct Tally {
    /// Its work came to rest by itself.
    rests: bool,
    rate: Series,
    calls: Series,
    cpu: Series,
    cpu_with_vcpus: Series,
    exits: Series,
    user_exits: Series,
    kicks: Series,
    interrupts: Series,
    /// The last window, and the amount in it that was one unit.
    last: Window,
    unit: f64,
}

/// Prints a table for one load, which differs from guest to guest only in its addresses: the first guest is compared with the
/// others.
pub fn compare(lab: &Lab, guests: &mut [Guest<'_>], loads: &[Load], rounds: usize) -> Result<()> {
    let pairs: Vec<_> = (1..guests.len()).map(|other| (0, other)).collect();
    compare_pairs(lab, guests, loads, rounds, &pairs)
}

/// The same with these guests compared: each first with its second.
pub fn compare_pairs(
    lab: &Lab,
    guests: &mut [Guest<'_>],
    loads: &[Load],
    rounds: usize,
    pairs: &[(usize, usize)],
) -> Result<()> {
    let Some(first) = loads.first() else { return Ok(()) };
    println!("  {}:", first.name);
    let mut tallies: Vec<Tally> = guests.iter().map(|_| Tally::default()).collect();
    for (guest, load) in guests.iter_mut().zip(loads) {
        guest.begin(&load.line)?;
        guest.grows(load.counter, load.begun)?;
        guest.work(false)?;
    }
    for _ in 0..rounds {
        let all = guests.iter_mut().zip(loads).zip(&mut tallies);
        for ((guest, load), tally) in all.filter(|(_, tally)| !tally.rests) {
            measure(lab, guest, load, tally).with_context(|| format!("{}, {}", guest.name(), load.name))?;
        }
    }
    guests.iter_mut().try_for_each(Guest::end)?;
    print(guests, first, &tallies);
    print_pairs(guests, &tallies, pairs);
    Ok(())
}

fn measure(lab: &Lab, guest: &mut Guest<'_>, load: &Load, tally: &mut Tally) -> Result<()> {
    let counts = format!("interrupts {}; {}", load.device, load.counter);
    guest.work(true)?;
    guest.grows(load.counter, load.begun)?;
    let (began, before) = (Instant::now(), guest.numbers(&counts)?);
    let Some(window) = window::look(lab, &guest.pids, SECONDS, &load.amount)? else {
        println!("    {}: its work has come to rest, so there are no figures of it", guest.name());
        tally.rests = true;
        return guest.work(false);
    };
    let after = guest.numbers(&counts)?;
    guest.work(false)?;
    let [interrupts, moved] = [0, 1].map(|at| after.get(at).zip(before.get(at)).map_or(0.0, |(a, b)| a - b));
    let per_second = moved / began.elapsed().as_secs_f64();
    let (rate, unit) = match load.amount {
        Amount::Time => (per_second, load.unit.0 / per_second),
        _ => (window.rate, load.unit.0),
    };
    tally.rate.add(rate * load.rate.0);
    tally.unit = unit;
    tally.calls.add(window.calls(unit));
    tally.cpu.add(window.cpu_us(unit));
    tally.cpu_with_vcpus.add(window.cpu_with_vcpus_us(unit));
    tally.exits.add(window.exits(unit));
    tally.user_exits.add(window.user_exits(unit));
    tally.kicks.add(window.kicks(unit));
    tally.interrupts.add(interrupts * load.counted / moved);
    tally.last = window;
    Ok(())
}

fn print(guests: &[Guest<'_>], load: &Load, tallies: &[Tally]) {
    let worked = |(_, tally): &(&Guest<'_>, &Tally)| !tally.rests;
    for (guest, tally) in guests.iter().zip(tallies).filter(worked) {
        println!(
            "    {}: {:.0} {}; {}: {:.2} system calls, {:.2} exits, {:.3} to user space, {:.2} kicks, {:.2} interrupts,",
            guest.name(),
            tally.rate,
            load.rate.1,
            load.unit.1,
            tally.calls,
            tally.exits,
            tally.user_exits,
            tally.kicks,
            tally.interrupts
        );
        println!("      {:.0} us of threads beside the vCPU, {:.0} of all", tally.cpu, tally.cpu_with_vcpus);
        println!("      calls: {}", tally.last.calls_by_name(tally.unit));
    }
}

fn print_pairs(guests: &[Guest<'_>], tallies: &[Tally], pairs: &[(usize, usize)]) {
    let at = |index: usize| guests.get(index).zip(tallies.get(index)).filter(|(_, tally)| !tally.rests);
    for ((guest, own), (to, other)) in pairs.iter().filter_map(|(a, b)| at(*a).zip(at(*b))) {
        println!(
            "    {} to {}: throughput {:.2}, system calls {:.2}, processor time {:.2}, with the vCPU's {:.2}",
            guest.name(),
            to.name(),
            own.rate.over(&other.rate),
            own.calls.over(&other.calls),
            own.cpu.over(&other.cpu),
            own.cpu_with_vcpus.over(&other.cpu_with_vcpus)
        );
    }
}
