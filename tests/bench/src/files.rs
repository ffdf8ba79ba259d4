//! Work on files that says how many nanoseconds it took: `files read FILE`, `write FILE MIB`, `random FILE COUNT`, `create FOLDER COUNT`, and
//! `run COMMAND...`.

use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let begin = Instant::now();
    match words.as_slice() {
        ["read", file] => read(file)?,
        ["write", file, mib] => write(file, mib.parse()?)?,
        ["random", file, count] => random(file, count.parse()?)?,
        ["create", folder, count] => create(Path::new(folder), count.parse()?)?,
        ["run", command, arguments @ ..] => {
            let status = Command::new(command).args(arguments).stdout(Stdio::null()).status()?;
            ensure!(status.success(), "{command} has failed: {status}");
        }
        _ => bail!("usage: files read|write|random|create|run ..."),
    }
    println!("{}", begin.elapsed().as_nanos());
    Ok(())
}

/// A MiB at a time, to the end.
fn read(file: &str) -> Result<()> {
    let mut file = File::open(file)?;
    let mut bytes = vec![0; MIB];
    while file.read(&mut bytes)? > 0 {
        black_box(&bytes);
    }
    Ok(())
}

/// A new file, a MiB at a time.
fn write(file: &str, mib: usize) -> Result<()> {
    let mut file = File::create_new(file)?;
    let bytes = vec![0x5a; MIB];
    (0..mib).try_for_each(|_| Ok(file.write_all(&bytes)?))
}

/// Blocks in no order, past the page cache (xorshift64).
fn random(file: &str, count: usize) -> Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(file)?;
    let blocks = file.metadata()?.len() / BLOCK as u64;
    let mut room = vec![0; 2 * BLOCK];
    let at = room.as_ptr().align_offset(BLOCK);
    let block = room.get_mut(at..at + BLOCK).context("no room")?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.read_exact_at(block, state % blocks * BLOCK as u64)?;
    }
    Ok(())
}

/// Empty files in a new folder.
fn create(folder: &Path, count: usize) -> Result<()> {
    fs::create_dir(folder)?;
    (0..count).try_for_each(|number| Ok(File::create_new(folder.join(number.to_string())).map(drop)?))
}
