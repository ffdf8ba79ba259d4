//! From fork to the first KVM_RUN on this host's /dev/kvm: time as a ratio to the floor, ioctls, private memory.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::watch::{self, Seen, Stop};

const MIB: u64 = 512;
const ROUNDS: usize = 41;

/// The TAP of the case with devices, and what makes it in a network namespace of its own. /sys shows the interfaces of the
/// namespace in which it was mounted.
const TAP: &str = "bench0";
const MAKE_TAP: &str = "mount -t sysfs sysfs /sys
ip tuntap add mode tap dev bench0 vnet_hdr
ip link set bench0 up
exec \"$@\"";

struct Case {
    name: &'static str,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    /// Arguments for minivmm; the floor has no devices.
    devices: Vec<String>,
}

/// Prints what a user network adds.
pub fn user_network() -> Result<()> {
    let kernel = lab::kernels()?.cloud.bzimage;
    beside_none(&Case { name: "bzImage", kernel, initrd: None, devices: Vec::new() })
}

/// Prints a few lines for each case without devices, then for that with devices, then for that with a user network.
pub fn run() -> Result<()> {
    let kernel = lab::kernels()?.cloud;
    let large = tempfile::tempdir()?;
    let initrd = large.path().join("initrd-16M");
    std::fs::File::create(&initrd)?.write_all(&archive(16 << 20))?;
    let case =
        |name, kernel: &PathBuf, initrd| Case { name, kernel: kernel.clone(), initrd, devices: Vec::new() };
    let cases = [
        case("bzImage", &kernel.bzimage, None),
        case("bzImage, 16 MB initrd", &kernel.bzimage, Some(initrd)),
        case("uncompressed vmlinux", &kernel.vmlinux, None),
    ];
    println!("Fork to first KVM_RUN, {MIB} MiB, 1 vCPU, {ROUNDS} interleaved rounds, medians (quartiles):");
    cases.iter().try_for_each(measure)?;
    in_namespace()?;
    user_network()
}

/// Runs [`devices`] in a network namespace with a TAP, both of which end with it.
fn in_namespace() -> Result<()> {
    let mut command = Command::new("unshare");
    // SAFETY: it reads a number.
    if unsafe { libc::geteuid() } != 0 {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--mount", "sh", "-ec", MAKE_TAP, "bench"]);
    let status = command.arg(std::env::current_exe()?).arg("startup-devices").status().context("unshare")?;
    ensure!(status.success(), "the case with a disk and a TAP: {status}");
    Ok(())
}

/// The case with one disk and one TAP, in a namespace that has the TAP.
pub fn devices() -> Result<()> {
    let kernel = lab::kernels()?.cloud;
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("disk.raw");
    std::fs::File::create(&disk)?.set_len(1 << 30)?;
    let disk = disk.to_str().context("the temporary directory's name")?;
    let devices = ["--disk", disk, "--tap", TAP].map(String::from).to_vec();
    measure(&Case { name: "bzImage, one disk and one TAP", kernel: kernel.bzimage, initrd: None, devices })
}

/// What a user network adds to `case`, which has no devices.
fn beside_none(case: &Case) -> Result<()> {
    let minivmm = std::env::current_exe()?.with_file_name("minivmm");
    let devices = ["--net", "user"].map(String::from).to_vec();
    let with = Case { name: case.name, kernel: case.kernel.clone(), initrd: case.initrd.clone(), devices };
    let (mut withouts, mut withs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let pair = [round % 2 == 0, round % 2 != 0];
        for has in pair {
            let mut command = command(&minivmm, if has { &with } else { case }, true);
            let seen = watch::watch(&mut command, Stop::FirstRun, MIB << 20)?;
            if has { withs.push(seen) } else { withouts.push(seen) }
        }
    }
    let mut added: Vec<f64> = withs
        .iter()
        .zip(&withouts)
        .map(|(a, b)| (a.time.as_secs_f64() - b.time.as_secs_f64()) * 1e3)
        .collect();
    added.sort_by(f64::total_cmp);
    let (with, without) = (quartiles(&withs), quartiles(&withouts));
    println!("  {}, --net user beside --net none:", case.name);
    println!("    user {}   none {}", times(with), times(without));
    println!(
        "    added, by the pairs: {:.2} ms ({:.2} to {:.2}); by the least: {:.2} ms",
        added[added.len() / 2],
        added[added.len() / 4],
        added[added.len() * 3 / 4],
        (least(&withs).as_secs_f64() - least(&withouts).as_secs_f64()) * 1e3
    );
    println!("    private memory: {} kB and {} kB", own_kib(&withs), own_kib(&withouts));
    Ok(())
}

/// The middle one.
fn own_kib(seen: &[Seen]) -> u64 {
    let mut kib: Vec<u64> = seen.iter().map(|seen| seen.memory.own_kib).collect();
    kib.sort_unstable();
    kib.get(kib.len() / 2).copied().unwrap_or_default()
}

/// A cpio archive (newc) of `len` bytes, so that it passes for an initrd.
fn archive(len: usize) -> Vec<u8> {
    let mut bytes = b"070701".to_vec();
    bytes.resize(len, b'0');
    bytes
}

fn measure(case: &Case) -> Result<()> {
    let here = std::env::current_exe()?;
    let programs = here.parent().context("the bench's own directory")?;
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
        "    ratio of medians {:.2}, of the least {:.2}; of the pairs {:.2} ({:.2} to {:.2})",
        ours_time[1].as_secs_f64() / floor_time[1].as_secs_f64(),
        least(&ours).as_secs_f64() / least(&floors).as_secs_f64(),
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
        let devices: &[String] =
            if case.devices.is_empty() { &["--net".into(), "none".into()] } else { &case.devices };
        command.args(devices);
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

/// Other work on the host only adds to a time.
fn least(seen: &[Seen]) -> Duration {
    seen.iter().map(|seen| seen.time).min().unwrap_or_default()
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
