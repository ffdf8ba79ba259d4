//! A cloud image without a kernel beside it, on a user network, and a command on its kernel. In `make soak` a course's evening: the
//! shortest command with a kernel, an ordinary user, a TAP made before; all that the guide shows, the disk grown and divided with LVM, and a
//! reboot.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/debian.rs"]
mod debian;
#[path = "support/dose.rs"]
mod dose;
#[path = "support/world.rs"]
mod world;

use std::time::Duration;

use debian::{
    AS_USER, BOOT, Guest, LINK_LOCAL, MAC, SOON, Tap, lab, ssh, the_hardware_is_what_the_guide_shows,
    the_image_is_one_machine, the_user_may_do_nothing_else,
};
use dose::{dose, soak};
use lab::{Cmd, Status};
use world::{FAR, FAR6, INSIDE, PEERS, World};

#[test]
fn debian_runs_as_the_courses_show_it_for_a_user_without_capabilities_and_reboots_with_all_it_has() {
    if !soak() {
        println!(
            "in `make soak`: lab_readme starts the same machine, and lab_verbs and lab_disks ask these questions of theirs"
        );
        return;
    }
    let used = || lab().sh("du -m vm0.raw | cut -f1").unwrap().trim().parse::<u64>().unwrap();
    assert!(used() < 1024, "the new image uses {} MiB", used());
    lab().sh("./minivmm disk resize vm0.raw +20G").unwrap();
    let tap = Tap::new("tap2", "");
    // What a kernel prints on a serial port takes an emulated machine ten seconds; README's machine is started without `quiet`.
    let quiet = "--append quiet";
    let mut guest = Guest::start(&format!(
        "{AS_USER} ./minivmm --kernel vmlinuz --disk vm0.raw --tap tap2 --mem 512 {quiet}"
    ));
    guest.banner_says(&[
        "Kernel      : vmlinuz (Linux 6.1.",
        "Initrd      : /boot/initrd.img-6.1.",
        "Root        : root=PARTUUID=",
        "RAM         : 512 MiB",
        "Disk        : vda = vm0.raw (28 GiB, ",
        &format!("Network     : tap2, MAC {MAC}, IPv6 link-local {LINK_LOCAL}"),
    ]);
    the_user_may_do_nothing_else();
    guest.is_healthy();
    assert!(guest.sh("who").contains("etu      ttyS0"));
    the_hardware_is_what_the_guide_shows(&mut guest);
    parted_says(&mut guest, &PARTED);
    the_image_is_one_machine(&mut guest);
    let reached = || ssh(&format!("{LINK_LOCAL}%{}", tap.name), "hostname; id -un");
    assert_eq!(reached(), "vm0\netu\n");
    take_the_new_space(&mut guest);
    // With its disk and its network, and with what it wrote: as the small guest of lab_devices.
    let boot_id = "cat /proc/sys/kernel/random/boot_id";
    let first = guest.sh(boot_id);
    guest.reboot();
    assert_ne!(guest.sh(boot_id), first);
    assert_eq!(reached(), "vm0\netu\n");
    guest.sh("mount /dev/vg0/data /mnt && sha256sum -c /root/sum && umount /mnt");
    guest.is_healthy();
    guest.power_off();
    // On the host the file shows what the guest used, not what it could use.
    assert!(used() < 1024, "{} MiB of the disk are used", used());
}

/// What parted says of the disk as it was bought, before the table is mended.
const PARTED: [&str; 6] = [
    "Model: Virtio Block Device (virtblk)",
    "Disk /dev/vda: 30.1GB",
    "Sector size (logical/physical): 512B/512B",
    "Partition Table: gpt",
    "Number  Start   End     Size    File system  Name  Flags",
    " 1      1049kB  8589MB  8588MB  ext4         root",
];

/// Lines of what parted says.
#[track_caller]
fn parted_says(guest: &mut Guest, lines: &[&str]) {
    let disk = guest.sh("parted -s /dev/vda print");
    for line in lines {
        assert!(disk.lines().any(|said| said.trim_end() == *line), "{line}: {disk}");
    }
}

