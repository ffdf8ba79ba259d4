//! An io_uring with all features that the engine needs, or an error.

use std::io;

use io_uring::{IoUring, Probe, opcode};

/// Submissions between two system calls: enough for 256 requests of one wake-up.
const SUBMISSIONS: u32 = 256;
/// Completion entries; more wait in the kernel.
const COMPLETIONS: u32 = 1024;

/// A ring for the thread that calls this.
///
/// # Errors
/// The host has none, forbids it (`kernel.io_uring_disabled`, seccomp), or it is older than Linux 5.13.
pub(super) fn new() -> io::Result<IoUring> {
    let ring = build()?;
    // Multishot polling came with 5.13, as this feature did; it has no flag of its own.
    if !ring.params().is_feature_resource_tagging() || !ring.params().is_feature_nodrop() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Write::CODE,
        opcode::Fallocate::CODE,
        opcode::PollAdd::CODE,
        opcode::PollRemove::CODE,
    ];
    if needed.into_iter().all(|code| probe.is_supported(code)) {
        Ok(ring)
    } else {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// The newest kind of ring that the kernel accepts: with deferred task work (6.1), with cooperative task work
/// (5.19), plain.
fn build() -> io::Result<IoUring> {
    let new = IoUring::builder()
        .setup_cqsize(COMPLETIONS)
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .build(SUBMISSIONS);
    let new = new.or_else(|_| {
        IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .setup_submit_all()
            .setup_coop_taskrun()
            .build(SUBMISSIONS)
    });
    new.or_else(|_| IoUring::builder().setup_cqsize(COMPLETIONS).build(SUBMISSIONS))
}
