//! Entries of the Boot Loader Specification, type #1 (UAPI.1), and their order.

use std::cmp::Ordering;

use super::Entry;
use crate::image::version::compare;

/// Maximum length of a pattern, and of a key that sorts entries: that of a file name.
const NAME: usize = 255;

/// An entry with its sort keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::image) struct BlsEntry {
    /// The file name without `.conf` and without its boot counter.
    pub(in crate::image) id: String,
    pub(in crate::image) entry: Entry,
    version: String,
    sort_key: String,
    machine_id: String,
    /// The boot counter has reached zero: every attempt failed.
    failed: bool,
}

/// Parses an entry; `None` if it boots no Linux on this processor.
pub(in crate::image) fn parse(name: &str, text: &str) -> Option<BlsEntry> {
    let (stem, end) = name.split_at_checked(name.len().checked_sub(".conf".len())?)?;
    if !end.eq_ignore_ascii_case(".conf") {
        return None;
    }
    let (id, left) = counter(stem);
    let mut found = BlsEntry { id: id.to_owned(), failed: left == Some(0), ..BlsEntry::default() };
    let short = |value: &str| value.chars().take(NAME).collect::<String>();
    let mut options = Vec::new();
    for line in text.lines() {
        let (key, value) = line.trim().split_once(char::is_whitespace).unwrap_or_default();
        let value = value.trim();
        match key {
            "title" => found.entry.title = value.to_owned(),
            "linux" => found.entry.kernel = value.to_owned(),
            "initrd" => found.entry.initrds.extend(value.split_whitespace().map(str::to_owned)),
            "options" => options.push(value),
            "version" => found.version = short(value),
            "sort-key" => found.sort_key = short(value),
            "machine-id" => found.machine_id = short(value),
            "architecture" if !["x64", "ia32"].iter().any(|own| value.eq_ignore_ascii_case(own)) => {
                return None;
            }
            _ => {}
        }
    }
    found.entry.options = options.join(" ");
    if found.entry.title.is_empty() {
        found.entry.title = found.id.clone();
    }
    (!found.entry.kernel.is_empty()).then_some(found)
}

/// The EFI program that an entry without a kernel starts, such as a unified kernel image.
pub(in crate::image) fn efi_program(text: &str) -> Option<&str> {
    let values = text.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
    values.filter(|(key, _)| matches!(*key, "efi" | "uki")).map(|(_, value)| value.trim()).next()
}

/// A name without its boot counter (`+LEFT` or `+LEFT-DONE`), and the attempts that are left.
fn counter(stem: &str) -> (&str, Option<u64>) {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let parts = stem.rsplit_once('+').and_then(|(id, tries)| {
        let (left, done) = tries.split_once('-').map_or((tries, None), |(left, done)| (left, Some(done)));
        let left = number(left)?;
        done.is_none_or(|done| number(done).is_some()).then_some((id, Some(left)))
    });
    parts.unwrap_or((stem, None))
}

/// The order of the specification's "Sorting".
pub(in crate::image) fn order(one: &BlsEntry, other: &BlsEntry) -> Ordering {
    let keys = |entry: &BlsEntry| (entry.failed, entry.sort_key.is_empty());
    let by_key = || {
        let ascending = (&one.sort_key, &one.machine_id).cmp(&(&other.sort_key, &other.machine_id));
        if one.sort_key.is_empty() { Ordering::Equal } else { ascending }
    };
    keys(one)
        .cmp(&keys(other))
        .then_with(by_key)
        .then_with(|| compare(&other.version, &one.version))
        .then_with(|| compare(&other.id, &one.id))
}

/// The default entry according to `loader.conf`; without a `default` line, the first. `others` are entries
/// that boot no Linux here. A default that cannot be followed is reported in `notes`.
pub(in crate::image) fn choose(
    mut entries: Vec<BlsEntry>,
    others: &[&str],
    loader: &str,
    notes: &mut Vec<String>,
) -> Option<BlsEntry> {
    entries.sort_by(order);
    let line = |line: &str| {
        let (key, value) = line.trim().split_once(char::is_whitespace)?;
        (key == "default").then(|| value.trim().to_owned())
    };
    // The matcher recurses for each character.
    let wanted =
        loader.lines().filter_map(line).next_back().filter(|wanted| (1..=NAME).contains(&wanted.len()));
    let Some(wanted) = wanted else { return (!entries.is_empty()).then(|| entries.swap_remove(0)) };
    // systemd-boot ignores case.
    let pattern = wanted.to_ascii_lowercase();
    let is = |id: &str| {
        let id = id.to_ascii_lowercase();
        let found = |name: &str| glob(pattern.as_bytes(), name.as_bytes(), &mut 100_000);
        found(&id) || found(&format!("{id}.conf"))
    };
    if let Some(at) = entries.iter().position(|entry| is(&entry.id)) {
        return Some(entries.swap_remove(at));
    }
    let other = others.iter().filter_map(|name| name.get(..name.len().checked_sub(".conf".len())?));
    notes.push(if pattern.starts_with('@') {
        format!("its default {wanted} is known to the firmware alone, and the first entry is taken")
    } else if other.map(|stem| counter(stem).0).any(is) {
        format!("its default {wanted} starts no Linux here, and the first entry is taken")
    } else {
        format!("its default {wanted} is none of the entries here, and the first one is taken")
    });
    (!entries.is_empty()).then(|| entries.swap_remove(0))
}

