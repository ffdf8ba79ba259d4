//! What a program gives its machine besides the spec: what has no name in a file or on a command line.

use std::fmt::{self, Debug};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;

use boot::read::ReadAt;
use devices::console::ByteQueue;
use virtio::console::{Backend, Stream};

use super::StartError;
use super::deadline::Progress;
use super::files::Prepared;
use super::net_handles::BoundForward;
use super::saved::{GuestClock, Restore};

/// Something to boot from that is in no file; it is read as often as the machine boots.
pub(crate) trait Image: ReadAt + Debug + Send + Sync {}

impl<T: ReadAt + Debug + Send + Sync> Image for T {}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct RunResources {
    /// The files of the spec where they are open already, and what was found in them.
    pub(crate) prepared: Option<Prepared>,
    /// What the start is doing.
    pub(crate) progress: Progress,
    /// Named ports whose other end is in this process.
    pub(crate) streams: Vec<StreamPort>,
    /// Called once, when everything is there and the guest is about to run for the first time.
    pub(crate) about_to_run: BeforeRun,
    /// What the first boot goes on from, instead of a kernel's entry.
    pub(crate) restore: Option<Restore>,
    /// From when its clocks go on, if that is not as it says itself.
    pub(crate) clock: Option<GuestClock>,
}

type Call = Box<dyn FnOnce(&[BoundForward]) -> io::Result<()> + Send>;

/// A call that is made once.
#[derive(Clone, Default)]
pub(crate) struct BeforeRun(Arc<Mutex<Option<Call>>>);

impl BeforeRun {
    pub(crate) fn new(call: impl FnOnce(&[BoundForward]) -> io::Result<()> + Send + 'static) -> Self {
        BeforeRun(Arc::new(Mutex::new(Some(Box::new(call)))))
    }

    /// Makes the call, if it has not been made yet.
    pub(super) fn call(&self, forwards: &[BoundForward]) -> io::Result<()> {
        let call = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        call.map_or(Ok(()), |call| call(forwards))
    }
}

impl Debug for BeforeRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BeforeRun").finish_non_exhaustive()
    }
}

/// A named port between the guest and this process.
#[derive(Debug, Clone)]
pub(crate) struct StreamPort {
    /// `None` is a terminal: the guest's second virtio console.
    pub(crate) name: Option<&'static str>,
    /// What the guest reads. Once it is closed and empty the guest sees the end of a file.
    pub(crate) input: Arc<ByteQueue>,
    /// What it writes; it waits while this is full. Of a terminal the vCPUs do, as Linux does not know how to.
    pub(crate) output: Arc<ByteQueue>,
}

impl StreamPort {
    /// The way to it for the device of one boot. `hold_up` is woken when a terminal has more output than it shall have.
    pub(super) fn backend(&self, hold_up: &Waker) -> Result<Box<dyn Backend>, StartError> {
        let stream = Stream::new(self.input.clone(), self.output.clone()).map_err(StartError::Descriptors)?;
        let stream = match self.name {
            Some(_) => stream.that_ends(),
            // One is there always.
            None => stream.that_holds_up(hold_up.clone()),
        };
        Ok(Box::new(stream.that_goes_on()))
    }
}
