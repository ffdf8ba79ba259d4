//! The SMBIOS tables (DMTF DSP0134, version 3): who made the machine, which one it is, and texts for the guest's system.
//!
//! Linux without EFI looks for the entry point in 0xf0000..0x100000, in steps of 16 bytes (drivers/firmware/dmi_scan.c). systemd takes
//! credentials from the OEM strings (systemd.system-credentials(7)), and a machine's first ID from its UUID (machine-id(5)).

use crate::layout;

/// Anchor of the 64-bit entry point (DSP0134 §5.2.2).
const ANCHOR: [u8; 5] = *b"_SM3_";
/// Length of the 64-bit entry point.
const ENTRY_POINT: usize = 24;
/// The tables begin here, behind the entry point, at a multiple of 16.
const TABLE: usize = 32;
/// Handles of the structures, which nothing but OEM strings has more than one of.
const BIOS: u16 = 0;
const SYSTEM: u16 = 1;
/// The first of the OEM strings; a structure has 255 strings at most.
const OEM_STRINGS: u16 = 0x0b00;
const END: u16 = 0x7f00;
const MOST_STRINGS: usize = 255;

/// What the tables say of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System<'a> {
    /// Version of the program that makes the machine.
    pub version: &'a str,
    /// The machine's UUID (RFC 9562), in the order in which it is written.
    pub uuid: [u8; 16],
    /// Its serial number, if it has one.
    pub serial: Option<&'a str>,
    /// Texts for the guest's system (DSP0134 §7.12).
    pub oem_strings: &'a [String],
}

/// Why the tables cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SmbiosError {
    /// A string ends at its first zero, and none is empty.
    #[error("a text for the guest's SMBIOS tables is empty or has a zero byte in it: {0:?}")]
    Text(String),
    /// The tables would reach into what lies behind them.
    #[error(
        "the texts for the guest's SMBIOS tables take {needed} bytes and only {room} fit; give fewer or shorter ones"
    )]
    TooLarge {
        /// Size of the tables.
        needed: usize,
        /// Maximum size.
        room: usize,
    },
}

/// Makes the entry point and the tables behind it, to be copied to [`layout::SMBIOS`].
///
/// # Errors
/// [`SmbiosError`], if a text is none for SMBIOS, or all of them are too long.
pub fn build(system: &System<'_>) -> Result<Vec<u8>, SmbiosError> {
    let mut blob = vec![0; TABLE];
    bios(&mut blob, system)?;
    this_system(&mut blob, system)?;
    for (number, strings) in (OEM_STRINGS..).zip(system.oem_strings.chunks(MOST_STRINGS)) {
        let count = u8::try_from(strings.len()).unwrap_or(u8::MAX);
        structure(&mut blob, 11, number, &[count], strings.iter().map(String::as_str))?;
    }
    structure(&mut blob, 127, END, &[], [])?;
    let (needed, room) = (blob.len(), room());
    if needed > room {
        return Err(SmbiosError::TooLarge { needed, room });
    }
    let entry = entry_point(needed - TABLE);
    for (to, from) in blob.iter_mut().zip(entry) {
        *to = from;
    }
    Ok(blob)
}

/// Bytes up to what lies behind the tables.
fn room() -> usize {
    usize::try_from(layout::GENERATION_ID - layout::SMBIOS).unwrap_or(0)
}

/// The 64-bit entry point (DSP0134 §5.2.2).
fn entry_point(table: usize) -> [u8; ENTRY_POINT] {
    let mut entry = [0; ENTRY_POINT];
    let length = u32::try_from(table).unwrap_or(u32::MAX).to_le_bytes();
    let address = (layout::SMBIOS + TABLE as u64).to_le_bytes();
    // Checksum, length, version 3.3.0, revision of the entry point, reserved.
    let fixed = [0, 24, 3, 3, 0, 1, 0];
    let bytes = ANCHOR.iter().chain(&fixed).chain(&length).chain(&address);
    for (to, from) in entry.iter_mut().zip(bytes) {
        *to = *from;
    }
    let sum = entry.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = entry.get_mut(ANCHOR.len()) {
        *checksum = sum.wrapping_neg();
    }
    entry
}

/// Type 0: there is no firmware, but systems take a machine without this structure for broken (§7.1).
fn bios(blob: &mut Vec<u8>, system: &System<'_>) -> Result<(), SmbiosError> {
    // Vendor, version, segment 0, release date, no ROM; "characteristics are not supported" (bit 3); extension bytes: the UEFI
    // bit is clear, "the table describes a virtual machine" (bit 4) is set; no releases.
    let fields = [1, 2, 0, 0, 3, 0, 1 << 3, 0, 0, 0, 0, 0, 0, 0, 0, 1 << 4, 0xff, 0xff, 0xff, 0xff];
    structure(blob, 0, BIOS, &fields, ["minivmm", system.version, "01/01/2026"])
}

