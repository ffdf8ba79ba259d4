//! `make bench`: what minivmm costs, in counters and in ratios to a floor measured in the same interleaved run.
//!
//! Nothing here passes or fails: the numbers depend on the machine, the ratios and counters hardly do.

mod block;
mod convert;
mod exits;
mod first;
mod images;
mod network;
mod numbers;
mod peers;
mod prefetch;
mod restore;
mod rivals;
mod save;
mod setups;
mod share;
mod startup;
mod traffic;
mod warm;
mod watch;
mod window;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        None => {
            startup::run()?;
            exits::run()?;
            restore::run()?;
            convert::run()?;
            save::run()?;
            warm::run()?;
            prefetch::run()?;
            share::run()?;
            first::run(None)?;
            let lab = rivals::lab()?;
            block::on(&lab, None)?;
            network::on(&lab, None)
        }
        Some("startup") if arguments.get(1).is_some_and(|case| case == "user") => startup::user_network(),
        Some("startup") => startup::run(),
        // What "startup" runs in a network namespace.
        Some("startup-devices") => startup::devices(),
        Some("exits") => exits::run(),
        Some("restore") => restore::run(),
        Some("convert") => convert::run(),
        Some("save") => save::run(),
        Some("warm") => warm::run(),
        Some("prefetch") => prefetch::run(),
        Some("share") => share::run(),
        Some("run") => first::run(arguments.get(1).map(String::as_str)),
        Some("block") => block::on(&rivals::lab()?, arguments.get(1).map(String::as_str)),
        Some("network") => network::on(&rivals::lab()?, arguments.get(1).map(String::as_str)),
        Some(other) => {
            bail!(
                "no such bench: {other} (startup, restore, exits, convert, save, warm, prefetch, share, run, block, network)"
            )
        }
    }
}
