//! The state in which a kernel is entered: Linux x86 boot protocol, 64-bit; PVH boot protocol.

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const GDT: u64 = 0x500;
const START_INFO: u64 = 0x6000;
const BOOT_PARAMS: u64 = 0x7000;
const PML4: u64 = 0x9000;
const CMDLINE: u64 = 0x2_0000;
const INITRD: u64 = 0x3a_0000;
const RSDP: u64 = 0xe_0000;

fn put<T: vm_memory::ByteValued>(memory: &GuestMemoryMmap, address: u64, value: T) {
    memory.write_obj(value, GuestAddress(address)).unwrap();
}

fn put_cmdline(memory: &GuestMemoryMmap, cmdline: &str) {
    memory.write_slice(format!("{cmdline}\0").as_bytes(), GuestAddress(CMDLINE)).unwrap();
}

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l: u8::from(long),
        db: u8::from(!long),
        ..Default::default()
    }
}

fn set_segments(vcpu: &VcpuFd, long: bool, set: impl FnOnce(&mut kvm_bindings::kvm_sregs)) {
    let mut sregs = vcpu.get_sregs().unwrap();
    let data = segment(0x18, 3, false);
    sregs.cs = segment(0x10, 11, long);
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 31;
    sregs.cr0 = 0x11;
    set(&mut sregs);
    vcpu.set_sregs(&sregs).unwrap();
}

/// Boot parameters with three memory map entries, an initrd that begins with "tinytest" and an RSDP's signature.
pub(super) fn long_mode(vcpu: &VcpuFd, memory: &GuestMemoryMmap, entry: u64, cmdline: &str) {
    for (index, descriptor) in [0u64, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff].into_iter().enumerate()
    {
        put(memory, GDT + index as u64 * 8, descriptor);
    }
    put(memory, PML4, PML4 + 0x1000 + 3);
    for gib in 0..4 {
        put(memory, PML4 + 0x1000 + gib * 8, PML4 + 0x2000 + gib * 0x1000 + 3);
    }
    for page in 0..2048 {
        put(memory, PML4 + 0x2000 + page * 8, page << 21 | 0x83);
    }
    put_cmdline(memory, cmdline);
    let e820: [(u64, u64, u32); 3] = [(0, 0x9_fc00, 1), (0xa_0000, 0x6_0000, 2), (0x10_0000, 0x30_0000, 1)];
    put(memory, BOOT_PARAMS + 0x1e8, 3u8);
    for (index, (start, size, kind)) in e820.into_iter().enumerate() {
        let at = BOOT_PARAMS + 0x2d0 + index as u64 * 20;
        put(memory, at, start);
        put(memory, at + 8, size);
        put(memory, at + 16, kind);
    }
    put(memory, BOOT_PARAMS + 0x228, CMDLINE as u32);
    put(memory, BOOT_PARAMS + 0x218, INITRD as u32);
    put(memory, BOOT_PARAMS + 0x21c, 0x1234u32);
    memory.write_slice(b"tinytest", GuestAddress(INITRD)).unwrap();
    put(memory, BOOT_PARAMS + 0x70, RSDP);
    memory.write_slice(b"RSD PTR ", GuestAddress(RSDP)).unwrap();

    set_segments(vcpu, true, |sregs| {
        sregs.cr3 = PML4;
        sregs.cr4 |= 0x20;
        sregs.cr0 |= 0x8000_0000;
        sregs.efer = 0x500;
    });
    vcpu.set_regs(&kvm_regs { rip: entry, rsi: BOOT_PARAMS, rflags: 2, ..Default::default() }).unwrap();
}

/// Start info that claims two memory map entries and a module.
pub(super) fn pvh(vcpu: &VcpuFd, memory: &GuestMemoryMmap, entry: GuestAddress, cmdline: &str) {
    put_cmdline(memory, cmdline);
    put(memory, START_INFO, 0x336e_c578u32);
    put(memory, START_INFO + 12, 1u32);
    put(memory, START_INFO + 24, CMDLINE);
    put(memory, START_INFO + 32, RSDP);
    put(memory, START_INFO + 48, 2u32);
    set_segments(vcpu, false, |_| ());
    vcpu.set_regs(&kvm_regs { rip: entry.0, rbx: START_INFO, rflags: 2, ..Default::default() }).unwrap();
}
