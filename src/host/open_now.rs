//! Opens files at paths that may lead to anything.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens what is at `path` without waiting for it and without taking a terminal: a file that was there a moment ago may be a pipe by
/// now, and its open would wait for the other end. Reads of a pipe do not wait either.
pub(crate) fn open_now(path: &Path, options: &mut OpenOptions, flags: i32) -> io::Result<File> {
    match options.custom_flags(flags | libc::O_NONBLOCK | libc::O_NOCTTY).open(path) {
        // Another program has a lease on the file (fcntl(2)), which it is asked to give back.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            options.custom_flags(flags | libc::O_NOCTTY).open(path)
        }
        opened => opened,
    }
}

/// The same file without O_NONBLOCK, which io_uring takes as a wish not to wait for the disk of a file. `flags` are the others
/// that it was opened with.
pub(crate) fn waiting(file: File, flags: i32) -> io::Result<File> {
    rustix::fs::fcntl_setfl(&file, OFlags::from_bits_retain(flags.cast_unsigned()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn pipe_without_a_writer_is_opened_at_once_and_a_file_waits_for_its_disk() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let name = CString::new(pipe.as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is a C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        open_now(&pipe, OpenOptions::new().read(true), 0).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let opened = open_now(&file, OpenOptions::new().read(true).write(true), 0).unwrap();
        let opened = waiting(opened, 0).unwrap();
        let flags = rustix::fs::fcntl_getfl(&opened).unwrap();
        assert_eq!(flags & (OFlags::NONBLOCK | OFlags::ACCMODE), OFlags::RDWR);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let refused = open_now(&link, OpenOptions::new().read(true), libc::O_NOFOLLOW).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ELOOP));
    }
}
