//! Compiles the agent into one static file, which the library carries: whoever links the library needs no second build.

use std::{env, path::Path, process::Command};

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed=agent/main.rs");
    println!("cargo::rerun-if-changed=src/wire.rs");
    let var = |name: &str| env::var(name).map_err(|e| format!("cargo did not set {name}: {e}"));
    let agent = Path::new(&var("OUT_DIR")?).join("agent");
    let status = Command::new(var("RUSTC")?)
        .args(["--edition=2024", "--crate-name=agent", "--crate-type=bin", "-Copt-level=s", "-Cpanic=abort"])
        .args(["-Cstrip=symbols", "-Ctarget-feature=+crt-static", "--target"])
        .arg(var("TARGET")?)
        .arg("-o")
        .arg(&agent)
        .arg("agent/main.rs")
        .status()
        .map_err(|e| format!("rustc did not start: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err("the lab's agent did not compile; a static C library is needed (apt-get install libc6-dev)"
            .into())
    }
}
