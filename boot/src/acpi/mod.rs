//! The ACPI tables of a hardware-reduced machine (ACPI 6.5 §4.1): RSDP, XSDT, FADT, DSDT, MADT and MCFG in
//! one blob.
//!
//! Owns the content and the addresses of the tables; knows no device. Hardware that a guest would probe in
//! vain is declared absent (i8042, VGA, a missing clock), because such a probe takes seconds. AML is
//! interpreted during the guest's boot, so the DSDT has no method that runs before the first event, such as a press of the
//! power button.

mod dsdt;
mod fadt;
#[cfg(test)]
mod iasl_tests;
mod madt;
#[cfg(test)]
mod tests;

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

use crate::layout;

/// Fixed width in every table header (ACPI 6.5 §5.2.6).
const OEM_ID: [u8; 6] = *b"MNIVMM";
/// As [`OEM_ID`]; the same in all tables.
const OEM_TABLE_ID: [u8; 8] = *b"MINIVMM ";
/// As [`OEM_ID`].
const OEM_REVISION: u32 = 1;
/// Length of the header of all tables except the RSDP (ACPI 6.5 §5.2.6).
const HEADER: u32 = 36;
/// Alignment of tables: not required, but usual in firmware.
const ALIGN: usize = 16;
/// Configuration space of the one bus that MCFG describes (PCI Express 5.0 §7.2.2).
const ECAM_BUS: u64 = 1 << 20;

/// The hardware that the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Virtual CPUs; their local APIC ids and processor UIDs are `0..cpus`.
    pub cpus: u32,
    /// First serial port.
    pub com1: Option<Com>,
    /// Index port of the real-time clock, followed by its data port. `None` declares the clock absent.
    pub rtc: Option<u16>,
    /// Port of the pvpanic device.
    pub pvpanic: Option<u16>,
    /// Sleep and reset registers.
    pub power: PowerRegisters,
    /// The edge-triggered interrupt of the power button.
    pub power_button_gsi: u32,
    /// VM generation ID.
    pub generation_id: Option<GenerationId>,
    /// PCI host bridge.
    pub pci: Option<PciHost>,
}

/// The VM generation ID: a random number in guest memory that is another one after the machine was restored or cloned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerationId {
    /// Guest-physical address of its 16 bytes, a multiple of 8.
    pub address: u64,
    /// The edge-triggered interrupt that says that it has changed.
    pub gsi: u32,
}

/// A 16550 serial port: eight I/O ports and an edge-triggered interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Com {
    /// First port.
    pub port: u16,
    /// Interrupt.
    pub gsi: u32,
}

/// The registers that end or reset the machine, one byte wide in I/O space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerRegisters {
    /// Port of the sleep control register (ACPI 6.5 §4.8.3.7).
    pub sleep_control: u16,
    /// Port of the sleep status register (ACPI 6.5 §4.8.3.7).
    pub sleep_status: u16,
    /// Port of the reset register (ACPI 6.5 §4.8.3.6).
    pub reset: u16,
    /// The value that the guest writes to `reset`.
    pub reset_value: u8,
    /// SLP_TYP of soft-off; three bits.
    pub s5_type: u8,
}

/// The PCI host bridge: segment 0, bus 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciHost {
    /// Configuration space of bus 0: 1 MiB below 4 GiB.
    pub ecam: Range<u64>,
    /// Window for 32-bit BARs.
    pub mmio32: Range<u64>,
    /// Window for 64-bit BARs.
    pub mmio64: Option<Range<u64>>,
}

/// Tables to copy into guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// Guest-physical address of the RSDP, for `boot_params.acpi_rsdp_addr` or the PVH start info.
    pub rsdp: u64,
    /// Guest-physical address of the first byte.
    pub base: u64,
    /// The tables; they end below [`layout::SMBIOS`].
    pub bytes: Vec<u8>,
}

