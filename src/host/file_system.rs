//! What kind of file system a file lies on.

use std::os::fd::AsFd;

/// Its number of statfs(2) (linux/magic.h).
pub(super) fn magic(fd: impl AsFd) -> rustix::io::Result<u64> {
    // It has 32 bits, whatever the sign of the field.
    Ok(rustix::fs::fstatfs(fd)?.f_type.cast_unsigned() & 0xffff_ffff)
}
