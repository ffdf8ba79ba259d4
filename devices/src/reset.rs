//! The ways to reset a PC that ACPI does not list: the keyboard controller and the chipset. Kernels fall back to them, and
//! `reboot=k` and `reboot=p` select them. Both read as if nothing were there.

use crate::bus::{BusDevice, Effect, read_bytewise, write_bytewise};

/// Command of an i8042 that pulses its output 0, which is the processor's reset line.
const PULSE_RESET: u8 = 0xfe;
/// Bit of the reset control register that resets the processors.
const RESET_CPU: u8 = 1 << 2;

/// The keyboard controller's command port. There is no controller: its status reads as all ones, which drivers take for
/// none.
#[derive(Debug, Default)]
pub struct KeyboardReset;

impl BusDevice for KeyboardReset {
    fn size(&self) -> u64 {
        1
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Option<Effect> {
        read_bytewise(offset, data, |_| u8::MAX);
        None
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        write_bytewise(offset, data, |_, byte| (byte == PULSE_RESET).then_some(Effect::Reset))
    }
}

/// The chipset's reset control register, a byte within the configuration mechanism's ports.
#[derive(Debug, Default)]
pub struct PciReset;

impl BusDevice for PciReset {
    fn size(&self) -> u64 {
        1
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) -> Option<Effect> {
        read_bytewise(offset, data, |_| 0);
        None
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Option<Effect> {
        write_bytewise(offset, data, |_, byte| (byte & RESET_CPU != 0).then_some(Effect::Reset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyboard_controller_resets_by_its_command_alone() {
        for value in 0..=255 {
            assert_eq!(KeyboardReset.write(0, &[value]), (value == 0xfe).then_some(Effect::Reset));
        }
        let mut data = [0];
        KeyboardReset.read(0, &mut data);
        assert_eq!(data, [0xff]);
    }

    #[test]
    fn chipset_resets_as_linux_asks_it_to() {
        // The system's reset is chosen first, then the processors' is done: warm and cold.
        assert_eq!(PciReset.write(0, &[0x02]), None);
        assert_eq!(PciReset.write(0, &[0x06]), Some(Effect::Reset));
        assert_eq!(PciReset.write(0, &[0x0e]), Some(Effect::Reset));
        let mut data = [0xff];
        PciReset.read(0, &mut data);
        assert_eq!(data, [0]);
    }
}
