//! The machine's dealings with /dev/kvm: the only room that says ioctl to KVM.
//!
//! Registers, CPUID, memory slots and interrupt routes come in as plain values and leave as plain values; nothing
//! outside sees a type of the KVM crates. A vCPU is a function from [`vcpu::Entry`] to [`vcpu::Exit`].
#![allow(
    unsafe_code,
    reason = "KVM hands out memory mappings and takes host addresses: one of the two unsafe rooms"
)]

mod baseline;
mod clocks;
mod cpuid;
mod decode;
pub(crate) mod irq;
pub(crate) mod kick;
pub(crate) mod memory;
mod msrs;
mod nested;
mod posture;
mod probe;
mod raw;
mod regs;
pub(crate) mod vcpu;
mod vcpu_state;
mod vm;
mod vm_state;

pub(crate) use baseline::CpuBaseline;
pub(crate) use posture::Posture;
pub(crate) use probe::{KvmFacts, probe};
pub(crate) use vcpu_state::saved_cpu;
pub(crate) use vm::{KvmDevice, PAGE, Vcpus, Vm};

use std::io;

/// A call to KVM that the host refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvmError {
    /// /dev/kvm itself could not be opened.
    #[error("cannot open /dev/kvm: {source}{}", open_cure(.source))]
    Open {
        /// What the host said.
        source: io::Error,
    },
    /// Not the KVM api that every kernel since 2.6.22 has.
    #[error("/dev/kvm speaks api version {0}, and only version 12 is known (KVM api §4.1)")]
    ApiVersion(i32),
    /// The kernel's KVM is too old or too different.
    #[error("this host's KVM lacks {0}; a newer kernel has it")]
    Missing(&'static str),
    /// More vCPUs than KVM takes.
    #[error("{asked} vCPUs were asked for and this host's KVM takes at most {max}; use --cpus {max} or less")]
    TooManyCpus {
        /// vCPUs in the spec.
        asked: u32,
        /// KVM_CAP_MAX_VCPUS.
        max: u32,
    },
    /// Some call failed.
    #[error("KVM refused to {what}: {source}")]
    Call {
        /// What was asked of it, in words.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

fn open_cure(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => {
            ". Load the module (`sudo modprobe kvm_intel` or `sudo modprobe kvm_amd`); if that fails, switch \
             virtualization on in the firmware, or nested virtualization in the host of this machine"
        }
        io::ErrorKind::PermissionDenied => {
            ". Join the group that owns it (`sudo usermod -aG kvm $USER`) and log in again"
        }
        _ => "",
    }
}

/// Turns an errno of the KVM crates into a [`KvmError::Call`].
fn call(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError::Call { what, source: io::Error::from_raw_os_error(error.errno()) }
}
