//! Compiles the guests that are freestanding programs for the host's own target, into files that the library carries.

use std::{env, path::Path, process::Command};

fn main() -> Result<(), String> {
    ["hostile", "load", "frames", "disk", "power", "writer", "command", "share"]
        .into_iter()
        .try_for_each(build)
}

fn build(name: &str) -> Result<(), String> {
    println!("cargo::rerun-if-changed={name}");
    let var = |name: &str| env::var(name).map_err(|e| format!("cargo did not set {name}: {e}"));
    let out = Path::new(&var("OUT_DIR")?).join(name);
    let status = Command::new(var("RUSTC")?)
        .args(["--edition=2024", "--crate-name", name, "--crate-type=bin", "-Copt-level=2", "-Cpanic=abort"])
        .args(["-Crelocation-model=static", "-Cstrip=symbols", "-Coverflow-checks=off", "--target"])
        .arg(var("TARGET")?)
        .args(["-nostdlib", "-nostartfiles", "-static", "-no-pie"].map(|word| format!("-Clink-arg={word}")))
        .arg("-Clink-arg=-Wl,-T,hostile/guest.ld,--build-id=none")
        .arg("-o")
        .arg(&out)
        .arg(format!("{name}/main.rs"))
        .status()
        .map_err(|e| format!("rustc did not start: {e}"))?;
    if status.success() { Ok(()) } else { Err(format!("the guest {name} did not compile")) }
}