/// Type 1 (§7.2).
fn this_system(blob: &mut Vec<u8>, system: &System<'_>) -> Result<(), SmbiosError> {
    // Manufacturer, product, version, serial number.
    let mut fields = vec![1, 2, 3, if system.serial.is_some() { 4 } else { 0 }];
    fields.extend(wire(system.uuid));
    // Wake-up by the power switch; no SKU, no family.
    fields.extend([6, 0, 0]);
    structure(
        blob,
        1,
        SYSTEM,
        &fields,
        ["minivmm", "minivmm", system.version].into_iter().chain(system.serial),
    )
}

/// The first three fields of a UUID are numbers, the low byte first (§7.2.1).
fn wire(uuid: [u8; 16]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h, rest @ ..] = uuid;
    let [i, j, k, l, m, n, o, p] = rest;
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

/// Appends a structure with its strings (§6.1.2, §6.1.3).
fn structure<'a>(
    blob: &mut Vec<u8>,
    kind: u8,
    handle: u16,
    fields: &[u8],
    strings: impl IntoIterator<Item = &'a str>,
) -> Result<(), SmbiosError> {
    let length = u8::try_from(4 + fields.len()).unwrap_or(u8::MAX);
    blob.extend([kind, length]);
    blob.extend(handle.to_le_bytes());
    blob.extend(fields);
    let begin = blob.len();
    for text in strings {
        if text.is_empty() || text.contains('\0') {
            return Err(SmbiosError::Text(text.to_owned()));
        }
        blob.extend(text.as_bytes());
        blob.push(0);
    }
    // A set of strings ends with an empty one; an empty set is two zeros.
    blob.extend(if blob.len() == begin { &[0, 0][..] } else { &[0] });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: [u8; 16] =
        [0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];

    fn system(oem_strings: &[String]) -> System<'_> {
        System { version: "1.2.3", uuid: UUID, serial: Some("vm0"), oem_strings }
    }

    /// What a guest reads: each structure's type, fields and strings.
    fn read(blob: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        assert_eq!(blob[..5], ANCHOR);
        assert_eq!(blob[..24].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        assert_eq!(blob[6], 24);
        let length = u32::from_le_bytes(blob[12..16].try_into().unwrap()) as usize;
        let address = u64::from_le_bytes(blob[16..24].try_into().unwrap());
        let mut rest = &blob[usize::try_from(address - layout::SMBIOS).unwrap()..];
        assert_eq!(rest.len(), length);
        let mut found = Vec::new();
        while !rest.is_empty() {
            let (fields, mut strings) = rest.split_at(rest[1].into());
            let mut texts = Vec::new();
            if strings[0] == 0 {
                strings = &strings[1..];
            }
            while strings[0] != 0 {
                let end = strings.iter().position(|byte| *byte == 0).unwrap();
                texts.push(String::from_utf8(strings[..end].to_vec()).unwrap());
                strings = &strings[end + 1..];
            }
            rest = &strings[1..];
            found.push((fields[0], fields[4..].to_vec(), texts));
        }
        found
    }

    #[test]
    fn a_guest_finds_the_machine_and_what_it_is_told() {
        let strings = ["io.systemd.credential:a=b".to_owned(), "c".to_owned()];
        let found = read(&build(&system(&strings)).unwrap());
        let kinds: Vec<u8> = found.iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(kinds, [0, 1, 11, 127]);
        let (_, fields, texts) = &found[1];
        assert_eq!(texts, &["minivmm", "minivmm", "1.2.3", "vm0"]);
        assert_eq!(fields[..4], [1, 2, 3, 4]);
        let little =
            [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
        assert_eq!(fields[4..20], little);
        assert_eq!((fields.len(), found[0].1.len()), (23, 20), "§7.2, §7.1: length 1Bh and 18h");
        assert_eq!((found[2].1.clone(), &found[2].2), (vec![2], &strings.to_vec()));
    }

    #[test]
    fn more_texts_than_a_structure_holds_are_in_several() {
        assert!(read(&build(&system(&[])).unwrap()).iter().all(|(kind, ..)| *kind != 11));
        let strings: Vec<String> = (0..600).map(|number| format!("text {number}")).collect();
        let found = read(&build(&system(&strings)).unwrap());
        let there: Vec<String> =
            found.into_iter().filter(|(kind, ..)| *kind == 11).flat_map(|(.., texts)| texts).collect();
        assert_eq!(there, strings);
    }

    #[test]
    fn texts_that_do_not_fit_are_refused() {
        for text in ["", "a\0b"] {
            assert_eq!(build(&system(&[text.to_owned()])), Err(SmbiosError::Text(text.to_owned())));
        }
        let refused = build(&system(&["x".repeat(60 << 10)]));
        assert!(
            matches!(refused, Err(SmbiosError::TooLarge { needed, room }) if needed > room),
            "{refused:?}"
        );
        assert!(build(&system(&["x".repeat(59 << 10)])).unwrap().len() <= room());
    }
}
