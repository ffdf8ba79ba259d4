//! Machines on networks of their own, in small Debian guests: on a wire with QEMU, behind passt, and on a switch with VLANs, a
//! router, delay and loss. All as a user without any capability.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/dose.rs"]
mod dose;

use std::sync::OnceLock;
use std::time::Duration;

use dose::dose;
use lab::{Cmd, InitramfsSpec, Lab, LabConfig, LabKind, Process, Status, initramfs, kernels};

/// Time for a guest to boot under two emulations, on a busy machine, and for one that is up to answer.
const LIMIT: Duration = Duration::from_secs(180);
/// Drivers that the guests load.
const MODULES: [&str; 4] = ["button", "virtio_pci", "virtio_net", "8021q"];
/// In a network of its own, beside the host's.
const INSIDE: &str = "ip netns exec machines";
/// As a user there whose only right is group kvm.
const AS_USER: &str = "env XDG_RUNTIME_DIR=$PWD/run ip netns exec machines setpriv --reuid 1000 --regid 1000 --groups 101 --bounding-set -all \
                       --inh-caps -all --ambient-caps -all --no-new-privs --";

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let kernel = kernels().unwrap().cloud;
        let modules = MODULES.map(String::from).to_vec();
        let initrd = initramfs(&kernel, &InitramfsSpec { modules, ..InitramfsSpec::default() }).unwrap();
        let config = LabConfig::default()
            .debian()
            .file(env!("CARGO_BIN_EXE_minivmm"), "minivmm")
            .file(&kernel.bzimage, "vmlinuz")
            .file(initrd, "initrd");
        let lab = Lab::start(&config).unwrap();
        lab.sh("mkdir -m 700 run; chown 1000:1000 . run; ip netns add machines; ip netns exec machines ip link set lo up").unwrap();
        lab
    })
}

/// Runs a shell line in the machines' network, which must succeed; returns its output.
#[track_caller]
fn inside(line: &str) -> String {
    let out = lab().exec(&Cmd::sh(format!("{INSIDE} sh -ec '{line}'")).limit(LIMIT)).unwrap();
    assert_eq!(out.status, Status::Exited(0), "{line}: {}{}", out.text(), out.err_text());
    out.text()
}

/// Runs minivmm with arguments as the machines' user; returns its output.
#[track_caller]
fn minivmm(arguments: &str) -> String {
    lab().sh(&format!("{AS_USER} ./minivmm {arguments}")).unwrap()
}

/// A guest at its shell.
#[derive(Debug)]
struct Guest {
    console: Process,
}

impl Guest {
    /// A machine with these options.
    #[track_caller]
    fn minivmm(options: &str) -> Self {
        Self::start(&format!(
            "exec {AS_USER} ./minivmm --kernel vmlinuz --initrd initrd --append quiet --mem 128 {options}"
        ))
    }

    /// The same kernel under QEMU, its network interface on `netdev`.
    #[track_caller]
    fn qemu(netdev: &str) -> Self {
        Self::start(&format!(
            "exec {AS_USER} qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -machine q35 -accel kvm -cpu host \
             -m 128 -serial stdio -kernel vmlinuz -initrd initrd -append 'console=ttyS0 panic=-1 quiet' \
             -netdev {netdev},id=n -device virtio-net-pci,netdev=n"
        ))
    }

    #[track_caller]
    fn start(line: &str) -> Self {
        let console = lab().spawn(&Cmd::sh(line).tty()).unwrap();
        let mut guest = Guest { console };
        guest.console.expect("guest:/# ", LIMIT).unwrap();
        guest.console.send("stty -echo; PS1= PS2=; echo its-''shell\n").unwrap();
        guest.console.expect("its-shell", LIMIT).unwrap();
        guest
    }

    /// Runs a shell line; returns its output and its status.
    #[track_caller]
    fn tries(&mut self, line: &str) -> (String, String) {
        self.console.send(format!("( {line}\n) 2>&1; echo \"status=$?.\"\n")).unwrap();
        let said = self.console.expect("status=", LIMIT).unwrap();
        let status = self.console.expect(".", LIMIT).unwrap();
        (said.trim_end_matches("status=").replace('\r', "").trim_start().to_owned(), status)
    }

    /// Runs a shell line, which must succeed; returns its output.
    #[track_caller]
    fn sh(&mut self, line: &str) -> String {
        let (said, status) = self.tries(line);
        assert_eq!(status, "0.", "{line}: {said}");
        said
    }

