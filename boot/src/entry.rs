//! The state of the first vCPU at the kernel's entry, in terms of the architecture, not of a hypervisor.

use std::fmt;

use crate::layout;

/// Entry protocols of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// The 64-bit entry of the Linux x86 boot protocol: long mode, `boot_params` in rsi.
    Linux64,
    /// The 32-bit entry of the Linux x86 boot protocol: protected mode without paging, `boot_params` in esi.
    Linux32,
    /// The PVH entry of Xen and Linux: 32-bit protected mode, `hvm_start_info` in ebx.
    Pvh,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linux64 => "64-bit Linux",
            Self::Linux32 => "32-bit Linux",
            Self::Pvh => "PVH",
        })
    }
}

/// A segment register with the hidden part of its descriptor (Intel SDM vol. 3, §3.4.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The visible part of the register.
    pub selector: u16,
    /// First linear address.
    pub base: u64,
    /// Last offset, in bytes whatever the granularity.
    pub limit: u32,
    /// The four type bits.
    pub kind: u8,
    /// Code or data (true), or a system segment.
    pub s: bool,
    /// Privilege.
    pub dpl: u8,
    /// Present.
    pub present: bool,
    /// 64-bit code.
    pub l: bool,
    /// 32-bit code or stack.
    pub db: bool,
    /// Limit counted in 4 KiB.
    pub g: bool,
}

impl Segment {
    const FLAT: Segment = Segment {
        selector: 0,
        base: 0,
        limit: u32::MAX,
        kind: 0,
        s: true,
        dpl: 0,
        present: true,
        l: false,
        db: false,
        g: true,
    };
    /// `__BOOT_CS`, execute and read, accessed.
    const CODE: Segment = Segment { selector: 0x10, kind: 0xb, ..Segment::FLAT };
    const CODE64: Segment = Segment { l: true, ..Segment::CODE };
    const CODE32: Segment = Segment { db: true, ..Segment::CODE };
    /// `__BOOT_DS`, read and write, accessed.
    const DATA: Segment = Segment { selector: 0x18, kind: 3, db: true, ..Segment::FLAT };
    /// A busy, empty TSS: KVM requires the register to be loaded before protected mode.
    const TASK: Segment =
        Segment { selector: 0x20, limit: 0x67, kind: 0xb, s: false, g: false, ..Segment::FLAT };

    /// The first eight bytes of its descriptor in a GDT (Intel SDM vol. 3, figure 3-8).
    fn descriptor(&self) -> u64 {
        let limit = u64::from(if self.g { self.limit >> 12 } else { self.limit });
        (limit & 0xffff)
            | (self.base & 0xff_ffff) << 16
            | u64::from(self.kind & 0xf) << 40
            | u64::from(self.s) << 44
            | u64::from(self.dpl & 3) << 45
            | u64::from(self.present) << 47
            | (limit >> 16 & 0xf) << 48
            | u64::from(self.l) << 53
            | u64::from(self.db) << 54
            | u64::from(self.g) << 55
            | (self.base >> 24 & 0xff) << 56
    }
}

/// Entries of the GDT: null, unused, code at 0x10, data at 0x18, and the task's two at 0x20.
pub(crate) const GDT_ENTRIES: usize = 6;

/// Its last byte.
const GDT_LIMIT: u16 = 47;
const _: () = assert!(GDT_ENTRIES * size_of::<u64>() == GDT_LIMIT as usize + 1);

/// The GDT of [`CpuState`]: "a GDT must be loaded with the descriptors for selectors `__BOOT_CS` (0x10) and
/// `__BOOT_DS` (0x18)" (Linux x86 boot protocol, "64-bit BOOT PROTOCOL"). PVH does not require one, but a
/// guest may reload a segment.
pub(crate) fn gdt(state: &CpuState) -> [u64; GDT_ENTRIES] {
    [0, 0, state.cs.descriptor(), state.data.descriptor(), state.tr.descriptor(), state.tr.base >> 32]
}

