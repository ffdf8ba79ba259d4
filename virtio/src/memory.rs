//! Guest memory as devices see it: checked, volatile accessors, and a way to give pages back to the host.

use std::fmt::Debug;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::dirty::DirtyBitmap;

/// Guest memory on the host's side, with marks of what was written.
pub type Regions = GuestMemoryMmap<DirtyBitmap>;

/// What owns the host's side of guest memory. It outlives every [`Memory`] that was made from it.
pub trait MemoryOwner: Debug + Send + Sync {
    /// Gives `len` bytes at `start` back to the host: they read as zeros afterwards. Only whole host pages inside the
    /// range are given back.
    ///
    /// # Errors
    /// The range is not guest memory, or the host refused.
    fn discard(&self, start: GuestAddress, len: u64) -> io::Result<()>;
}

/// A handle on a machine's memory; clones are cheap and keep it mapped.
#[derive(Debug, Clone)]
pub struct Memory {
    regions: Regions,
    owner: Arc<dyn MemoryOwner>,
}

impl Memory {
    /// The memory of `regions`, which stays mapped while `owner` lives.
    pub fn new(regions: Regions, owner: Arc<dyn MemoryOwner>) -> Self {
        Memory { regions, owner }
    }

    /// See [`MemoryOwner::discard`].
    ///
    /// # Errors
    /// As there.
    pub fn discard(&self, start: GuestAddress, len: u64) -> io::Result<()> {
        self.owner.discard(start, len)
    }

    /// Whether anybody wants to know what is written: then [`Memory::written`] has to be told of what was written through
    /// a pointer.
    pub fn is_logged(&self) -> bool {
        self.regions.iter().next().is_some_and(|region| (**region).bitmap().is_on())
    }

    /// Marks `len` bytes at `start` as written, for the accesses that do not go through this handle: those of the kernel.
    pub fn written(&self, start: GuestAddress, len: u64) {
        let slice = usize::try_from(len).map(|len| self.regions.get_slice(start, len));
        if let Ok(Ok(slice)) = slice {
            slice.bitmap().mark_dirty(0, slice.len());
        }
    }

    /// Whether `len` bytes at `start` are guest memory in one piece on the host's side.
    pub fn holds(&self, start: GuestAddress, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.regions.get_slice(start, len).is_ok())
    }
}

impl Deref for Memory {
    type Target = Regions;

    fn deref(&self) -> &Regions {
        &self.regions
    }
}

/// A piece of guest memory that a descriptor names; checked to be guest memory, in one piece on the host's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub address: GuestAddress,
    /// Bytes.
    pub len: u32,
}

/// Bytes in `segments`. A chain never holds more than [`crate::queue::MOST_CHAIN_BYTES`], so that it cannot overflow.
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// Appends to `out` the part of `segments` that starts at byte `skip` and has at most `take` bytes.
pub fn cut(segments: &[Segment], skip: u64, take: u64, out: &mut Vec<Segment>) {
    let (mut skip, mut take) = (skip, take);
    for segment in segments {
        let len = u64::from(segment.len);
        if skip >= len {
            skip -= len;
            continue;
        }
        let part = (len - skip).min(take);
        if part == 0 {
            return;
        }
        // `part` is at most `segment.len`, and the address was checked with its whole length.
        let (Ok(len), Some(address)) = (u32::try_from(part), segment.address.0.checked_add(skip)) else {
            return;
        };
        out.push(Segment { address: GuestAddress(address), len });
        skip = 0;
        take -= part;
    }
}
