//! Which of two versions is newer, as Debian compares them (deb-version(7)): runs of digits as numbers, the rest letters
//! before other signs, and a tilde before everything, even the end.

use std::cmp::Ordering;

/// Compares two versions.
pub(crate) fn compare(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    while !one.is_empty() || !other.is_empty() {
        let (a, b) =
            (take(&mut one, |byte| !byte.is_ascii_digit()), take(&mut other, |byte| !byte.is_ascii_digit()));
        // The end counts as a sign of its own: compared up to one place past both.
        let signs = (0..=a.len().max(b.len())).map(|at| rank(a.get(at)).cmp(&rank(b.get(at))));
        let (c, d) = (take(&mut one, u8::is_ascii_digit), take(&mut other, u8::is_ascii_digit));
        let order = signs.fold(Ordering::Equal, Ordering::then).then_with(|| number(c, d));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Takes the front of `text` that is of a kind.
fn take<'a>(text: &mut &'a [u8], kind: impl Fn(&u8) -> bool) -> &'a [u8] {
    let len = text.iter().position(|byte| !kind(byte)).unwrap_or(text.len());
    let (front, rest) = text.split_at(len);
    *text = rest;
    front
}

fn rank(sign: Option<&u8>) -> u32 {
    match sign {
        Some(b'~') => 0,
        None => 1,
        Some(letter) if letter.is_ascii_alphabetic() => u32::from(*letter),
        Some(sign) => 256 + u32::from(*sign),
    }
}

/// Numbers of any length.
fn number(one: &[u8], other: &[u8]) -> Ordering {
    let significant = |digits: &[u8]| {
        let zeros = digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len());
        digits.split_at(zeros).1.to_vec()
    };
    let (one, other) = (significant(one), significant(other));
    one.len().cmp(&other.len()).then_with(|| one.cmp(&other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_by_dpkg() {
        for (less, more) in [
            ("6.1.0-9-amd64", "6.1.0-25-amd64"),
            ("6.1.0-25-amd64", "6.10.0-1-amd64"),
            ("6.1.0-rc1", "6.1.0-rc2"),
            ("6.12~rc1", "6.12"),
            ("6.1", "6.1.1"),
            ("6.1.0-25-amd64", "6.1.0-25-cloud-amd64"),
            ("0-rescue-abc", "5.14.0-427.el9.x86_64"),
            ("1.0a", "1.0+"),
            ("", "1"),
        ] {
            assert_eq!(compare(less, more), Ordering::Less, "{less} {more}");
            assert_eq!(compare(more, less), Ordering::Greater, "{more} {less}");
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
    }
}
