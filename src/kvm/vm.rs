//! One virtual machine: its memory slots, interrupt controller and vCPUs.
//!
//! The order is part of the contract (measured, see ARCHITECTURE.md): registering a memory slot takes microseconds
//! while the VM has neither interrupt controller nor vCPU, and milliseconds afterwards. [`Vm::new`] therefore takes
//! every slot at once, before anything else is made.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::{Arc, OnceLock};

use devices::irq::Irq;
use kvm_bindings::{
    KVM_CAP_PMU_CAPABILITY, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_PMU_CAP_DISABLE, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};
use virtio::dirty::set_bits;

use super::clocks::Clocks;
use super::cpuid::CpuidTemplate;
use super::irq::{MsiRouter, PinIrq};
use super::memory::Slot;
use super::vcpu::Vcpu;
use super::vcpu_state::VcpuHost;
use super::{KvmError, call, msrs};

/// /dev/kvm, open, and what it says of itself: machines that share it ask once.
#[derive(Debug)]
pub(crate) struct KvmDevice {
    pub(super) kvm: Kvm,
    cpuid: OnceLock<CpuidTemplate>,
    msrs: OnceLock<Vec<u32>>,
}

impl KvmDevice {
    pub(crate) fn open() -> Result<Self, KvmError> {
        let kvm = Kvm::new();
        kvm.map(KvmDevice::new)
            .map_err(|error| KvmError::Open { source: std::io::Error::from_raw_os_error(error.errno()) })
    }

    fn new(kvm: Kvm) -> Self {
        KvmDevice { kvm, cpuid: OnceLock::new(), msrs: OnceLock::new() }
    }

    /// Asks now what each machine's vCPUs will need, beside other work: below another hypervisor each leaf of CPUID takes microseconds.
    /// What cannot be had is asked again, and said, when it is needed.
    pub(crate) fn ask_ahead(&self) {
        let _ = (self.cpuid(), self.saved_msrs());
    }

    /// What it supports of CPUID.
    pub(super) fn cpuid(&self) -> Result<CpuidTemplate, KvmError> {
        match self.cpuid.get() {
            Some(known) => Ok(known.clone()),
            None => {
                let supported = CpuidTemplate::supported(&self.kvm)?;
                Ok(self.cpuid.get_or_init(|| supported).clone())
            }
        }
    }

    /// The numbers of all registers that a vCPU's state consists of, in ascending order.
    pub(super) fn saved_msrs(&self) -> Result<&[u32], KvmError> {
        match self.msrs.get() {
            Some(known) => Ok(known),
            None => {
                let listed = msrs::saved_indices(&self.kvm)?;
                Ok(self.msrs.get_or_init(|| listed))
            }
        }
    }
}

impl From<File> for KvmDevice {
    /// /dev/kvm as `file`.
    fn from(file: File) -> Self {
        // SAFETY: an open descriptor that nobody else owns.
        KvmDevice::new(unsafe { Kvm::from_raw_fd(file.into_raw_fd()) })
    }
}

/// A KVM virtual machine.
#[derive(Debug)]
pub(crate) struct Vm {
    device: Arc<KvmDevice>,
    fd: Arc<VmFd>,
    /// The memory slots as KVM has them; the index is the slot's number.
    slots: Vec<Slot>,
    clocks: Clocks,
}

/// The vCPUs of a VM, and what they have in common.
#[derive(Debug)]
pub(crate) struct Vcpus {
    pub(crate) vcpus: Vec<Vcpu>,
    /// Bits of guest physical address.
    pub(crate) physical_address_bits: u32,
}

impl Vm {
    /// Makes the VM with all its memory.
    ///
    /// The caller keeps the memory behind `slots` mapped for as long as the VM lives.
    pub(crate) fn new(device: &Arc<KvmDevice>, slots: &[Slot]) -> Result<Self, KvmError> {
        let fd = create_vm(&device.kvm).map_err(call("make a virtual machine"))?;
        for (number, slot) in (0u32..).zip(slots) {
            let what = if slot.read_only {
                "take read-only memory, which PCI configuration space needs (Linux 3.7 or later has it on Intel and AMD)"
            } else {
                "take the guest's memory"
            };
            // SAFETY: the caller keeps the host memory mapped while the VM lives, and slots do not overlap: the guest
            // memory map is one table.
            unsafe { fd.set_user_memory_region(region(number, slot, false)) }.map_err(call(what))?;
        }
        Ok(Vm { device: device.clone(), fd: Arc::new(fd), slots: slots.to_vec(), clocks: Clocks::default() })
    }

    /// Adds the interrupt controller and the vCPUs; vCPU `n` has the APIC id `n`.
    pub(crate) fn add_vcpus(&self, cpus: u32) -> Result<Vcpus, KvmError> {
        let mut cpuid = self.device.cpuid()?.shaped(cpus)?;
        if cpuid.is_intel() {
            // Only Intel hosts without "unrestricted guest" use it, and there it must be set before any vCPU.
            let address = usize::try_from(boot::layout::KVM_TSS).map_err(|_| KvmError::Missing("64 bits"))?;
            self.fd.set_tss_address(address).map_err(call("take the address of its task state segment"))?;
        }
        if cpus > 1 {
            self.check_cpus(cpus)?;
        }
        if cpuid.is_amd() {
            self.disable_counters();
        }
        self.fd.create_irq_chip().map_err(call("make the interrupt controller"))?;
        let host = Arc::new(VcpuHost::new(self.device.clone(), self.fd.clone(), self.clocks.clone()));
        let mut tsc_khz = None;
        let make = |id| {
            let fd = self.fd.create_vcpu(u64::from(id)).map_err(call("make a vCPU"))?;
            // All have the same frequency. 0 and an error both say that KVM does not know it.
            if let (0, Ok(khz @ 1..)) = (id, fd.get_tsc_khz()) {
                cpuid.set_frequencies(khz)?;
                tsc_khz = Some(khz);
            }
            Vcpu::new(id, fd, &mut cpuid, tsc_khz, host.clone())
        };
        let vcpus = (0..cpus).map(make).collect::<Result<Vec<_>, _>>()?;
        Ok(Vcpus { vcpus, physical_address_bits: cpuid.physical_address_bits() })
    }

