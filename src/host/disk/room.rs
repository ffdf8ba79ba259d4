//! Room on a file system.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes that this user may still write to the file system of `path`, if it says.
pub(crate) fn free_space(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: an all-zero statvfs is valid, to be overwritten.
    let mut facts: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string, and the kernel fills `facts`; both live through the call.
    let result = unsafe { libc::statvfs(path.as_ptr(), &raw mut facts) };
    (result == 0).then(|| facts.f_bavail.saturating_mul(facts.f_frsize))
}
