//! Errors of a [`Spec`](super::Spec).

use std::io;
use std::path::PathBuf;

use super::{
    GuestFolder, InterfaceName, MacAddress, MemSize, Mtu, NetId, PortForward, PortName, ShareTag, Subnet,
};
use crate::shown::path as shown;

/// Why a [`Spec`](super::Spec) cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The machine has neither a kernel nor a disk to find one on.
    #[error(
        "no kernel was named, and there is no disk to find one on; give the disk of a guest with `--disk vm0.raw`, \
         or a kernel with `--kernel /boot/vmlinuz-VERSION`"
    )]
    NoKernel,
    /// The file cannot be read.
    #[error("the machine's file {path} cannot be read", path = shown(path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the host.
        source: io::Error,
    },
    /// The file is not TOML, or has a wrong key or value.
    #[error("{path}, line {line}: {message}", path = shown(path))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Line of the mistake, counted from 1.
        line: usize,
        /// What is wrong, and what is expected.
        message: String,
    },
    /// A version of the format that is not known.
    #[error(
        "version {found} of the format of a machine's description is not known here; this minivmm reads version {known}: use \
         the minivmm that wrote it, or describe the machine with `version = {known}`",
        known = super::SpecVersion::CURRENT.get()
    )]
    Version {
        /// The version that was found.
        found: u32,
    },
    /// A path that is not UTF-8, which TOML cannot hold.
    #[error("this machine cannot be written as TOML; its paths must be UTF-8")]
    Unwritable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Too many devices of one kind.
    #[error("{asked} times `{flag}` were given, and a machine has {max} at most")]
    TooMany {
        /// The option.
        flag: &'static str,
        /// The number that was given.
        asked: usize,
        /// The maximum.
        max: usize,
    },
    /// The same image twice, and not both times read-only.
    #[error(
        "the disk {path} was given twice, and a guest that writes to a disk under two names destroys it; \
         give it once, or both times with `,ro`", path = shown(path)
    )]
    DiskTwice {
        /// The image.
        path: PathBuf,
    },
    /// Two disks with one overlay.
    #[error(
        "two disks write to the image {path}, which would destroy it; give each an overlay of its own with `,overlay=FILE`",
        path = shown(path)
    )]
    OverlayTwice {
        /// The image.
        path: PathBuf,
    },
    /// A disk is written, and another one lies on it.
    #[error(
        "the image {path} is written by one disk and is below another, which would be destroyed; give the first an overlay too \
         (`,overlay=FILE`), or make it `,snapshot` or `,ro`", path = shown(path)
    )]
    BackingWritten {
        /// The image.
        path: PathBuf,
    },
    /// An overlay on itself.
    #[error("{path} cannot be its own overlay; give another file with `,overlay=FILE`", path = shown(path))]
    OverlayOnItself {
        /// The image.
        path: PathBuf,
    },
    /// A disk that is only read, with something that takes what is written.
    #[error(
        "the disk {path} has `ro` and `{word}`, which exclude each other: {word} takes what the guest writes, and with `ro` it \
         writes nothing; leave out one of them", path = shown(path)
    )]
    ReadOnlyAnd {
        /// The image.
        path: PathBuf,
        /// The other option.
        word: &'static str,
    },
    /// Backing files of an image that has none.
    #[error(
        "the disk {path} is raw and lies on no other file, so it has no `backing`; leave that out, or say `format=qcow2` if it is \
         such an image", path = shown(path)
    )]
    BackingOfRaw {
        /// The image.
        path: PathBuf,
    },
    /// The same TAP twice.
    #[error("the TAP {0} was given twice; each network interface needs a TAP of its own")]
    TapTwice(InterfaceName),
    /// `none` beside an interface.
    #[error(
        "`none` stands alone: a machine without a network has no other interface and no forward; leave out `none`, or the others"
    )]
    NoneAndOthers,
    /// The same id twice.
    #[error("two network interfaces are called {0}; give one of them another with `,id=NAME`")]
    NetTwice(NetId),
    /// Two forwards of one port of the host.
    #[error("the forwards {one} and {other} listen on the same port of the host; give one of them another")]
    ForwardTwice {
        /// The first.
        one: PortForward,
        /// The second.
        other: PortForward,
    },
    /// Two user networks with the same addresses.
    #[error(
        "two user networks have the same addresses, {one} and {other}: give one of them another with `,subnet={free}`"
    )]
    SubnetTwice {
        /// The first.
        one: Subnet,
        /// The second.
        other: Subnet,
        /// One that is free.
        free: Subnet,
    },
    /// A user network with packets that are too small for IPv6.
    #[error("a user network has IPv6, which needs an MTU of {min} or more, and `mtu={mtu}` is less", min = super::check::IPV6_MTU, mtu = .0.get())]
    UserMtu(Mtu),
    /// Frames on standard output.
    #[error(
        "`pcap=-` would mix frames and the guest's console; give a file, or send the frames of the running machine to a program: \
         `minivmm capture NAME -w -`"
    )]
    PcapStandard,
    /// The same file for the frames of two interfaces.
    #[error("two network interfaces write their frames to the file {path}; give each a file of its own", path = shown(path))]
    PcapTwice {
        /// The file.
        path: PathBuf,
    },
    /// The same address twice.
    #[error("two network interfaces have the MAC address {0}; give one of them another with `,mac=ADDRESS`")]
    MacTwice(MacAddress),
    /// The same name twice.
    #[error("two ports are called {0}; give each a name of its own")]
    PortTwice(PortName),
    /// The same tag twice.
    #[error("two shares have the tag {0}; give one of them another with `,tag=NAME`")]
    TagTwice(ShareTag),
    /// Two folders at one path of the guest.
    #[error(
        "two shares have the mount `{0}`, where the guest would see one of them only; give one of them another path"
    )]
    MountTwice(GuestFolder),
    /// A folder would hide what every guest needs.
    #[error(
        "a share mounted at `{mount}` would cover {what}; name another path of the guest, such as `/mnt{mount}`"
    )]
    MountCovers {
        /// The path.
        mount: GuestFolder,
        /// What is there.
        what: &'static str,
    },
    /// The same socket twice.
    #[error("two ports or network interfaces have the socket {path}; give each a socket of its own", path = shown(path))]
    SocketTwice {
        /// The socket.
        path: PathBuf,
    },
    /// A path that is too long for a socket.
    #[error(
        "the path of the socket {path} is longer than a socket's can be ({max} bytes); give a shorter one, \
         such as a relative one", path = shown(path), max = super::check::SOCKET_PATH_MAX
    )]
    SocketPath {
        /// The socket.
        path: PathBuf,
    },
    /// The host merges private memory only.
    #[error(
        "the host shares no pages of memory that other processes can map; leave out `--merge` or `--mem-backing memfd`"
    )]
    MergedMemfd,
    /// The balloon would leave no memory to the guest.
    #[error("a balloon of {balloon} leaves a guest of {mem} no memory; give it less with `--balloon`")]
    Balloon {
        /// The size of the balloon.
        balloon: super::BalloonSize,
        /// The memory of the guest.
        mem: MemSize,
    },
}
