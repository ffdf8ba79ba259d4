//! VLANs (IEEE 802.1Q-2022 §9.6) of a port: the one of an access port, those of a trunk.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::spec::words::DeviceError;

/// Number of a VLAN: 1 to 4094.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct VlanId(u16);

impl VlanId {
    /// The VLAN of a port of which nothing is said.
    pub const DEFAULT: VlanId = VlanId(1);
    /// The largest; 4095 is reserved (IEEE 802.1Q-2022 table 9-2).
    pub const MAX: u16 = 4094;

    /// Makes one of a number.
    ///
    /// # Errors
    /// [`DeviceError::Vlan`] for 0, which is no VLAN, and above [`VlanId::MAX`].
    pub fn new(id: u16) -> Result<Self, DeviceError> {
        Self::try_from(u32::from(id))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u32> for VlanId {
    type Error = DeviceError;

    fn try_from(id: u32) -> Result<Self, DeviceError> {
        let fits = u16::try_from(id).ok().filter(|id| (1..=Self::MAX).contains(id));
        fits.map(VlanId).ok_or_else(|| DeviceError::Vlan(id.to_string()))
    }
}

impl From<VlanId> for u32 {
    fn from(vlan: VlanId) -> u32 {
        vlan.0.into()
    }
}

impl FromStr for VlanId {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let digits = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        let id = text.parse().ok().filter(|_| digits).ok_or_else(|| DeviceError::Vlan(text.into()))?;
        VlanId::new(id)
    }
}

impl fmt::Display for VlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The VLANs of a trunk, whose frames are tagged. As text they are `2+3`, or `all`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trunk {
    /// Every VLAN.
    All,
    /// These, at least one.
    Vlans(BTreeSet<VlanId>),
}

impl Trunk {
    const ALL: &str = "all";

    /// Whether frames of this VLAN pass.
    pub fn has(&self, vlan: VlanId) -> bool {
        match self {
            Trunk::All => true,
            Trunk::Vlans(vlans) => vlans.contains(&vlan),
        }
    }
}

impl FromStr for Trunk {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        if text == Self::ALL {
            return Ok(Trunk::All);
        }
        let vlans: Result<_, DeviceError> = text.split('+').map(VlanId::from_str).collect();
        vlans.map(Trunk::Vlans).map_err(|_| DeviceError::Trunk(text.into()))
    }
}

impl fmt::Display for Trunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trunk::All => f.write_str(Self::ALL),
            Trunk::Vlans(vlans) => vlans.iter().enumerate().try_for_each(|(at, vlan)| {
                f.write_str(if at == 0 { "" } else { "+" })?;
                vlan.fmt(f)
            }),
        }
    }
}

/// `"all"`, or a list of numbers.
impl Serialize for Trunk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Trunk::All => serializer.serialize_str(Self::ALL),
            Trunk::Vlans(vlans) => serializer.collect_seq(vlans),
        }
    }
}

impl<'de> Deserialize<'de> for Trunk {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TrunkVisitor)
    }
}

struct TrunkVisitor;

impl<'de> Visitor<'de> for TrunkVisitor {
    type Value = Trunk;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"all\", or a list of VLANs such as [2, 3]")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Trunk, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Trunk, A::Error> {
        let mut vlans = BTreeSet::new();
        while let Some(vlan) = list.next_element::<VlanId>()? {
            vlans.insert(vlan);
        }
        if vlans.is_empty() {
            Err(de::Error::custom(DeviceError::Trunk(String::new())))
        } else {
            Ok(Trunk::Vlans(vlans))
        }
    }
}
