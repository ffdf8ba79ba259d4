//! The syntax of devices on the command line: words separated by commas, such as `vm0.raw,ro,serial=s1`.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Why a text does not describe a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// An empty word.
    #[error("there is nothing {0} in it; a comma that belongs to a path is written twice: `,,`")]
    Empty(&'static str),
    /// An unknown option.
    #[error(
        "{} {device} has no option `{word}`; it has {known}, and a comma that belongs to a path is written twice: `,,`", article(.device)
    )]
    Unknown {
        /// The kind of device.
        device: &'static str,
        /// The option as written.
        word: String,
        /// The known options.
        known: &'static str,
    },
    /// An empty option of a port of a switch.
    #[error("one of the options is empty; write them as in `delay=20ms,loss=1%`")]
    EmptyPortOption,
    /// An unknown option of a port of a switch, none of which has a path.
    #[error("a port of a switch has no option `{word}`; it has {known}")]
    UnknownPortOption {
        /// The option as written.
        word: String,
        /// The known options.
        known: &'static str,
    },
    /// An option that is given twice.
    #[error("{} {device} has `{word}` once, and here it stands twice", article(.device))]
    Twice {
        /// The kind of device.
        device: &'static str,
        /// The option.
        word: &'static str,
    },
    /// A required option is missing.
    #[error("{} {device} needs `{word}`; write it as in `{example}`", article(.device))]
    Missing {
        /// The kind of device.
        device: &'static str,
        /// The option.
        word: &'static str,
        /// An example of a whole device.
        example: &'static str,
    },
    /// Not a serial number.
    #[error("`{0}` cannot be a disk's serial number, which is 1 to 20 printable ASCII characters")]
    Serial(String),
    /// Not a number of queues or threads.
    #[error("`{0}` is not a number of queues or threads; write a whole number from 1 to {max}", max = super::DiskQueues::MAX)]
    Queues(String),
    /// No answer to a host without room.
    #[error(
        "`{0}` is no answer to a host without room; write `on-full=report` for an I/O error in the guest, or `on-full=pause`"
    )]
    OnFull(String),
    /// Not whether space is given back.
    #[error("`{0}` is not `on`, `off` or `auto`, as `discard=` has it")]
    Discard(String),
    /// Not a limit of operations.
    #[error("`{0}` is not a number of operations a second; write a whole number from 1 to {max}", max = super::DiskIops::MAX)]
    Iops(String),
    /// Not a limit of bytes.
    #[error("`{0}` is not a number of bytes a second; write a size from 512 to 1P, such as `10M`")]
    Bps(String),
    /// Not the new size of a disk.
    #[error("`{0}` is not a size of a disk; write it as in `60G`, or `+20G` to add to what it has")]
    Growth(String),
    /// Not a new limit of a disk.
    #[error("`{0}` is no limit of a disk; write as in `iops=500,bps=10M`, and `off` for no limit")]
    DiskLimit(String),
    /// Not a format of disk images.
    #[error(transparent)]
    Format(#[from] diskimage::UnknownFormat),
    /// Not a name of a network interface.
    #[error(
        "`{0}` cannot be the name of a network interface, which is 1 to 15 characters without `/`, `:` or spaces"
    )]
    Interface(String),
    /// Not a MAC address.
    #[error("`{0}` is not a MAC address; write six bytes in hexadecimal, such as `ba:ad:00:ca:fe:02`")]
    Mac(String),
    /// A MAC address that an interface cannot have.
    #[error(
        "`{0}` cannot be the MAC address of an interface: it {1}; `02:00:00:00:00:01` is one of those for local use"
    )]
    MacKind(String, &'static str),
    /// Not a kind of network.
    #[error(
        "`{0}` is no kind of network; the kinds are `user` (NAT), `switch=NAME`, `tap=NAME` (also for a bridge of the host), \
         `socket=PATH`, `dgram=LOCAL:REMOTE` and `none`"
    )]
    NetKind(String),
    /// Not a kind of uplink.
    #[error("`{0}` is no kind of uplink; the kinds are `user`, `tap=NAME` and `socket=PATH`")]
    UplinkKind(String),
    /// A table that names no kind of network, or several.
    #[error("a network interface is one of `user`, `switch`, `tap`, `socket`, `dgram` and `none`")]
    NetKinds,
    /// An option of what is no interface.
    #[error("`none` has no options, and has {0} here")]
    NoOptions(String),
    /// Not a pair of sockets.
    #[error(
        "`{0}` are not two sockets; write their paths as in `dgram=a.sock:b.sock`, and in a file as \
         `dgram = {{ local = \"a.sock\", remote = \"b.sock\" }}` if there is a colon in one"
    )]
    Dgram(String),
    /// A path without a character.
    #[error("the path of `{0}` is empty")]
    EmptyPath(&'static str),
    /// `listen` of another kind than `socket`.
    #[error("`listen` belongs to `socket`, and to no other kind of network")]
    Listen,
    /// An option that stands without its value.
    #[error("`{word}` needs a value: {example}")]
    NeedsValue {
        /// The option as written.
        word: String,
        /// An example.
        example: &'static str,
    },
    /// The name of a TAP behind `tap=`, where a name stands alone.
    #[error("`tap={0}` is not the name of a TAP; write `--tap {0}` or `--net tap={0}`")]
    TapWord(String),
    /// Neither on nor off.
    #[error("`{0}` is not `on` or `off`")]
    Switch(String),
    /// Not a size of a packet.
    #[error("`{0}` is not an MTU; write a number of bytes from 68 to 65535")]
    Mtu(String),
    /// Not a subnet.
    #[error(
        "`{0}` is not a subnet for guests; write its first address and its bits (8 to 27), such as `10.0.2.0/24`"
    )]
    Subnet(String),
    /// Not a name of a host.
    #[error("`{0}` cannot be a host's name, which is 1 to 63 letters, digits, `-` and `.`")]
    HostName(String),
    /// Not a forward.
    #[error(
        "`{text}` is not a forward: {why}; write the host's port and the guest's as in `5555:22`, `0.0.0.0:8080:80`, \
         `[::1]:8080:80` or `5353:53/udp`"
    )]
    Forward {
        /// What was written.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// Not a forward to one of several machines.
    #[error(
        "`{0}` is not a forward to a machine of a switch; write the host's port, the machine's name or address and its port as \
         in `20022:vm0:22`, `20022:10.0.2.16:22` or `0.0.0.0:20022:vm0:22`"
    )]
    GuestForward(String),
    /// A forward to an address of a network that no machine of it can have.
    #[error(
        "`forward={forward}` leads to an address that no machine can have: {why}; write one like {example}, or a machine's name"
    )]
    GuestAddress {
        /// The forward.
        forward: String,
        /// Why not.
        why: String,
        /// An address that machines can have.
        example: std::net::Ipv4Addr,
    },
    /// A forward from an address where no program can listen.
    #[error(
        "`{0}` is a multicast or broadcast address, where nothing can listen; write an address of this host, or leave it out \
         for 127.0.0.1"
    )]
    ForwardAddress(std::net::IpAddr),
    /// Not a name of a network interface among the machine's parts.
    #[error(
        "`{0}` cannot be the id of a network interface, which is 1 to 15 letters, digits, `_` and `-`, begins with a letter, \
         and is not the name of another part such as `vda` or `serial0`"
    )]
    NetId(String),
    /// Not a name of a port.
    #[error(
        "`{0}` cannot be the name of a port, which is 1 to 63 printable ASCII characters without `/`, `,` or spaces"
    )]
    Port(String),
    /// Options of the port of the VM generation ID.
    #[error("the port `generation` has no options: write `--port generation` alone")]
    Generation,
    /// Not a tag of a shared folder.
    #[error(
        "`{0}` cannot be the tag of a share, which is 1 to 36 printable ASCII characters without `/`, `,`, `#` or spaces"
    )]
    Tag(String),
    /// Not a folder of a guest.
    #[error(
        "`{0}` cannot be where a guest mounts a share; write an absolute path of the guest without `.`, `..`, colons and commas, such as \
         `/mnt/work`"
    )]
    GuestFolder(String),
    /// An option of a shared folder as another flag has it.
    #[error("`{written}`: options of a share follow a comma; write `{meant}`")]
    ShareColon {
        /// The text.
        written: String,
        /// What is meant.
        meant: String,
    },
    /// Not how long a guest uses what it knows.
    #[error(
        "`{0}` is not how a guest caches a share; write `cache=auto`, `cache=always` if nobody else changes the folder, or `cache=never`"
    )]
    Cache(String),
    /// Not who takes part in locks.
    #[error(
        "`{0}` is not who takes part in the locks of a share; write `locks=guest`, or `locks=host` for the host's processes and other machines"
    )]
    Locks(String),
    /// Not whom files belong to.
    #[error(
        "`{0}` is not whom the files of a share belong to; write `owner=map`, `owner=UID:GID` for a user of the guest by numbers, as `id` there shows them, or `owner=xattr` to keep the guest's owners in attributes"
    )]
    Owner(String),
    /// Not a name of a switch.
    #[error(
        "`{0}` cannot be the name of a switch, which is 1 to 63 letters, digits, `.`, `_` and `-`, and begins with a letter, a \
         digit or `_`"
    )]
    SwitchName(String),
    /// A word of `minivmm switch` in place of a name.
    #[error("`{0}` cannot be the name of a switch: it is a word of `minivmm switch`; choose another name")]
    SwitchReserved(String),
    /// Not a VLAN.
    #[error("`{0}` is not a VLAN; write a number from 1 to 4094")]
    Vlan(String),
    /// Not the VLANs of a trunk.
    #[error(
        "`{0}` are not the VLANs of a trunk; write numbers from 1 to 4094 as in `trunk=2+3`, or `trunk=all`"
    )]
    Trunk(String),
    /// A port that would be of two kinds.
    #[error(
        "`vlan` and `trunk` exclude each other: a port is in one VLAN and its frames have no tag, or it is a trunk and its frames \
         are tagged"
    )]
    VlanAndTrunk,
    /// Options of a port of a switch, on another kind of network.
    #[error(
        "`vlan`, `trunk`, `isolated`, `secure`, `delay`, `jitter`, `loss` and `rate` belong to `switch`, and to no other kind of network"
    )]
    PortOptions,
    /// Not a delay.
    #[error("`{0}` is not a delay; write a time up to 10 s with its unit, such as `20ms`, `500us` or `1.5s`")]
    Delay(String),
    /// Not a share of frames.
    #[error(
        "`{0}` is not a loss; write a percentage with up to four decimal places, such as `1%` or `0.05%`"
    )]
    Loss(String),
    /// Not a rate.
    #[error(
        "`{0}` is not a rate; write bits a second from `1kbit` to `1000gbit`, such as `10mbit`, or `0` for no limit"
    )]
    Rate(String),
    /// Not a name of a machine.
    #[error(
        "`{0}` cannot be the name of a machine, which is 1 to 63 letters, digits, `.`, `_` and `-`, and begins with \
         a letter, a digit or `_`"
    )]
    Machine(String),
    /// Not a UUID of a machine.
    #[error(
        "`{0}` cannot be the UUID of a machine, which is written as in `5b2c8e9a-31f0-4a77-9d0e-6a1c2b3d4e5f`, and is neither zero nor \
         all ones; `uuidgen` makes one"
    )]
    Uuid(String),
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

