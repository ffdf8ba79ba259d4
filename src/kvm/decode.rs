//! What KVM left in `struct kvm_run` when it returned, read once and given a name (KVM api §5).

use kvm_bindings::*;

use super::vcpu::{Exit, Unhandled};

/// What KVM_RUN came back with: the errno if it failed, and what it left in `run`.
pub(super) fn result(failure: Option<i32>, run: &mut kvm_run) -> Exit<'_> {
    match failure {
        None => decode(run),
        // EINTR: a kick. EAGAIN: an application processor was woken by INIT or SIPI and has to be entered again.
        Some(libc::EINTR | libc::EAGAIN) => Exit::Interrupted,
        // The one exit that KVM reports with an error and in `kvm_run` at once (KVM api §5, KVM_EXIT_MEMORY_FAULT).
        Some(libc::EFAULT | libc::EHWPOISON) if run.exit_reason == KVM_EXIT_MEMORY_FAULT => decode(run),
        Some(errno) => Exit::Unhandled(Unhandled::Run(errno)),
    }
}

/// Reads the exit out of `run`. Call it only after KVM_RUN returned 0, or failed with a memory fault that stands there.
fn decode(run: &mut kvm_run) -> Exit<'_> {
    match run.exit_reason {
        KVM_EXIT_IO => port(run),
        KVM_EXIT_MMIO => {
            // SAFETY: the exit reason says which field of the union KVM filled.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let len = (mmio.len as usize).min(mmio.data.len());
            let (address, write) = (mmio.phys_addr, mmio.is_write != 0);
            let Some(data) = mmio.data.get_mut(..len) else { return Exit::Interrupted };
            if write { Exit::MmioWrite { address, data } } else { Exit::MmioRead { address, data } }
        }
        KVM_EXIT_INTR => Exit::Interrupted,
        KVM_EXIT_HLT => Exit::Unhandled(Unhandled::Halted),
        KVM_EXIT_SHUTDOWN => Exit::Unhandled(Unhandled::TripleFault),
        KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: as above.
            let event = unsafe { &run.__bindgen_anon_1.system_event };
            Exit::Unhandled(Unhandled::SystemEvent(event.type_))
        }
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: as above.
            let entry = unsafe { &run.__bindgen_anon_1.fail_entry };
            Exit::Unhandled(Unhandled::FailedEntry(entry.hardware_entry_failure_reason))
        }
        KVM_EXIT_INTERNAL_ERROR => Exit::Unhandled(internal_error(run)),
        KVM_EXIT_MEMORY_FAULT => {
            // SAFETY: as above.
            let fault = unsafe { &run.__bindgen_anon_1.memory_fault };
            Exit::Unhandled(Unhandled::MemoryFault(fault.gpa))
        }
        reason => Exit::Unhandled(Unhandled::Unknown(reason)),
    }
}

fn port(run: &mut kvm_run) -> Exit<'_> {
    // SAFETY: the exit reason says which field of the union KVM filled.
    let io = unsafe { run.__bindgen_anon_1.io };
    let width = usize::from(io.size);
    let len = width.saturating_mul(io.count as usize);
    let base = std::ptr::from_mut(run).cast::<u8>();
    #[allow(clippy::cast_possible_truncation, reason = "an offset into a mapping of three pages")]
    let offset = io.data_offset as usize;
    // SAFETY: KVM says where in its mapping of `kvm_run` (which outlives `run`) the data lies, `len` bytes of it, in
    // a page of its own behind the structure.
    let data = unsafe { std::slice::from_raw_parts_mut(base.add(offset), len) };
    if u32::from(io.direction) == KVM_EXIT_IO_IN {
        Exit::PortIn { port: io.port, width, data }
    } else {
        Exit::PortOut { port: io.port, width, data }
    }
}

fn internal_error(run: &kvm_run) -> Unhandled {
    // SAFETY: the exit reason says which field of the union KVM filled.
    let error = unsafe { &run.__bindgen_anon_1.internal };
    if error.suberror != KVM_INTERNAL_ERROR_EMULATION {
        return Unhandled::InternalError(error.suberror);
    }
    // SAFETY: the suberror says that this view of the same words is the one KVM filled (KVM api §5, `emulation_failure`).
    let failure = unsafe { &run.__bindgen_anon_1.emulation_failure };
    let has_bytes = failure.ndata > 1
        && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
    let mut instruction = Vec::new();
    if has_bytes {
        // SAFETY: the flag says that KVM filled the instruction bytes.
        let insn = unsafe { &failure.__bindgen_anon_1.__bindgen_anon_1 };
        let len = usize::from(insn.insn_size).min(insn.insn_bytes.len());
        instruction.extend(insn.insn_bytes.iter().take(len));
    }
    Unhandled::Emulation(instruction)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel leaves it: the reason, and the address of a memory fault.
    fn run(reason: u32) -> kvm_run {
        let mut run = kvm_run { exit_reason: reason, ..Default::default() };
        run.__bindgen_anon_1.memory_fault.gpa = 0x1234_5000;
        run
    }

    fn unhandled(failure: Option<i32>, reason: u32) -> Unhandled {
        match result(failure, &mut run(reason)) {
            Exit::Unhandled(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_memory_fault_comes_with_an_error_and_names_its_address() {
        for errno in [libc::EFAULT, libc::EHWPOISON] {
            let why = unhandled(Some(errno), KVM_EXIT_MEMORY_FAULT);
            assert_eq!(why, Unhandled::MemoryFault(0x1234_5000));
            assert!(why.to_string().contains("guest memory at 0x12345000"), "{why}");
        }
    }

    #[test]
    fn what_an_earlier_exit_left_there_is_not_this_failures_reason() {
        for (errno, said) in [
            (libc::EFAULT, "may have run out of memory"),
            (libc::ENOMEM, "may have run out of memory"),
            (libc::EHWPOISON, "uncorrected error"),
            (libc::EINVAL, "KVM_RUN failed: Invalid argument"),
        ] {
            let why = unhandled(Some(errno), KVM_EXIT_HLT);
            assert_eq!(why, Unhandled::Run(errno));
            assert!(why.to_string().contains(said), "{why}");
        }
        // Nor is a memory fault that stands there the reason of an error that brings none.
        assert_eq!(unhandled(Some(libc::EINVAL), KVM_EXIT_MEMORY_FAULT), Unhandled::Run(libc::EINVAL));
        assert_eq!(unhandled(None, KVM_EXIT_SHUTDOWN), Unhandled::TripleFault);
    }

    #[test]
    fn a_kick_is_no_exit_whatever_stands_there() {
        for errno in [libc::EINTR, libc::EAGAIN] {
            assert!(matches!(result(Some(errno), &mut run(KVM_EXIT_SHUTDOWN)), Exit::Interrupted));
        }
    }
}
