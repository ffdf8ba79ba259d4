//! The command reference in Markdown, from the same definition as the manual pages.

use std::fmt::Write;

use clap::{Arg, ArgAction, Command};
use minivmm::cli::{args, exit};

/// Stands at the top of the page.
const HEAD: &str = "\
# Command reference

This page is generated from the definitions of the command line. Do not edit it: change the comments in `src/spec/mod.rs` or
`src/cli`, then run `cargo run -p manual -- --reference docs/reference.md`.

`minivmm OPTIONS` runs a machine. `minivmm VERB` does something else. `minivmm --help` and `minivmm help VERB` print short forms of this
page, `minivmm help OPTION` (`minivmm help share`) prints what it says of an option, and `minivmm --help-all` and `minivmm run --help-all` print all options. The manual
pages (`man minivmm`, `man minivmm-run`) have the same content.

The options of a machine are also the keys of its file (`--config`), without the dashes: [machines.md](machines.md) has an
example. An option on the command line replaces the key in the file.
";

/// What `run` ends with when its command has ended.
const OF_COMMAND: &str =
    "that of the command, 127 if there is no such command, 128+n if signal n ended it; or of minivmm";

/// The whole page.
pub(crate) fn page() -> String {
    let whole = args::definition();
    let mut text = format!("{HEAD}\n## `minivmm`\n\n");
    describe(&mut text, &whole, None);
    text += "### Verbs\n\n";
    for verb in whole.get_subcommands() {
        let name = verb.get_name();
        line(&mut text, &format!("- [`minivmm {name}`](#minivmm-{name}): {}", about(verb)));
    }
    for verb in whole.get_subcommands() {
        let name = verb.get_name();
        line(&mut text, &format!("\n## `minivmm {name}`\n\n{}\n", about(verb)));
        describe(&mut text, &verb.clone().bin_name(format!("minivmm {name}")), Some(name));
    }
    let text = text.trim_end();
    format!(
        "{text}\n\n## Exit statuses\n\n{}\n[exit.md](exit.md) says what counts as which end.\n",
        exit::markdown()
    )
}

/// Usage, arguments, options and exit statuses.
fn describe(text: &mut String, command: &Command, verb: Option<&str>) {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    let usage: String = usage.lines().map(|line| format!("{}\n", line.trim())).collect();
    line(text, &format!("```text\n{usage}```\n"));
    let more = command.get_long_about().map(ToString::to_string).unwrap_or_default();
    for paragraph in paragraphs(&more).iter().skip(1) {
        line(text, &format!("{paragraph}\n"));
    }
    let machine = args::definition();
    // The same option with the same meaning is described once.
    let known = |arg: &Arg| {
        let mut options = machine.get_arguments();
        verb.is_some() && options.any(|one| one.get_long() == arg.get_long() && option(one) == option(arg))
    };
    let asks =
        |arg: &&Arg| matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong);
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set() && !asks(arg));
    let (known, own): (Vec<&Arg>, Vec<&Arg>) = shown.partition(|arg| known(arg));
    for arg in own {
        line(text, &format!("- {}", option(arg)));
    }
    if !known.is_empty() {
        let names: Vec<_> =
            known.iter().filter_map(|arg| arg.get_long()).map(|long| format!("`--{long}`")).collect();
        line(text, &format!("- As [of a machine](#minivmm): {}.", names.join(", ")));
    }
    for part in verb.iter().flat_map(|_| command.get_subcommands()) {
        line(text, &format!("- `{}`: {}", usage_of(command, part), about(part)));
        for arg in part.get_arguments().filter(|arg| !asks(arg)) {
            line(text, &format!("  - {}", option(arg)));
        }
    }
    line(text, &statuses(verb));
}

/// How a verb of a verb is typed.
pub(crate) fn usage_of(verb: &Command, part: &Command) -> String {
    let typed = format!("{} {}", verb.get_bin_name().unwrap_or_default(), part.get_name());
    let usage = part.clone().bin_name(typed).render_usage().to_string();
    usage.trim_start_matches("Usage: ").trim_end().to_owned()
}

/// The exit statuses of a verb, where they are not those of a machine.
fn statuses(verb: Option<&str>) -> String {
    let rows = exit::rows_of(verb);
    match verb {
        None => String::new(),
        Some(_) if rows == exit::rows_of(None) => {
            "\nExit status: that of the machine ([table](#exit-statuses)).".into()
        }
        Some(_) => {
            let rows =
                rows.iter().map(|(number, said)| format!("{number}: {}", said.trim_start_matches("`run`: ")));
            let of_command = (verb == Some("run")).then(|| OF_COMMAND.to_owned());
            format!("\nExit status: {}.", of_command.into_iter().chain(rows).collect::<Vec<_>>().join("; "))
        }
    }
}

/// An option or argument with all that is said of it.
fn option(arg: &Arg) -> String {
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let mut name = short.into_iter().chain(long).collect::<Vec<_>>().join("`, `");
    if arg.is_positional() || arg.get_action().takes_values() {
        let values = arg.get_value_names().unwrap_or_default();
        let values = values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        name = if name.is_empty() { values } else { format!("{name} {values}") };
    }
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut sentences: Vec<String> = paragraphs(&help).iter().map(|part| full_stop(part)).collect();
    let default = arg.get_default_values().first().filter(|_| arg.get_action().takes_values());
    sentences.extend(default.map(|value| format!("Default: {}.", value.to_string_lossy())));
    format!("`{name}`: {}", sentences.join(" "))
}

fn about(command: &Command) -> String {
    full_stop(&command.get_about().map(ToString::to_string).unwrap_or_default())
}

/// Paragraphs, each as one line.
fn paragraphs(text: &str) -> Vec<String> {
    text.split("\n\n").map(|part| part.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn full_stop(text: &str) -> String {
    let text = text.trim_end();
    if text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}

fn line(text: &mut String, line: &str) {
    // Writing to a text does not fail.
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::page;

    #[test]
    fn reference_in_the_repository_is_up_to_date() {
        let written = include_str!("../../../docs/reference.md");
        let made = page();
        let differs = made.lines().zip(written.lines()).find(|(made, written)| made != written);
        assert!(made == written, "cargo run -p manual -- --reference docs/reference.md\n{differs:#?}");
    }
}
