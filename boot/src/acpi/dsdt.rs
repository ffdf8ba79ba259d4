//! ACPI devices that no bus enumerates: PCI host bridge, serial port, clock, pvpanic, power button, VM generation ID.
//!
//! Names and buffers only, except for the method of the generic event device: the guest interprets all of this while
//! it boots.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed,
    Method, Name, Notify, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::{AcpiError, Com, GenerationId, HEADER, OEM_ID, OEM_REVISION, OEM_TABLE_ID, PciHost, Platform};

/// Integers are 64 bits wide from this revision of the DSDT on (ACPI 6.5 §5.2.11.1).
const REVISION: u8 = 2;
/// `_STA`: present, enabled, shown, working (ACPI 6.5 §6.3.7).
const STATUS_OK: u8 = 0x0f;
/// The one notification of the devices here: a button was pressed (ACPI 6.5 §4.8.3.1.2), a generation ID has changed.
const HAPPENED: u8 = 0x80;

/// The DSDT of `platform`.
pub(super) fn dsdt(platform: &Platform) -> Result<Sdt, AcpiError> {
    let mut devices = Body::default();
    if let Some(pci) = &platform.pci {
        host_bridge(&mut devices, pci)?;
    }
    if let Some(com) = platform.com1 {
        serial(&mut devices, com);
    }
    if let Some(port) = platform.rtc {
        clock(&mut devices, port);
    }
    if let Some(port) = platform.pvpanic {
        pvpanic(&mut devices, port);
    }
    device(&mut devices, "PWRB", vec![&named("_HID", &EISAName::new("PNP0C0C"))]);
    if let Some(GenerationId { address, .. }) = platform.generation_id {
        generation_id(&mut devices, address);
    }
    let changed = platform.generation_id.map(|id| ("VGEN", id.gsi));
    events(&mut devices, [Some(("PWRB", platform.power_button_gsi)), changed].into_iter().flatten());

    let mut aml = Vec::with_capacity(devices.0.len() + 32);
    // Both SLP_TYP values are the same: a hardware-reduced machine uses the first (ACPI 6.5 §7.4.2).
    let soft_off = Package::new(vec![&platform.power.s5_type, &platform.power.s5_type, &ZERO, &ZERO]);
    named("_S5_", &soft_off).to_aml_bytes(&mut aml);
    Scope::new(Path::new("_SB_"), vec![&devices]).to_aml_bytes(&mut aml);
    let mut table = Sdt::new(*b"DSDT", HEADER, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&aml);
    Ok(table)
}

/// Serialized AML, so that devices can be appended one by one.
#[derive(Default)]
struct Body(Vec<u8>);

impl Aml for Body {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn named(name: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(name), value)
}

fn device(out: &mut Body, name: &str, children: Vec<&dyn Aml>) {
    Device::new(Path::new(name), children).to_aml_bytes(&mut out.0);
}

/// PCI Firmware 3.3 §4.1.2: the range of MCFG must also be reserved by a motherboard device, or kernels
/// ignore it. No _PRT: functions have no interrupt pins. No _OSC: there are no features to hand over.
fn host_bridge(out: &mut Body, pci: &PciHost) -> Result<(), AcpiError> {
    let (start, end) = below_4gib("configuration space", &pci.ecam)?;
    let ecam = Memory32Fixed::new(true, start, (end - start) + 1);
    let reserved = named("_CRS", &ResourceTemplate::new(vec![&ecam]));
    let hid = named("_HID", &EISAName::new("PNP0C02"));
    device(out, "MBRD", vec![&hid, &named("_UID", &ZERO), &reserved]);

    let (start, end) = below_4gib("32-bit window", &pci.mmio32)?;
    let uncached = AddressSpaceCacheable::NotCacheable;
    let bus = AddressSpace::<u16>::new_bus_number(0, 0);
    let low = AddressSpace::<u32>::new_memory(uncached, true, start, end, None);
    let high = pci
        .mmio64
        .as_ref()
        .map(|window| AddressSpace::<u64>::new_memory(uncached, true, window.start, window.end - 1, None));
    let mut windows: Vec<&dyn Aml> = vec![&bus, &low];
    if let Some(high) = &high {
        windows.push(high);
    }
    let resources = named("_CRS", &ResourceTemplate::new(windows));
    let hid = named("_HID", &EISAName::new("PNP0A08"));
    let cid = named("_CID", &EISAName::new("PNP0A03"));
    device(out, "PCI0", vec![&hid, &cid, &named("_UID", &ZERO), &resources]);
    Ok(())
}

