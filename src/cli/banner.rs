//! The banner: what a machine is made of, printed on stderr before it starts.

use std::fmt::{self, Display};
use std::path::Path;

use boot::kernel::Format;
use diskimage::shell_word;

use crate::host::disk::OpenDisk;
use crate::host::stdio::is_terminal;
use crate::host::terminal::in_foreground;
use crate::machine::BoundForward;
use crate::machine::files::{BootFile, BootFiles, Prepared, shown};
use crate::shown::path as shown_path;
use crate::spec::{ConsoleChoice, DiskSpec, NetId, NetLink, NetSpec, Spec};

/// The banner of a machine.
#[derive(Debug)]
pub(super) struct Banner<'a> {
    /// The machine.
    pub spec: &'a Spec,
    /// Its open files and its boot files.
    pub prepared: &'a Prepared,
    /// Where the console's input comes from.
    pub keys: KeyboardInput,
    /// How its paths are written.
    pub paths: Paths,
}

/// How paths are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paths {
    /// For the terminal where they were typed.
    AsTyped,
    /// For readers in other folders.
    Absolute,
}

impl Paths {
    fn shown(self, path: &Path) -> String {
        match self {
            Paths::AsTyped => shown_path(path),
            Paths::Absolute => shown_path(&std::path::absolute(path).unwrap_or_else(|_| path.into())),
        }
    }
}

/// Where the console's input comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyboardInput {
    /// No terminal.
    None,
    /// The terminal on standard input.
    Terminal,
    /// The terminal, once this job is in the foreground.
    Background,
}

impl KeyboardInput {
    /// The state of standard input now.
    pub(super) fn detect() -> Self {
        match (is_terminal(libc::STDIN_FILENO), in_foreground()) {
            (false, _) => KeyboardInput::None,
            (true, true) => KeyboardInput::Terminal,
            (true, false) => KeyboardInput::Background,
        }
    }
}

impl Display for Banner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Banner { spec, prepared, keys, paths } = self;
        let mut line = |name: &str, value: &dyn Display| writeln!(f, "~> {name:<12}: {value}");
        if let Some(BootFiles { kernel, headers, initrd, root, entry, .. }) = prepared.files() {
            line(
                "Kernel",
                &format_args!(
                    "{} ({})",
                    boot_file(kernel, *paths),
                    describe(headers.format(), headers.version())
                ),
            )?;
            match initrd {
                Some((initrd, _)) => line("Initrd", &boot_file(initrd, *paths))?,
                None => line("Initrd", &"none")?,
            }
            if let Some(entry) = entry {
                line(
                    "Boot entry",
                    &format_args!("{entry} on {}, with its options", first_disk(spec, *paths)),
                )?;
            }
            if let Some((root, place)) = root {
                line("Root", &format_args!("root={root}, {place} on {}", first_disk(spec, *paths)))?;
            }
        }
        line("RAM", &spec.mem())?;
        if let Some(balloon) = spec.balloon.filter(|balloon| balloon.mib() > 0) {
            line("Balloon", &format_args!("{balloon} of it taken back"))?;
        }
        line("Processors", &spec.cpus())?;
        for ((disk, drive), letter) in spec.disk.iter().zip(&prepared.open.drives).zip('a'..) {
            line("Disk", &format_args!("vd{letter} = {}", describe_disk(disk, &drive.medium(), *paths)))?;
        }
        for (id, net) in spec.interfaces() {
            line("Network", &describe_net(&id, net, *paths))?;
        }
        for port in &spec.port {
            match &port.socket {
                Some(socket) => line("Port", &format_args!("{} = {}", port.name, paths.shown(socket)))?,
                None => line("Port", &format_args!("{}: says when the guest goes on", port.name))?,
            }
        }
        for (tag, share) in spec.shares() {
            let mount = share.mount.as_ref().map(|mount| format!(" at {mount}")).unwrap_or_default();
            let read_only = if share.read_only { ", read-only" } else { "" };
            // What `minivmm run` starts mounts them. In another guest nothing says that nobody has.
            let by_hand = match &share.mount {
                Some(mount) if !prepared.open.initrd_is_made() => {
                    let [tag, mount] = [tag.as_str(), mount.as_str()].map(|word| shell_word(Path::new(word)));
                    format!("; before systemd 254: `mount -t virtiofs {tag} {mount}`")
                }
                _ => String::new(),
            };
            let path = paths.shown(&share.path);
            line("Share", &format_args!("{tag} = {path}{mount}{read_only}{by_hand}"))?;
        }
        let name = match spec.console() {
            ConsoleChoice::Ttys0 => "",
            ConsoleChoice::Hvc0 => " (hvc0)",
        };
        match keys {
            KeyboardInput::None => {}
            KeyboardInput::Terminal => {
                line("Console", &format_args!("this terminal{name}; Ctrl-] then ? for the menu, q to quit"))?;
            }
            KeyboardInput::Background => {
                let later = "no keys in the background: use `fg`, or `timeout --foreground`";
                line("Console", &format_args!("shown here{name}; {later}"))?;
            }
        }
        Ok(())
    }
}

