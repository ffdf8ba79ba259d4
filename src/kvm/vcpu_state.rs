//! A vCPU's state: what is read from KVM, in which order, and how it is written into a vCPU that has not run yet.
//!
//! The orders matter. Saving: MP_STATE first, since KVM then takes up a pending INIT or SIPI; the MSRs before the LAPIC, so that a
//! timer that fires meanwhile is in one of the two. Loading: the system registers before XCRS (CR4.OSXSAVE) and, with the registers, before the guests of a guest, the LAPIC after the APIC
//! base in the system registers and before the MSRs, the TSC (which wants kvm-clock) before its deadline, the pending events last.

use std::sync::{Arc, Mutex, PoisonError};

use devices::component::{Component, State, StateError, hex};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Xsave, kvm_cpuid_entry2,
    kvm_debugregs, kvm_device_attr, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Error, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vmm_sys_util::fam::FamStruct;
use vmm_sys_util::{ioctl::ioctl_with_ref, ioctl_iow_nr};

use super::baseline::{CpuBaseline, CpuMismatch};
use super::clocks::{Clocks, ticks};
use super::cpuid;
use super::msrs::{self, TSC, TSC_DEADLINE};
use super::nested::NestedState;
use super::raw::Raw;
use super::vcpu::Vcpu;
use super::vm::KvmDevice;

pub(super) const KIND: &str = "vcpu";
const VERSION: u16 = 1;

/// Leaf 1 EDX: the local APIC is there. KVM clears it for a guest that has switched it off.
const EDX_APIC: u32 = 1 << 9;
/// Bytes of the part of the XSAVE area that every KVM has.
const XSAVE: usize = size_of::<kvm_xsave>();

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, kvm_bindings::KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, kvm_bindings::KVMIO, 0xe2, kvm_device_attr);

/// What the vCPUs of one VM share for saving and loading.
#[derive(Debug)]
pub(super) struct VcpuHost {
    pub(super) device: Arc<KvmDevice>,
    pub(super) vm: Arc<VmFd>,
    /// TSC offset of the first vCPU, as it was saved and as it was loaded: the others keep their distance to it, or KVM
    /// would give up its common clock for all vCPUs.
    anchor: Mutex<Option<(u64, u64)>>,
    clocks: Clocks,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VcpuState {
    mp_state: Raw<kvm_mp_state>,
    regs: Raw<kvm_regs>,
    sregs: Raw<kvm_sregs>,
    #[serde(with = "hex")]
    xsave: Vec<u8>,
    /// Absent on a host whose processor has no XSAVE.
    xcrs: Option<Raw<kvm_xcrs>>,
    debug_regs: Raw<kvm_debugregs>,
    lapic: Raw<kvm_lapic_state>,
    events: Raw<kvm_vcpu_events>,
    tsc_khz: Option<u32>,
    /// Absent where KVM does not say (before Linux 5.16).
    tsc_offset: Option<u64>,
    /// kvm-clock and the TSC at one moment, for hosts on which the offset says nothing: with another TSC, or one that is scaled.
    #[serde(default)]
    tsc_at: Option<TscAt>,
    msrs: Vec<(u32, u64)>,
    cpuid: Vec<Raw<kvm_cpuid_entry2>>,
    /// Of a guest that runs guests of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested: Option<NestedState>,
}

/// kvm-clock in nanoseconds, and what the guest's TSC shows then.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TscAt {
    clock: u64,
    tsc: u64,
}

impl TscAt {
    /// What the TSC, of `khz`, shows when kvm-clock shows `clock`.
    fn later(self, clock: u64, khz: u32) -> u64 {
        self.tsc.wrapping_add(ticks(clock.saturating_sub(self.clock), khz))
    }
}

impl VcpuHost {
    pub(super) fn new(device: Arc<KvmDevice>, vm: Arc<VmFd>, clocks: Clocks) -> Self {
        VcpuHost { device, vm, anchor: Mutex::default(), clocks }
    }

