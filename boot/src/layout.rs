//! The guest's physical address map: every fixed address of the machine, in one table, with its reason.
//!
//! ```text
//! 0x0000_0500  GDT for the 64-bit entry                    (the first 0x500 bytes were the BIOS data area:
//! 0x0000_6000  PVH start info, memory map, module list      kernels avoid or probe them)
//! 0x0000_7000  boot_params, the "zero page"
//! 0x0000_9000  PML4, 0xa000 PDPT, 0xb000.. 4 page directories: 4 GiB identity, 2 MiB pages
//! 0x0002_0000  kernel command line, up to 64 KiB
//! 0x0009_fc00  end of usable low memory (extended BIOS data area on a PC)
//! 0x000e_0000  ACPI tables, RSDP first; reserved in e820 up to 1 MiB
//! 0x000f_0000  SMBIOS tables, entry point first
//! 0x000f_f000  VM generation ID, in a page of its own
//! 0x000f_fff0  code that resets the machine, where a PC's processor starts after a reset
//! 0x0010_0000  kernel, by default (a relocatable kernel goes to its preferred address)
//! ...          initrd, as high below `LOW_RAM_END` and the kernel's `initrd_addr_max` as it fits
//! 0xc000_0000  the hole: no RAM. 32-bit PCI window
//! 0xe000_0000  ECAM: PCI configuration space of bus 0, 1 MiB, a read-only memory slot
//! 0xfec0_0000  I/O APIC (in KVM), 0xfee0_0000 local APIC (in KVM)
//! 0xfffb_d000  scratch pages that KVM wants on Intel (TSS, identity map)
//! 0x1_0000_0000 RAM above the hole, then the 64-bit PCI window
//! ```

use std::ops::Range;

/// GDT used by the 64-bit boot protocol (Linux x86 boot protocol, "64-bit boot protocol": CS 0x10, DS 0x18).
pub const GDT: u64 = 0x500;
/// `struct hvm_start_info` of the PVH protocol; its memory map and module list follow in the same page.
pub const PVH_START_INFO: u64 = 0x6000;
/// `struct boot_params` of the Linux x86 boot protocol; one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Root of the identity map that the 64-bit entry needs; six pages.
pub const PML4: u64 = 0x9000;
/// Initial stack pointer, for guests that push before they set one up; the stack grows down from here.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Space for the command line with its terminating zero. Linux's own limit is `cmdline_size` of the setup
/// header (2047 on x86), which is checked as well.
pub const CMDLINE_MAX: u64 = 0x1_0000;
/// End of usable low memory.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// ACPI tables, RSDP first, up to [`SMBIOS`]. Kernels before Linux 5.0 do not take the RSDP's address
/// from their loader: they search 0xe0000..0x100000 for it, in steps of 16 bytes (ACPI 6.5 §5.2.5.1). So does
/// a kernel that another kernel started without the address.
pub const ACPI: u64 = 0xe_0000;
/// SMBIOS tables, entry point first, up to [`GENERATION_ID`]. Linux looks for them from here on, in steps of 16 bytes, as firmware
/// without EFI has them (DMTF DSP0134 §5.2).
pub const SMBIOS: u64 = 0xf_0000;
/// VM generation ID: 16 bytes, in memory that no memory map calls usable, in a page without other data (Microsoft, "Virtual
/// Machine Generation ID").
pub const GENERATION_ID: u64 = 0xf_f000;
/// First instruction of a PC's firmware, F000:FFF0 in real mode; 16 bytes up to [`HIMEM`]. On a machine with
/// hardware-reduced ACPI Linux prefers EFI's reset, finds no EFI, and jumps here.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// First address above the legacy area; kernels are loaded from here on.
pub const HIMEM: u64 = 0x10_0000;
/// Maximum end of RAM below 4 GiB.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// 32-bit PCI window.
pub const PCI_MMIO32: Range<u64> = 0xc000_0000..0xe000_0000;
/// ECAM of segment 0, bus 0: 32 devices of 8 functions of 4 KiB (PCI Express 5.0 §7.2.2).
pub const ECAM: Range<u64> = 0xe000_0000..0xe010_0000;
/// I/O APIC that KVM_CREATE_IRQCHIP makes.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Local APIC base after reset.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// Three pages that KVM uses for real mode on Intel hosts without unrestricted guests (KVM api §4.36).
pub const KVM_TSS: u64 = 0xfffb_d000;
/// Start of RAM above the hole.
pub const HIGH_RAM: u64 = 0x1_0000_0000;

/// The ranges of RAM: below the hole, and above it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamLayout {
    /// RAM from 0, up to [`LOW_RAM_END`] long.
    pub low: Range<u64>,
    /// The rest, from [`HIGH_RAM`] on; `None` if all RAM fits below the hole.
    pub high: Option<Range<u64>>,
}

impl RamLayout {
    /// Splits `size` bytes around the hole.
    pub fn new(size: u64) -> Self {
        let low = size.min(LOW_RAM_END);
        let rest = size - low;
        RamLayout { low: 0..low, high: (rest > 0).then(|| HIGH_RAM..HIGH_RAM.saturating_add(rest)) }
    }

    /// First address above all RAM and above the hole.
    pub fn end(&self) -> u64 {
        self.high.as_ref().map_or(HIGH_RAM, |high| high.end)
    }
}