/// The registers of the first vCPU at the entry; all others are zero, and the IDT is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuState {
    /// The entry point.
    pub rip: u64,
    /// Stack of a few hundred bytes.
    pub rsp: u64,
    /// `hvm_start_info` for PVH.
    pub rbx: u64,
    /// `boot_params` for the 64-bit entry.
    pub rsi: u64,
    /// Interrupts off.
    pub rflags: u64,
    /// Protection, and paging for the 64-bit entry.
    pub cr0: u64,
    /// Root of the identity map for the 64-bit entry.
    pub cr3: u64,
    /// Physical address extension for the 64-bit entry.
    pub cr4: u64,
    /// Long mode, enabled and active, for the 64-bit entry.
    pub efer: u64,
    /// Address of the GDT.
    pub gdt_base: u64,
    /// Its last byte.
    pub gdt_limit: u16,
    /// Code segment.
    pub cs: Segment,
    /// ds, es, fs, gs and ss.
    pub data: Segment,
    /// Task register.
    pub tr: Segment,
}

/// CR0.PE, and ET which is always set.
const CR0_PROTECTED: u64 = 1 << 0 | 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// EFER.LME and LMA.
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 1 << 1;

impl CpuState {
    /// The state at `entry`. Linux x86 boot protocol, "64-bit BOOT PROTOCOL": identity-mapped paging, flat segments,
    /// interrupts off, rsi = `boot_params`; "32-bit BOOT PROTOCOL": the same with paging off, ebp, edi and ebx zero. docs/misc/pvh.pandoc of Xen: ebx = start info, cr0 with PE only, cr4 and
    /// efer zero, flat 32-bit segments, a 32-bit TSS with limit 0x67.
    pub(crate) fn at(protocol: Protocol, entry: u64) -> Self {
        let common = CpuState {
            rip: entry,
            rsp: layout::BOOT_STACK,
            rbx: 0,
            rsi: 0,
            rflags: RFLAGS,
            cr0: CR0_PROTECTED,
            cr3: 0,
            cr4: 0,
            efer: 0,
            gdt_base: layout::GDT,
            gdt_limit: GDT_LIMIT,
            cs: Segment::CODE32,
            data: Segment::DATA,
            tr: Segment::TASK,
        };
        match protocol {
            Protocol::Pvh => CpuState { rbx: layout::PVH_START_INFO, ..common },
            Protocol::Linux32 => CpuState { rsi: layout::ZERO_PAGE, ..common },
            Protocol::Linux64 => CpuState {
                rsi: layout::ZERO_PAGE,
                cr0: CR0_PROTECTED | CR0_PAGING,
                cr3: layout::PML4,
                cr4: CR4_PAE,
                efer: EFER_LONG_MODE,
                cs: Segment::CODE64,
                ..common
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_linux() {
        let long = gdt(&CpuState::at(Protocol::Linux64, 0));
        assert_eq!(long, [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0]);
        let pvh = gdt(&CpuState::at(Protocol::Pvh, 0));
        assert_eq!(pvh[2], 0x00cf_9b00_0000_ffff);
    }

    #[test]
    fn descriptor_spreads_base_over_its_three_fields() {
        let segment = Segment { base: 0x1234_5678, ..Segment::TASK };
        assert_eq!(segment.descriptor(), 0x1200_8b34_5678_0067);
    }

    #[test]
    fn selectors_index_their_descriptors() {
        let state = CpuState::at(Protocol::Linux64, 0x100_0200);
        assert_eq!((state.cs.selector, state.data.selector, state.tr.selector), (0x10, 0x18, 0x20));
        assert_eq!(state.gdt_limit, 47);
        assert_eq!((state.rip, state.rsi, state.cr3), (0x100_0200, layout::ZERO_PAGE, layout::PML4));
        let old = CpuState::at(Protocol::Linux32, 0x100_0000);
        assert_eq!((old.rip, old.rsi, old.rbx), (0x100_0000, layout::ZERO_PAGE, 0));
        assert_eq!((old.cr0, old.cr4, old.efer, old.cs.db, old.cs.l), (0x11, 0, 0, true, false));
        let pvh = CpuState::at(Protocol::Pvh, 0x100_0000);
        assert_eq!((pvh.rbx, pvh.cr0, pvh.cr3, pvh.cr4, pvh.efer), (layout::PVH_START_INFO, 0x11, 0, 0, 0));
    }
}
