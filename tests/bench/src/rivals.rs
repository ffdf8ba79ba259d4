//! Small Debian guests under minivmm and under Debian's QEMU, side by side in one lab: a shell on the console, one disk with
//! programs, one to read from, one network interface on a TAP of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Cmd, InitramfsSpec, Lab, LabConfig, Process, initramfs, kernels};

const BOOT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
const MODULES: [&str; 4] = ["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net"];
/// Runs the lines that come through the console and says how each ended.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
while read -r file parameters; do insmod /modules/$file; done </modules/order
stty -echo -onlcr
mkdir -p /programs
[ ! -b /dev/vda ] || mount -t ext4 -o ro /dev/vda /programs
for place in dev proc sys tmp; do mount --bind /$place /programs/$place; done
# What one of the devices has interrupted.
interrupts() { d=$(readlink $1/device); awk -v d=${d##*/} 'index($0, d) { n += $2 } END { print n }' /proc/interrupts; }
echo guest-ready
while read -r line; do
    eval \"$line\" 2>&1
    echo \"status=$?.\"
done
";
/// A file system with these programs and what they need; and the disk to read from: written, so that reading it
/// asks the host's disk.
const DISKS: &str = "set -e
for program in /usr/bin/fio /usr/bin/iperf3; do
    echo $program
    /lib64/ld-linux-x86-64.so.2 --list $program | grep -o '/[^ ]*'
done | sort -u >programs.list
mkdir -p programs/dev programs/proc programs/sys programs/tmp
xargs cp -L --parents -t programs <programs.list
truncate -s 192M programs.raw
mke2fs -q -t ext4 -O ^has_journal -d programs programs.raw
rm -rf programs
dd if=/dev/zero of=data.raw bs=1M count=128 conv=fsync status=none
";

/// Who runs a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rival {
    Minivmm,
    /// QEMU's usual machine, virtio on PCI.
    Q35,
    /// QEMU's small machine, virtio in its own way (virtio-mmio).
    Microvm,
}

impl Rival {
    pub const ALL: [Rival; 3] = [Rival::Minivmm, Rival::Q35, Rival::Microvm];

    pub fn name(self) -> &'static str {
        match self {
            Rival::Minivmm => "minivmm",
            Rival::Q35 => "QEMU q35",
            Rival::Microvm => "QEMU microvm",
        }
    }

    /// The TAP that its guest is on; the host has 192.0.N.1 there and the guest 192.0.N.2.
    pub fn tap(self) -> String {
        format!("tap{}", self.network())
    }

    pub fn network(self) -> u8 {
        match self {
            Rival::Minivmm => 21,
            Rival::Q35 => 22,
            Rival::Microvm => 23,
        }
    }

    /// The line that starts it, as a shell runs it.
    fn line(self) -> String {
        let tap = self.tap();
        let qemu = |machine: &str, blk: &str, net: &str| {
            let drive = |id: &str, file: &str, how: &str| {
                format!(
                    "-drive file={file},if=none,id={id},format=raw,{how},readonly=on,file.locking=off \
                     -device {blk},drive={id},iothread=io"
                )
            };
            let programs = drive("a", "programs.raw", "cache=writeback");
            let data = drive("b", "data.raw", "cache=none,aio=io_uring");
            format!(
                "qemu-system-x86_64 -name guest,debug-threads=on -nodefaults -no-user-config -display none -no-reboot \
                 -machine {machine} -accel kvm -cpu host -m 256 -serial stdio \
                 -kernel vmlinuz.bench -initrd initrd.bench -append 'console=ttyS0 panic=-1 quiet' \
                 -object iothread,id=io {programs} {data} \
                 -netdev tap,id=n,ifname={tap},script=no,downscript=no,vhost=off -device {net},netdev=n"
            )
        };
        match self {
            Rival::Minivmm => format!(
                "./minivmm --kernel vmlinuz.bench --initrd initrd.bench --mem 256 --append quiet \
                 --disk programs.raw,ro --disk data.raw,ro,direct --tap {tap}"
            ),
            Rival::Q35 => qemu("q35", "virtio-blk-pci", "virtio-net-pci"),
            Rival::Microvm => {
                let machine = "microvm,rtc=on -global virtio-mmio.force-legacy=false";
                qemu(machine, "virtio-blk-device", "virtio-net-device")
            }
        }
    }
}

