//! What the vCPUs say they are: the host's CPUID as KVM supports it, with the machine's own topology and clocks.
//!
//! An unfiltered KVM_GET_SUPPORTED_CPUID hangs Linux, and none at all hangs its decompressor (KVM api §4.46). What this
//! machine says by itself, whatever KVM returned:
//!
//! | leaf | content |
//! |---|---|
//! | 1 | hypervisor and TSC deadline bits, APIC id, number of processors |
//! | 5, bit of 1 | no MONITOR and MWAIT: KVM makes them NOPs, and an idle guest would spin |
//! | 6 | ARAT only: no thermal, frequency or APERF/MPERF registers |
//! | 0x12, bits of 7 | no SGX: a machine has no enclave memory |
//! | 0x14, 0x1C, bits of 7 | no Intel PT, no architectural LBR: tracing goes with the performance counters |
//! | 0xD, bits of 7 | no CET: KVM gives the shadow stack pointer by no call that this program makes, so it could not be saved |
//! | VMX, SVM, 0x8000000A | as KVM gives them: a guest can have guests if the host's module has `nested` |
//! | 4, 0x8000001D | caches: the last level is shared by all processors, the others by none |
//! | 0xA, 0x80000022, bits of 1 and 0x80000001 | no performance counters |
//! | 0xB, 0x1F, 0x8000001E, ECX of 0x80000008 | one package of single-threaded cores. Built from nothing: KVM returns only the first subleaf of 0xB and 0x1F since Linux 6.2 |
//! | 0x40000010 | frequencies of the TSC and of the APIC timer, for guests without kvm-clock |

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::{KvmError, call};

/// Leaf 1 EDX: several logical processors per package, EBX then says how many.
const EDX_HTT: u32 = 1 << 28;
/// Leaf 1 ECX: the local APIC timer takes TSC deadlines. KVM leaves it to user space to offer it.
const ECX_TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: a hypervisor is present, see leaf 0x4000_0000.
const ECX_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 ECX: performance and debug capabilities are in an MSR.
const ECX_PDCM: u32 = 1 << 15;
/// Leaf 1 ECX: MONITOR and MWAIT.
const ECX_MONITOR: u32 = 1 << 3;
/// Leaf 6 EAX: the APIC timer always runs. Linux needs no other timer then.
const EAX_ARAT: u32 = 1 << 2;
/// Leaf 7 EBX: SGX, Intel PT.
const EBX7_HIDDEN: u32 = 1 << 2 | 1 << 25;
/// Leaf 7 ECX: CET shadow stacks, SGX launch control.
const ECX7_HIDDEN: u32 = 1 << 7 | 1 << 30;
/// Leaf 7 EDX: SGX keys, architectural LBRs, CET indirect branch tracking.
const EDX7_HIDDEN: u32 = 1 << 1 | 1 << 19 | 1 << 20;
/// Leaf 0xD, subleaf 1 ECX: CET state of user and supervisor, which XSAVES would save. They are subleaves 11 and 12 as well.
const XSS_CET: u32 = 1 << 11 | 1 << 12;
/// Leaf 0x8000_0001 ECX, AMD: the processors of leaf 1 EBX are cores, not threads.
const ECX_CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x8000_0001 ECX, AMD: extended performance counters of the core, the northbridge and the last-level cache.
const ECX_PERFCTR: u32 = 1 << 23 | 1 << 24 | 1 << 28;
/// First leaf of the hypervisor: EAX is its last one.
const HYPERVISOR: u32 = 0x4000_0000;
/// EAX: frequency of the TSC, EBX: of the APIC timer, in kHz. Not KVM's own, but what VMware began and guests know.
pub(super) const FREQUENCIES: u32 = 0x4000_0010;
/// KVM's APIC timer counts nanoseconds (APIC_BUS_CYCLE_NS).
const APIC_TIMER_KHZ: u32 = 1_000_000;
/// Physical address width where the processor does not say (Intel SDM vol. 2, CPUID leaf 8000_0008).
pub(super) const DEFAULT_ADDRESS_BITS: u32 = 36;