    /// Bytes at most that this host's KVM keeps of a guest with guests of its own; 0 if it has no such guests.
    fn nested_len(&self) -> usize {
        usize::try_from(self.vm.check_extension_int(Cap::NestedState)).unwrap_or(0)
    }

    /// Bytes of the XSAVE area on this host (KVM api §4.134).
    fn xsave_len(&self) -> usize {
        usize::try_from(self.vm.check_extension_int(Cap::Xsave2)).unwrap_or(0).max(XSAVE)
    }
}

/// KVM refused to `what`.
pub(super) fn refused(what: &'static str) -> impl Fn(Error) -> StateError {
    move |error| {
        let source = std::io::Error::from_raw_os_error(error.errno());
        StateError::refused(KIND, format!("KVM refused to {what}: {source}"))
    }
}

impl Component for Vcpu {
    fn save(&self) -> Result<State, StateError> {
        State::new(KIND, VERSION, &self.read_state()?)
    }

    /// Into a vCPU that has not run.
    fn load(&mut self, state: &State) -> Result<(), StateError> {
        self.write_state(&state.open(KIND, VERSION)?)
    }
}

impl Vcpu {
    fn read_state(&self) -> Result<VcpuState, StateError> {
        let fd = self.fd();
        let mp_state = fd.get_mp_state().map_err(refused("give the run state"))?;
        let regs = fd.get_regs().map_err(refused("give the registers"))?;
        let sregs = fd.get_sregs().map_err(refused("give the system registers"))?;
        let nested = if self.host().nested_len() > 0 { NestedState::read(fd, sregs.efer)? } else { None };
        let xsave = read_xsave(fd, self.host().xsave_len())?;
        // Without XSAVE KVM gives an empty list, and takes none.
        let xcrs = fd.get_xcrs().ok().filter(|xcrs| xcrs.nr_xcrs > 0).map(Raw);
        let debug_regs = fd.get_debug_regs().map_err(refused("give the debug registers"))?;
        let indices = self.host().device.saved_msrs().map_err(|error| StateError::refused(KIND, error))?;
        let mut msrs = msrs::read(fd, indices).map_err(|error| StateError::refused(KIND, error))?;
        let (tsc_offset, tsc_at) = (tsc_offset(fd), self.tsc_at());
        let lapic = fd.get_lapic().map_err(refused("give the local APIC"))?;
        rearm_fired_timer(&mut msrs, &lapic);
        let events = fd.get_vcpu_events().map_err(refused("give the pending events"))?;
        Ok(VcpuState {
            mp_state: Raw(mp_state),
            regs: Raw(regs),
            sregs: Raw(sregs),
            xsave,
            xcrs,
            debug_regs: Raw(debug_regs),
            lapic: Raw(lapic),
            events: Raw(events),
            tsc_khz: self.tsc_khz,
            tsc_offset,
            tsc_at,
            msrs,
            cpuid: self.cpuid()?,
            nested,
        })
    }

    fn write_state(&mut self, state: &VcpuState) -> Result<(), StateError> {
        self.take_cpuid(state)?;
        self.set_frequency(state.tsc_khz)?;
        let fd = self.fd();
        fd.set_mp_state(state.mp_state.0).map_err(refused("take the run state"))?;
        fd.set_regs(&state.regs.0).map_err(refused("take the registers"))?;
        fd.set_sregs(&state.sregs.0).map_err(refused("take the system registers"))?;
        if let Some(nested) = &state.nested {
            nested.write(fd, self.host().nested_len())?;
        }
        if let Some(Raw(xcrs)) = &state.xcrs {
            fd.set_xcrs(xcrs).map_err(refused("take the extended control registers"))?;
        }
        write_xsave(fd, &state.xsave, self.host().xsave_len())?;
        fd.set_debug_regs(&state.debug_regs.0).map_err(refused("take the debug registers"))?;
        fd.set_lapic(&state.lapic.0).map_err(refused("take the local APIC"))?;
        self.write_msrs(state)?;
        fd.set_vcpu_events(&state.events.0).map_err(refused("take the pending events"))
    }