/// As the guide does it: the table is mended for the new size, two partitions become one volume group.
fn take_the_new_space(guest: &mut Guest) {
    assert_eq!(guest.sh("lsblk -bdno SIZE /dev/vda").trim(), (28_u64 << 30).to_string());
    for line in [
        "parted --fix --script /dev/vda print",
        "parted --script /dev/vda mkpart first 8GiB 18GiB mkpart second 18GiB 100%",
        "udevadm settle; pvcreate -y /dev/vda2",
        "vgcreate vg0 /dev/vda2",
        "pvcreate -y /dev/vda3",
        "vgextend vg0 /dev/vda3",
        "lvcreate -y -n data -L 15G vg0",
        "mkfs.ext4 -q /dev/vg0/data",
        "mount /dev/vg0/data /mnt && head -c 20M /dev/urandom > /mnt/file && sha256sum /mnt/file > /root/sum",
        "umount /mnt && e2fsck -fn /dev/vg0/data",
    ] {
        guest.sh(line);
    }
}

/// An image as people download them: qcow2 with compressed clusters, GRUB's default entry, a root that lies behind partitions 14 and
/// 15. What the guest writes goes into the image.
#[test]
fn a_compressed_cloud_image_alone_boots_as_grub_says_and_has_a_network() {
    let blocks = if soak() { 128 } else { 2 };
    let world = World::new(lab(), BLOCK);
    // For a user without any capability: no TAP is made.
    let mut guest = Guest::start(&format!(
        "sh -c \"ulimit -n 16384; exec {INSIDE} {AS_USER} ./minivmm --disk cloud.qcow2 --net user,host-loopback=on \
         -p 5555:22 -p 0.0.0.0:20022:22 -p '[::1]:5556:22' -p 7020:7020\""
    ));
    // A newer kernel is installed as well, and GRUB's first entry.
    guest.banner_says(&[
        "Boot entry  : /boot/grub/grub.cfg (Debian GNU/Linux, with Linux 6.1.",
        "Kernel      : /boot/vmlinuz-6.1.",
        "Initrd      : /boot/initrd.img-6.1.",
        "Disk        : vda = cloud.qcow2 (8.1 GiB",
    ]);
    guest.is_healthy();
    assert!(guest.sh("who").contains("etu      ttyS0"));
    let line = guest.sh("cat /proc/cmdline");
    assert!(
        line.contains("root=PARTUUID=") && line.contains(" console=tty0 console=ttyS0,115200 "),
        "{line}"
    );
    assert!(guest.sh("findmnt -no SOURCE /").contains("/dev/vda1\n"));
    let [model, _, sectors, table, ..] = PARTED;
    parted_says(&mut guest, &[model, sectors, table]);
    the_user_network_is_what_the_guide_shows(&world);
    logins_come_from_the_gateway(&world);
    connections_are_as_on_any_network(&world, dose(1000));
    a_package_comes_from_a_mirror_on_the_hosts_loopback(&world);
    streams_arrive_as_they_were(&world, blocks);
    guest.kill();
    // Clusters may be lost to a killed machine (3), and nothing else.
    lab().sh("qemu-img check -q cloud.qcow2 || test $? = 3").unwrap();
}

/// Time for the longest of streams, a GiB, under two emulations.
const STREAM: Duration = Duration::from_secs(1800);
/// Bytes of the file that streams are made of.
const BLOCK: u64 = 8 << 20;
const CLIENT: &str = "sshpass -p -etu- ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
                      -o ConnectTimeout=60 -p 5555 etu@localhost";

/// Runs a script in the guest, with `arguments`.
#[track_caller]
fn guest(world: &World, script: &str, arguments: &str) -> String {
    lab().put("script", script.as_bytes()).unwrap();
    world.sh(&format!("{CLIENT} bash -es {arguments} <script"), STREAM)
}

