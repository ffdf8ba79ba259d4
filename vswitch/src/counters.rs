//! What a port counts.

/// Why a frame ended here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// Shorter than an Ethernet header, longer than any frame, or with a source that is no station's address.
    Malformed,
    /// Its virtio header asks for a checksum or a segmentation that the frame does not allow.
    Offload,
    /// The port is not in the frame's VLAN, or frames of this port have no tag, or need one.
    Vlan,
    /// The port is secure, and the source is not its address.
    Secure,
    /// To an address that switches keep for themselves (IEEE 802.1Q §8.6.3).
    Reserved,
    /// The destination is at the port that the frame came from.
    SamePort,
    /// Both ports are isolated.
    Isolated,
    /// The impairment `loss`.
    Loss,
    /// Too many frames wait because of `delay` or `rate`.
    QueueFull,
    /// The port took no more frames.
    PortFull,
    /// The frame waited for a port whose VLANs or isolation were changed.
    Reconfigured,
}

impl DropReason {
    /// All of them.
    pub const ALL: [DropReason; 11] = [
        DropReason::Malformed,
        DropReason::Offload,
        DropReason::Vlan,
        DropReason::Secure,
        DropReason::Reserved,
        DropReason::SamePort,
        DropReason::Isolated,
        DropReason::Loss,
        DropReason::QueueFull,
        DropReason::PortFull,
        DropReason::Reconfigured,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::Malformed => "malformed",
            DropReason::Offload => "offload",
            DropReason::Vlan => "vlan",
            DropReason::Secure => "secure",
            DropReason::Reserved => "reserved",
            DropReason::SamePort => "same-port",
            DropReason::Isolated => "isolated",
            DropReason::Loss => "loss",
            DropReason::QueueFull => "queue-full",
            DropReason::PortFull => "port-full",
            DropReason::Reconfigured => "reconfigured",
        }
    }
}

/// One direction of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Tally {
    /// Frames: all that came from the port; of those to it, what it took.
    pub frames: u64,
    /// Bytes of these frames, without virtio headers.
    pub bytes: u64,
    dropped: [u64; DropReason::ALL.len()],
}

impl Tally {
    /// Frames that ended for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped.get(reason as usize).copied().unwrap_or(0)
    }

    /// Frames that ended here, by reason.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> {
        DropReason::ALL.into_iter().zip(self.dropped)
    }

    pub(crate) fn count(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }

    pub(crate) fn drop(&mut self, reason: DropReason) {
        if let Some(count) = self.dropped.get_mut(reason as usize) {
            *count += 1;
        }
    }
}

/// What a port has counted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Frames from the port.
    pub from_port: Tally,
    /// Frames to the port.
    pub to_port: Tally,
    /// Stations that came to this port from another one.
    pub moves: u64,
    /// Stations that did not come, because the address belongs to a secure port.
    pub moves_refused: u64,
    /// Addresses that were forgotten early because the port had more than its share of the table.
    pub evicted: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_and_a_name_of_its_own() {
        let mut tally = Tally::default();
        for (times, reason) in DropReason::ALL.into_iter().enumerate() {
            (0..=times).for_each(|_| tally.drop(reason));
        }
        for (times, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(tally.dropped(reason), times as u64 + 1);
        }
        let mut names: Vec<_> = DropReason::ALL.map(DropReason::name).into();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}