    fn write_msrs(&self, state: &VcpuState) -> Result<(), StateError> {
        let of = |wanted: u32| msrs_of(state, wanted).into_iter();
        let late = |index: u32| index == TSC || index == TSC_DEADLINE;
        let early: Vec<_> = state.msrs.iter().copied().filter(|(index, _)| !late(*index)).collect();
        self.put_msrs(&early)?;
        if let Some((_, tsc)) = of(TSC).next_back() {
            self.write_tsc(tsc, state)?;
        }
        // A deadline stays where it is: one that has passed meanwhile fires at once. A new vCPU has none.
        self.put_msrs(&of(TSC_DEADLINE).filter(|(_, deadline)| *deadline != 0).collect::<Vec<_>>())
    }

    /// Has the TSC go on as kvm-clock does, which was loaded before: the first vCPU's, and the others' at their distance to that.
    fn write_tsc(&self, tsc: u64, state: &VcpuState) -> Result<(), StateError> {
        let khz = state.tsc_khz.or(self.tsc_khz).unwrap_or(0);
        let (host, fd) = (self.host(), self.fd());
        let mut anchor = host.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = self.id() == 0;
        let offset = state.tsc_offset.and_then(|saved| match *anchor {
            Some((first_saved, first_own)) if !is_first => {
                Some(first_own.wrapping_add(saved.wrapping_sub(first_saved)))
            }
            _ => host.clocks.tsc_offset(saved, khz),
        });
        if !offset.is_some_and(|offset| set_tsc_offset(fd, offset)) {
            let saved = state.tsc_at.or_else(|| Some(TscAt { clock: host.clocks.nanoseconds_then()?, tsc }));
            let at = |clock: u64| saved.map_or(tsc, |saved| saved.later(clock, khz));
            let now = host.vm.get_clock().map_or(0, |clock| clock.clock);
            // Without the attribute KVM's own heuristics give vCPUs that were saved within a second the same offset.
            self.put_msrs(&[(TSC, at(now))])?;
            // Where there is the attribute, what the calls themselves took is made good.
            if let Some((own, is)) = tsc_offset(fd).zip(self.tsc_at()) {
                set_tsc_offset(fd, own.wrapping_add(at(is.clock)).wrapping_sub(is.tsc));
            }
        }
        if is_first {
            *anchor = state.tsc_offset.zip(tsc_offset(fd));
        }
        Ok(())
    }

    /// kvm-clock and the TSC, as close to each other as this host reads them.
    fn tsc_at(&self) -> Option<TscAt> {
        const ATTEMPTS: usize = 16;
        /// Nanoseconds between two readings of kvm-clock with one of the TSC between them that need not be bettered.
        const CLOSE: u64 = 10_000;
        let vm = &self.host().vm;
        let (mut best, mut width) = (None, u64::MAX);
        for _ in 0..ATTEMPTS {
            let before = vm.get_clock().ok()?.clock;
            let tsc = msrs::read(self.fd(), &[TSC]).ok()?.first()?.1;
            let passed = vm.get_clock().ok()?.clock.saturating_sub(before);
            if passed < width {
                (best, width) = (Some(TscAt { clock: before + passed / 2, tsc }), passed);
            }
            if width <= CLOSE {
                break;
            }
        }
        best
    }

    fn put_msrs(&self, values: &[(u32, u64)]) -> Result<(), StateError> {
        let known = self.host().device.saved_msrs().map_err(|error| StateError::refused(KIND, error))?;
        match msrs::write(self.fd(), values, known) {
            Ok(None) => Ok(()),
            Ok(Some(msr)) => Err(StateError::mismatch(KIND, msr)),
            Err(error) => Err(StateError::refused(KIND, error)),
        }
    }

    /// A host with another TSC frequency has to scale the TSC, which few can.
    fn set_frequency(&mut self, saved: Option<u32>) -> Result<(), StateError> {
        let (Some(saved), Some(own)) = (saved, self.tsc_khz) else { return Ok(()) };
        if saved == own {
            return Ok(());
        }
        self.host().clocks.set_scaled();
        self.fd()
            .set_tsc_khz(saved)
            .map_err(|_| StateError::host(KIND, CpuMismatch::Frequency { saved, host: own }))?;
        self.tsc_khz = Some(saved);
        Ok(())
    }

