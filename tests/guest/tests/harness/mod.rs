//! A machine with just what the tiny guests need, so that they are tested before, and without, the product: memory,
//! KVM's interrupt controllers, COM1, the power ports, a clock that stands still and one PCI function with MSI-X.

mod devices;
mod entry;
mod pci;

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use tiny_guest::Guest;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vm_superio::Serial;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use devices::{Devices, Edge, Output};

/// 4 MiB, the least that guests are promised.
const MEMORY: usize = 4 << 20;
/// A guest that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(240);

/// How a run ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    PowerOff,
    Reset,
    TripleFault,
    Panicked,
    /// Still running when the test had seen what it waited for.
    Stopped,
    Failed(String),
}

/// What a run left.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) end: End,
    pub(crate) output: String,
    /// Port and memory writes that no device took.
    pub(crate) ignored_writes: usize,
}

/// A machine to be run once.
#[derive(Default)]
pub(crate) struct Machine {
    pub(crate) cpus: usize,
    pub(crate) cmdline: &'static str,
    pub(crate) input: Vec<u8>,
    pub(crate) press_power_button: bool,
    pub(crate) clock: bool,
    pub(crate) msix: bool,
    pub(crate) pvpanic_returns: bool,
    /// Stop the machine when it has printed this.
    pub(crate) stop_after: Option<&'static str>,
}

extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Machine {
    pub(crate) fn run(&self, guest: Guest) -> Outcome {
        register_signal_handler(SIGRTMIN(), nothing).unwrap();
        let kvm = Kvm::new().expect("/dev/kvm");
        let vm = Arc::new(kvm.create_vm().unwrap());
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        add_memory(&vm, &memory);
        vm.create_irq_chip().unwrap();
        let (com1, button) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
        vm.register_irqfd(&com1, 4).unwrap();
        vm.register_irqfd(&button, 9).unwrap();

        let output = Output::default();
        let devices = Arc::new(Devices {
            vm: vm.clone(),
            serial: Mutex::new(Serial::new(Edge(com1), output.clone())),
            cmos_index: Mutex::default(),
            clock: self.clock,
            pvpanic_returns: self.pvpanic_returns,
            function: self.msix.then(Mutex::default),
            ignored_writes: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let vcpus = self.vcpus(&kvm, &vm, &memory, guest);
        let (sender, ends) = mpsc::channel();
        let threads: Vec<_> = vcpus
            .into_iter()
            .map(|vcpu| {
                let (devices, sender) = (devices.clone(), sender.clone());
                thread::spawn(move || sender.send(run_vcpu(vcpu, &devices)))
            })
            .collect();
        let end = self.wait(&ends, &devices, &output, &button);
        devices.stop.store(true, Ordering::SeqCst);
        for thread in threads {
            // Once is not enough: the signal may come before KVM_RUN.
            while !thread.is_finished() {
                let _ = thread.kill(SIGRTMIN());
                thread::sleep(Duration::from_millis(1));
            }
        }
        let ignored_writes = *devices.ignored_writes.lock().unwrap();
        Outcome { end, output: output.text(), ignored_writes }
    }

    fn vcpus(&self, kvm: &Kvm, vm: &VmFd, memory: &GuestMemoryMmap, guest: Guest) -> Vec<VcpuFd> {
        let mut kernel = tempfile(&guest.elf());
        let loaded = Elf::load(memory, None, &mut kernel, None).unwrap();
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let vcpus: Vec<_> = (0..self.cpus.max(1)).map(|id| vm.create_vcpu(id as u64).unwrap()).collect();
        for (id, vcpu) in vcpus.iter().enumerate() {
            let mut cpuid = cpuid.clone();
            for entry in cpuid.as_mut_slice() {
                match entry.function {
                    1 => {
                        entry.ebx = entry.ebx & 0x00ff_ffff | (id as u32) << 24;
                        entry.ecx |= 1 << 21 | 1 << 31; // x2APIC, hypervisor
                    }
                    0xb => entry.edx = id as u32,
                    _ => {}
                }
            }
            vcpu.set_cpuid2(&cpuid).unwrap();
        }
        match loaded.pvh_boot_cap {
            PvhBootCapability::PvhEntryPresent(entry) => {
                assert_eq!(guest, Guest::Pvh);
                entry::pvh(&vcpus[0], memory, entry, self.cmdline);
            }
            _ => entry::long_mode(&vcpus[0], memory, loaded.kernel_load.raw_value(), self.cmdline),
        }
        vcpus
    }

    /// Plays the outside world until the machine ends.
    fn wait(&self, ends: &mpsc::Receiver<End>, devices: &Devices, output: &Output, button: &EventFd) -> End {
        let start = Instant::now();
        let mut input = self.input.as_slice();
        let mut pressed = !self.press_power_button;
        loop {
            match ends.recv_timeout(Duration::from_millis(1)) {
                Ok(end) => return end,
                Err(_) if start.elapsed() > PATIENCE => return End::Failed("it hangs".into()),
                Err(_) => {}
            }
            let text = output.text();
            if self.stop_after.is_some_and(|wanted| text.contains(wanted)) {
                return End::Stopped;
            }
            if !text.contains("ready\n") {
                continue;
            }
            if !pressed {
                button.write(1).unwrap();
                pressed = true;
            }
            let mut serial = devices.serial.lock().unwrap();
            let room = serial.fifo_capacity().min(input.len());
            if room > 0 {
                let taken = serial.enqueue_raw_bytes(&input[..room]).unwrap();
                input = &input[taken..];
            }
        }
    }
}

fn tempfile(bytes: &[u8]) -> File {
    let name = std::ffi::CString::new("guest").unwrap();
    // SAFETY: the name is a C string, the flags are none.
    #[allow(unsafe_code, reason = "memfd_create has no safe wrapper here")]
    let mut file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(libc::memfd_create(name.as_ptr(), 0)) };
    file.write_all(bytes).unwrap();
    file
}

fn add_memory(vm: &VmFd, memory: &GuestMemoryMmap) {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: memory.get_host_address(GuestAddress(0)).unwrap() as u64,
    };
    // SAFETY: `memory` is mapped with that length and outlives the machine, which runs only inside `Machine::run`.
    #[allow(unsafe_code, reason = "KVM takes an address")]
    unsafe {
        vm.set_user_memory_region(region).unwrap();
    }
}

fn run_vcpu(mut vcpu: VcpuFd, devices: &Devices) -> End {
    loop {
        if devices.stop.load(Ordering::SeqCst) {
            return End::Stopped;
        }
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                if let Some(end) = devices.port_write(port, data) {
                    return end;
                }
            }
            Ok(VcpuExit::IoIn(port, data)) => devices.port_read(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => devices.memory_read(address, data),
            Ok(VcpuExit::MmioWrite(address, data)) => devices.memory_write(address, data),
            Ok(VcpuExit::Shutdown) => return End::TripleFault,
            Ok(exit) => {
                let exit = format!("{exit:?}");
                let regs = vcpu.get_regs().unwrap();
                return End::Failed(format!("{exit} at rip {:#x}", regs.rip));
            }
            // EAGAIN: a CPU that waits for its start-up interrupt. EINTR: our kick.
            Err(error) if [libc::EAGAIN, libc::EINTR].contains(&error.errno()) => {}
            Err(error) => return End::Failed(error.to_string()),
        }
    }
}
