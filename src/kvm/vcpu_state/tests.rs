//! vCPUs that have not run, on the real /dev/kvm. `tests/native_state.rs` has some that run.

use super::super::memory::GuestRam;
use super::super::vm::Vm;
use super::*;

/// A VM with vCPUs that have not run yet.
fn vm(cpus: u32) -> (Vm, Vec<Vcpu>, GuestRam) {
    let ram = GuestRam::new(&[(0, 2 << 20)]).unwrap();
    let slots: Vec<_> = ram.slots().collect();
    let vm = Vm::new(&Arc::new(KvmDevice::open().unwrap()), &slots).unwrap();
    let vcpus = vm.add_vcpus(cpus).unwrap().vcpus;
    (vm, vcpus, ram)
}

/// A field of a saved vCPU.
fn field<'a>(state: &'a mut State, name: &str) -> &'a mut serde_json::Value {
    state.data.get_mut(name).unwrap()
}

/// Writes a register of the local APIC (Intel SDM vol. 3 §11.4.1).
fn set_lapic(fields: &mut VcpuState, at: usize, value: u32) {
    for (register, byte) in fields.lapic.0.regs[at..].iter_mut().zip(value.to_le_bytes()) {
        *register = byte.cast_signed();
    }
}

/// The registers of a state without those that time changes.
fn still(state: &State) -> VcpuState {
    let mut fields: VcpuState = state.open(KIND, VERSION).unwrap();
    fields.msrs.retain(|(index, _)| *index != TSC);
    (fields.tsc_offset, fields.tsc_at) = (None, None);
    fields
}

#[test]
fn a_vcpu_loaded_into_another_vm_is_saved_as_it_was() {
    let (_vm, mut vcpus, _ram) = vm(2);
    let mut saved = vcpus[1].save().unwrap();
    // Values that no fresh vCPU has.
    let mut fields: VcpuState = saved.open(KIND, VERSION).unwrap();
    println!("{} msrs, xsave {}, offset {:?}", fields.msrs.len(), fields.xsave.len(), fields.tsc_offset);
    fields.regs.0.rax = 0x1234_5678_9abc_def0;
    fields.regs.0.r15 = 7;
    fields.mp_state.0.mp_state = kvm_bindings::KVM_MP_STATE_HALTED;
    fields.debug_regs.0.db = [0x1000, 0x2000, 0x3000, 0x4000];
    fields.events.0.nmi.masked = 1;
    // The local APIC is on, with its timer in TSC-deadline mode, and has a logical ID.
    for (at, value) in [(0xf0, 0x1ff), (0x320, 0x4_0040), (0xd0, 0x0100_0000)] {
        set_lapic(&mut fields, at, value);
    }
    let has_deadline = fields.cpuid.iter().any(|Raw(entry)| entry.function == 1 && entry.ecx & 1 << 24 != 0);
    let far = 1 << 50;
    // ST0's mantissa and XMM0 in the legacy area.
    fields.xsave[32..40].copy_from_slice(&[0x5a; 8]);
    fields.xsave[160..176].copy_from_slice(&[0xa5; 16]);
    // XSTATE_BV: both are in use.
    fields.xsave[512] |= 3;
    for (index, value) in &mut fields.msrs {
        match index {
            0x277 => *value = 0x0606_0606_0606_0606,
            0x200 => *value = 0x8000_0006,
            0xc000_0102 => *value = 0xffff_8880_0000_0000,
            &mut TSC_DEADLINE => *value = far,
            _ => {}
        }
    }
    let made = fields;
    let fields = &made;
    saved = State::new(KIND, VERSION, &fields).unwrap();
    vcpus[1].load(&saved).unwrap();
    let saved = vcpus[1].save().unwrap();
    let (_other, mut others, _memory) = vm(2);
    let mut first = others.remove(0);
    first.load(&vcpus[0].save().unwrap()).unwrap();
    others[0].load(&saved).unwrap();
    let again = others[0].save().unwrap();
    let (before, after) = (still(&saved), still(&again));
    let json = |state: &VcpuState| serde_json::to_value(state).unwrap();
    assert_eq!(json(&before), json(&after));
    assert_eq!(after.regs.0.rax, 0x1234_5678_9abc_def0);
    assert!(after.msrs.contains(&(0x277, 0x0606_0606_0606_0606)));
    assert_eq!(after.mp_state.0.mp_state, kvm_bindings::KVM_MP_STATE_HALTED);
    assert_eq!(after.debug_regs.0.db, made.debug_regs.0.db);
    assert_eq!(after.events.0.nmi.masked, 1);
    assert_eq!((&after.xsave[32..40], &after.xsave[160..176]), (&[0x5a; 8][..], &[0xa5; 16][..]));
    assert_eq!(after.lapic.0.regs[0xd0..0xd4], made.lapic.0.regs[0xd0..0xd4]);
    assert!(!has_deadline || after.msrs.contains(&(TSC_DEADLINE, far)), "the timer is not armed");
    // Both count from one offset, or KVM leaves its common clock.
    assert_eq!(tsc_offset(first.fd()), tsc_offset(others[0].fd()));
}

