//! The documents agree with the code. Nothing is started here: tests/lab_readme.rs runs what shows an output.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

#[path = "support/documents.rs"]
mod documents;
#[path = "support/shell.rs"]
mod shell;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use documents::{Block, RUN, RUN_HERE, blocks, is_as_shown, names, read, root};
use minivmm::cli::args::{self, ArgsError};
use minivmm::spec::Spec;

#[test]
fn architecture_names_only_places_that_exist() {
    let text = read("ARCHITECTURE.md");
    let named: Vec<&str> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.contains('/') && !word.contains(' ') && !word.starts_with('/'))
        .collect();
    assert!(named.len() > 20, "{named:?}");
    let missing: Vec<_> = named.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// In a table, behind the path of their file.
#[test]
fn contributing_names_only_tests_that_exist() {
    let text = read("CONTRIBUTING.md");
    let mut count = 0;
    for row in text.lines().filter(|line| line.starts_with('|')) {
        let mut file = None;
        for word in row.split('`').skip(1).step_by(2) {
            match &file {
                _ if word.ends_with(".rs") => file = Some((word, read(word))),
                Some((path, code)) => {
                    assert!(code.contains(&format!("fn {word}(")), "{path} has no test {word}");
                    count += 1;
                }
                None => {}
            }
        }
    }
    assert!(count > 10, "{count}");
}

