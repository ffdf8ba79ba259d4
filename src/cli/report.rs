//! Text for people, on stderr and in the log.

use std::error::Error;
use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use log::Level;

use super::logbook;
use crate::host::ready::is_writable;
use crate::host::stdio::Output;

/// Says something on stderr, in one write, whole among what others write. Where nobody listens any more, the machine matters more than the text.
pub fn say(text: &dyn Display) {
    say_as(Level::Info, text);
}

/// The same with how much it matters, for a log that wants to know.
pub(super) fn say_as(level: Level, text: &dyn Display) {
    let text = advised(text.to_string());
    // The log first: standard error may be somebody's who reads slowly.
    logbook::keep(level, &text);
    if !HURRIED.load(Ordering::Relaxed) || is_writable(&Output::error(), PATIENCE) {
        tell(&text);
    }
}

/// The same on standard error alone, for what is wrong with the log.
pub(super) fn tell(text: &str) {
    // There is no other place to say that this one is full or closed.
    let _ = Output::error().write_all(text.as_bytes());
}

/// From now on a machine runs, and whoever does not read standard error misses what is said: neither a signal nor a device nor the
/// machine's end may wait for that.
pub(super) fn hurry() {
    HURRIED.store(true, Ordering::Relaxed);
}

static HURRIED: AtomicBool = AtomicBool::new(false);
/// How long a reader may be elsewhere.
const PATIENCE: Duration = Duration::from_millis(200);

/// Says a line on stderr while a machine runs; with `raw` one that also stands right on a terminal in raw mode.
pub fn aside(raw: bool, text: &str) {
    if raw && Output::error().is_terminal() {
        say(&format_args!("\r\nminivmm: {text}\r\n"));
    } else {
        say(&format_args!("minivmm: {text}\n"));
    }
}

/// An error and its causes in one line, each said once: a cause that the message before it quotes already is left out.
pub fn chain(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !said.contains(&message) {
            // "It cannot be read." and its cause make one sentence.
            said = format!("{}: {message}", said.trim_end_matches('.'));
        }
        cause = error.source();
    }
    advised(said)
}

/// The same text with what mends it, where the process or the host has no file descriptor left: errors of any part of the
/// program may say so, and none of them knows the cure.
fn advised(text: String) -> String {
    // As std writes EMFILE and ENFILE.
    let cure = if text.contains("(os error 24)") && !text.contains("ulimit -n") {
        "; raise the limit of open files, as with `ulimit -n 65536`, or LimitNOFILE= of a systemd unit"
    } else if text.contains("(os error 23)") && !text.contains("fs.file-max") {
        "; the host has no open file left: raise it with `sudo sysctl fs.file-max=NUMBER`"
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
        assert_eq!(advised(said.clone()), said, "said once");
        let line = advised(format!("minivmm: vda: {error}\r\n"));
        assert!(line.contains("(os error 24); raise") && line.ends_with("unit\r\n"), "{line}");
        let host = advised(io::Error::from_raw_os_error(libc::ENFILE).to_string());
        assert!(host.contains("fs.file-max"), "{host}");
        assert_eq!(advised("all is well\n".into()), "all is well\n");
    }

    #[test]
    fn what_was_said_is_not_repeated() {
        assert_eq!(chain(&layers(&["no kernel: not found", "not found", "os"])), "no kernel: not found: os");
    }
}
