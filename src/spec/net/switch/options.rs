//! The options of a port, as words and as keys.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Delay, Impairment, Loss, Rate, Trunk, VlanId};
use crate::spec::words::{DeviceError, Word, once, split};

const PORT: &str = "port of a switch";
const KNOWN: &str = "`vlan=2`, `trunk=2+3`, `trunk=all`, `isolated`, `secure=on`, `delay=20ms`, `jitter=5ms`, `loss=1%` and \
                     `rate=10mbit`, the last four also as `delay-in=` (to the guest) and `delay-out=` (from it)";

/// The options of a port of a switch, or a change to them: what is `None` was not said.
///
/// As text they are the words of the command line, such as `vlan=2,delay=20ms`. As keys and words an impairment has three names:
/// `delay` for both directions, `delay-in` for frames to the guest, `delay-out` for those from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PortTable", into = "PortTable")]
#[non_exhaustive]
pub struct PortOptions {
    /// The VLAN of an access port, whose frames are without a tag; by default [`VlanId::DEFAULT`].
    pub vlan: Option<VlanId>,
    /// The VLANs of a trunk; excludes `vlan`.
    pub trunk: Option<Trunk>,
    /// Whether frames pass between this port and others that are not isolated, only.
    pub isolated: Option<bool>,
    /// Whether frames from another address than the guest's are dropped.
    pub secure: Option<bool>,
    /// What befalls frames to the guest.
    pub to_guest: Impairment,
    /// What befalls frames from the guest.
    pub from_guest: Impairment,
}

impl PortOptions {
    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes over what `change` says: a VLAN makes an access port of a trunk, and the reverse.
    pub fn apply(&mut self, change: &Self) {
        if change.vlan.is_some() || change.trunk.is_some() {
            (self.vlan, self.trunk) = (change.vlan, change.trunk.clone());
        }
        self.isolated = change.isolated.or(self.isolated);
        self.secure = change.secure.or(self.secure);
        self.to_guest.apply(change.to_guest);
        self.from_guest.apply(change.from_guest);
    }
}

/// A word that is on or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bool(FlagVisitor)
    }
}

struct FlagVisitor;

impl Visitor<'_> for FlagVisitor {
    type Value = Flag;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("true or false")
    }

    fn visit_bool<E: de::Error>(self, on: bool) -> Result<Flag, E> {
        Ok(Flag(on))
    }
}

impl FromStr for Flag {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text {
            "on" => Ok(Flag(true)),
            "off" => Ok(Flag(false)),
            _ => Err(DeviceError::Switch(text.into())),
        }
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "on" } else { "off" })
    }
}

