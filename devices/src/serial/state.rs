//! What a serial port is at one moment, for snapshots.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{ConsoleSink, FIFO, IIR_NONE, IIR_RECEIVED, IIR_SENT, LSR_DATA_READY, MCR_LOOP, POLLS, Serial};
use crate::console::ByteQueue;
use crate::irq::Irq;

/// LSR with an idle transmitter: THRE and TEMT.
const LSR_IDLE: u8 = 0x60;
const IER_VALID: u8 = 0x0f;

/// A saved serial port. Bytes still in the host's input queue are the host's and not part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialState {
    /// Layout of this structure; [`SerialState::VERSION`].
    pub version: u16,
    /// Divisor latch.
    pub divisor: u16,
    /// Interrupt enable register.
    pub ier: u8,
    /// Interrupt identification register.
    pub iir: u8,
    /// Line control register.
    pub lcr: u8,
    /// Modem control register.
    pub mcr: u8,
    /// Modem status register.
    pub msr: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Bytes in the receive FIFO.
    pub fifo: Vec<u8>,
    /// Input set aside during loopback.
    pub held: Vec<u8>,
    /// A "transmitter empty" not yet told.
    pub sent_pending: bool,
    /// Consecutive status reads.
    pub polls: u8,
}

impl SerialState {
    /// The only layout so far.
    pub const VERSION: u16 = 1;
}

/// A saved serial port that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SerialStateError {
    /// Written by another version of this program.
    #[error("the saved serial port has version {0}, and only version {version} is understood; restore it with the program that saved it", version = SerialState::VERSION)]
    Version(u16),
    /// More bytes than a FIFO has.
    #[error(
        "the saved serial port holds {0} bytes of input, more than the {FIFO} that one can hold; the file is damaged"
    )]
    TooMuchInput(usize),
}

impl Serial {
    /// What this port is now.
    pub fn state(&self) -> SerialState {
        let registers = self.registers.state();
        SerialState {
            version: SerialState::VERSION,
            divisor: u16::from_le_bytes([registers.baud_divisor_low, registers.baud_divisor_high]),
            ier: registers.interrupt_enable,
            iir: registers.interrupt_identification,
            lcr: registers.line_control,
            mcr: registers.modem_control,
            msr: registers.modem_status,
            scratch: registers.scratch,
            fifo: registers.in_buffer,
            held: self.held.iter().copied().collect(),
            sent_pending: self.sent_pending,
            polls: self.polls,
        }
    }

    /// A port as `state` says. A pending interrupt is raised again.
    ///
    /// # Errors
    /// [`SerialStateError`] where no port can be in such a state.
    pub fn from_state(
        state: &SerialState,
        irq: Arc<dyn Irq>,
        output: Box<dyn ConsoleSink>,
        input: Arc<ByteQueue>,
    ) -> Result<Self, SerialStateError> {
        if state.version != SerialState::VERSION {
            return Err(SerialStateError::Version(state.version));
        }
        // In loopback the FIFO's bytes are the guest's and the held ones the host's; else both are the host's.
        let host_fifo = if state.mcr & MCR_LOOP == 0 { state.fifo.len() } else { 0 };
        let most = state.fifo.len().max(state.held.len().saturating_add(host_fifo));
        if most > FIFO {
            return Err(SerialStateError::TooMuchInput(most));
        }
        let [baud_divisor_low, baud_divisor_high] = state.divisor.to_le_bytes();
        let pending = state.iir & (IIR_SENT | IIR_RECEIVED);
        let mut port = Serial::new(irq, output, input);
        port.replace_registers(&vm_superio::serial::SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.ier & IER_VALID,
            interrupt_identification: if pending == 0 { IIR_NONE } else { pending },
            line_control: state.lcr,
            line_status: LSR_IDLE | if state.fifo.is_empty() { 0 } else { LSR_DATA_READY },
            modem_control: state.mcr,
            modem_status: state.msr,
            scratch: state.scratch,
            in_buffer: state.fifo.clone(),
        });
        port.held = VecDeque::from(state.held.clone());
        port.sent_pending = state.sent_pending;
        port.polls = state.polls.min(POLLS);
        port.fill_fifo();
        Ok(port)
    }
}