/// The lines that are known once the machine has its forwards.
pub(super) fn forwards(forwards: &[BoundForward]) -> String {
    forwards.iter().map(|bound| format!("~> {:<12}: {bound}\n", "Forward")).collect()
}

fn first_disk(spec: &Spec, paths: Paths) -> String {
    spec.disk.first().map(|disk| paths.shown(disk.image())).unwrap_or_default()
}

fn boot_file(file: &BootFile, paths: Paths) -> String {
    let path = paths.shown(file.path());
    file.inside().map_or_else(|| path.clone(), |inside| format!("{} on {path}", shown(inside)))
}

/// Format and release of a kernel.
pub(super) fn describe(format: Format, version: Option<&str>) -> String {
    match version.and_then(|version| version.split_whitespace().next()) {
        Some(release) => format!("Linux {release}, {format}"),
        None => format.to_string(),
    }
}

/// A disk with its size, for an image the space that it occupies on the host (as `ls -s` shows), and the image that it lies on.
fn describe_disk(disk: &DiskSpec, open: &OpenDisk, paths: Paths) -> String {
    let DiskSpec { read_only, direct, snapshot, .. } = disk;
    // What is written to a snapshot is no part of the disk that the user knows.
    let mut layers = open.layers().iter().skip(usize::from(*snapshot));
    let (path, used) = match layers.next() {
        Some(layer) => (layer.path.as_path(), Some(layer.used)),
        None => (disk.image(), open.used()),
    };
    let used = used.map(|used| format!(", {} used", bytes(used))).unwrap_or_default();
    let below = layers.next().map(|layer| format!(", on {}", paths.shown(&layer.path)));
    let flags = [
        (*read_only, ", read-only"),
        (*snapshot, ", changes are dropped at the end"),
        (*direct, ", past the page cache"),
    ];
    let flags: String = flags.into_iter().filter(|(set, _)| *set).map(|(_, text)| text).collect();
    format!("{} ({}{used}{}){flags}", paths.shown(path), bytes(open.length()), below.unwrap_or_default())
}

/// In the largest unit that leaves about three digits.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut count, mut unit, mut tenths) = (count, 0, 0);
    while count >= 1024 && unit + 1 < UNITS.len() {
        (tenths, count, unit) = (count % 1024 * 10 / 1024, count / 1024, unit + 1);
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if count < 10 && tenths > 0 { format!("{count}.{tenths} {name}") } else { format!("{count} {name}") }
}

