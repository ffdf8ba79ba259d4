//! Puts a kernel command line together: what the disk's boot loader says, what this machine needs, where the root file
//! system was found, and what the user says, who has the last word.

use crate::spec::Spec;

/// What there is to put together.
#[derive(Debug)]
pub(super) struct Said<'a> {
    pub(super) spec: &'a Spec,
    /// The options of the disk's boot loader.
    pub(super) options: Option<&'a str>,
    /// The root file system that was found on the disk.
    pub(super) root: Option<&'a str>,
    /// There is an initrd, which can find a root file system by more than its device.
    pub(super) initrd: bool,
}

/// A command line, and what became of its parts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) text: String,
    /// What it says of the root file system.
    pub(super) root: Option<String>,
    /// That was found on the disk, and nobody had said it.
    pub(super) added_root: bool,
    /// The boot loader's options are in it.
    pub(super) took_options: bool,
}

const ROOT: &str = "root=";

pub(super) fn compose(said: &Said<'_>) -> Line {
    let Said { spec, options, root, initrd } = *said;
    let users = [&spec.cmdline, &spec.append].map(|text| text.as_deref().unwrap_or_default());
    let users_root = users.iter().rev().find_map(|text| value(text, ROOT));
    // A command line in place of the default one is in place of the disk's as well.
    let options = options.filter(|_| spec.cmdline.is_none());
    let mut words: Vec<&str> = options.unwrap_or_default().split_whitespace().collect();
    // Names such as root=UUID=... are an initrd's to understand.
    if users_root.is_some() || (!initrd && root.is_some()) {
        words.retain(|word| !word.starts_with(ROOT));
    }
    let mut text = words.join(" ");
    let append = |text: &mut String, more: &str| {
        let space = if text.is_empty() || more.is_empty() { "" } else { " " };
        *text = format!("{text}{space}{more}");
    };
    append(&mut text, spec.base_cmdline());
    let mut line = Line { took_options: options.is_some(), ..Line::default() };
    match (users_root.or_else(|| value(&text, ROOT)), root) {
        (Some(known), _) => line.root = Some(known.to_owned()),
        (None, Some(root)) => {
            (line.root, line.added_root) = (Some(root.to_owned()), true);
            append(&mut text, &format!("{ROOT}{root}"));
            // Checked first and made writable by the guest itself, as with Debian's boot loader.
            let modes = users.iter().chain([&text.as_str()]).any(|text| mode(text));
            append(&mut text, if modes { "" } else { "ro" });
        }
        (None, None) => {}
    }
    append(&mut text, spec.append.as_deref().unwrap_or_default().trim());
    line.text = text;
    line
}

/// The last value of a word; the kernel takes that. Empty is as good as none.
fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split_whitespace()
        .filter_map(|word| word.strip_prefix(name))
        .next_back()
        .filter(|value| !value.is_empty())
}

fn mode(text: &str) -> bool {
    text.split_whitespace().any(|word| matches!(word, "ro" | "rw"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "console=ttyS0 panic=-1 pci=noearly";

    fn line(spec: &Spec, options: Option<&str>, root: Option<&str>) -> Line {
        compose(&Said { spec, options, root, initrd: true })
    }

    #[test]
    fn root_that_was_found_is_added_read_only() {
        let quiet = line(&Spec::default().with_append("quiet"), None, Some("PARTUUID=1-01"));
        assert_eq!(quiet.text, format!("{OWN} root=PARTUUID=1-01 ro quiet"));
        assert!(quiet.added_root && !quiet.took_options);
        let line = line(&Spec::default().with_append("rw"), None, Some("/dev/vda"));
        assert_eq!(line.text, format!("{OWN} root=/dev/vda rw"));
    }

    #[test]
    fn users_root_wins_over_the_disks_and_the_loaders() {
        for spec in
            [Spec::default().with_append("root=/dev/vdb"), Spec::default().with_cmdline("root=/dev/vdb")]
        {
            let line = line(&spec, Some("root=UUID=5 ro quiet"), Some("/dev/vda"));
            assert_eq!(line.root.as_deref(), Some("/dev/vdb"));
            assert!(
                !line.text.contains("UUID") && !line.text.contains("vda") && !line.added_root,
                "{line:?}"
            );
        }
    }

    #[test]
    fn loaders_options_come_first_and_keep_their_root() {
        let line = line(&Spec::default(), Some("root=UUID=5 ro quiet"), Some("/dev/vda"));
        assert_eq!(line.text, format!("root=UUID=5 ro quiet {OWN}"));
        assert!(line.took_options && !line.added_root);
    }

    #[test]
    fn without_an_initrd_the_root_is_a_device() {
        let said = Said {
            spec: &Spec::default(),
            options: Some("root=UUID=5 rw"),
            root: Some("/dev/vda"),
            initrd: false,
        };
        assert_eq!(compose(&said).text, format!("rw {OWN} root=/dev/vda"));
    }

    #[test]
    fn own_command_line_replaces_the_loaders_and_still_gets_its_root() {
        let spec = Spec::default().with_cmdline("console=hvc0");
        let line = line(&spec, Some("quiet root=UUID=5"), Some("/dev/vda"));
        assert_eq!(line.text, "console=hvc0 root=/dev/vda ro");
    }

    #[test]
    fn nothing_found_adds_nothing() {
        let spec = Spec::default().with_append("quiet");
        assert_eq!(line(&spec, None, None).text, format!("{OWN} quiet"));
        assert_eq!(line(&spec, None, None).root, None);
        assert_eq!(line(&Spec::default().with_cmdline(""), None, None).text, "");
    }
}
