//! Makes the manual pages, the shell completions and the command reference from the definition of the command line, so that
//! they cannot differ. It is a program of its own, so that minivmm contains none of it.
//!
//! `manual DIRECTORY` writes pages and completions with the folders of a prefix such as /usr/share.
//! `manual --reference FILE` writes the reference (docs/reference.md).

mod reference;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use minivmm::cli::{args, exit};

/// Where completions lie under share/, in the names that the shells look for.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/minivmm"),
    (Shell::Zsh, "zsh/site-functions/_minivmm"),
    (Shell::Fish, "fish/vendor_completions.d/minivmm.fish"),
];

fn main() -> ExitCode {
    let words: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (place, written) = match words.as_slice() {
        [flag, file] if flag.as_os_str() == "--reference" => {
            (file, write(file, reference::page().as_bytes()))
        }
        [place] if !place.as_os_str().as_encoded_bytes().starts_with(b"-") => (place, write_all(place)),
        _ => return complain("usage: manual DIRECTORY, or manual --reference FILE"),
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("cannot write to {}: {error}", place.display())),
    }
}

fn complain(text: &str) -> ExitCode {
    let _ = io::Write::write_all(&mut io::stderr(), format!("manual: {text}\n").as_bytes());
    ExitCode::from(2)
}

fn write_all(place: &Path) -> io::Result<()> {
    let mut command = args::definition();
    for (shell, name) in COMPLETIONS {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command, "minivmm", &mut text);
        write(&place.join(name), &text)?;
    }
    let verbs: Vec<Command> = command.get_subcommands().cloned().collect();
    write(&place.join("man/man1/minivmm.1"), &page(&command, &verbs)?)?;
    for verb in &verbs {
        let name = format!("minivmm-{}", verb.get_name());
        // What a page shows under SYNOPSIS is what is typed.
        let typed = format!("minivmm {}", verb.get_name());
        let verb = verb
            .clone()
            .name(name.clone())
            .display_name(name.clone())
            .bin_name(typed)
            .version(env!("CARGO_PKG_VERSION"));
        write(&place.join(format!("man/man1/{name}.1")), &page(&verb, &[])?)?;
    }
    Ok(())
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(path, text)
}

/// One page. It is written section by section: what `--help` has behind its options is here a section of its own.
fn page(command: &Command, verbs: &[Command]) -> io::Result<Vec<u8>> {
    let man = Man::new(command.clone())
        .title(command.get_name().to_uppercase())
        .section("1")
        // The same source gives the same page.
        .date("")
        .source(concat!("minivmm ", env!("CARGO_PKG_VERSION")))
        .manual("minivmm");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    let mut more = Roff::new();
    if !verbs.is_empty() {
        more.control("SH", ["COMMANDS"]);
        for verb in verbs {
            more.control("TP", []);
            more.text([bold(format!("minivmm-{}(1)", verb.get_name()))]);
            more.text([roman(verb.get_about().map(ToString::to_string).unwrap_or_default())]);
        }
    }
    let parts: Vec<_> = command.get_subcommands().filter(|_| verbs.is_empty()).collect();
    if !parts.is_empty() {
        more.control("SH", ["COMMANDS"]);
        for part in parts {
            more.control("TP", []);
            more.text([bold(reference::usage_of(command, part))]);
            more.text([roman(part.get_about().map(ToString::to_string).unwrap_or_default())]);
        }
    }
    more.control("SH", ["EXIT STATUS"]);
    let verb = command.get_name().strip_prefix("minivmm-");
    if verb == Some("run") {
        more.text([roman("That of the command, 127 if there is no such command, 128+n if signal n ended it; and of minivmm:")]);
    }
    for (number, meaning) in exit::rows_of(verb) {
        more.control("TP", []);
        more.text([bold(number)]);
        more.text([roman(meaning.trim_start_matches("`run`: ").replace('`', ""))]);
    }
    more.control("SH", ["SEE ALSO"]);
    let this = command.get_name();
    let whole = args::definition();
    let pages = std::iter::once("minivmm".to_owned())
        .chain(whole.get_subcommands().map(|verb| format!("minivmm-{}", verb.get_name())));
    let others: Vec<String> = pages.filter(|page| page != this).map(|page| format!("{page}(1)")).collect();
    more.text([roman(others.join(", "))]);
    more.to_writer(&mut text)?;
    Ok(text)
}
