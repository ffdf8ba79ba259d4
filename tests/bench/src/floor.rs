//! The floor: the least that any VMM must do on KVM before a guest's first instruction, one step after the other.
//!
//! Memory slots before the interrupt controller, one vCPU with its CPUID, kernel and initrd read into huge pages,
//! KVM_RUN. No devices, no tables, no threads, no checks: what a VMM takes longer is its own.
//!
//! `floor KERNEL INITRD|none MIB`

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::Kvm;

const HUGE: usize = 2 << 20;
const KERNEL: usize = 16 << 20;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, kernel, initrd, mib] = arguments.as_slice() else { bail!("floor KERNEL INITRD|none MIB") };
    let size = mib.parse::<usize>()? << 20;
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let ram = map(size)?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: size as u64,
        userspace_addr: ram as u64,
    };
    // SAFETY: the memory stays mapped until the process ends.
    unsafe { vm.set_user_memory_region(region)? };
    vm.create_irq_chip()?;
    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    read(kernel, ram, size, KERNEL)?;
    if initrd != "none" {
        let len = std::fs::metadata(initrd)?.len() as usize;
        let at = (size - len) & !4095;
        read(initrd, ram, size, at)?;
    }
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (0x1000, 2);
    vcpu.set_regs(&regs)?;
    vcpu.run()?;
    Ok(())
}

/// Memory at a multiple of 2 MiB, open to huge pages.
fn map(size: usize) -> Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping touches no existing memory.
    let at = unsafe {
        libc::mmap(std::ptr::null_mut(), size + HUGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error()).context("mmap");
    }
    let aligned = (at as usize).next_multiple_of(HUGE);
    // SAFETY: the range is in the new mapping; it is only advice.
    unsafe { libc::madvise(aligned as *mut libc::c_void, size, libc::MADV_HUGEPAGE) };
    Ok(aligned)
}

/// Reads a whole file to `ram + at`.
fn read(path: &str, ram: usize, size: usize, at: usize) -> Result<()> {
    let file = File::open(path).with_context(|| path.to_owned())?;
    let len = file.metadata()?.len() as usize;
    if at + len > size {
        bail!("{path} does not fit");
    }
    let mut done = 0;
    while done < len {
        // SAFETY: `at + len` lies in the mapping of `size` bytes.
        let n = unsafe {
            libc::pread(file.as_raw_fd(), (ram + at + done) as *mut libc::c_void, len - done, done as i64)
        };
        if n <= 0 {
            return Err(std::io::Error::last_os_error()).context("pread");
        }
        done += n as usize;
    }
    Ok(())
}
