//! `minivmm disk convert` beside `qemu-img convert` on this machine, in interleaved rounds: time, processor time, and what both
//! read and write.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::numbers::Series;

const ROUNDS: usize = 7;
const MIB: u64 = 1 << 20;
/// Source, its format, and the format of the copy. The sources are in the page cache.
const CASES: [(&str, &str, &str); 5] = [
    ("full.raw", "raw", "qcow2"),
    ("full.qcow2", "qcow2", "raw"),
    ("full.raw", "raw", "raw"),
    ("sparse.raw", "raw", "qcow2"),
    ("sparse.raw", "raw", "raw"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Minivmm,
    /// Brings the copy to the disk at the end, as minivmm does.
    QemuImg,
    /// As it is without options: the copy is left to the host's page cache.
    QemuImgUnsafe,
}

impl Program {
    const ALL: [Program; 3] = [Program::Minivmm, Program::QemuImg, Program::QemuImgUnsafe];

    fn name(self) -> &'static str {
        match self {
            Program::Minivmm => "minivmm",
            Program::QemuImg => "qemu-img -t writeback",
            Program::QemuImgUnsafe => "qemu-img",
        }
    }

    fn command(self, (from, from_format, format): (&str, &str, &str)) -> Result<Command> {
        let to = format!("copy.{format}");
        let mut command = match self {
            Program::Minivmm => Command::new(std::env::current_exe()?.with_file_name("minivmm")),
            _ => Command::new("qemu-img"),
        };
        match self {
            Program::Minivmm => command.args(["disk", "convert", from, &to]),
            Program::QemuImg => {
                command.args(["convert", "-t", "writeback", "-f", from_format, "-O", format, from, &to])
            }
            Program::QemuImgUnsafe => command.args(["convert", "-f", from_format, "-O", format, from, &to]),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        Ok(command)
    }
}

#[derive(Debug, Default)]
struct Tally {
    seconds: Series,
    cpu: Series,
    read: Series,
    written: Series,
    calls: Series,
}

/// Prints a table a case.
pub fn run() -> Result<()> {
    // On a disk, where temporary files may be in memory.
    let folder =
        tempfile::tempdir_in(std::env::current_exe()?.parent().context("the bench's own directory")?)?;
    sources(folder.path())?;
    println!("Copies of images on this machine, {ROUNDS} interleaved rounds, medians (least to most):");
    for case in CASES {
        let mut tallies = Program::ALL.map(|_| Tally::default());
        for round in 0..ROUNDS {
            let mut all: Vec<_> = Program::ALL.into_iter().zip(&mut tallies).collect();
            if round % 2 != 0 {
                all.reverse();
            }
            for (program, tally) in all {
                measure(program.command(case)?.current_dir(folder.path()), tally)?;
                fs::remove_file(folder.path().join(format!("copy.{}", case.2)))?;
                // What a program left to others to write shall not burden the next one.
                ensure!(Command::new("sync").status()?.success(), "sync");
            }
        }
        print(case, &tallies);
    }
    Ok(())
}

/// 512 MiB without a hole, and 8 GiB of which 2 in 128 MiB are data.
fn sources(folder: &Path) -> Result<()> {
    let (full, sparse) = (File::create(folder.join("full.raw"))?, File::create(folder.join("sparse.raw"))?);
    let mut seed = 1_u64;
    let mut noise = || {
        let words = std::iter::from_fn(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            Some((seed ^ seed >> 33).to_le_bytes())
        });
        words.take(MIB as usize / 8).flatten().collect::<Vec<u8>>()
    };
    (0..512).try_for_each(|at| full.write_all_at(&noise(), at * MIB))?;
    sparse.set_len(8192 * MIB)?;
    (0..64).try_for_each(|at| sparse.write_all_at(&noise().repeat(2), at * 128 * MIB))?;
    let line = ["convert", "-t", "writeback", "-O", "qcow2", "full.raw", "full.qcow2"];
    let made = Command::new("qemu-img").args(line).current_dir(folder).status().context("qemu-img")?;
    ensure!(made.success(), "qemu-img: {made}");
    Ok(())
}

fn measure(command: &mut Command, tally: &mut Tally) -> Result<()> {
    let begin = Instant::now();
    let pid = command.spawn().with_context(|| format!("{command:?}"))?.id();
    // Its counters are there until it is waited for.
    wait_for_end(pid)?;
    let seconds = begin.elapsed().as_secs_f64();
    let counters = fs::read_to_string(format!("/proc/{pid}/io"));
    let (status, cpu) = reap(pid)?;
    ensure!(status.success(), "{command:?}: {status}");
    let counters = counters?;
    let counter = |name: &str| -> Result<f64> {
        let value = counters.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        Ok(value.context("no such counter")?.parse()?)
    };
    tally.seconds.add(seconds);
    tally.cpu.add(cpu);
    tally.read.add(counter("rchar")? / MIB as f64);
    tally.written.add(counter("wchar")? / MIB as f64);
    tally.calls.add(counter("syscr")? + counter("syscw")?);
    Ok(())
}

fn wait_for_end(pid: u32) -> io::Result<()> {
    // SAFETY: an all-zero siginfo_t is valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure that it is given.
    match unsafe { libc::waitid(libc::P_PID, pid, &mut info, libc::WEXITED | libc::WNOWAIT) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How a process ended, and its seconds of processor time.
fn reap(pid: u32) -> Result<(ExitStatus, f64)> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills what it is given.
    if unsafe { libc::wait4(libc::pid_t::try_from(pid)?, &mut status, 0, &mut usage) } < 0 {
        return Err(io::Error::last_os_error()).context("wait4");
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok((ExitStatus::from_raw(status), seconds(usage.ru_utime) + seconds(usage.ru_stime)))
}

fn print((from, _, format): (&str, &str, &str), tallies: &[Tally]) {
    println!("  {from} to {format}:");
    for (program, tally) in Program::ALL.iter().zip(tallies) {
        println!(
            "    {}: {:.2} s, {:.2} s of a processor; {:.1} MiB read, {:.1} MiB written, {:.0} calls for that",
            program.name(),
            tally.seconds,
            tally.cpu,
            tally.read.median(),
            tally.written.median(),
            tally.calls.median()
        );
    }
    let Some((own, others)) = tallies.split_first() else { return };
    for (program, other) in Program::ALL.iter().skip(1).zip(others) {
        println!(
            "    minivmm to {}: time {:.2}, processor time {:.2}",
            program.name(),
            own.seconds.over(&other.seconds),
            own.cpu.over(&other.cpu)
        );
    }
}
