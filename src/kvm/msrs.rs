//! Model-specific registers: those that firmware would have set before a kernel runs, and those that are saved.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};

use super::{KvmError, call};

/// MTRR default type: memory that no MTRR names is write-back, MTRRs on (Intel SDM vol. 3 §12.11.2.1). At its reset
/// value, "uncached and off", Linux also gives up the page attribute table.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);
/// IA32_MISC_ENABLE: fast string operations (Intel SDM vol. 4 table 2-2), what Linux looks for before `rep movsb`.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// IA32_TIME_STAMP_COUNTER.
pub(super) const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE. It is loaded last: a deadline is compared with the TSC when it is written.
pub(super) const TSC_DEADLINE: u32 = 0x6e0;

/// What KVM_GET_MSR_INDEX_LIST leaves out although KVM keeps it: the MTRRs (Intel SDM vol. 3 §12.11) and the banks of the machine
/// check architecture (vol. 3 §16.3.2), which a guest's kernel sets and reads.
const UNLISTED: [std::ops::RangeInclusive<u32>; 7] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x2ff..=0x2ff,
    0x400..=0x47f,
    // kvm-clock and its siblings (MSR_KVM_*).
    0x4b56_4d00..=0x4b56_4d08,
];
/// Registers of Hyper-V's interface. No leaf of the guest's CPUID offers it, and only to read one makes KVM set it up.
const HYPER_V: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_0fff;
/// KVM_GET_MSRS and KVM_SET_MSRS take fewer than 256 at once (MAX_IO_MSRS).
const AT_ONCE: usize = 200;
/// More than any host lists, by far: a saved state that has more is damaged.
const MOST_SAVED: usize = 4096;

/// IA32_FEATURE_CONTROL (Intel SDM vol. 3 §25.7): it locks VMX on or off.
const FEATURE_CONTROL: u32 = 0x3a;

/// Registers that a host may refuse to take back.
const MAY_BE_REFUSED: [(u32, &str); 1] = [
    // A vCPU without VMX has none, and KVM lists it all the same.
    (FEATURE_CONTROL, "IA32_FEATURE_CONTROL: only a vCPU with VMX or machine-check recovery has it"),
];

/// The registers to set on every vCPU.
pub(super) fn boot_msrs() -> Result<Msrs, KvmError> {
    list(&[MTRR_DEF_TYPE, MISC_ENABLE])
}

fn list(values: &[(u32, u64)]) -> Result<Msrs, KvmError> {
    let entries: Vec<_> = values
        .iter()
        .map(|(index, data)| kvm_msr_entry { index: *index, data: *data, ..Default::default() })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| KvmError::Missing("room for so many model-specific registers"))
}

/// The numbers of all registers that a vCPU's state consists of, in ascending order.
pub(super) fn saved_indices(kvm: &Kvm) -> Result<Vec<u32>, KvmError> {
    let listed = kvm.get_msr_index_list().map_err(call("list the model-specific registers that it keeps"))?;
    let mut indices = listed.as_slice().to_vec();
    indices.extend(UNLISTED.into_iter().flatten());
    indices.retain(|index| !HYPER_V.contains(index));
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

/// What the registers `indices` hold. Those that this vCPU does not have are left out.
pub(super) fn read(fd: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, KvmError> {
    let mut values = Vec::with_capacity(indices.len());
    let mut left = indices;
    while !left.is_empty() {
        let now = left.get(..AT_ONCE).unwrap_or(left);
        let mut msrs = list(&now.iter().map(|index| (*index, 0)).collect::<Vec<_>>())?;
        // KVM stops at the first register that it refuses, and says how many it read before.
        let count = fd.get_msrs(&mut msrs).map_err(call("give the vCPU's MSRs"))?;
        values.extend(msrs.as_slice().iter().take(count).map(|entry| (entry.index, entry.data)));
        let done = if count < now.len() { count + 1 } else { count };
        left = left.get(done..).unwrap_or_default();
    }
    Ok(values)
}

/// A register that this host's KVM does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this host's KVM refuses the value {value:#x} of model-specific register {index:#x}; load the state on a host with the same processor and kernel"
)]
pub(super) struct RefusedMsr {
    index: u32,
    value: u64,
}

/// Gives the registers these values, in this order. Only those of `known`, which are [`saved_indices`]: KVM takes others from its user
/// that change more than the guest's state. A register at 0 that this host does not have is left out: another kernel's KVM lists more or
/// fewer of them (6.1 has counters of Intel's on AMD's processors), and says 0 of those that a vCPU lacks.
pub(super) fn write(
    fd: &VcpuFd,
    values: &[(u32, u64)],
    known: &[u32],
) -> Result<Option<RefusedMsr>, KvmError> {
    if values.len() > MOST_SAVED {
        return Err(KvmError::Missing("room for so many model-specific registers"));
    }
    let is_known = |(index, _): &(u32, u64)| known.binary_search(index).is_ok();
    if let Some((index, value)) = values.iter().copied().find(|msr| !is_known(msr) && msr.1 != 0) {
        return Ok(Some(RefusedMsr { index, value }));
    }
    let values: Vec<_> = values.iter().copied().filter(is_known).collect();
    let mut left = values.as_slice();
    while !left.is_empty() {
        let now = left.get(..AT_ONCE).unwrap_or(left);
        let count = fd.set_msrs(&list(now)?).map_err(call("take the vCPU's MSRs"))?;
        let mut done = count;
        // KVM stops at the first register that it refuses, and says how many it took before.
        if let Some((index, value)) = now.get(count).copied() {
            let reason = MAY_BE_REFUSED.iter().find(|(known, _)| *known == index).map(|(_, why)| *why);
            let Some(why) = reason.or((value == 0).then_some("this vCPU has none, and it was 0")) else {
                return Ok(Some(RefusedMsr { index, value }));
            };
            log::debug!("MSR {index:#x} was not loaded: {why}");
            done += 1;
        }
        left = left.get(done..).unwrap_or_default();
    }
    Ok(None)
}