    /// Ends the machine.
    #[track_caller]
    fn ends(mut self) {
        self.console.send("poweroff -f\n").unwrap();
        self.console.wait(LIMIT).unwrap();
    }
}

/// passt makes namespaces, which a process in a changed root may not: the commands of an emulated lab run in one.
const IN_THE_ROOT: &str = "exec chroot /proc/1/root /bin/busybox unshare -m /bin/busybox sh -c \
    'cd /root && mount --move . / && exec chroot . sh -c \"$1\"' sh \"cd $PWD; exec /sbin/ip netns exec machines ";
const PASST: &str = "passt --foreground --stderr --one-off --runas 1000:1000 --socket $PWD/passt.sock --interface out0 \
    --outbound-if4 out0 --ipv4-only --address 10.0.2.15 --netmask 24 --gateway 10.0.2.2";
/// What passt gives to its guest is this interface's.
const OUT: &str = "ip tuntap add mode tap dev out0; ip addr add 10.0.2.15/24 dev out0; ip link set out0 up; \
                   ip route add default via 10.0.2.2 dev out0";
/// Takes what a DHCP server gives.
const TAKE: &str = "printf '#!/bin/sh\n[ $1 != bound ] || ip addr add $ip/$mask dev $interface' >/tmp/take; chmod +x /tmp/take";

fn passt() -> Process {
    inside(OUT);
    let line = match lab().kind() {
        LabKind::Nested => format!("{IN_THE_ROOT}{PASST} 2>&1\""),
        LabKind::Direct => format!("exec {INSIDE} {PASST} 2>&1"),
    };
    let mut passt = lab().spawn(&Cmd::sh(line)).unwrap();
    passt.expect("bound at", LIMIT).unwrap();
    passt
}

#[test]
fn machine_is_on_one_wire_with_a_guest_of_qemu_and_behind_passt() {
    let mut passt = passt();
    inside("mkdir -p web; echo through-passt >web/word; busybox httpd -p 127.0.0.1:8000 -h web");
    let mut ours = Guest::minivmm("--net socket=wire.sock,listen --net socket=passt.sock");
    // passt has DHCP, and its gateway is the host's loopback.
    ours.sh(&format!("{TAKE}; ip link set eth1 up; udhcpc -q -n -i eth1 -s /tmp/take"));
    assert_eq!(ours.sh("wget -q -O - http://10.0.2.2:8000/word").trim(), "through-passt");
    let mut theirs = Guest::qemu("stream,server=off,addr.type=unix,addr.path=wire.sock");
    ours.sh("ip link set eth0 up; ip addr add 192.0.2.1/24 dev eth0");
    theirs.sh(
        "ip link set eth0 up; ip addr add 192.0.2.2/24 dev eth0; until ping -c 1 -W 5 192.0.2.1; do :; done",
    );
    let said = ours.sh("ping -c 3 -s 1400 192.0.2.2");
    assert_eq!(said.matches("1408 bytes from 192.0.2.2: ").count(), 3, "{said}");
    let bytes = dose(20 << 20);
    let sent =
        ours.sh(&format!("head -c {bytes} /dev/urandom >/tmp/blob; sha1sum </tmp/blob; httpd -p 80 -h /tmp"));
    let got =
        theirs.sh("wget -q -O /tmp/blob http://192.0.2.1/blob; sha1sum </tmp/blob; httpd -p 80 -h /tmp");
    assert_eq!((&got, &ours.sh("wget -q -O - http://192.0.2.2/blob | sha1sum")), (&sent, &sent));
    // Without its other end the wire has no link.
    theirs.ends();
    ours.sh("until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.2; done");
    ours.ends();
    passt.wait(LIMIT).unwrap();
    inside("ip link del out0; kill $(pgrep -f \"[b]usybox httpd -p 127.0.0.1:8000\"); rm -r web");
}

/// What a course builds: a VLAN for each machine, a trunk to a third, the host as their router, and a VLAN behind the user network.
const UPLINKS: &str =
    "--uplink tap=vlan2,vlan=2 --uplink tap=vlan3,vlan=3 --uplink user,vlan=4,host-loopback=on";
const ROUTER: &str = "for n in 2 3; do ip tuntap add mode tap dev vlan$n group kvm; ip addr add 10.$n.0.1/24 dev vlan$n; ip link set vlan$n up; done; \
                      sysctl -q -w net.ipv4.ip_forward=1";

