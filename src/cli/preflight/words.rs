//! Words of a kernel command line that cannot work on this machine.

use boot::cmdline;

use crate::cli::advice::Trouble;

/// Name, value (any if there is none), and what it takes away.
const WORDS: [(&str, Option<&str>, &str); 14] = [
    ("pci", Some("off"), DISKS),
    ("pci", Some("conf1"), DISKS),
    ("pci", Some("conf2"), DISKS),
    ("acpi", Some("off"), TABLES),
    ("noacpi", None, TABLES),
    ("noapic", None, INTERRUPTS),
    ("nolapic", None, INTERRUPTS),
    ("disableapic", None, INTERRUPTS),
    ("8250.nr_uarts", Some("0"), SERIAL),
    ("console", Some("ttyS1"), SERIAL),
    ("console", Some("ttyS2"), SERIAL),
    ("console", Some("ttyS3"), SERIAL),
    ("nomodules", None, "the drivers in the initrd"),
    ("noinitrd", None, "the initrd"),
];
const DISKS: &str = "disks and networks, which are on PCI";
const TABLES: &str = "PCI and the power button, which ACPI describes";
const INTERRUPTS: &str = "interrupts";
const SERIAL: &str = "the console, which is ttyS0 or hvc0";

/// Modules that no guest does without.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio", "virtio_ring"];

/// One warning for all such words.
pub(super) fn warning(text: &str) -> Option<Trouble> {
    let mut said = Vec::new();
    for word in cmdline::words(text) {
        let value = word.value.map(|value| value.split(',').next().unwrap_or_default());
        let known =
            WORDS.iter().find(|(name, wanted, _)| word.is(name) && (wanted.is_none() || *wanted == value));
        let listed = ["module_blacklist", "modprobe.blacklist"].iter().any(|name| word.is(name))
            && word
                .value
                .unwrap_or_default()
                .split(',')
                .any(|name| MODULES.contains(&name.replace('-', "_").as_str()));
        let takes = known.map(|(_, _, takes)| *takes).or_else(|| listed.then_some(DISKS));
        said.extend(takes.map(|takes| format!("`{}` takes away {takes}", word.raw.escape_debug())));
    }
    let root = cmdline::value(text, "root").unwrap_or_default();
    if ["/dev/sd", "/dev/hd", "/dev/xvd", "/dev/nvme", "/dev/mmcblk"]
        .iter()
        .any(|disk| root.starts_with(disk))
    {
        said.push(format!(
            "`root={}` names a disk of another machine: the first one here is /dev/vda",
            root.escape_debug()
        ));
    }
    if !cmdline::has(text, "console") {
        said.push("without `console=ttyS0` or `console=hvc0` the kernel's messages are not seen".to_owned());
    } else if !consoles(text).any(|name| matches!(name, "ttyS0" | "hvc0" | "ttyS" | "hvc")) {
        said.push("none of its consoles is `ttyS0` or `hvc0`, which this machine has".to_owned());
    }
    let cure = Some("leave it so only if that is meant".to_owned());
    (!said.is_empty())
        .then(|| Trouble { what: format!("the kernel command line: {}", said.join("; ")), cure })
}

fn consoles(text: &str) -> impl Iterator<Item = &str> {
    cmdline::words(text).filter(|word| word.is("console")).filter_map(|word| word.value?.split(',').next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{DEFAULT_CMDLINE, DEFAULT_CMDLINE_HVC0};

    fn said(more: &str) -> String {
        warning(&format!("console=ttyS0 {more}")).map(|trouble| trouble.to_string()).unwrap_or_default()
    }

    #[test]
    fn words_that_cannot_work_are_named_in_one_warning() {
        let both = said("pci=off quiet noapic");
        assert!(both.contains("`pci=off` takes away disks") && both.contains("`noapic`"), "{both}");
        for word in
            ["acpi=off", "nolapic", "8250.nr_uarts=0", "module_blacklist=a,virtio-pci", "console=ttyS1,9600"]
        {
            assert!(said(word).contains(word), "{word}");
        }
    }

    #[test]
    fn root_on_a_disk_of_another_kind_is_told() {
        assert!(said("root=/dev/sda1").contains("the first one here is /dev/vda"));
        assert_eq!(said("root=/dev/vda1"), "");
    }

    #[test]
    fn words_that_work_are_let_be() {
        for line in [DEFAULT_CMDLINE, DEFAULT_CMDLINE_HVC0, "console=ttyS0,115200n8 pci=noearly -- pci=off"] {
            assert_eq!(warning(line), None, "{line}");
        }
    }

    #[test]
    fn command_line_without_a_console_is_told() {
        let said = |line| warning(line).unwrap().to_string();
        assert!(said("quiet").contains("without `console=ttyS0`"));
        assert!(said("quiet -- console=ttyS0").contains("without `console=ttyS0`"));
        assert!(said("console=tty0").contains("none of its consoles"));
    }
}
