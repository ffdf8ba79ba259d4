//! What this host's KVM is, for `minivmm doctor`.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_ioctls::{Error, Kvm};

use super::vm::create_vm;

/// What KVM says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KvmFacts {
    /// KVM_GET_API_VERSION: 12 on every kernel since 2.6.22.
    pub(crate) api_version: i32,
    /// vCPUs that one machine can have.
    pub(crate) max_vcpus: usize,
}

/// Asks the KVM device at `path` what it can, and has it make an empty machine: only then does it say that somebody
/// else holds the processor's virtualization.
pub(crate) fn probe(path: &Path) -> io::Result<KvmFacts> {
    let refused = |error: Error| io::Error::from_raw_os_error(error.errno());
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::NotFound)?;
    let kvm = Kvm::new_with_path(name).map_err(refused)?;
    let facts = KvmFacts { api_version: kvm.get_api_version(), max_vcpus: kvm.get_max_vcpus() };
    create_vm(&kvm).map_err(refused)?;
    Ok(facts)
}
