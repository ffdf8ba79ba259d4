//! The description of a named port: a byte stream between guest and host.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::text::{Device, by_text};
use super::words::{DeviceError, Word, once, split};

const PORT: &str = "port";
const EXAMPLE: &str = "name=agent,socket=agent.sock";
/// The port that leads to the machine itself.
const GENERATION: &str = "org.minivmm.generation";

/// A port: `/dev/virtio-ports/NAME` in the guest, a Unix socket on the host. As text it is
/// `name=NAME,socket=PATH`, where a comma in the path is written twice. The one called `generation` leads to the machine itself:
/// see [`PortSpec::generation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PortTable", rename_all = "kebab-case")]
#[non_exhaustive]
pub struct PortSpec {
    /// Its name in the guest.
    pub name: PortName,
    /// The socket, which is created at the start; `None` for [`PortSpec::generation`] alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

/// As it is in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PortTable {
    name: PortName,
    socket: Option<PathBuf>,
}

impl TryFrom<PortTable> for PortSpec {
    type Error = &'static str;

    fn try_from(PortTable { name, socket }: PortTable) -> Result<Self, &'static str> {
        let port = PortSpec { name, socket };
        if port.socket.is_some() || port.is_generation() { Ok(port) } else { Err("missing field `socket`") }
    }
}

impl PortSpec {
    /// A port of this name on this socket.
    pub fn new(name: PortName, socket: impl Into<PathBuf>) -> Self {
        PortSpec { name, socket: Some(socket.into()) }
    }

    /// The port `org.minivmm.generation`, on which the machine says when its guest goes on from a saved state: a line
    /// `generation=HEX random=HEX time=SECONDS` with the new VM generation ID (16 bytes), 64 random bytes of the host's, and the host's time,
    /// which is left out if the guest's clock goes on from when it was saved. It is for guests without a driver for the VM generation
    /// ID. What nobody has read is replaced by the next line. As text it is `generation`.
    pub fn generation() -> Self {
        PortSpec { name: PortName(GENERATION.into()), socket: None }
    }

    /// Whether it leads to the machine itself.
    pub(crate) fn is_generation(&self) -> bool {
        self.socket.is_none() && self.name.as_str() == GENERATION
    }

    /// Parses the text of the command line. The path need not be UTF-8.
    ///
    /// # Errors
    /// [`DeviceError`] for a missing, unknown or wrong option.
    pub fn parse(text: &OsStr) -> Result<Self, DeviceError> {
        let (mut name, mut socket) = (None, None);
        if text == "generation" {
            return Ok(Self::generation());
        }
        for word in split(text) {
            let word = Word::parse(&word);
            match (word.name.as_str(), &word.value) {
                ("name", Some(_)) => once(&mut name, word.text().parse()?, PORT, "name")?,
                ("socket", Some(path)) => once(&mut socket, PathBuf::from(path), PORT, "socket")?,
                ("", None) => return Err(DeviceError::Empty("where an option should be")),
                _ => {
                    if word.written() == "generation" {
                        return Err(DeviceError::Generation);
                    }
                    let known = "`name=NAME` and `socket=PATH`, or `generation` alone";
                    return Err(DeviceError::Unknown { device: PORT, word: word.written(), known });
                }
            }
        }
        let missing = |word| DeviceError::Missing { device: PORT, word, example: EXAMPLE };
        let socket = socket.filter(|path| !path.as_os_str().is_empty());
        Ok(PortSpec {
            name: name.ok_or(missing("name=NAME"))?,
            socket: Some(socket.ok_or(missing("socket=PATH"))?),
        })
    }
}

impl Device for PortSpec {
    const EXAMPLE: &'static str = EXAMPLE;
}

impl FromStr for PortSpec {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        Self::parse(text.as_ref())
    }
}

/// Name of a port: a file name in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PortName(String);

impl PortName {
    /// Maximum length.
    pub const MAX: usize = 63;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PortName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let fits = (1..=Self::MAX).contains(&text.len())
            && !matches!(text, "." | "..")
            && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b','));
        if fits { Ok(PortName(text.into())) } else { Err(DeviceError::Port(text.into())) }
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

by_text!(PortName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_is_a_name_and_a_socket_in_any_order() {
        let port = PortSpec::new("org.qemu.guest_agent.0".parse().unwrap(), "/run/a,b.sock");
        assert_eq!("name=org.qemu.guest_agent.0,socket=/run/a,,b.sock".parse(), Ok(port.clone()));
        assert_eq!("socket=/run/a,,b.sock,name=org.qemu.guest_agent.0".parse(), Ok(port));
    }

    #[test]
    fn port_to_the_machine_itself_has_no_socket() {
        let port: PortSpec = "generation".parse().unwrap();
        assert!(port.is_generation());
        let json = "{\"name\":\"org.minivmm.generation\"}";
        assert_eq!(serde_json::to_string(&port).unwrap(), json);
        assert_eq!(serde_json::from_str::<PortSpec>(json).unwrap(), port);
        // Somebody else may serve a port of this name.
        let own = PortSpec::new(port.name, "/s");
        assert!(!own.is_generation());
        let none = serde_json::from_str::<PortSpec>("{\"name\":\"agent\"}").unwrap_err().to_string();
        assert!(none.contains("missing field `socket`"), "{none}");
        let error = "generation,socket=/s".parse::<PortSpec>().unwrap_err().to_string();
        assert!(error.contains("`--port generation` alone"), "{error}");
    }

    #[test]
    fn mistakes_are_told_with_what_could_be_said() {
        let mistake = |text: &str| text.parse::<PortSpec>().unwrap_err().to_string();
        assert!(mistake("name=a").contains("needs `socket=PATH`"));
        assert!(mistake("name=a,socket=").contains("needs `socket=PATH`"));
        assert!(mistake("socket=a").contains("name=agent,socket=agent.sock"));
        assert!(mistake("").contains("nothing where an option should be"));
        assert!(mistake("agent").contains("`name=NAME` and `socket=PATH`"));
        assert!(mistake("name=a,name=b,socket=c").contains("stands twice"));
        for name in ["", "a/b", "a b", "..", "ö", &"x".repeat(64)] {
            assert!(mistake(&format!("name={name},socket=s")).contains("1 to 63"), "{name}");
        }
    }
}
