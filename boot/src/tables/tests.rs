//! Tests of `write_tables`: each field at its documented offset, read back from guest memory.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::entry::Protocol;
use crate::layout::{CMDLINE, GDT, PVH_START_INFO, RamLayout, ZERO_PAGE};
use crate::plan::BootPlan;
use crate::testing::{MIB, bzimage, initrd, plan_in, plan_with, pvh_elf, tiny_elf};

const RSDP: u64 = 0xe_0000;
const CMDLINE32: u32 = 0x2_0000;

/// Guest memory below 2 MiB after the tables were written over random content.
struct Written(GuestMemoryMmap);

impl Written {
    fn of(plan: &BootPlan) -> Self {
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        mem.write_slice(&vec![0xa5; 2 << 20], GuestAddress(0)).unwrap();
        plan.write_tables(&mem, RSDP).unwrap();
        Written(mem)
    }

    fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn u8(&self, at: u64) -> u8 {
        self.bytes::<1>(at)[0]
    }

    fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}

#[test]
fn zero_page_holds_the_files_header_and_the_loaders_fields() {
    let file = bzimage();
    let plan = plan_in(&file, 128, Some(initrd(5000))).unwrap();
    let mem = Written::of(&plan);
    let at = |offset: u64| ZERO_PAGE + offset;
    assert_eq!(mem.bytes::<8>(at(0x1fe)), file[0x1fe..0x206]);
    assert_eq!(mem.bytes::<0x2c>(at(0x230)), file[0x230..0x25c]);
    assert_eq!(mem.u8(at(0x1ef)), 0, "sentinel");
    assert_eq!(mem.u8(at(0x210)), 0xff, "type_of_loader");
    assert_eq!((mem.u32(at(0x228)), mem.u32(at(0xc8))), (CMDLINE32, 0), "cmd_line_ptr");
    let start = u32::try_from(128 * MIB - 8192).unwrap();
    assert_eq!((mem.u32(at(0x218)), mem.u32(at(0xc0))), (start, 0), "ramdisk_image");
    assert_eq!((mem.u32(at(0x21c)), mem.u32(at(0xc4))), (5000, 0), "ramdisk_size");
    assert_eq!(mem.u64(at(0x70)), RSDP, "acpi_rsdp_addr");
    assert_eq!(mem.u8(at(0x1e8)), 4, "e820_entries");
    assert_eq!((mem.u64(at(0x2d0)), mem.u64(at(0x2d8)), mem.u32(at(0x2e0))), (0, 0x9_fc00, 1));
    let third = at(0x2d0 + 2 * 20);
    assert_eq!((mem.u64(third), mem.u64(third + 8), mem.u32(third + 16)), (MIB, 127 * MIB, 1));
    assert_eq!(mem.bytes::<16>(at(0xff0)), [0; 16], "the rest of the page is zero");
    assert_eq!(mem.u8(at(0x1000)), 0xa5, "nothing behind the page is touched");
}

#[test]
fn without_an_initrd_there_is_no_ramdisk() {
    let mem = Written::of(&plan_in(&bzimage(), 128, None).unwrap());
    assert_eq!((mem.u32(ZERO_PAGE + 0x218), mem.u32(ZERO_PAGE + 0x21c)), (0, 0));
}

#[test]
fn elf_by_its_64_bit_entry_gets_a_header_that_linux_believes() {
    let mem = Written::of(&plan_in(&tiny_elf(), 2, None).unwrap());
    assert_eq!(mem.bytes::<2>(ZERO_PAGE + 0x1fe), [0x55, 0xaa]);
    assert_eq!(mem.bytes::<6>(ZERO_PAGE + 0x202), *b"HdrS\x0f\x02");
    assert_eq!((mem.u8(ZERO_PAGE + 0x210), mem.u8(ZERO_PAGE + 0x211)), (0xff, 1));
    assert_eq!(mem.u32(ZERO_PAGE + 0x228), CMDLINE32);
}

#[test]
fn command_line_ends_with_zero() {
    let plan = plan_with(&bzimage(), 64, None, "console=ttyS0 quiet", None).unwrap();
    assert_eq!(Written::of(&plan).bytes::<21>(CMDLINE), *b"console=ttyS0 quiet\0\xa5");
}

