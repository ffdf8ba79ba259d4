//! What connects a switch to the world beside its machines.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;

use super::options::join_trunks;
use super::{NatNetwork, PortOptions, PortTable};
use crate::spec::net::InterfaceName;
use crate::spec::words::{DeviceError, Word, split};

const UPLINK: &str = "uplink";
const KNOWN: &str = "the options of a port: `vlan=2`, `trunk=2+3`, `trunk=all`, `isolated`, `delay=20ms`, `jitter=5ms`, \
                     `loss=1%` and `rate=10mbit`; and of `user`: `subnet=10.0.5.0/24`, `forward=20022:vm0:22`, \
                     `host-loopback=on` and `restrict=on`";

/// An uplink of a switch. As text it is `KIND[,OPTION]...`, where a comma in a path is written twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uplink {
    /// What it leads to.
    pub(crate) link: UplinkLink,
    /// The options of its port.
    pub(crate) options: PortOptions,
}

/// What an uplink leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum UplinkLink {
    /// A network behind the host's sockets, which all machines share.
    User(NatNetwork),
    /// A TAP of the host.
    Tap(InterfaceName),
    /// A Unix socket with QEMU's bytes, which the switch makes.
    Socket(PathBuf),
}

impl Uplink {
    /// Parses the text of `--uplink`.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, DeviceError> {
        let mut words = join_trunks(split(text).into_iter());
        let kind = Word::parse(&words.next().unwrap_or_default());
        let mut link = match (kind.name.as_str(), &kind.value) {
            ("user", None) => UplinkLink::User(NatNetwork::default()),
            ("tap", Some(_)) => UplinkLink::Tap(kind.text().parse()?),
            ("socket", Some(path)) if !path.is_empty() => UplinkLink::Socket(path.into()),
            _ => return Err(DeviceError::UplinkKind(kind.written())),
        };
        let mut options = PortTable::default();
        for word in words.map(|word| Word::parse(&word)) {
            let is_own = |link: &mut UplinkLink| match link {
                UplinkLink::User(user) => user.set(&word),
                UplinkLink::Tap(_) | UplinkLink::Socket(_) => Ok(false),
            };
            match (word.name.as_str(), &word.value) {
                ("", None) => return Err(DeviceError::Empty("behind a comma")),
                _ if options.set(&word)? || is_own(&mut link)? => {}
                _ => return Err(DeviceError::Unknown { device: UPLINK, word: word.written(), known: KNOWN }),
            }
        }
        if let UplinkLink::User(user) = &link {
            user.check()?;
        }
        Ok(Uplink { link, options: options.try_into()? })
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.link {
            UplinkLink::User(_) => f.write_str("user"),
            UplinkLink::Tap(name) => write!(f, "tap={name}"),
            UplinkLink::Socket(path) => write!(f, "socket={}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uplink_has_a_kind_and_the_options_of_a_port() {
        let parse = |text: &str| Uplink::parse(OsStr::new(text));
        let tap = parse("tap=tap0,vlan=2").unwrap();
        assert_eq!(tap.link, UplinkLink::Tap("tap0".parse().unwrap()));
        assert_eq!(tap.options, "vlan=2".parse().unwrap());
        let socket = parse("socket=/a,,b,trunk=2,3").unwrap();
        assert_eq!(socket.link, UplinkLink::Socket("/a,b".into()));
        assert_eq!(socket.options, "trunk=2+3".parse().unwrap());
        let user = parse("user,subnet=10.0.5.0/24,delay=5ms").unwrap();
        parse("user,forward=20022:10.0.5.16:22,subnet=10.0.5.0/24").unwrap();
        assert!(matches!(user.link, UplinkLink::User(net) if net != NatNetwork::default()));
        for (wrong, said) in [
            ("", "no kind of uplink"),
            ("tap", "no kind of uplink"),
            ("bridge=br0", "no kind of uplink"),
            ("tap=a/b", "network interface"),
            ("tap=tap0,subnet=10.0.0.0/24", "an uplink has no option"),
            ("user,vlan=0", "VLAN"),
            ("user,", "behind a comma"),
            ("user,hostname=vm0", "no option"),
            ("user,forward=vm0", "20022:vm0:22"),
            ("user,forward", "20022:vm0:22"),
            ("user,forward=20022:10.0.5.16:22", "not in the subnet 10.0.2.0/24"),
            ("user,forward=20022:10.0.2.16:22,subnet=10.0.5.0/24", "write one like 10.0.5.15"),
            ("user,forward=20022:10.0.2.2:22", "the gateway"),
            ("user,forward=20022:10.0.2.3:53/udp", "the name server"),
            ("user,forward=20022:10.0.2.255:22", "for all"),
        ] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }
}
