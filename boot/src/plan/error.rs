//! Why a kernel cannot be started as asked.

use crate::entry::Protocol;
use crate::kernel::Format;

/// A boot that cannot work, found before anything is done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Too little RAM to reach /init.
    #[error(
        "{} of memory are too little for this kernel{}: it needs about {} MiB.",
        mib(*given), if *initrd { " with this initrd" } else { "" }, needed >> 20
    )]
    NotEnoughMemory {
        /// Bytes that are expected to do; whole MiB.
        needed: u64,
        /// Bytes there are.
        given: u64,
        /// Whether an initrd is part of the need.
        initrd: bool,
    },
    /// The kernel would not keep all of it.
    #[error("The kernel command line is {len} bytes long and this kernel takes {max} at most: shorten it.")]
    CmdlineTooLong {
        /// Its length.
        len: u64,
        /// The longest that fits.
        max: u64,
    },
    /// A zero byte would end it early.
    #[error("The kernel command line has a zero byte at position {0}: remove it.")]
    CmdlineHasNul(usize),
    /// No memory size makes room for it.
    #[error(
        "The initrd of {len} bytes does not fit: this kernel takes one of {max} bytes at most. Make it smaller."
    )]
    InitrdTooLarge {
        /// Its length.
        len: u64,
        /// The longest that fits.
        max: u64,
    },
    /// The kernel wants to be where the machine keeps its own structures.
    #[error(
        "The kernel wants to be loaded at {address:#x} and memory below {limit:#x} belongs to the machine: \
         link it for {limit:#x} or above."
    )]
    KernelTooLow {
        /// Where it wants to be.
        address: u64,
        /// First address a kernel may have.
        limit: u64,
    },
    /// The kernel wants to be where there is never any RAM, or above it.
    #[error(
        "The kernel reaches up to {end:#x} and must end below {limit:#x}, where the PCI window starts: \
         link it lower."
    )]
    KernelTooHigh {
        /// Its end.
        end: u64,
        /// Where it must end.
        limit: u64,
    },
    /// The asked-for entry does not exist in this kernel.
    #[error("This kernel ({format}) has no {wanted} entry: leave the choice of the entry to the machine.")]
    NoSuchEntry {
        /// What was asked for.
        wanted: Protocol,
        /// What the kernel is.
        format: Format,
    },
}

/// Bytes as people say them, exact where it matters.
fn mib(bytes: u64) -> String {
    match bytes {
        bytes if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes => format!("{bytes} bytes"),
    }
}