#[test]
fn page_tables_map_4_gib_onto_themselves() {
    let plan = plan_in(&bzimage(), 64, None).unwrap();
    let mem = Written::of(&plan);
    let cr3 = plan.cpu_state().cr3;
    let walk = |address: u64| {
        let entry = |table: u64, shift: u64| mem.u64((table & !0xfff) + (address >> shift & 511) * 8);
        let pml4e = entry(cr3, 39);
        let pdpte = if pml4e & 1 == 1 { entry(pml4e, 30) } else { 0 };
        let pde = if pdpte & 1 == 1 { entry(pdpte, 21) } else { 0 };
        (pde & 0x83 == 0x83).then(|| (pde & !0x1f_ffff) + (address & 0x1f_ffff))
    };
    for address in [0, 0x7000, 0x1f_ffff, 0x20_0000, 0x100_0200, 0x7fff_ffff, 0xfee0_0000, 0xffff_ffff] {
        assert_eq!(walk(address), Some(address), "{address:#x}");
    }
    assert_eq!((walk(1 << 32), walk(1 << 39), walk(0xffff_8000_0000_0000)), (None, None, None));
}

#[test]
fn gdt_is_where_the_cpu_looks() {
    let plan = plan_in(&bzimage(), 64, None).unwrap();
    let (mem, state) = (Written::of(&plan), plan.cpu_state());
    assert_eq!(state.gdt_base, GDT);
    assert_eq!(mem.u64(GDT + u64::from(state.cs.selector)), 0x00af_9b00_0000_ffff);
    assert_eq!(mem.u64(GDT + u64::from(state.data.selector)), 0x00cf_9300_0000_ffff);
    assert_eq!(mem.u8(GDT + u64::from(state.gdt_limit) + 1), 0xa5);
}

#[test]
fn pvh_start_info_names_everything() {
    let plan = plan_in(&pvh_elf(), 6 << 10, Some(initrd(5000))).unwrap();
    let mem = Written::of(&plan);
    let info = plan.cpu_state().rbx;
    assert_eq!(info, PVH_START_INFO);
    assert_eq!((mem.u32(info), mem.u32(info + 4), mem.u32(info + 8)), (0x336e_c578, 1, 0));
    let (modules, memory) = (mem.u64(info + 16), mem.u64(info + 40));
    assert_eq!((mem.u32(info + 12), mem.u64(info + 24), mem.u64(info + 32)), (1, CMDLINE, RSDP));
    assert_eq!((mem.u64(modules), mem.u64(modules + 8)), (0xc000_0000 - 8192, 5000));
    assert_eq!((mem.u64(modules + 16), mem.u64(modules + 24)), (0, 0));
    assert_eq!((mem.u32(info + 48), mem.u32(info + 52)), (5, 0));
    let last = memory + 4 * 24;
    assert_eq!((mem.u64(last), mem.u64(last + 8), mem.u32(last + 16)), (1 << 32, 3 << 30, 1));
    assert_eq!(mem.u32(memory + 24 + 16), 2);
    assert_eq!(mem.u64(ZERO_PAGE), 0xa5a5_a5a5_a5a5_a5a5, "PVH has no zero page");
}

#[test]
fn pvh_without_an_initrd_has_no_module() {
    let mem = Written::of(&plan_in(&pvh_elf(), 64, None).unwrap());
    assert_eq!((mem.u32(PVH_START_INFO + 12), mem.u64(PVH_START_INFO + 16)), (0, 0));
}

#[test]
fn longest_map_and_command_line_fit() {
    let plan = BootPlan { ram: RamLayout::new(1 << 40), ..plan_in(&pvh_elf(), 64, None).unwrap() };
    Written::of(&plan);
    Written::of(&BootPlan { protocol: Protocol::Linux64, cmdline: vec![b'x'; 1 << 16], ..plan });
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(MIB), 1 << 20)]).unwrap();
    let error = plan_in(&bzimage(), 64, None).unwrap().write_tables(&mem, 0).unwrap_err();
    assert_eq!(error.to_string(), "The GDT cannot be written to guest memory at 0x500.");
}