/// First and last address of a range for a 32-bit descriptor.
fn below_4gib(what: &'static str, range: &std::ops::Range<u64>) -> Result<(u32, u32), AcpiError> {
    let last = range.end.checked_sub(1).and_then(|last| u32::try_from(last).ok());
    match (u32::try_from(range.start), last) {
        // A length of 2^32 does not fit the descriptor either.
        (Ok(start), Some(last)) if start <= last && last - start < u32::MAX => Ok((start, last)),
        _ => Err(AcpiError::PciRange { what, start: range.start, end: range.end }),
    }
}

/// 16550. Without it a hardware-reduced Linux loses all console output of user space.
fn serial(out: &mut Body, com: Com) {
    let ports = IO::new(com.port, com.port, 1, 8);
    let interrupt = edge(com.gsi);
    let resources = named("_CRS", &ResourceTemplate::new(vec![&ports, &interrupt]));
    let hid = named("_HID", &EISAName::new("PNP0501"));
    device(out, "COM1", vec![&hid, &named("_UID", &ZERO), &named("_STA", &STATUS_OK), &resources]);
}

/// MC146818, index and data port; it has no interrupt.
fn clock(out: &mut Body, port: u16) {
    let resources = named("_CRS", &ResourceTemplate::new(vec![&IO::new(port, port, 1, 2)]));
    device(out, "RTC0", vec![&named("_HID", &EISAName::new("PNP0B00")), &resources]);
}

/// As in QEMU: Linux's pvpanic-mmio uses the first I/O or memory range of QEMU0001.
fn pvpanic(out: &mut Body, port: u16) {
    let resources = named("_CRS", &ResourceTemplate::new(vec![&IO::new(port, port, 1, 1)]));
    device(out, "PEVT", vec![&named("_HID", &"QEMU0001"), &named("_STA", &STATUS_OK), &resources]);
}

/// `ADDR` gives the low and the high half of the address (Microsoft, "Virtual Machine Generation ID"). Linux finds the device by
/// its _HID, Windows by its _CID.
fn generation_id(out: &mut Body, address: u64) {
    let hid = named("_HID", &"VMGENCTR");
    let cid = named("_CID", &"VM_Gen_Counter");
    let name = named("_DDN", &"VM_Gen_Counter");
    let (low, high) = (address & u64::from(u32::MAX), address >> 32);
    let halves = named("ADDR", &Package::new(vec![&low, &high]));
    device(out, "VGEN", vec![&hid, &cid, &name, &halves]);
}

/// The generic event device (ACPI 6.5 §5.6.9): each interrupt notifies the device of that name.
fn events(out: &mut Body, sources: impl Iterator<Item = (&'static str, u32)>) {
    let (mut interrupts, mut answers) = (Vec::new(), Body::default());
    for (name, gsi) in sources {
        interrupts.push(edge(gsi));
        let target = Path::new(name);
        let notify = Notify::new(&target, &HAPPENED);
        let source = Arg(0);
        If::new(&Equal::new(&source, &gsi), vec![&notify]).to_aml_bytes(&mut answers.0);
    }
    let interrupts = interrupts.iter().map(|interrupt| interrupt as &dyn Aml).collect();
    let resources = named("_CRS", &ResourceTemplate::new(interrupts));
    let event = Method::new(Path::new("_EVT"), 1, true, vec![&answers]);
    let hid = named("_HID", &"ACPI0013");
    device(out, "GED0", vec![&hid, &named("_UID", &ZERO), &resources, &event]);
}

/// Edge-triggered, active high, not shared.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}