/// Matches `*`, `?`, `[a-z]` and `\\`, within a limit of steps.
fn glob(pattern: &[u8], text: &[u8], steps: &mut u32) -> bool {
    *steps = steps.saturating_sub(1);
    if *steps == 0 {
        return false;
    }
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), more) => {
            glob(rest, text, steps) || more.is_some_and(|(_, behind)| glob(pattern, behind, steps))
        }
        (Some((b'?', rest)), Some((_, behind))) => glob(rest, behind, steps),
        (Some((b'[', rest)), Some((sign, behind))) => match set(rest, *sign) {
            Some((is_in, rest)) => is_in && glob(rest, behind, steps),
            None => false,
        },
        (Some((b'\\', rest)), Some((sign, behind))) => {
            rest.split_first().is_some_and(|(own, rest)| own == sign && glob(rest, behind, steps))
        }
        (Some((a, rest)), Some((b, behind))) => a == b && glob(rest, behind, steps),
        _ => false,
    }
}

/// Whether a character is in the set that starts here, and the rest after its `]`. A `]` in first position is
/// part of the set.
fn set(pattern: &[u8], sign: u8) -> Option<(bool, &[u8])> {
    let (mut rest, mut first, mut is_in) = (pattern, true, false);
    loop {
        rest = match rest {
            [b']', behind @ ..] if !first => return Some((is_in, behind)),
            [from, b'-', to, behind @ ..] if *to != b']' => {
                is_in |= (*from..=*to).contains(&sign);
                behind
            }
            [one, behind @ ..] => {
                is_in |= *one == sign;
                behind
            }
            [] => return None,
        };
        first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, more: &str) -> BlsEntry {
        parse(name, &format!("linux /{name}\n{more}")).unwrap()
    }

    #[test]
    fn entry_is_read_with_all_its_initrds_and_options() {
        let text = "title Debian\nlinux /k\ninitrd /ucode.img\ninitrd /i\noptions root=/dev/vda1 ro\noptions quiet\n";
        let entry = parse("a.conf", text).unwrap().entry;
        assert_eq!(entry.initrds, ["/ucode.img", "/i"]);
        assert_eq!(entry.options, "root=/dev/vda1 ro quiet");
        assert_eq!(parse("a.conf", "efi /shell.efi\n"), None);
        assert_eq!(parse("a.conf", "linux /k\narchitecture aa64\n"), None);
    }

    /// The choice, and its notes.
    fn choose(entries: Vec<BlsEntry>, loader: &str) -> (Option<String>, Vec<String>) {
        let mut notes = Vec::new();
        let found = super::choose(entries, &["win.conf", "done+1.conf"], loader, &mut notes);
        (found.map(|entry| entry.id), notes)
    }

    fn all() -> Vec<BlsEntry> {
        vec![
            entry("old.conf", "version 6.1.0-9\nsort-key debian\n"),
            entry("new.conf", "version 6.1.0-25\nsort-key debian\n"),
            entry("bad+0-3.conf", "version 7\nsort-key debian\n"),
            entry("bare.conf", "version 9\n"),
        ]
    }

    #[test]
    fn order_is_that_of_the_specification() {
        for (loader, id) in [
            ("", "new"),
            ("timeout 3\ndefault o*.conf\n", "old"),
            ("default bad\n", "bad"),
            ("default OLD.conf\n", "old"),
            ("default [l-o]ld\n", "old"),
            ("default [xO]*\n", "old"),
            ("default b\\are\n", "bare"),
            (&format!("default {}\n", "*".repeat(999_999)), "new"),
        ] {
            assert_eq!(choose(all(), loader), (Some(id.to_owned()), Vec::new()), "{loader:.40}");
        }
        assert_eq!(choose(Vec::new(), ""), (None, Vec::new()));
        let rhel = ["5.14.0-427.el9.x86_64", "5.14.0-427.13.1.el9_4.x86_64"];
        let entries =
            rhel.map(|version| entry(&format!("m-{version}.conf"), &format!("version {version}\n")));
        assert_eq!(choose(entries.into(), "").0.unwrap(), "m-5.14.0-427.13.1.el9_4.x86_64");
    }

    #[test]
    fn default_that_is_not_taken_is_said() {
        for (default, said) in [
            ("@saved", "its default @saved is known to the firmware alone, and the first entry is taken"),
            ("win.conf", "its default win.conf starts no Linux here, and the first entry is taken"),
            ("done", "its default done starts no Linux here, and the first entry is taken"),
            ("nothing-*", "its default nothing-* is none of the entries here, and the first one is taken"),
            ("[a", "its default [a is none of the entries here, and the first one is taken"),
        ] {
            let chosen = choose(all(), &format!("default {default}\n"));
            assert_eq!(chosen, (Some("new".to_owned()), vec![said.to_owned()]));
        }
    }

    #[test]
    fn only_numbers_are_a_boot_counter() {
        for (name, id, failed) in [
            ("a+3.conf", "a", false),
            ("a+0.conf", "a", true),
            ("a+00-2.conf", "a", true),
            ("a+debug.conf", "a+debug", false),
            ("a+debug+2-1.conf", "a+debug", false),
            ("a+0-x.conf", "a+0-x", false),
            ("a+.conf", "a+", false),
        ] {
            let entry = entry(name, "architecture X64\n");
            assert_eq!((entry.id.as_str(), entry.failed), (id, failed), "{name}");
        }
    }

    #[test]
    fn long_keys_are_cut() {
        let entry = entry("a.conf", &format!("version {}\n", "1.".repeat(200_000)));
        assert_eq!(entry.version.len(), NAME);
    }
}
