//! The supported file systems behind one interface: names to files, files to the locations of their bytes.

use super::disk::{Disk, ReadError, Window};
use super::ext::{ExtFs, Inode};
use super::fat::{self, FatFs};
use super::runs::Run;

/// Kinds of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, a FIFO, a socket.
    Special,
}

/// A file system on a part of a disk.
#[derive(Debug)]
pub(super) enum FileSystem<'a> {
    Ext(ExtFs<'a>),
    Fat(FatFs<'a>),
}

/// A file or folder.
#[derive(Debug, Clone)]
pub(super) enum Node {
    Ext(Box<Inode>),
    Fat(fat::Node),
}

impl Node {
    pub(super) fn kind(&self) -> FileKind {
        match self {
            Node::Ext(inode) => inode.kind,
            Node::Fat(node) => node.kind,
        }
    }

    /// The length of a file in bytes.
    pub(super) fn size(&self) -> u64 {
        match self {
            Node::Ext(inode) => inode.size,
            Node::Fat(node) => node.size,
        }
    }
}

impl<'a> FileSystem<'a> {
    /// Opens the file system in `window`; `None` if there is none that is supported.
    pub(super) fn open(disk: &'a Disk<'a>, window: Window) -> Result<Option<Self>, ReadError> {
        if let Some(fs) = ExtFs::open(disk, window)? {
            return Ok(Some(FileSystem::Ext(fs)));
        }
        Ok(FatFs::open(disk, window)?.map(FileSystem::Fat))
    }

    /// Charges work that costs as much as reading this many bytes.
    pub(super) fn charge(&self, cost: u64) -> Result<(), ReadError> {
        match self {
            FileSystem::Ext(fs) => fs.disk.charge(cost),
            FileSystem::Fat(fs) => fs.disk.charge(cost),
        }
    }

    /// Its kind, for people.
    pub(super) fn name(&self) -> &'static str {
        match self {
            FileSystem::Ext(fs) => fs.name(),
            FileSystem::Fat(_) => "FAT",
        }
    }

    /// Its length in bytes, as it says itself; `None` if that may be out of date.
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            FileSystem::Ext(fs) => fs.length(),
            FileSystem::Fat(fs) => Some(fs.length()),
        }
    }

    /// Whether its last changes are not visible here.
    pub(super) fn has_fast_commits(&self) -> bool {
        matches!(self, FileSystem::Ext(fs) if fs.has_fast_commits())
    }

    /// Whether Linux could have its root on it.
    pub(super) fn may_be_root(&self) -> bool {
        matches!(self, FileSystem::Ext(_))
    }

    /// The value of `UUID=` in an fstab.
    pub(super) fn uuid(&self) -> &str {
        match self {
            FileSystem::Ext(fs) => fs.uuid(),
            FileSystem::Fat(fs) => fs.uuid(),
        }
    }

    pub(super) fn label(&self) -> &str {
        match self {
            FileSystem::Ext(fs) => fs.label(),
            FileSystem::Fat(fs) => fs.label(),
        }
    }

    /// Looks up a path; symbolic links are followed and stay within the file system. `None` if there is no
    /// such name.
    pub(super) fn find(&self, path: &str) -> Result<Option<Node>, ReadError> {
        Ok(match self {
            FileSystem::Ext(fs) => fs.find(path)?.map(|inode| Node::Ext(Box::new(inode))),
            FileSystem::Fat(fs) => fs.find(path)?.map(Node::Fat),
        })
    }

    /// The names in a folder, at most `max` of those that are `wanted`.
    pub(super) fn list(
        &self,
        folder: &Node,
        max: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, ReadError> {
        match (self, folder) {
            (FileSystem::Ext(fs), Node::Ext(inode)) => fs.list(inode, max, wanted),
            (FileSystem::Fat(fs), Node::Fat(node)) => fs.list(node, max, wanted),
            _ => Ok(Vec::new()),
        }
    }

    /// The runs of a file's bytes on the disk. A file longer than `max` is refused before its map is read.
    pub(super) fn runs(&self, file: &Node, max: u64) -> Result<Vec<Run>, ReadError> {
        match (self, file) {
            (FileSystem::Ext(fs), Node::Ext(inode)) => fs.runs(inode, max),
            (FileSystem::Fat(fs), Node::Fat(node)) => fs.runs(node, max),
            _ => Ok(Vec::new()),
        }
    }

    /// The content of a small file.
    pub(super) fn read(&self, file: &Node, max: u64) -> Result<Vec<u8>, ReadError> {
        match (self, file) {
            (FileSystem::Ext(fs), Node::Ext(inode)) => fs.read(inode, max),
            (FileSystem::Fat(fs), Node::Fat(node)) => fs.read(node, max),
            _ => Ok(Vec::new()),
        }
    }
}
