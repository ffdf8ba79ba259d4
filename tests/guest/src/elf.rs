//! Machine code wrapped as an ELF64 kernel, as small as loaders take it.

use std::io;
use std::path::{Path, PathBuf};

/// Where the code is loaded and entered.
pub const LOAD_ADDRESS: u64 = 0x10_0000;
/// Memory that a guest takes from [`LOAD_ADDRESS`] on, code, tables and stack: a machine of 4 MiB has it.
pub const MEMORY: u64 = 0x20_0000;
/// The code starts here in the file: page-aligned like the address it goes to.
const CODE_OFFSET: u64 = 0x1000;
/// Size of the ELF header and of a program header (ELF-64 object file format 1.5, figures 2 and 6).
const EHDR: u16 = 64;
const PHDR: u16 = 56;
/// XEN_ELFNOTE_PHYS32_ENTRY: the 32-bit entry of the PVH boot protocol.
const PHYS32_ENTRY: u32 = 18;

/// A kernel that is entered in long mode by the Linux 64-bit protocol: identity-mapped memory, rsi = boot_params.
/// It has no PVH note.
pub fn elf(code: &[u8]) -> Vec<u8> {
    build(code, None)
}

/// A kernel with a PVH note: entered in 32-bit protected mode without paging, ebx = start info.
pub fn pvh_elf(code32: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4u32, 8, PHYS32_ENTRY] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(LOAD_ADDRESS.to_le_bytes());
    build(code32, Some(&note))
}

/// Writes [`elf`] of `code` as `dir/name`.
///
/// # Errors
/// The file cannot be written.
pub fn write_elf(dir: &Path, name: &str, code: &[u8]) -> io::Result<PathBuf> {
    let path = dir.join(name);
    std::fs::write(&path, elf(code))?;
    Ok(path)
}

fn build(code: &[u8], note: Option<&[u8]>) -> Vec<u8> {
    let headers = 1 + u16::from(note.is_some());
    let mut file = Vec::new();
    // 64 bits, little endian, version 1, System V.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    put16(&mut file, &[2, 62]); // ET_EXEC, EM_X86_64
    file.extend(1u32.to_le_bytes());
    // Entry, program headers, no section headers.
    put64(&mut file, &[LOAD_ADDRESS, u64::from(EHDR), 0]);
    file.extend(0u32.to_le_bytes());
    put16(&mut file, &[EHDR, PHDR, headers, 0, 0, 0]);

    // PT_LOAD, readable, writable, executable.
    let size = code.len() as u64;
    segment(&mut file, 1, 7, [CODE_OFFSET, LOAD_ADDRESS, LOAD_ADDRESS, size, MEMORY.max(size), 0x1000]);
    if let Some(note) = note {
        // PT_NOTE, behind itself in the file; not loaded.
        let offset = u64::from(EHDR) + u64::from(PHDR) * u64::from(headers);
        let size = note.len() as u64;
        segment(&mut file, 4, 4, [offset, 0, 0, size, size, 4]);
        file.extend(note);
    }
    file.resize(usize::try_from(CODE_OFFSET).unwrap_or(0), 0);
    file.extend(code);
    file
}

/// A program header: offset, virtual and physical address, size in the file and in memory, alignment.
fn segment(file: &mut Vec<u8>, kind: u32, flags: u32, fields: [u64; 6]) {
    file.extend(kind.to_le_bytes());
    file.extend(flags.to_le_bytes());
    put64(file, &fields);
}

fn put16(file: &mut Vec<u8>, values: &[u16]) {
    values.iter().for_each(|value| file.extend(value.to_le_bytes()));
}

fn put64(file: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|value| file.extend(value.to_le_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u64_at(file: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(file[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn code_lies_where_the_only_segment_says() {
        let file = elf(b"code");
        assert_eq!(u64_at(&file, 24), LOAD_ADDRESS, "entry");
        let phdr = usize::try_from(u64_at(&file, 32)).unwrap();
        let offset = usize::try_from(u64_at(&file, phdr + 8)).unwrap();
        assert_eq!(&file[offset..], b"code");
        assert_eq!(u64_at(&file, phdr + 24), LOAD_ADDRESS, "physical address");
        assert_eq!((u64_at(&file, phdr + 32), u64_at(&file, phdr + 40)), (4, MEMORY));
        assert!(!file.windows(4).any(|bytes| bytes == b"Xen\0"));
    }

    #[test]
    fn pvh_note_names_the_entry() {
        let file = pvh_elf(b"code");
        let phdr = usize::from(EHDR + PHDR);
        assert_eq!(file[phdr], 4, "PT_NOTE");
        let note = usize::try_from(u64_at(&file, phdr + 8)).unwrap();
        assert_eq!(&file[note..note + 16], b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0");
        assert_eq!(u64_at(&file, note + 16), LOAD_ADDRESS);
        assert!(file.ends_with(b"code"));
    }
}
