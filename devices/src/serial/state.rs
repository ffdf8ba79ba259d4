//! Saving and loading a serial port. Bytes in the host's input queue belong to the host and are not saved.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{FIFO, IIR_NONE, IIR_RECEIVED, IIR_SENT, LSR_DATA_READY, MCR_LOOP, POLLS, Serial};
use crate::component::{Component, State, StateError, hex};

/// LSR with an idle transmitter: THRE and TEMT.
const LSR_IDLE: u8 = 0x60;
const IER_VALID: u8 = 0x0f;

const KIND: &str = "serial";
const VERSION: u16 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SerialState {
    /// Divisor latch.
    divisor: u16,
    ier: u8,
    iir: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scratch: u8,
    /// Bytes in the receive FIFO.
    #[serde(with = "hex")]
    fifo: Vec<u8>,
    /// Input set aside during loopback.
    #[serde(with = "hex")]
    held: Vec<u8>,
    /// A "transmitter empty" that was not reported yet.
    sent_pending: bool,
    /// Consecutive status reads.
    polls: u8,
}

impl Component for Serial {
    fn quiesce(&mut self) {
        self.quiesced = true;
        self.registers.interrupt_evt().hold();
    }

    fn save(&self) -> Result<State, StateError> {
        if !self.quiesced {
            return Err(StateError::Running { kind: KIND });
        }
        let registers = self.registers.state();
        let state = SerialState {
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
        };
        State::new(KIND, VERSION, &state)
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        if !self.quiesced {
            return Err(StateError::Running { kind: KIND });
        }
        let state: SerialState = state.open(KIND, VERSION)?;
        // In loopback the FIFO's bytes are the guest's and the held ones the host's; else both are the host's.
        let host_fifo = if state.mcr & MCR_LOOP == 0 { state.fifo.len() } else { 0 };
        let most = state.fifo.len().max(state.held.len().saturating_add(host_fifo));
        if most > FIFO {
            let reason = format_args!("{most} bytes of input, where a port holds {FIFO}");
            return Err(StateError::damaged(KIND, reason));
        }
        let [baud_divisor_low, baud_divisor_high] = state.divisor.to_le_bytes();
        let pending = state.iir & (IIR_SENT | IIR_RECEIVED);
        self.replace_registers(&vm_superio::serial::SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable: state.ier & IER_VALID,
            interrupt_identification: if pending == 0 { IIR_NONE } else { pending },
            line_control: state.lcr,
            line_status: LSR_IDLE | if state.fifo.is_empty() { 0 } else { LSR_DATA_READY },
            modem_control: state.mcr,
            modem_status: state.msr,
            scratch: state.scratch,
            in_buffer: state.fifo,
        });
        self.held = VecDeque::from(state.held);
        self.sent_pending = state.sent_pending;
        self.polls = state.polls.min(POLLS);
        Ok(())
    }

    /// Raises a pending interrupt that was loaded: a second edge does not disturb a driver, a lost one stops it.
    fn go(&mut self) {
        self.quiesced = false;
        self.registers.interrupt_evt().release();
        self.fill_fifo();
    }
}
