//! What it takes until a saved machine goes on: `minivmm restore` from fork, and clones of a template in one process, beside the floor.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, kvm_clock_data, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_regs,
    kvm_sregs, kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use minivmm::spec::Spec;
use minivmm::{Machine, SavedMachine, Template};
use tiny_guest::Guest;

use crate::watch::{self, Stop};

const MIB: u64 = 1 << 20;
/// Of the guest, and so much of it has contents.
const MEM: u64 = 512 * MIB;
const TOUCHED: u64 = 64 * MIB;
const ROUNDS: usize = 101;
const SPAWNS: usize = 1000;
/// Clones that live at once when their memory is counted.
const ALIVE: usize = 200;
const LIMIT: Duration = Duration::from_secs(60);

/// Prints all of it.
pub fn run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let saved = folder.path().join("saved");
    save(folder.path(), &saved)?;
    println!("A saved guest of 512 MiB, 64 MiB of them with contents, 1 vCPU:");
    restores(&saved)?;
    spawns(&saved)
}

/// A machine that waits for input, in the folder `saved`.
fn save(folder: &Path, saved: &Path) -> Result<()> {
    let spec = Spec::new(Guest::EchoInterrupt.write(folder)?).with_mem("512".parse()?);
    let machine = Machine::builder(&spec).start()?;
    machine.console().expect("ready\n", LIMIT)?;
    machine.save_and_end(saved, LIMIT)?;
    machine.wait();
    let memory = File::options().write(true).open(saved.join("memory"))?;
    let page: Vec<u8> = (0..4096u32).map(|at| at as u8 | 1).collect();
    for at in (16 * MIB..16 * MIB + TOUCHED).step_by(4096) {
        memory.write_all_at(&page, at)?;
    }
    Ok(memory.sync_all()?)
}

/// `minivmm restore`: from fork to the first KVM_RUN, and to the guest's first answer.
fn restores(saved: &Path) -> Result<()> {
    let minivmm = std::env::current_exe()?.with_file_name("minivmm");
    let command = || {
        let mut command = Command::new(&minivmm);
        command.arg("restore").arg(saved);
        command
    };
    let (mut runs, mut answers, mut own) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let seen = watch::watch(&mut command(), Stop::FirstRun, MEM)?;
        runs.push(seen.time);
        own = seen.memory.own_kib;
        let mut command = command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let begin = Instant::now();
        let mut child = Ended(command.spawn()?);
        child.0.stdin.as_mut().context("no input")?.write_all(b"?")?;
        child.0.stdout.as_mut().context("no output")?.read_exact(&mut [0])?;
        answers.push(begin.elapsed());
    }
    println!("  minivmm restore, {ROUNDS} rounds, p50 and p99:");
    println!("    fork to first KVM_RUN {}, to the guest's first answer {}", times(runs), times(answers));
    println!("    private memory beyond the guest's {own} kB");
    Ok(())
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Clones of a template, and the floor in between.
fn spawns(saved: &Path) -> Result<()> {
    let template = Template::from_saved(SavedMachine::open(saved)?)?;
    let floor = Floor::new(&saved.join("memory"))?;
    let (mut spawned, mut answered, mut floors) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SPAWNS {
        floors.push(floor.one()?);
        let begin = Instant::now();
        let machine = template.spawn()?;
        spawned.push(begin.elapsed());
        let mut console = machine.console();
        console.write_all(b"?")?;
        console.expect("?", LIMIT)?;
        answered.push(begin.elapsed());
    }
    println!("  {SPAWNS} spawns from a Template, p50 and p99:");
    println!("    spawn {}, to the guest's first answer {}", times(spawned), times(answered));
    println!("    floor (VM, memory, interrupt controllers, one vCPU and its state) {}", times(floors));
    let before = anonymous()?;
    let machines = (0..ALIVE).map(|_| template.spawn()).collect::<Result<Vec<_>, _>>()?;
    let after = anonymous()?;
    ensure!(machines.iter().all(|machine| machine.exit_status().is_none()), "a clone has ended");
    println!(
        "    private memory of a clone, that of its guest included: {} kB",
        (after - before) / ALIVE as u64
    );
    Ok(())
}

/// Private memory of this process that is of no file, in KiB.
fn anonymous() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Anonymous:")).context("smaps_rollup")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn times(mut times: Vec<Duration>) -> String {
    times.sort();
    let at =
        |part: usize| times.get(times.len() * part / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
    format!("{:.2} ms ({:.2} ms)", at(50), at(99))
}

/// The calls to KVM that no restore can do without, with the state of a vCPU that has not run.
struct Floor {
    kvm: Kvm,
    memory: Arc<File>,
    cpuid: CpuId,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    lapic: kvm_lapic_state,
    mp_state: kvm_mp_state,
    chips: Vec<kvm_irqchip>,
}

impl Floor {
    fn new(memory: &Path) -> Result<Self> {
        let kvm = Kvm::new()?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        let vm = kvm.create_vm()?;
        vm.create_irq_chip()?;
        let vcpu = vm.create_vcpu(0)?;
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map(|()| chip)
        };
        let chips = (0..3).map(chip).collect::<Result<_, _>>()?;
        let (regs, sregs, xsave) = (vcpu.get_regs()?, vcpu.get_sregs()?, vcpu.get_xsave()?);
        let (lapic, mp_state) = (vcpu.get_lapic()?, vcpu.get_mp_state()?);
        Ok(Floor {
            kvm,
            memory: Arc::new(File::open(memory)?),
            cpuid,
            regs,
            sregs,
            xsave,
            lapic,
            mp_state,
            chips,
        })
    }

    /// The time that it takes; what was made is dropped outside of it.
    fn one(&self) -> Result<Duration> {
        let begin = Instant::now();
        let (vm, vcpu, ram) = self.make()?;
        let time = begin.elapsed();
        drop((vcpu, vm, ram));
        Ok(time)
    }

    fn make(&self) -> Result<(VmFd, VcpuFd, Ram)> {
        let vm = self.kvm.create_vm()?;
        let ram = Ram::new(&self.memory)?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEM,
            userspace_addr: ram.0 as u64,
        };
        // SAFETY: the memory is unmapped behind the VM.
        unsafe { vm.set_user_memory_region(region)? };
        vm.create_irq_chip()?;
        let vcpu = vm.create_vcpu(0)?;
        vcpu.set_cpuid2(&self.cpuid)?;
        vcpu.set_mp_state(self.mp_state)?;
        vcpu.set_regs(&self.regs)?;
        vcpu.set_sregs(&self.sregs)?;
        // SAFETY: without dynamic features the area is as long as the structure.
        unsafe { vcpu.set_xsave(&self.xsave)? };
        vcpu.set_lapic(&self.lapic)?;
        self.chips.iter().try_for_each(|chip| vm.set_irqchip(chip))?;
        vm.set_clock(&kvm_clock_data { clock: 1, ..Default::default() })?;
        Ok((vm, vcpu, ram))
    }
}

/// Guest memory: a private mapping of the file.
struct Ram(usize);

impl Ram {
    fn new(file: &File) -> Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        // SAFETY: a new mapping touches no existing memory.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), MEM as usize, protection, flags, file.as_raw_fd(), 0) };
        ensure!(at != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Ok(Ram(at as usize))
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.0 as *mut libc::c_void, MEM as usize) };
    }
}
