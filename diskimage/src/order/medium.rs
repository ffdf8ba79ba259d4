//! Writes and syncs, which the tests of the order record.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub(crate) fn write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(test)]
    log::note(|| log::Event::Write { offset, bytes: bytes.into() });
    file.write_all_at(bytes, offset)
}

pub(crate) fn sync(file: &File) -> io::Result<()> {
    #[cfg(test)]
    log::note(|| log::Event::Sync);
    file.sync_data()
}

/// Zeroes that `fallocate` makes.
pub(crate) fn zeroed(_offset: u64, _length: u64) {
    #[cfg(test)]
    log::note(|| log::Event::Write {
        offset: _offset,
        bytes: vec![0; usize::try_from(_length).unwrap_or_default()],
    });
}

#[cfg(test)]
pub(crate) mod log {
    use std::cell::RefCell;

    #[derive(Debug, Clone)]
    pub(crate) enum Event {
        Write { offset: u64, bytes: Vec<u8> },
        Sync,
    }

    thread_local! {
        static LOG: RefCell<Option<Vec<Event>>> = const { RefCell::new(None) };
    }

    pub(crate) fn start() {
        LOG.set(Some(Vec::new()));
    }

    pub(crate) fn length() -> usize {
        LOG.with_borrow(|log| log.as_ref().map_or(0, Vec::len))
    }

    pub(crate) fn take() -> Vec<Event> {
        LOG.take().unwrap_or_default()
    }

    pub(super) fn note(event: impl FnOnce() -> Event) {
        LOG.with_borrow_mut(|log| {
            if let Some(log) = log {
                log.push(event());
            }
        });
    }
}