/// Documents and help come from one table: each number and its meaning is in all of them.
#[test]
fn exit_statuses_are_the_same_in_documents_and_help() {
    let table = minivmm::cli::exit::markdown();
    for document in ["docs/reference.md", "docs/exit.md"] {
        let text = read(document);
        assert!(text.contains(&format!("\n{table}\n")), "{document} has not this table:\n{table}");
        assert_eq!(text.matches("| status | meaning |").count(), 1, "{document} has one table");
    }
    let mut help = args::definition();
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
fn readme_is_short_and_names_this_version() {
    let readme = read("README.md");
    assert!(readme.lines().count() <= 200, "{} lines", readme.lines().count());
    assert!(readme.contains(concat!("\nminivmm ", env!("CARGO_PKG_VERSION"), "\n")));
}

#[test]
fn documents_have_the_default_command_line() {
    assert!(read("docs/reference.md").contains(&format!("`{}`", minivmm::spec::DEFAULT_CMDLINE)));
}

/// A page's output is compared with the real output only where the page is run.
#[test]
fn only_documents_that_are_run_show_output() {
    let is_run = |name: &String| RUN.iter().chain(&RUN_HERE).any(|run| run == name);
    for name in names().iter().filter(|name| !is_run(name)) {
        for shown in documents::shown(&read(name)) {
            assert!(shown.output.is_empty(), "{name}: `{}` is not run", shown.command);
        }
    }
}

#[test]
fn comparison_sees_what_differs() {
    let shown = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert!(is_as_shown(&shown("pid 12  of vm0\n...\nend"), &["pid 4711 of vm0", "a", "b", "end"]));
    assert!(is_as_shown(&shown("...\nend"), &["end"]));
    assert!(!is_as_shown(&shown("a"), &["a", "b"]));
    assert!(!is_as_shown(&shown("a\nb"), &["a"]));
    assert!(!is_as_shown(&shown("status 0"), &["status 1"]));
    assert!(!is_as_shown(&shown("...\nend"), &["the end"]));
}

/// Lines of code blocks without the prompt; what a `console` block shows as output is none. The reference is generated,
/// and has forms for lines.
fn code_lines() -> Vec<(String, String)> {
    let pages = names().into_iter().filter(|name| name != "docs/reference.md");
    let of_page = |name: String| {
        let blocks = blocks(&read(&name)).into_iter().filter(|block| block.language != "rust");
        let lines = blocks.flat_map(|block: Block| {
            let start = match block.language.as_str() {
                "console" => "$ ",
                "toml" => "#",
                _ => "",
            };
            block.lines.into_iter().filter(move |line| line.starts_with(start))
        });
        lines.map(|line| (name.clone(), line.trim_start_matches("$ ").to_owned())).collect::<Vec<_>>()
    };
    pages.flat_map(of_page).collect()
}

/// The code spans of a document's text.
fn code_spans(name: &str) -> Vec<String> {
    let mut text = String::new();
    let mut inside = false;
    for line in read(name).lines() {
        match line.trim_start().starts_with("```") {
            true => inside = !inside,
            false if !inside => text += &format!("{line}\n"),
            false => {}
        }
    }
    text.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")).collect()
}

#[test]
fn every_command_line_in_a_block_is_understood() {
    let mut count = 0;
    for (name, line) in code_lines() {
        // The comment in the first line of a machine's file is the command that uses it.
        let line = line.strip_prefix("# vm.toml: ").unwrap_or(&line);
        for words in shell::commands(line).into_iter().filter(|words| words[0] == "minivmm") {
            count += 1;
            match args::parse(words.clone()) {
                // The file of `--config` is not here.
                Ok(_) | Err(ArgsError::Config(_)) => {}
                Err(ArgsError::Flags(error)) if !error.use_stderr() => {}
                Err(error) => panic!("{name}: {words:?}: {error}"),
            }
        }
    }
    assert!(count > 15, "{count}");
}

/// Verbs and options that texts mention in passing, such as `minivmm stop NAME` or `--timeout SEC`.
#[test]
fn every_option_and_verb_in_a_sentence_exists() {
    let whole = args::definition();
    let own = |command: &clap::Command| {
        let longs = command.get_arguments().filter_map(|arg| arg.get_long_and_visible_aliases());
        longs.flatten().map(|flag| format!("--{flag}")).collect::<BTreeSet<_>>()
    };
    // With those of a verb's verbs.
    let flags = |verb: &clap::Command| {
        own(verb).into_iter().chain(verb.get_subcommands().flat_map(own)).collect::<BTreeSet<_>>()
    };
    let verbs: Vec<_> = whole.get_subcommands().collect();
    let all: BTreeSet<_> = verbs.iter().flat_map(|verb| flags(verb)).chain(own(&whole)).collect();
    let mut count = 0;
    for name in names() {
        for span in code_spans(&name) {
            let words: Vec<&str> = span.split([' ', '=']).collect();
            let known = match words[0] {
                "minivmm" => match words.get(1) {
                    Some(word) if word.starts_with(|first: char| first.is_ascii_lowercase()) => {
                        let verb = verbs.iter().find(|verb| verb.get_name() == *word);
                        assert!(verb.is_some() || *word == "help", "{name}: `{span}`");
                        verb.map_or_else(BTreeSet::new, |verb| flags(verb))
                    }
                    _ => own(&whole),
                },
                flag if is_flag(flag) && !OTHERS.contains(&flag) => all.clone(),
                _ => continue,
            };
            count += 1;
            // The words after `--` are the guest's.
            for flag in words.iter().take_while(|word| **word != "--").filter(|word| is_flag(word)) {
                let flag = flag.trim_end_matches([',', '.']);
                assert!(known.contains(flag), "{name}: `{span}` has {flag}");
            }
        }
    }
    assert!(count > 60, "{count}");
}

fn is_flag(word: &str) -> bool {
    word.strip_prefix("--").is_some_and(|name| name.starts_with(|first: char| first.is_ascii_lowercase()))
}

/// Options of other programs that are named alone.
const OTHERS: [&str; 1] = ["--no-default-features"];

/// `make image`, `cargo run --example pool`, `cargo test --test docs`.
#[test]
fn every_target_example_and_test_that_is_named_exists() {
    let makefile = read("Makefile");
    let packages = packages();
    let mut count = 0;
    let spans = names().into_iter().flat_map(|name| {
        code_spans(&name).into_iter().map(move |span| (name.clone(), span)).collect::<Vec<_>>()
    });
    for (name, text) in code_lines().into_iter().chain(spans) {
        for words in shell::commands(&text) {
            let behind = |flag: &str| {
                let at = words.iter().position(|word| word == flag)?;
                words.get(at + 1).cloned()
            };
            if words[0] == "make" {
                for target in words.iter().skip(1).filter(|word| !word.contains('=')) {
                    assert!(makefile.contains(&format!("\n{target}: ")), "{name}: {text}");
                    count += 1;
                }
            } else if words[0] == "cargo" {
                let package = behind("-p").unwrap_or_else(|| "minivmm".to_owned());
                let folder = packages.get(&package).unwrap_or_else(|| panic!("{name}: {text}: {package}"));
                let missing = |path: String| !root().join(folder).join(path).exists();
                let example = behind("--example").is_some_and(|word| missing(format!("examples/{word}.rs")));
                let test = behind("--test").is_some_and(|word| missing(format!("tests/{word}.rs")));
                assert!(!example && !test, "{name}: {text}");
                count += 1;
            }
        }
    }
    assert!(count > 15, "{count}");
}

/// The packages of the workspace, with their folders.
fn packages() -> BTreeMap<String, String> {
    let members = read("Cargo.toml");
    let members = members.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
    let folders = members.split('"').skip(1).step_by(2).map(str::to_owned);
    let named = folders.map(|folder| {
        let manifest = read(&format!("{folder}/Cargo.toml"));
        let name = manifest.split_once("\nname = \"").unwrap().1.split('"').next().unwrap().to_owned();
        (name, folder)
    });
    named.chain([("minivmm".to_owned(), ".".to_owned())]).collect()
}

#[test]
fn every_machines_file_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("vm.toml");
    let mut count = 0;
    for name in names() {
        let blocks = blocks(&read(&name)).into_iter().filter(|block| block.language == "toml");
        for text in blocks.map(|block| block.lines.join("\n")).filter(|text| !text.contains("[dependencies]"))
        {
            std::fs::write(&file, &text).unwrap();
            count += 1;
            Spec::from_file(&file).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
        }
    }
    assert!(count >= 2, "{count}");
}

