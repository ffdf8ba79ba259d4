//! What a machine is made of: one struct for the command line, TOML files and the library.
//!
//! A new option is one field of [`Spec`]: its doc comment is its help text, its name is its flag and its key in a file. The
//! flags and the files need the feature `cli`.

mod build;
mod check;
mod cpus;
mod disk;
mod disk_check;
mod disk_limits;
mod disk_options;
mod disk_size;
mod error;
#[cfg(feature = "cli")]
mod file;
mod identity;
mod mac;
mod name;
mod net;
mod options;
#[cfg(feature = "cli")]
mod places;
mod port;
mod share;
mod share_origin;
mod size;
mod text;
mod uuid;
mod version;
mod words;

use std::path::{Path, PathBuf};

#[cfg(feature = "cli")]
use clap::builder::{OsStringValueParser, TypedValueParser};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(crate) use check::MOST_SHARES;
pub use cpus::Cpus;
pub use disk::{DiskQueues, DiskSerial, DiskSpec};
pub(crate) use disk_limits::limits;
pub use disk_limits::{DiskBps, DiskIops, DiskLimitsChange};
pub use disk_options::{DiskDiscard, OnFull};
pub use disk_size::DiskGrowth;
pub use diskimage::{Format as DiskFormat, UnknownFormat};
pub use error::SpecError;
pub use mac::MacAddress;
pub use name::MachineName;
pub use net::{
    Delay, HostName, Impairment, InterfaceName, Loss, Mtu, NetId, NetLink, NetSpec, PortForward, PortOptions,
    Protocol, Rate, Subnet, SwitchName, Trunk, UserNet, VlanId,
};
#[cfg(feature = "cli")]
pub(crate) use net::{ForwardedTo, GuestForward, NatNetwork, Uplink, UplinkLink};
pub use options::{ConsoleChoice, Initrd, MemBacking, OnReboot, Rtc};
pub use port::{PortName, PortSpec};
pub use share::{GuestFolder, ShareCache, ShareLocks, ShareOwner, ShareSpec, ShareTag};
pub use share_origin::ShareOrigin;
pub use size::{BalloonSize, MemSize, SizeError};
pub use uuid::MachineUuid;
pub use version::SpecVersion;
pub use words::DeviceError;

/// The default kernel command line. The first serial port is the console. A panic resets the guest at once, so that the
/// host sees it. `pci=noearly` saves 76 port accesses: the kernel would look for PCI devices through ports (CF8/CFC) that
/// this machine does not have.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1 pci=noearly";

/// The default kernel command line of a machine whose terminal has the virtio console. Linux writes to every console that
/// is named and uses the last one as `/dev/console` (admin-guide/serial-console.rst). The serial port stays on the list,
/// because only it works before the virtio driver is loaded and while the kernel panics.
pub const DEFAULT_CMDLINE_HVC0: &str = "console=ttyS0 console=hvc0 panic=-1 pci=noearly";

