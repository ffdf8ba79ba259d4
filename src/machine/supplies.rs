//! What a program gives its machine besides the spec: what has no name in a file or on a command line.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use boot::read::ReadAt;
use devices::console::ByteQueue;
use virtio::console::{Backend, Stream};

use super::StartError;

/// Something to boot from that is in no file; it is read as often as the machine boots.
pub(crate) trait Image: ReadAt + Debug + Send + Sync {}

impl<T: ReadAt + Debug + Send + Sync> Image for T {}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Supplies {
    /// In place of the initrd of the spec.
    pub(crate) initrd: Option<Arc<dyn Image>>,
    /// Named ports whose other end is in this process.
    pub(crate) streams: Vec<StreamPort>,
}

/// A named port between the guest and this process.
#[derive(Debug, Clone)]
pub(crate) struct StreamPort {
    pub(crate) name: &'static str,
    /// What the guest reads. Once it is closed and empty the guest sees the end of a file.
    pub(crate) input: Arc<ByteQueue>,
    /// What it writes; it waits while this is full.
    pub(crate) output: Arc<ByteQueue>,
}

impl StreamPort {
    /// The way to it for the device of one boot.
    pub(super) fn backend(&self) -> Result<Box<dyn Backend>, StartError> {
        let stream = Stream::new(self.input.clone(), self.output.clone());
        let stream: io::Result<Box<dyn Backend>> = stream.map(|stream| Box::new(stream.that_ends()) as _);
        stream.map_err(StartError::Descriptors)
    }
}
