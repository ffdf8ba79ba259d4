//! What a vCPU does at the moment: whether it lives, and where.

use super::vcpu::Vcpu;

/// RFLAGS.IF: interrupts are let in.
const INTERRUPTS: u64 = 1 << 9;

/// What a vCPU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Posture {
    /// It runs a program, in ring 3.
    Program,
    /// It runs the kernel.
    Kernel,
    /// It is halted, and an interrupt wakes it.
    Idle,
    /// It is halted with interrupts off, or was never started.
    Halted,
}

impl Vcpu {
    /// What it does, asked by its own thread between two entries. `None` where KVM does not say.
    pub(crate) fn posture(&self) -> Option<Posture> {
        let state = self.fd().get_mp_state().ok()?.mp_state;
        match state {
            kvm_bindings::KVM_MP_STATE_UNINITIALIZED | kvm_bindings::KVM_MP_STATE_INIT_RECEIVED => {
                Some(Posture::Halted)
            }
            kvm_bindings::KVM_MP_STATE_HALTED => {
                let open = self.fd().get_regs().ok()?.rflags & INTERRUPTS != 0;
                Some(if open { Posture::Idle } else { Posture::Halted })
            }
            _ => {
                // The stack segment's privilege level is the processor's (Intel SDM 3A §5.5).
                let ring = self.fd().get_sregs().ok()?.ss.dpl;
                Some(if ring == 3 { Posture::Program } else { Posture::Kernel })
            }
        }
    }
}
