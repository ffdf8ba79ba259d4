//! Making a vCPU thread leave the guest.
//!
//! The kick is a real-time signal sent to that one thread. The thread keeps the signal blocked except inside
//! KVM_RUN (KVM api §4.17, KVM_SET_SIGNAL_MASK), so it is never delivered: it only ends KVM_RUN, stays pending, and
//! is then taken off. No signal handler is installed, so a program that embeds the library keeps its own. A signal of that
//! number sent to the whole process would be taken off, too: the crate's documentation says so.
//! A kick that comes before KVM_RUN is entered is not lost: KVM_RUN then returns at once.

use std::io;
use std::mem;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

use vmm_sys_util::{ioctl::ioctl_with_ref, ioctl_iow_nr};

use super::KvmError;
use super::vcpu::Vcpu;

/// `struct kvm_signal_mask` with the kernel's signal set of 64 bits.
#[repr(C)]
struct SignalMask {
    len: u32,
    set: [u8; 8],
}

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, kvm_bindings::KVMIO, 0x8b, u32);

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

fn kick_set() -> libc::sigset_t {
    // SAFETY: an all-zero sigset_t is a valid object, and sigemptyset and sigaddset only write to it.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, kick_signal());
        set
    }
}

/// Prepares the calling thread to be the one that runs `vcpu`.
pub(crate) fn accept_kicks(vcpu: &Vcpu) -> Result<(), KvmError> {
    let failed = |source| KvmError::Call { what: "let a vCPU be interrupted", source };
    // SAFETY: an all-zero sigset_t is valid and is only written.
    let mut before: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: both sets are valid; this changes the mask of the calling thread alone, a thread of ours.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &kick_set(), &mut before) };
    if error != 0 {
        return Err(failed(io::Error::from_raw_os_error(error)));
    }
    let mut blocked = 0u64;
    for signal in 1..=64 {
        // SAFETY: `before` was filled by the call above.
        if unsafe { libc::sigismember(&before, signal) } == 1 && signal != kick_signal() {
            blocked |= 1 << (signal - 1);
        }
    }
    let mask = SignalMask { len: 8, set: blocked.to_ne_bytes() };
    // SAFETY: `mask` is laid out as KVM reads it, and lives across the call.
    if unsafe { ioctl_with_ref(vcpu.fd(), KVM_SET_SIGNAL_MASK(), &mask) } != 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    Ok(())
}

/// Takes pending kicks off the calling thread; without this KVM_RUN would return at once for ever.
pub(crate) fn take_kicks() {
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both arguments are valid for the call; the information about the signal is not asked for.
    while unsafe { libc::sigtimedwait(&kick_set(), std::ptr::null_mut(), &now) } > 0 {}
}

/// Makes the vCPU thread behind `handle` leave the guest soon. Harmless if it has ended already.
pub(crate) fn kick<T>(handle: &JoinHandle<T>) {
    // SAFETY: a thread that was not joined has a valid pthread_t, and only joining consumes the handle; glibc answers
    // ESRCH, harmlessly, for one that has ended.
    unsafe { libc::pthread_kill(handle.as_pthread_t(), kick_signal()) };
}
