//! Words of a kernel command line that conflict with this machine.

use boot::cmdline;
use boot::layout::RamLayout;

use crate::cli::advice::Problem;
use crate::spec::{Cpus, MemSize};

/// Name, value (any if `None`), and what the guest loses.
const CONFLICTING_WORDS: [(&str, Option<&str>, &str); 17] = [
    ("pci", Some("off"), DISKS),
    ("pci", Some("conf1"), DISKS),
    ("pci", Some("conf2"), DISKS),
    ("pci", Some("noacpi"), DISKS),
    ("pci", Some("nommconf"), DISKS),
    ("pci", Some("nomsi"), DISKS),
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

/// Modules that every guest needs.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio", "virtio_ring"];

/// One warning for all such words on the command line `text` of a machine with this memory and these
/// processors.
pub(super) fn warning(text: &str, mem: MemSize, cpus: Cpus) -> Option<Problem> {
    let mut problems = Vec::new();
    problems.extend(hidden_memory(text, mem));
    problems.extend(idle_processors(text, cpus));
    for word in cmdline::words(text) {
        // The value of `pci=` is a list; of others only the first item is relevant.
        let count = if word.is("pci") { usize::MAX } else { 1 };
        let is_it = |wanted: &Option<&str>| {
            wanted.is_none_or(|wanted| {
                word.value.is_some_and(|value| value.split(',').take(count).any(|v| v == wanted))
            })
        };
        let conflicting = CONFLICTING_WORDS.iter().find(|(name, wanted, _)| word.is(name) && is_it(wanted));
        let blacklisted = ["module_blacklist", "modprobe.blacklist"].iter().any(|name| word.is(name))
            && word
                .value
                .unwrap_or_default()
                .split(',')
                .any(|name| MODULES.contains(&name.replace('-', "_").as_str()));
        let loses = conflicting.map(|(_, _, loses)| *loses).or_else(|| blacklisted.then_some(DISKS));
        problems.extend(loses.map(|loses| format!("`{}` takes away {loses}", word.raw.escape_debug())));
    }
    let root = cmdline::value(text, "root").unwrap_or_default();
    if ["/dev/sd", "/dev/hd", "/dev/xvd", "/dev/nvme", "/dev/mmcblk"]
        .iter()
        .any(|disk| root.starts_with(disk))
    {
        problems.push(format!(
            "`root={}` names a disk of another machine: the first one here is /dev/vda",
            root.escape_debug()
        ));
    }
    if !cmdline::has(text, "console") {
        problems
            .push("without `console=ttyS0` or `console=hvc0` the kernel's messages are not seen".to_owned());
    } else if !consoles(text).any(is_present) {
        problems.push("none of its consoles is `ttyS0` or `hvc0`, which this machine has".to_owned());
    }
    let cure = Some("leave it so only if that is meant".to_owned());
    (!problems.is_empty())
        .then(|| Problem { what: format!("the kernel command line: {}", problems.join("; ")), cure })
}

/// A warning about a word that hides memory from the kernel.
fn hidden_memory(text: &str, mem: MemSize) -> Option<String> {
    let words = cmdline::words(text).filter(|word| word.is("mem"));
    // Each hides the memory above its value.
    let (word, end) =
        words.filter_map(|word| Some((word.raw, size(word.value?)?))).min_by_key(|(_, end)| *end)?;
    let layout = RamLayout::new(mem.bytes());
    let top = layout.high.map_or(layout.low.end, |high| high.end);
    (end < top).then(|| {
        format!("`{}` takes away a part of the {mem} of memory that `--mem` gives", word.escape_debug())
    })
}

/// A warning about a word that hides processors from the kernel.
fn idle_processors(text: &str, cpus: Cpus) -> Option<String> {
    let limits = cmdline::words(text).filter_map(|word| {
        let most = match word.value {
            Some(value) if word.is("maxcpus") || word.is("nr_cpus") || word.is("possible_cpus") => {
                // 0 means one processor.
                value.parse::<u32>().ok()?.max(1)
            }
            _ if word.is("nosmp") => 1,
            _ => return None,
        };
        Some((word.raw, most))
    });
    let (word, most) = limits.min_by_key(|(_, most)| *most)?;
    (most < cpus.get()).then(|| {
        format!(
            "`{}` lets the guest use {most} of the {cpus} processors that `--cpus` gives",
            word.escape_debug()
        )
    })
}

/// A size as the kernel parses it (lib/cmdline.c, `memparse`).
fn size(text: &str) -> Option<u64> {
    let (digits, base) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let end = digits.find(|c: char| !c.is_digit(base)).unwrap_or(digits.len());
    let (number, unit) = digits.split_at_checked(end)?;
    let shift = match unit.chars().next().map(|unit| unit.to_ascii_uppercase()) {
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        Some('T') => 40,
        _ => 0,
    };
    u64::from_str_radix(number, base).ok()?.checked_mul(1 << shift)
}

fn consoles(text: &str) -> impl Iterator<Item = &str> {
    cmdline::words(text).filter(|word| word.is("console")).filter_map(|word| word.value)
}

/// Whether the machine has this console: `ttyS0`, `hvc0`, or the port of the first as Linux's early console names it
/// (`uart8250,io,0x3f8`).
fn is_present(console: &str) -> bool {
    let mut parts = console.split(',');
    match parts.next() {
        Some("ttyS0" | "hvc0" | "ttyS" | "hvc") => true,
        Some("uart" | "uart8250") => parts.next() == Some("io") && parts.next().and_then(size) == Some(0x3f8),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{DEFAULT_CMDLINE, DEFAULT_CMDLINE_HVC0};

    fn warning(text: &str) -> Option<Problem> {
        super::warning(text, "1024".parse().unwrap(), Cpus::DEFAULT)
    }

    fn problems(more: &str) -> String {
        warning(&format!("console=ttyS0 {more}")).map(|problem| problem.to_string()).unwrap_or_default()
    }

    #[test]
    fn words_that_cannot_work_are_named_in_one_warning() {
        let both = problems("pci=off quiet noapic");
        assert!(both.contains("`pci=off` takes away disks") && both.contains("`noapic`"), "{both}");
        for word in [
            "acpi=off",
            "nolapic",
            "8250.nr_uarts=0",
            "module_blacklist=a,virtio-pci",
            "console=ttyS1,9600",
            "pci=noearly,nomsi",
            "pci=nommconf",
        ] {
            assert!(problems(word).contains(word), "{word}");
        }
    }

    #[test]
    fn words_that_contradict_mem_and_cpus_are_named_in_the_same_warning() {
        let of = |more: &str, mem: &str, cpus: &str| {
            let text = format!("console=ttyS0 {more}");
            let problem = super::warning(&text, mem.parse().unwrap(), cpus.parse().unwrap());
            problem.map(|problem| problem.to_string()).unwrap_or_default()
        };
        let both = of("mem=512M nr_cpus=2", "1024", "4");
        assert!(both.contains("`mem=512M` takes away a part of the 1 GiB"), "{both}");
        assert!(both.contains("`nr_cpus=2` lets the guest use 2 of the 4 processors"), "{both}");
        for word in ["maxcpus=0", "maxcpus=1", "nosmp", "nr_cpus=3"] {
            assert!(of(word, "512", "4").contains(word), "{word}");
            assert_eq!(of(word, "512", "1"), "", "{word}");
        }
        for word in ["mem=0x10000000", "mem=256m", "mem=2G mem=268435456", "mem=1K"] {
            assert!(of(word, "512", "1").contains("takes away a part"), "{word}");
        }
        // Above the hole, addresses are larger than sizes.
        assert!(of("mem=8G", "8G", "1").contains("`mem=8G`"));
        for word in
            ["mem=512M", "mem=1G", "mem=nopentium", "mem=", "mem", "mem=99999999999999999999G", "-- mem=1M"]
        {
            assert_eq!(of(word, "512", "1"), "", "{word}");
        }
    }

    #[test]
    fn root_on_a_disk_of_another_kind_is_told() {
        assert!(problems("root=/dev/sda1").contains("the first one here is /dev/vda"));
        assert_eq!(problems("root=/dev/vda1"), "");
    }

    #[test]
    fn words_that_work_are_let_be() {
        for line in [DEFAULT_CMDLINE, DEFAULT_CMDLINE_HVC0, "console=ttyS0,115200n8 pci=noearly -- pci=off"] {
            assert_eq!(warning(line), None, "{line}");
        }
    }

    #[test]
    fn command_line_without_a_console_is_told() {
        let problems = |line| warning(line).unwrap().to_string();
        assert!(problems("quiet").contains("without `console=ttyS0`"));
        assert!(problems("quiet -- console=ttyS0").contains("without `console=ttyS0`"));
        assert!(problems("console=tty0").contains("none of its consoles"));
        assert!(problems("console=uart8250,io,0x2f8").contains("none of its consoles"));
        assert_eq!(warning("console=uart8250,io,0x3f8,115200n8"), None);
    }
}