#[test]
fn switch_parts_vlans_joins_them_on_a_trunk_and_delays_and_loses_as_it_is_told() {
    inside(ROUTER);
    minivmm(&format!("switch lab --keep -d {UPLINKS}"));
    let mut guests = [("a", "vlan=2"), ("b", "vlan=3"), ("c", "trunk=all")]
        .map(|(name, port)| Guest::minivmm(&format!("--name {name} --net switch=lab,{port}")));
    let [a, b, c] = &mut guests;
    for (guest, n) in [(&mut *a, 2), (&mut *b, 3)] {
        guest.sh(&format!(
            "ip link set eth0 up; ip addr add 10.{n}.0.2/24 dev eth0; ip addr add 10.9.0.{n}/24 dev eth0; ip route add default via 10.{n}.0.1"
        ));
    }
    c.sh("ip link set eth0 up; for n in 2 3 4; do ip link add link eth0 name eth0.$n type vlan id $n; ip link set eth0.$n up; done
          ip addr add 10.2.0.3/24 dev eth0.2; ip addr add 10.3.0.3/24 dev eth0.3");
    // By the router, which takes one off its time to live.
    let said = a.sh("ping -c 3 10.3.0.2");
    assert_eq!(said.matches(" ttl=63 ").count(), 3, "{said}");
    c.sh("ping -c 1 10.2.0.2; ping -c 1 10.3.0.2");
    a_vlan_is_behind_the_user_network(c);
    // Not without it.
    let (said, status) = a.tries("ping -c 3 -W 2 10.9.0.3");
    assert!(status != "0." && said.contains("3 packets transmitted, 0 packets received"), "{said}");
    ping_measures_delay_and_loss();
    a_killed_switch_is_replaced(a);
    guests.into_iter().for_each(Guest::ends);
    minivmm("switch stop lab");
    inside("ip link del vlan2; ip link del vlan3");
}

/// It has DHCP, and its gateway is the host's loopback.
fn a_vlan_is_behind_the_user_network(trunk: &mut Guest) {
    inside("mkdir behind; echo through-the-uplink >behind/word; busybox httpd -p 127.0.0.1:8001 -h behind");
    trunk.sh(&format!("{TAKE}; udhcpc -q -n -i eth0.4 -s /tmp/take"));
    let said = trunk.sh("ip -o addr show dev eth0.4; wget -q -O - http://10.0.2.2:8001/word");
    assert!(said.contains("inet 10.0.2.15/24 ") && said.ends_with("through-the-uplink\n"), "{said}");
    inside("kill $(pgrep -f \"[b]usybox httpd -p 127.0.0.1:8001\"); rm -r behind");
}

/// Both for frames each way.
fn ping_measures_delay_and_loss() {
    let delay = 1000.0;
    minivmm("switch set lab a.net0 delay=1000ms");
    // A busy host adds to it, at times.
    let within = |least: f64| least >= 2.0 * delay && least < 2.2 * delay;
    let mut tries = (0..20).map(|_| {
        let said = inside("ping -q -c 3 -W 60 10.2.0.2");
        said.split(" = ").nth(1).unwrap().split('/').next().unwrap().parse::<f64>().unwrap()
    });
    let least = tries
        .by_ref()
        .inspect(|least| assert!(*least >= 2.0 * delay, "{least} ms"))
        .find(|least| within(*least));
    assert!(least.is_some());
    minivmm("switch set lab a.net0 delay=0,loss=50%");
    // So do questions for a neighbour that are lost, for a while.
    let mut tries = (0..10).map(|_| {
        let said = inside("ping -q -c 1000 -i 0.01 -W 5 10.2.0.2 || true");
        let lost = said.split(", ").find_map(|part| part.strip_suffix("% packet loss")).unwrap();
        lost.parse::<f64>().unwrap()
    });
    let lost = tries.by_ref().inspect(|lost| assert!(*lost > 67.5, "{lost}%")).find(|lost| *lost < 82.5);
    assert!(lost.is_some());
    minivmm("switch set lab a.net0 loss=0");
    inside("ping -q -c 20 -i 0.1 -W 60 10.2.0.2 | grep \" 0% packet loss\"");
}

/// Its machines have no link until there is another, and then go on.
fn a_killed_switch_is_replaced(guest: &mut Guest) {
    let pid = minivmm("switch show lab --json | sed -n \"s/.*\\\"pid\\\": *\\([0-9]*\\).*/\\1/p\"");
    lab().sh(&format!("kill -9 {}", pid.trim())).unwrap();
    guest.sh("until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.2; done");
    minivmm(&format!("switch lab --keep -d {UPLINKS}"));
    guest.sh("until [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.2; done");
    guest.sh("until ping -c 1 -W 5 10.3.0.2; do :; done");
}
