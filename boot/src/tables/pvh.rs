//! `struct hvm_start_info`, version 1, with its memory map and module list (xen/include/public/arch-x86/hvm/
//! start_info.h). All three in one piece.

use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use std::mem::offset_of;

use super::Layout;
use crate::layout::{CMDLINE, PVH_START_INFO, ZERO_PAGE};
use crate::memmap::{MAX_RANGES, memory_map};
use crate::plan::BootPlan;

const MODULES: usize = size_of::<hvm_start_info>();
const MEMORY_MAP: usize = MODULES + size_of::<hvm_modlist_entry>();
const SIZE: usize = MEMORY_MAP + MAX_RANGES * size_of::<hvm_memmap_table_entry>();
const _: () = assert!(SIZE as u64 <= ZERO_PAGE - PVH_START_INFO);

/// The structures for `plan`, to be written at [`PVH_START_INFO`].
pub(super) fn start_info(plan: &BootPlan, rsdp: u64) -> [u8; SIZE] {
    let mut info = Layout([0; SIZE]);
    let address = |offset: usize| (PVH_START_INFO + offset as u64).to_le_bytes();
    info.put(offset_of!(hvm_start_info, magic), XEN_HVM_START_MAGIC_VALUE.to_le_bytes());
    info.put(offset_of!(hvm_start_info, version), 1u32.to_le_bytes());
    info.put(offset_of!(hvm_start_info, cmdline_paddr), CMDLINE.to_le_bytes());
    info.put(offset_of!(hvm_start_info, rsdp_paddr), rsdp.to_le_bytes());
    if let Some(initrd) = plan.initrd {
        info.put(offset_of!(hvm_start_info, nr_modules), 1u32.to_le_bytes());
        info.put(offset_of!(hvm_start_info, modlist_paddr), address(MODULES));
        info.put(MODULES + offset_of!(hvm_modlist_entry, paddr), initrd.guest.to_le_bytes());
        info.put(MODULES + offset_of!(hvm_modlist_entry, size), initrd.len.to_le_bytes());
    }
    let map = memory_map(&plan.ram);
    let mut entries = 0u32;
    for (range, i) in map.iter().zip(0..MAX_RANGES) {
        let entry = MEMORY_MAP + i * size_of::<hvm_memmap_table_entry>();
        info.put(entry + offset_of!(hvm_memmap_table_entry, addr), range.start.to_le_bytes());
        info.put(entry + offset_of!(hvm_memmap_table_entry, size), range.len.to_le_bytes());
        info.put(entry + offset_of!(hvm_memmap_table_entry, type_), range.kind.number().to_le_bytes());
        entries += 1;
    }
    info.put(offset_of!(hvm_start_info, memmap_paddr), address(MEMORY_MAP));
    info.put(offset_of!(hvm_start_info, memmap_entries), entries.to_le_bytes());
    info.0
}