/// CPUID for the vCPUs of one machine; only the APIC ids differ between them.
#[derive(Debug, Clone)]
pub(super) struct CpuidTemplate {
    entries: CpuId,
    /// KVM has the timer with TSC deadlines.
    deadline: bool,
}

impl CpuidTemplate {
    /// What KVM supports.
    pub(super) fn supported(kvm: &Kvm) -> Result<Self, KvmError> {
        let entries =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("say which CPUID it supports"))?;
        Ok(CpuidTemplate { entries, deadline: kvm.check_extension(Cap::TscDeadlineTimer) })
    }

    /// The same, as `cpus` vCPUs shall see it.
    pub(super) fn shaped(self, cpus: u32) -> Result<Self, KvmError> {
        let mut template = self;
        let deadline = template.deadline;
        for entry in template.entries.as_mut_slice() {
            shape(entry, cpus, deadline);
        }
        if template.is_amd() && cpus > 1 {
            template.change(0x8000_0001, |leaf| leaf.ecx |= ECX_CMP_LEGACY);
        }
        for function in [0xb, 0x1f] {
            template.replace(function, &topology(function, cpus))?;
        }
        Ok(template)
    }

    /// Tells guests how fast their clocks are; `tsc_khz` is what KVM says of a vCPU.
    pub(super) fn set_frequencies(&mut self, tsc_khz: u32) -> Result<(), KvmError> {
        if self.leaf(HYPERVISOR).is_none() {
            return Ok(());
        }
        self.change(HYPERVISOR, |leaf| leaf.eax = leaf.eax.max(FREQUENCIES));
        let leaf = kvm_cpuid_entry2 {
            function: FREQUENCIES,
            eax: tsc_khz,
            ebx: APIC_TIMER_KHZ,
            ..Default::default()
        };
        self.put(FREQUENCIES, &[leaf])
    }

    /// The list for vCPU `id`.
    pub(super) fn for_vcpu(&mut self, id: u32) -> &CpuId {
        for entry in self.entries.as_mut_slice() {
            set_apic_id(entry, id);
        }
        &self.entries
    }

    pub(super) fn entries(&self) -> &[kvm_cpuid_entry2] {
        self.entries.as_slice()
    }

    pub(super) fn is_intel(&self) -> bool {
        // "GenuineIntel" begins in EBX (Intel SDM vol. 2, CPUID leaf 0).
        self.leaf(0).is_some_and(|leaf| leaf.ebx == u32::from_le_bytes(*b"Genu"))
    }

    pub(super) fn physical_address_bits(&self) -> u32 {
        self.leaf(0x8000_0008).map_or(DEFAULT_ADDRESS_BITS, |leaf| leaf.eax & 0xff)
    }

    /// AMD's own processors, and Hygon's.
    pub(super) fn is_amd(&self) -> bool {
        let vendors = [u32::from_le_bytes(*b"Auth"), u32::from_le_bytes(*b"Hygo")];
        self.leaf(0).is_some_and(|leaf| vendors.contains(&leaf.ebx))
    }

    fn change(&mut self, function: u32, change: impl FnMut(&mut kvm_cpuid_entry2)) {
        self.entries.as_mut_slice().iter_mut().filter(|entry| entry.function == function).for_each(change);
    }

    /// Puts these in the place of a basic leaf, if the processor has so many leaves.
    fn replace(&mut self, function: u32, with: &[kvm_cpuid_entry2]) -> Result<(), KvmError> {
        let last = self.leaf(0).map_or(0, |leaf| leaf.eax);
        if last < function { Ok(()) } else { self.put(function, with) }
    }

    fn put(&mut self, function: u32, with: &[kvm_cpuid_entry2]) -> Result<(), KvmError> {
        self.entries.retain(|entry| entry.function != function);
        with.iter()
            .try_for_each(|entry| self.entries.push(*entry))
            .map_err(|_| KvmError::Missing("room for another CPUID leaf"))
    }

    fn leaf(&self, function: u32) -> Option<&kvm_cpuid_entry2> {
        self.entries.as_slice().iter().find(|entry| entry.function == function)
    }
}