/// One word: a flag, or an option with its value.
pub(super) struct Word {
    pub(super) name: String,
    pub(super) value: Option<OsString>,
}

/// Splits a text at its commas. Two commas in a row are one comma of the word.
pub(super) fn split(text: &OsStr) -> Vec<OsString> {
    let mut words = vec![Vec::new()];
    let mut bytes = text.as_bytes().iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b',' && bytes.next_if_eq(&b',').is_none() {
            words.push(Vec::new());
        } else if let Some(word) = words.last_mut() {
            word.push(byte);
        }
    }
    words.into_iter().map(OsString::from_vec).collect()
}

impl Word {
    /// Splits a word at its first `=`.
    pub(super) fn parse(word: &OsStr) -> Self {
        let bytes = word.as_bytes();
        let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => bytes.split_at(at),
            None => (bytes, [].as_slice()),
        };
        let value = value.split_first().map(|(_, value)| OsString::from_vec(value.to_vec()));
        Word { name: String::from_utf8_lossy(name).into_owned(), value }
    }

    /// The value as text. Callers accept no value that is not UTF-8, so replacement characters appear in messages only.
    pub(super) fn text(&self) -> String {
        self.value.as_deref().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The whole word, for messages.
    pub(super) fn written(&self) -> String {
        match &self.value {
            Some(value) => format!("{}={}", self.name, value.to_string_lossy()),
            None => self.name.clone(),
        }
    }
}

/// Sets `value`, which must not be set yet.
pub(super) fn once<T>(
    place: &mut Option<T>,
    value: T,
    device: &'static str,
    word: &'static str,
) -> Result<(), DeviceError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(DeviceError::Twice { device, word }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comma_written_twice_belongs_to_the_word() {
        let words = |text: &str| -> Vec<String> {
            split(OsStr::new(text)).into_iter().map(|word| word.into_string().unwrap()).collect()
        };
        assert_eq!(words("a,b"), ["a", "b"]);
        assert_eq!(words("a,,b"), ["a,b"]);
        assert_eq!(words("a,,,b"), ["a,", "b"]);
        assert_eq!(words("a,"), ["a", ""]);
        assert_eq!(words(""), [""]);
    }

    #[test]
    fn value_starts_at_the_first_equals_sign() {
        let word = Word::parse(OsStr::new("socket=/a=b"));
        assert_eq!((word.name.as_str(), word.text().as_str()), ("socket", "/a=b"));
        assert_eq!(Word::parse(OsStr::new("ro")).value, None);
        assert_eq!(Word::parse(OsStr::new("ro=")).value, Some(OsString::new()));
    }
}
