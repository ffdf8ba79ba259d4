//! Small Debian guests under minivmm and under Debian's QEMU, side by side in one lab: a shell on the console, one disk with
//! programs, one to read from, one network interface on what a [`Setup`] says.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Cmd, InitramfsSpec, Lab, LabConfig, LabKind, Process, initramfs, kernels};

use crate::setups::{Data, Setup};

const BOOT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
/// Until a guest has done some work, on a lab that is short of processor time.
const WORKED: Duration = Duration::from_secs(240);
const MODULES: [&str; 4] = ["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net"];
/// Runs the lines that come through the console and says how each ended.
pub const INIT: &str = "#!/bin/busybox sh
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

    /// The line that starts it, as a shell runs it, with a network interface on `net`, and a disk to work on.
    fn line(self, net: &str, data: &Data) -> String {
        let link = net;
        let Data { file, format, read_only } = data;
        let qemu = |machine: &str, blk: &str, net: &str| {
            let drive = |id: &str, how: &str| {
                format!("-drive {how},if=none,id={id},file.locking=off -device {blk},drive={id},iothread=io")
            };
            let programs = drive("a", "file=programs.raw,format=raw,cache=writeback,readonly=on");
            let read_only = if *read_only { "on" } else { "off" };
            let how = format!("file={file},format={format},cache=none,aio=io_uring,readonly={read_only}");
            let data = drive("b", &how);
            format!(
                "exec qemu-system-x86_64 -name guest,debug-threads=on -nodefaults -no-user-config -display none -no-reboot \
                 -machine {machine} -accel kvm -cpu host -m 256 -serial stdio \
                 -kernel vmlinuz.bench -initrd initrd.bench -append 'console=ttyS0 panic=-1 quiet' \
                 -object iothread,id=io {programs} {data} \
                 -netdev {link},id=n -device {net},netdev=n"
            )
        };
        match self {
            Rival::Minivmm => format!(
                "exec ./minivmm --kernel vmlinuz.bench --initrd initrd.bench --mem 256 --append quiet \
                 --disk programs.raw,ro --disk {file},format={format},direct{} --net {net}",
                if *read_only { ",ro" } else { "" }
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
    let program = |name| std::env::current_exe().map(|bench| bench.with_file_name(name));
    let files = vec![(program("echo")?, "bin/echo-udp".into())];
    let spec = InitramfsSpec { init: INIT.into(), modules, files, ..InitramfsSpec::default() };
    let config = LabConfig::default()
        .debian()
        .file(program("minivmm")?, "minivmm")
        .file(program("echo")?, "echo")
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
    pub setup: Setup,
    /// Of the programs that make up the guest: who runs it, and what its network is made by.
    pub pids: Vec<u32>,
    lab: &'a Lab,
    console: Process,
    helper: Option<Process>,
    /// What it works at.
    line: String,
}

impl<'a> Guest<'a> {
    /// Boots one.
    pub fn start(lab: &'a Lab, setup: Setup) -> Result<Self> {
        lab.sh(&setup.before)?;
        let helper = setup.helper.as_ref().map(|(line, ready)| helper(lab, line, ready)).transpose()?;
        let line = setup.line.clone().unwrap_or_else(|| setup.rival.line(&setup.net, &setup.data));
        let (console, pid) = spawn(lab, &line)?;
        let (helper, helper_pid) = helper.unzip();
        let pids = [pid].into_iter().chain(helper_pid).collect();
        let mut guest = Guest { setup, pids, lab, console, helper, line: String::new() };
        guest.console.expect("guest-ready\n", BOOT).with_context(|| guest.setup.name.clone())?;
        let inside = guest.setup.inside.clone();
        guest.sh(&inside)?;
        Ok(guest)
    }

    pub fn name(&self) -> &str {
        &self.setup.name
    }

    /// Runs a line in the guest, which must succeed; gives what it said.
    pub fn sh(&mut self, line: &str) -> Result<String> {
        self.sh_within(line, SOON)
    }

    /// The same within a time.
    pub fn sh_within(&mut self, line: &str, limit: Duration) -> Result<String> {
        self.console.send(format!("{line}\n"))?;
        let mut said = self.console.expect("status=", limit).with_context(|| line.to_owned())?;
        said.truncate(said.len() - "status=".len());
        let status = self.console.expect(".", SOON)?;
        ensure!(status == "0.", "{}: `{line}` in the guest: {said}", self.name());
        Ok(said)
    }

    /// Starts one of the programs, which then works in the background whenever it is told to: between rounds it stands
    /// still, as to start it takes longer than to measure it.
    pub fn begin(&mut self, program: &str) -> Result<()> {
        program.clone_into(&mut self.line);
        self.sh(&format!("{program} >/tmp/said 2>&1 & work=$!")).map(drop)
    }

    /// Lets the program go on, or stand still. One that has ended, as its connection did while it stood still, is started anew.
    pub fn work(&mut self, on: bool) -> Result<()> {
        if !on {
            return self.sh("kill -STOP $work; true").map(drop);
        }
        let again = format!("{{ {} >/tmp/said 2>&1 & work=$!; }}", self.line);
        self.sh(&format!("readlink /proc/$work/exe >/dev/null && kill -CONT $work || {again}")).map(drop)
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
            let said = if begin.elapsed() > WORKED { self.sh("cat /tmp/said")? } else { String::new() };
            ensure!(begin.elapsed() < WORKED, "{}: no work is done: {said}", self.name());
            std::thread::sleep(Duration::from_millis(500));
            self.work(true)?;
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
        for process in [Some(&mut self.console), self.helper.as_mut()].into_iter().flatten() {
            let _ = process.signal(9);
            let _ = process.wait(SOON);
        }
        let _ = self.lab.sh(&self.setup.after);
    }
}

/// Starts a line that becomes a program, and says its process.
fn spawn(lab: &Lab, line: &str) -> Result<(Process, u32)> {
    let mut process = lab.spawn(&Cmd::sh(format!("echo pid=$$.; {line}")))?;
    process.expect("pid=", SOON)?;
    let pid = process.expect(".", SOON)?.trim_end_matches('.').parse()?;
    Ok((process, pid))
}

/// Runs the line that follows, in Debian's root as the root of a mount namespace.
const OUT_OF_CHROOT: &str = "chroot /proc/1/root /bin/busybox unshare -m /bin/busybox sh -c \
    'cd /root && mount --move . / && exec chroot . sh -c \"$1\"'";

/// Starts a program of the lab and waits until `ready` succeeds.
fn helper(lab: &Lab, line: &str, ready: &str) -> Result<(Process, u32)> {
    // passt makes a user namespace, which no kernel lets a program do in a chroot; that is where commands of the nested lab run.
    let line = match lab.kind() {
        LabKind::Nested if line.contains("passt") => format!("exec {} sh \"cd $PWD; {line}\"", OUT_OF_CHROOT),
        _ => line.to_owned(),
    };
    let started = spawn(lab, &line)?;
    lab.sh(&format!("for i in $(seq 300); do ! {ready} || exit 0; sleep 0.1; done; exit 1"))?;
    Ok(started)
}
