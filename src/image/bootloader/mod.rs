//! What boot loaders' files say to boot: GRUB's script, the Boot Loader Specification, extlinux and syslinux. This module owns
//! their languages; it opens no file system itself.

pub(super) mod bls;
pub(super) mod grub;
pub(super) mod syslinux;

use super::disk::ReadError;

/// Files of the partition that a boot loader reads.
pub(super) trait Files {
    /// The content of a file; `None` if there is none or it is no text.
    fn text(&self, path: &str) -> Result<Option<String>, ReadError>;
    /// The entries of the Boot Loader Specification: names and contents.
    fn entries(&self) -> Result<Vec<(String, String)>, ReadError>;
}

/// What to boot. Paths are as they are written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Entry {
    /// What the menu shows, or the entry's name.
    pub(super) title: String,
    pub(super) kernel: String,
    /// They are loaded one behind the other.
    pub(super) initrds: Vec<String>,
    pub(super) options: String,
}
