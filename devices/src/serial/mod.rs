//! The 16550 UART: register file from vm-superio, and around it what a driver and a person need besides.
//!
//! vm-superio keeps the registers and raises edges. This module owns the flow of input: no byte of it is ever lost,
//! because bytes leave the host's queue only when the guest listens, and wait outside while the UART is in
//! loopback. It also makes the interrupt identification a function of levels, as in the data sheet (PC16550D
//! §8.6): a driver that reads "nothing pending" can rely on it, one that leaves bytes in the FIFO is told so.

mod input;
mod state;
#[cfg(test)]
mod tests;
mod wiring;

use std::collections::VecDeque;
use std::sync::Arc;

use vm_superio::serial::{NoEvents, Serial as Registers};

use crate::bus::{BusDevice, Effect, read_bytewise, write_bytewise};
use crate::console::ByteQueue;
use crate::irq::Irq;

pub use input::SerialInput;
pub use wiring::ConsoleSink;
use wiring::{Line, Output};

/// I/O ports of a 16550.
pub const SERIAL_PORTS: u64 = 8;

/// vm-superio's FIFO depth; a 16550A has 16, drivers ask LSR after each byte.
const FIFO: usize = 64;
/// So many LSR reads in a row, with nothing else between, are a guest that polls for input. A driver that waits for
/// room to send does one: the transmitter is always ready.
const POLLS: u8 = 8;

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;

const IER_RECEIVED: u8 = 0x01;
const IER_SENT: u8 = 0x02;
const IIR_NONE: u8 = 0x01;
const IIR_SENT: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_FIFO: u8 = 0xc0;
const LCR_DLAB: u8 = 0x80;
const MCR_LOOP: u8 = 0x10;
const LSR_DATA_READY: u8 = 0x01;

/// A serial port: eight byte-wide registers. A wider access is so many byte accesses at successive registers.
#[derive(Debug)]
pub struct Serial {
    registers: Registers<Line, NoEvents, Output>,
    input: Arc<ByteQueue>,
    /// Input that was in the FIFO when the guest switched to loopback; goes back in before anything else.
    /// Never more than one FIFO's worth.
    held: VecDeque<u8>,
    /// "Transmitter empty" that was pending behind "data received" when the guest read the identification.
    sent_pending: bool,
    /// LSR reads in a row, up to [`POLLS`].
    polls: u8,
    /// Input stays in the host's queue.
    quiesced: bool,
}

impl Serial {
    /// A serial port as after power-on, that interrupts through `irq`, writes to `output` and reads `input`.
    pub fn new(irq: Arc<dyn Irq>, output: Box<dyn ConsoleSink>, input: Arc<ByteQueue>) -> Self {
        Serial {
            registers: Registers::new(Line::new(irq), Output(Some(output))),
            input,
            held: VecDeque::new(),
            sent_pending: false,
            polls: 0,
            quiesced: false,
        }
    }

    /// Tells the port that its input queue may have bytes. Cheap when the guest does not listen.
    pub fn poke(&mut self) {
        if !self.quiesced {
            self.fill_fifo();
        }
    }

    fn read_register(&mut self, register: u8) -> u8 {
        self.polls = match register {
            LSR => self.polls.saturating_add(1).min(POLLS),
            DATA => self.polls,
            _ => 0,
        };
        let divisor = self.divisor_access();
        match register {
            DATA if !divisor => self.read_data(),
            IIR => self.identify(),
            LSR => {
                self.fill_fifo();
                let status = self.registers.read(LSR);
                if self.guest_listens() { status } else { status & !LSR_DATA_READY }
            }
            _ => self.registers.read(register),
        }
    }

    fn write_register(&mut self, register: u8, value: u8) {
        self.polls = 0;
        match register {
            MCR => {
                if (value & MCR_LOOP != 0) != self.loopback() {
                    self.hold_fifo();
                }
                self.write_through(MCR, value);
                self.fill_fifo();
            }
            DATA if !self.divisor_access() => {
                self.sent_pending = false;
                self.write_through(DATA, value);
            }
            IER if !self.divisor_access() => {
                self.write_through(IER, value);
                self.fill_fifo();
            }
            _ => self.write_through(register, value),
        }
    }

    /// The driver's startup and shutdown read the data register once "to reset things"; a byte handed out then is
    /// lost. So a guest that does not listen finds the FIFO empty.
    fn read_data(&mut self) -> u8 {
        if !self.guest_listens() {
            return 0;
        }
        let byte = self.registers.read(DATA);
        if !self.data_ready() {
            self.fill_fifo();
        }
        byte
    }

