//! Entries of the Boot Loader Specification, type #1 (UAPI.1), and their order.

use std::cmp::Ordering;

use super::Entry;
use crate::image::version::compare;

/// Longest pattern of names: that of a file's name.
const PATTERN: usize = 255;

/// An entry with what orders it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::image) struct BlsEntry {
    /// The file's name without `.conf` and without its boot counter.
    pub(in crate::image) id: String,
    pub(in crate::image) entry: Entry,
    version: String,
    sort_key: String,
    machine_id: String,
    /// Its boot counter is at zero: it failed each time.
    failed: bool,
}

/// Reads an entry. `None` for one that boots no Linux on this processor.
pub(in crate::image) fn parse(name: &str, text: &str) -> Option<BlsEntry> {
    let (stem, end) = name.split_at_checked(name.len().checked_sub(".conf".len())?)?;
    if !end.eq_ignore_ascii_case(".conf") {
        return None;
    }
    let (id, tries) = stem.rsplit_once('+').map_or((stem, None), |(id, tries)| (id, Some(tries)));
    let failed = tries.is_some_and(|tries| tries.split('-').next() == Some("0"));
    let mut found = BlsEntry { id: id.to_owned(), failed, ..BlsEntry::default() };
    let mut options = Vec::new();
    for line in text.lines() {
        let (key, value) = line.trim().split_once(char::is_whitespace).unwrap_or_default();
        let value = value.trim();
        match key {
            "title" => found.entry.title = value.to_owned(),
            "linux" => found.entry.kernel = value.to_owned(),
            "initrd" => found.entry.initrds.extend(value.split_whitespace().map(str::to_owned)),
            "options" => options.push(value),
            "version" => found.version = value.to_owned(),
            "sort-key" => found.sort_key = value.to_owned(),
            "machine-id" => found.machine_id = value.to_owned(),
            "architecture" if !matches!(value, "x64" | "ia32") => return None,
            _ => {}
        }
    }
    found.entry.options = options.join(" ");
    if found.entry.title.is_empty() {
        found.entry.title = found.id.clone();
    }
    (!found.entry.kernel.is_empty()).then_some(found)
}

/// In the order of the specification's "Sorting".
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

/// The entry that a `loader.conf` makes the default one; without such a line, the first.
pub(in crate::image) fn choose(mut entries: Vec<BlsEntry>, loader: &str) -> Option<BlsEntry> {
    entries.sort_by(order);
    let line = |line: &str| {
        let (key, value) = line.trim().split_once(char::is_whitespace)?;
        (key == "default").then(|| value.trim().to_owned())
    };
    // The matcher calls itself for each sign.
    let wanted = loader.lines().filter_map(line).next_back().filter(|pattern| pattern.len() <= PATTERN);
    let matches = |entry: &BlsEntry| {
        let pattern = wanted.as_deref()?;
        let steps = &mut 100_000;
        // systemd-boot compares in small letters.
        let (pattern, id) = (pattern.to_ascii_lowercase(), entry.id.to_ascii_lowercase());
        let found = glob(pattern.as_bytes(), id.as_bytes(), steps)
            || glob(pattern.as_bytes(), format!("{id}.conf").as_bytes(), steps);
        found.then_some(())
    };
    let chosen = entries.iter().position(|entry| matches(entry).is_some()).unwrap_or(0);
    (chosen < entries.len()).then(|| entries.swap_remove(chosen))
}

/// `*` and `?` of a pattern, in so many steps at most.
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
        (Some((a, rest)), Some((b, behind))) => a == b && glob(rest, behind, steps),
        _ => false,
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

    #[test]
    fn order_is_that_of_the_specification() {
        let all = || {
            vec![
                entry("old.conf", "version 6.1.0-9\nsort-key debian\n"),
                entry("new.conf", "version 6.1.0-25\nsort-key debian\n"),
                entry("bad+0-3.conf", "version 7\nsort-key debian\n"),
                entry("bare.conf", "version 9\n"),
            ]
        };
        assert_eq!(choose(all(), "").unwrap().id, "new");
        assert_eq!(choose(all(), "timeout 3\ndefault o*.conf\n").unwrap().id, "old");
        assert_eq!(choose(all(), "default bad\n").unwrap().id, "bad");
        assert_eq!(choose(all(), "default OLD.conf\n").unwrap().id, "old");
        assert_eq!(choose(all(), &format!("default {}\n", "*".repeat(999_999))).unwrap().id, "new");
        assert_eq!(choose(all(), "default nothing-*\n").unwrap().id, "new");
        assert_eq!(choose(Vec::new(), ""), None);
    }
}
