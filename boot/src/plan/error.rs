//! Why a kernel cannot be started.

use crate::entry::Protocol;
use crate::kernel::Format;

/// Why a boot cannot work, found before it starts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Too little memory to reach /init.
    #[error(
        "{} of memory are too little for this kernel{}: it needs about {} MiB.",
        mib(*given), if *initrd { " with this initrd" } else { "" }, needed >> 20
    )]
    NotEnoughMemory {
        /// Bytes that are expected to be enough, in whole MiB.
        needed: u64,
        /// Bytes of memory.
        given: u64,
        /// Whether an initrd is part of the need.
        initrd: bool,
    },
    /// The kernel would truncate it.
    #[error("The kernel command line is {len} bytes long and this kernel takes {max} at most: shorten it.")]
    CmdlineTooLong {
        /// Its length.
        len: u64,
        /// The maximum.
        max: u64,
    },
    /// A zero byte would terminate it early.
    #[error("The kernel command line has a zero byte at position {0}: remove it.")]
    CmdlineHasNul(usize),
    /// It does not fit whatever the memory size.
    #[error(
        "The initrd of {len} bytes does not fit: this kernel takes one of {max} bytes at most. Make it smaller."
    )]
    InitrdTooLarge {
        /// Its length.
        len: u64,
        /// The maximum.
        max: u64,
    },
    /// The kernel's address is in the machine's own structures.
    #[error(
        "The kernel wants to be loaded at {address:#x} and memory below {limit:#x} belongs to the machine: \
         link it for {limit:#x} or above."
    )]
    KernelTooLow {
        /// Its address.
        address: u64,
        /// First address for a kernel.
        limit: u64,
    },
    /// The kernel's address is where there is never RAM, or above it.
    #[error(
        "The kernel reaches up to {end:#x} and must end below {limit:#x}, where the PCI window starts: \
         link it lower."
    )]
    KernelTooHigh {
        /// Its end.
        end: u64,
        /// Its maximum end.
        limit: u64,
    },
    /// The kernel does not have the requested entry.
    #[error("This kernel ({format}) has no {wanted} entry: leave the choice of the entry to the machine.")]
    NoSuchEntry {
        /// The request.
        wanted: Protocol,
        /// The kernel's format.
        format: Format,
    },
}

/// An amount for people, exact if it is not in whole MiB.
fn mib(bytes: u64) -> String {
    match bytes {
        bytes if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
        bytes => format!("{bytes} bytes"),
    }
}
