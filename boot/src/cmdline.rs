//! A kernel command line as Linux parses it (lib/cmdline.c, `next_arg`; kernel/params.c, `parse_args`).
//!
//! Double quotes keep spaces together, anywhere in a word; a backslash has no meaning. The first word that is
//! exactly `--` ends the kernel's parameters: the words after it are arguments of init.

use std::ops::Range;

/// A word of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word<'a> {
    /// The word as written, with quotes.
    pub raw: &'a str,
    /// The part before the first `=`, or all of it.
    pub name: &'a str,
    /// The part after it, without enclosing quotes.
    pub value: Option<&'a str>,
    range: Range<usize>,
}

/// The words that the kernel parses, in order.
pub fn words(text: &str) -> impl Iterator<Item = Word<'_>> {
    all(text).take_while(|word| !word.ends_parameters())
}

/// The last value of the parameter `name`, which is the effective one.
pub fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    words(text).filter(|word| word.is(name)).filter_map(|word| word.value).last()
}

/// Whether the flag `name` is given, with a value or without.
pub fn has(text: &str, name: &str) -> bool {
    words(text).any(|word| word.is(name))
}

/// Whether a word is exactly this, apart from quotes.
pub fn has_word(text: &str, name: &str, value: Option<&str>) -> bool {
    words(text).any(|word| word.is(name) && word.value == value)
}

/// Joins several command lines: first all words for the kernel, in order, then those for init.
///
/// Each text is kept byte for byte, except for spaces around it. An open quote is closed if another text
/// follows.
pub fn join(texts: &[&str]) -> String {
    let mut kernel = String::new();
    let mut init = String::new();
    for text in texts {
        let (for_kernel, for_init) = split(text);
        append(&mut kernel, for_kernel);
        append(&mut init, for_init.unwrap_or_default());
    }
    let ends = texts.iter().any(|text| split(text).1.is_some());
    if ends {
        append(&mut kernel, "--");
        append(&mut kernel, &init);
    }
    kernel
}

/// The text without the kernel's words that `unwanted` selects; the rest is unchanged.
pub fn without(text: &str, unwanted: impl Fn(&Word<'_>) -> bool) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut from = 0;
    for word in words(text).filter(|word| unwanted(word)) {
        kept.push_str(text.get(from..word.range.start).unwrap_or_default());
        from = word.range.end;
        // Including the spaces after it.
        let rest = text.get(from..).unwrap_or_default();
        from += rest.len() - rest.trim_start_matches(is_space).len();
    }
    kept.push_str(text.get(from..).unwrap_or_default());
    kept
}

impl Word<'_> {
    /// Whether it is the parameter `name`; `-` and `_` are equal in Linux.
    pub fn is(&self, name: &str) -> bool {
        let same = |byte: u8| if byte == b'-' { b'_' } else { byte };
        self.name.bytes().map(same).eq(name.bytes().map(same))
    }

    fn ends_parameters(&self) -> bool {
        self.name == "--" && self.value.is_none()
    }
}

/// The part for the kernel, and the part for init if there is a `--`.
fn split(text: &str) -> (&str, Option<&str>) {
    match all(text).find(Word::ends_parameters) {
        Some(word) => (
            text.get(..word.range.start).unwrap_or_default().trim_matches(is_space),
            Some(text.get(word.range.end..).unwrap_or_default().trim_matches(is_space)),
        ),
        None => (text.trim_matches(is_space), None),
    }
}

fn append(line: &mut String, more: &str) {
    if more.is_empty() {
        return;
    }
    if !line.is_empty() {
        if line.bytes().filter(|byte| *byte == b'"').count() % 2 == 1 {
            line.push('"');
        }
        line.push(' ');
    }
    line.push_str(more);
}

/// The kernel's `isspace` for ASCII.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}

/// All words, including `--` and those after it.
fn all(text: &str) -> impl Iterator<Item = Word<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = text.get(at..)?;
        let start = at + (rest.len() - rest.trim_start_matches(is_space).len());
        let rest = text.get(start..).filter(|rest| !rest.is_empty())?;
        let mut quoted = false;
        let end = rest.find(|c| {
            quoted ^= c == '"';
            !quoted && is_space(c)
        });
        at = start + end.unwrap_or(rest.len());
        Some(word(text.get(start..at)?, start..at))
    })
}

