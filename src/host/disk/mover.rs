//! Engines that move data between guest memory and one of several files.

use virtio::block::{Engine, Extent, Operation, Tag};
use virtio::memory::Segment;

/// Moves the data of an image, part by part.
pub(super) trait Mover: Engine {
    /// As [`Engine::submit`], on the file of this number: `extent` is of that file. `tag` names a part here.
    fn submit_to(
        &mut self,
        file: usize,
        tag: Tag,
        operation: Operation,
        extent: Extent,
        segments: &[Segment],
    );

    /// Whether a flush holds up nothing else.
    fn flushes(&self) -> bool {
        true
    }
}
