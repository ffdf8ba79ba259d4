//! What boot loaders' files say to boot: GRUB's script, the Boot Loader Specification, extlinux and syslinux. This module owns
//! their languages; it opens no file system itself.

pub(super) mod bls;
pub(super) mod grub;
pub(super) mod syslinux;

use super::disk::ReadError;

/// The files that a boot loader reads, on its own partition and on the others.
pub(super) trait Files {
    /// Some work is to be done that costs as much as reading so many bytes.
    fn charge(&self, cost: u64) -> Result<(), ReadError>;
    /// What GRUB calls the device that these files are on, such as `hd0,2`.
    fn device(&self) -> String;
    /// The content of a file on a device; `None` if there is none or it is no text.
    fn text(&self, device: &str, path: &str) -> Result<Option<String>, ReadError>;
    /// The length of a regular file.
    fn size(&self, device: &str, path: &str) -> Result<Option<u64>, ReadError>;
    /// Whether this is a folder.
    fn is_folder(&self, device: &str, path: &str) -> Result<bool, ReadError>;
    /// The entries of the Boot Loader Specification: names and contents.
    fn entries(&self, device: &str) -> Result<Vec<(String, String)>, ReadError>;
    /// The device whose file system has this name or this file.
    fn search(&self, by: SearchBy, value: &str) -> Result<Option<String>, ReadError>;
    /// What a device is called; `None` for one that is not known.
    fn attribute(&self, device: &str, attribute: DeviceAttribute) -> Option<String>;
}

/// What can be asked about a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeviceAttribute {
    Uuid,
    Label,
    PartUuid,
}

/// How GRUB looks for a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SearchBy {
    Uuid,
    Label,
    File,
}

/// What to boot. Paths are as they are written; those on another device stand behind its name, as in `(hd0,2)/vmlinuz`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Entry {
    /// What the menu shows, or the entry's name.
    pub(super) title: String,
    pub(super) kernel: String,
    /// They are loaded one behind the other.
    pub(super) initrds: Vec<String>,
    pub(super) options: String,
}