/// What a machine is made of.
///
/// An option that was not given is `None`; the method of the same name returns its default.
///
/// A `Spec` can be written and read with any self-describing format of serde, such as JSON. Relative paths count from the
/// working directory of the process that starts the machine.
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
// The first paragraph of a field's comment is its line in `--help`; the rest is for the manual page and docs/reference.md.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
#[serde(remote = "Self", default, deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Spec {
    /// The version of this format.
    #[cfg_attr(feature = "cli", arg(skip))]
    pub version: SpecVersion,

    /// Kernel [default: the disk's own]; also --initrd
    ///
    /// A bzImage (vmlinuz) or an ELF file (vmlinux). Without this option the first disk is searched: the default entry of
    /// its boot loader is booted, else its newest kernel.
    #[cfg_attr(feature = "cli", arg(long, value_name = "FILE"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk, or `none` [default: the disk's]
    ///
    /// Without this option the first disk is searched for the initrd that belongs to the kernel. `none` boots without one.
    /// A distribution's kernel has its disk and network drivers as modules, and needs the initrd that was made for it.
    #[cfg_attr(feature = "cli", arg(long, hide_short_help = true, value_name = "FILE"))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Initrd>,

    /// Kernel command line, instead of the default one
    ///
    /// The default is `console=ttyS0 panic=-1 pci=noearly`. It also replaces the options of the disk's boot loader entry.
    /// If it is given several times, the texts are joined by a space.
    #[cfg_attr(feature = "cli", arg(long, value_name = "TEXT", allow_hyphen_values = true, hide_short_help = true, action = clap::ArgAction::Append))]
    #[serde(deserialize_with = "text::joined", skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,

    /// Words to add to the kernel command line
    ///
    /// If it is given several times, the texts are joined by a space. In a file it is a text or a list of texts.
    #[cfg_attr(feature = "cli", arg(long, value_name = "TEXT", allow_hyphen_values = true, action = clap::ArgAction::Append))]
    #[serde(deserialize_with = "text::joined", skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,

    /// Image or device; ,overlay=FILE ,snapshot ,format=
    ///
    /// Written as `PATH[,OPTION]...`, once for each disk; the first one is the guest's vda. `ro`: the guest cannot write.
    /// `overlay=FILE`: the guest's writes go to the qcow2 image FILE, which is made if it is missing; PATH is only read, and may be
    /// the base of many machines. `snapshot`: the guest's writes are gone when the machine ends. `format=raw|qcow2`: format of
    /// PATH, by default qcow2 if it ends in `.qcow2`, else raw. `backing=FILE`, repeatable: a file outside of the image's
    /// folder that a qcow2 image may lie on. `serial=TEXT`: the disk's name in the guest's /dev/disk/by-id. `direct`: bypasses the
    /// host's page cache. `queues=N`: number of queues, by default the number of processors. `threads=N`: number of host threads
    /// that serve the queues, by default 1. `iops=N`, `bps=SIZE`: most operations and most bytes (`10M`) in a second.
    /// `discard=on|off|auto`: whether the guest can give space back to the host; `auto` leaves a preallocated image so.
    /// `on-full=report|pause`: without room on the host a write is an I/O error in the guest, or the machine waits, paused. A comma in
    /// a path is written twice.
    #[cfg_attr(feature = "cli", arg(long, value_name = "PATH[,ro]", value_parser = OsStringValueParser::new().try_map(|text| DiskSpec::parse(&text))))]
    #[serde(deserialize_with = "text::devices", skip_serializing_if = "Vec::is_empty")]
    pub disk: Vec<DiskSpec>,

    /// The network interfaces, in the guest's order. None is said by [`NetSpec::none`] too: on the command line a machine of
    /// which nothing is said has a user network.
    #[cfg_attr(feature = "cli", arg(skip))]
    #[serde(deserialize_with = "net_or_none", skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetSpec>,

    /// What a description has under `tap`, as before there was `net`: moved there as soon as it is read.
    #[cfg_attr(feature = "cli", arg(skip))]
    #[serde(rename = "tap", deserialize_with = "taps_or_none", skip_serializing)]
    pub(crate) old_taps: Vec<NetSpec>,

    /// Byte stream between the guest and a socket of the host
    ///
    /// Written as `name=NAME,socket=PATH`, once for each stream. The guest has it as /dev/virtio-ports/NAME. On the host it
    /// is a Unix socket at PATH, with one client at a time. A comma in the path is written twice. `--port generation` is a port on which the
    /// machine tells its guest that it was restored or cloned, for kernels without a driver for the VM generation ID: see `minivmm guest-helper`.
    #[cfg_attr(feature = "cli", arg(long, hide_short_help = true, value_name = "name=NAME,socket=PATH", value_parser = OsStringValueParser::new().try_map(|text| PortSpec::parse(&text))))]
    #[serde(deserialize_with = "text::devices", skip_serializing_if = "Vec::is_empty")]
    pub port: Vec<PortSpec>,

    /// Folder of the host for the guest: ~/src:/mnt/src
    ///
    /// Written as `DIR[:/MOUNT][,OPTION]...`, up to 24 times; the guest mounts it with `mount -t virtiofs NAME /mnt`, or by itself at
    /// `/MOUNT`, if it has systemd 254 or later. `tag=NAME`: by default
    /// `share0`, `share1`, `share2`. `ro`: the guest cannot write. `cache=auto|always|never`: what the guest knows of the files is good
    /// for a second (auto), for as long as it likes (always: for folders that nobody else changes), or not at all. `owner=map|UID[:GID]|xattr`:
    /// with `map` files of this user and of root are the guest's root's, and changes of owners are forgotten; with the numbers of a user of the
    /// guest this user's files are that one's, such as `owner=1000`; with `xattr` owners and
    /// permissions of the guest are kept in an extended attribute of each file. `locks=guest|host`: whether the host and other machines
    /// take part in the locks of the guest's processes. What the guest makes belongs to this user. A comma in a path is written twice.
    #[cfg_attr(feature = "cli", arg(long, value_name = "DIR[:/MOUNT]", value_parser = OsStringValueParser::new().try_map(|text| ShareSpec::parse(&text).map(|share| share.asked_by(ShareOrigin::Option("--share"))))))]
    #[serde(deserialize_with = "text::devices", skip_serializing_if = "Vec::is_empty")]
    pub share: Vec<ShareSpec>,

    /// Memory: 512 (MiB), 512M, 2G [default: 512]
    #[cfg_attr(
        feature = "cli",
        arg(long, alias = "memory", value_name = "SIZE", allow_hyphen_values = true)
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem: Option<MemSize>,

    /// Memory: anonymous or memfd [default: anonymous]
    ///
    /// `memfd`: the guest's memory is a file in memory. Other processes can map it, and it is saved faster if much of it was
    /// never used. It has huge pages only if the host's /sys/kernel/mm/transparent_hugepage/shmem_enabled is `advise` or
    /// `always`; the guest is slower without them.
    // `minivmm run --help` would not fit a screen.
    #[cfg_attr(
        feature = "cli",
        arg(long, value_name = "KIND", hide_possible_values = true, hide_short_help = true)
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_backing: Option<MemBacking>,

    /// Share equal pages with other guests
    ///
    /// Marks the guest's memory for the host's KSM, which keeps pages with equal contents once, across machines, and copies one when it is
    /// written. It saves memory where guests are alike, costs processor time of the host, and breaks up huge pages. A guest can find
    /// out what others have in their memory by the time that a write takes: only for guests that may know of each other. KSM is off
    /// until somebody switches it on: `minivmm doctor` says how. Not with `--mem-backing memfd`.
    #[cfg_attr(
        feature = "cli",
        arg(long, num_args = 0, default_missing_value = "true", hide_short_help = true)
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merge: Option<bool>,

    /// Memory to take back from the guest at its start
    ///
    /// The guest's balloon driver returns the pages to the host when it is loaded. The amount can be changed while the
    /// guest runs.
    #[cfg_attr(
        feature = "cli",
        arg(long, value_name = "SIZE", allow_hyphen_values = true, hide_short_help = true)
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonSize>,

    /// Number of processors, 1 to 255 [default: 1]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", allow_hyphen_values = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,

    /// Terminal's console: ttyS0, hvc0 [default: ttyS0]
    ///
    /// The machine has both consoles in either case. `hvc0` is also the kernel's last `console=`: its messages go there once
    /// the virtio driver is loaded, which is a module in Debian's kernel.
    #[cfg_attr(
        feature = "cli",
        arg(
            long,
            value_name = "NAME",
            hide_possible_values = true,
            hide_short_help = true,
            ignore_case = true
        )
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleChoice>,

    /// Clock chip: none, utc or localtime [default: none]
    ///
    /// Linux needs none: it has the right time from kvm-clock when it starts. The chip is for guests without kvm-clock;
    /// `localtime` is for guests that expect local time in it.
    #[cfg_attr(
        feature = "cli",
        arg(long, value_name = "CLOCK", hide_possible_values = true, hide_short_help = true)
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtc: Option<Rtc>,

    /// On its reboot: reboot, exit [default: reboot]
    ///
    /// `reboot` boots the guest again in the same process. `exit` ends the machine.
    #[cfg_attr(
        feature = "cli",
        arg(long, hide_short_help = true, value_name = "WHAT", hide_possible_values = true)
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_reboot: Option<OnReboot>,

    /// Name of the machine for verbs: `minivmm stop NAME`
    ///
    /// 1 to 63 of A-Z a-z 0-9 . _ -. The command makes a control socket of this name in $XDG_RUNTIME_DIR/minivmm, or in
    /// /run/minivmm. The library makes none.
    #[cfg_attr(feature = "cli", arg(long, value_name = "NAME", allow_hyphen_values = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<MachineName>,

    /// UUID of the machine [default: made of its name]
    ///
    /// The guest reads it as /sys/class/dmi/id/product_uuid, and a system without a machine ID takes it as that at its first boot
    /// (machine-id(5)). The default is the same at each start of a machine on one host: it is made of the machine's name, or else of its
    /// first disk.
    #[cfg_attr(feature = "cli", arg(long, value_name = "UUID", hide_short_help = true))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<MachineUuid>,
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

    /// What backs the memory on the host.
    pub fn mem_backing(&self) -> MemBacking {
        self.mem_backing.unwrap_or_default()
    }

    /// Whether equal pages are shared with other guests.
    pub fn merge(&self) -> bool {
        self.merge.unwrap_or_default()
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

    /// The network interfaces that the machine has, each with its name among the machine's parts.
    pub fn interfaces(&self) -> impl Iterator<Item = (NetId, &NetSpec)> {
        let nets = self.net.iter().filter(|net| net.link != NetLink::None);
        nets.enumerate().map(|(index, net)| (net.id.clone().unwrap_or_else(|| NetId::numbered(index)), net))
    }

    /// The shared folders, each with its tag.
    pub fn shares(&self) -> impl Iterator<Item = (ShareTag, &ShareSpec)> {
        let tag = |(index, share): (usize, &ShareSpec)| {
            share.tag.clone().unwrap_or_else(|| ShareTag::numbered(index))
        };
        self.share.iter().enumerate().map(move |(index, share)| (tag((index, share)), share))
    }

    /// The paths in it: those in a file count from its folder. Names every field, so that a new one is not forgotten.
    pub(crate) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Spec {
            version: _,
            kernel,
            initrd,
            cmdline: _,
            append: _,
            disk,
            net,
            old_taps: _,
            port,
            share,
            mem: _,
            mem_backing: _,
            merge: _,
            balloon: _,
            cpus: _,
            console: _,
            rtc: _,
            on_reboot: _,
            name: _,
            uuid: _,
        } = self;
        let initrd = match initrd {
            Some(Initrd::File(path)) => Some(path),
            Some(Initrd::None) | None => None,
        };
        let disks = disk.iter_mut().flat_map(DiskSpec::paths_mut);
        let sockets = port.iter_mut().filter_map(|port| port.socket.as_mut());
        let nets = net.iter_mut().flat_map(NetSpec::paths_mut);
        let shares = share.iter_mut().map(|share| &mut share.path);
        kernel.iter_mut().chain(initrd).chain(disks).chain(nets).chain(sockets).chain(shares)
    }
}

/// Once the machine is described, nothing is left of the old key.
impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut spec = Spec::deserialize(deserializer)?;
        let mut net = std::mem::take(&mut spec.old_taps);
        net.append(&mut spec.net);
        spec.net = net;
        Ok(spec)
    }
}

impl Serialize for Spec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Spec::serialize(self, serializer)
    }
}

/// The key `net`. An empty list says that there is no network.
fn net_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NetSpec>, D::Error> {
    text::devices(deserializer).map(or_none)
}

/// The key `tap`, likewise.
fn taps_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NetSpec>, D::Error> {
    net::taps(deserializer).map(or_none)
}

fn or_none(nets: Vec<NetSpec>) -> Vec<NetSpec> {
    if nets.is_empty() { vec![NetSpec::none()] } else { nets }
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
