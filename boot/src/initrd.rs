//! What has to be known of an initrd to place it: its length and whether it will grow. One small read.

use std::io;

use crate::compression::Compression;
use crate::read::ReadAt;

/// An initrd file that can be handed to a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initrd {
    len: u64,
    compression: Option<Compression>,
}

/// A file that cannot serve as an initrd. The path is the caller's to add.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitrdError {
    /// The operating system refused to read it.
    #[error("The initrd cannot be read.")]
    Read(#[source] io::Error),
    /// Nothing in it.
    #[error("The initrd is empty: copy it again, or make it anew (Debian: update-initramfs -u).")]
    Empty,
    /// A bzImage.
    #[error(
        "This is a kernel and was given as the initrd: give it as the kernel, and /boot/initrd.img-* here."
    )]
    Kernel,
}

impl Initrd {
    /// Looks at the first bytes of `file`. Any content passes but a kernel: what an initrd is, the guest decides.
    pub fn parse<R: ReadAt + ?Sized>(file: &R) -> Result<Self, InitrdError> {
        let len = file.length().map_err(InitrdError::Read)?;
        let mut head = [0; 0x206];
        let read = file.read_at(&mut head, 0).map_err(InitrdError::Read)?;
        if len == 0 || read == 0 {
            return Err(InitrdError::Empty);
        }
        // The magic of a bzImage's setup header, at 0x202.
        if head.ends_with(b"HdrS") {
            return Err(InitrdError::Kernel);
        }
        Ok(Initrd { len, compression: Compression::of(&head) })
    }

    /// Length in bytes.
    pub fn file_len(&self) -> u64 {
        self.len
    }

    /// How it is packed; `None` for a plain archive, and for one that starts with a plain part (CPU microcode).
    pub fn compression(&self) -> Option<Compression> {
        self.compression
    }

    /// Memory for the initrd and what the kernel unpacks from it: it is freed only afterwards. Debian's initrds grow
    /// to three to four times their size (zstd), and what has been unpacked must fit into half of the memory, the
    /// limit of the tmpfs that it goes to.
    pub(crate) fn working_memory(&self) -> u64 {
        self.len.saturating_mul(if self.compression.is_some() { 4 } else { 2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_given_as_initrd_is_named() {
        let mut file = vec![0; 0x400];
        file[0x202..0x206].copy_from_slice(b"HdrS");
        let error = Initrd::parse(&file[..]).unwrap_err();
        assert!(error.to_string().contains("give it as the kernel"), "{error}");
    }

    #[test]
    fn empty_initrd_is_an_error() {
        assert!(matches!(Initrd::parse(&[][..]), Err(InitrdError::Empty)));
    }

    #[test]
    fn packed_initrd_needs_more_room_than_a_plain_one() {
        let packed = Initrd::parse(&b"\x28\xb5\x2f\xfd...."[..]).unwrap();
        let plain = Initrd::parse(&b"070701.."[..]).unwrap();
        assert_eq!((packed.working_memory(), plain.working_memory()), (32, 16));
    }
}
