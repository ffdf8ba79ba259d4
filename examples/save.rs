//! Saves a machine with a shell again and again, and goes on in a fresh one each time: the shell counts, and misses nothing.
//!
//! `cargo run --example save -- vm.toml 10 '# '`: the machine of this spec, ten times, once its console shows this.
#![allow(clippy::print_stdout, reason = "an example shows something")]

use std::error::Error;
use std::io::Write;
use std::time::{Duration, Instant};

use minivmm::Machine;
use minivmm::spec::Spec;

const LIMIT: Duration = Duration::from_secs(300);

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let mut arg = |what| args.next().ok_or_else(|| format!("say {what}"));
    let spec = Spec::from_file(arg("which spec")?)?;
    let times: u32 = arg("how many times")?.parse()?;
    let prompt = arg("the shell's prompt")?;

    let mut machine = Machine::builder(&spec).start()?;
    machine.console().expect(&prompt, LIMIT)?;
    tell(&machine, "count=0; echo ready:$count", "ready:0")?;
    for time in 1..=times {
        let begin = Instant::now();
        machine.pause(LIMIT)?;
        let memory = tempfile::tempfile()?;
        // The state is serde's to write; the memory is in the file already.
        let state = serde_json::to_string(&machine.save(&memory)?)?;
        // Its disks and sockets are free for the next one when this returns.
        drop(machine);
        let (saved, begin) = (begin.elapsed(), Instant::now());
        machine = Machine::builder(&spec).restore(serde_json::from_str(&state)?, memory).start()?;
        println!("saved in {saved:?}, {} bytes of state; restored in {:?}", state.len(), begin.elapsed());
        // A timer has to fire, and a process to end.
        let answer = format!("counted:{time}");
        tell(&machine, "sleep 0.2; count=$((count + 1)); echo counted:$count", &answer)?;
    }
    // With no program but the shell and dmesg: an initramfs has little more.
    let complaints = "dmesg | (n=0; while read -r line; do case $line in *lockup*|*stall*|*Oops*|*BUG:*) n=1;; esac; done; echo bad:$n)";
    tell(&machine, complaints, "bad:0")?;
    println!("{times} times, and nothing is missing");
    Ok(())
}

/// Types a command into the shell, and waits for its answer, which is no part of the command. A prompt may stand before it: that of
/// a machine that was saved before its shell had written it.
fn tell(machine: &Machine, command: &str, answer: &str) -> Result<(), Box<dyn Error>> {
    let mut console = machine.console();
    console.write_all(format!("{command}\n").as_bytes())?;
    console.expect(answer, LIMIT)?;
    Ok(())
}
