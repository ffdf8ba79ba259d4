//! Exits until a Debian guest reaches /init, in the lab: cloud kernel 6.1, bzImage, `quiet`, 256 MiB, one vCPU; without
//! disk and network, and with one of each, whose modules /init loads, as initramfs images do. Interrupt exits are the
//! machine's mood and are left out; KVM's debugfs counts. And the private memory of the process then, beyond guest RAM,
//! also after a disk was read and frames were sent.

use std::time::Duration;

use anyhow::Result;
use lab::{Cmd, InitramfsSpec, Lab, LabConfig, initramfs, kernels};

use crate::watch;

const BOOTS: usize = 7;
const BOOT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(20);
/// Says that it is there and does nothing more.
const INIT: &str = "#!/bin/busybox sh\necho INIT-IS-HERE\nexec /bin/busybox sleep 1000\n";
/// Printed besides the sum, where KVM has them.
const PARTS: &[&str] = &["io_exits", "pf_taken", "halt_exits", "irq_window_exits", "insn_emulation"];

/// Loads the drivers and works a little.
const WORK: &str = "#!/bin/busybox sh
echo INIT-IS-HERE
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r file parameters; do insmod /modules/$file; done </modules/order
dd if=/dev/vda of=/dev/null bs=128k count=256
ip addr add 192.0.2.2/24 dev eth0
ip link set eth0 up
ping -c 3 -W 1 192.0.2.1
echo WORK-IS-DONE
exec sleep 1000
";
const BARE: &str = "--kernel vmlinuz --initrd initrd --mem 256 --append quiet";

/// Boots a few times and prints the counters of each.
pub fn run() -> Result<()> {
    let kernel = kernels()?.cloud;
    let spec = InitramfsSpec { init: INIT.into(), modules: Vec::new(), ..InitramfsSpec::default() };
    let modules = ["virtio_pci", "virtio_blk", "virtio_net"].map(String::from).to_vec();
    let work = InitramfsSpec { init: WORK.into(), modules, ..InitramfsSpec::default() };
    let minivmm = std::env::current_exe()?.with_file_name("minivmm");
    let config = LabConfig::default()
        .debian()
        .file(minivmm, "minivmm")
        .file(&kernel.bzimage, "vmlinuz")
        .file(initramfs(&kernel, &spec)?, "initrd")
        .file(initramfs(&kernel, &work)?, "initrd.work");
    let lab = Lab::start(&config)?;
    lab.sh("truncate -s 64M disk.raw; ip tuntap add mode tap dev tap2 vnet_hdr && ip addr add 192.0.2.1/24 dev tap2 && ip link set tap2 up")?;
    let bare = format!("{BARE} --net none");
    let full = format!("{BARE} --disk disk.raw --tap tap2");
    for (name, line) in [("no disk, no network", &bare), ("a disk and a network", &full)] {
        println!("Exits until /init less interrupt exits ({:?} lab), {name}, {BOOTS} boots:", lab.kind());
        let mut nets = Vec::new();
        for _ in 0..BOOTS {
            let boot = boot(&lab, line)?;
            println!("  {:5} = {} - {} ({})", boot.net(), boot.exits, boot.interrupts, boot.parts);
            nets.push(boot.net());
        }
        nets.sort_unstable();
        println!("  median {}, least {}, most {}", nets[nets.len() / 2], nets[0], nets[nets.len() - 1]);
    }
    memory(&lab, &full.replace("--initrd initrd", "--initrd initrd.work"))
}

/// Prints the private memory of a machine with a disk and a network, when it has begun and when it has worked.
fn memory(lab: &Lab, line: &str) -> Result<()> {
    let mut guest = lab.spawn(&Cmd::sh(format!("echo pid=$$.; exec ./minivmm {line}")))?;
    guest.expect("pid=", SOON)?;
    let pid = guest.expect(".", SOON)?.trim_end_matches('.').to_owned();
    println!("Private memory beyond guest RAM, with a disk and a network:");
    for (when, sign) in [("at /init", "INIT-IS-HERE"), ("after 32 MiB read and pings", "WORK-IS-DONE")] {
        guest.expect(sign, BOOT)?;
        let seen = watch::sum(&lab.sh(&format!("cat /proc/{pid}/smaps"))?, 256 << 20);
        println!("  {when}: {} kB, and {} kB of its files", seen.own_kib, seen.file_kib);
    }
    guest.signal(9)?;
    guest.wait(SOON)?;
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

fn boot(lab: &Lab, line: &str) -> Result<Boot> {
    let mut guest = lab.spawn(&Cmd::new("./minivmm").args(line.split(' ')))?;
    guest.expect("INIT-IS-HERE", BOOT)?;
    // One look at everything, as the guest's timer goes on.
    let names = ["exits", "irq_exits"].iter().chain(PARTS);
    let files: Vec<String> = names.map(|name| format!("/sys/kernel/debug/kvm/{name}")).collect();
    let text = lab.sh(&format!("cat {}", files.join(" ")))?;
    let numbers: Vec<u64> = text.lines().map(|line| line.trim().parse()).collect::<Result<_, _>>()?;
    guest.signal(9)?;
    guest.wait(SOON)?;
    let parts = PARTS.iter().zip(numbers.iter().skip(2)).map(|(name, number)| format!("{name} {number}"));
    Ok(Boot {
        exits: numbers.first().copied().unwrap_or_default(),
        interrupts: numbers.get(1).copied().unwrap_or_default(),
        parts: parts.collect::<Vec<_>>().join(", "),
    })
}
