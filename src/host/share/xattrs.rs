//! Extended attributes: those of users are the guest's, but for the one that owners are kept in.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::XattrFlags;
use rustix::io::Result;
use virtio::fs::{Answer, Errno, Node, SetXattr};

use super::nodes::{ROOT, Slot};
use super::owners::NAME;
use super::{Share, errno};
use crate::host::proc_path::proc_path;

/// Most bytes of an attribute's value, and of the names of all (`XATTR_SIZE_MAX`).
const MOST: usize = 64 << 10;

/// Where the attributes of a file are: a path that goes by an open descriptor of this process.
#[derive(Debug)]
pub(super) struct Attributes {
    path: PathBuf,
    /// The path ends with the kernel's link to the descriptor; what has a name in a folder is not followed.
    follows: bool,
    _open: Arc<OwnedFd>,
}

impl Attributes {
    pub(super) fn get(&self, name: &[u8], into: &mut [u8]) -> Result<usize> {
        let path = self.path.as_path();
        if self.follows {
            rustix::fs::getxattr(path, name, into)
        } else {
            rustix::fs::lgetxattr(path, name, into)
        }
    }

    pub(super) fn set(&self, name: &[u8], value: &[u8], flags: XattrFlags) -> Result<()> {
        let path = self.path.as_path();
        if self.follows {
            rustix::fs::setxattr(path, name, value, flags)
        } else {
            rustix::fs::lsetxattr(path, name, value, flags)
        }
    }

    fn list(&self, into: &mut [u8]) -> Result<usize> {
        let path = self.path.as_path();
        if self.follows { rustix::fs::listxattr(path, into) } else { rustix::fs::llistxattr(path, into) }
    }

    fn remove(&self, name: &[u8]) -> Result<()> {
        let path = self.path.as_path();
        if self.follows { rustix::fs::removexattr(path, name) } else { rustix::fs::lremovexattr(path, name) }
    }
}

impl Share {
    /// Those of a file that is known.
    pub(super) fn attributes(&mut self, slot: Slot) -> Answer<Attributes> {
        let by_link = |open: Arc<OwnedFd>| Attributes { path: proc_path(&open), follows: true, _open: open };
        if let Some(open) = self.any_open(slot) {
            return Ok(by_link(open));
        }
        if slot == ROOT || self.nodes.get(slot)?.identity.is_folder() {
            return self.folder(slot).map(by_link);
        }
        let (folder, name) = self.known_place(slot)?;
        Ok(Attributes {
            path: proc_path(&folder).join(OsStr::from_bytes(&name)),
            follows: false,
            _open: folder,
        })
    }

    fn attributes_of(&mut self, node: Node) -> Answer<Attributes> {
        let slot = self.nodes.slot(node)?;
        self.attributes(slot)
    }

    pub(super) fn get_attribute(&mut self, node: Node, name: &[u8], value: &mut Vec<u8>) -> Answer<()> {
        if name == b"security.capability" {
            // Linux asks before writes: there are none, and nobody need ask the host.
            return Err(Errno::NODATA);
        }
        is_users(name)?;
        let attributes = self.attributes_of(node)?;
        let at = value.len();
        value.resize(at + MOST, 0);
        let len = attributes.get(name, value.get_mut(at..).unwrap_or_default());
        value.truncate(at + len.map_err(errno)?);
        Ok(())
    }

    pub(super) fn list_attributes(&mut self, node: Node, names: &mut Vec<u8>) -> Answer<()> {
        let mut all = vec![0; MOST];
        let len = self.attributes_of(node)?.list(&mut all);
        all.truncate(len.map_err(errno)?);
        let seen = all.split(|byte| *byte == 0).filter(|name| !name.is_empty() && is_users(name).is_ok());
        for name in seen {
            names.extend(name);
            names.push(0);
        }
        Ok(())
    }

    pub(super) fn set_attribute(
        &mut self,
        node: Node,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
    ) -> Answer<()> {
        is_users(name)?;
        let flags = match how {
            SetXattr::Any => XattrFlags::empty(),
            SetXattr::Create => XattrFlags::CREATE,
            SetXattr::Replace => XattrFlags::REPLACE,
        };
        self.attributes_of(node)?.set(name, value, flags).map_err(errno)
    }

    pub(super) fn remove_attribute(&mut self, node: Node, name: &[u8]) -> Answer<()> {
        is_users(name)?;
        self.attributes_of(node)?.remove(name).map_err(errno)
    }
}

/// Whether the guest may use the attribute `name`: those of users. `security.` and `trusted.` are the host's.
fn is_users(name: &[u8]) -> Answer<()> {
    if name.starts_with(b"user.") && name != NAME { Ok(()) } else { Err(Errno::NOTSUP) }
}
