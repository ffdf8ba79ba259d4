//! The interrupt controllers and CPUs.
//!
//! No interrupt source override: every GSI is the I/O APIC pin of the same number, and edge-triggered
//! interrupts are described where they are used.

use acpi_tables::sdt::Sdt;

use super::{HEADER, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;

/// Revision of the MADT as of ACPI 6.3, the one of all fields used here.
const REVISION: u8 = 5;
/// Ids from here on do not fit a local APIC entry (ACPI 6.5 §5.2.12.12): 255 is the broadcast id.
const FIRST_X2APIC: u32 = 255;
/// Table header, local APIC address, flags.
const FIXED: u64 = HEADER as u64 + 8;
/// "Enabled" in the flags of a CPU.
const ENABLED: u32 = 1;
/// Local interrupt input of a local APIC that carries NMI on a PC.
const LINT1: u8 = 1;

/// Bytes of the MADT for `cpus` CPUs.
pub(super) fn size(cpus: u32) -> u64 {
    let small = u64::from(cpus.min(FIRST_X2APIC));
    let large = u64::from(cpus) - small;
    let x2apic_nmi = if large > 0 { 12 } else { 0 };
    FIXED + small * 8 + large * 16 + 12 + 6 + x2apic_nmi
}

/// The MADT for `cpus` CPUs, all enabled, ids and UIDs `0..cpus`.
pub(super) fn madt(cpus: u32) -> Sdt {
    // Built in one buffer and appended once: `Sdt` computes the checksum at each write.
    let mut body = Vec::with_capacity(usize::try_from(size(cpus)).unwrap_or(0));
    put(&mut body, &address32(layout::LOCAL_APIC).to_le_bytes());
    // Flags: PCAT_COMPAT is clear, the guest must not use the 8259 pair.
    put(&mut body, &0u32.to_le_bytes());
    for id in 0..cpus {
        cpu(&mut body, id);
    }
    // I/O APIC (ACPI 6.5 §5.2.12.3): id 0, GSI base 0.
    put(&mut body, &[1, 12, 0, 0]);
    put(&mut body, &address32(layout::IOAPIC).to_le_bytes());
    put(&mut body, &0u32.to_le_bytes());
    // Local APIC NMI (§5.2.12.7) of all CPUs, with the bus's default polarity and trigger.
    put(&mut body, &[4, 6, 0xff, 0, 0, LINT1]);
    if cpus > FIRST_X2APIC {
        // The same for CPUs that have only an x2APIC entry (§5.2.12.13).
        put(&mut body, &[10, 12, 0, 0]);
        put(&mut body, &u32::MAX.to_le_bytes());
        put(&mut body, &[LINT1, 0, 0, 0]);
    }
    let mut table = Sdt::new(*b"APIC", HEADER, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    table
}

/// Processor local APIC (ACPI 6.5 §5.2.12.2) or, for large ids, processor local x2APIC (§5.2.12.12).
fn cpu(body: &mut Vec<u8>, id: u32) {
    match u8::try_from(id) {
        Ok(small) if id < FIRST_X2APIC => {
            put(body, &[0, 8, small, small]);
            put(body, &ENABLED.to_le_bytes());
        }
        _ => {
            put(body, &[9, 16, 0, 0]);
            put(body, &id.to_le_bytes());
            put(body, &ENABLED.to_le_bytes());
            put(body, &id.to_le_bytes());
        }
    }
}

fn put(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend_from_slice(bytes);
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "both addresses are constants below 4 GiB, checked here at compile time"
)]
const fn address32(address: u64) -> u32 {
    const { assert!(layout::IOAPIC < layout::HIGH_RAM && layout::LOCAL_APIC < layout::HIGH_RAM) };
    address as u32
}
