//! The tables as a kernel reads them. `iasl_tests.rs` checks them with `iasl`.

use super::*;

/// The machine that minivmm builds; the numbers are those of its port map.
pub(super) fn platform(cpus: u32) -> Platform {
    Platform {
        cpus,
        com1: Some(Com { port: 0x3f8, gsi: 4 }),
        rtc: Some(0x70),
        pvpanic: Some(0x505),
        power: PowerRegisters {
            sleep_control: 0x600,
            sleep_status: 0x601,
            reset: 0x602,
            reset_value: 1,
            s5_type: 5,
        },
        power_button_gsi: 9,
        generation_id: Some(GenerationId { address: layout::GENERATION_ID, gsi: 10 }),
        pci: Some(PciHost {
            ecam: layout::ECAM,
            mmio32: layout::PCI_MMIO32,
            mmio64: Some(0x1_0000_0000..0x81_0000_0000),
        }),
    }
}

/// A machine without optional hardware.
pub(super) fn bare(cpus: u32) -> Platform {
    Platform { com1: None, rtc: None, pvpanic: None, generation_id: None, pci: None, ..platform(cpus) }
}

pub(super) struct Table {
    pub(super) signature: String,
    pub(super) bytes: Vec<u8>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// Follows the pointers from the RSDP as a kernel does, and checks each checksum.
pub(super) fn walk(tables: &Tables) -> Vec<Table> {
    let at = |address: u64| &tables.bytes[usize::try_from(address - tables.base).unwrap()..];
    let table = |address: u64| {
        assert_eq!(address % 4, 0);
        let bytes = at(address);
        let bytes = bytes[..u32_at(bytes, 4) as usize].to_vec();
        let signature = String::from_utf8(bytes[..4].to_vec()).unwrap();
        assert!(sums_to_zero(&bytes), "{signature} has a wrong checksum");
        Table { signature, bytes }
    };
    let rsdp = at(tables.rsdp);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert!(sums_to_zero(&rsdp[..20]) && sums_to_zero(&rsdp[..36]));
    assert_eq!(rsdp[15], 2);
    let mut found = vec![table(u64_at(rsdp, 24))];
    let entries: Vec<u64> =
        found[0].bytes[HEADER as usize..].chunks(8).map(|entry| u64_at(entry, 0)).collect();
    found.extend(entries.into_iter().map(table));
    let fadt = find(&found, "FACP");
    let dsdt = table(u64_at(&fadt.bytes, 140));
    found.push(dsdt);
    found
}

pub(super) fn find<'a>(tables: &'a [Table], signature: &str) -> &'a Table {
    tables.iter().find(|table| table.signature == signature).unwrap_or_else(|| panic!("no {signature}"))
}

/// The MADT's entries by type: (type, body).
fn madt_entries(tables: &[Table]) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &find(tables, "APIC").bytes[44..];
    let mut entries = Vec::new();
    while let [kind, len, ..] = rest {
        let (entry, tail) = rest.split_at(usize::from(*len));
        entries.push((*kind, entry.to_vec()));
        rest = tail;
    }
    assert!(rest.is_empty());
    entries
}

#[test]
fn every_table_is_reachable_and_sums_to_zero() {
    let tables = walk(&build(&platform(2)).unwrap());
    let names: Vec<&str> = tables.iter().map(|table| table.signature.as_str()).collect();
    assert_eq!(names, ["XSDT", "FACP", "APIC", "MCFG", "DSDT"]);
    let names: Vec<String> =
        walk(&build(&bare(1)).unwrap()).into_iter().map(|table| table.signature).collect();
    assert_eq!(names, ["XSDT", "FACP", "APIC", "DSDT"]);
}

#[test]
fn madt_lists_every_cpu_once_with_x2apic_entries_above_254() {
    for (cpus, small, large) in
        [(1, 1, 0), (2, 2, 0), (4, 4, 0), (255, 255, 0), (256, 255, 1), (300, 255, 45), (1024, 255, 769)]
    {
        let built = build(&platform(cpus)).unwrap();
        let tables = walk(&built);
        assert_eq!(find(&tables, "APIC").bytes.len() as u64, madt::size(cpus));
        let entries = madt_entries(&tables);
        let count = |kind| entries.iter().filter(|(k, _)| *k == kind).count();
        // Local APICs, x2APICs, I/O APIC, NMI, x2APIC NMI; no override.
        let x2apic_nmi = usize::from(large > 0);
        assert_eq!([0, 9, 1, 4, 10].map(count), [small, large, 1, 1, x2apic_nmi], "{cpus} CPUs");
        let ids: Vec<u32> = entries
            .iter()
            .filter_map(|(kind, body)| match kind {
                0 => Some((u32::from(body[3]), u32::from(body[2]), u32_at(body, 4))),
                9 => Some((u32_at(body, 4), u32_at(body, 12), u32_at(body, 8))),
                _ => None,
            })
            .map(|(id, uid, flags)| {
                assert_eq!((uid, flags), (id, 1));
                id
            })
            .collect();
        assert_eq!(ids, (0..cpus).collect::<Vec<_>>());
    }
}

#[test]
fn io_apic_starts_at_gsi_0_and_lint1_carries_nmi() {
    let tables = walk(&build(&platform(1)).unwrap());
    let entries = madt_entries(&tables);
    let io_apic = &entries.iter().find(|(kind, _)| *kind == 1).unwrap().1;
    assert_eq!((u64::from(u32_at(io_apic, 4)), u32_at(io_apic, 8)), (layout::IOAPIC, 0));
    assert_eq!(entries.iter().find(|(kind, _)| *kind == 4).unwrap().1, [4, 6, 0xff, 0, 0, 1]);
    assert_eq!(u64::from(u32_at(&find(&tables, "APIC").bytes, 36)), layout::LOCAL_APIC);
}