    /// Has KVM log from now on which pages of writable memory the guest writes, or no longer.
    pub(crate) fn log_dirty(&self, on: bool) -> Result<(), KvmError> {
        for (number, slot) in (0u32..).zip(&self.slots).filter(|(_, slot)| !slot.read_only) {
            // SAFETY: the same memory as in `Vm::new`, which the caller keeps mapped; only the flags differ.
            unsafe { self.fd.set_user_memory_region(region(number, slot, on)) }
                .map_err(call("change what it logs of the guest's memory"))?;
        }
        Ok(())
    }

    /// Calls `page` with the guest address of each page that the guest has written since the last call, or since the log was
    /// switched on.
    pub(crate) fn take_dirty(&self, mut page: impl FnMut(u64)) -> Result<(), KvmError> {
        for (number, slot) in (0u32..).zip(&self.slots).filter(|(_, slot)| !slot.read_only) {
            let len = usize::try_from(slot.len).map_err(|_| KvmError::Missing("64 bits"))?;
            let words = self.fd.get_dirty_log(number, len).map_err(call("give its log of written pages"))?;
            for (word, first) in words.iter().zip((slot.guest..).step_by(WORD_BYTES)) {
                set_bits(*word).for_each(|bit| page(first + bit * PAGE));
            }
        }
        Ok(())
    }

    pub(super) fn fd(&self) -> &Arc<VmFd> {
        &self.fd
    }

    pub(super) fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    /// An edge-triggered interrupt on a pin of the I/O APIC.
    pub(crate) fn pin_irq(&self, pin: u32) -> Arc<dyn Irq> {
        Arc::new(PinIrq::new(&self.fd, pin))
    }

    /// The source of message-signalled interrupts for this VM's devices: eventfds with numbers below `most`, and calls where there is none.
    pub(crate) fn msi(&self, most: usize) -> super::irq::KvmMsi {
        super::irq::KvmMsi(MsiRouter::new(self.fd.clone(), most))
    }

    /// Where doorbells of this VM's devices go.
    pub(crate) fn doorbells(&self) -> super::irq::KvmDoorbells {
        super::irq::KvmDoorbells(self.fd.clone())
    }

    /// Asked only for several vCPUs: one always fits, and each question is a system call on the way to the guest.
    fn check_cpus(&self, asked: u32) -> Result<(), KvmError> {
        let max = u32::try_from(self.device.kvm.get_max_vcpus()).unwrap_or(u32::MAX);
        if asked > max { Err(KvmError::TooManyCpus { asked, max }) } else { Ok(()) }
    }

    /// Takes the performance counters away. AMD's old ones are there whatever CPUID says, and a Linux guest would run its
    /// NMI watchdog on them. Before Linux 5.18 KVM cannot (KVM api §7.33).
    fn disable_counters(&self) {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_PMU_CAPABILITY, ..Default::default() };
        cap.args[0] = u64::from(KVM_PMU_CAP_DISABLE);
        if let Err(error) = self.fd.enable_cap(&cap) {
            log::debug!("KVM_CAP_PMU_CAPABILITY: {error}");
        }
    }
}

/// Bytes of a page, as KVM's log counts them.
pub(crate) const PAGE: u64 = 4096;
/// Bytes of memory for which a word of the log has the bits.
const WORD_BYTES: usize = 64 * 4096;

/// Slot `number` as KVM takes it.
fn region(number: u32, slot: &Slot, log: bool) -> kvm_userspace_memory_region {
    let read_only = if slot.read_only { KVM_MEM_READONLY } else { 0 };
    kvm_userspace_memory_region {
        slot: number,
        flags: read_only | if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
        guest_phys_addr: slot.guest,
        memory_size: slot.len,
        userspace_addr: slot.host,
    }
}

/// Makes a VM. A signal that comes meanwhile ends the call with EINTR even where it is blocked, as the kernel looks for
/// signals while it registers its MMU notifier, and on busy hosts without any signal.
pub(super) fn create_vm(kvm: &Kvm) -> Result<VmFd, kvm_ioctls::Error> {
    until_uninterrupted(|| kvm.create_vm())
}

fn until_uninterrupted<T>(
    mut call: impl FnMut() -> Result<T, kvm_ioctls::Error>,
) -> Result<T, kvm_ioctls::Error> {
    loop {
        match call() {
            Err(error) if error.errno() == libc::EINTR => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_call_is_made_again_and_another_error_is_not() {
        let mut results = vec![Ok(7), Err(libc::EINTR), Err(libc::EINTR)];
        let mut call = || results.pop().unwrap().map_err(kvm_ioctls::Error::new);
        assert_eq!(until_uninterrupted(&mut call).unwrap(), 7);
        assert!(results.is_empty(), "two interruptions, then success");
        let mut results = vec![Ok(7), Err(libc::ENOMEM)];
        let mut call = || results.pop().unwrap().map_err(kvm_ioctls::Error::new);
        assert_eq!(until_uninterrupted(&mut call).unwrap_err().errno(), libc::ENOMEM);
        assert_eq!(results, [Ok(7)], "not asked again");
    }
}
