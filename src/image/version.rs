//! Compares kernel releases by age. One rule fits the distributions with dpkg and with RPM: numbers compare
//! as numbers, a number after a separator is newer than a word there (`427.13.1.el9` than `427.el9`), and `~`
//! and `rc` sort before the release itself.

use std::cmp::Ordering;

/// Flavours that are not booted by default if the plain kernel of the same release exists.
const FLAVOURS: [&str; 4] = ["debug", "dbg", "rt", "64k"];
/// Separators between the parts of a release.
const SEPARATORS: [char; 5] = ['-', '+', '.', '_', '~'];

/// A part of a release, ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    /// `~`, or the prefix of a release candidate's number.
    Before,
    End,
    /// `^`: a later snapshot.
    Snapshot,
    /// A number that belongs to the preceding word.
    Suffix(Number<'a>),
    Letter(u8),
    Other(u8),
    Number(Number<'a>),
}

/// A number of any length: its length and its digits, without leading zeros.
type Number<'a> = (usize, &'a [u8]);

/// Compares two releases.
pub(crate) fn compare(one: &str, other: &str) -> Ordering {
    let ((base, flavoured), (other_base, other_flavoured)) = (plain(one), plain(other));
    compare_parts(base, other_base)
        .then_with(|| other_flavoured.cmp(&flavoured))
        .then_with(|| compare_parts(one, other))
}

/// A release without its flavour, and whether it has one.
fn plain(release: &str) -> (&str, bool) {
    let mut base = release;
    for _ in FLAVOURS {
        // RPM distributions append any flavour to the architecture (`x86_64+debug`), and the real-time
        // flavour has a number.
        let any = base.rsplit_once('+').map(|(front, _)| front).filter(|front| front.ends_with("x86_64"));
        let unnumbered = base.trim_end_matches(|sign: char| sign.is_ascii_digit());
        let word = |flavour: &str| {
            let end = if flavour == "rt" { unnumbered } else { base };
            end.strip_suffix(flavour)?.strip_suffix(SEPARATORS)
        };
        match any.or_else(|| FLAVOURS.iter().find_map(|flavour| word(flavour))) {
            Some(front) if !front.is_empty() => base = front,
            _ => break,
        }
    }
    (base, base.len() < release.len())
}

fn compare_parts(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (Parts::of(one), Parts::of(other));
    loop {
        let (a, b) = (one.next(), other.next());
        if a != b || a == Part::End {
            return a.cmp(&b);
        }
    }
}

struct Parts<'a> {
    rest: &'a [u8],
    /// The previous part was a letter.
    in_word: bool,
}

impl<'a> Parts<'a> {
    fn of(release: &'a str) -> Self {
        Parts { rest: release.as_bytes(), in_word: false }
    }

    fn next(&mut self) -> Part<'a> {
        let in_word = std::mem::take(&mut self.in_word);
        if let Some(rest) = candidate(self.rest).filter(|_| !in_word) {
            self.rest = rest;
            return Part::Before;
        }
        let Some((sign, rest)) = self.rest.split_first() else { return Part::End };
        if sign.is_ascii_digit() {
            let number = self.number();
            return if in_word { Part::Suffix(number) } else { Part::Number(number) };
        }
        self.rest = rest;
        self.in_word = sign.is_ascii_alphabetic();
        match sign {
            b'~' => Part::Before,
            b'^' => Part::Snapshot,
            letter if self.in_word => Part::Letter(*letter),
            other => Part::Other(*other),
        }
    }

    fn number(&mut self) -> Number<'a> {
        let len = self.rest.iter().position(|sign| !sign.is_ascii_digit()).unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(len);
        self.rest = rest;
        let zeros = digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len());
        let (_, digits) = digits.split_at(zeros);
        (digits.len(), digits)
    }
}

/// The text after `rc`, with or without a separator, if it is the number of a release candidate.
fn candidate(text: &[u8]) -> Option<&[u8]> {
    let front = text.split_first().filter(|(sign, _)| SEPARATORS.contains(&char::from(**sign)));
    let text = front.map_or(text, |(_, rest)| rest);
    text.strip_prefix(b"rc").filter(|rest| rest.first().is_some_and(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each is older than the next one.
    const ORDERED: [&[&str]; 16] = [
        &["", "1"],
        &["6.1.0-9-amd64", "6.1.0-25-amd64", "6.1.0-25-cloud-amd64", "6.10.0-1-amd64"],
        &["6.1.0-rc1", "6.1.0-rc2", "6.1.0", "6.1.0-1", "6.1.1"],
        &["6.12~rc1", "6.12-rc7-amd64", "6.12", "6.12-amd64", "6.12.1"],
        &["6.9.0-060900rc1-generic", "6.9.0-060900-generic"],
        &["6.5.0-0.deb11.2-amd64", "6.5.0-0.deb11.13-amd64", "6.5.0-1-amd64"],
        &["0-rescue-abc", "5.14.0-427.el9.x86_64", "5.14.0-427.13.1.el9_4.x86_64", "5.14.0-503.el9.x86_64"],
        &["3.10.0-1160.el7.x86_64", "3.10.0-1160.119.1.el7.x86_64"],
        &["4.18.0-553.el8.x86_64", "4.18.0-553.el8_10.x86_64", "4.18.0-553.5.1.el8_10.x86_64"],
        &["6.10.0-0.rc3.30.fc41.x86_64", "6.10.0-64.fc40.x86_64", "6.10.0-64.fc41.x86_64"],
        &["6.8.5-301.fc40.x86_64", "6.10.3-200.fc40.x86_64"],
        &["6.4.0-150600.21-default", "6.4.0-150600.23-default", "6.4.0-150600.23.7-default"],
        &["5.14.0-427.el9.x86_64+rt-debug", "5.14.0-427.el9.x86_64", "5.14.0-427.1.el9.x86_64+debug"],
        &["6.4.0-1-rt", "6.4.0-1-default"],
        &["6.1.90-rt30", "6.1.90", "6.1.91-rt1"],
        &["1.0~git1", "1.0", "1.0^git1", "1.0a", "1.0+", "1.0.1"],
    ];

    #[test]
    fn releases_are_ordered_as_their_distributions_do() {
        for row in ORDERED {
            for (at, less) in row.iter().enumerate() {
                for more in &row[at + 1..] {
                    assert_eq!(compare(less, more), Ordering::Less, "{less} {more}");
                    assert_eq!(compare(more, less), Ordering::Greater, "{more} {less}");
                }
            }
        }
        assert_eq!(compare("6.01", "6.1"), Ordering::Equal);
    }

    #[test]
    fn order_holds_together_for_any_three() {
        let all: Vec<&str> = ORDERED.into_iter().flatten().copied().collect();
        for (a, b) in all.iter().flat_map(|a| all.iter().map(move |b| (a, b))) {
            for c in all.iter().filter(|c| compare(a, b).is_le() && compare(b, c).is_le()) {
                assert!(compare(a, c).is_le(), "{a} {b} {c}");
            }
        }
    }
}
