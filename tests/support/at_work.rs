//! A Debian at work in a lab, and what shows that it has missed nothing: its disk under fio, its networks, its clocks.

use std::fs;
use std::sync::OnceLock;

use lab::{Cmd, Flavour, InitramfsSpec, Lab, Process, initramfs, kernel};

use super::debian::{self, AS_USER, BOOT, Guest, LINK_LOCAL, SOON, in_tools};
use super::small::succeeds;

/// A lab with Debian, whose loopback is up.
pub(crate) fn lab() -> &'static Lab {
    static LAB: OnceLock<()> = OnceLock::new();
    let lab = debian::lab();
    LAB.get_or_init(|| {
        lab.sh("ip link set lo up; mkdir -m 700 run; truncate -s 64M data.raw; chown 1000:1000 run data.raw")
            .unwrap();
    });
    lab
}

/// A command of the courses' user.
pub(crate) fn as_user(line: &str) -> String {
    format!("env XDG_RUNTIME_DIR=$PWD/run XDG_STATE_HOME=$PWD/state {AS_USER} {line}")
}

/// A verb, which must do what it is asked; gives what it printed.
#[track_caller]
pub(crate) fn verb(words: &str) -> String {
    let out = lab().exec(&Cmd::sh(as_user(&format!("./minivmm {words}"))).limit(BOOT)).unwrap();
    succeeds(&out);
    out.text()
}

/// Writes, reads again what it wrote, and compares.
const FIO: &str = "fio --output-format=terse --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 \
                   --name=load --filename=/dev/vdb --size=32m --bs=4k --rw=randrw --verify_backlog=64 --time_based --runtime=5";

/// Has it run again and again.
pub(crate) fn begin_fio(guest: &mut Guest) {
    let job = in_tools(FIO);
    guest.sh(&format!(
        "rm -f /tmp/enough; ((until [ -e /tmp/enough ]; do {job} || exit 1; done; echo all-verified) >/tmp/fio 2>&1; echo over >>/tmp/fio) &"
    ));
}

/// It has found all that it wrote.
pub(crate) fn end_fio(guest: &mut Guest) {
    let line = "touch /tmp/enough; until grep -qx over /tmp/fio; do sleep 1; done; cat /tmp/fio";
    let said = guest.sh_within(line, BOOT);
    assert!(said.contains("all-verified"), "{said}");
}

/// Memory that is written again and again and compared with what does not change, and what must not change either: a file in memory, and a
/// part of the disk that fio leaves alone.
pub(crate) struct Load {
    sums: String,
    uptime: f64,
}

/// Of what [`keep`] has written.
pub(crate) const SUMS: &str =
    "md5sum </dev/shm/fixed; dd if=/dev/vdb bs=1M skip=40 count=8 iflag=direct 2>/dev/null | md5sum";

/// Writes what must not change: a file in memory, and a part of the disk that fio leaves alone. Gives the sums of both.
pub(crate) fn keep(guest: &mut Guest) -> String {
    guest.sh(
        "head -c 8M /dev/urandom >/dev/shm/fixed; dd if=/dev/shm/fixed of=/dev/vdb bs=1M seek=40 oflag=direct conv=notrunc",
    );
    let sums = guest.sh(SUMS);
    assert!(sums.lines().count() == 2 && sums[..32] == sums[36..68], "{sums}");
    sums
}

impl Load {
    pub(crate) fn begin(guest: &mut Guest) -> Self {
        let sums = keep(guest);
        guest.sh(
            "(while cp /dev/shm/fixed /dev/shm/copy && cmp /dev/shm/fixed /dev/shm/copy; do echo >>/dev/shm/rounds; done; \
             touch /dev/shm/differs) >/dev/null 2>&1 &",
        );
        let load = Load { sums, uptime: 0.0 };
        load.is_at_work(guest);
        Load { uptime: uptime(guest), ..load }
    }

    fn is_at_work(&self, guest: &mut Guest) {
        guest.sh("before=$(wc -l </dev/shm/rounds); until [ $(wc -l </dev/shm/rounds) -gt $((before + 2)) ]; do sleep 0.1; done");
        guest.sh("! [ -e /dev/shm/differs ]");
    }

    /// All is as it was, and the guest has not begun anew.
    pub(crate) fn goes_on(&self, guest: &mut Guest) {
        self.is_at_work(guest);
        assert_eq!(guest.sh(SUMS), self.sums);
        assert!(uptime(guest) > self.uptime);
        guest.sh("mv /dev/shm/fixed /dev/shm/over");
    }
}

