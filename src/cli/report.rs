//! Messages for people, on stderr and in the log.

use std::error::Error;
use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::Level;

use super::machine_log;
use crate::host::ready::is_writable;
use crate::host::stdio::Output;
use crate::shown::lines;

/// Prints on stderr, in one write, so that messages of several processes do not mix. An error is ignored: the
/// machine matters more than the text. Whatever names are in it, it does not control the terminal.
pub fn message(text: &dyn Display) {
    message_at(Level::Info, text);
}

/// The same with a level for the log.
pub(super) fn message_at(level: Level, text: &dyn Display) {
    let text = lines(&with_advice(text.to_string()));
    // The log first: standard error may have a slow reader.
    machine_log::record(level, &text);
    if !LIMIT_WAITS.load(Ordering::Relaxed) || is_writable(&Output::error(), STDERR_LIMIT) {
        stderr_only(&text);
    }
}

/// Prints on standard error alone, for errors of the log.
pub(super) fn stderr_only(text: &str) {
    // There is no other place to report that stderr is full or closed.
    let _ = Output::error().write_all(text.as_bytes());
}

/// From now on a machine runs, so a reader of standard error that does not read loses messages: no signal,
/// device or end of the machine may wait for it.
pub(super) fn limit_stderr_waits() {
    LIMIT_WAITS.store(true, Ordering::Relaxed);
}

static LIMIT_WAITS: AtomicBool = AtomicBool::new(false);
/// How long to wait for a slow reader.
const STDERR_LIMIT: Duration = Duration::from_millis(200);

/// Prints a line on stderr while a machine runs; `raw` adds carriage returns for a terminal in raw mode.
pub fn notice(raw: bool, text: &str) {
    if raw && Output::error().is_terminal() {
        message(&format_args!("\r\nminivmm: {text}\r\n"));
    } else {
        message(&format_args!("minivmm: {text}\n"));
    }
}

/// An error and its causes in one line. A cause that is already part of the message before it is left out.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            // A sentence and its cause make one sentence.
            text = format!("{}: {message}", text.trim_end_matches('.'));
        }
        cause = error.source();
    }
    with_advice(text)
}

/// The same text with a cure, where any part of the program may fail so: the process or the host has no file descriptor left, or links of
/// a path go round.
fn with_advice(text: String) -> String {
    // As std formats EMFILE, ENFILE and ELOOP.
    let cure = if text.contains("(os error 24)") && !text.contains("ulimit -n") {
        "; raise the limit of open files, as with `ulimit -n 65536`, or LimitNOFILE= of a systemd unit"
    } else if text.contains("(os error 23)") && !text.contains("fs.file-max") {
        "; the host has no open file left: raise it with `sudo sysctl fs.file-max=NUMBER`"
    } else if text.contains("(os error 40)") && !text.contains("`namei ") {
        "; symbolic links on the way lead round in a circle: `namei PATH` shows them"
    } else {
        return text;
    };
    let line = text.trim_end();
    let end = text.get(line.len()..).unwrap_or_default();
    format!("{line}{cure}{end}")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    fn layers(texts: &[&'static str]) -> Layer {
        let (text, rest) = texts.split_first().unwrap();
        Layer { text, source: (!rest.is_empty()).then(|| Box::new(layers(rest))) }
    }

    #[test]
    fn causes_follow_the_message() {
        assert_eq!(
            chain(&layers(&["no machine", "no kernel", "not found"])),
            "no machine: no kernel: not found"
        );
    }

    #[test]
    fn an_error_of_no_descriptor_left_says_how_to_have_more_wherever_it_comes_from() {
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        let said = chain(&error);
        assert!(said.ends_with("LimitNOFILE= of a systemd unit") && said.contains("`ulimit -n"), "{said}");
        assert_eq!(with_advice(said.clone()), said, "said once");
        let line = with_advice(format!("minivmm: vda: {error}\r\n"));
        assert!(line.contains("(os error 24); raise") && line.ends_with("unit\r\n"), "{line}");
        let host = with_advice(io::Error::from_raw_os_error(libc::ENFILE).to_string());
        assert!(host.contains("fs.file-max"), "{host}");
        assert_eq!(with_advice("all is well\n".into()), "all is well\n");
        let round = with_advice(io::Error::from_raw_os_error(libc::ELOOP).to_string());
        assert!(round.ends_with("`namei PATH` shows them") && with_advice(round.clone()) == round, "{round}");
    }

    #[test]
    fn what_was_said_is_not_repeated() {
        assert_eq!(chain(&layers(&["no kernel: not found", "not found", "os"])), "no kernel: not found: os");
    }
}