/// Bits that it takes to number `cpus` processors.
fn id_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

/// Extended topology of `cpus` cores of one thread each: level 0 is the threads of a core, level 1 the cores of the package, and
/// the level behind ends the list (Intel SDM vol. 2, CPUID leaf 0BH). EDX is the x2APIC id on every level.
fn topology(function: u32, cpus: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, processors, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | kind << 8,
        ..Default::default()
    };
    [level(0, 0, 1, 1), level(1, id_bits(cpus), cpus.min(0xffff), 2), level(2, 0, 0, 0)]
}

/// Makes one entry say `cpus` cores of one thread each, in one package.
fn shape(entry: &mut kvm_cpuid_entry2, cpus: u32, deadline: bool) {
    match entry.function {
        0x1 => {
            entry.ecx = (entry.ecx | ECX_HYPERVISOR) & !(ECX_PDCM | ECX_MONITOR);
            if deadline {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
            // EBX 23..16: logical processors of the package, 255 at most.
            entry.ebx = (entry.ebx & 0xff00_ffff) | cpus.min(255) << 16;
            entry.edx = if cpus > 1 { entry.edx | EDX_HTT } else { entry.edx & !EDX_HTT };
        }
        // Deterministic cache parameters: EAX 31..26 cores of the package - 1, EAX 25..14 processors that share - 1.
        0x4 if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { cpus.next_power_of_two().min(4096) - 1 } else { 0 };
            let cores = cpus.next_power_of_two().min(64) - 1;
            entry.eax = (entry.eax & 0x3fff) | sharing << 14 | cores << 26;
        }
        0x6 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & EAX_ARAT, 0, 0, 0),
        0x7 if entry.index == 0 => {
            entry.ebx &= !EBX7_HIDDEN;
            entry.ecx &= !ECX7_HIDDEN;
            entry.edx &= !EDX7_HIDDEN;
        }
        0xd if entry.index == 1 => entry.ecx &= !XSS_CET,
        0xd if matches!(entry.index, 11 | 12) => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        // MWAIT, performance counters, SGX, Intel PT, architectural LBRs.
        0x5 | 0xa | 0x12 | 0x14 | 0x1c => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        0x8000_0001 => entry.ecx &= !ECX_PERFCTR,
        // AMD: ECX 15..12 bits of the core number in the APIC id, ECX 7..0 cores - 1 (APM vol. 3 §E.4.7).
        0x8000_0008 => {
            entry.ecx = (entry.ecx & !0xf0ff) | id_bits(cpus).min(15) << 12 | (cpus.min(256) - 1);
        }
        // AMD cache topology: EAX 25..14 processors that share the cache - 1.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { cpus.min(4096) - 1 } else { 0 };
            entry.eax = (entry.eax & !(0xfff << 14)) | sharing << 14;
        }
        // AMD: one thread a core, one node; the ids are set for each vCPU.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // AMD performance counters of version 2.
        0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // AMD extended topology: leaf 0xb says the same.
        0x8000_0026 => (entry.eax, entry.ebx, entry.ecx) = (0, 0, 0),
        _ => {}
    }
}

