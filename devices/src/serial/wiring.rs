//! What a serial port is wired to, in vm-superio's terms: output, interrupt line.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;

use crate::irq::Irq;
use crate::ration::Ration;

/// Where a console's output goes.
pub trait ConsoleSink: fmt::Debug + Send {
    /// Takes all of `bytes`, in order, and never waits: the port is locked, and whoever types needs it.
    fn write(&mut self, bytes: &[u8]);
}

/// vm-superio's trigger in terms of our capability.
#[derive(Debug, Clone)]
pub(super) struct Line {
    irq: Arc<dyn Irq>,
    ration: Arc<Ration>,
}

impl Line {
    pub(super) fn new(irq: Arc<dyn Irq>) -> Self {
        Line { irq, ration: Arc::default() }
    }
}

impl vm_superio::Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        if let Err(error) = self.irq.trigger() {
            if let Some(left_out) = self.ration.take() {
                log::warn!("the serial port's interrupt could not be raised: {error}{left_out}");
            }
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
