//! Text from an image, as it may be shown to people.

/// Without control characters, and of a length for one line.
pub(super) fn printable(text: &str) -> String {
    let plain = |sign: char| if sign.is_control() { '?' } else { sign };
    text.chars().take(200).map(plain).collect()
}
