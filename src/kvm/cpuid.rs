//! What the vCPUs say they are: the host's CPUID as KVM supports it, with the machine's own topology.
//!
//! An unfiltered KVM_GET_SUPPORTED_CPUID hangs Linux, and none at all hangs its decompressor: the hypervisor bit, the
//! TSC deadline bit, the APIC ids and the topology are ours to say (KVM api §4.46).

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

use super::{KvmError, call};

/// Leaf 1 EDX: several logical processors per package, EBX then says how many.
const EDX_HTT: u32 = 1 << 28;
/// Leaf 1 ECX: the local APIC timer takes TSC deadlines. KVM leaves it to user space to offer it.
const ECX_TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: a hypervisor is present, see leaf 0x4000_0000.
const ECX_HYPERVISOR: u32 = 1 << 31;
/// Physical address width where the processor does not say (Intel SDM vol. 2, CPUID leaf 8000_0008).
const DEFAULT_ADDRESS_BITS: u32 = 36;

/// CPUID for the vCPUs of one machine; only the APIC ids differ between them.
#[derive(Debug)]
pub(super) struct CpuidTemplate {
    entries: CpuId,
}

impl CpuidTemplate {
    pub(super) fn new(kvm: &Kvm, cpus: u32) -> Result<Self, KvmError> {
        let mut entries =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("say which CPUID it supports"))?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        for entry in entries.as_mut_slice() {
            shape(entry, cpus, deadline);
        }
        Ok(CpuidTemplate { entries })
    }

    /// The list for vCPU `id`.
    pub(super) fn for_vcpu(&mut self, id: u32) -> &CpuId {
        for entry in self.entries.as_mut_slice() {
            set_apic_id(entry, id);
        }
        &self.entries
    }

    pub(super) fn is_intel(&self) -> bool {
        // "GenuineIntel" begins in EBX (Intel SDM vol. 2, CPUID leaf 0).
        self.leaf(0).is_some_and(|leaf| leaf.ebx == u32::from_le_bytes(*b"Genu"))
    }

    pub(super) fn physical_address_bits(&self) -> u32 {
        self.leaf(0x8000_0008).map_or(DEFAULT_ADDRESS_BITS, |leaf| leaf.eax & 0xff)
    }

    fn leaf(&self, function: u32) -> Option<&kvm_cpuid_entry2> {
        self.entries.as_slice().iter().find(|entry| entry.function == function)
    }
}

/// Bits that it takes to number `cpus` processors.
fn id_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

/// Makes one entry say `cpus` cores of one thread each, in one package.
fn shape(entry: &mut kvm_cpuid_entry2, cpus: u32, deadline: bool) {
    match entry.function {
        0x1 => {
            entry.ecx |= ECX_HYPERVISOR;
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
        // Performance counters are the host's own business.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // Extended topology: level 0 threads of a core, level 1 cores of the package.
        0xb | 0x1f => {
            (entry.eax, entry.ebx, entry.ecx) = match entry.index {
                0 => (0, 1, 1 << 8),
                1 => (id_bits(cpus), cpus.min(0xffff), 1 | 2 << 8),
                level => (0, 0, level & 0xff),
            };
        }
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
        // AMD: one thread a core, one node.
        0x8000_001e => (entry.ebx, entry.ecx) = (entry.ebx & !0xffff, 0),
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

    #[test]
    fn topology_says_as_many_cores_as_asked() {
        for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (300, 9)] {
            let mut cores = entry(0xb, 1);
            shape(&mut cores, cpus, true);
            assert_eq!((cores.eax, cores.ebx, cores.ecx >> 8), (bits, cpus, 2), "{cpus} vCPUs");
            let mut threads = entry(0xb, 0);
            shape(&mut threads, cpus, true);
            assert_eq!((threads.eax, threads.ebx, threads.ecx >> 8), (0, 1, 1));
        }
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
        let mut leaf = entry(0xa, 0);
        shape(&mut leaf, 1, true);
        assert_eq!((leaf.eax, leaf.ebx, leaf.ecx, leaf.edx), (0, 0, 0, 0));
    }
}
