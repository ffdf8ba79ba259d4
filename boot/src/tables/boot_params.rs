//! `struct boot_params`, the zero page (Documentation/arch/x86/zero-page.rst and boot.rst).

use linux_loader::loader::bootparam::{LOADED_HIGH, boot_e820_entry, boot_params};
use std::mem::offset_of;

use super::Layout;
use crate::kernel::HEADER;
use crate::layout::CMDLINE;
use crate::memmap::{MAX_RANGES, memory_map};
use crate::plan::BootPlan;

const SIZE: usize = size_of::<boot_params>();
const _: () = assert!(SIZE == 4096 && size_of::<boot_e820_entry>() == 20);

/// Offset of a field in the page.
macro_rules! at {
    ($($field:tt)*) => { offset_of!(boot_params, $($field)*) };
}

/// The page for `plan`.
pub(super) fn page(plan: &BootPlan, rsdp: u64) -> [u8; SIZE] {
    let mut page = Layout([0; SIZE]);
    match &plan.setup_header {
        Some(header) => page.put_slice(HEADER, header),
        None => synthetic_header(&mut page, plan),
    }
    // "0xff: undefined loader". The real-mode fields (heap) stay unchanged: no entry here runs the code that
    // reads them.
    page.put(at!(hdr.type_of_loader), [0xff]);
    // "code32_start: must be set to the load address" if a relocatable kernel is loaded elsewhere.
    page.put(at!(hdr.code32_start), low(plan.kernel.first().map_or(plan.entry, |load| load.guest)));
    page.put(at!(hdr.cmd_line_ptr), low(CMDLINE));
    page.put(at!(ext_cmd_line_ptr), high(CMDLINE));
    let (initrd, initrd_len) = plan.initrd.map_or((0, 0), |load| (load.guest, load.len));
    page.put(at!(hdr.ramdisk_image), low(initrd));
    page.put(at!(ext_ramdisk_image), high(initrd));
    page.put(at!(hdr.ramdisk_size), low(initrd_len));
    page.put(at!(ext_ramdisk_size), high(initrd_len));
    page.put(at!(acpi_rsdp_addr), rsdp.to_le_bytes());
    let map = memory_map(&plan.ram);
    let mut entries = 0u8;
    for (range, i) in map.iter().zip(0..MAX_RANGES) {
        let entry = at!(e820_table) + i * size_of::<boot_e820_entry>();
        page.put(entry + offset_of!(boot_e820_entry, addr), range.start.to_le_bytes());
        page.put(entry + offset_of!(boot_e820_entry, size), range.len.to_le_bytes());
        page.put(entry + offset_of!(boot_e820_entry, r#type), range.kind.number().to_le_bytes());
        entries += 1;
    }
    page.put(at!(e820_entries), [entries]);
    page.0
}

/// A header for an ELF kernel, which has none. Linux copies `boot_params` a second time if the version is 0
/// (`x86_64_start_kernel`), and uses the other fields only if the magic numbers are set.
fn synthetic_header(page: &mut Layout<SIZE>, plan: &BootPlan) {
    page.put(at!(hdr.boot_flag), 0xaa55u16.to_le_bytes());
    page.put(at!(hdr.header), *b"HdrS");
    page.put(at!(hdr.version), 0x020fu16.to_le_bytes());
    page.put(at!(hdr.loadflags), [LOADED_HIGH]);
    page.put(at!(hdr.initrd_addr_max), u32::MAX.to_le_bytes());
    page.put(at!(hdr.cmdline_size), low(plan.cmdline.len() as u64));
    page.put(at!(hdr.pref_address), plan.entry.to_le_bytes());
}

/// The low half of an address or a length; the protocol has separate fields for the high half.
fn low(value: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = value.to_le_bytes();
    [a, b, c, d]
}

fn high(value: u64) -> [u8; 4] {
    low(value >> 32)
}