/// Seconds on the guest's clock that counts from its boot.
pub(crate) fn uptime(guest: &mut Guest) -> f64 {
    guest.sh("cut -d' ' -f1 /proc/uptime").trim().parse().unwrap()
}

/// The init of an initrd with another kernel's drivers, for a Debian that has none for it.
const OTHER_KERNEL: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r file parameters; do insmod /modules/$file $parameters; done </modules/order
until [ -b /dev/vda1 ]; do sleep 0.1; done
mkdir -p /root
mount -t ext4 /dev/vda1 /root
mount --move /dev /root/dev
umount /proc
exec switch_root /root /sbin/init
";
const DRIVERS: [&str; 8] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "ext4",
    "autofs4",
];

/// Flags that have Debian run Linux 6.12.
pub(crate) fn with_newer_kernel() -> &'static str {
    let kernel = kernel(Flavour::Trixie).unwrap();
    let modules = DRIVERS.map(String::from).to_vec();
    let spec = InitramfsSpec { init: OTHER_KERNEL.into(), modules, ..InitramfsSpec::default() };
    let initrd = initramfs(&kernel, &spec).unwrap();
    for (name, file) in [("6.12.vmlinux", &kernel.vmlinux), ("6.12.initrd", &initrd)] {
        lab().put(name, &fs::read(file).unwrap()).unwrap();
    }
    "--kernel 6.12.vmlinux --initrd 6.12.initrd"
}

/// A server of the host's loopback, which says what it hears.
pub(crate) const ECHO: &str = "socat TCP-LISTEN:7010,bind=127.0.0.1,fork,reuseaddr EXEC:cat 2>&1";

/// A login through the TAP, from where `before` leads, that answers line by line.
pub(crate) fn log_in(before: &str, tap: &str) -> Process {
    let line = format!(
        "exec {before} sshpass -p -etu- ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
         -o ConnectTimeout=60 etu@{LINK_LOCAL}%{tap} 'while read -r word; do echo heard $word again; done'"
    );
    let mut login = lab().spawn(&Cmd::sh(line)).unwrap();
    login.send("first\n").unwrap();
    login.expect("heard first ", SOON).unwrap();
    login
}

/// Opens a connection to the host's loopback, on which something has gone both ways. It waits in `read`.
pub(crate) fn hold_a_connection() -> &'static str {
    "rm -f /tmp/held; (bash -c 'exec 3<>/dev/tcp/10.0.2.2/7010; echo open >&3; read -r word <&3; echo $word >/tmp/held; \
     while sleep 0.5 && echo more >&3; do :; done 2>>/tmp/held; echo ended >>/tmp/held' >/tmp/bash 2>&1 &); \
     until grep -q open /tmp/held; do sleep 0.2; done"
}

/// Those of the user network: what was open is reset, what begins comes through, and so does who comes by the host's `port`.
pub(crate) fn networks_work_again(guest: &mut Guest, port: Option<u16>) {
    let held = guest.sh("until grep -q ended /tmp/held; do sleep 0.2; done; cat /tmp/held");
    assert!(held.contains("Connection reset by peer"), "{held}");
    let asked =
        guest.sh("bash -c 'exec 3<>/dev/tcp/10.0.2.2/7010; echo through >&3; read -r word <&3; echo $word'");
    assert_eq!(asked, "through\n");
    if let Some(port) = port {
        let line = format!("exec bash -c 'head -c 7 </dev/tcp/127.0.0.1/{port}'");
        let out = lab().exec(&Cmd::sh(line).limit(SOON)).unwrap();
        assert_eq!(out.text(), "SSH-2.0", "{}", out.err_text());
    }
}

/// What shows the time of day, and CLOCK_MONOTONIC of machines that are never suspended.
pub(crate) const CLOCKS: [&str; 2] = ["date +%s.%N", "cut -d' ' -f1 /proc/uptime"];

/// How far the guest's clock is ahead of the host's, in seconds: at least and at most.
pub(crate) fn ahead_of_host(guest: &mut Guest, clock: &str) -> [f64; 2] {
    let host = || lab().sh(clock).unwrap().trim().parse::<f64>().unwrap();
    let ask = |_| {
        let asked = host();
        let told = guest.sh(clock).trim().parse::<f64>().unwrap();
        [told - host(), told - asked]
    };
    (0..5).map(ask).fold([f64::MIN, f64::MAX], |all, [least, most]| [all[0].max(least), all[1].min(most)])
}

/// As a time service would. Before it has its own clock, Linux counts ticks, of which an emulated processor loses seconds while it boots.
pub(crate) fn set_right(guest: &mut Guest) {
    let now = lab().sh("date +%s.%N").unwrap();
    guest.sh(&format!("date -s @{}", now.trim()));
}