/// A lab with all that the guests are made of.
pub fn lab() -> Result<Lab> {
    let kernel = kernels()?.cloud;
    let modules = MODULES.map(String::from).to_vec();
    let spec = InitramfsSpec { init: INIT.into(), modules, ..InitramfsSpec::default() };
    let config = LabConfig::default()
        .debian()
        .file(std::env::current_exe()?.with_file_name("minivmm"), "minivmm")
        .file(&kernel.bzimage, "vmlinuz.bench")
        .file(initramfs(&kernel, &spec)?, "initrd.bench");
    let lab = Lab::start(&config)?;
    let made = lab.exec(&Cmd::sh(DISKS).limit(Duration::from_secs(180)))?;
    ensure!(made.status.code() == 0, "the disks: {}", made.err_text());
    crate::window::prepare(&lab)?;
    Ok(lab)
}

/// A guest that waits for work.
#[derive(Debug)]
pub struct Guest<'a> {
    pub rival: Rival,
    pub pid: u32,
    lab: &'a Lab,
    console: Process,
}

impl<'a> Guest<'a> {
    /// Boots one, on a TAP made for it.
    pub fn start(lab: &'a Lab, rival: Rival) -> Result<Self> {
        let (tap, network) = (rival.tap(), rival.network());
        lab.sh(&format!(
            "ip tuntap add mode tap dev {tap} vnet_hdr && ip addr add 192.0.{network}.1/24 dev {tap} && ip link set {tap} up"
        ))?;
        let mut console = lab.spawn(&Cmd::sh(format!("echo pid=$$.; exec {}", rival.line())))?;
        console.expect("pid=", SOON)?;
        let pid = console.expect(".", SOON)?.trim_end_matches('.').parse()?;
        let mut guest = Guest { rival, pid, lab, console };
        guest.console.expect("guest-ready\n", BOOT).with_context(|| rival.name())?;
        guest.sh(&format!(
            "ip addr add 192.0.{network}.2/24 dev eth0; ip link set eth0 up; ip link set lo up"
        ))?;
        Ok(guest)
    }

    /// Runs a line in the guest, which must succeed; gives what it said.
    pub fn sh(&mut self, line: &str) -> Result<String> {
        self.console.send(format!("{line}\n"))?;
        let mut said = self.console.expect("status=", SOON).with_context(|| line.to_owned())?;
        said.truncate(said.len() - "status=".len());
        let status = self.console.expect(".", SOON)?;
        ensure!(status == "0.", "{}: `{line}` in the guest: {said}", self.rival.name());
        Ok(said)
    }

    /// Starts one of the programs, which then works in the background whenever it is told to: between rounds it stands
    /// still, as to start it takes longer than to measure it.
    pub fn begin(&mut self, program: &str) -> Result<()> {
        self.sh(&format!("chroot /programs {program} >/tmp/said 2>&1 & work=$!")).map(drop)
    }

    /// Lets the program go on, or stand still.
    pub fn work(&mut self, on: bool) -> Result<()> {
        self.sh(if on { "kill -CONT $work" } else { "kill -STOP $work" }).map(drop)
    }

    /// Ends it.
    pub fn end(&mut self) -> Result<()> {
        self.sh("kill -KILL $work; wait $work; true").map(drop)
    }

    /// Waits until `count` of the guest's has grown by `more`.
    pub fn grows(&mut self, count: &str, more: f64) -> Result<()> {
        let begin = Instant::now();
        let first = self.number(count)?;
        while self.number(count)? < first + more {
            let said = if begin.elapsed() > SOON { self.sh("cat /tmp/said")? } else { String::new() };
            ensure!(begin.elapsed() < SOON, "{}: no work is done: {said}", self.rival.name());
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// A line that says one number.
    pub fn number(&mut self, line: &str) -> Result<f64> {
        self.numbers(line)?.first().copied().with_context(|| format!("`{line}` says nothing"))
    }

    /// A line that says numbers.
    pub fn numbers(&mut self, line: &str) -> Result<Vec<f64>> {
        let said = self.sh(line)?;
        said.split_whitespace().map(|word| word.parse().with_context(|| format!("{line}: {said}"))).collect()
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let _ = self.console.signal(9);
        let _ = self.console.wait(SOON);
        let _ = self.lab.sh(&format!("ip link del {}", self.rival.tap()));
    }
}
