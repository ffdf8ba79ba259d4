//! What a serial port is wired to, in vm-superio's terms: output, interrupt line.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::Trigger;

use crate::irq::Irq;
use crate::ration::Ration;

/// Where a console's output goes.
pub trait ConsoleSink: fmt::Debug + Send {
    /// Takes all of `bytes`, in order. Never waits: the port is locked meanwhile, and input needs it.
    fn write(&mut self, bytes: &[u8]);
}

/// vm-superio's trigger in terms of our capability. Clones are of the same line.
#[derive(Debug, Clone)]
pub(super) struct Line(Arc<LineState>);

#[derive(Debug)]
struct LineState {
    irq: Arc<dyn Irq>,
    /// An interrupt waits for [`Line::release`].
    held: AtomicBool,
    owed: AtomicBool,
    ration: Ration,
}

impl Line {
    pub(super) fn new(irq: Arc<dyn Irq>) -> Self {
        let (held, owed) = (AtomicBool::new(false), AtomicBool::new(false));
        Line(Arc::new(LineState { irq, held, owed, ration: Ration::default() }))
    }

    /// Raises no interrupt until [`Line::release`].
    pub(super) fn hold(&self) {
        self.0.held.store(true, Ordering::Relaxed);
    }

    /// Raises an interrupt that came since [`Line::hold`], and later ones at once.
    pub(super) fn release(&self) {
        self.0.held.store(false, Ordering::Relaxed);
        if self.0.owed.swap(false, Ordering::Relaxed) {
            let Ok(()) = self.trigger();
        }
    }
}

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        let line = &*self.0;
        if line.held.load(Ordering::Relaxed) {
            line.owed.store(true, Ordering::Relaxed);
            return Ok(());
        }
        if let Err(error) = line.irq.trigger()
            && let Some(left_out) = line.ration.take()
        {
            log::warn!("the serial port's interrupt could not be raised: {error}{left_out}");
        }
        Ok(())
    }
}

/// vm-superio's writer in terms of our sink; the sink is taken out when the registers are replaced.
#[derive(Debug)]
pub(super) struct Output(pub(super) Option<Box<dyn ConsoleSink>>);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(sink) = &mut self.0 {
            sink.write(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