    /// The CPUID that the guest sees, as far as it does not depend on the guest's own control registers.
    fn cpuid(&self) -> Result<Vec<Raw<kvm_cpuid_entry2>>, StateError> {
        let cpuid: CpuId = self.fd().get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(refused("give its CPUID"))?;
        let mut entries = cpuid.as_slice().to_vec();
        entries.iter_mut().for_each(clear_dynamic);
        Ok(entries.into_iter().map(Raw).collect())
    }

    /// Has the guest see the CPUID that it saw before, if this host offers all of that. Nothing else asks that of a saved machine.
    fn take_cpuid(&self, state: &VcpuState) -> Result<(), StateError> {
        let own = self.cpuid()?;
        if own == state.cpuid && self.tsc_khz == state.tsc_khz {
            return Ok(());
        }
        let entries = |raw: &[Raw<kvm_cpuid_entry2>]| raw.iter().map(|Raw(entry)| *entry).collect::<Vec<_>>();
        let (own, mut saved) = (entries(&own), entries(&state.cpuid));
        let [has, offers] = [&saved, &own].map(|entries| CpuBaseline::of_entries(entries, None));
        has.check(&offers).map_err(|reason| StateError::host(KIND, reason))?;
        for entry in &mut saved {
            match entry.function {
                0x1 => entry.edx |= EDX_APIC,
                cpuid::FREQUENCIES => entry.eax = state.tsc_khz.unwrap_or(0),
                _ => {}
            }
        }
        let saved = CpuId::from_entries(&saved)
            .map_err(|_| StateError::damaged(KIND, format!("a CPUID of {} entries", saved.len())))?;
        self.fd().set_cpuid2(&saved).map_err(refused("take its CPUID"))
    }
}

/// What a state says of one register: most often one value.
fn msrs_of(state: &VcpuState, wanted: u32) -> Vec<(u32, u64)> {
    state.msrs.iter().copied().filter(|(index, _)| *index == wanted).collect()
}

/// What the guest of a saved vCPU was told of its processor; `None` if the state does not say, and is then refused when it is loaded.
pub(crate) fn saved_cpu(state: &State) -> Option<CpuBaseline> {
    let field = |name| state.data.get(name);
    let cpuid = field("cpuid")
        .filter(|list| list.as_array().is_some_and(|list| list.len() <= KVM_MAX_CPUID_ENTRIES))?;
    let cpuid = Vec::<Raw<kvm_cpuid_entry2>>::deserialize(cpuid).ok()?;
    let entries: Vec<_> = cpuid.into_iter().map(|Raw(entry)| entry).collect();
    Some(CpuBaseline::of_entries(&entries, Option::deserialize(field("tsc_khz")?).ok()?))
}

/// Bits of CPUID that follow the guest's control registers: KVM keeps them up to date by itself.
fn clear_dynamic(entry: &mut kvm_cpuid_entry2) {
    match (entry.function, entry.index) {
        // OSXSAVE, MONITOR; the local APIC is enabled.
        (0x1, _) => (entry.ecx, entry.edx) = (entry.ecx & !(1 << 27 | 1 << 3), entry.edx & !EDX_APIC),
        // OSPKE.
        (0x7, 0) => entry.ecx &= !(1 << 4),
        // Size of the enabled XSAVE area.
        (0xd, 0 | 1) => entry.ebx = 0,
        // The TSC's frequency is compared by itself.
        (cpuid::FREQUENCIES, _) => entry.eax = 0,
        _ => {}
    }
    entry.padding = [0; 3];
}

