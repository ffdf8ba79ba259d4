//! Whether the vCPUs of one boot may run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::console::ByteQueue;

/// What every vCPU asks before it enters the guest, and wherever it may have to wait for somebody outside.
#[derive(Debug)]
pub(super) struct Gate {
    shut: AtomicBool,
    /// The only thing that a vCPU waits for: room for the guest's output.
    output: Arc<ByteQueue>,
}

impl Gate {
    pub(super) fn new(output: Arc<ByteQueue>) -> Self {
        Gate { shut: AtomicBool::new(false), output }
    }

    /// Lets no vCPU in any more, nor wait. Those inside the guest have to be called out.
    pub(super) fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
        self.output.nudge();
    }

    pub(super) fn is_open(&self) -> bool {
        !self.shut.load(Ordering::SeqCst)
    }
}
