//! What a host may lack. A test that needs it fails, unless `MINIVMM_TEST_WITHOUT` in the environment names it.

use std::io::Write;

/// `what` is missing for `reason`: a failure, or a line in every log that this test was left out.
pub(crate) fn lacks(what: &str, reason: &str) {
    let left_out = std::env::var("MINIVMM_TEST_WITHOUT").unwrap_or_default();
    assert!(
        left_out.split(',').any(|name| name == what),
        "{reason}, or leave the test out with MINIVMM_TEST_WITHOUT={what}"
    );
    // Bypasses the capture of the test harness.
    let said = format!("SKIPPED by MINIVMM_TEST_WITHOUT={what}: {:?}\n", std::thread::current().name());
    let _ = std::io::stderr().write_all(said.as_bytes());
}
