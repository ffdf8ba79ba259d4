//! [`CpuState`] in KVM's words.

use boot::entry::{CpuState, Segment};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

fn segment(segment: &Segment) -> kvm_segment {
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.kind,
        present: u8::from(segment.present),
        dpl: segment.dpl,
        db: u8::from(segment.db),
        s: u8::from(segment.s),
        l: u8::from(segment.l),
        g: u8::from(segment.g),
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

pub(super) fn general(state: &CpuState) -> kvm_regs {
    kvm_regs {
        rip: state.rip,
        rsp: state.rsp,
        rbx: state.rbx,
        rsi: state.rsi,
        rflags: state.rflags,
        ..Default::default()
    }
}

/// Changes what the boot protocol speaks of; the rest (the APIC base, the task register) stays as KVM made it.
pub(super) fn fill_sregs(state: &CpuState, sregs: &mut kvm_sregs) {
    sregs.cs = segment(&state.cs);
    let data = segment(&state.data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(&state.tr);
    sregs.gdt = kvm_dtable { base: state.gdt_base, limit: state.gdt_limit, padding: [0; 3] };
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (state.cr0, state.cr3, state.cr4, state.efer);
}
