//! ELF vmlinux: parses program headers and the PVH note. Nothing else is read.

use linux_loader::elf::{
    ELFCLASS32, ELFDATA2MSB, ET_CORE, ET_DYN, ET_EXEC, ET_REL, Elf32_Ehdr, Elf32_Phdr, Elf64_Ehdr,
    Elf64_Nhdr, Elf64_Phdr, PT_INTERP, PT_LOAD, PT_NOTE,
};
use std::mem::offset_of;

use super::foreign::{EM_386, EM_X86_64, Foreign};
use super::{HEAD, KernelError};
use crate::read::{Fields, ReadAt};

/// Maximum program headers. Linux has 5, other kernels up to a dozen.
const MAX_HEADERS: usize = 64;
/// Maximum length of notes. Linux has 512 bytes in one segment.
const MAX_NOTES: usize = 16 << 10;
const PHDR: usize = size_of::<Elf64_Phdr>();
const PHDR32: usize = size_of::<Elf32_Phdr>();
/// Physical address of a 32-bit protected-mode entry (xen/include/public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// A part of the file for a physical address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) file_offset: u64,
    pub(crate) file_len: u64,
    pub(crate) guest: u64,
    /// At least `file_len`; the rest is zero.
    pub(crate) memory_len: u64,
    /// `p_vaddr`; an entry point may be relative to it.
    linked: u64,
}

impl Segment {
    pub(crate) fn end(&self) -> u64 {
        self.guest + self.memory_len
    }

    /// Whether the file has content at `address`.
    fn holds(&self, address: u64) -> bool {
        (self.guest..self.guest + self.file_len).contains(&address)
    }
}

/// An ELF executable for x86 with valid headers.
#[derive(Debug, Clone)]
pub(crate) struct Elf {
    /// By address, not overlapping, not empty in memory.
    pub(crate) segments: Vec<Segment>,
    /// Physical address of Linux's own entry.
    pub(crate) entry: Option<u64>,
    /// That entry is a 64-bit one.
    pub(crate) long_mode: bool,
    /// Physical address of the PVH entry, from a note.
    pub(crate) pvh_entry: Option<u32>,
}

/// A field of an ELF structure at `base`.
macro_rules! field {
    ($bytes:expr, $kind:ident, $base:expr, $of:ident . $name:ident) => {
        $bytes
            .$kind($base + offset_of!($of, $name))
            .ok_or(KernelError::BadElf("its headers end too early"))?
    };
}

impl Elf {
    /// Parses the headers; `head` is the start of a file of `len` bytes with the ELF magic.
    pub(crate) fn parse<R: ReadAt + ?Sized>(file: &R, head: &[u8], len: u64) -> Result<Self, KernelError> {
        let header = Fields(head);
        let long_mode = check_identity(header)?;
        let (entry, table) = if long_mode {
            (field!(header, u64, 0, Elf64_Ehdr.e_entry), program_headers(file, header, len)?)
        } else {
            (u64::from(field!(header, u32, 0, Elf32_Ehdr.e_entry)), wide_program_headers(file, header, len)?)
        };
        let table = Fields(&table);
        let (mut segments, mut pvh_entry, mut notes_left) = (Vec::new(), None, MAX_NOTES);
        for at in (0..table.0.len()).step_by(PHDR) {
            let offset = field!(table, u64, at, Elf64_Phdr.p_offset);
            let file_len = field!(table, u64, at, Elf64_Phdr.p_filesz);
            match field!(table, u32, at, Elf64_Phdr.p_type) {
                PT_INTERP => return Err(KernelError::Foreign(Foreign::ElfProgram)),
                PT_LOAD => segments.extend(segment(table, at, len)?),
                PT_NOTE if pvh_entry.is_none() => {
                    check_extent("notes", offset, file_len, len)?;
                    let align = field!(table, u64, at, Elf64_Phdr.p_align);
                    let notes = read_notes(file, offset, file_len, &mut notes_left)?;
                    pvh_entry = find_pvh_entry(Fields(&notes), align);
                }
                _ => {}
            }
        }
        segments.sort_by_key(|segment| segment.guest);
        if segments.is_empty() {
            return Err(KernelError::BadElf("no segment of it is to be loaded"));
        }
        if segments.windows(2).any(|pair| matches!(pair, [a, b] if a.end() > b.guest)) {
            return Err(KernelError::BadElf("two of its segments claim the same memory"));
        }
        let entry = physical_entry(&segments, entry);
        let pvh_entry = pvh_entry.filter(|&entry| segments.iter().any(|s| s.holds(u64::from(entry))));
        if entry.is_none() && pvh_entry.is_none() {
            return Err(KernelError::BadElf("its entry point lies outside of its segments"));
        }
        // The other entries of a kernel with a Multiboot header expect the state that only such a loader sets
        // up.
        if pvh_entry.is_none() && multiboot(file, len)? {
            return Err(KernelError::Multiboot);
        }
        Ok(Elf { segments, entry, long_mode, pvh_entry })
    }