#[test]
fn a_tsc_goes_on_from_the_moment_at_which_it_was_read_with_kvm_clock() {
    let saved = TscAt { clock: 1_000_000_000, tsc: 1 << 50 };
    assert_eq!(saved.later(1_000_000_000, 2_000_000), 1 << 50);
    assert_eq!(saved.later(1_000_000_500, 2_000_000), (1 << 50) + 1000);
    // A clock never goes back; of damaged states nothing is expected but an end.
    assert_eq!(saved.later(0, 2_000_000), 1 << 50);
    assert_eq!(TscAt { clock: 0, tsc: u64::MAX }.later(1000, 1_000_000), 999);
    let (_vm, vcpus, _ram) = vm(1);
    let (first, second) = (vcpus[0].tsc_at().unwrap(), vcpus[0].tsc_at().unwrap());
    assert!(second.clock >= first.clock && second.tsc > first.tsc, "{first:?} {second:?}");
}

#[test]
fn a_timer_that_has_fired_while_it_was_saved_fires_again() {
    let (_vm, mut vcpus, _ram) = vm(1);
    let mut fields: VcpuState = vcpus[0].save().unwrap().open(KIND, VERSION).unwrap();
    let deadline = |fields: &VcpuState| {
        fields.msrs.iter().find(|(index, _)| *index == TSC_DEADLINE).map(|(_, value)| *value)
    };
    // Its timer is in another mode.
    assert_eq!(deadline(&fields).unwrap_or(0), 0);
    for (at, value) in [(0xf0, 0x1ff), (0x320, 0x4_0040)] {
        set_lapic(&mut fields, at, value);
    }
    vcpus[0].load(&State::new(KIND, VERSION, &fields).unwrap()).unwrap();
    let fields: VcpuState = vcpus[0].save().unwrap().open(KIND, VERSION).unwrap();
    let tsc = fields.msrs.iter().find(|(index, _)| *index == TSC).map(|(_, value)| *value);
    assert!(deadline(&fields).is_none_or(|deadline| Some(deadline) == tsc && deadline > 0), "it is lost");
}

#[test]
fn states_that_no_vcpu_can_have_are_refused_in_a_sentence() {
    let (_vm, mut vcpus, _ram) = vm(1);
    let saved = vcpus[0].save().unwrap();
    let vcpu = &mut vcpus[0];
    let mut check = |change: &dyn Fn(&mut State), said: &str| {
        let mut state = saved.clone();
        change(&mut state);
        let error = vcpu.load(&state).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    };
    check(&|state| *field(state, "regs") = "00".into(), "1 bytes instead of 144");
    check(&|state| *field(state, "xsave") = "00000000".into(), "an XSAVE area of 4 bytes");
    check(&|state| *field(state, "xsave") = "00".repeat(1 << 20).into(), "an XSAVE area of 1048576 bytes");
    check(&|state| drop(state.data.as_object_mut().unwrap().remove("events")), "missing field `events`");
    check(&|state| *field(state, "tsc_khz") = 1.into(), "kHz");
    check(&|state| *field(state, "cpuid") = serde_json::json!([]), "its guest runs on a processor of");
    check(&|state| *field(state, "cpuid") = vec!["00"; 3].into(), "1 bytes instead of 40");
    let with = |change: &dyn Fn(&mut kvm_cpuid_entry2)| with_cpuid(&saved, change);
    let more = with(&|leaf| leaf.ebx |= u32::from(leaf.function == 7 && leaf.index == 0) << 2);
    check(
        &|state| *state = more.clone(),
        "lacks sgx, which its guest has; restore it on a host that offers as much",
    );
    let wide = with(&|leaf| leaf.eax |= if leaf.function == 0x8000_0008 { 0x3f } else { 0 });
    check(&|state| *state = wide.clone(), "63 bits of physical address");
    check(&|state| *field(state, "msrs") = serde_json::json!([[0xdead_beefu32, 1]]), "register 0xdeadbeef");
    // KVM takes Hyper-V's guest id from its user, and no state has it.
    let hyper_v = serde_json::json!([[0x4000_0000u32, 1]]);
    check(&|state| *field(state, "msrs") = hyper_v.clone(), "register 0x40000000");
    check(
        &|state| *field(state, "msrs") = vec![[0x277u64, 1]; 5000].into(),
        "so many model-specific registers",
    );
    check(&|state| state.version = 9, "version 9");
    // KVM looks at the rest.
    let sregs = &|state: &mut State| *field(state, "sregs") = "ff".repeat(size_of::<kvm_sregs>()).into();
    check(sregs, "KVM refused to take the system registers");
    vcpu.load(&saved).unwrap();
    // A register that is not known is not given to KVM, whatever KVM would say.
    let refused = msrs::write(vcpu.fd(), &[(0x277, 0x0606_0606_0606_0606)], &[TSC]).unwrap().unwrap();
    assert!(refused.to_string().contains("register 0x277"), "{refused}");
    // But for one that holds nothing: another kernel's KVM has it, and this one has not.
    assert_eq!(msrs::write(vcpu.fd(), &[(0x277, 0), (TSC, 1)], &[TSC]).unwrap(), None);
    let pat = msrs::read(vcpu.fd(), &[0x277]).unwrap();
    assert!(pat != [(0x277, 0)], "it was not written");
}

