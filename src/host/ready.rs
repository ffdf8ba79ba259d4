//! Whether a stream of another process would block, and whether its other end is still open.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Whether a short write would succeed within `limit`. A file, which cannot be polled, is always writable.
pub(crate) fn is_writable(stream: &impl AsRawFd, limit: Duration) -> bool {
    let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    match wait(stream, EventSet::OUT, limit) {
        Ok(count) => count > 0,
        Err(_) => true,
    }
}

/// Whether there is input within `limit`. False for what cannot be polled.
pub(crate) fn is_readable(stream: &impl AsRawFd, limit: Duration) -> bool {
    let limit = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    wait(stream, EventSet::IN, limit).is_ok_and(|count| count > 0)
}

/// Waits until the other end of a stream is closed. An error for a file, which has no other end.
pub(crate) fn wait_for_hangup(stream: &impl AsRawFd) -> io::Result<()> {
    // Errors and hang-ups are always reported.
    wait(stream, EventSet::empty(), -1).map(drop)
}

/// Whether the other end of a stream is closed in both directions, even if unread bytes are left.
pub(crate) fn is_hung_up(stream: &impl AsRawFd) -> bool {
    matches!(wait(stream, EventSet::empty(), 0), Ok(1..))
}

fn wait(stream: &impl AsRawFd, events: EventSet, milliseconds: i32) -> io::Result<usize> {
    let epoll = Epoll::new()?;
    epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(events, 0))?;
    loop {
        match epoll.wait(milliseconds, &mut [EpollEvent::default()]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    const SHORT: Duration = Duration::from_millis(10);

    #[test]
    fn full_streams_have_no_room_and_files_always_do() {
        let (here, there) = UnixStream::pair().unwrap();
        assert!(is_writable(&here, SHORT));
        here.set_nonblocking(true).unwrap();
        while (&here).write(&[0; 4096]).is_ok() {}
        assert!(!is_writable(&here, SHORT));
        assert!(!is_hung_up(&here));
        (&there).write_all(b"unread").unwrap();
        there.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!is_hung_up(&here), "it still reads");
        drop(there);
        assert!(is_hung_up(&here));
        assert!(is_writable(&here, SHORT), "the write fails at once");
        assert!(wait_for_hangup(&here).is_ok());
        let file = File::create(tempfile::tempdir().unwrap().path().join("file")).unwrap();
        assert!(is_writable(&file, SHORT) && wait_for_hangup(&file).is_err() && !is_hung_up(&file));
    }
}
