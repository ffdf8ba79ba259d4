//! How much a test does of what shows its fault only by repetition, and what it leaves to `make soak`.

#![allow(dead_code, reason = "each test file uses its part")]

/// Whether this is `make soak` (`MINIVMM_SOAK=1`).
pub(crate) fn soak() -> bool {
    std::env::var("MINIVMM_SOAK").is_ok_and(|soak| soak == "1")
}

/// All of it in `make soak`, a tenth in `make test`.
pub(crate) fn dose(full: u64) -> u64 {
    if soak() { full } else { full.div_ceil(10) }
}