/// A state with another CPUID.
fn with_cpuid(saved: &State, change: &dyn Fn(&mut kvm_cpuid_entry2)) -> State {
    let mut fields: VcpuState = saved.open(KIND, VERSION).unwrap();
    fields.cpuid.iter_mut().for_each(|Raw(entry)| change(entry));
    State::new(KIND, VERSION, &fields).unwrap()
}

#[test]
fn a_guest_of_a_lesser_host_keeps_seeing_what_it_saw() {
    let (_vm, mut vcpus, _ram) = vm(2);
    let states = vcpus.iter().map(|vcpu| vcpu.save().unwrap()).collect::<Vec<_>>();
    // Without a feature, one of KVM's own, and another model.
    let lesser = |leaf: &mut kvm_cpuid_entry2| match leaf.function {
        1 => leaf.eax ^= 0x10,
        0x4000_0001 => leaf.eax &= !(1 << 5),
        _ => {}
    };
    for (vcpu, state) in vcpus.iter_mut().zip(&states) {
        let lesser = with_cpuid(state, &lesser);
        vcpu.load(&lesser).unwrap();
        let again = vcpu.save().unwrap();
        let (before, after) = (still(&lesser), still(&again));
        assert_eq!(before.cpuid, after.cpuid);
        assert_ne!(still(state).cpuid, after.cpuid, "it was another one before");
        assert_eq!(saved_cpu(&again), saved_cpu(&lesser));
        // The frequency is the vCPU's, and not what the saved list has in its place.
        let told: CpuId = vcpu.fd().get_cpuid2(KVM_MAX_CPUID_ENTRIES).unwrap();
        let khz =
            told.as_slice().iter().find(|leaf| leaf.function == cpuid::FREQUENCIES).map(|leaf| leaf.eax);
        assert_eq!(khz, vcpu.tsc_khz);
        assert!(told.as_slice().iter().any(|leaf| leaf.function == 1 && leaf.edx & EDX_APIC != 0));
    }
}

#[test]
fn what_a_guest_was_told_is_read_from_its_state_or_not_at_all() {
    let (vm, vcpus, _ram) = vm(1);
    let mut saved = vcpus[0].save().unwrap();
    let told = saved_cpu(&saved).unwrap();
    assert_eq!(told.check_host(&vcpus[0].host().device).unwrap(), Ok(()));
    drop(vm);
    *field(&mut saved, "cpuid") = vec!["00".repeat(40); KVM_MAX_CPUID_ENTRIES + 1].into();
    assert_eq!(saved_cpu(&saved), None);
    *field(&mut saved, "cpuid") = 7.into();
    assert_eq!(saved_cpu(&saved), None);
    assert_eq!(saved_cpu(&State::new(KIND, 1, &[0]).unwrap()), None);
}

#[test]
fn a_deadline_that_passed_while_it_was_saved_fires_once_more() {
    let lapic = |lvt: u32| {
        let mut lapic = kvm_lapic_state::default();
        for (to, byte) in lapic.regs[0x320..0x324].iter_mut().zip(lvt.to_le_bytes()) {
            *to = byte.cast_signed();
        }
        lapic
    };
    let deadline_after = |lvt, deadline| {
        let mut msrs = vec![(TSC, 1234), (0x277, 0), (TSC_DEADLINE, deadline)];
        rearm_fired_timer(&mut msrs, &lapic(lvt));
        assert_eq!(msrs[..2], [(TSC, 1234), (0x277, 0)]);
        msrs[2].1
    };
    let (deadline_mode, masked) = (0x400ec, 1 << 16);
    assert_eq!(deadline_after(deadline_mode, 0), 1234, "it has fired, and may be lost");
    assert_eq!(deadline_after(deadline_mode, 5678), 5678, "it is still to fire");
    assert_eq!(deadline_after(deadline_mode | masked, 0), 0, "nobody waits for it");
    assert_eq!(deadline_after(0xec, 0), 0, "the timer counts down instead");
}