fn set_apic_id(entry: &mut kvm_cpuid_entry2, id: u32) {
    match entry.function {
        0x1 => entry.ebx = (entry.ebx & 0x00ff_ffff) | (id & 0xff) << 24,
        0xb | 0x1f => entry.edx = id,
        0x8000_001e => {
            entry.eax = id;
            entry.ebx = (entry.ebx & !0xff) | (id & 0xff);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax: 0x121, ebx: u32::MAX, ecx: 0, edx: 0, ..Default::default() }
    }

    /// What KVM gives on Linux 6.18, of the leaves that matter here: one subleaf of 0xb and of 0x1f, and zeroes in 0x8000001e.
    fn newer_host(vendor: [u8; 4]) -> CpuidTemplate {
        let plain = |function, eax, ebx| kvm_cpuid_entry2 { function, eax, ebx, ..Default::default() };
        let entries = [
            plain(0, 0x1f, u32::from_le_bytes(vendor)),
            plain(1, 0xb0_0f81, 0),
            kvm_cpuid_entry2 { flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, ..plain(0xb, 0, 0) },
            kvm_cpuid_entry2 { flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, ..plain(0x1f, 0, 0) },
            plain(HYPERVISOR, 0x4000_0001, u32::from_le_bytes(*b"KVMK")),
            plain(0x8000_0001, 0, 0),
            plain(0x8000_001e, 0, 0),
        ];
        CpuidTemplate { entries: CpuId::from_entries(&entries).unwrap(), deadline: true }
    }

    fn find(template: &CpuidTemplate, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let all = template.entries.as_slice().iter();
        let mut found = all.filter(|entry| entry.function == function && entry.index == index);
        let entry = *found.next().unwrap_or_else(|| panic!("{function:#x} {index}"));
        assert!(found.next().is_none(), "{function:#x} {index} stands there twice");
        entry
    }

    #[test]
    fn topology_says_as_many_cores_as_asked_whatever_kvm_says_of_it() {
        for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (255, 8)] {
            let mut template = newer_host(*b"Genu").shaped(cpus).unwrap();
            let last = cpus - 1;
            template.for_vcpu(last);
            for function in [0xb, 0x1f] {
                let level = |index| {
                    let leaf = find(&template, function, index);
                    assert_eq!(leaf.edx, last, "every level has the x2APIC id");
                    assert_eq!(leaf.flags, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
                    (leaf.eax, leaf.ebx, leaf.ecx)
                };
                assert_eq!(level(0), (0, 1, 0x100));
                assert_eq!(level(1), (bits, cpus, 0x201), "{cpus} vCPUs");
                assert_eq!(level(2), (0, 0, 2));
            }
            let node = find(&template, 0x8000_001e, 0);
            assert_eq!((node.eax, node.ebx, node.ecx), (last, last & 0xff, 0));
        }
    }

    #[test]
    fn a_processor_with_few_leaves_gets_no_more() {
        let mut template = newer_host(*b"Genu");
        template.change(0, |leaf| leaf.eax = 0xd);
        template.entries.retain(|entry| entry.function != 0x1f);
        let template = template.shaped(2).unwrap();
        assert_eq!(find(&template, 0xb, 1).ebx, 2);
        assert!(template.leaf(0x1f).is_none());
    }

    #[test]
    fn cores_of_amd_are_not_threads() {
        let amd = newer_host(*b"Auth").shaped(4).unwrap();
        assert_eq!(find(&amd, 0x8000_0001, 0).ecx & ECX_CMP_LEGACY, ECX_CMP_LEGACY);
        let one = newer_host(*b"Auth").shaped(1).unwrap();
        assert_eq!(find(&one, 0x8000_0001, 0).ecx & ECX_CMP_LEGACY, 0);
    }

    #[test]
    fn guests_without_kvm_clock_are_told_their_frequencies() {
        let mut template = newer_host(*b"Genu");
        template.set_frequencies(2_400_000).unwrap();
        template.set_frequencies(2_500_000).unwrap();
        assert!(find(&template, HYPERVISOR, 0).eax >= FREQUENCIES);
        let leaf = find(&template, FREQUENCIES, 0);
        assert_eq!((leaf.eax, leaf.ebx), (2_500_000, 1_000_000));
    }

    #[test]
    fn guests_see_a_hypervisor_and_a_deadline_timer_where_the_host_has_one() {
        let mut leaf = entry(1, 0);
        shape(&mut leaf, 2, true);
        assert_eq!(leaf.ecx, ECX_HYPERVISOR | ECX_TSC_DEADLINE);
        assert_eq!(leaf.edx, EDX_HTT);
        assert_eq!(leaf.ebx >> 16 & 0xff, 2);
        let mut leaf = entry(1, 0);
        shape(&mut leaf, 1, false);
        assert_eq!((leaf.ecx, leaf.edx), (ECX_HYPERVISOR, 0));
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let mut leaf = entry(0xb, 0);
        set_apic_id(&mut leaf, 299);
        assert_eq!(leaf.edx, 299);
        let mut leaf = entry(1, 0);
        set_apic_id(&mut leaf, 3);
        assert_eq!(leaf.ebx >> 24, 3);
    }

    #[test]
    fn performance_counters_are_hidden() {
        for function in [0xa, 0x8000_0022] {
            let mut leaf = entry(function, 0);
            shape(&mut leaf, 1, true);
            assert_eq!((leaf.eax, leaf.ebx, leaf.ecx, leaf.edx), (0, 0, 0, 0));
        }
        for (function, bits) in [(1, ECX_PDCM | ECX_MONITOR), (0x8000_0001, ECX_PERFCTR)] {
            let mut leaf = kvm_cpuid_entry2 { ecx: u32::MAX, ..entry(function, 0) };
            shape(&mut leaf, 1, true);
            assert_eq!(leaf.ecx, !bits);
        }
    }

    /// A leaf with all bits set, shaped: EAX, EBX, ECX, EDX.
    fn all_bits(function: u32, index: u32) -> [u32; 4] {
        let all = u32::MAX;
        let mut leaf = kvm_cpuid_entry2 {
            function,
            index,
            eax: all,
            ebx: all,
            ecx: all,
            edx: all,
            ..Default::default()
        };
        shape(&mut leaf, 2, true);
        [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
    }

    #[test]
    fn power_states_are_not_the_guests() {
        assert_eq!(all_bits(1, 0)[2] & 1 << 3, 0, "MONITOR");
        assert_eq!(all_bits(5, 0), [0; 4]);
        assert_eq!(all_bits(6, 0), [1 << 2, 0, 0, 0], "the APIC timer that always runs, and nothing else");
        let mut without = kvm_cpuid_entry2 { function: 6, ..Default::default() };
        shape(&mut without, 2, true);
        assert_eq!(without.eax, 0, "not where KVM does not say so");
    }

    #[test]
    fn sgx_tracing_and_branch_records_are_hidden_with_their_leaves() {
        let all = u32::MAX;
        let [eax, ebx, ecx, edx] = all_bits(7, 0);
        assert_eq!((eax, all_bits(7, 1)), (all, [all; 4]), "the last subleaf, and what is in the next");
        assert_eq!(ebx, all & !(1 << 2) & !(1 << 25), "SGX, PT");
        assert_eq!(ecx, all & !(1 << 30) & !(1 << 7), "SGX_LC, CET_SS");
        assert_eq!(edx, all & !(1 << 1) & !(1 << 19) & !(1 << 20), "SGX_KEYS, ARCH_LBR, CET_IBT");
        assert_eq!(all_bits(0xd, 1)[2], all & !(0b11 << 11), "CET's user and supervisor state");
        assert_eq!((all_bits(0xd, 11), all_bits(0xd, 12), all_bits(0xd, 2)), ([0; 4], [0; 4], [all; 4]));
        for (function, index) in [(0x12, 0), (0x12, 1), (0x12, 2), (0x14, 0), (0x14, 1), (0x1c, 0)] {
            assert_eq!(all_bits(function, index), [0; 4], "{function:#x} {index}");
        }
    }

    #[test]
    fn virtualization_is_as_kvm_gives_it() {
        let (vmx, svm) = (1 << 5, 1 << 2);
        assert_eq!((all_bits(1, 0)[2] & vmx, all_bits(0x8000_0001, 0)[2] & svm), (vmx, svm));
        assert_eq!(all_bits(0x8000_000a, 0), [u32::MAX; 4]);
        for function in [1, 0x8000_0001, 0x8000_000a] {
            let mut without = kvm_cpuid_entry2 { function, ..Default::default() };
            shape(&mut without, 1, false);
            assert_eq!((without.ecx & (vmx | svm), without.edx), (0, 0), "{function:#x}");
        }
    }
}