    /// First address after the kernel in memory.
    pub(crate) fn end(&self) -> u64 {
        self.segments.last().map_or(0, Segment::end)
    }
}

/// System V ABI, "ELF Identification" and `e_type`: refuses ELF files that are no x86 kernel. True for a
/// 64-bit one.
fn check_identity(header: Fields<'_>) -> Result<bool, KernelError> {
    let foreign = |which| Err(KernelError::Foreign(which));
    let class = header.u8(4).map(u32::from);
    if header.u8(5).map(u32::from) == Some(u32::from(ELFDATA2MSB)) {
        return foreign(Foreign::ElfBigEndian);
    }
    let machine = field!(header, u16, 0, Elf64_Ehdr.e_machine);
    let long_mode = class != Some(u32::from(ELFCLASS32));
    if machine != if long_mode { EM_X86_64 } else { EM_386 } {
        return foreign(match machine {
            EM_X86_64 => Foreign::Elf32,
            other => Foreign::ElfMachine(other),
        });
    }
    match field!(header, u16, 0, Elf64_Ehdr.e_type) {
        ET_EXEC | ET_DYN => Ok(long_mode),
        ET_REL => foreign(Foreign::ElfObject),
        ET_CORE => foreign(Foreign::ElfProgram),
        _ => Err(KernelError::BadElf("its type is unknown")),
    }
}

/// The program header table.
fn program_headers<R: ReadAt + ?Sized>(
    file: &R,
    header: Fields<'_>,
    len: u64,
) -> Result<Vec<u8>, KernelError> {
    let table = Table {
        count: field!(header, u16, 0, Elf64_Ehdr.e_phnum).into(),
        offset: field!(header, u64, 0, Elf64_Ehdr.e_phoff),
        size: field!(header, u16, 0, Elf64_Ehdr.e_phentsize).into(),
    };
    if table.count > 0 && table.size != PHDR {
        return Err(KernelError::BadElf("its program headers are not 56 bytes long"));
    }
    table.read(file, header, len)
}

/// The table of a 32-bit file, with each entry in the layout of 64-bit files.
fn wide_program_headers<R: ReadAt + ?Sized>(
    file: &R,
    header: Fields<'_>,
    len: u64,
) -> Result<Vec<u8>, KernelError> {
    let table = Table {
        count: field!(header, u16, 0, Elf32_Ehdr.e_phnum).into(),
        offset: field!(header, u32, 0, Elf32_Ehdr.e_phoff).into(),
        size: field!(header, u16, 0, Elf32_Ehdr.e_phentsize).into(),
    };
    if table.count > 0 && table.size != PHDR32 {
        return Err(KernelError::BadElf("its program headers are not 32 bytes long"));
    }
    let narrow = table.read(file, header, len)?;
    let narrow = Fields(&narrow);
    let mut wide = Vec::with_capacity(table.count * PHDR);
    for at in (0..narrow.0.len()).step_by(PHDR32) {
        wide.extend(field!(narrow, u32, at, Elf32_Phdr.p_type).to_le_bytes());
        wide.extend(field!(narrow, u32, at, Elf32_Phdr.p_flags).to_le_bytes());
        // In the order of `Elf64_Phdr`.
        for value in [
            field!(narrow, u32, at, Elf32_Phdr.p_offset),
            field!(narrow, u32, at, Elf32_Phdr.p_vaddr),
            field!(narrow, u32, at, Elf32_Phdr.p_paddr),
            field!(narrow, u32, at, Elf32_Phdr.p_filesz),
            field!(narrow, u32, at, Elf32_Phdr.p_memsz),
            field!(narrow, u32, at, Elf32_Phdr.p_align),
        ] {
            wide.extend(u64::from(value).to_le_bytes());
        }
    }
    Ok(wide)
}

/// Location of a program header table.
struct Table {
    count: usize,
    offset: u64,
    /// Size of one entry.
    size: usize,
}

impl Table {
    /// Takes it from the bytes that were read, or reads it.
    fn read<R: ReadAt + ?Sized>(
        &self,
        file: &R,
        header: Fields<'_>,
        len: u64,
    ) -> Result<Vec<u8>, KernelError> {
        let Table { count, offset, size } = *self;
        if count == 0 {
            return Err(KernelError::BadElf("it has no program headers"));
        }
        if count > MAX_HEADERS {
            return Err(KernelError::BadElf("it has more than 64 program headers"));
        }
        let size = count * size;
        check_extent("program headers", offset, size as u64, len)?;
        let at_hand =
            usize::try_from(offset).ok().filter(|&at| at <= HEAD).and_then(|at| header.slice(at, size));
        match at_hand {
            Some(table) => Ok(table.to_vec()),
            None => read_vec(file, offset, size),
        }
    }
}