/// Makes the table: for each option its field, its word, what it holds, and an example.
macro_rules! table {
    ($($field:ident $word:literal $kind:ident $example:literal)*) => {
        /// A field for each word.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, rename_all = "kebab-case", expecting = "a table such as `{ vlan = 2 }`")]
        pub(in crate::spec::net) struct PortTable {
            $(#[serde(skip_serializing_if = "Option::is_none")] $field: Option<$kind>,)*
        }

        impl PortTable {
            /// Sets an option of the command line. False: there is none of this name.
            pub(in crate::spec::net) fn set(&mut self, word: &Word) -> Result<bool, DeviceError> {
                if word.name == "isolated" && word.value.is_none() {
                    return once(&mut self.isolated, Flag(true), PORT, "isolated").map(|()| true);
                }
                match (word.name.as_str(), &word.value) {
                    $(
                        ($word, Some(_)) => once(&mut self.$field, word.text().parse()?, PORT, $word)?,
                        ($word, None) => {
                            return Err(DeviceError::NeedsValue { word: word.written(), example: $example });
                        }
                    )*
                    _ => return Ok(false),
                }
                Ok(true)
            }

            /// The words of the command line.
            fn words(&self) -> Vec<String> {
                let mut words = Vec::new();
                $(words.extend(self.$field.as_ref().map(|value| format!("{}={value}", $word)));)*
                words
            }
        }
    };
}

table! {
    vlan "vlan" VlanId "vlan=2"
    trunk "trunk" Trunk "trunk=2+3"
    isolated "isolated" Flag "isolated=on"
    secure "secure" Flag "secure=on"
    delay "delay" Delay "delay=20ms"
    delay_in "delay-in" Delay "delay-in=20ms"
    delay_out "delay-out" Delay "delay-out=20ms"
    jitter "jitter" Delay "jitter=5ms"
    jitter_in "jitter-in" Delay "jitter-in=5ms"
    jitter_out "jitter-out" Delay "jitter-out=5ms"
    loss "loss" Loss "loss=1%"
    loss_in "loss-in" Loss "loss-in=1%"
    loss_out "loss-out" Loss "loss-out=1%"
    rate "rate" Rate "rate=10mbit"
    rate_in "rate-in" Rate "rate-in=10mbit"
    rate_out "rate-out" Rate "rate-out=10mbit"
}

impl TryFrom<PortTable> for PortOptions {
    type Error = DeviceError;

    fn try_from(table: PortTable) -> Result<Self, DeviceError> {
        if table.vlan.is_some() && table.trunk.is_some() {
            return Err(DeviceError::VlanAndTrunk);
        }
        // The word for one direction overrides that for both.
        Ok(PortOptions {
            vlan: table.vlan,
            trunk: table.trunk,
            isolated: table.isolated.map(|Flag(on)| on),
            secure: table.secure.map(|Flag(on)| on),
            to_guest: Impairment {
                delay: table.delay_in.or(table.delay),
                jitter: table.jitter_in.or(table.jitter),
                loss: table.loss_in.or(table.loss),
                rate: table.rate_in.or(table.rate),
            },
            from_guest: Impairment {
                delay: table.delay_out.or(table.delay),
                jitter: table.jitter_out.or(table.jitter),
                loss: table.loss_out.or(table.loss),
                rate: table.rate_out.or(table.rate),
            },
        })
    }
}

impl From<PortOptions> for PortTable {
    fn from(options: PortOptions) -> Self {
        let PortOptions { vlan, trunk, isolated, secure, to_guest: to, from_guest: from } = options;
        let (delay, delay_in, delay_out) = directions(to.delay, from.delay);
        let (jitter, jitter_in, jitter_out) = directions(to.jitter, from.jitter);
        let (loss, loss_in, loss_out) = directions(to.loss, from.loss);
        let (rate, rate_in, rate_out) = directions(to.rate, from.rate);
        let (isolated, secure) = (isolated.map(Flag), secure.map(Flag));
        PortTable {
            vlan,
            trunk,
            isolated,
            secure,
            delay,
            delay_in,
            delay_out,
            jitter,
            jitter_in,
            jitter_out,
            loss,
            loss_in,
            loss_out,
            rate,
            rate_in,
            rate_out,
        }
    }
}

/// The value for both directions if they have the same; otherwise that of each.
fn directions<T: PartialEq>(to: Option<T>, from: Option<T>) -> (Option<T>, Option<T>, Option<T>) {
    if to == from { (to, None, None) } else { (None, to, from) }
}

/// Joins the numbers of a trunk that were written with a comma: `trunk=2,3` is `trunk=2+3`.
pub(in crate::spec::net) fn join_trunks(
    words: impl Iterator<Item = OsString>,
) -> impl Iterator<Item = OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    for word in words {
        let bytes = word.as_bytes();
        let is_number = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
        match joined.last_mut() {
            Some(trunk) if is_number && trunk.as_bytes().starts_with(b"trunk=") => {
                trunk.push("+");
                trunk.push(word);
            }
            _ => joined.push(word),
        }
    }
    joined.into_iter()
}

/// The words of the command line.
impl FromStr for PortOptions {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let mut table = PortTable::default();
        for word in join_trunks(split(text.as_ref()).into_iter()) {
            let word = Word::parse(&word);
            if word.name.is_empty() && word.value.is_none() {
                return Err(DeviceError::EmptyPortOption);
            }
            if !table.set(&word)? {
                return Err(DeviceError::UnknownPortOption { word: word.written(), known: KNOWN });
            }
        }
        table.try_into()
    }
}

impl fmt::Display for PortOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&PortTable::from(self.clone()).words().join(","))
    }
}
