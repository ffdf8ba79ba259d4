//! Checks with Intel's compiler: each table must disassemble without a remark, and the DSDT must compile
//! again.

use std::path::Path;
use std::process::Command;

use super::tests::{bare, platform, walk};
use super::*;

/// Runs `iasl` and returns its output.
fn iasl(dir: &Path, arguments: &[&str]) -> String {
    let output = match Command::new("iasl").args(arguments).current_dir(dir).output() {
        Ok(output) => output,
        Err(error) => panic!("iasl does not run ({error}): apt-get install acpica-tools"),
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "iasl {arguments:?} failed:\n{said}");
    said
}

/// Disassembles every table and compiles it again; returns the DSDT's source.
fn round_trip(platform: &Platform) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut dsdt = String::new();
    for table in walk(&build(platform).unwrap()) {
        let name = table.signature;
        std::fs::write(dir.path().join(format!("{name}.dat")), &table.bytes).unwrap();
        let said = iasl(dir.path(), &["-d", &format!("{name}.dat")]);
        let source = std::fs::read_to_string(dir.path().join(format!("{name}.dsl"))).unwrap();
        for complaint in ["Warning", "Error", "Invalid", "Unknown", "****"] {
            assert!(!said.contains(complaint), "{name}:\n{said}");
            assert!(!source.contains(complaint), "{name}:\n{source}");
        }
        // 6035: Microsoft's VMGENCTR has no number behind its four letters, and Linux knows the device by no other name.
        let said = iasl(dir.path(), &["-vw", "6035", "-p", &format!("{name}-again"), &format!("{name}.dsl")]);
        assert!(said.contains("0 Errors, 0 Warnings, 0 Remarks"), "{name}:\n{said}\n{source}");
        let again = std::fs::read(dir.path().join(format!("{name}-again.aml"))).unwrap();
        // Without the header, which names the compiler.
        let body = HEADER as usize..;
        assert!(again[body.clone()] == table.bytes[body], "{name} is another table now:\n{source}");
        if name == "DSDT" {
            dsdt = source;
        }
    }
    dsdt
}

#[test]
fn iasl_takes_all_tables_apart_and_together_without_a_remark() {
    let source = round_trip(&platform(2));
    for wanted in [
        "Name (_S5",
        "PNP0A08",
        "WordBusNumber",
        "DWordMemory",
        "QWordMemory",
        "PNP0C02",
        "Memory32Fixed",
        "PNP0501",
        "PNP0B00",
        "QEMU0001",
        "PNP0C0C",
        "ACPI0013",
        "Notify (PWRB, 0x80)",
        "VMGENCTR",
        "Notify (VGEN, 0x80)",
    ] {
        assert!(source.contains(wanted), "no {wanted} in:\n{source}");
    }
}

#[test]
fn iasl_takes_the_smallest_and_the_largest_machine() {
    let source = round_trip(&bare(1));
    for unwanted in ["PNP0A08", "PNP0C02", "PNP0501", "PNP0B00", "QEMU0001", "VMGENCTR"] {
        assert!(!source.contains(unwanted), "{unwanted} in:\n{source}");
    }
    round_trip(&Platform { power_button_gsi: 300, ..platform(1024) });
}
