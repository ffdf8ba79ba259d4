//! What a machine is made of: one struct that the command line, a TOML file and the library share.
//!
//! A new option is a field here. Its doc comment is its help text, its name is its flag and its key in the file.

mod build;
mod check;
mod cpus;
mod disk;
mod error;
mod file;
mod mac;
mod name;
mod net;
mod options;
mod port;
mod size;
mod text;
mod words;

use std::path::{Path, PathBuf};

use clap::builder::{OsStringValueParser, TypedValueParser};
use serde::{Deserialize, Serialize};

pub use cpus::Cpus;
pub use disk::{DiskQueues, DiskSerial, DiskSpec};
pub use error::SpecError;
pub use mac::MacAddress;
pub use name::MachineName;
pub use net::{InterfaceName, TapSpec};
pub use options::{ConsoleChoice, Initrd, OnReboot, Rtc};
pub use port::{PortName, PortSpec};
pub use size::{BalloonSize, MemSize, SizeError};
pub use words::DeviceError;

/// The kernel command line of a machine that does not say: the first serial port is the console, and a panic resets
/// at once, so that it can be seen from outside. The last word spares the kernel 76 port accesses that look for PCI
/// devices before PCI is there, in a way (CF8/CFC) that this machine does not have.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1 pci=noearly";

/// The same of a machine whose terminal gets the virtio console. Linux writes to every console that is named and
/// takes the last one for `/dev/console` (its admin-guide/serial-console.rst). The serial port stays: it alone is there
/// before the virtio driver is loaded, and for the last words of a panic.
pub const DEFAULT_CMDLINE_HVC0: &str = "console=ttyS0 console=hvc0 panic=-1 pci=noearly";

/// What a machine is made of.
///
/// What is `None` was not said; the methods of the same names give the default then.
///
/// ```
/// use minivmm::spec::Spec;
///
/// let spec = Spec::new("vmlinuz").with_initrd("initrd.img").with_mem("1G".parse()?).with_append("quiet");
/// assert_eq!(spec.mem().mib(), 1024);
/// assert_eq!(spec.cpus().get(), 1);
/// assert_eq!(spec.cmdline(), "console=ttyS0 panic=-1 pci=noearly quiet");
/// # Ok::<(), minivmm::spec::SizeError>(())
/// ```
// The first paragraph of a field's comment is its line in `--help`; the rest is for the manual.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Spec {
    /// Linux kernel: vmlinuz or vmlinux; else the disk's own
    ///
    /// A bzImage or an ELF file. Without one, the first disk is searched for the kernel that its boot loader would
    /// start, else for its newest.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk; else the disk's; `none` for none
    ///
    /// Without one, the first disk is searched for the one that belongs to the kernel.
    ///
    /// A distribution's kernel has its disk and network drivers as modules and needs the initrd made for it.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Initrd>,

    /// Kernel command line, in place of the default one
    ///
    /// The default is `console=ttyS0 panic=-1 pci=noearly`.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "text::joined", skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,

    /// Words to add to the kernel command line
    ///
    /// May be given several times: the texts are joined by a space, as those of `--cmdline` are. In a file it is a text or a list.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, action = clap::ArgAction::Append)]
    #[serde(deserialize_with = "text::joined", skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,

    /// Disk image or device; also ,direct ,serial= ,queues=
    ///
    /// May be given several times. Written as `PATH[,ro][,serial=TEXT][,direct][,queues=N]`. `ro`: the guest may not write. `serial`: what the guest
    /// finds in /dev/disk/by-id. `direct`: past the host's page cache. `queues`: as many as processors if not said. A
    /// comma in the path is written twice. The first one is the guest's vda.
    #[arg(long, value_name = "PATH[,ro]", value_parser = OsStringValueParser::new().try_map(|text| DiskSpec::parse(&text)))]
    #[serde(deserialize_with = "text::devices", skip_serializing_if = "Vec::is_empty")]
    pub disk: Vec<DiskSpec>,

    /// Network interface on this TAP; also ,mac=ADDRESS
    ///
    /// May be given several times. Written as `NAME[,mac=ADDRESS]`. The TAP exists and is this user's or group's. The guest's address is, for tapN,
    /// ba:ad:00:ca:fe:00 and N more, else one made of this host's machine-id, the machine's name (without one, its first
    /// disk's path) and the TAP's name: the same at every start.
    #[arg(long, value_name = "NAME")]
    #[serde(deserialize_with = "text::devices", skip_serializing_if = "Vec::is_empty")]
    pub tap: Vec<TapSpec>,

    /// Byte stream to the host: name=NAME,socket=PATH
    ///
    /// May be given several times. Written as `name=NAME,socket=PATH`: /dev/virtio-ports/NAME in the guest, the socket at PATH on the host, one client
    /// at a time. A comma in the path is written twice.
    #[arg(long, value_name = "name=,...", value_parser = OsStringValueParser::new().try_map(|text| PortSpec::parse(&text)))]
    #[serde(deserialize_with = "text::devices", skip_serializing_if = "Vec::is_empty")]
    pub port: Vec<PortSpec>,

    /// Memory: 512 (MiB), 512M, 2G [default: 512]
    #[arg(long, alias = "memory", value_name = "SIZE", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem: Option<MemSize>,

    /// Take this much of it back at the start
    ///
    /// The balloon gives the pages back to the host once the guest has its driver, and can be changed while it runs.
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonSize>,

    /// Number of processors [default: 1]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,

    /// Terminal on ttyS0 or hvc0 [default: ttyS0]
    ///
    /// The other console is there as well. With `hvc0` the kernel's messages come there as soon as it has the driver,
    /// which Debian's loads as a module.
    #[arg(long, value_name = "NAME", hide_possible_values = true, ignore_case = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleChoice>,

    /// Clock chip: none, utc or localtime [default: none]
    ///
    /// Linux needs none: kvm-clock gives it the right time from its first second on. The chip is for guests that
    /// know no KVM; `localtime` is for those which take it to show local time.
    #[arg(long, value_name = "CLOCK", hide_possible_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtc: Option<Rtc>,

    /// If the guest reboots: reboot, exit [default: reboot]
    #[arg(long, value_name = "WHAT", hide_possible_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_reboot: Option<OnReboot>,

    /// Make `minivmm stop NAME` and its like find it
    ///
    /// 1 to 63 of A-Z a-z 0-9 . _ -. The command makes a control socket of this name in $XDG_RUNTIME_DIR/minivmm, or in
    /// /run/minivmm. The library makes none.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<MachineName>,
}

