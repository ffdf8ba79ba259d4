//! FUSE_INIT: what guest and device agree on.

use serde::{Deserialize, Serialize};

use super::errno::Errno;
use super::filesystem::{Answer, Caching};
use super::wire::{self, Fields};

const MAJOR: u32 = 7;
/// The first that has virtio-fs: Linux 5.4.
const LEAST_MINOR: u32 = 31;
const MINOR: u32 = 39;
/// Most pages of a read or write: 1 MiB, the most that FUSE has by default.
const MOST_PAGES: u16 = 256;
/// Most bytes of a write.
pub(super) const MOST_WRITE: u32 = 1 << 20;
/// Most bytes of a read.
pub(super) const MOST_READ: u32 = MOST_WRITE;
/// Requests that the guest has in flight for readahead and the like.
const BACKGROUND: u16 = 64;

/// Flags of FUSE_INIT.
mod flag {
    pub(super) const ASYNC_READ: u64 = 1 << 0;
    pub(super) const POSIX_LOCKS: u64 = 1 << 1;
    pub(super) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub(super) const BIG_WRITES: u64 = 1 << 5;
    pub(super) const FLOCK_LOCKS: u64 = 1 << 10;
    pub(super) const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub(super) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(super) const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub(super) const ASYNC_DIO: u64 = 1 << 15;
    pub(super) const WRITEBACK_CACHE: u64 = 1 << 16;
    pub(super) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(super) const MAX_PAGES: u64 = 1 << 22;
    pub(super) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(super) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(super) const INIT_EXT: u64 = 1 << 30;
    pub(super) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
}

/// What was agreed on; `started` is false until the guest mounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Session {
    pub(super) started: bool,
    pub(super) flags: u64,
}

/// What a file system wants of its guest.
fn wanted(caching: Caching, has_locks: bool) -> u64 {
    let always = flag::ASYNC_READ
        | flag::ATOMIC_O_TRUNC
        | flag::BIG_WRITES
        | flag::DO_READDIRPLUS
        | flag::READDIRPLUS_AUTO
        | flag::ASYNC_DIO
        | flag::PARALLEL_DIROPS
        | flag::MAX_PAGES
        | flag::HANDLE_KILLPRIV_V2
        | flag::INIT_EXT;
    let by_caching = match caching {
        Caching::Auto => flag::AUTO_INVAL_DATA,
        // With it the guest trusts its own size and time of change, so it is for files that nobody else changes.
        Caching::Always => flag::WRITEBACK_CACHE | flag::CACHE_SYMLINKS,
        Caching::Never => flag::AUTO_INVAL_DATA | flag::DIRECT_IO_ALLOW_MMAP,
    };
    always | by_caching | if has_locks { flag::POSIX_LOCKS | flag::FLOCK_LOCKS } else { 0 }
}

impl Session {
    /// Whether the guest collects writes.
    pub(super) fn collects_writes(self) -> bool {
        self.flags & flag::WRITEBACK_CACHE != 0
    }

    /// Reads `fuse_init_in`, writes `fuse_init_out`.
    pub(super) fn init(
        mut body: Fields<'_>,
        caching: Caching,
        has_locks: bool,
        out: &mut Vec<u8>,
    ) -> Answer<Self> {
        let (major, minor) = (body.u32()?, body.u32()?);
        let (readahead, low) = (body.u32()?, u64::from(body.u32()?));
        if major > MAJOR {
            // It asks again with ours.
            wire::u32(out, MAJOR);
            wire::u32(out, MINOR);
            wire::zeros(out, 56);
            return Ok(Session::default());
        }
        if major < MAJOR || minor < LEAST_MINOR {
            return Err(Errno::new(71));
        }
        let high = if low & flag::INIT_EXT == 0 { 0 } else { u64::from(body.u32()?) };
        let flags = (low | high << 32) & wanted(caching, has_locks);
        wire::u32(out, MAJOR);
        wire::u32(out, MINOR);
        wire::u32(out, readahead);
        wire::u32(out, u32::try_from(flags & u64::from(u32::MAX)).unwrap_or(0));
        wire::u16(out, BACKGROUND);
        wire::u16(out, BACKGROUND / 4 * 3);
        wire::u32(out, MOST_WRITE);
        // Times have a granularity of a nanosecond.
        wire::u32(out, 1);
        wire::u16(out, MOST_PAGES);
        wire::u16(out, 0);
        wire::u32(out, u32::try_from(flags >> 32).unwrap_or(0));
        wire::zeros(out, 28);
        Ok(Session { started: true, flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(major: u32, minor: u32, flags: u64, caching: Caching) -> (Answer<Session>, Vec<u8>) {
        let mut body = Vec::new();
        for word in [major, minor, 1 << 17] {
            wire::u32(&mut body, word);
        }
        wire::u32(&mut body, u32::try_from(flags & 0xffff_ffff).unwrap());
        wire::u32(&mut body, u32::try_from(flags >> 32).unwrap());
        wire::zeros(&mut body, 44);
        let mut out = Vec::new();
        let session = Session::init(Fields(&body), caching, false, &mut out);
        (session, out)
    }

    #[test]
    fn only_what_both_know_is_agreed_on() {
        let (session, out) = init(7, 45, u64::MAX, Caching::Auto);
        assert_eq!((session.unwrap().flags, out.len()), (wanted(Caching::Auto, false), 64));
        assert!(!session.unwrap().collects_writes());
        let (session, _) = init(7, 31, flag::WRITEBACK_CACHE, Caching::Always);
        assert_eq!(session, Ok(Session { started: true, flags: flag::WRITEBACK_CACHE }));
        // Without INIT_EXT there is no second word.
        let (session, _) = init(7, 31, flag::DIRECT_IO_ALLOW_MMAP, Caching::Never);
        assert_eq!(session.unwrap().flags, 0);
    }

    #[test]
    fn older_protocols_are_refused_and_newer_ones_asked_to_come_down() {
        assert!(init(7, 30, 0, Caching::Auto).0.is_err() && init(6, 99, 0, Caching::Auto).0.is_err());
        let (session, out) = init(8, 0, 0, Caching::Auto);
        assert_eq!((session, out[0]), (Ok(Session::default()), 7));
    }
}
