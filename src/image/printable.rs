//! Text from an image, made printable.

use diskimage::is_unprintable;

/// Replaces characters that control a terminal or turn the text around, and limits the length to one line.
pub(crate) fn printable(text: &str) -> String {
    let plain = |sign| if is_unprintable(sign) { '?' } else { sign };
    text.chars().take(200).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn text_of_an_image_controls_no_terminal() {
        assert_eq!(printable("a\u{1b}]0;title\u{7}\n\u{202e}\u{9b}b"), "a?]0;title????b");
        assert_eq!(printable(&"x".repeat(5000)).len(), 200);
    }
}
