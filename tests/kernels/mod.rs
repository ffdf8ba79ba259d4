//! A kernel file for tests of what is said about kernels: headers that hold together, and nothing to run.
#![allow(clippy::indexing_slicing, reason = "a test that cannot go on shall say so by a panic")]

/// Most bytes of command line that [`bzimage`] takes.
pub(crate) const CMDLINE_MAX: u32 = 2047;

/// A bzImage of boot protocol 2.15 with this version string. Offsets as in the Linux x86 boot protocol, "The
/// Real-Mode Kernel Header".
pub(crate) fn bzimage(version: &str) -> Vec<u8> {
    const SETUP: usize = 4 * 512;
    const CODE: u32 = 4096;
    let mut file = vec![0; SETUP + CODE as usize];
    let mut put = |offset: usize, bytes: &[u8]| file[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[3]); // setup_sects, besides the boot sector
    put(0x1f4, &(CODE / 16).to_le_bytes()); // syssize
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]); // boot_flag, jump over the header
    put(0x202, b"HdrS\x0f\x02");
    put(0x20e, &0x400_u16.to_le_bytes()); // kernel_version, less 0x200
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    put(0x234, &[1, 21]); // relocatable_kernel, min_alignment
    put(0x236, &[0x7f, 0]); // xloadflags: XLF_KERNEL_64 and others
    put(0x238, &CMDLINE_MAX.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x400_0000_u32.to_le_bytes()); // init_size: 64 MiB
    put(0x600, version.as_bytes());
    file
}
