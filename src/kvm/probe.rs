//! What this host's KVM is, for `minivmm doctor`.

use std::io;
use std::path::Path;

use kvm_ioctls::Kvm;

/// Facts that /dev/kvm gives about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFacts {
    /// KVM_GET_API_VERSION: 12 on every kernel since 2.6.22.
    pub api_version: i32,
    /// vCPUs that one machine can have.
    pub max_vcpus: usize,
}

/// /dev/kvm could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {path}: {source}")]
pub struct ProbeError {
    /// Path that was tried.
    pub path: String,
    /// What the host said.
    pub source: io::Error,
}

/// Asks the KVM device at `path`.
///
/// # Errors
/// It cannot be opened for reading and writing.
pub fn probe(path: &Path) -> Result<KvmFacts, ProbeError> {
    let failed = |source| ProbeError { path: path.display().to_string(), source };
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
    let kvm =
        Kvm::new_with_path(name).map_err(|error| failed(io::Error::from_raw_os_error(error.errno())))?;
    Ok(KvmFacts { api_version: kvm.get_api_version(), max_vcpus: kvm.get_max_vcpus() })
}
