//! The description of a network interface: what it is connected to, and what all kinds have.

mod forward;
mod interface;
mod switch;
mod table;
mod tap;
mod user;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use forward::{PortForward, Protocol};
pub use interface::{Mtu, NetId};
pub use switch::{Delay, Impairment, Loss, PortOptions, Rate, SwitchName, Trunk, VlanId};
#[cfg(feature = "cli")]
pub(crate) use switch::{ForwardedTo, GuestForward, NatNetwork, Uplink, UplinkLink};
pub use tap::InterfaceName;
pub(super) use tap::taps;
pub use user::{HostName, Subnet, UserNet};

use super::mac::MacAddress;
use super::text::Device;
use super::words::{DeviceError, Word, once, split};
use switch::{PortTable, join_trunks};
use table::Table;

const NET: &str = "network interface";

/// The options that all kinds have, behind those of one kind.
macro_rules! known {
    ($own:literal) => {
        concat!($own, "`mac=ADDRESS`, `mtu=BYTES`, `pcap=FILE` and `id=NAME`")
    };
}

/// A network interface of the guest. As text it is `KIND[,OPTION]...`, where a comma in a path is written twice.
///
/// ```
/// use minivmm::spec::{NetLink, NetSpec};
///
/// let net: NetSpec = "user,subnet=10.0.5.0/24,mac=02:00:00:00:00:01".parse()?;
/// assert!(matches!(net.link, NetLink::User(_)));
/// # Ok::<(), minivmm::spec::DeviceError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Table", into = "Table")]
#[non_exhaustive]
pub struct NetSpec {
    /// What it is connected to.
    pub link: NetLink,
    /// The guest's address; by default computed by [`crate::spec::Spec::settled`].
    pub mac: Option<MacAddress>,
    /// Largest packet that the guest is told of, without its Ethernet header; by default that of the link.
    pub mtu: Option<Mtu>,
    /// File for a copy of every frame, in pcapng.
    pub pcap: Option<PathBuf>,
    /// Its name among the machine's parts; by default `net0`, `net1` and so on.
    pub id: Option<NetId>,
}

/// What a network interface is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetLink {
    /// A network of its own behind the host's sockets.
    User(UserNet),
    /// A TAP of the host, which must exist.
    Tap(InterfaceName),
    /// A Unix stream socket: each frame behind its length, four bytes in big-endian order.
    Socket {
        /// The socket.
        path: PathBuf,
        /// Whether the machine makes the socket; otherwise it connects to it.
        listen: bool,
    },
    /// A pair of Unix datagram sockets, a frame in each datagram.
    Dgram {
        /// The machine's socket, which it makes.
        local: PathBuf,
        /// The other end's.
        remote: PathBuf,
    },
    /// A virtual switch of this user, `minivmm switch`.
    Switch {
        /// The switch.
        name: SwitchName,
        /// The machine's port there.
        port: PortOptions,
    },
    /// No interface: the machine has no network.
    None,
}

impl NetLink {
    /// The word of the command line.
    pub fn kind(&self) -> &'static str {
        match self {
            NetLink::User(_) => "user",
            NetLink::Tap(_) => "tap",
            NetLink::Socket { .. } => "socket",
            NetLink::Dgram { .. } => "dgram",
            NetLink::Switch { .. } => "switch",
            NetLink::None => "none",
        }
    }
}

impl fmt::Display for NetLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetLink::User(_) => f.write_str("user"),
            NetLink::Tap(name) => name.fmt(f),
            NetLink::Socket { path, listen: false } => write!(f, "socket {}", path.display()),
            NetLink::Socket { path, listen: true } => write!(f, "listens on {}", path.display()),
            NetLink::Dgram { local, remote } => {
                write!(f, "datagrams from {} to {}", local.display(), remote.display())
            }
            NetLink::Switch { name, port } if port.is_empty() => write!(f, "switch {name}"),
            NetLink::Switch { name, port } => write!(f, "switch {name} ({port})"),
            NetLink::None => f.write_str("none"),
        }
    }
}

impl NetSpec {
    /// An interface on this link.
    pub fn new(link: NetLink) -> Self {
        NetSpec { link, mac: None, mtu: None, pcap: None, id: None }
    }

    /// An interface with a network of its own behind the host's sockets.
    pub fn user() -> Self {
        Self::new(NetLink::User(UserNet::default()))
    }

    /// An interface on this TAP.
    pub fn tap(name: InterfaceName) -> Self {
        Self::new(NetLink::Tap(name))
    }

    /// An interface on the virtual switch of this name, on a port without options.
    pub fn switch(name: SwitchName) -> Self {
        Self::new(NetLink::Switch { name, port: PortOptions::default() })
    }

    /// No interface.
    pub fn none() -> Self {
        Self::new(NetLink::None)
    }

    /// Sets the address.
    #[must_use]
    pub fn with_mac(self, mac: MacAddress) -> Self {
        NetSpec { mac: Some(mac), ..self }
    }

    /// Sets the largest packet.
    #[must_use]
    pub fn with_mtu(self, mtu: Mtu) -> Self {
        NetSpec { mtu: Some(mtu), ..self }
    }

    /// Sets the file for a copy of every frame.
    #[must_use]
    pub fn with_pcap(self, file: impl Into<PathBuf>) -> Self {
        NetSpec { pcap: Some(file.into()), ..self }
    }

    /// Sets its name among the machine's parts.
    #[must_use]
    pub fn with_id(self, id: NetId) -> Self {
        NetSpec { id: Some(id), ..self }
    }

    /// The guest's address if it is given, or follows from the TAP's number.
    pub(crate) fn known_mac(&self) -> Option<MacAddress> {
        self.mac.or_else(|| match &self.link {
            NetLink::Tap(name) => MacAddress::numbered(name),
            _ => None,
        })
    }

