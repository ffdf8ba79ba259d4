//! What stat tells of a file: who it is, and what the guest is shown.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Statx, StatxFlags, StatxTimestamp};
use serde::{Deserialize, Serialize};
use virtio::fs::{Attr, Time};

use super::owners::Override;
use super::shared_folder::SharedFolder;
use crate::spec::ShareOwner;

/// Bits of `st_mode` that are the kind.
pub(super) const KIND: u32 = 0o170_000;
pub(super) const FOLDER: u32 = 0o040_000;
pub(super) const FILE: u32 = 0o100_000;
pub(super) const LINK: u32 = 0o120_000;
/// Set-user-id and set-group-id.
pub(super) const PRIVILEGES: u32 = 0o6000;
/// Of a folder: what is made in it has its group (inode(7)).
pub(super) const SET_GROUP: u32 = 0o2000;
/// The owner that the guest sees of files of others: `nobody`.
const NOBODY: u32 = 65534;

/// Who a file is: no other one has been or will be so, not even one with the number of a removed file, where the file system knows when
/// its files were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) ino: u64,
    /// When it was made, if the file system knows.
    pub(super) born: (i64, u32),
    /// [`KIND`] of its mode.
    pub(super) kind: u32,
}

impl Identity {
    pub(super) fn of(stat: &Statx) -> Self {
        Identity {
            device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            ino: stat.stx_ino,
            born: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
            kind: u32::from(stat.stx_mode) & KIND,
        }
    }

    pub(super) fn is_folder(self) -> bool {
        self.kind == FOLDER
    }
}

const MASK: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Of an open file.
pub(super) fn stat_of(file: impl AsFd) -> rustix::io::Result<Statx> {
    rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, MASK)
}

/// Of a name in a folder; a link is not followed.
pub(super) fn stat_at(folder: impl AsFd, name: &[u8]) -> rustix::io::Result<Statx> {
    rustix::fs::statx(folder, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, MASK)
}

impl SharedFolder {
    /// Whether the folder that was shared was another one. Its device may have another number on another host, and after a start of the host.
    pub(super) fn is_another(&self, shared: Identity) -> bool {
        Identity { device: self.identity.device, ..shared } != self.identity
    }

    /// Who a file of this folder is.
    pub(super) fn identify(&self, stat: &Statx) -> Identity {
        let identity = Identity::of(stat);
        if self.keeps_births { identity } else { Identity { born: (0, 0), ..identity } }
    }

    /// What the guest is shown of a file.
    pub(super) fn attr(&self, stat: &Statx, owned: Option<Override>) -> Attr {
        // Files of this user and of root belong to the guest's root, whose commands make and use them, if not to the user that was said.
        let (user, group) = match self.options.owner {
            ShareOwner::User { uid, gid } => (uid, gid),
            _ => (0, 0),
        };
        let shown = |id: u32, own: u32, as_own: u32| match id {
            id if id == own => as_own,
            0 => 0,
            _ => NOBODY,
        };
        let mut mode = u32::from(stat.stx_mode);
        let (mut uid, mut gid) =
            (shown(stat.stx_uid, self.user, user), shown(stat.stx_gid, self.group, group));
        if let Some(owned) = owned {
            mode = mode & KIND | owned.mode;
            (uid, gid) = (owned.uid, owned.gid);
        } else if stat.stx_uid != 0 && mode & KIND != FOLDER {
            // A program of an ordinary user would get the rights of the guest's root.
            mode &= !PRIVILEGES;
        }
        Attr {
            ino: self.ino(stat),
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: time(stat.stx_atime),
            mtime: time(stat.stx_mtime),
            ctime: time(stat.stx_ctime),
            born: (stat.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| time(stat.stx_btime)),
            mode,
            nlink: stat.stx_nlink,
            uid,
            gid,
            rdev: encoded(stat.stx_rdev_major, stat.stx_rdev_minor),
            block_size: stat.stx_blksize,
        }
    }

    /// The guest sees one device: files of others that are mounted in the folder have a number in which the device takes part.
    fn ino(&self, stat: &Statx) -> u64 {
        let device = u64::from(stat.stx_dev_major) << 20 ^ u64::from(stat.stx_dev_minor);
        let own = self.identity.device >> 32 << 20 ^ self.identity.device & 0xffff_ffff;
        stat.stx_ino ^ (device ^ own) << 40
    }
}

fn time(of: StatxTimestamp) -> Time {
    Time { seconds: of.tv_sec, nanos: of.tv_nsec }
}

/// A device number as FUSE carries it (`new_encode_dev` of Linux).
fn encoded(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12
}
