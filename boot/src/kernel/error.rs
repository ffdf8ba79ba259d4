//! Why a file is not a kernel that can be loaded. The caller adds the path.

use std::io;

use super::foreign::Foreign;

/// Why a kernel file cannot be used. Each message says what the file is and what to give instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The host refused.
    #[error("The kernel file cannot be read.")]
    Read(#[source] io::Error),
    /// It is empty.
    #[error("The kernel file is empty: copy or download it again.")]
    Empty,
    /// It is another kind of file.
    #[error("{0}")]
    Foreign(Foreign),
    /// It ends before its content according to its headers.
    #[error(
        "The kernel file is cut short: its {what} reaches to byte {needed} and the file ends at {len}. \
         Copy or download it again."
    )]
    Truncated {
        /// The part that is incomplete.
        what: &'static str,
        /// The end of that part, in bytes from the start of the file.
        needed: u64,
        /// Length of the file.
        len: u64,
    },
    /// A bzImage of a boot protocol without a relocatable kernel.
    #[error(
        "The kernel speaks version {major}.{minor:02} of the Linux boot protocol and 2.05 is needed: \
         use Linux 2.6.20 or later."
    )]
    OldProtocol {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// `LOADED_HIGH` is not set.
    #[error("The kernel is a zImage, made to load below 1 MiB: use a bzImage.")]
    NotHigh,
    /// An invalid field of the setup header.
    #[error("The kernel's setup header is damaged: {0}. Copy or download the file again.")]
    BadHeader(&'static str),
    /// An ELF kernel for a Multiboot loader, with that protocol's entry.
    #[error(
        "The kernel is made for a Multiboot loader, such as GRUB, and has no PVH note: put one into it \
         (XEN_ELFNOTE_PHYS32_ENTRY with the address of a 32-bit entry)."
    )]
    Multiboot,
    /// Invalid ELF headers.
    #[error("The ELF kernel is damaged or was linked wrongly: {0}.")]
    BadElf(&'static str),
}
