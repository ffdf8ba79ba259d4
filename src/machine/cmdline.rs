//! Puts a kernel command line together: what the disk's boot loader says, what this machine needs, where the root file
//! system was found, and what the user says, who has the last word.

use boot::cmdline::{Word, has, has_word, join, value, without};

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
    /// Two disks are copies of one, so that a name may mean the wrong one.
    pub(super) twins: bool,
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

impl Said<'_> {
    /// Whether this value of `root=` leads the guest to what it names: UUIDs and labels of file systems are an initrd's to
    /// find, names of partitions the kernel's own.
    fn is_understood(&self, value: &str) -> bool {
        let is_partition = ["PARTUUID=", "PARTLABEL="].iter().any(|name| value.starts_with(name));
        value.starts_with("/dev/vd") || !self.twins && (self.initrd || is_partition)
    }
}

pub(super) fn compose(said: &Said<'_>) -> Line {
    let Said { spec, options, root, .. } = *said;
    let users = [&spec.cmdline, &spec.append].map(|text| text.as_deref().unwrap_or_default());
    // A word without a value is the user's as well: it keeps the disk's root away.
    let users_root = users.iter().rev().find_map(|text| value(text, "root"));
    // A command line in place of the default one is in place of the disk's as well.
    let options = options.filter(|_| spec.cmdline.is_none());
    // Without a value it says nothing.
    let unwanted = |word: &Word<'_>| {
        let value = word.value.unwrap_or_default().trim_matches('"');
        let useless = value.is_empty() || root.is_some() && !said.is_understood(value);
        word.is("root") && (users_root.is_some() || useless)
    };
    let options_text = without(options.unwrap_or_default(), unwanted);
    let known = users_root.or_else(|| value(&options_text, "root"));
    let elsewhere = users.iter().chain([&options_text.as_str()]).any(|text| root_elsewhere(text));
    let added = root.filter(|_| known.is_none() && !elsewhere);
    let word = added.map(|root| format!("root={root}")).unwrap_or_default();
    // Checked first and made writable by the guest itself, as with Debian's boot loader.
    let modes = users.iter().chain([&options_text.as_str()]).any(|text| mode(text));
    let mode = if added.is_some() && !modes { "ro" } else { "" };
    let append = spec.append.as_deref().unwrap_or_default();
    Line {
        text: join(&[&options_text, spec.base_cmdline(), &word, mode, append]),
        root: known.or(added).map(str::to_owned).or_else(|| elsewhere.then(String::new)),
        added_root: added.is_some(),
        took_options: options.is_some(),
    }
}

/// The root file system comes from somewhere that is no disk of the machine, or an initrd looks for it by itself.
fn root_elsewhere(text: &str) -> bool {
    ["nfsroot", "rdinit"].iter().any(|name| has(text, name))
        || value(text, "boot").is_some_and(|by| matches!(by, "live" | "casper" | "nfs"))
}

fn mode(text: &str) -> bool {
    ["ro", "rw"].iter().any(|name| has_word(text, name, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "console=ttyS0 panic=-1 pci=noearly";

    fn line(spec: &Spec, options: Option<&str>, root: Option<&str>) -> Line {
        compose(&Said { spec, options, root, initrd: true, twins: false })
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
            twins: false,
        };
        assert_eq!(compose(&said).text, format!("rw {OWN} root=/dev/vda"));
        for root in ["PARTUUID=5-02", "PARTLABEL=root-b", "/dev/vda2"] {
            let options = format!("root={root} rw");
            let said = Said { options: Some(&options), ..said };
            assert_eq!(compose(&said).text, format!("root={root} rw {OWN}"));
            let twins = compose(&Said { twins: true, ..said }).text;
            assert_eq!(twins.contains(root), root == "/dev/vda2", "{twins}");
        }
    }

    #[test]
    fn own_command_line_replaces_the_loaders_and_still_gets_its_root() {
        let spec = Spec::default().with_cmdline("console=hvc0");
        let line = line(&spec, Some("quiet root=UUID=5"), Some("/dev/vda"));
        assert_eq!(line.text, "console=hvc0 root=/dev/vda ro");
    }

    #[test]
    fn what_is_added_stands_before_the_words_for_init() {
        let spec = Spec::default().with_append("quiet -- single  x");
        assert_eq!(
            line(&spec, Some("a=\"b  c\" -- from-disk"), Some("/dev/vda")).text,
            format!("a=\"b  c\" {OWN} root=/dev/vda ro quiet -- from-disk single  x")
        );
        let spec = Spec::default().with_cmdline("console=hvc0 -- -s").with_append("panic=5");
        assert_eq!(line(&spec, None, Some("/dev/vda")).text, "console=hvc0 root=/dev/vda ro panic=5 -- -s");
    }

    #[test]
    fn words_behind_two_dashes_or_in_quotes_say_nothing_of_the_root() {
        for append in ["-- root=/dev/vdb ro", "msg=\"root=/dev/vdb rw\"", "x-root=/dev/vdb"] {
            let line = line(&Spec::default().with_append(append), None, Some("/dev/vda"));
            assert!(line.text.contains(" root=/dev/vda ro "), "{line:?}");
            assert!(line.added_root && line.text.ends_with(append), "{line:?}");
        }
        let quoted = line(&Spec::default().with_append("root=\"/dev/vdb\""), None, Some("/dev/vda"));
        assert_eq!((quoted.root.as_deref(), quoted.added_root), (Some("/dev/vdb"), false));
    }

    #[test]
    fn root_that_is_no_disk_is_let_be() {
        for append in ["boot=live", "nfsroot=10.0.0.1:/srv", "root=", "rdinit=/bin/sh"] {
            let line = line(&Spec::default().with_append(append), None, Some("/dev/vda"));
            assert!(!line.added_root && !line.text.contains("/dev/vda"), "{line:?}");
        }
    }

    #[test]
    fn nothing_found_adds_nothing() {
        let spec = Spec::default().with_append("quiet");
        assert_eq!(line(&spec, None, None).text, format!("{OWN} quiet"));
        assert_eq!(line(&spec, None, None).root, None);
        assert_eq!(line(&Spec::default().with_cmdline(""), None, None).text, "");
    }
}
