//! The boot loaders' configuration: GRUB's script, the Boot Loader Specification, extlinux and syslinux. This
//! module parses the languages; it opens no file system itself.

pub(super) mod bls;
pub(super) mod grub;
pub(super) mod syslinux;

use super::disk::ReadError;

/// The files that a boot loader reads, on its own partition and on others.
pub(super) trait Files {
    /// Charges work that costs as much as reading this many bytes.
    fn charge(&self, cost: u64) -> Result<(), ReadError>;
    /// GRUB's name of the device of these files, such as `hd0,2`.
    fn device(&self) -> String;
    /// The content of a text file on a device; `None` if there is none.
    fn text(&self, device: &str, path: &str) -> Result<Option<String>, ReadError>;
    /// Whether a device has a file system that can be read; the other methods use their own one in place of one that has not.
    fn has_device(&self, device: &str) -> bool;
    /// The length of a regular file.
    fn size(&self, device: &str, path: &str) -> Result<Option<u64>, ReadError>;
    /// Whether this is a folder.
    fn is_folder(&self, device: &str, path: &str) -> Result<bool, ReadError>;
    /// The entries of the Boot Loader Specification: names and contents.
    fn entries(&self, device: &str) -> Result<Vec<(String, String)>, ReadError>;
    /// The device whose file system has this UUID, label or file.
    fn search(&self, by: SearchBy, value: &str) -> Result<Option<String>, ReadError>;
    /// An attribute of a device; `None` if it is not known.
    fn attribute(&self, device: &str, attribute: DeviceAttribute) -> Option<String>;
}

/// Attributes of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeviceAttribute {
    Uuid,
    Label,
    PartUuid,
}

/// GRUB's ways to search for a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SearchBy {
    Uuid,
    Label,
    File,
}

/// A boot entry. Paths are as written; a path on another device begins with its name, as in
/// `(hd0,2)/vmlinuz`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Entry {
    /// The title in the menu, or the entry's name.
    pub(super) title: String,
    pub(super) kernel: String,
    /// Loaded one after the other.
    pub(super) initrds: Vec<String>,
    pub(super) options: String,
}
