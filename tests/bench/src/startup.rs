//! From fork to the first KVM_RUN on this host's /dev/kvm: time as a ratio to the floor, ioctls, private memory.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::watch::{self, Seen, Stop};

const MIB: u64 = 512;
const ROUNDS: usize = 41;

struct Case {
    name: &'static str,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
}

/// Prints one line a case.
pub fn run() -> Result<()> {
    let here = std::env::current_exe()?;
    let programs = here.parent().context("the bench's own directory")?;
    let kernel = lab::kernels()?.cloud;
    let large = tempfile::tempdir()?;
    let initrd = large.path().join("initrd-16M");
    std::fs::File::create(&initrd)?.write_all(&archive(16 << 20))?;
    let cases = [
        Case { name: "bzImage", kernel: kernel.bzimage.clone(), initrd: None },
        Case { name: "bzImage, 16 MB initrd", kernel: kernel.bzimage.clone(), initrd: Some(initrd) },
        Case { name: "uncompressed vmlinux", kernel: kernel.vmlinux.clone(), initrd: None },
    ];
    println!("Fork to first KVM_RUN, {MIB} MiB, 1 vCPU, {ROUNDS} interleaved rounds, medians (quartiles):");
    for case in &cases {
        measure(programs, case)?;
    }
    Ok(())
}

/// A cpio archive (newc) of `len` bytes, so that it passes for an initrd.
fn archive(len: usize) -> Vec<u8> {
    let mut bytes = b"070701".to_vec();
    bytes.resize(len, b'0');
    bytes
}

fn measure(programs: &Path, case: &Case) -> Result<()> {
    let minivmm = || command(&programs.join("minivmm"), case, true);
    let floor = || command(&programs.join("floor"), case, false);
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Every other round the other way about, so that neither always runs behind the other's clean-up.
        let pair = [round % 2 == 0, round % 2 != 0];
        for mine in pair {
            let mut command = if mine { minivmm() } else { floor() };
            let seen = watch::watch(&mut command, Stop::FirstRun, MIB << 20)?;
            if mine { ours.push(seen) } else { floors.push(seen) }
        }
    }
    let counted = watch::watch(&mut minivmm(), Stop::EveryIoctl, MIB << 20)?;
    let floor_counted = watch::watch(&mut floor(), Stop::EveryIoctl, MIB << 20)?;
    let (ours_time, floor_time) = (quartiles(&ours), quartiles(&floors));
    let ratios = ratio_quartiles(&ours, &floors);
    println!("  {}:", case.name);
    println!("    minivmm {}   floor {}", times(ours_time), times(floor_time));
    println!(
        "    ratio of medians {:.2}; of the pairs {:.2} ({:.2} to {:.2})",
        ours_time[1].as_secs_f64() / floor_time[1].as_secs_f64(),
        ratios[1],
        ratios[0],
        ratios[2]
    );
    println!(
        "    KVM ioctls before KVM_RUN: {} (floor {})",
        counted.ioctls.len(),
        floor_counted.ioctls.len()
    );
    let memory = ours.last().context("no round")?.memory;
    let floor_memory = floors.last().context("no round")?.memory;
    println!(
        "    memory beyond guest RAM: {} kB private, {} kB of its files (floor {} and {})",
        memory.own_kib, memory.file_kib, floor_memory.own_kib, floor_memory.file_kib
    );
    Ok(())
}

fn command(program: &Path, case: &Case, flags: bool) -> Command {
    let mut command = Command::new(program);
    if flags {
        command.arg("--kernel").arg(&case.kernel).args(["--mem", &MIB.to_string()]).arg("--initrd");
        match &case.initrd {
            Some(path) => command.arg(path),
            None => command.arg("none"),
        };
    } else {
        command.arg(&case.kernel);
        match &case.initrd {
            Some(path) => command.arg(path),
            None => command.arg("none"),
        };
        command.arg(MIB.to_string());
    }
    command
}

fn quartiles(seen: &[Seen]) -> [Duration; 3] {
    let mut times: Vec<Duration> = seen.iter().map(|seen| seen.time).collect();
    times.sort();
    [times[times.len() / 4], times[times.len() / 2], times[times.len() * 3 / 4]]
}

fn ratio_quartiles(ours: &[Seen], floors: &[Seen]) -> [f64; 3] {
    let mut ratios: Vec<f64> =
        ours.iter().zip(floors).map(|(a, b)| a.time.as_secs_f64() / b.time.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    [ratios[ratios.len() / 4], ratios[ratios.len() / 2], ratios[ratios.len() * 3 / 4]]
}

fn times([low, median, high]: [Duration; 3]) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    format!("{:.2} ms ({:.2} to {:.2})", ms(median), ms(low), ms(high))
}
