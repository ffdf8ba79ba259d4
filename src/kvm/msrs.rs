//! Model-specific registers that firmware would have set before a kernel runs.

use kvm_bindings::{Msrs, kvm_msr_entry};

use super::KvmError;

/// MTRR default type: memory that no MTRR names is write-back, MTRRs on (Intel SDM vol. 3 §12.11.2.1). At its reset
/// value, "uncached and off", Linux also gives up the page attribute table.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);
/// IA32_MISC_ENABLE: fast string operations (Intel SDM vol. 4 table 2-2), what Linux looks for before `rep movsb`.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);

/// The registers to set on every vCPU.
pub(super) fn boot_msrs() -> Result<Msrs, KvmError> {
    let entry = |(index, data)| kvm_msr_entry { index, data, ..Default::default() };
    Msrs::from_entries(&[entry(MTRR_DEF_TYPE), entry(MISC_ENABLE)])
        .map_err(|_| KvmError::Missing("room for two model-specific registers"))
}
