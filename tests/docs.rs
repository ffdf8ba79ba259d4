//! What the documents say is so.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::path::Path;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn architecture_names_only_places_that_exist() {
    let text = read("ARCHITECTURE.md");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named: Vec<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.contains('/') && !word.contains(' ') && !word.starts_with('/'))
        .collect();
    assert!(named.len() > 20, "{named:?}");
    let missing: Vec<_> = named.iter().filter(|path| !root.join(path).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn readme_has_the_table_of_exit_statuses() {
    assert!(read("README.md").contains(&minivmm::cli::exit::markdown()));
}

#[test]
fn readme_has_every_flag_of_the_help() {
    let help = minivmm::cli::args::definition().render_help().to_string();
    let readme = read("README.md");
    let flags: Vec<&str> = help.split_whitespace().filter(|word| word.starts_with("--")).collect();
    assert!(flags.len() > 8, "{help}");
    for flag in flags.iter().filter(|flag| !["--help", "--version"].contains(flag)) {
        let flag = format!("`{}", flag.trim_end_matches(','));
        assert!([" ", "`"].iter().any(|end| readme.contains(&(flag.clone() + end))), "{flag}");
    }
}

#[test]
fn readme_has_the_default_command_line() {
    assert!(read("README.md").contains(&format!("`{}`", minivmm::spec::DEFAULT_CMDLINE)));
}
