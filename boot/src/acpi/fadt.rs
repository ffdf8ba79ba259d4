//! The fixed description table: PC hardware that is absent here, and the reset and sleep registers.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, Platform};

/// IAPC_BOOT_ARCH, ACPI 6.5 §5.2.9.3. LEGACY_DEVICES (bit 0) and 8042 (bit 1) stay clear: the guest then
/// neither probes a keyboard controller nor uses it for a reset.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// As [`VGA_NOT_PRESENT`]; without it a kernel waits for the update bit of an absent clock.
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;
/// CMOS byte of the century, as in QEMU and SeaBIOS.
const CENTURY: u8 = 0x32;

/// The FADT that points to `dsdt`. It names no FACS: hardware-reduced machines have none (ACPI 6.5 §5.2.10).
pub(super) fn fadt(platform: &Platform, dsdt: u64) -> FADT {
    let mut table = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::Headless)
        // Set means "not a fixed hardware button": the DSDT has the power button, there is no sleep button.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    let mut boot_arch = VGA_NOT_PRESENT;
    if platform.rtc.is_some() {
        table.century = CENTURY;
    } else {
        boot_arch |= CMOS_RTC_NOT_PRESENT;
    }
    table.iapc_boot_arch = boot_arch.into();
    table.reset_reg = port(platform.power.reset);
    table.reset_value = platform.power.reset_value;
    table.sleep_control_reg = port(platform.power.sleep_control);
    table.sleep_status_reg = port(platform.power.sleep_status);
    table.finalize()
}

/// One byte of I/O space.
fn port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}
