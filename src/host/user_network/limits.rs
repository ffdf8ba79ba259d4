//! How many sockets a guest may use, so that it leaves descriptors to the rest of the process.

use usernet::Limits;

/// `limits` with at most a quarter of `descriptors` for TCP and another for UDP, in all `networks` of the process together.
pub(super) fn within_descriptors(limits: Limits, descriptors: usize, networks: usize) -> Limits {
    let quarter = descriptors / 4 / networks.max(1);
    Limits {
        connections: limits.connections.min(quarter),
        udp_flows: limits.udp_flows.min(quarter),
        ..limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_leaves_half_of_the_descriptors_to_the_process() {
        let most = |descriptors, networks| {
            let limits = within_descriptors(Limits::default(), descriptors, networks);
            (limits.connections, limits.udp_flows)
        };
        assert_eq!(most(1024, 1), (256, 256));
        assert_eq!(most(1024, 2), (128, 128));
        assert_eq!(most(1 << 20, 2), (4096, 4096));
        assert_eq!(most(usize::MAX, 0), (4096, 4096));
    }
}