#[test]
fn fadt_says_reduced_hardware_and_how_to_reset_and_sleep() {
    let tables = walk(&build(&platform(1)).unwrap());
    let fadt = &find(&tables, "FACP").bytes;
    let flags = u32_at(fadt, 112);
    assert_eq!(flags & (1 << 20), 1 << 20, "HW_REDUCED_ACPI");
    assert_eq!(flags & (1 << 10), 1 << 10, "RESET_REG_SUP");
    assert_eq!(fadt[116..128], [1, 8, 0, 1, 0x02, 0x06, 0, 0, 0, 0, 0, 0], "RESET_REG");
    assert_eq!(fadt[128], 1, "RESET_VALUE");
    assert_eq!(fadt[244..256], [1, 8, 0, 1, 0x00, 0x06, 0, 0, 0, 0, 0, 0], "SLEEP_CONTROL_REG");
    assert_eq!(fadt[256..268], [1, 8, 0, 1, 0x01, 0x06, 0, 0, 0, 0, 0, 0], "SLEEP_STATUS_REG");
    assert_eq!((u32_at(fadt, 36), u64_at(fadt, 132)), (0, 0), "no FACS");
}

#[test]
fn absent_clock_is_declared_absent_and_present_clock_has_a_century() {
    let boot_arch = |tables: &[Table]| {
        let fadt = &find(tables, "FACP").bytes;
        (u16::from_le_bytes([fadt[109], fadt[110]]), fadt[108])
    };
    // Neither legacy devices nor an i8042, no VGA; bit 5: no CMOS clock.
    assert_eq!(boot_arch(&walk(&build(&platform(1)).unwrap())), (0b00_0100, 0x32));
    assert_eq!(boot_arch(&walk(&build(&bare(1)).unwrap())), (0b10_0100, 0));
}

#[test]
fn mcfg_gives_bus_0_of_segment_0() {
    let tables = walk(&build(&platform(1)).unwrap());
    let mcfg = &find(&tables, "MCFG").bytes;
    assert_eq!(mcfg.len(), 60);
    assert_eq!((u64_at(mcfg, 44), &mcfg[52..56]), (layout::ECAM.start, [0, 0, 0, 0].as_slice()));
}

/// As in ACPI 6.5 §5.2.5.1, and as in kernels before Linux 5.0, which get no address from their loader.
#[test]
fn a_kernel_that_searches_finds_the_root_pointer() {
    let tables = build(&platform(255)).unwrap();
    let mut memory = vec![0; 1 << 20];
    let base = usize::try_from(tables.base).unwrap();
    memory[base..base + tables.bytes.len()].copy_from_slice(&tables.bytes);
    let found = (0xe_0000..0x10_0000).step_by(16).find(|at| memory[*at..].starts_with(b"RSD PTR "));
    assert_eq!(found.map(|at| at as u64), Some(tables.rsdp));
}

#[test]
fn tables_of_4096_cpus_fit_and_of_too_many_do_not() {
    let tables = build(&platform(4096)).unwrap();
    assert!(tables.base + tables.bytes.len() as u64 <= layout::SMBIOS);
    assert_eq!(tables.base, layout::ACPI);
    let error = build(&platform(9_000)).unwrap_err();
    let whole = layout::SMBIOS - layout::ACPI;
    assert!(matches!(error, AcpiError::TooLarge { cpus: 9_000, room, .. } if room == whole), "{error}");
    assert!(matches!(build(&platform(u32::MAX)), Err(AcpiError::TooLarge { .. })));
    assert_eq!(build(&platform(0)), Err(AcpiError::NoCpus));
}

#[test]
fn pci_ranges_that_acpi_cannot_say_are_errors() {
    let with =
        |ecam, mmio32, mmio64| build(&Platform { pci: Some(PciHost { ecam, mmio32, mmio64 }), ..bare(1) });
    let (ecam, low) = (layout::ECAM, layout::PCI_MMIO32);
    assert!(with(ecam.clone(), low.clone(), None).is_ok());
    assert!(with(0xffff_ffff_fff0_0000..u64::MAX, low.clone(), Some(0..u64::MAX)).is_err());
    for bad in [0..0x20_0000, 0xfff8_0000..0x1_0008_0000, Range { start: 5, end: 1 }] {
        assert!(matches!(
            with(bad, low.clone(), None),
            Err(AcpiError::PciRange { what: "configuration space", .. })
        ));
    }
    for bad in [5..5, 0..1 << 32, 0xf000_0000..0x1_0000_0001, Range { start: 5, end: 1 }] {
        assert!(matches!(
            with(ecam.clone(), bad, None),
            Err(AcpiError::PciRange { what: "32-bit window", .. })
        ));
    }
    for bad in [5..5, Range { start: 5, end: 1 }] {
        let error = with(ecam.clone(), low.clone(), Some(bad));
        assert!(matches!(error, Err(AcpiError::PciRange { what: "64-bit window", .. })));
    }
    assert!(with(ecam, low, Some(0..u64::MAX)).is_ok());
    let power = PowerRegisters { s5_type: 8, ..bare(1).power };
    assert_eq!(build(&Platform { power, ..bare(1) }), Err(AcpiError::SleepType(8)));
}