    /// Interrupt identification by priority (PC16550D table 4). vm-superio forgets all on this read, and ORs two
    /// causes into a third one's code; data in the FIFO is a level and stays.
    fn identify(&mut self) -> u8 {
        self.fill_fifo();
        let latched = self.registers.read(IIR);
        let enabled = self.registers_ier();
        self.sent_pending |= latched & (IIR_SENT | IIR_NONE) == IIR_SENT;
        self.sent_pending &= enabled & IER_SENT != 0;
        let cause = if enabled & IER_RECEIVED != 0 && self.data_ready() {
            IIR_RECEIVED
        } else if std::mem::take(&mut self.sent_pending) {
            IIR_SENT
        } else {
            IIR_NONE
        };
        IIR_FIFO | cause
    }

    /// Moves input into the FIFO as far as it fits, if the guest listens and is not in loopback.
    fn fill_fifo(&mut self) {
        if self.loopback() || !self.guest_listens() {
            return;
        }
        let room = self.registers.fifo_capacity();
        let mut chunk = [0; FIFO];
        let mut count = 0;
        for slot in chunk.iter_mut().take(room) {
            let Some(byte) = self.held.pop_front() else { break };
            *slot = byte;
            count += 1;
        }
        if let Some(rest) = chunk.get_mut(count..room)
            && !rest.is_empty()
        {
            count += self.input.try_pop(rest);
        }
        if let Some(bytes) = chunk.get(..count)
            && !bytes.is_empty()
            && self.registers.enqueue_raw_bytes(bytes).is_err()
        {
            log::error!("serial: the FIFO refused {count} bytes that it had room for");
        }
    }

    /// Empties the FIFO: the host's bytes go back to the front of those held, loopback bytes are dropped. So outside
    /// loopback FIFO and held bytes together never exceed one FIFO's worth: whatever is held goes in first.
    fn hold_fifo(&mut self) {
        let state = self.registers.state();
        self.sent_pending |= state.interrupt_identification & IIR_SENT != 0;
        if !self.loopback() {
            for byte in state.in_buffer.iter().rev() {
                self.held.push_front(*byte);
            }
        }
        let empty = vm_superio::serial::SerialState {
            in_buffer: Vec::new(),
            line_status: state.line_status & !LSR_DATA_READY,
            interrupt_identification: IIR_NONE,
            ..state
        };
        self.replace_registers(&empty);
    }

    /// Puts other registers in place of these; the wiring stays. Raises no interrupt unless `state` has one pending.
    fn replace_registers(&mut self, state: &vm_superio::serial::SerialState) {
        let line = self.registers.interrupt_evt().clone();
        let output = Output(self.registers.writer_mut().0.take());
        match Registers::from_state(state, line.clone(), NoEvents, output) {
            Ok(registers) => self.registers = registers,
            // Only an overlong FIFO is refused, and every caller brings a short one.
            Err(error) => log::error!("serial: registers could not be replaced: {error:?}"),
        }
    }

    fn write_through(&mut self, register: u8, value: u8) {
        if let Err(error) = self.registers.write(register, value) {
            log::debug!("serial: write to register {register}: {error:?}");
        }
    }

    fn guest_listens(&mut self) -> bool {
        self.loopback() || self.polls >= POLLS || self.registers_ier() & IER_RECEIVED != 0
    }

    fn data_ready(&mut self) -> bool {
        self.registers.fifo_capacity() < FIFO
    }

    fn loopback(&mut self) -> bool {
        self.registers.read(MCR) & MCR_LOOP != 0
    }

    fn divisor_access(&mut self) -> bool {
        self.registers.read(LCR) & LCR_DLAB != 0
    }

    /// IER, which hides behind the divisor latch while DLAB is set.
    fn registers_ier(&mut self) -> u8 {
        if !self.divisor_access() {
            return self.registers.read(IER);
        }
        self.registers.state().interrupt_enable
    }
}

impl BusDevice for Serial {
    fn size(&self) -> u64 {
        SERIAL_PORTS
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Option<Effect> {
        read_bytewise(offset, data, |at| u8::try_from(at).map_or(0xff, |at| self.read_register(at)));
        None
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        write_bytewise(offset, data, |at, byte| {
            if let Ok(at) = u8::try_from(at) {
                self.write_register(at, byte);
            }
            None
        })
    }
}