fn word(raw: &str, range: Range<usize>) -> Word<'_> {
    let (quoted, bare) = raw.strip_prefix('"').map_or((false, raw), |bare| (true, bare));
    // A leading `=` belongs to the name.
    let equals = bare.char_indices().skip(1).find(|(_, c)| *c == '=').map(|(at, _)| at);
    let (name, value) = match equals.and_then(|at| Some((bare.get(..at)?, bare.get(at + 1..)?))) {
        Some((name, value)) => (name, Some(value)),
        None => (bare, None),
    };
    let unquoted = |text: &'_ str, quoted: bool| -> usize {
        if quoted && text.ends_with('"') { text.len() - 1 } else { text.len() }
    };
    match value {
        None => Word { raw, name: name.get(..unquoted(name, quoted)).unwrap_or(name), value: None, range },
        Some(value) => {
            let (inner, text) = value.strip_prefix('"').map_or((false, value), |text| (true, text));
            let value = text.get(..unquoted(text, inner || quoted)).unwrap_or(text);
            Word { raw, name, value: Some(value), range }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Vec<&str> {
        words(text).map(|word| word.raw).collect()
    }

    #[test]
    fn words_are_cut_as_linux_cuts_them() {
        assert_eq!(raw("  a\tb=c\nd  "), ["a", "b=c", "d"]);
        assert_eq!(raw(r#"dyndbg="file a  +p" x"#), [r#"dyndbg="file a  +p""#, "x"]);
        assert_eq!(raw(r#"a"b c"d e"#), [r#"a"b c"d"#, "e"]);
        assert_eq!(raw(r#"a\" b" c"#), [r#"a\" b""#, "c"]);
        assert_eq!(raw(r#"open="a b"#), [r#"open="a b"#]);
        assert_eq!(raw(""), [""; 0]);
    }

    #[test]
    fn quotes_around_a_value_or_a_word_are_not_of_it() {
        assert_eq!(value(r#"x="a  b""#, "x"), Some("a  b"));
        assert_eq!(value(r#""x=a b""#, "x"), Some("a b"));
        assert_eq!(value(r#"x=a"b c"d"#, "x"), Some(r#"a"b c"d"#));
        assert_eq!(value("root=UUID=5", "root"), Some("UUID=5"));
        assert_eq!(value("root=1 root=2 root", "root"), Some("2"));
        assert_eq!(value(r#"msg="root=/dev/sda1""#, "root"), None);
        assert!(has(r#""quiet""#, "quiet") && has("module-blacklist=x", "module_blacklist"));
    }

    #[test]
    fn two_dashes_end_what_the_kernel_reads() {
        assert_eq!(raw("a -- b"), ["a"]);
        assert_eq!(raw(r#"a "--" b"#), ["a"]);
        assert_eq!(raw("a --b --c=d e--"), ["a", "--b", "--c=d", "e--"]);
        assert_eq!(raw(r#"a="x -- y" b"#), [r#"a="x -- y""#, "b"]);
        assert_eq!(value("a -- root=/dev/sda", "root"), None);
    }

    #[test]
    fn joined_words_stand_in_front_of_those_for_init() {
        assert_eq!(join(&["a -- single", "root=/dev/vda", "b  -- x  y"]), "a root=/dev/vda b -- single x  y");
        assert_eq!(join(&["foo --bar", "b"]), "foo --bar b");
        assert_eq!(join(&[" a=\"x  y\"  c ", "", "b"]), "a=\"x  y\"  c b");
        assert_eq!(join(&["a --"]), "a --");
        assert_eq!(join(&[]), "");
        assert_eq!(join(&["a=\"x y", "b"]), "a=\"x y\" b");
    }

    #[test]
    fn a_word_is_taken_out_and_the_rest_stays() {
        let unwanted = |word: &Word<'_>| word.is("root");
        assert_eq!(without(r#"root=1  q="a  root=2" ro root=3"#, unwanted), r#"q="a  root=2" ro "#);
        assert_eq!(without("a -- root=1", unwanted), "a -- root=1");
    }
}
