//! Power: the ACPI sleep and reset registers of a hardware-reduced machine, and the power button.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bus::{BusDevice, Effect, read_bytewise, write_bytewise};
use crate::component::{Component, State, StateError};
use crate::irq::Irq;
use crate::ports::{POWER_PORTS, RESET_VALUE, S5_SLEEP_TYPE};
use crate::ration::Ration;

const SLEEP_CONTROL: u64 = 0;
const RESET: u64 = 2;
/// ACPI 6.5 §4.8.3.7: SLP_TYPx is bits 2 to 4, SLP_EN bit 5 (write-only).
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0x07 << SLEEP_TYPE_SHIFT;
const SLEEP_ENABLE: u8 = 1 << 5;

/// Sleep control (+0), sleep status (+1) and reset (+2), each a byte; wider accesses are so many byte accesses.
///
/// The status register has only WAK_STS, which is set by waking from a sleep that this machine does not have, so it
/// reads as zero. The reset register reads as zero too.
#[derive(Debug, Default)]
pub struct Power {
    sleep_type: u8,
    /// Of warnings of sleep types.
    ration: Ration,
}

const KIND: &str = "power";
const VERSION: u16 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PowerState {
    /// SLP_TYPx as last written, in its place in the register.
    sleep_type: u8,
}

impl Power {
    /// The registers as after power-on.
    pub fn new() -> Self {
        Self::default()
    }

    fn write_register(&mut self, register: u64, value: u8) -> Option<Effect> {
        match register {
            SLEEP_CONTROL => {
                self.sleep_type = value & SLEEP_TYPE_MASK;
                let asked = self.sleep_type >> SLEEP_TYPE_SHIFT;
                if value & SLEEP_ENABLE == 0 {
                    return None;
                }
                if asked != S5_SLEEP_TYPE {
                    if let Some(left_out) = self.ration.take() {
                        log::warn!(
                            "the guest asked for sleep type {asked}, which this machine does not have{left_out}"
                        );
                    }
                    return None;
                }
                Some(Effect::PowerOff)
            }
            RESET => (value == RESET_VALUE).then_some(Effect::Reset),
            _ => None,
        }
    }
}

impl Component for Power {
    fn save(&self) -> Result<State, StateError> {
        State::new(KIND, VERSION, &PowerState { sleep_type: self.sleep_type })
    }

    fn load(&mut self, state: &State) -> Result<(), StateError> {
        let PowerState { sleep_type } = state.open(KIND, VERSION)?;
        if sleep_type & !SLEEP_TYPE_MASK != 0 {
            return Err(StateError::damaged(KIND, format_args!("{sleep_type:#04x} is no sleep type")));
        }
        self.sleep_type = sleep_type;
        Ok(())
    }
}

impl BusDevice for Power {
    fn size(&self) -> u64 {
        POWER_PORTS.into()
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Option<Effect> {
        read_bytewise(offset, data, |at| if at == SLEEP_CONTROL { self.sleep_type } else { 0 });
        None
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        write_bytewise(offset, data, |at, byte| self.write_register(at, byte))
    }
}

/// The machine's power button; the guest learns of it through the interrupt of its generic event device.
#[derive(Debug, Clone)]
pub struct PowerButton(Arc<dyn Irq>);

impl PowerButton {
    /// A button on `irq`.
    pub fn new(irq: Arc<dyn Irq>) -> Self {
        PowerButton(irq)
    }

    /// Presses it: an operating system that listens begins to shut down.
    ///
    /// # Errors
    /// The host could not raise the interrupt.
    pub fn press(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, data: &[u8]) -> Option<Effect> {
        Power::new().write(offset, data)
    }

    #[test]
    fn soft_off_needs_its_type_and_the_enable_bit() {
        let s5 = S5_SLEEP_TYPE << 2;
        assert_eq!(write(0, &[s5 | 0x20]), Some(Effect::PowerOff));
        assert_eq!(write(0, &[s5]), None);
        assert_eq!(write(0, &[0x20]), None);
        assert_eq!(write(0, &[0xff]), None, "sleep type 7");
        assert_eq!(write(1, &[s5 | 0x20]), None);
    }

    #[test]
    fn reset_takes_its_value_alone() {
        for value in 0..=255 {
            assert_eq!(write(2, &[value]), (value == RESET_VALUE).then_some(Effect::Reset));
        }
    }

    #[test]
    fn a_wide_write_reaches_both_registers() {
        assert_eq!(write(1, &[0, RESET_VALUE]), Some(Effect::Reset));
    }

    #[test]
    fn enable_is_write_only_and_the_rest_reads_as_zero() {
        let mut power = Power::new();
        power.write(0, &[0x3c]);
        let mut data = [0xff; 2];
        power.read(0, &mut data);
        assert_eq!(data, [0x1c, 0]);
        power.read(1, &mut data);
        assert_eq!(data, [0, 0]);
        let mut loaded = Power::new();
        loaded.load(&power.save().unwrap()).unwrap();
        loaded.read(0, &mut data);
        assert_eq!(data, [0x1c, 0], "after a load");
        let damaged = State { data: serde_json::json!({ "sleep_type": 0x20 }), ..power.save().unwrap() };
        assert!(matches!(loaded.load(&damaged), Err(StateError::Damaged { .. })));
    }
}
