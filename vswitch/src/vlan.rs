//! Which VLAN a frame is in, and what it looks like where it leaves (IEEE 802.1Q §6.9, §8.8).

use crate::config::{VlanId, VlanMode};
use crate::frame::{Edit, Frame};

impl VlanMode {
    /// The VLAN of a frame that comes in here.
    pub(crate) fn ingress(&self, frame: &Frame<'_>) -> Option<VlanId> {
        match (self, frame.vid()) {
            // A second tag would be the first one where the frame leaves: it could name another VLAN.
            (_, Some(0)) if frame.tagged_twice => None,
            (VlanMode::Access(vlan), None | Some(0)) => Some(*vlan),
            (VlanMode::Access(_), Some(_)) => None,
            (VlanMode::Trunk { native, .. }, None | Some(0)) => *native,
            (VlanMode::Trunk { .. }, Some(vid)) => VlanId::new(vid).filter(|vlan| self.has(*vlan)),
        }
    }

    /// What is to be changed in a frame of a VLAN that leaves here, if it may.
    pub(crate) fn egress(&self, vlan: VlanId, frame: &Frame<'_>) -> Option<Edit> {
        match self {
            VlanMode::Access(own) => (*own == vlan).then(|| frame.without_tag()),
            // As above.
            VlanMode::Trunk { native, .. } if *native == Some(vlan) => {
                (!frame.tagged_twice).then(|| frame.without_tag())
            }
            VlanMode::Trunk { vlans, .. } => vlans.contains(vlan).then(|| frame.with_tag(vlan.get())),
        }
    }

    fn has(&self, vlan: VlanId) -> bool {
        match self {
            VlanMode::Access(own) => *own == vlan,
            VlanMode::Trunk { vlans, native } => vlans.contains(vlan) || *native == Some(vlan),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(tags: &[u16]) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in tags {
            bytes.extend([0x81, 0]);
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend([8, 0, 42]);
        bytes
    }

    fn id(vlan: u16) -> VlanId {
        VlanId::new(vlan).unwrap()
    }

    fn ingress(mode: &VlanMode, tags: &[u16]) -> Option<u16> {
        mode.ingress(&Frame::parse(&bytes(tags)).unwrap()).map(VlanId::get)
    }

    /// The tags with which a frame leaves.
    fn egress(mode: &VlanMode, vlan: u16, tags: &[u16]) -> Option<Vec<u8>> {
        let bytes = bytes(tags);
        let edit = mode.egress(id(vlan), &Frame::parse(&bytes).unwrap())?;
        Some(edit.parts(&bytes).concat())
    }

    #[test]
    fn an_access_port_takes_frames_without_a_vlan_only_and_never_shows_a_tag() {
        let mode = VlanMode::Access(id(2));
        assert_eq!(ingress(&mode, &[]), Some(2));
        assert_eq!(ingress(&mode, &[0xa000]), Some(2));
        for tags in [&[2][..], &[3], &[0xfff], &[0, 3], &[2, 3]] {
            assert_eq!(ingress(&mode, tags), None, "{tags:?}");
        }
        assert_eq!(egress(&mode, 2, &[]), Some(bytes(&[])));
        assert_eq!(egress(&mode, 2, &[2]), Some(bytes(&[])));
        assert_eq!(egress(&mode, 2, &[0xa000]), Some(bytes(&[])));
        assert_eq!(egress(&mode, 2, &[2, 7]), Some(bytes(&[7])), "the inner tag is payload");
        assert_eq!(egress(&mode, 3, &[]), None);
    }

    #[test]
    fn a_trunk_takes_and_gives_tagged_frames_of_its_vlans_only() {
        let mode = VlanMode::trunk([id(2), id(3)]);
        assert_eq!(ingress(&mode, &[2]), Some(2));
        assert_eq!(ingress(&mode, &[0xa003]), Some(3));
        assert_eq!(ingress(&mode, &[3, 9]), Some(3));
        for tags in [&[][..], &[0], &[1], &[4], &[0xfff], &[0, 2]] {
            assert_eq!(ingress(&mode, tags), None, "{tags:?}");
        }
        assert_eq!(egress(&mode, 2, &[]), Some(bytes(&[2])));
        assert_eq!(egress(&mode, 2, &[0xa000]), Some(bytes(&[0xa002])));
        assert_eq!(egress(&mode, 2, &[0xa002]), Some(bytes(&[0xa002])));
        assert_eq!(egress(&mode, 2, &[2, 9]), Some(bytes(&[2, 9])));
        assert_eq!(egress(&mode, 1, &[]), None);
    }

    #[test]
    fn a_trunk_of_all_vlans_has_the_default_one_without_tag() {
        let mode = VlanMode::trunk_all();
        assert_eq!(ingress(&mode, &[]), Some(1));
        assert_eq!(ingress(&mode, &[1]), Some(1));
        assert_eq!(ingress(&mode, &[4094]), Some(4094));
        assert_eq!(egress(&mode, 1, &[]), Some(bytes(&[])));
        assert_eq!(egress(&mode, 1, &[1]), Some(bytes(&[])));
        assert_eq!(egress(&mode, 7, &[]), Some(bytes(&[7])));
    }

    #[test]
    fn no_frame_gets_into_another_vlan_by_a_second_tag() {
        let mode = VlanMode::trunk_all();
        assert_eq!(ingress(&mode, &[1, 7]), Some(1));
        assert_eq!(egress(&mode, 1, &[1, 7]), None);
    }
}
