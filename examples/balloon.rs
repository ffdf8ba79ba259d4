//! Moves memory between a running guest and the host: `balloon SPEC.toml`. Each line on standard input is a number of MiB that
//! the guest leaves to the host. The process's resident memory is printed when the balloon has reached its target.
//!
//! The guest's console goes to standard output.
#![allow(clippy::print_stderr, reason = "this is a program for people")]

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::time::Duration;

use minivmm::Machine;
use minivmm::spec::Spec;

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("usage: balloon SPEC.toml")?;
    let machine = Machine::start(&Spec::from_file(file)?, Box::new(io::stdout()))?;
    let controls = machine.controls();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            match line.trim().parse() {
                Ok(mib) => {
                    if let Err(error) = controls.set_balloon(mib) {
                        eprintln!("\n{error}");
                    }
                }
                Err(_) => report("resident", controls.balloon().actual() >> 20),
            }
        }
    });
    let mut seen = 0;
    loop {
        if let Some(exit) = machine.wait_for(Duration::from_millis(200)) {
            eprintln!("\nthe machine has ended: {exit}");
            return Ok(());
        }
        let balloon = machine.balloon();
        let now = balloon.actual() >> 20;
        if now != seen && now == balloon.target() {
            seen = now;
            report("balloon", now);
        }
    }
}

/// Prints the resident memory of this process, which includes the machine's.
fn report(what: &str, balloon: u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    let resident = resident.unwrap_or(0u64) >> 10;
    // One write, so that the guest's output does not split the line.
    let line = format!("\n{what}: {balloon} MiB with the host, {resident} MiB resident\n");
    let _ = io::stderr().write_all(line.as_bytes());
}
