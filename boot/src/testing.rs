//! Kernels for tests, built byte by byte: small, complete, and easy to damage.

use crate::entry::Protocol;
use crate::initrd::Initrd;
use crate::kernel::Kernel;
use crate::layout::RamLayout;
use crate::plan::{BootPlan, PlanError, PlanRequest, plan};
use crate::read::ReadAt;

pub(crate) const MIB: u64 = 1 << 20;

/// Stores `bytes` at `offset`, extending the file if necessary.
pub(crate) fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    file.resize(file.len().max(offset + bytes.len()), 0);
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage of protocol 2.15 like Debian's, with 4 KiB of code. Offsets are those of boot.rst.
pub(crate) fn bzimage() -> Vec<u8> {
    let mut file = Vec::new();
    put(&mut file, 0, b"MZ");
    put(&mut file, 0x1f1, &[3]); // setup_sects: the code starts at 0x800
    put(&mut file, 0x1f4, &(4096u32 / 16).to_le_bytes());
    put(&mut file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut file, 0x202, b"HdrS\x0f\x02");
    put(&mut file, 0x20e, &0x400u16.to_le_bytes());
    put(&mut file, 0x211, &[0x01]);
    put(&mut file, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x230, &0x20_0000u32.to_le_bytes());
    put(&mut file, 0x234, &[1, 21, 0x7f, 0]);
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x248, &0x2ccu32.to_le_bytes());
    put(&mut file, 0x24c, &0x100u32.to_le_bytes());
    put(&mut file, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut file, 0x260, &0x40_0000u32.to_le_bytes());
    put(&mut file, 0x600, b"6.1.0-test-amd64 (nobody@example.org) #1 SMP\0");
    put(&mut file, 0x800 + 0x2cc, b"\x02\x21\x4c\x18");
    file.resize(0x800 + 4096, 0x90);
    file
}

/// One `PT_LOAD` of an [`elf`].
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) paddr: u64,
    pub(crate) filesz: u64,
    pub(crate) memsz: u64,
}

/// An x86-64 ELF with `parts`, and optionally a note segment with a PVH entry. Parts follow 4 KiB of headers.
pub(crate) fn elf(entry: u64, parts: &[Part], pvh_entry: Option<u32>) -> Vec<u8> {
    let mut file = Vec::new();
    let count = parts.len() + usize::from(pvh_entry.is_some());
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(&mut file, 24, &entry.to_le_bytes());
    put(&mut file, 32, &64u64.to_le_bytes());
    put(&mut file, 52, &[64, 0, 56, 0, u8::try_from(count).unwrap(), 0]);
    let mut offset = 4096;
    for (i, part) in parts.iter().enumerate() {
        program_header(&mut file, i, 1, offset, part);
        offset += part.filesz;
    }
    if let Some(entry) = pvh_entry {
        let mut notes = b"\x04\0\0\0\x10\0\0\0\x03\0\0\0GNU\0".to_vec();
        notes.extend([0xab; 16]);
        notes.extend(b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0");
        notes.extend(entry.to_le_bytes());
        put(&mut file, 3072, &notes);
        let len = notes.len() as u64;
        program_header(&mut file, parts.len(), 4, 3072, &Part { paddr: 0, filesz: len, memsz: len });
    }
    file.resize(usize::try_from(offset).unwrap(), 0x90);
    file
}

fn program_header(file: &mut Vec<u8>, index: usize, kind: u32, offset: u64, part: &Part) {
    let at = 64 + 56 * index;
    put(file, at, &kind.to_le_bytes());
    put(file, at + 4, &7u32.to_le_bytes());
    for (i, value) in [offset, part.paddr, part.paddr, part.filesz, part.memsz, 4].into_iter().enumerate() {
        put(file, at + 8 + 8 * i, &value.to_le_bytes());
    }
}

/// A tiny guest like those of the project's tests: one segment at 1 MiB, no note.
pub(crate) fn tiny_elf() -> Vec<u8> {
    elf(0x10_0000, &[Part { paddr: 0x10_0000, filesz: 0x800, memsz: 0x3000 }], None)
}

/// Two segments in descending order and a PVH note.
pub(crate) fn pvh_elf() -> Vec<u8> {
    let parts = [
        Part { paddr: 0x120_0000, filesz: 0x400, memsz: 0x1_0000 },
        Part { paddr: 0x100_0000, filesz: 0x1000, memsz: 0x1000 },
    ];
    elf(0x100_0000, &parts, Some(0x100_0040))
}

/// An uncompressed initrd of `len` bytes of zeros.
pub(crate) fn initrd(len: u64) -> Initrd {
    struct ZeroFile(u64);
    impl ReadAt for ZeroFile {
        fn length(&self) -> std::io::Result<u64> {
            Ok(self.0)
        }
        fn read_at(&self, buf: &mut [u8], _: u64) -> std::io::Result<usize> {
            Ok(buf.len())
        }
    }
    Initrd::parse(&ZeroFile(len)).unwrap()
}

/// Plans with `mib` of memory and a short command line.
pub(crate) fn plan_in(file: &[u8], mib: u64, initrd: Option<Initrd>) -> Result<BootPlan, PlanError> {
    plan_with(file, mib, initrd, "console=ttyS0", None)
}

/// Plans with all parameters.
pub(crate) fn plan_with(
    file: &[u8],
    mib: u64,
    initrd: Option<Initrd>,
    cmdline: &str,
    preferred_entry: Option<Protocol>,
) -> Result<BootPlan, PlanError> {
    let ram = RamLayout::new(mib * MIB);
    plan(&Kernel::parse(file).unwrap(), &PlanRequest { cmdline, initrd, ram: &ram, preferred_entry })
}

/// The committed seeds of the fuzz target `kernel_loader`: file name and content.
fn kernel_seeds() -> [(&'static str, Vec<u8>); 4] {
    let one = [Part { paddr: 0x10_0000, filesz: 0x100, memsz: 0x3000 }];
    [
        ("bzimage", bzimage()),
        ("elf-tiny", tiny_elf()),
        ("elf-pvh", pvh_elf()),
        ("elf-pvh-only", elf(0, &one, Some(0x10_0000))),
    ]
}

#[test]
fn fuzz_seeds_are_those_of_the_builders() {
    check_seeds("kernel_loader", &kernel_seeds());
}

/// Compares the seeds with the output of the tests' builders; with `MINIVMM_WRITE_SEEDS` set they are
/// written.
pub(crate) fn check_seeds(target: &str, seeds: &[(&str, Vec<u8>)]) {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    for (name, seed) in seeds {
        let path = dir.join(name);
        if std::env::var_os("MINIVMM_WRITE_SEEDS").is_some() {
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(&path, seed).unwrap();
        }
        let committed = std::fs::read(&path).unwrap_or_default();
        assert!(committed == *seed, "{name}: run this test with MINIVMM_WRITE_SEEDS=1 and commit fuzz/seeds");
    }
}
