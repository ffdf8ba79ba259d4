//! bzImage: the setup header of the Linux x86 boot protocol (Documentation/arch/x86/boot.rst), read and checked.

use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, boot_params};
use std::mem::offset_of;

use super::KernelError;
use crate::compression::Compression;
use crate::layout::HIMEM;
use crate::read::{Fields, ReadAt};

/// Offset of the 64-bit entry in the protected-mode code ("64-bit BOOT PROTOCOL").
const ENTRY_64: u64 = 0x200;
/// First protocol version with `xloadflags`, and so with a 64-bit entry.
const PROTOCOL_64: u16 = 0x020c;
/// First protocol version with `pref_address` and `init_size`.
const PROTOCOL_INIT_SIZE: u16 = 0x020a;
/// First protocol version with `cmdline_size`; before it a command line had at most 255 bytes.
const PROTOCOL_CMDLINE: u16 = 0x0206;
/// First protocol version with `kernel_alignment` and `relocatable_kernel`: Linux 2.6.20.
const PROTOCOL: u16 = 0x0205;
/// Unit of `syssize` in bytes.
const PARAGRAPH: u64 = 16;
/// Factor of its length for the memory of a kernel without `init_size`.
const UNPACKED: u64 = 8;
/// Maximum length of the version string.
const VERSION_MAX: usize = 128;
/// Offset of the setup header, in the file and in `boot_params`.
pub(crate) const HEADER: usize = offset_of!(boot_params, hdr);
/// Maximum end of the header: the bytes after it belong to the loader ("The zero page").
pub(crate) const HEADER_END: usize = offset_of!(boot_params, edd_mbr_sig_buffer);

/// A bzImage with a valid header.
#[derive(Debug, Clone)]
pub(crate) struct BzImage {
    /// The file's setup header, for `boot_params` at [`HEADER`].
    pub(crate) header: Vec<u8>,
    /// Offset of the protected-mode code in the file.
    pub(crate) code: u64,
    /// Its length.
    pub(crate) code_len: u64,
    pub(crate) pref_address: u64,
    pub(crate) init_size: u64,
    pub(crate) relocatable: bool,
    /// It has the 64-bit entry; otherwise the 32-bit one.
    pub(crate) long_mode: bool,
    /// Maximum end address of an initrd, inclusive.
    pub(crate) initrd_addr_max: u64,
    pub(crate) cmdline_max: u64,
    pub(crate) protocol: u16,
    pub(crate) version: Option<String>,
    pub(crate) compression: Option<Compression>,
}

/// One field of `boot_params.hdr`, from the file's first page.
macro_rules! field {
    ($head:expr, $kind:ident, $name:ident) => {
        $head.$kind(offset_of!(boot_params, hdr.$name)).ok_or(KernelError::BadHeader("it ends too early"))?
    };
}

impl BzImage {
    /// Parses the header in `head`, the start of a file of `len` bytes with the magic `HdrS`.
    pub(crate) fn parse<R: ReadAt + ?Sized>(file: &R, head: &[u8], len: u64) -> Result<Self, KernelError> {
        let head = Fields(head);
        let protocol = field!(head, u16, version);
        if protocol < PROTOCOL {
            let [minor, major] = protocol.to_le_bytes();
            return Err(KernelError::OldProtocol { major, minor });
        }
        if field!(head, u16, boot_flag) != 0xaa55 {
            return Err(KernelError::BadHeader("its boot flag is not 0xaa55"));
        }
        if field!(head, u8, loadflags) & LOADED_HIGH == 0 {
            return Err(KernelError::NotHigh);
        }
        let long_mode = protocol >= PROTOCOL_64 && field!(head, u16, xloadflags) & XLF_KERNEL_64 != 0;
        let (code, code_len) = code_extent(head, long_mode, len)?;
        let (pref_address, init_size) = if protocol >= PROTOCOL_INIT_SIZE {
            (field!(head, u64, pref_address), u64::from(field!(head, u32, init_size)))
        } else {
            (HIMEM, code_len * UNPACKED)
        };
        // The missing part of the last paragraph still takes memory.
        let init_size = init_size.max(code_len.next_multiple_of(PARAGRAPH));
        if pref_address < HIMEM || pref_address.checked_add(init_size).is_none() {
            return Err(KernelError::BadHeader("its preferred address is not in memory"));
        }
        let payload = u64::from(field!(head, u32, payload_offset));
        // The header has its length since protocol 2.08, like its offset.
        let payload_len = u64::from(field!(head, u32, payload_length));
        let (payload, payload_len) = if protocol < 0x0208 { (0, 0) } else { (payload, payload_len) };
        if payload + payload_len > code_len {
            return Err(KernelError::BadHeader("its payload reaches past its end"));
        }
        Ok(BzImage {
            header: copy_header(head, protocol)?,
            code,
            code_len,
            pref_address,
            init_size,
            relocatable: field!(head, u8, relocatable_kernel) != 0,
            initrd_addr_max: u64::from(field!(head, u32, initrd_addr_max)),
            cmdline_max: match protocol {
                PROTOCOL_CMDLINE.. => u64::from(field!(head, u32, cmdline_size)),
                _ => 255,
            },
            long_mode,
            protocol,
            version: version(file, field!(head, u16, kernel_version), code)?,
            compression: match payload_len {
                0 => None,
                _ => Compression::of(&read_magic(file, code + payload)?),
            },
        })
    }

