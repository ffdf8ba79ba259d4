//! Text from an image, made printable.

/// Replaces control characters, and limits the length to one line.
pub(crate) fn printable(text: &str) -> String {
    let plain = |sign: char| if sign.is_control() { '?' } else { sign };
    text.chars().take(200).map(plain).collect()
}
