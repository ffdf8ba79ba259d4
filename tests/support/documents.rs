//! The documents of the repository, as tests read them.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::path::{Path, PathBuf};

/// The documents whose `console` blocks are run: each command, with the output that it shows.
pub(crate) const RUN: [&str; 3] = ["README.md", "docs/api.md", "docs/ci.md"];
/// The same for commands that need no guest: tests/cli_disk.rs runs them.
pub(crate) const RUN_HERE: [&str; 1] = ["docs/disks.md"];

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Names of all documents for users: README.md and docs/*.md.
pub(crate) fn names() -> Vec<String> {
    let pages = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<PathBuf> =
        pages.filter(|page| page.extension().is_some_and(|end| end == "md")).collect();
    pages.sort();
    let pages = pages.iter().map(|page| page.strip_prefix(root()).unwrap().display().to_string());
    ["README.md".to_owned()].into_iter().chain(pages).collect()
}

/// A fenced block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// `<!-- host -->` stands in front of it.
    pub(crate) on_host: bool,
    pub(crate) language: String,
    pub(crate) lines: Vec<String>,
}

pub(crate) fn blocks(text: &str) -> Vec<Block> {
    let (mut found, mut open, mut on_host) = (Vec::new(), None::<Block>, false);
    for line in text.lines() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (None, Some(language)) => {
                open = Some(Block { on_host, language: language.to_owned(), lines: Vec::new() });
                on_host = false;
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => block.lines.push(line.to_owned()),
            (None, None) => on_host = line == "<!-- host -->" || (on_host && line.is_empty()),
        }
    }
    assert!(open.is_none(), "a block has no end");
    found
}

/// A command with the output that a document shows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) on_host: bool,
    pub(crate) command: String,
    pub(crate) output: Vec<String>,
}

/// All commands of a document's `console` blocks.
pub(crate) fn shown(text: &str) -> Vec<Shown> {
    let mut found: Vec<Shown> = Vec::new();
    for block in blocks(text).into_iter().filter(|block| block.language == "console") {
        for line in block.lines {
            match line.strip_prefix("$ ") {
                Some(command) => {
                    let command = command.to_owned();
                    found.push(Shown { on_host: block.on_host, command, output: Vec::new() });
                }
                None => found.last_mut().expect("a block begins with a command").output.push(line),
            }
        }
    }
    found
}

/// A line as it is compared: each number is as good as another, but an exit status, and so is each width.
fn plain(line: &str) -> String {
    if line.starts_with("status ") {
        return line.to_owned();
    }
    let mut text = String::new();
    for word in line.split_whitespace() {
        for letter in word.chars() {
            match letter {
                '0'..='9' if text.ends_with('0') => {}
                '0'..='9' => text.push('0'),
                other => text.push(other),
            }
        }
        text.push(' ');
    }
    text.trim_end().to_owned()
}

/// Whether `said` is what a document shows.
pub(crate) fn is_as_shown(shown: &[String], said: &[&str]) -> bool {
    match (shown.split_first(), said.split_first()) {
        (None, None) => true,
        (Some((skip, rest)), _) if skip == "..." => {
            (0..=said.len()).any(|from| is_as_shown(rest, said.get(from..).unwrap_or_default()))
        }
        (Some((line, rest)), Some((first, after))) => plain(line) == plain(first) && is_as_shown(rest, after),
        _ => false,
    }
}
