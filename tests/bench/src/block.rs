//! Random reads by fio in small guests, under minivmm and under Debian's QEMU in the same interleaved rounds: how many, and
//! what each request costs the host.

use anyhow::{Context, Result, bail};
use lab::Lab;

use crate::images;
use crate::numbers::Series;
use crate::rivals::{Guest, Rival};
use crate::setups::Setup;
use crate::window::{self, Amount, Window};

const ROUNDS: usize = 3;
/// How long one look takes, without counting and with.
const SECONDS: u32 = 2;

struct Job {
    name: &'static str,
    bytes: f64,
    depth: u32,
    /// Requests that fio submits and takes back at once.
    batch: u32,
}

const JOBS: [Job; 4] = [
    Job { name: "4 KiB, depth 1", bytes: 4096.0, depth: 1, batch: 1 },
    Job { name: "4 KiB, depth 32", bytes: 4096.0, depth: 32, batch: 1 },
    Job { name: "4 KiB, depth 32, 16 at a time", bytes: 4096.0, depth: 32, batch: 16 },
    Job { name: "128 KiB, depth 1", bytes: 131072.0, depth: 1, batch: 1 },
];

/// What one rival came to at one job, over the rounds.
#[derive(Debug, Default)]
struct Tally {
    rate: Series,
    calls: Series,
    cpu: Series,
    kicks: Series,
    user_exits: Series,
    interrupts: Series,
    requests: Series,
    last: Window,
}

/// Prints the tables of `which` disks: all without one.
pub fn on(lab: &Lab, which: Option<&str>) -> Result<()> {
    match which {
        None => {
            raw(lab)?;
            images::on(lab)
        }
        Some("raw") => raw(lab),
        Some("images") => images::on(lab),
        Some(other) => bail!("no such disks: {other} (raw, images)"),
    }
}

/// Prints a table a job.
fn raw(lab: &Lab) -> Result<()> {
    println!(
        "Random reads by fio (io_uring, direct) in a guest ({:?} lab), {ROUNDS} interleaved rounds, medians (least to \
         most); QEMU with cache=none, aio=io_uring and an iothread:",
        lab.kind()
    );
    let mut guests = Vec::new();
    for rival in Rival::ALL {
        guests.push(Guest::start(lab, Setup::tap(rival))?);
    }
    for job in &JOBS {
        let mut tallies: Vec<Tally> = guests.iter().map(|_| Tally::default()).collect();
        guests.iter_mut().try_for_each(|guest| begin(guest, job))?;
        for _ in 0..ROUNDS {
            for (guest, tally) in guests.iter_mut().zip(&mut tallies) {
                measure(lab, guest, job, tally).with_context(|| format!("{}, {}", guest.name(), job.name))?;
            }
        }
        guests.iter_mut().try_for_each(Guest::end)?;
        print(job, &tallies);
    }
    Ok(())
}

/// What the guest counts itself.
const COUNTS: &str = "cut -c1-60 /sys/block/vdb/stat | awk '{ print $1, $3 }'; interrupts /sys/block/vdb";

fn begin(guest: &mut Guest<'_>, job: &Job) -> Result<()> {
    let Job { bytes, depth, batch, .. } = job;
    guest.begin(&format!(
        "chroot /programs /usr/bin/fio --name=r --filename=/dev/vdb --readonly --rw=randread --bs={bytes} --direct=1 --thread \
         --ioengine=io_uring --iodepth={depth} --iodepth_batch_submit={batch} \
         --iodepth_batch_complete_min={batch} --time_based --runtime=3600"
    ))?;
    guest.grows(COUNTS, 100.0)?;
    guest.work(false)
}

fn measure(lab: &Lab, guest: &mut Guest<'_>, job: &Job, tally: &mut Tally) -> Result<()> {
    let Job { bytes, .. } = job;
    guest.work(true)?;
    guest.grows(COUNTS, 50.0)?;
    let before = guest.numbers(COUNTS)?;
    let window =
        window::look(lab, &guest.pids, SECONDS, &Amount::BytesRead)?.context("the guest does no work")?;
    let after = guest.numbers(COUNTS)?;
    guest.work(false)?;
    let [reads, sectors, interrupts] =
        [0, 1, 2].map(|at| after.get(at).zip(before.get(at)).map_or(0.0, |(a, b)| a - b));
    tally.rate.add(window.rate / bytes);
    tally.calls.add(window.calls(*bytes));
    tally.cpu.add(window.cpu_us(*bytes));
    tally.kicks.add(window.kicks(*bytes));
    tally.user_exits.add(window.user_exits(*bytes));
    tally.interrupts.add(interrupts / reads);
    tally.requests.add(reads * bytes / (sectors * 512.0));
    tally.last = window;
    Ok(())
}

fn print(job: &Job, tallies: &[Tally]) {
    println!("  {}:", job.name);
    let Some(own) = tallies.first() else { return };
    for (rival, tally) in Rival::ALL.iter().zip(tallies) {
        println!(
            "    {}: {:.0} reads/s; a read: {:.2} system calls, {:.3} exits to user space, {:.2} kicks, {:.2} interrupts,",
            rival.name(),
            tally.rate,
            tally.calls,
            tally.user_exits,
            tally.kicks,
            tally.interrupts
        );
        println!("      {:.0} us of threads beside the vCPU, {:.2} requests", tally.cpu, tally.requests);
        println!("      calls: {}", tally.last.calls_by_name(job.bytes));
    }
    for (rival, tally) in Rival::ALL.iter().zip(tallies).skip(1) {
        println!(
            "    minivmm to {}: reads {:.2}, system calls {:.2}, processor time {:.2}",
            rival.name(),
            own.rate.over(&tally.rate),
            own.calls.over(&tally.calls),
            own.cpu.over(&tally.cpu)
        );
    }
}