/// A TSC deadline that has passed reads as 0, and on some kernels its interrupt is not in the LAPIC yet. The timer fires once
/// more then: a guest takes a spurious tick, and without one it might wait for ever.
fn rearm_fired_timer(msrs: &mut [(u32, u64)], lapic: &kvm_lapic_state) {
    /// LVT timer: vector 7..0, masked 16, mode 18..17, 2 is TSC deadline (Intel SDM vol. 3 §11.5.1).
    const LVT_TIMER: usize = 0x320;
    let lvt = lapic.regs.get(LVT_TIMER..).and_then(|bytes| bytes.first_chunk::<4>());
    #[allow(clippy::cast_sign_loss, reason = "bytes of a register")]
    let lvt = u32::from_le_bytes(lvt.map_or([0; 4], |bytes| bytes.map(|byte| byte as u8)));
    if lvt >> 16 & 0b111 != 0b100 {
        return;
    }
    let now = msrs.iter().find(|(index, _)| *index == TSC).map_or(1, |(_, value)| *value);
    if let Some((_, deadline @ 0)) = msrs.iter_mut().find(|(index, _)| *index == TSC_DEADLINE) {
        *deadline = now;
    }
}

fn read_xsave(fd: &VcpuFd, len: usize) -> Result<Vec<u8>, StateError> {
    let words = if len > XSAVE {
        let mut area = xsave_of(len)?;
        // SAFETY: the area is as long as KVM says that it writes (KVM_CAP_XSAVE2).
        unsafe { fd.get_xsave2(&mut area) }.map_err(refused("give the XSAVE area"))?;
        let area = area.as_fam_struct_ref();
        [&area.xsave.region[..], area.as_slice()].concat()
    } else {
        fd.get_xsave().map_err(refused("give the XSAVE area"))?.region.to_vec()
    };
    Ok(words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

fn write_xsave(fd: &VcpuFd, bytes: &[u8], len: usize) -> Result<(), StateError> {
    // A larger area has parts that this host does not know; one that is smaller than the least is damaged.
    if bytes.len() < XSAVE || bytes.len() > len || !bytes.len().is_multiple_of(4) {
        return Err(StateError::damaged(KIND, format!("an XSAVE area of {} bytes", bytes.len())));
    }
    let mut area = xsave_of(len)?;
    let words = bytes.chunks_exact(4).filter_map(|word| word.try_into().ok());
    let mut words = words.map(u32::from_le_bytes);
    // SAFETY: the length of the flexible part stays as it is.
    let inner = unsafe { area.as_mut_fam_struct() };
    inner.xsave.region.iter_mut().zip(&mut words).for_each(|(to, from)| *to = from);
    inner.as_mut_slice().iter_mut().zip(words).for_each(|(to, from)| *to = from);
    // SAFETY: the area is as long as KVM says that it reads (KVM_CAP_XSAVE2).
    unsafe { fd.set_xsave2(&area) }.map_err(refused("take the XSAVE area"))
}

/// Room for an XSAVE area of `len` bytes.
fn xsave_of(len: usize) -> Result<Xsave, StateError> {
    let words = len.saturating_sub(XSAVE).div_ceil(size_of::<u32>());
    Xsave::new(words).map_err(|_| StateError::refused(KIND, "no memory for its XSAVE area"))
}

fn tsc_attribute(addr: u64) -> kvm_device_attr {
    kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET.into(), addr }
}

/// What is added to the host's TSC to get the guest's, where KVM says it (Linux 5.16).
fn tsc_offset(fd: &VcpuFd) -> Option<u64> {
    let mut offset = 0u64;
    let attribute = tsc_attribute(std::ptr::from_mut(&mut offset) as u64);
    // SAFETY: KVM writes 64 bits to `offset`, which lives through the call.
    (unsafe { ioctl_with_ref(fd, KVM_GET_DEVICE_ATTR(), &attribute) } == 0).then_some(offset)
}

fn set_tsc_offset(fd: &VcpuFd, offset: u64) -> bool {
    let attribute = tsc_attribute(std::ptr::from_ref(&offset) as u64);
    // SAFETY: KVM reads 64 bits from `offset`, which lives through the call.
    unsafe { ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), &attribute) == 0 }
}

#[cfg(test)]
mod tests;