/// Why the tables cannot be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcpiError {
    /// A machine without CPUs.
    #[error("a machine needs at least one CPU; ask for one or more")]
    NoCpus,
    /// The tables would reach into the kernel.
    #[error("the ACPI tables for {cpus} CPUs take {needed} bytes and only {room} fit; ask for fewer CPUs")]
    TooLarge {
        /// Number of CPUs.
        cpus: u32,
        /// Size of the tables.
        needed: u64,
        /// Maximum size.
        room: u64,
    },
    /// A PCI address range that does not fit its descriptor.
    #[error(
        "the PCI {what} {start:#x}..{end:#x} is empty, of a wrong size or not below 4 GiB; choose another range"
    )]
    PciRange {
        /// The range's name.
        what: &'static str,
        /// First address.
        start: u64,
        /// First address after it.
        end: u64,
    },
    /// SLP_TYP has three bits.
    #[error("sleep type {0} does not fit the three bits of SLP_TYP; choose one from 0 to 7")]
    SleepType(u8),
}

/// Builds all tables of `platform`, from [`layout::ACPI`] on.
///
/// # Errors
/// [`AcpiError`], if ACPI cannot describe the platform or the tables do not fit below
/// [`layout::SMBIOS`].
pub fn build(platform: &Platform) -> Result<Tables, AcpiError> {
    check(platform)?;
    let mut blob = Blob::new(platform);
    let dsdt = blob.add(&dsdt::dsdt(platform)?);
    let fadt = blob.add(&fadt::fadt(platform, dsdt));
    let madt = blob.add(&madt::madt(platform.cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if let Some(pci) = &platform.pci {
        let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        mcfg.add_ecam(pci.ecam.start, 0, 0, 0);
        xsdt.add_entry(blob.add(&mcfg));
    }
    let xsdt = blob.add(&xsdt);
    blob.finish(platform.cpus, xsdt)
}

/// Refuses what ACPI cannot describe, and a number of CPUs whose tables are too large.
fn check(platform: &Platform) -> Result<(), AcpiError> {
    if platform.cpus == 0 {
        return Err(AcpiError::NoCpus);
    }
    if platform.power.s5_type > 7 {
        return Err(AcpiError::SleepType(platform.power.s5_type));
    }
    fits(platform.cpus, madt::size(platform.cpus))?;
    let Some(pci) = &platform.pci else { return Ok(()) };
    let bad = |what, range: &Range<u64>| AcpiError::PciRange { what, start: range.start, end: range.end };
    if pci.ecam.end.checked_sub(pci.ecam.start) != Some(ECAM_BUS) || pci.ecam.end > layout::HIGH_RAM {
        return Err(bad("configuration space", &pci.ecam));
    }
    if pci.mmio32.is_empty() || pci.mmio32.end > layout::HIGH_RAM {
        return Err(bad("32-bit window", &pci.mmio32));
    }
    match &pci.mmio64 {
        Some(window) if window.is_empty() => Err(bad("64-bit window", window)),
        _ => Ok(()),
    }
}

fn fits(cpus: u32, needed: u64) -> Result<(), AcpiError> {
    let room = layout::SMBIOS - layout::ACPI;
    if needed > room { Err(AcpiError::TooLarge { cpus, needed, room }) } else { Ok(()) }
}

/// Concatenated tables, with space for the RSDP in front.
struct Blob {
    bytes: Vec<u8>,
}

impl Blob {
    fn new(platform: &Platform) -> Self {
        // All tables but the MADT take about 1 KiB: one allocation.
        let madt = usize::try_from(madt::size(platform.cpus)).unwrap_or(0);
        let mut bytes = Vec::with_capacity(madt + 2048);
        bytes.resize(Rsdp::len(), 0);
        Blob { bytes }
    }

    /// Appends `table` and returns its address.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let address = layout::ACPI + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }

    /// Puts the RSDP in front.
    fn finish(self, cpus: u32, xsdt: u64) -> Result<Tables, AcpiError> {
        let Blob { mut bytes } = self;
        fits(cpus, bytes.len() as u64)?;
        let mut rsdp = Vec::with_capacity(Rsdp::len());
        Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
        for (to, from) in bytes.iter_mut().zip(rsdp) {
            *to = from;
        }
        Ok(Tables { rsdp: layout::ACPI, base: layout::ACPI, bytes })
    }
}