impl Spec {
    /// A machine that boots this kernel, everything else by default.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Spec { kernel: Some(kernel.into()), ..Spec::default() }
    }

    /// The initial RAM disk to load, if any.
    pub fn initrd(&self) -> Option<&Path> {
        match &self.initrd {
            Some(Initrd::File(path)) => Some(path),
            Some(Initrd::None) | None => None,
        }
    }

    /// The kernel command line as far as the spec says it: [`DEFAULT_CMDLINE`] or what replaces it, then what is added,
    /// in front of a `--` whose followers are init's.
    /// What is found on the first disk comes on top: the root file system, the options of its boot loader.
    pub fn cmdline(&self) -> String {
        boot::cmdline::join(&[self.base_cmdline(), self.append.as_deref().unwrap_or_default()])
    }

    /// The same without what is added.
    pub(crate) fn base_cmdline(&self) -> &str {
        let default = match self.console() {
            ConsoleChoice::Ttys0 => DEFAULT_CMDLINE,
            ConsoleChoice::Hvc0 => DEFAULT_CMDLINE_HVC0,
        };
        self.cmdline.as_deref().unwrap_or(default).trim()
    }

    /// Memory.
    pub fn mem(&self) -> MemSize {
        self.mem.unwrap_or_default()
    }

    /// Number of processors.
    pub fn cpus(&self) -> Cpus {
        self.cpus.unwrap_or_default()
    }

    /// Which console the terminal gets.
    pub fn console(&self) -> ConsoleChoice {
        self.console.unwrap_or_default()
    }

    /// The clock chip.
    pub fn rtc(&self) -> Rtc {
        self.rtc.unwrap_or_default()
    }

    /// What happens when the guest reboots.
    pub fn on_reboot(&self) -> OnReboot {
        self.on_reboot.unwrap_or_default()
    }

    /// The paths in it, which a file counts from its own folder. Names every field: the compiler asks about a new one.
    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Spec {
            kernel,
            initrd,
            cmdline: _,
            append: _,
            disk,
            tap: _,
            port,
            mem: _,
            balloon: _,
            cpus: _,
            console: _,
            rtc: _,
            on_reboot: _,
            name: _,
        } = self;
        let initrd = match initrd {
            Some(Initrd::File(path)) => Some(path),
            Some(Initrd::None) | None => None,
        };
        let disks = disk.iter_mut().map(|disk| &mut disk.path);
        let sockets = port.iter_mut().map(|port| &mut port.socket);
        kernel.iter_mut().chain(initrd).chain(disks).chain(sockets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_the_default_until_replaced() {
        assert_eq!(Spec::new("k").cmdline(), DEFAULT_CMDLINE);
        assert_eq!(
            Spec::new("k").with_append(" quiet ").cmdline(),
            "console=ttyS0 panic=-1 pci=noearly quiet"
        );
        assert_eq!(Spec::new("k").with_cmdline("ro").with_append("quiet").cmdline(), "ro quiet");
        assert_eq!(Spec::new("k").with_cmdline("").cmdline(), "");
        assert_eq!(Spec::new("k").with_cmdline("").with_append("quiet").cmdline(), "quiet");
    }

    #[test]
    fn terminal_on_the_virtio_console_makes_it_the_last_console() {
        let spec = Spec::new("k").with_console(ConsoleChoice::Hvc0);
        assert_eq!(spec.cmdline(), DEFAULT_CMDLINE_HVC0);
        assert_eq!(spec.with_cmdline("ro").cmdline(), "ro");
    }
}
