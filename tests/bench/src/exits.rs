//! Exits until a Debian guest reaches /init, in the lab: cloud kernel 6.1, bzImage, `quiet`, 256 MiB, one vCPU, no
//! virtio device. Interrupt exits are the machine's mood and are left out; KVM's debugfs counts.

use std::time::Duration;

use anyhow::Result;
use lab::{Cmd, InitramfsSpec, Lab, LabConfig, initramfs, kernels};

const BOOTS: usize = 7;
/// Says that it is there and does nothing more.
const INIT: &str = "#!/bin/busybox sh\necho INIT-IS-HERE\nexec /bin/busybox sleep 1000\n";
/// Printed besides the sum, where KVM has them.
const PARTS: &[&str] = &["io_exits", "pf_taken", "halt_exits", "irq_window_exits", "insn_emulation"];

/// Boots a few times and prints the counters of each.
pub fn run() -> Result<()> {
    let kernel = kernels()?.cloud;
    let spec = InitramfsSpec { init: INIT.into(), modules: Vec::new(), ..InitramfsSpec::default() };
    let minivmm = std::env::current_exe()?.with_file_name("minivmm");
    let config = LabConfig::default()
        .file(minivmm, "minivmm")
        .file(&kernel.bzimage, "vmlinuz")
        .file(initramfs(&kernel, &spec)?, "initrd");
    let lab = Lab::start(&config)?;
    println!("Exits until /init less interrupt exits ({:?} lab), {BOOTS} boots:", lab.kind());
    let mut nets = Vec::new();
    for _ in 0..BOOTS {
        let boot = boot(&lab)?;
        println!("  {:5} = {} - {} ({})", boot.net(), boot.exits, boot.interrupts, boot.parts);
        nets.push(boot.net());
    }
    nets.sort_unstable();
    println!("  median {}, least {}", nets[nets.len() / 2], nets[0]);
    Ok(())
}

struct Boot {
    exits: u64,
    interrupts: u64,
    parts: String,
}

impl Boot {
    fn net(&self) -> u64 {
        self.exits.saturating_sub(self.interrupts)
    }
}

fn boot(lab: &Lab) -> Result<Boot> {
    let line = "--kernel vmlinuz --initrd initrd --mem 256 --append quiet";
    let mut guest = lab.spawn(&Cmd::new("./minivmm").args(line.split(' ')))?;
    guest.expect("INIT-IS-HERE", Duration::from_secs(120))?;
    // One look at everything, as the guest's timer goes on.
    let names = ["exits", "irq_exits"].iter().chain(PARTS);
    let files: Vec<String> = names.map(|name| format!("/sys/kernel/debug/kvm/{name}")).collect();
    let text = lab.sh(&format!("cat {}", files.join(" ")))?;
    let numbers: Vec<u64> = text.lines().map(|line| line.trim().parse()).collect::<Result<_, _>>()?;
    guest.signal(9)?;
    guest.wait(Duration::from_secs(10))?;
    let parts = PARTS.iter().zip(numbers.iter().skip(2)).map(|(name, number)| format!("{name} {number}"));
    Ok(Boot {
        exits: numbers.first().copied().unwrap_or_default(),
        interrupts: numbers.get(1).copied().unwrap_or_default(),
        parts: parts.collect::<Vec<_>>().join(", "),
    })
}
