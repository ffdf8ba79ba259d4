//! What a warm run saves, in the lab: from the start of `minivmm run` to the first byte that its command prints, cold and warm in turn.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Cmd, Lab, LabConfig, kernels};

use crate::numbers::Series;

const ROUNDS: usize = 5;
/// For all of it, under two emulations.
const LIMIT: Duration = Duration::from_secs(1800);

/// Measures both.
pub fn run() -> Result<()> {
    let kernel = kernels()?.cloud;
    let minivmm = std::env::current_exe()?.with_file_name("minivmm");
    let folder = tempfile::tempdir()?;
    let mut config =
        LabConfig::default().file(minivmm, "minivmm").file(&kernel.bzimage, "package/boot/vmlinuz");
    for (name, content) in kernel.modules(&["virtio_pci", "virtio_console", "pvpanic_mmio"])? {
        let file = folder.path().join(&name);
        std::fs::write(&file, content)?;
        let place = Path::new("package/lib/modules").join(&kernel.version).join("kernel").join(name);
        config = config.file(file, place.to_str().context("a path")?);
    }
    let lab = Lab::start(&config)?;
    let script = format!(
        "export XDG_STATE_HOME=$PWD/state
         now() {{ read -r up rest </proc/uptime; echo \"$up\"; }}
         first() {{
             begin=$(now)
             ./minivmm run --kernel package/boot/vmlinuz --mem 256 --boot-timeout 300 $2 -- echo x | {{ read -r line; echo \"$1 $begin $(now) $line\"; }}
         }}
         first first '--warm box'
         round=0; while [ $round -lt {ROUNDS} ]; do first cold; first warm '--warm box'; round=$((round + 1)); done"
    );
    let out = lab.exec(&Cmd::sh(script).limit(LIMIT))?;
    let text = out.text();
    let (mut first, mut cold, mut warm) = (Series::default(), Series::default(), Series::default());
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, begin, end, "x"] = words[..] else { continue };
        let seconds = end.parse::<f64>()? - begin.parse::<f64>()?;
        match what {
            "first" => first.add(seconds),
            "cold" => cold.add(seconds),
            _ => warm.add(seconds),
        }
    }
    println!("A command's first byte in the lab, {ROUNDS} rounds:");
    println!("  cold {cold:.2} s, warm {warm:.2} s; the run that saves {first:.2} s");
    ensure!(text.lines().count() == 2 * ROUNDS + 1, "runs have failed: {text}{}", out.err_text());
    Ok(())
}
