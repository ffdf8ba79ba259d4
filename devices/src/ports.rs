//! The port map: every I/O port of the machine, in one table, with its reason.
//!
//! A port that is not here reads as all ones and ignores writes. What a PC has and this machine declares absent in
//! ACPI (i8042, VGA, PIT, the CF8/CFC configuration mechanism) has no entry, but for the ways to reset a PC.

/// 16550 UART, eight ports, GSI 4: where every PC kernel looks for its first serial console.
pub const COM1: u16 = 0x3f8;
/// Interrupt of [`COM1`].
pub const COM1_GSI: u32 = 4;
/// MC146818 real-time clock, index and data; only with a clock asked for.
pub const RTC: u16 = 0x70;
/// pvpanic's single port, as QEMU has it (docs/specs/pvpanic), ACPI id QEMU0001.
pub const PVPANIC: u16 = 0x505;
/// ACPI sleep control, sleep status and reset registers (ACPI 6.5 §4.8.3.7, §4.8.3.6): [`POWER_PORTS`] bytes.
pub const POWER: u16 = 0x600;
/// Bytes at [`POWER`]: +0 sleep control, +1 sleep status, +2 reset.
pub const POWER_PORTS: u16 = 3;
/// Value that the reset register takes (FADT RESET_VALUE).
pub const RESET_VALUE: u8 = 0x01;
/// SLP_TYP of `_S5_`, soft off.
pub const S5_SLEEP_TYPE: u8 = 5;
/// Command port of a PC's keyboard controller, which is not there: only its reset line is (`reboot=k`).
pub const KEYBOARD_COMMAND: u16 = 0x64;
/// Reset control register of PCI chipsets (`reboot=p`).
pub const PCI_RESET: u16 = 0xcf9;
/// Interrupt of the generic event device that carries the power button (ACPI 6.5 §5.6.9).
pub const POWER_BUTTON_GSI: u32 = 9;
/// Interrupt of the same device that says that the VM generation ID has changed.
pub const GENERATION_ID_GSI: u32 = 10;