#[test]
fn every_link_leads_somewhere() {
    let more = ["ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "tests/lab/README.md"];
    let mut count = 0;
    for name in names().into_iter().chain(more.map(str::to_owned)) {
        let text = read(&name);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("https://") {
                continue;
            }
            count += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let folder = Path::new(&name).parent().unwrap();
            let target = if path.is_empty() { Path::new(&name).to_owned() } else { folder.join(path) };
            assert!(root().join(&target).exists(), "{name} links to {link}");
            let there = anchor.is_empty() || headings(&read(target.to_str().unwrap())).contains(anchor);
            assert!(there, "{name} links to {link}, which has no such heading");
        }
    }
    assert!(count > 30, "{count}");
}

/// The anchors of a document's headings, as GitHub makes them.
fn headings(text: &str) -> BTreeSet<String> {
    let lines = text.lines().filter(|line| line.starts_with('#'));
    let plain = lines.map(|line| line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-"));
    plain.map(|line| line.replace(|c: char| !c.is_alphanumeric() && c != '-' && c != '_', "")).collect()
}

#[test]
fn every_document_is_listed_in_the_readme() {
    let readme = read("README.md");
    for name in names().into_iter().skip(1) {
        assert!(readme.contains(&format!("]({name})")), "{name}");
    }
}

#[test]
fn every_request_of_the_api_is_in_its_document() {
    let (page, file) = (read("docs/api.md"), read("resources/openapi.yaml"));
    let mut path = "";
    let mut requests = BTreeSet::new();
    for line in file.lines().take_while(|line| *line != "components:") {
        if let Some(named) = line.strip_prefix("  /").and_then(|rest| rest.strip_suffix(':')) {
            path = named;
        }
        for method in ["get", "post", "put", "delete", "patch"] {
            if line == format!("    {method}:") {
                requests.insert(format!("`{} /{path}`", method.to_uppercase()));
            }
        }
    }
    assert!(requests.len() > 10, "{requests:?}");
    let missing: Vec<_> = requests.iter().filter(|request| !page.contains(*request)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_call_of_a_machine_is_in_the_librarys_document() {
    let (page, code) = (read("docs/library.md"), read("src/machine/mod.rs"));
    let body = code.split_once("\nimpl Machine {\n").unwrap().1.split_once("\n}\n").unwrap().0;
    let calls: Vec<_> =
        body.split("\n    pub fn ").skip(1).map(|rest| rest.split('(').next().unwrap()).collect();
    assert!(calls.len() > 15, "{calls:?}");
    // Associated functions are in the examples.
    let missing: Vec<_> = calls
        .iter()
        .filter(|call| !["start", "builder"].contains(call) && !page.contains(&format!("`{call}(")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
