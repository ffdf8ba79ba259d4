//! Identifies files that are no kernel for this machine, with the cure for each.

use std::fmt;

use crate::compression::Compression;
use crate::read::Fields;

/// ELF `e_machine` of 32-bit x86.
pub(crate) const EM_386: u16 = 3;
/// ELF `e_machine` of x86-64.
pub(crate) const EM_X86_64: u16 = 62;
/// First bytes of every ELF file.
pub(crate) const ELF_MAGIC: &[u8] = b"\x7fELF";
/// `HdrS`, at 0x202 of a bzImage (Linux x86 boot protocol, "The Real-Mode Kernel Header").
pub(crate) const HDRS: (usize, &[u8]) = (0x202, b"HdrS");

/// A file that was given as the kernel and is another kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// Compressed data without a decompressor.
    Compressed(Compression),
    /// An EFI program that is no bzImage: a unified kernel image, a boot loader.
    Efi,
    /// An EFI program of another architecture, by its PE machine number.
    EfiMachine(u16),
    /// An `Image` of 64-bit Arm.
    Arm64Image,
    /// An `Image` of RISC-V.
    RiscVImage,
    /// 32-bit ELF for x86-64: the x32 ABI, for programs only.
    Elf32,
    /// Big-endian ELF.
    ElfBigEndian,
    /// ELF of another machine, by its `e_machine`.
    ElfMachine(u16),
    /// A program, shared library or core dump.
    ElfProgram,
    /// An object file, usually a kernel module.
    ElfObject,
    /// An uncompressed initrd.
    Cpio,
    /// A disk image, by the name of its format.
    DiskImage(&'static str),
    /// A Debian package.
    DebPackage,
    /// Text: a script, a configuration file, a saved web page.
    Text,
    /// None of these.
    Unknown,
}

impl Foreign {
    /// Identifies a file by its first bytes, at most a page.
    pub(crate) fn of(head: &[u8]) -> Self {
        let at = |offset: usize, magic: &[u8]| Fields(head).slice(offset, magic.len()) == Some(magic);
        // Documentation/arch/arm64/booting.rst and riscv/boot-image-header.rst: both may start as a PE.
        if at(0x38, b"ARM\x64") {
            return Self::Arm64Image;
        }
        if at(0x38, b"RSC\x05") {
            return Self::RiscVImage;
        }
        if let Some(efi) = Self::efi(head) {
            return efi;
        }
        if let Some(compression) = Compression::of(head) {
            return Self::Compressed(compression);
        }
        match head {
            _ if at(0, b"070701") || at(0, b"070702") || at(0, b"070707") => Self::Cpio,
            _ if at(0, b"QFI\xfb") => Self::DiskImage("qcow2"),
            _ if at(0, b"KDMV") => Self::DiskImage("VMDK"),
            _ if at(0, b"vhdxfile") => Self::DiskImage("VHDX"),
            _ if at(0, b"hsqs") => Self::DiskImage("squashfs"),
            _ if at(0x200, b"EFI PART") => Self::DiskImage("raw, with a GPT"),
            _ if at(0x438, b"\x53\xef") => Self::DiskImage("ext4"),
            _ if at(0x1fe, b"\x55\xaa") => Self::DiskImage("raw, with a boot sector"),
            _ if at(0, b"!<arch>\ndebian-binary") => Self::DebPackage,
            _ if is_text(head) => Self::Text,
            _ => Self::Unknown,
        }
    }

    /// PE: `MZ`, and at 0x3c the offset of `PE\0\0` with the machine number after it (Microsoft PE, 3.1, 3.3.1).
    fn efi(head: &[u8]) -> Option<Self> {
        let fields = Fields(head);
        let pe = usize::try_from(fields.u32(0x3c)?).ok()?;
        if !head.starts_with(b"MZ") || fields.slice(pe, 4)? != b"PE\0\0" {
            return None;
        }
        match fields.u16(pe.checked_add(4)?)? {
            0x8664 => Some(Self::Efi),
            machine => Some(Self::EfiMachine(machine)),
        }
    }
}

/// Whether the first bytes are text.
fn is_text(head: &[u8]) -> bool {
    let head = head.get(..512).unwrap_or(head);
    let printable = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~' | 0x80..);
    !head.is_empty() && head.iter().all(printable)
}

/// Names of common ELF machines.
fn elf_machine(machine: u16) -> Option<&'static str> {
    Some(match machine {
        3 => "32-bit x86",
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "S/390",
        40 => "32-bit Arm",
        183 => "64-bit Arm",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => return None,
    })
}

const GIVE: &str = "Give an x86 kernel: a bzImage such as Debian's /boot/vmlinuz-*, or an ELF vmlinux.";

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Compressed(Compression::Lzo) => write!(f, "This is lzo data, not a kernel. {GIVE}"),
            Self::Compressed(with) => write!(
                f,
                "This is {with} data without the code that unpacks it, not a bootable kernel. If it is a packed \
                 vmlinux, unpack it first (`{} FILE > vmlinux`); if it is an initrd, give it as the initrd.",
                with.tool()
            ),
            Self::Efi => write!(
                f,
                "This is an EFI program without a Linux boot header (a boot loader or a unified kernel image), \
                 and this machine has no EFI firmware. {GIVE}"
            ),
            Self::EfiMachine(0xaa64) => write!(f, "This is an EFI program for 64-bit Arm. {GIVE}"),
            Self::EfiMachine(0x14c) => write!(f, "This is an EFI program for 32-bit x86. {GIVE}"),
            Self::EfiMachine(machine) => {
                write!(f, "This is an EFI program for another machine (PE number {machine:#x}). {GIVE}")
            }
            Self::Arm64Image => write!(f, "This is a kernel for 64-bit Arm. {GIVE}"),
            Self::RiscVImage => write!(f, "This is a kernel for RISC-V. {GIVE}"),
            Self::Elf32 => write!(f, "This is a 32-bit ELF file for x86-64, which no kernel is. {GIVE}"),
            Self::ElfBigEndian => write!(f, "This is an ELF file for a big-endian machine. {GIVE}"),
            Self::ElfMachine(machine) => match elf_machine(machine) {
                Some(name) => write!(f, "This is an ELF file for {name}. {GIVE}"),
                None => write!(f, "This is an ELF file for another machine (ELF number {machine}). {GIVE}"),
            },
            Self::ElfProgram => write!(f, "This is a program or a library of a running system. {GIVE}"),
            Self::ElfObject => write!(f, "This is an object file, such as a kernel module. {GIVE}"),
            Self::Cpio => write!(f, "This is an initrd (a cpio archive): give it as the initrd. {GIVE}"),
            Self::DiskImage(format) => {
                write!(f, "This is a disk image ({format}): give it as a disk. {GIVE}")
            }
            Self::DebPackage => write!(
                f,
                "This is a Debian package: unpack it (`dpkg-deb -x FILE DIR`) and give DIR/boot/vmlinuz-*."
            ),
            Self::Text => write!(f, "This is a text file. {GIVE}"),
            Self::Unknown => write!(f, "This is no kernel of a known format. {GIVE}"),
        }
    }
}