/// An interface with the addresses that the guest has without any configuration.
fn describe_net(id: &NetId, net: &NetSpec, paths: Paths) -> String {
    let id = net.id.as_ref().map_or_else(String::new, |_| format!("{id} = "));
    let link = match &net.link {
        NetLink::User(user) => {
            let subnet = user.subnet.unwrap_or_default();
            let restricted = if user.restrict { ", restricted" } else { "" };
            format!("user{restricted}, guest {} by DHCP", subnet.address(15))
        }
        link => link.to_string(),
    };
    let mac = net.mac.map(|mac| match net.link {
        NetLink::User(_) => format!(", MAC {mac}"),
        _ => format!(", MAC {mac}, IPv6 link-local {}", mac.link_local()),
    });
    let pcap = net.pcap.as_ref().map(|file| format!(", captured in {}", paths.shown(file)));
    format!("{id}{link}{}{}", mac.unwrap_or_default(), pcap.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::kernels::bzimage;
    use crate::image::testing::ext4;

    #[test]
    fn banner_says_what_the_machine_is_made_of() {
        let folder = tempfile::tempdir().unwrap();
        let [kernel, initrd] = ["vmlinuz", "initrd.img"].map(|name| folder.path().join(name));
        std::fs::write(&kernel, bzimage("6.1.0-own (me@laptop) #1 SMP")).unwrap();
        std::fs::write(&initrd, "x").unwrap();
        let spec = Spec::new(&kernel).with_initrd(initrd).with_mem("1G".parse().unwrap());
        let prepared = Prepared::of(&spec).unwrap();
        let banner =
            |keys| Banner { spec: &spec, prepared: &prepared, keys, paths: Paths::AsTyped }.to_string();
        let text = banner(KeyboardInput::Terminal);
        let text = text.replace(&folder.path().display().to_string(), "/k");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "~> Kernel      : /k/vmlinuz (Linux 6.1.0-own, bzImage)");
        assert_eq!(lines[1], "~> Initrd      : /k/initrd.img");
        assert_eq!(lines[2], "~> RAM         : 1 GiB");
        assert_eq!(lines[3], "~> Processors  : 1");
        assert!(lines[4].contains("Ctrl-]"));
        let later = banner(KeyboardInput::Background);
        assert!(
            later.contains("shown here; no keys in the background") && !later.contains("Ctrl-]"),
            "{later}"
        );
        assert!(!banner(KeyboardInput::None).contains("Console"));
    }

    #[test]
    fn banner_says_what_was_taken_from_the_disk_and_how_the_guest_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("vm0.raw");
        let kernel = bzimage("6.1.0-25-amd64 (debian-kernel@lists.debian.org) #1 SMP");
        let cfg =
            b"set default=0\nmenuentry 'D' {\nlinux /boot/vmlinuz-6.1.0-25-amd64 quiet\ninitrd /boot/i\n}\n";
        let files: [(&str, &[u8]); 5] = [
            ("etc/x", b""),
            ("sbin/init", b"x"),
            ("boot/vmlinuz-6.1.0-25-amd64", &kernel),
            ("boot/i", b"x"),
            ("boot/grub/grub.cfg", cfg),
        ];
        std::fs::write(&image, ext4(4096, &files, &[])).unwrap();
        let spec = Spec::default()
            .with_disk(DiskSpec::new(&image))
            .with_net(NetSpec::tap("tap2".parse().unwrap()))
            .with_net("user,id=lan,pcap=f,mac=02:00:00:00:00:01".parse().unwrap())
            .with_net("switch=lab,vlan=2,loss=1%,mac=02:00:00:00:00:02".parse().unwrap())
            .with_port("name=a,socket=/run/a.sock".parse().unwrap())
            .with_share("/src:/mnt/src,ro".parse().unwrap())
            .with_share("my\nsrc,tag=work".parse().unwrap())
            .with_balloon("64".parse().unwrap())
            .with_console(ConsoleChoice::Hvc0)
            .settled()
            .unwrap();
        let prepared = Prepared::of(&Spec { share: Vec::new(), ..spec.clone() }).unwrap();
        let banner = |paths| {
            Banner { spec: &spec, prepared: &prepared, keys: KeyboardInput::Terminal, paths }.to_string()
        };
        let text = banner(Paths::AsTyped);
        let here = std::env::current_dir().unwrap().display().to_string();
        let absolute = banner(Paths::Absolute);
        for line in [
            format!("work = {here}/my\\nsrc\n"),
            format!("captured in {here}/f\n"),
            "share0 = /src at".into(),
        ] {
            assert!(absolute.contains(&line), "{line}\n{absolute}");
        }
        let image = image.display().to_string();
        let text = text.replace(&image, "vm0.raw");
        for line in [
            "~> Kernel      : /boot/vmlinuz-6.1.0-25-amd64 on vm0.raw (Linux 6.1.0-25-amd64, bzImage)",
            "~> Initrd      : /boot/i on vm0.raw",
            "~> Boot entry  : /boot/grub/grub.cfg (D) on vm0.raw, with its options",
            "~> Root        : root=/dev/vda, the whole disk on vm0.raw",
            "~> Balloon     : 64 MiB of it taken back",
            "~> Network     : tap2, MAC ba:ad:00:ca:fe:02, IPv6 link-local fe80::b8ad:ff:feca:fe02",
            "~> Network     : lan = user, guest 10.0.2.15 by DHCP, MAC 02:00:00:00:00:01, captured in f",
            "~> Network     : switch lab (vlan=2,loss=1%), MAC 02:00:00:00:00:02, IPv6 link-local fe80::ff:fe00:2",
            "~> Port        : a = /run/a.sock",
            "~> Share       : share0 = /src at /mnt/src, read-only; before systemd 254: `mount -t virtiofs share0 /mnt/src`",
            r"~> Share       : work = my\nsrc",
            "~> Console     : this terminal (hvc0); Ctrl-] then ? for the menu, q to quit",
        ] {
            assert!(text.lines().any(|said| said == line), "{line}\n{text}");
        }
        let disk = text.lines().find(|line| line.starts_with("~> Disk")).unwrap();
        assert!(
            disk.starts_with("~> Disk        : vda = vm0.raw (4 MiB, ") && disk.ends_with(" used)"),
            "{disk}"
        );
    }

    #[test]
    fn banner_says_what_a_disk_lies_on() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("base.raw"), vec![1; 4 << 20]).unwrap();
        let said = |options: &str| {
            let disk: DiskSpec =
                format!("{0}/base.raw{1}", folder.path().display(), options).parse().unwrap();
            let disk = DiskSpec { overlay: disk.overlay.map(|name| folder.path().join(name)), ..disk };
            let text = describe_disk(&disk, &OpenDisk::open(&disk).unwrap(), Paths::AsTyped);
            text.replace(&format!("{}/", folder.path().display()), "")
        };
        assert_eq!(said(",ro"), "base.raw (4 MiB, 4 MiB used), read-only");
        let overlaid = said(",overlay=a.qcow2");
        assert!(
            overlaid.starts_with("a.qcow2 (4 MiB, ") && overlaid.ends_with(" KiB used, on base.raw)"),
            "{overlaid}"
        );
        assert_eq!(said(",snapshot"), "base.raw (4 MiB, 4 MiB used), changes are dropped at the end");
        let both = said(",overlay=a.qcow2,snapshot");
        assert!(
            both.starts_with("a.qcow2 (4 MiB, ")
                && both.ends_with(" on base.raw), changes are dropped at the end"),
            "{both}"
        );
    }

    #[test]
    fn sizes_have_the_unit_that_suits() {
        let shown = [0, 1023, 1024, 1536, 60 << 30, (60 << 30) - 1, u64::MAX].map(bytes);
        assert_eq!(shown, ["0 bytes", "1023 bytes", "1 KiB", "1.5 KiB", "60 GiB", "59 GiB", "16383 PiB"]);
    }
}
