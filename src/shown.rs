//! Paths and other texts from outside in sentences for people. A path may contain any byte, and may come from somebody else: from a machine's
//! file, an image, a guest. Nothing of it controls a terminal, ends a line or turns it round.
//!
//! A path in a command for pasting is [`diskimage::shell_word`].

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

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
    escaped(text, |_| false)
}

/// Lines of text, which may have tabs in them and end with a carriage return.
pub(crate) fn lines(text: &str) -> String {
    escaped(text, |sign| matches!(sign, '\n' | '\r' | '\t'))
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for sign in text.chars() {
        if (sign.is_control() || is_format(sign)) && !is_kept(sign) {
            shown.extend(sign.escape_default());
        } else {
            shown.push(sign);
        }
    }
    shown
}

/// Characters that have no width, or change the direction or the place of others.
fn is_format(sign: char) -> bool {
    matches!(sign, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
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
    }
}
