//! How much a test does of what shows its fault only by repetition.

/// All of it in `make soak` (`MINIVMM_SOAK=1`), a tenth in `make test`.
pub(crate) fn dose(full: u64) -> u64 {
    if std::env::var("MINIVMM_SOAK").is_ok_and(|soak| soak == "1") { full } else { full.div_ceil(10) }
}
