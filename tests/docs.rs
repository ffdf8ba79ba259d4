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

/// README, page and help come from one table: no number, and no other meaning of one, stands in only one of them.
#[test]
fn exit_statuses_are_the_same_in_readme_page_and_help() {
    let table = minivmm::cli::exit::markdown();
    for document in ["README.md", "docs/exit.md"] {
        let text = read(document);
        assert!(text.contains(&format!("\n{table}\n")), "{document} has not this table:\n{table}");
        assert_eq!(text.matches("| status | meaning |").count(), 1, "{document} has one table");
    }
    let mut help = minivmm::cli::args::definition();
    let own = help.render_help().to_string();
    let run = help.find_subcommand_mut("run").unwrap().render_help().to_string();
    for (status, meaning) in minivmm::cli::exit::rows() {
        let (of, text) = if meaning.starts_with("`run`") { ("run", &run) } else { ("machines", &own) };
        let said = text.split_once("Exit status: ").unwrap().1;
        let words = said.split([',', ';', '\n']).map(str::trim);
        assert!(
            words.into_iter().any(|word| word.starts_with(&format!("{status} "))),
            "{status} of {of}: {said}"
        );
    }
    let numbers = |text: &str| {
        let said = text.split_once("Exit status: ").unwrap().1.to_owned();
        said.split([',', ';', '\n'])
            .filter(|word| word.trim().starts_with(|first: char| first.is_ascii_digit()))
            .count()
    };
    assert_eq!(
        numbers(&own) + numbers(&run),
        minivmm::cli::exit::rows().count(),
        "and no other:\n{own}\n{run}"
    );
}

/// Each status that the API names has words of the same table.
#[test]
fn exit_statuses_of_the_api_are_the_tables() {
    let text = read("resources/openapi.yaml").split_whitespace().collect::<Vec<_>>().join(" ");
    let said = text.split_once("The exit status of the machine's command: ").unwrap().1;
    let named: Vec<_> = said.split_once(". ").unwrap().0.split(", ").collect();
    assert_eq!(named.len(), 7, "{named:?}");
    for part in named {
        let (number, words) = part.split_once(' ').unwrap();
        let row = minivmm::cli::exit::rows().find(|(status, _)| status == number);
        assert!(row.as_ref().is_some_and(|(_, meaning)| meaning.contains(words)), "{part}: {row:?}");
    }
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