/// Whether the file has a Multiboot header: version 1 in its first 8 KiB, aligned to 4 bytes, three words
/// whose sum is 0; version 2 in its first 32 KiB, aligned to 8 bytes, four such words.
fn multiboot<R: ReadAt + ?Sized>(file: &R, len: u64) -> Result<bool, KernelError> {
    const SEARCH: [(u32, usize, usize, usize); 2] =
        [(0x1bad_b002, 8 << 10, 4, 3), (0xe852_50d6, 32 << 10, 8, 4)];
    let size = usize::try_from(len).unwrap_or(usize::MAX).min(32 << 10);
    let head = read_vec(file, 0, size)?;
    let head = Fields(&head);
    let sums = |at: usize, words: usize| {
        let mut words = (0..words).map(|i| head.u32(at + 4 * i));
        words.try_fold(0u32, |sum, word| Some(sum.wrapping_add(word?))) == Some(0)
    };
    Ok(SEARCH.into_iter().any(|(magic, end, align, words)| {
        (0..end).step_by(align).any(|at| head.u32(at) == Some(magic) && sums(at, words))
    }))
}

/// A `PT_LOAD` header; `None` if it takes no memory.
fn segment(table: Fields<'_>, at: usize, len: u64) -> Result<Option<Segment>, KernelError> {
    let segment = Segment {
        file_offset: field!(table, u64, at, Elf64_Phdr.p_offset),
        file_len: field!(table, u64, at, Elf64_Phdr.p_filesz),
        guest: field!(table, u64, at, Elf64_Phdr.p_paddr),
        memory_len: field!(table, u64, at, Elf64_Phdr.p_memsz),
        linked: field!(table, u64, at, Elf64_Phdr.p_vaddr),
    };
    check_extent("segment", segment.file_offset, segment.file_len, len)?;
    if segment.memory_len < segment.file_len {
        return Err(KernelError::BadElf("a segment is longer in the file than in memory"));
    }
    if segment.guest.checked_add(segment.memory_len).is_none() {
        return Err(KernelError::BadElf("a segment reaches past the end of the address space"));
    }
    Ok((segment.memory_len > 0).then_some(segment))
}

/// Refuses a range that is not within the file.
fn check_extent(what: &'static str, offset: u64, size: u64, len: u64) -> Result<(), KernelError> {
    match offset.checked_add(size) {
        Some(end) if end <= len => Ok(()),
        end => Err(KernelError::Truncated { what, needed: end.unwrap_or(u64::MAX), len }),
    }
}

/// Reads `size` bytes within the file; fewer if the file shrinks meanwhile.
fn read_vec<R: ReadAt + ?Sized>(file: &R, offset: u64, size: usize) -> Result<Vec<u8>, KernelError> {
    let mut bytes = vec![0; size];
    let read = file.read_at(&mut bytes, offset).map_err(KernelError::Read)?;
    bytes.truncate(read);
    Ok(bytes)
}

/// The notes of one segment, within the limit for the file.
fn read_notes<R: ReadAt + ?Sized>(
    file: &R,
    offset: u64,
    size: u64,
    left: &mut usize,
) -> Result<Vec<u8>, KernelError> {
    let size = usize::try_from(size).unwrap_or(usize::MAX).min(*left);
    *left -= size;
    read_vec(file, offset, size)
}

/// Walks a note section (System V ABI, "Note Section") for Xen's `PHYS32_ENTRY`.
fn find_pvh_entry(notes: Fields<'_>, align: u64) -> Option<u32> {
    let align = if align == 8 { 8 } else { 4 };
    let mut at = 0usize;
    loop {
        let name_len = usize::try_from(notes.u32(at + offset_of!(Elf64_Nhdr, n_namesz))?).ok()?;
        let desc_len = usize::try_from(notes.u32(at + offset_of!(Elf64_Nhdr, n_descsz))?).ok()?;
        let kind = notes.u32(at + offset_of!(Elf64_Nhdr, n_type))?;
        let name = at + size_of::<Elf64_Nhdr>();
        let desc = name.checked_add(name_len)?.checked_next_multiple_of(align)?;
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && notes.slice(name, name_len)? == b"Xen\0" {
            return match desc_len {
                4 => notes.u32(desc),
                8 => notes.u64(desc).and_then(|entry| u32::try_from(entry).ok()),
                _ => None,
            };
        }
        at = desc.checked_add(desc_len)?.checked_next_multiple_of(align)?;
        if at > notes.0.len() {
            return None;
        }
    }
}

/// `e_entry` is physical in Linux; other kernels give a linked address.
fn physical_entry(segments: &[Segment], entry: u64) -> Option<u64> {
    if segments.iter().any(|segment| segment.holds(entry)) {
        return Some(entry);
    }
    let translated = |s: &Segment| entry.checked_sub(s.linked).and_then(|offset| s.guest.checked_add(offset));
    segments.iter().find_map(|s| translated(s).filter(|&address| s.holds(address)))
}