    /// Address of the entry if the code is at `load`: the 32-bit entry is its first byte ("32-bit BOOT
    /// PROTOCOL").
    pub(crate) fn entry(&self, load: u64) -> u64 {
        if self.long_mode { load + ENTRY_64 } else { load }
    }
}

/// Offset and length of the protected-mode code: it follows the boot sector and `setup_sects` more, its
/// length is counted in paragraphs of 16 bytes, and a signature may follow it. The file may end within the
/// last paragraph: the missing part is padding, and reads as zero.
fn code_extent(head: Fields<'_>, long_mode: bool, len: u64) -> Result<(u64, u64), KernelError> {
    let sectors = match field!(head, u8, setup_sects) {
        0 => 4, // "For backwards compatibility"
        sectors => u64::from(sectors),
    };
    let code = (sectors + 1) * 512;
    let code_len = u64::from(field!(head, u32, syssize)) * PARAGRAPH;
    if code_len <= if long_mode { ENTRY_64 } else { 0 } {
        return Err(KernelError::BadHeader("its code is too short to hold its entry"));
    }
    match (code + code_len).checked_sub(len) {
        None => Ok((code, code_len)),
        Some(missing) if missing < PARAGRAPH => Ok((code, code_len - missing)),
        Some(_) => Err(KernelError::Truncated { what: "code", needed: code + code_len, len }),
    }
}

/// The header ends at 0x202 + the byte at 0x201, the offset of the jump ("64-bit BOOT PROTOCOL").
fn copy_header(head: Fields<'_>, protocol: u16) -> Result<Vec<u8>, KernelError> {
    let jump = offset_of!(boot_params, hdr.jump);
    let end = jump + 2 + usize::from(head.u8(jump + 1).unwrap_or_default());
    let needed = match protocol {
        PROTOCOL_INIT_SIZE.. => offset_of!(boot_params, hdr.init_size) + size_of::<u32>(),
        PROTOCOL_CMDLINE.. => offset_of!(boot_params, hdr.cmdline_size) + size_of::<u32>(),
        _ => offset_of!(boot_params, hdr.relocatable_kernel) + size_of::<u8>(),
    };
    if end < needed {
        return Err(KernelError::BadHeader("it is shorter than its version says"));
    }
    let end = end.min(HEADER_END);
    head.slice(HEADER, end - HEADER).map(<[u8]>::to_vec).ok_or(KernelError::BadHeader("it ends too early"))
}

/// The version string: the header has its offset less 0x200, 0 for none; it is part of the setup code.
fn version<R: ReadAt + ?Sized>(file: &R, offset: u16, code: u64) -> Result<Option<String>, KernelError> {
    let at = u64::from(offset) + 0x200;
    if offset == 0 || at >= code {
        return Ok(None);
    }
    let mut text = [0; VERSION_MAX];
    let read = file.read_at(&mut text, at).map_err(KernelError::Read)?;
    let text = text.get(..read).unwrap_or_default().split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(printable(text))
}

/// The first bytes of the payload.
fn read_magic<R: ReadAt + ?Sized>(file: &R, at: u64) -> Result<[u8; Compression::MAGIC_LEN], KernelError> {
    let mut magic = [0; Compression::MAGIC_LEN];
    file.read_at(&mut magic, at).map_err(KernelError::Read)?;
    Ok(magic)
}

/// The printable part of a text from an untrusted file.
pub(crate) fn printable(text: &[u8]) -> Option<String> {
    let text: String =
        text.iter().filter(|byte| (b' '..=b'~').contains(*byte)).map(|&b| char::from(b)).collect();
    (!text.is_empty()).then_some(text)
}