    /// The user network, if it is one.
    pub fn user_net(&self) -> Option<&UserNet> {
        if let NetLink::User(user) = &self.link { Some(user) } else { None }
    }

    /// The paths in it.
    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let [one, other] = match &mut self.link {
            NetLink::Socket { path, .. } => [Some(path), None],
            NetLink::Dgram { local, remote } => [Some(local), Some(remote)],
            NetLink::User(_) | NetLink::Tap(_) | NetLink::Switch { .. } | NetLink::None => [None, None],
        };
        one.into_iter().chain(other).chain(&mut self.pcap)
    }

    /// Parses the text of the command line. A path need not be UTF-8.
    ///
    /// # Errors
    /// [`DeviceError`] for an unknown kind, or a missing, unknown or wrong option.
    pub fn parse(text: &OsStr) -> Result<Self, DeviceError> {
        let mut words = split(text).into_iter();
        let kind = Word::parse(&words.next().unwrap_or_default());
        let needs = |example| Err(DeviceError::NeedsValue { word: kind.written(), example });
        let link = match (kind.name.as_str(), &kind.value) {
            ("user", None) => NetLink::User(UserNet::default()),
            ("none", None) => NetLink::None,
            ("tap", Some(_)) => NetLink::Tap(kind.text().parse()?),
            ("switch", Some(_)) => return Self::parse_switch(kind.text().parse()?, words),
            ("socket", Some(path)) if !path.is_empty() => {
                NetLink::Socket { path: path.into(), listen: false }
            }
            ("dgram", Some(sockets)) => {
                let (local, remote) = table::pair(sockets)?;
                NetLink::Dgram { local, remote }
            }
            ("tap", None) => return needs("tap=tap2"),
            ("switch", None) => return needs("switch=lab"),
            ("socket", _) => return needs("socket=wire.sock"),
            ("dgram", None) => return needs("dgram=a.sock:b.sock"),
            _ => return Err(DeviceError::NetKind(kind.written())),
        };
        Self::new(link).with_words(words.map(|word| Word::parse(&word)))
    }

    /// Parses the text of `--tap`: the name of a TAP, and options.
    ///
    /// # Errors
    /// [`DeviceError`] for an unknown or wrong option.
    pub fn parse_tap(text: &OsStr) -> Result<Self, DeviceError> {
        let mut words = split(text).into_iter();
        let name = words.next().unwrap_or_default();
        let name = name.to_string_lossy();
        if let Some(name) = name.strip_prefix("tap=") {
            return Err(DeviceError::TapWord(name.into()));
        }
        let net = NetSpec::tap(name.parse()?);
        net.with_words(words.map(|word| Word::parse(&word)))
    }

    /// Parses the options of a switch's port and of the interface.
    fn parse_switch(name: SwitchName, words: impl Iterator<Item = OsString>) -> Result<Self, DeviceError> {
        let mut port = PortTable::default();
        let mut others = Vec::new();
        for word in join_trunks(words) {
            let word = Word::parse(&word);
            if !port.set(&word)? {
                others.push(word);
            }
        }
        Self::new(NetLink::Switch { name, port: port.try_into()? }).with_words(others.into_iter())
    }

    fn with_words(mut self, words: impl Iterator<Item = Word>) -> Result<Self, DeviceError> {
        for word in words {
            let NetSpec { link, mac, mtu, pcap, id } = &mut self;
            if matches!(link, NetLink::None) {
                return Err(DeviceError::NoOptions(word.written()));
            }
            match (word.name.as_str(), &word.value) {
                ("mac", Some(_)) => once(mac, word.text().parse()?, NET, "mac")?,
                ("mtu", Some(_)) => once(mtu, word.text().parse()?, NET, "mtu")?,
                ("id", Some(_)) => once(id, word.text().parse()?, NET, "id")?,
                ("pcap", Some(file)) if file.is_empty() => return Err(DeviceError::EmptyPath("pcap")),
                ("pcap", Some(file)) => once(pcap, file.into(), NET, "pcap")?,
                ("", None) => return Err(DeviceError::Empty("behind a comma")),
                _ => link.set(&word)?,
            }
        }
        Ok(self)
    }
}

impl NetLink {
    /// Sets an option that this kind alone has.
    fn set(&mut self, word: &Word) -> Result<(), DeviceError> {
        let known = match (self, word.name.as_str(), &word.value) {
            (NetLink::User(user), ..) => {
                if user.set(word)? {
                    return Ok(());
                }
                known!(
                    "`subnet=`, `host-loopback=on`, `restrict=on`, `hostname=NAME`, `forward=HOST:GUEST`, "
                )
            }
            (NetLink::Socket { listen, .. }, "listen", None) => {
                if std::mem::replace(listen, true) {
                    return Err(DeviceError::Twice { device: NET, word: "listen" });
                }
                return Ok(());
            }
            (NetLink::Socket { .. }, ..) => known!("`listen`, "),
            (NetLink::Switch { .. }, ..) => known!(
                "`vlan=2`, `trunk=2+3`, `trunk=all`, `isolated`, `secure=on`, `delay=20ms`, `jitter=5ms`, `loss=1%`, \
                 `rate=10mbit` (the last four also as `delay-in=` and `delay-out=`), "
            ),
            _ => known!(""),
        };
        Err(DeviceError::Unknown { device: NET, word: word.written(), known })
    }
}

impl Device for NetSpec {
    const EXAMPLE: &'static str = "user";
}

impl FromStr for NetSpec {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        Self::parse(text.as_ref())
    }
}

#[cfg(test)]
mod tests;
