//! Random 4 KiB reads and writes on qcow2 images and on overlays, beside raw images and QEMU's qcow2 in the same interleaved
//! rounds; and writes to new clusters.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Cmd, Lab};

use crate::rivals::{Guest, Rival};
use crate::setups::{Data, Setup};
use crate::traffic::{Load, compare_pairs};
use crate::window::Amount;

const ROUNDS: usize = 3;
const BLOCK: f64 = 4096.0;
/// The default of both.
const CLUSTER: f64 = 65536.0;
/// Requests in flight, and how many of them fio submits and takes back at once: as the kicks, so the calls.
const DEPTHS: [(u32, u32); 3] = [(1, 1), (32, 1), (32, 16)];
/// Each program has images of its own. All clusters are allocated, of the overlay those of the second half: it reads the first
/// one from its base.
const IMAGES: &str = "set -e
for own in minivmm qemu; do
    for raw in $own.raw $own.base.raw; do
        dd if=/dev/zero of=$raw bs=1M count=64 conv=fsync status=none
    done
    qemu-img create -q -f qcow2 $own.qcow2 64M
    qemu-io -f qcow2 -c 'write -P 1 0 64M' $own.qcow2
    qemu-img create -q -f qcow2 -b $own.base.raw -F raw $own.over.qcow2
    qemu-io -f qcow2 -c 'write -P 1 32M 32M' $own.over.qcow2
    qemu-img create -q -f qcow2 $own.new.qcow2 16G
done >/dev/null
sync
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Read,
    Write,
    /// Each to a cluster that is not allocated.
    First,
}

/// Prints a table for each way and depth.
pub fn on(lab: &Lab) -> Result<()> {
    let made = lab.exec(&Cmd::sh(IMAGES).limit(Duration::from_secs(180)))?;
    ensure!(made.status.code() == 0, "the images: {}", made.err_text());
    println!(
        "4 KiB by fio (io_uring, direct) on images ({:?} lab), {ROUNDS} interleaved rounds, medians (least to most); all with \
         direct I/O, QEMU with cache=none, aio=io_uring and an iothread:",
        lab.kind()
    );
    let mut guests =
        start(lab, &["minivmm.raw", "minivmm.qcow2", "minivmm.over.qcow2", "qemu.qcow2", "qemu.over.qcow2"])?;
    for way in [Way::Read, Way::Write] {
        for depth in DEPTHS {
            let load = load(way, depth, "");
            let loads = vec![load; guests.len()];
            compare_pairs(lab, &mut guests, &loads, ROUNDS, &[(1, 0), (2, 0), (1, 3), (2, 4)])?;
        }
    }
    drop(guests);
    let files = ["minivmm.new.qcow2", "qemu.new.qcow2"];
    let mut guests = start(lab, &files)?;
    compare_pairs(lab, &mut guests, &files.map(|file| load(Way::First, (1, 1), file)), ROUNDS, &[(0, 1)])
}

fn start<'a>(lab: &'a Lab, files: &[&str]) -> Result<Vec<Guest<'a>>> {
    let guest = |file: &&str| {
        let rival = if file.starts_with("qemu") { Rival::Q35 } else { Rival::Minivmm };
        let format = if file.ends_with(".qcow2") { "qcow2" } else { "raw" };
        Guest::start(lab, Setup::user(rival).on(Data { file: (*file).into(), format, read_only: false }))
    };
    files.iter().map(guest).collect()
}

/// What a guest does on its disk, which is `file` where the new clusters of that are counted.
fn load(way: Way, (depth, batch): (u32, u32), file: &str) -> Load {
    let (how, counter, amount, unit) = match way {
        Way::Read => ("--rw=randread", "awk '{ print $1 }' /sys/block/vdb/stat", Amount::BytesRead, BLOCK),
        // In the second half.
        Way::Write => ("--rw=randwrite --offset=50%", WRITES, Amount::BytesWritten, BLOCK),
        Way::First => ("--rw=write:60k", WRITES, Amount::Length(file.into()), CLUSTER),
    };
    let what = match way {
        Way::Read => "random reads",
        Way::Write => "random writes to allocated clusters",
        Way::First => "first writes to clusters",
    };
    Load {
        name: format!("{what}, depth {depth}, {batch} at a time"),
        device: "/sys/block/vdb",
        line: format!(
            "chroot /programs /usr/bin/fio --name=w --filename=/dev/vdb {how} --bs={BLOCK} --direct=1 --thread \
             --ioengine=io_uring --iodepth={depth} --iodepth_batch_submit={batch} --iodepth_batch_complete_min={batch} \
             --time_based --runtime=3600"
        ),
        counter,
        begun: 50.0,
        counted: 1.0,
        amount,
        unit: (unit, "one"),
        rate: (1.0 / unit, "a second"),
    }
}

/// How many writes the guest has done.
const WRITES: &str = "awk '{ print $5 }' /sys/block/vdb/stat";
