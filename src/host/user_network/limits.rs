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

/// `limits` with at most a quarter of `descriptors` for TCP and another for UDP.
pub(super) fn within_descriptors(limits: Limits, descriptors: usize) -> Limits {
    let quarter = descriptors / 4;
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
        let most = |descriptors| {
            let limits = within_descriptors(Limits::default(), descriptors);
            (limits.connections, limits.udp_flows)
        };
        assert_eq!(most(1024), (256, 256));
        assert_eq!(most(1 << 20), (4096, 4096));
        assert_eq!(most(usize::MAX), (4096, 4096));
        assert!(descriptors() >= 64);
    }
}
