//! Paths and other texts from outside in sentences for people. A path may contain any byte, and may come from somebody else: from a machine's
//! file, an image, a guest. Nothing of it controls a terminal, ends a line or turns it round.
//!
//! A path in a command for pasting is [`diskimage::shell_word`].

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use diskimage::is_unprintable;

/// A path in a sentence. What a terminal would not print is escaped as in a string of Rust: `\n`, `\u{1b}`, and `\xff` for what is no UTF-8.
pub(crate) fn path(path: &Path) -> String {
    let mut shown = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        shown.push_str(&text(chunk.valid()));
        shown.extend(chunk.invalid().iter().flat_map(|byte| byte.escape_ascii()).map(char::from));
    }
    shown
}

/// A text in a sentence, likewise.
pub(crate) fn text(text: &str) -> String {
    escaped(text, |_, _| false)
}

/// Lines of text, which may have tabs in them and end with a carriage return. One elsewhere would have a terminal write over the line.
pub(crate) fn lines(text: &str) -> String {
    escaped(text, |sign, next| match sign {
        '\n' | '\t' => true,
        '\r' => next == Some('\n'),
        _ => false,
    })
}

/// The text of a string of TOML, with its quotes.
pub(crate) fn toml(text: &str) -> String {
    let mut shown = String::from('"');
    for sign in text.chars() {
        match sign {
            '"' | '\\' => shown.extend(['\\', sign]),
            _ if is_unprintable(sign) => shown.push_str(&format!("\\u{:04x}", u32::from(sign))),
            _ => shown.push(sign),
        }
    }
    shown.push('"');
    shown
}

/// `is_kept` is told a character and the one behind it.
fn escaped(text: &str, is_kept: impl Fn(char, Option<char>) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut signs = text.chars().peekable();
    while let Some(sign) = signs.next() {
        if is_unprintable(sign) && !is_kept(sign, signs.peek().copied()) {
            shown.extend(sign.escape_default());
        } else {
            shown.push(sign);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn no_path_controls_the_terminal_or_makes_a_second_line() {
        let shown = |bytes: &[u8]| path(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(
            shown("mis\x1b[31msing\n2\u{202e}\u{9b}".as_bytes()),
            r"mis\u{1b}[31msing\n2\u{202e}\u{9b}"
        );
        assert_eq!(shown(b"a\xff\0b"), r"a\xff\u{0}b");
        assert_eq!(shown("/my folder/\u{f6}'$(x)".as_bytes()), "/my folder/\u{f6}'$(x)", "as it is");
    }

    #[test]
    fn lines_stay_lines() {
        assert_eq!(lines("\r\na\tb\x1b[2J\n\x07"), "\r\na\tb\\u{1b}[2J\n\\u{7}");
        assert_eq!(lines("real\rfalse\r\r\n\r"), "real\\rfalse\\r\r\n\\r", "nothing is written over");
    }

    #[cfg(feature = "cli")]
    #[test]
    fn a_string_of_toml_is_read_as_it_was() {
        for text in ["/my folder", "a\"b\\c", "\x1b[2J\n\u{202e}\u{9b}\u{2028}\u{f6}"] {
            let written = toml(text);
            assert!(!written.contains(is_unprintable), "{written}");
            let read: ::toml::Table = format!("path = {written}").parse().unwrap();
            assert_eq!(read["path"].as_str(), Some(text), "{written}");
        }
    }
}
