//! What a switch is made of: its limits, and the settings of its ports.

use std::num::NonZeroU64;
use std::time::Duration;

/// Limits of a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Ports.
    pub ports: usize,
    /// Addresses in the table. Each port has a share that no other port can take.
    pub addresses: usize,
    /// How long an address is kept after its last frame.
    pub ageing: Duration,
    /// Frames that wait for one direction of a port.
    pub waiting_frames: usize,
    /// Bytes of these frames.
    pub waiting_bytes: usize,
    /// How long a frame may wait until a rate-limited direction of a port begins to send it. A few frames may wait longer.
    pub backlog: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            ports: 256,
            addresses: 4096,
            ageing: Duration::from_secs(300),
            waiting_frames: 4096,
            waiting_bytes: 8 << 20,
            backlog: Duration::from_millis(250),
        }
    }
}

/// A VLAN's number: 1 to 4094 (IEEE 802.1Q §9.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VlanId(u16);

impl VlanId {
    /// The VLAN of a port of which nothing else is said.
    pub const DEFAULT: VlanId = VlanId(1);

    /// A VLAN's number, if it is one.
    pub fn new(id: u16) -> Option<Self> {
        (1..=4094).contains(&id).then_some(VlanId(id))
    }

    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for VlanId {
    fn default() -> Self {
        VlanId::DEFAULT
    }
}

const WORDS: usize = 4096 / 64;

/// A set of VLANs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VlanSet(Option<Box<[u64; WORDS]>>);

impl VlanSet {
    /// All VLANs.
    pub fn all() -> Self {
        VlanSet(None)
    }

    /// Whether the set is [`VlanSet::all`].
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// Whether `id` is in the set.
    pub fn contains(&self, id: VlanId) -> bool {
        let word = |words: &[u64; WORDS]| words.get(usize::from(id.0 / 64)).copied().unwrap_or(0);
        self.0.as_ref().is_none_or(|words| word(words) >> (id.0 % 64) & 1 == 1)
    }
}

impl FromIterator<VlanId> for VlanSet {
    fn from_iter<I: IntoIterator<Item = VlanId>>(ids: I) -> Self {
        let mut words = Box::new([0; WORDS]);
        for id in ids {
            if let Some(word) = words.get_mut(usize::from(id.0 / 64)) {
                *word |= 1 << (id.0 % 64);
            }
        }
        VlanSet(Some(words))
    }
}

/// What a port does with VLAN tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VlanMode {
    /// The port is in one VLAN and knows nothing of it: its frames have no tag. A frame that comes with a tag is dropped, also
    /// with the port's own VLAN in it, as by Open vSwitch; a priority tag (VLAN 0) is taken off.
    Access(VlanId),
    /// Frames carry the tag of their VLAN.
    Trunk {
        /// VLANs of the port.
        vlans: VlanSet,
        /// The VLAN, one of these, whose frames have no tag. Without it, frames without a tag are dropped.
        native: Option<VlanId>,
    },
}

impl VlanMode {
    /// A trunk of some VLANs: as on Open vSwitch, frames without a tag are not part of it.
    pub fn trunk(vlans: impl IntoIterator<Item = VlanId>) -> Self {
        VlanMode::Trunk { vlans: vlans.into_iter().collect(), native: None }
    }

    /// A trunk of all VLANs: as on Open vSwitch, it also carries, without a tag, the frames of ports whose VLAN is the default.
    pub fn trunk_all() -> Self {
        VlanMode::Trunk { vlans: VlanSet::all(), native: Some(VlanId::DEFAULT) }
    }
}

impl Default for VlanMode {
    fn default() -> Self {
        VlanMode::Access(VlanId::DEFAULT)
    }
}

/// What the wire of a port does to frames in one direction. The default is a perfect wire, which costs nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Impairment {
    /// How long a frame is on its way.
    pub delay: Duration,
    /// By how much, at most, the delay of a frame is shorter or longer: any value is equally likely. Frames keep their order.
    pub jitter: Duration,
    /// Frames of a million that are lost.
    pub loss_ppm: u32,
    /// Bits per second, counted as on a wire: with preamble, checksum and the gap between frames.
    pub rate: Option<NonZeroU64>,
}

/// Settings of a port. The default is a port of VLAN 1 with a perfect wire.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PortConfig {
    /// Its VLANs.
    pub vlan: VlanMode,
    /// The port reaches only ports that are not isolated.
    pub isolated: bool,
    /// The only source address of frames from this port.
    pub secure: Option<[u8; 6]>,
    /// Frames from the port.
    pub from_port: Impairment,
    /// Frames to the port.
    pub to_port: Impairment,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_vlans_has_just_what_was_put_in() {
        assert_eq!([0, 4095, 4096].map(VlanId::new), [None; 3]);
        let ids = [1, 63, 64, 4094].map(|id| VlanId::new(id).unwrap());
        let set: VlanSet = ids.into_iter().collect();
        for id in (1..4095).filter_map(VlanId::new) {
            assert_eq!(set.contains(id), ids.contains(&id), "{id:?}");
            assert!(VlanSet::all().contains(id));
        }
        assert!(VlanSet::all().is_all() && !set.is_all());
    }
}
