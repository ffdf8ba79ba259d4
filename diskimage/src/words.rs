//! Names of files in sentences and command lines. They may come from an image: nothing of them controls a terminal.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Characters of a name that are shown.
const LONGEST: usize = 400;

/// A name in a sentence.
pub fn name(path: &Path) -> String {
    text(&path.to_string_lossy())
}

/// Text from an image, made printable and bounded.
pub(crate) fn text(raw: &str) -> String {
    let plain = |sign| if is_unprintable(sign) { '?' } else { sign };
    raw.chars().take(LONGEST).map(plain).collect()
}

/// A name in a command line, quoted if the shell would read it differently. What a terminal would not print is escaped as bash, zsh and ksh
/// read it (`$'\x1b'`).
pub fn shell(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let is_plain = |sign: char| sign.is_alphanumeric() || "/._-+=:@%,".contains(sign);
    let dot = if bytes.starts_with(b"-") { "./" } else { "" };
    match path.to_str() {
        Some(text) if !text.is_empty() && dot.is_empty() && text.chars().all(is_plain) => text.to_owned(),
        Some(text) if !text.chars().any(is_unprintable) => format!("'{dot}{}'", text.replace('\'', r"'\''")),
        _ => format!("$'{dot}{}'", bytes.iter().map(|byte| escaped(*byte)).collect::<String>()),
    }
}

/// A byte between `$'` and `'`.
fn escaped(byte: u8) -> String {
    match byte {
        b'\'' | b'\\' => format!("\\{}", char::from(byte)),
        b' '..=b'~' => char::from(byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    }
}

/// Whether a sentence shows this character otherwise: it controls a terminal, ends a line, has no width, or changes the direction or the
/// place of others.
pub fn is_unprintable(sign: char) -> bool {
    let is_format = matches!(sign, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    sign.is_control() || is_format
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_control_the_terminal() {
        let hostile = Path::new("a\u{1b}]0;title\u{7}\n\u{202e}b");
        assert_eq!(name(hostile), "a?]0;title???b");
        assert_eq!(name(Path::new(&"x".repeat(5000))).len(), LONGEST);
    }

    #[test]
    fn commands_can_be_pasted() {
        for (path, word) in [
            ("/a/b.qcow2", "/a/b.qcow2"),
            ("my disk.qcow2", "'my disk.qcow2'"),
            ("it's", r"'it'\''s'"),
            ("$(reboot)", "'$(reboot)'"),
            ("-r", "'./-r'"),
            ("", "''"),
            ("mis\u{1b}[31msing\n'2", r"$'mis\x1b[31msing\x0a\'2'"),
            ("-\u{202e}\\", r"$'./-\xe2\x80\xae\\'"),
            ("two\u{2028}lines", r"$'two\xe2\x80\xa8lines'"),
        ] {
            assert_eq!(shell(Path::new(path)), word);
        }
        // All of it, however long.
        assert_eq!(shell(Path::new(&"x".repeat(4000))).len(), 4000);
    }
}
