//! How many sockets a guest may use, so that it leaves descriptors to the rest of the process.

use usernet::Limits;

/// Descriptors that this process may have.
pub(super) fn descriptors() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writing one rlimit.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX),
        _ => usize::MAX,
    }
}

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
        assert!(descriptors() >= 64);
    }
}