/// By systemd-networkd in the guest: DHCP and router advertisements.
fn the_user_network_is_what_the_guide_shows(world: &World) {
    // The router is asked a moment after DHCP is.
    let said = guest(
        world,
        "for i in $(seq 60); do ip -o addr show scope global | grep -q 'inet6 fd' && resolvectl dns | grep -q ' fd' && break; sleep 1; done
         ip -o addr show scope global; ip route; resolvectl dns; getent ahosts mirror.test
         ! getent ahosts mirror.example || echo found; echo from $SSH_CLIENT
         for peer in 10.0.2.2 $1 $2; do ping -q -c 1 -W 60 $peer; done",
        &format!("{FAR} {FAR6}"),
    );
    for fact in [
        "inet 10.0.2.15/24 ",
        "inet6 fd",
        "default via 10.0.2.2 ",
        ": 10.0.2.3 fd",
        "10.0.2.2        STREAM mirror.test",
        "2001:db8::1     STREAM",
        "from 10.0.2.2 ",
    ] {
        assert!(said.contains(fact), "{fact}: {said}");
    }
    assert!(!said.contains("found") && said.matches(" 0% packet loss").count() == 3, "{said}");
}

/// The host's own come from the gateway, in `w` as well and over IPv6; those from elsewhere keep their address.
fn logins_come_from_the_gateway(world: &World) {
    let said = world.sh(&format!("{CLIENT} -tt w"), SOON);
    assert!(said.lines().any(|line| line.starts_with("etu ") && line.contains(" 10.0.2.2 ")), "{said}");
    for (port, address, from) in [("20022", FAR, "192.0.2.1 "), ("5556", "::1", "fd")] {
        let client = CLIENT.replace("5555", port).replace("localhost", address);
        let said = world.sh(&format!("{client} 'echo $SSH_CLIENT'"), SOON);
        assert!(said.starts_with(from), "{said}");
    }
}

/// What the ends of connections see where no guest is between them.
const SEEN: &str = "half-closed: 8000 bytes asked
nobody listens: Connection refused
no way to 203.0.113.5: No route to host
no way to 2001:db8:1::5: No route to host
nobody gets a datagram: Connection refused
killed as it sent: an end
killed as it received: Connection reset by peer
";

/// Half-closed, refused, out of reach, and cut off when a process of the host is killed.
fn connections_are_as_on_any_network(world: &World, connections: u64) {
    let put = format!("cat >peers.pl <<'END'\n{PEERS}\nEND\nulimit -n 2000\n");
    let try_all = "perl peers.pl guest 10.0.2.2 $1; perl peers.pl guest $2 1; perl peers.pl answer 7020 </dev/null >/dev/null 2>&1";
    let said = guest(world, &format!("{put}{try_all}"), &format!("{connections} {FAR6}"));
    let many = format!("open: {connections}\nechoed: {connections}, at a time: {connections}\n");
    assert_eq!(said, format!("{SEEN}{many}{SEEN}open: 1\nechoed: 1, at a time: 1\n"));
    // The other way round.
    assert_eq!(world.sh("perl peers.pl ask 127.0.0.1 7020", SOON), "8000 bytes asked\n");
}

/// Its name is the host's to resolve, and it listens where only the host reaches it.
fn a_package_comes_from_a_mirror_on_the_hosts_loopback(world: &World) {
    let said = guest(
        world,
        "cat >root <<'END'
             echo 'deb [trusted=yes] http://mirror.test:8000 ./' >/etc/apt/sources.list
             apt-get -q update && apt-get -q -y install word
END
         echo -etu- | sudo -S -p '' sh root 2>&1
         cat /usr/share/word/word",
        "",
    );
    assert!(said.ends_with("\ninstalled\n"), "{said}");
}

