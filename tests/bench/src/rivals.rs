//! Small Debian guests under minivmm and under Debian's QEMU, side by side in one lab: a shell on the console, one disk with
//! programs, one to read from, one network interface on what a [`Setup`] says.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Cmd, InitramfsSpec, Lab, LabConfig, LabKind, Process, initramfs, kernels};

const BOOT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);
/// Until a guest has done some work, on a lab that is short of processor time.
const WORKED: Duration = Duration::from_secs(240);
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

    /// The line that starts it, as a shell runs it, with a network interface on `net`.
    fn line(self, net: &str) -> String {
        let link = net;
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
                 --disk programs.raw,ro --disk data.raw,ro,direct --net {net}"
            ),
            Rival::Q35 => qemu("q35", "virtio-blk-pci", "virtio-net-pci"),
            Rival::Microvm => {
                let machine = "microvm,rtc=on -global virtio-mmio.force-legacy=false";
                qemu(machine, "virtio-blk-device", "virtio-net-device")
            }
        }
    }
}

/// What the network interface of a guest is on.
#[derive(Debug, Clone)]
pub struct Setup {
    pub name: String,
    rival: Rival,
    /// As minivmm's `--net` or QEMU's `-netdev` has it.
    net: String,
    /// What the lab does first, and at the end.
    before: String,
    after: String,
    /// A program of the lab that the guest's network is made by, and what it makes when it is ready.
    helper: Option<(String, String)>,
    /// What the guest does.
    inside: String,
}

impl Setup {
    /// A TAP of its own: the host has 192.0.N.1 there and the guest 192.0.N.2.
    pub fn tap(rival: Rival) -> Self {
        let (tap, network) = (tap(rival), network(rival));
        Setup {
            name: rival.name().into(),
            rival,
            net: match rival {
                Rival::Minivmm => format!("tap={tap}"),
                _ => format!("tap,ifname={tap},script=no,downscript=no,vhost=off"),
            },
            before: format!(
                "ip tuntap add mode tap dev {tap} vnet_hdr && ip addr add 192.0.{network}.1/24 dev {tap} && ip link set {tap} up"
            ),
            after: format!("ip link del {tap}"),
            helper: None,
            inside: address(&format!("192.0.{network}.2/24"), &format!("192.0.{network}.1")),
        }
    }

    /// Its own user-mode network.
    pub fn user(rival: Rival) -> Self {
        Setup {
            name: format!("{}, user", rival.name()),
            rival,
            net: if rival == Rival::Minivmm { "user,host-loopback=on".into() } else { "user".into() },
            before: "true".into(),
            after: "true".into(),
            helper: None,
            inside: address("10.0.2.15/24", GATEWAY),
        }
    }

    /// passt behind a stream socket. What its interface has, the guest has; its gateway is the host's loopback.
    pub fn passt(rival: Rival) -> Self {
        let (out, socket) = (format!("out{}", network(rival)), format!("passt{}.sock", network(rival)));
        let passt = format!(
            "exec passt --foreground --stderr --quiet --runas 0 --socket $PWD/{socket} --interface {out} --outbound-if4 {out} \
             --address 10.0.2.15 --netmask 24 --gateway {GATEWAY} --ipv4-only --mtu {PASST_MTU}"
        );
        Setup {
            name: format!("{}, passt", rival.name()),
            rival,
            net: match rival {
                Rival::Minivmm => format!("socket={socket}"),
                _ => format!("stream,server=off,addr.type=unix,addr.path={socket}"),
            },
            before: format!(
                "ip tuntap add mode tap dev {out} && ip addr add 10.0.2.15/24 dev {out} && ip link set {out} up && \
                 ip route add default via {GATEWAY} dev {out}"
            ),
            after: format!("ip link del {out}"),
            helper: Some((passt, socket)),
            inside: format!("{}; ip link set eth0 mtu {PASST_MTU}", address("10.0.2.15/24", GATEWAY)),
        }
    }
}

/// Leads to the host's loopback in all user-mode networks.
pub const GATEWAY: &str = "10.0.2.2";
/// What passt's DHCP tells guests.
const PASST_MTU: u16 = 65520;

/// The TAP of a guest that has one.
pub fn tap(rival: Rival) -> String {
    format!("tap{}", network(rival))
}

pub fn network(rival: Rival) -> u8 {
    match rival {
        Rival::Minivmm => 21,
        Rival::Q35 => 22,
        Rival::Microvm => 23,
    }
}

/// Gives the guest's interface an address.
fn address(own: &str, gateway: &str) -> String {
    format!(
        "ip addr add {own} dev eth0; ip link set lo up; ip link set eth0 up; ip route add default via {gateway}"
    )
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
}

impl<'a> Guest<'a> {
    /// Boots one.
    pub fn start(lab: &'a Lab, setup: Setup) -> Result<Self> {
        lab.sh(&setup.before)?;
        let helper = setup.helper.as_ref().map(|(line, makes)| helper(lab, line, makes)).transpose()?;
        let (console, pid) = spawn(lab, &setup.rival.line(&setup.net))?;
        let (helper, helper_pid) = helper.unzip();
        let pids = [pid].into_iter().chain(helper_pid).collect();
        let mut guest = Guest { setup, pids, lab, console, helper };
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
        self.console.send(format!("{line}\n"))?;
        let mut said = self.console.expect("status=", SOON).with_context(|| line.to_owned())?;
        said.truncate(said.len() - "status=".len());
        let status = self.console.expect(".", SOON)?;
        ensure!(status == "0.", "{}: `{line}` in the guest: {said}", self.name());
        Ok(said)
    }

    /// Starts one of the programs, which then works in the background whenever it is told to: between rounds it stands
    /// still, as to start it takes longer than to measure it.
    pub fn begin(&mut self, program: &str) -> Result<()> {
        self.sh(&format!("{program} >/tmp/said 2>&1 & work=$!")).map(drop)
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
            let said = if begin.elapsed() > WORKED { self.sh("cat /tmp/said")? } else { String::new() };
            ensure!(begin.elapsed() < WORKED, "{}: no work is done: {said}", self.name());
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

/// Starts a program of the lab and waits until `makes` is there.
fn helper(lab: &Lab, line: &str, makes: &str) -> Result<(Process, u32)> {
    // passt makes a user namespace, which no kernel lets a program do in a chroot; that is where commands of the nested lab run.
    let line = match lab.kind() {
        LabKind::Nested => format!("exec {} sh \"cd $PWD; {line}\"", OUT_OF_CHROOT),
        LabKind::Direct => line.to_owned(),
    };
    let started = spawn(lab, &line)?;
    lab.sh(&format!("for i in $(seq 300); do [ ! -e {makes} ] || exit 0; sleep 0.1; done; exit 1"))?;
    Ok(started)
}
