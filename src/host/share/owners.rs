//! Owners and permissions of the guest that the host's file does not have: in an extended attribute, as rootless podman keeps
//! them (`containers/storage`): `user.containers.override_stat` = `uid:gid:mode`.

use rustix::fs::{Statx, XattrFlags};
use virtio::fs::{Answer, Caller};

use super::attributes::{FILE, FOLDER, KIND, SET_GROUP};
use super::nodes::Slot;
use super::{Share, errno};
use crate::spec::ShareOwner;

/// Name of the attribute, which the guest does not see.
pub(super) const NAME: &[u8] = b"user.containers.override_stat";

/// Owner, group and permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Override {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Without the kind.
    pub(super) mode: u32,
}

impl Override {
    fn parse(text: &[u8]) -> Option<Self> {
        let mut fields = std::str::from_utf8(text).ok()?.split(':');
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let mode = u32::from_str_radix(fields.next()?, 8).ok()? & 0o7777;
        Some(Override { uid, gid, mode })
    }

    fn text(self) -> String {
        format!("{}:{}:0{:o}", self.uid, self.gid, self.mode)
    }
}

impl Share {
    /// Whose something new in `parent` is, with these permissions. A set-group-id folder passes on its group, and folders that bit
    /// (inode(7)); on the host its kernel sees to that.
    pub(super) fn owner_of_new(
        &mut self,
        parent: Slot,
        caller: Caller,
        mode: u32,
        is_folder: bool,
    ) -> Override {
        let owned = Override { uid: caller.uid, gid: caller.gid, mode };
        match self.kept(parent) {
            Ok(Some(Override { gid, mode: of, .. })) if of & SET_GROUP != 0 => {
                Override { gid, mode: if is_folder { mode | SET_GROUP } else { mode }, ..owned }
            }
            _ => owned,
        }
    }

    /// What is kept of a file's owner; nothing where owners are not kept.
    ///
    /// # Errors
    /// The host does not say.
    pub(super) fn kept(&mut self, slot: Slot) -> Answer<Option<Override>> {
        if !self.keeps_owners() {
            return Ok(None);
        }
        let mut text = [0; 64];
        match self.attributes(slot)?.get(NAME, &mut text) {
            Ok(len) => Ok(text.get(..len).and_then(Override::parse)),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(errno(error)),
        }
    }

    /// What the guest is shown of it, where owners are kept.
    pub(super) fn override_of(&mut self, slot: Slot, stat: &Statx) -> Option<Override> {
        let kind = u32::from(stat.stx_mode) & KIND;
        // The host keeps attributes of users on these only.
        if matches!(kind, FILE | FOLDER) { self.kept(slot).ok().flatten() } else { None }
    }

    /// Keeps them; nothing where owners are not kept.
    pub(super) fn keep_override(&mut self, slot: Slot, owned: Override) -> Answer<()> {
        if !self.keeps_owners() {
            return Ok(());
        }
        let kept = self.attributes(slot)?.set(NAME, owned.text().as_bytes(), XattrFlags::empty());
        match kept {
            // Links, FIFOs and sockets have none.
            Err(rustix::io::Errno::PERM) => Ok(()),
            result => result.map_err(errno),
        }
    }

    /// Whether owners are kept.
    pub(super) fn keeps_owners(&self) -> bool {
        self.folder.options.owner == ShareOwner::Xattr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_that_of_containers_storage() {
        let owned = Override { uid: 1000, gid: 0, mode: 0o4755 };
        assert_eq!(owned.text(), "1000:0:04755");
        for text in ["1000:0:04755", "1000:0:4755", "1000:0:0104755:file"] {
            assert_eq!(Override::parse(text.as_bytes()), Some(owned), "{text}");
        }
        for wrong in ["", "1000:0", "x:0:0", "1:2:9", "-1:0:0", "\u{fe}"] {
            assert_eq!(Override::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
