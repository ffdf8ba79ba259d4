//! Names of files in sentences and command lines. They may come from an image: nothing of them controls a terminal.

use std::path::Path;

/// Characters of a name that are shown.
const LONGEST: usize = 400;

/// A name in a sentence.
pub fn name(path: &Path) -> String {
    text(&path.to_string_lossy())
}

/// Text from an image, made printable and bounded.
pub(crate) fn text(raw: &str) -> String {
    let plain = |sign: char| if sign.is_control() || is_format(sign) { '?' } else { sign };
    raw.chars().take(LONGEST).map(plain).collect()
}

/// A name in a command line, quoted if the shell would read it differently.
pub fn shell(path: &Path) -> String {
    let text = name(path);
    let is_plain = |sign: char| sign.is_alphanumeric() || "/._-+=:@%,".contains(sign);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(is_plain) {
        return text;
    }
    let text = if text.starts_with('-') { format!("./{text}") } else { text };
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Characters that change the direction or the place of others.
fn is_format(sign: char) -> bool {
    matches!(sign, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
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
        ] {
            assert_eq!(shell(Path::new(path)), word);
        }
    }
}
