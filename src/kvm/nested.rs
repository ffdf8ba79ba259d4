//! What KVM keeps of a guest that runs guests of its own (KVM api §4.114 and §4.115): which instructions of virtualization it may use,
//! whether interrupts are held back from it, and, while it is in such a guest, the control block of that.
//!
//! KVM wants it back behind the system registers, which allow virtualization (EFER.SVME) and are those of the inner guest while that runs.
//! What the inner guest's control block says is checked by KVM as it checks what a guest gives to VMRUN; here it is checked
//! that it is as long as it says, and of this host's kind.
//!
//! Only AMD's is kept. On Intel, KVM writes no capability MSR of VMX (0x480 to 0x491) while VMX is on, not even with the value that it has, and
//! takes the state of a guest of a guest only behind them: as long as that order has not been tried there, a guest that has switched VMX on
//! is refused when it is saved, while it still runs.

use devices::component::{StateError, hex};
use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_bindings::{
    KVM_STATE_NESTED_FORMAT_SVM, KVM_STATE_NESTED_FORMAT_VMX, KVM_STATE_NESTED_GIF_SET,
    KVM_STATE_NESTED_GUEST_MODE, KVM_STATE_NESTED_MTF_PENDING, KVM_STATE_NESTED_RUN_PENDING,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

use super::vcpu_state::{KIND, refused};

/// EFER: SVM is switched on.
const EFER_SVME: u64 = 1 << 12;
/// Bytes of the header, which is all there is outside of an inner guest.
const HEADER: usize = 128;
/// All flags of which this program knows what they mean. Enlightened VMCS is Hyper-V's, which no guest is offered.
const FLAGS: u32 = KVM_STATE_NESTED_GUEST_MODE
    | KVM_STATE_NESTED_RUN_PENDING
    | KVM_STATE_NESTED_MTF_PENDING
    | KVM_STATE_NESTED_GIF_SET;

/// As KVM gives it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NestedState(#[serde(with = "hex")] Vec<u8>);

impl NestedState {
    /// That of a guest that has switched its virtualization on; `efer` is its own. One that has not can go on at a host without.
    pub(super) fn read(fd: &VcpuFd, efer: u64) -> Result<Option<Self>, StateError> {
        Self::of(&get(fd)?, efer)
    }

    /// That in what KVM gives.
    fn of(buffer: &KvmNestedStateBuffer, efer: u64) -> Result<Option<Self>, StateError> {
        if u32::from(buffer.format) != KVM_STATE_NESTED_FORMAT_SVM {
            // SAFETY: each bit pattern is a valid header of VMX, and KVM says that it has written one.
            let is_on = (unsafe { buffer.hdr.vmx.vmxon_pa }) != u64::MAX;
            return if is_on { Err(StateError::refused(KIND, VMX)) } else { Ok(None) };
        }
        let is_on = efer & EFER_SVME != 0;
        let len = usize::try_from(buffer.size).unwrap_or(usize::MAX);
        let bytes = buffer.as_bytes().get(..len).filter(|bytes| bytes.len() >= HEADER);
        let bytes =
            bytes.ok_or_else(|| StateError::refused(KIND, "KVM gives a nested state of no known length"))?;
        Ok(is_on.then(|| NestedState(bytes.to_vec())))
    }

    /// Gives it to a vCPU of a host whose KVM takes `most` bytes of it, and none if that is 0.
    pub(super) fn write(&self, fd: &VcpuFd, most: usize) -> Result<(), StateError> {
        if most == 0 {
            return Err(lacks());
        }
        let buffer = self.checked(get(fd)?.format.into(), most)?;
        fd.set_nested_state(&buffer).map_err(refused("take the state of its guest's guests"))
    }

    /// What KVM can be given, on a host that has them in `format`.
    fn checked(&self, format: u32, most: usize) -> Result<KvmNestedStateBuffer, StateError> {
        let NestedState(bytes) = self;
        let mut buffer = KvmNestedStateBuffer::empty();
        let damaged = |what: &str| StateError::damaged(KIND, format!("{what} of its guest's guests"));
        if bytes.len() < HEADER {
            return Err(damaged("a short state"));
        }
        let room = buffer.as_mut_bytes().get_mut(..bytes.len());
        room.ok_or_else(|| damaged("too long a state"))?.copy_from_slice(bytes);
        if usize::try_from(buffer.size) != Ok(bytes.len()) {
            return Err(damaged("another length than the state"));
        }
        if u32::from(buffer.flags) & !FLAGS != 0 {
            return Err(damaged("an unknown flag"));
        }
        match u32::from(buffer.format) {
            // Nobody has saved another one.
            KVM_STATE_NESTED_FORMAT_SVM if format == KVM_STATE_NESTED_FORMAT_SVM => {}
            KVM_STATE_NESTED_FORMAT_SVM | KVM_STATE_NESTED_FORMAT_VMX => return Err(lacks()),
            _ => return Err(damaged("an unknown format")),
        }
        if bytes.len() > most { Err(lacks()) } else { Ok(buffer) }
    }
}

fn get(fd: &VcpuFd) -> Result<KvmNestedStateBuffer, StateError> {
    let mut buffer = KvmNestedStateBuffer::empty();
    fd.nested_state(&mut buffer).map_err(refused("give the state of its guest's guests"))?;
    Ok(buffer)
}

/// Why a guest that has switched VMX on is not saved.
const VMX: &str = "its guest runs virtual machines of its own, which can be saved on AMD processors only; end them in the guest \
                   and unload what runs them there (`rmmod kvm_intel`)";

fn lacks() -> StateError {
    let reason = "its guest runs virtual machines of its own, which this host's KVM does not offer (an AMD processor, and parameter `nested` of kvm_amd)";
    StateError::host(KIND, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state of `len` bytes with this header.
    fn state(len: usize, flags: u32, format: u32, size: usize) -> NestedState {
        let mut bytes = vec![0; len];
        // The two halves of the first word, then the length.
        let header = [flags | format << 16, size.try_into().unwrap()].map(u32::to_le_bytes).concat();
        bytes.iter_mut().zip(header).for_each(|(to, from)| *to = from);
        NestedState(bytes)
    }

    #[test]
    fn states_that_are_not_as_long_as_they_say_or_of_another_processor_are_refused() {
        const SVM: u32 = KVM_STATE_NESTED_FORMAT_SVM;
        const VMX: u32 = KVM_STATE_NESTED_FORMAT_VMX;
        const FULL: usize = HEADER + 4096;
        let most = size_of::<KvmNestedStateBuffer>();
        let said = |state: NestedState, most| {
            state.checked(SVM, most).map(|_| ()).map_err(|error| error.to_string())
        };
        let inside = KVM_STATE_NESTED_GUEST_MODE | KVM_STATE_NESTED_RUN_PENDING;
        assert_eq!(said(state(HEADER, KVM_STATE_NESTED_GIF_SET, SVM, HEADER), most), Ok(()));
        assert_eq!(said(state(FULL, inside, SVM, FULL), FULL), Ok(()));
        for (len, flags, format, size, what) in [
            (0, 0, SVM, 0, "a short state"),
            (HEADER - 1, 0, SVM, HEADER - 1, "a short state"),
            (most + 1, 0, SVM, most + 1, "too long a state"),
            (HEADER, inside, SVM, FULL, "another length"),
            (FULL, inside, SVM, HEADER, "another length"),
            (FULL, 1 << 9, SVM, FULL, "an unknown flag"),
            (FULL, 1 << 2, SVM, FULL, "an unknown flag"),
            (FULL, inside, 2, FULL, "an unknown format"),
        ] {
            let error = said(state(len, flags, format, size), most).unwrap_err();
            assert!(error.contains(what) && error.contains("is damaged"), "{what}: {error}");
        }
        for (other, most) in
            [(state(FULL, inside, VMX, FULL), most), (state(FULL, inside, SVM, FULL), FULL - 1)]
        {
            let error = said(other, most).unwrap_err();
            assert!(
                error.contains("virtual machines of its own") && error.contains("restore it on a host"),
                "{error}"
            );
        }
        // On Intel there is nobody to take one.
        for format in [SVM, VMX] {
            assert!(state(FULL, inside, format, FULL).checked(VMX, most).is_err());
        }
        let text = serde_json::to_string(&state(HEADER, 0, SVM, HEADER)).unwrap();
        assert_eq!(serde_json::from_str::<NestedState>(&text).unwrap(), state(HEADER, 0, SVM, HEADER));
    }
    #[test]
    fn guest_that_has_switched_vmx_on_is_refused_when_it_is_saved() {
        let mut buffer = KvmNestedStateBuffer::empty();
        buffer.format = u16::try_from(KVM_STATE_NESTED_FORMAT_VMX).unwrap();
        buffer.size = u32::try_from(HEADER).unwrap();
        buffer.hdr.vmx.vmxon_pa = u64::MAX;
        assert_eq!(NestedState::of(&buffer, 0).unwrap(), None);
        buffer.hdr.vmx.vmxon_pa = 0x1000;
        let error = NestedState::of(&buffer, 0).unwrap_err().to_string();
        assert!(
            error.contains("virtual machines of its own") && error.contains("rmmod kvm_intel"),
            "{error}"
        );
        buffer.format = u16::try_from(KVM_STATE_NESTED_FORMAT_SVM).unwrap();
        assert_eq!(NestedState::of(&buffer, 0).unwrap(), None);
        assert!(NestedState::of(&buffer, EFER_SVME).unwrap().is_some());
    }
}