/// Each way through a socket of the host's loopback.
fn streams_arrive_as_they_were(world: &World, blocks: u64) {
    let stream = |file: &str| format!("for i in $(seq {blocks}); do cat {file}; done");
    let (here, there) = (stream("package/usr/share/word/block"), stream("/usr/share/word/block"));
    let end = |line: String| lab().spawn(&Cmd::sh(format!("exec {INSIDE} sh -c '{line}'"))).unwrap();
    let mut source = end(format!("{here} | socat -b 65536 -u - TCP-LISTEN:7010,bind=127.0.0.1"));
    let mut sink = end("socat -b 65536 -u TCP-LISTEN:7011,bind=127.0.0.1 - | md5sum".into());
    world.sh(
        "until [ $(ss -Hltn \"( sport = 7010 or sport = 7011 )\" | wc -l) = 2 ]; do sleep 0.2; done",
        SOON,
    );
    let down = guest(world, "md5sum </dev/tcp/10.0.2.2/7010", "");
    guest(world, &format!("{{ {there}; }} >/dev/tcp/10.0.2.2/7011"), "");
    let up = sink.wait(SOON).unwrap().text();
    source.wait(SOON).unwrap();
    let sum = world.sh(&format!("{here} | md5sum"), STREAM);
    assert_eq!((&down, &up), (&sum, &sum));
}

/// Two whole Debians without a word of configuration: addresses, names and packages by the switch's user network, and each other.
#[test]
fn two_debians_on_a_switch_have_addresses_names_packages_and_each_other() {
    if !soak() {
        println!("in `make soak`: the tests of lab_networks show it with small guests");
        return;
    }
    let _world = World::new(lab(), BLOCK);
    let user = format!("env XDG_RUNTIME_DIR=$PWD/run {INSIDE} {AS_USER}");
    lab().sh("mkdir -m 700 run; cp vm0.raw vm1.raw; chown 1000:1000 run vm1.raw").unwrap();
    let switch = "./minivmm switch lab --keep -d --uplink user,host-loopback=on";
    lab().sh(&format!("{user} {switch}")).unwrap();
    let guests = ["vm0", "vm1"].map(|name| {
        let mut guest =
            Guest::start(&format!("{user} ./minivmm --name {name} --disk {name}.raw --net switch=lab"));
        let address = guest.sh("until ip -o -4 addr show scope global | grep -q 10.0.2; do sleep 1; done
             ip -o -4 addr show scope global | sed 's/.*inet //; s,/.*,,'");
        (guest, address.trim().to_owned())
    });
    let [(mut first, at), (mut second, at_second)] = guests;
    assert_ne!(at, at_second);
    for guest in [&mut first, &mut second] {
        let said = guest.sh("echo 'deb [trusted=yes] http://mirror.test:8000 ./' >/etc/apt/sources.list
             apt-get -q update && apt-get -q -y install word && cat /usr/share/word/word");
        assert!(said.ends_with("\ninstalled\n"), "{said}");
    }
    for (guest, other) in [(&mut first, &at_second), (&mut second, &at)] {
        guest.sh(&format!("ping -q -c 3 {other}"));
        let said = guest.sh(&format!("bash -c 'head -c 7 </dev/tcp/{other}/22'"));
        assert_eq!(said, "SSH-2.0");
    }
    let shown = lab().sh(&format!("{user} ./minivmm switch show lab")).unwrap();
    assert!(shown.contains("vm0.net0") && shown.contains("vm1.net0"), "{shown}");
    first.power_off();
    second.power_off();
    lab().sh(&format!("{user} ./minivmm switch stop lab; rm -r run vm1.raw")).unwrap();
}

#[test]
fn a_command_runs_on_the_kernel_and_with_the_modules_of_a_cloud_image_and_changes_nothing() {
    lab().sh("md5sum cloud.qcow2 >cloud.sum").unwrap();
    let guest = "uname -r; cat /sys/block/vda/ro; echo changed >/dev/vda; sync; exit 3";
    let line = format!(
        "TMPDIR=$PWD ./minivmm run --disk cloud.qcow2,snapshot --mem 256 --boot-timeout 120 -- sh -c '{guest}'"
    );
    let out = lab().exec(&Cmd::sh(line).limit(BOOT)).unwrap();
    assert_eq!(out.status, Status::Exited(3), "{}{}", out.text(), out.err_text());
    assert!(out.text().starts_with("6.1.") && out.text().ends_with("-amd64\n0\n"), "{}", out.text());
    lab().sh("md5sum -c cloud.sum").unwrap();
}
