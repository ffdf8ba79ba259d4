//! What `minivmm save --keep-running` costs a machine of 512 MiB, natively: its pause, the time until it is copied, and what was
//! copied for that. The guest has written 64 MiB; it rests, or goes on writing all of them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::numbers::Series;

const ROUNDS: usize = 7;
/// 64 MiB.
const PAGES: &str = "pages=16384";

/// Ends with the bench.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures both.
pub fn run() -> Result<()> {
    println!("Save of a machine of 512 MiB that runs on, its guest with 64 MiB written, {ROUNDS} saves:");
    measure("that rests", true)?;
    measure("that writes them all the time", false)
}

fn measure(name: &str, rests: bool) -> Result<()> {
    let minivmm = std::env::current_exe()?.with_file_name("minivmm");
    let folder = tempfile::tempdir()?;
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, tiny_guest::WRITER)?;
    let mut command = Command::new(&minivmm);
    command.args(["--name", "bench", "--mem", "512", "--append", PAGES, "--kernel"]).arg(&kernel);
    command
        .env("XDG_RUNTIME_DIR", folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut machine = Machine(command.spawn()?);
    let mut lines = BufReader::new(machine.0.stdout.take().context("no console")?).lines();
    let mut until =
        |word: &str| match lines.by_ref().find(|line| line.as_ref().is_ok_and(|line| line.starts_with(word)))
        {
            Some(_) => Ok(()),
            None => bail!("the guest does not say {word}"),
        };
    until("round=1")?;
    if rests {
        machine.0.stdin.as_mut().context("no keys")?.write_all(b"?")?;
        until("finished")?;
    }
    let (mut paused, mut total, mut sent, mut rounds) =
        (Series::default(), Series::default(), Series::default(), Series::default());
    for round in 0..ROUNDS {
        let saved = folder.path().join(format!("saved{round}"));
        let mut save = Command::new(&minivmm);
        save.args(["save", "bench", "--keep-running", "--json"]).arg(&saved);
        let output = save.env("XDG_RUNTIME_DIR", folder.path()).output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        let report = String::from_utf8(output.stdout)?;
        let field = |key: &str| -> Result<f64> {
            let (_, rest) = report.split_once(&format!("\"{key}\": ")).context("no such field")?;
            Ok(rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().parse()?)
        };
        paused.add(field("paused-ms")?);
        total.add(field("total-ms")?);
        sent.add(field("sent")? / f64::from(1 << 20));
        rounds.add(field("rounds")?);
        std::fs::remove_dir_all(&saved)?;
    }
    println!(
        "  a guest {name}: paused {paused:.0} ms, copied in {total:.0} ms, {sent:.0} MiB, {rounds:.0} rounds"
    );
    Ok(())
}
