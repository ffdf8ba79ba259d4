//! Facts about a kernel or an initrd, for diagnosis. Takes its time (a whole initrd is unpacked in a stream),
//! keeps little memory, and is never part of a boot.

pub(crate) mod cpio;
mod initrd;
mod kernel;

pub use initrd::{Contents, Coverage, InitrdFacts, Part, inspect_initrd};
pub use kernel::{KernelFacts, inspect_kernel};

use std::io::{self, Read};

use crate::read::ReadAt;

/// A file as a stream with its own position.
pub(crate) struct Stream<'a, R: ?Sized> {
    pub(crate) file: &'a R,
    pub(crate) at: u64,
}

impl<R: ReadAt + ?Sized> Read for Stream<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buf, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
