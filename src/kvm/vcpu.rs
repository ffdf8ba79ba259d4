//! One vCPU as a function from [`Entry`] to [`Exit`].

use std::fmt;
use std::io;
use std::sync::Arc;

use kvm_ioctls::VcpuFd;

use super::vcpu_state::VcpuHost;
use super::{KvmError, call, cpuid::CpuidTemplate, decode, msrs, regs};
use boot::entry::CpuState;

/// How to enter the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Run until something happens.
    Run,
    /// Let KVM finish the port or memory access of the last exit, run no guest instruction, and come back. KVM
    /// completes an access only at the next entry, so this comes before the vCPU's state is read or thrown away.
    Complete,
}

/// Why the guest was left.
#[derive(Debug)]
pub(crate) enum Exit<'a> {
    /// `in`, or `ins` of several elements: `data` is a whole number of `width` bytes.
    PortIn { port: u16, width: usize, data: &'a mut [u8] },
    /// `out`, or `outs` of several elements.
    PortOut { port: u16, width: usize, data: &'a [u8] },
    /// A load from an address with no memory behind it.
    MmioRead { address: u64, data: &'a mut [u8] },
    /// A store to an address with no writable memory behind it.
    MmioWrite { address: u64, data: &'a [u8] },
    /// Somebody kicked this thread, or KVM wants another try.
    Interrupted,
    /// The guest cannot go on.
    Unhandled(Unhandled),
}

/// Exits that end a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unhandled {
    TripleFault,
    /// KVM could not emulate an instruction: these bytes, where KVM says.
    Emulation(Vec<u8>),
    /// Another KVM_EXIT_INTERNAL_ERROR suberror.
    InternalError(u32),
    /// The processor refused the guest's state.
    FailedEntry(u64),
    /// KVM could not get at guest memory.
    MemoryFault(u64),
    /// HLT that KVM did not keep to itself, though it has the interrupt controller.
    Halted,
    /// KVM_EXIT_SYSTEM_EVENT of this type.
    SystemEvent(u32),
    /// An exit reason that this program does not know.
    Unknown(u32),
    /// KVM_RUN itself failed.
    Run(i32),
}

impl fmt::Display for Unhandled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unhandled::TripleFault => {
                write!(
                    f,
                    "triple fault: an exception came up while the guest could not even handle a double fault"
                )
            }
            Unhandled::Emulation(bytes) => {
                write!(f, "KVM had to emulate an instruction and could not")?;
                if !bytes.is_empty() {
                    write!(f, " (bytes")?;
                    bytes.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
                    write!(f, ")")?;
                }
                write!(
                    f,
                    "; where this host's KVM is kvm_pvm or has no unrestricted guest mode, a host with VMX or SVM \
                     runs it (`minivmm doctor` tells)"
                )
            }
            Unhandled::InternalError(suberror) => {
                write!(f, "KVM reported internal error {suberror}; the host's kernel log may say more")
            }
            Unhandled::FailedEntry(reason) => {
                write!(f, "the processor refused to enter the guest, hardware reason {reason:#x}")
            }
            Unhandled::MemoryFault(address) => write!(
                f,
                "KVM could not reach guest memory at {address:#x}; the host may have run out of memory"
            ),
            Unhandled::Halted => write!(f, "the guest halted with nothing that could wake it"),
            Unhandled::SystemEvent(kind) => write!(f, "KVM reported system event {kind}"),
            Unhandled::Unknown(reason) => {
                write!(
                    f,
                    "KVM left the guest for reason {reason}, which this version of minivmm does not know"
                )
            }
            Unhandled::Run(libc::EHWPOISON) => write!(
                f,
                "the host found guest memory broken (an uncorrected error of its RAM); its kernel log says more"
            ),
            Unhandled::Run(libc::EFAULT | libc::ENOMEM) => write!(
                f,
                "KVM could not reach guest memory; the host, or the control group of this process, may have run out of memory"
            ),
            Unhandled::Run(errno) => write!(
                f,
                "KVM_RUN failed: {}; the host's kernel log may say more",
                io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

/// One virtual CPU. It may be made on one thread and run on another.
#[derive(Debug)]
pub(crate) struct Vcpu {
    id: u32,
    fd: VcpuFd,
    /// Of its TSC, where KVM says it. Each question to a vCPU has KVM load it, so that this one is asked once.
    pub(super) tsc_khz: Option<u32>,
    host: Arc<VcpuHost>,
}

impl Vcpu {
    pub(super) fn new(
        id: u32,
        fd: VcpuFd,
        cpuid: &mut CpuidTemplate,
        tsc_khz: Option<u32>,
        host: Arc<VcpuHost>,
    ) -> Result<Self, KvmError> {
        fd.set_cpuid2(cpuid.for_vcpu(id)).map_err(call("take the vCPU's CPUID"))?;
        Ok(Vcpu { id, fd, tsc_khz, host })
    }

    /// Sets the registers that firmware would have set before a kernel boots.
    pub(crate) fn set_firmware_msrs(&self) -> Result<(), KvmError> {
        let msrs = msrs::boot_msrs()?;
        let written = self.fd.set_msrs(&msrs).map_err(call("take the vCPU's MSRs"))?;
        if written == msrs.as_slice().len() {
            Ok(())
        } else {
            Err(KvmError::Missing("a model-specific register that every x86 processor has"))
        }
    }

    /// The APIC id, which is the vCPU's number as well.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Puts the boot processor at the kernel's entry. The others wait for INIT and SIPI as KVM made them.
    pub(crate) fn set_entry(&self, state: &CpuState) -> Result<(), KvmError> {
        let mut sregs = self.fd.get_sregs().map_err(call("give the vCPU's system registers"))?;
        regs::fill_sregs(state, &mut sregs);
        self.fd.set_sregs(&sregs).map_err(call("take the vCPU's system registers"))?;
        self.fd.set_regs(&regs::general(state)).map_err(call("take the vCPU's registers"))
    }

    /// Tells the guest, when it next looks at its clock, that time has passed in which it did not run: it shall not take
    /// that for a lockup (KVM api §4.70, KVM_KVMCLOCK_CTRL).
    pub(crate) fn was_stopped(&self) {
        if let Err(error) = self.fd.kvmclock_ctrl() {
            // EINVAL: it has no such clock, so it does not measure itself by it.
            log::debug!("vcpu{}: KVM_KVMCLOCK_CTRL: {error}", self.id);
        }
    }

    /// Runs the guest until it needs something.
    pub(crate) fn enter(&mut self, entry: Entry) -> Exit<'_> {
        self.fd.set_kvm_immediate_exit(u8::from(entry == Entry::Complete));
        let failure = self.fd.run().err().map(|error| error.errno());
        decode::result(failure, self.fd.get_kvm_run())
    }

    /// Where the guest stands, for error messages.
    pub(crate) fn rip(&self) -> Option<u64> {
        self.fd.get_regs().ok().map(|regs| regs.rip)
    }

    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    pub(super) fn host(&self) -> &VcpuHost {
        &self.host
    }
}
