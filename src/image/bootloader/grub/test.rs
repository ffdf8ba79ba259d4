//! GRUB's `test` and `[`: comparisons are evaluated from left to right, and adjacent ones must both hold.

use super::{GrubError, Interpreter, TEST_WORDS};

impl Interpreter<'_> {
    pub(super) fn test(&mut self, words: &[&str]) -> Result<bool, GrubError> {
        if words.len() > TEST_WORDS {
            return Err("it compares too many words".into());
        }
        Ok(self.terms(words)?.0)
    }

    /// The value of the words up to the end or a closing parenthesis, and the rest. The number of words is
    /// limited, and with it the nesting.
    fn terms<'w, 't>(&mut self, mut words: &'w [&'t str]) -> Result<(bool, &'w [&'t str]), GrubError> {
        let (mut any, mut all, mut inverted) = (false, true, false);
        while let Some((word, behind)) = words.split_first() {
            if let Some((holds, rest)) = self.comparison(words)? {
                all &= holds != std::mem::take(&mut inverted);
                words = rest;
                continue;
            }
            words = behind;
            match *word {
                ")" => break,
                "(" => {
                    let (holds, rest) = self.terms(words)?;
                    all &= holds != std::mem::take(&mut inverted);
                    words = rest;
                }
                "!" => inverted = !inverted,
                "-a" => {}
                "-o" => (any, all) = (any || all, true),
                word => all &= word.is_empty() == std::mem::take(&mut inverted),
            }
        }
        Ok((any || all, words))
    }

    /// A comparison at the front, and the words after it.
    fn comparison<'w, 't>(
        &mut self,
        words: &'w [&'t str],
    ) -> Result<Option<(bool, &'w [&'t str])>, GrubError> {
        if let [one, sign, other, rest @ ..] = words
            && let Some(holds) = self.pair(one, sign, other)
        {
            return Ok(Some((holds, rest)));
        }
        let [sign, value, rest @ ..] = words else { return Ok(None) };
        let holds = match *sign {
            "-s" => self.size(value)?.is_some_and(|size| size > 0),
            "-f" => self.size(value)?.is_some(),
            "-d" => self.is_folder(value)?,
            "-e" => self.size(value)?.is_some() || self.is_folder(value)?,
            "-n" => !value.is_empty(),
            "-z" => value.is_empty(),
            _ => return Ok(None),
        };
        Ok(Some((holds, rest)))
    }

    fn pair(&mut self, one: &str, sign: &str, other: &str) -> Option<bool> {
        let numbers = (number(one), number(other));
        // The text before a number is ignored.
        let behind = |text: &str| number(text.trim_start_matches(|sign: char| !sign.is_ascii_digit()));
        Some(match sign {
            "=" | "==" => one == other,
            "!=" => one != other,
            "<" => one < other,
            "<=" => one <= other,
            ">" => one > other,
            ">=" => one >= other,
            "-eq" => numbers.0 == numbers.1,
            "-ne" => numbers.0 != numbers.1,
            "-lt" => numbers.0 < numbers.1,
            "-le" => numbers.0 <= numbers.1,
            "-gt" => numbers.0 > numbers.1,
            "-ge" => numbers.0 >= numbers.1,
            "-pgt" => behind(one) > behind(other),
            "-plt" => behind(one) < behind(other),
            _ if sign.starts_with("-nt") || sign.starts_with("-ot") => {
                self.note(format!(
                    "the comparison `{sign}` of two files' times is not known here and counts as false"
                ));
                false
            }
            _ => return None,
        })
    }
}

/// A number in C notation, up to the first other character; 0 for any other text.
fn number(text: &str) -> i64 {
    let text = text.trim_start();
    let (text, sign) = text.strip_prefix('-').map_or((text, 1), |text| (text, -1));
    let (text, base) = match text.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None if text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    let end = text.find(|sign: char| !sign.is_digit(base)).unwrap_or(text.len());
    i64::from_str_radix(text.get(..end).unwrap_or_default(), base).map_or(0, |number| sign * number)
}
