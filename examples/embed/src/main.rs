//! The least program that starts machines, built without minivmm's command line: `embed KERNEL [ROUNDS]` starts a machine of
//! that kernel so many times (11 if not given), waits for the guest's first output, ends the machine, and prints the median times.
//!
//! ```text
//! cargo run --release -p embed -- vmlinuz
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is a program for people")]

use std::error::Error;
use std::io::Read;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use minivmm::Machine;
use minivmm::spec::Spec;

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let kernel = words.next().ok_or("usage: embed KERNEL [ROUNDS]")?;
    let rounds: usize = words.next().map_or(Ok(11), |word| word.parse())?;
    let spec = Spec::new(kernel).with_mem("128".parse()?);
    let times = (0..rounds).map(|_| one(&spec)).collect::<Result<Vec<_>, _>>()?;
    let [started, said, gone] = [0, 1, 2].map(|at| median(times.iter().filter_map(|three| three.get(at))));
    println!(
        "a machine runs after {started:.1?}, its guest speaks after {said:.1?}, it is gone {gone:.1?} after its end"
    );
    Ok(())
}

/// Starts a machine and ends it. Returns the time until its processors run, until its guest's first output, and that of its end.
fn one(spec: &Spec) -> Result<[Duration; 3], Box<dyn Error>> {
    let begin = Instant::now();
    let machine = Machine::builder(spec).start()?;
    let started = begin.elapsed();
    // A console reads from the guest's first byte on.
    machine.console().read_exact(&mut [0])?;
    let said = begin.elapsed();
    let end = Instant::now();
    drop(machine);
    Ok([started, said, end.elapsed()])
}

fn median<'a>(times: impl Iterator<Item = &'a Duration>) -> Duration {
    let mut times: Vec<_> = times.copied().collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
