//! Writes all tiny guests as kernel files into a directory: `cargo run -p tiny-guest --example write -- DIR`.

use std::path::PathBuf;

use tiny_guest::Guest;

fn main() -> std::io::Result<()> {
    let dir = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from);
    std::fs::create_dir_all(&dir)?;
    for guest in Guest::ALL {
        guest.write(&dir)?;
    }
    Ok(())
}
