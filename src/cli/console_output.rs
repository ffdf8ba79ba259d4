//! The guest's console on standard output, which may be a file on a full disk: the machine runs on, lost
//! bytes are counted, and writing resumes when there is space again.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of console bytes that could not be written.
#[derive(Debug, Clone, Default)]
pub(super) struct LostBytes(Arc<AtomicU64>);

impl LostBytes {
    /// In bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: usize) {
        self.0.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// A writer for the console that survives a full disk.
#[derive(Debug)]
pub(super) struct ConsoleOutput<W> {
    to: W,
    lost: LostBytes,
    /// Bytes lost since the last successful write.
    gap: u64,
}

impl<W: Write> ConsoleOutput<W> {
    pub(super) fn new(to: W, lost: LostBytes) -> Self {
        ConsoleOutput { to, lost, gap: 0 }
    }
}

impl<W: Write> Write for ConsoleOutput<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let error = match self.to.write(bytes) {
            Ok(count) => {
                if self.gap > 0 {
                    log::warn!(
                        "the guest's console is written again; {} bytes before this are missing",
                        self.gap
                    );
                    self.gap = 0;
                }
                return Ok(count);
            }
            Err(error) if has_no_room(&error) => error,
            Err(error) => return Err(error),
        };
        if self.gap == 0 {
            log::error!(
                "the guest's console cannot be written ({error}): what it writes is lost until there is room; the machine runs on"
            );
        }
        self.lost.add(bytes.len());
        self.gap += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A full disk, a quota, `ulimit -f`.
fn has_no_room(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails the second and third write with ENOSPC.
    struct Disk(Vec<u8>, usize);
    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            if [2, 3].contains(&self.1) {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            self.0.extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn console_goes_on_when_there_is_room_again_and_what_is_missing_is_counted() {
        let lost = LostBytes::default();
        let mut output = ConsoleOutput::new(Disk(Vec::new(), 0), lost.clone());
        for text in ["one ", "two ", "three ", "four"] {
            output.write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(output.to.0, b"one four");
        assert_eq!(lost.bytes(), 10);
    }

    #[test]
    fn a_reader_that_has_left_is_no_loss() {
        let lost = LostBytes::default();
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(there);
        let mut output = ConsoleOutput::new(here, lost.clone());
        assert_eq!(output.write_all(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(lost.bytes(), 0);
    }
}
