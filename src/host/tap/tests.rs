//! Tests with TAPs of this kernel, each in a network namespace of its own. They need root and `ip`.
#![allow(clippy::cast_possible_truncation, reason = "numbers of tests are small")]

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio::memory::{Memory, Segment};
use virtio::net::{HEADER_LEN, Net, NetBackend, Offloads};
use virtio::poll::Epoll;
use virtio::testing::Guest;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::host::testing::starting;

/// The user and the group of the TAPs here.
const USER: u32 = 54_321;
const GROUP: u32 = 54_322;

/// The user of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunAs {
    Root,
    /// [`USER`] in [`GROUP`], with no capability.
    User,
}

fn check(result: libc::c_int, what: &str) {
    assert_eq!(result, 0, "{what}: {} (these tests need root: sudo)", io::Error::last_os_error());
}

/// Runs `test` in a thread with its own network, /sys and /dev/net, after `commands`. The namespaces end with
/// the thread.
fn in_namespace(commands: &str, run_as: RunAs, test: impl FnOnce() + Send) {
    let inside = || {
        // SAFETY: numbers and constant texts only; namespaces of this thread alone are changed.
        unsafe {
            check(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS), "a namespace");
            let (root, none) = (c"/".as_ptr(), ptr::null());
            check(
                libc::mount(none, root, none, libc::MS_REC | libc::MS_PRIVATE, none.cast()),
                "private mounts",
            );
            let (sysfs, tmpfs) = (c"sysfs".as_ptr(), c"tmpfs".as_ptr());
            check(libc::mount(sysfs, c"/sys".as_ptr(), sysfs, 0, none.cast()), "/sys");
            check(libc::mount(tmpfs, c"/dev/net".as_ptr(), tmpfs, 0, none.cast()), "/dev/net");
            let tun = c"/dev/net/tun".as_ptr();
            check(libc::mknod(tun, libc::S_IFCHR | 0o666, libc::makedev(10, 200)), "/dev/net/tun");
            check(libc::chmod(tun, 0o666), "/dev/net/tun");
        }
        run(commands);
        if run_as == RunAs::User {
            become_user();
        }
        test();
    };
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(inside).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Makes this thread [`USER`] without any capability. The C library's calls would change the whole process.
fn become_user() {
    let groups = [GROUP];
    // SAFETY: numbers, and one group from an array of one.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_setgroups, 1, groups.as_ptr()), 0);
        assert_eq!(libc::syscall(libc::SYS_setresgid, USER, USER, USER), 0);
        assert_eq!(libc::syscall(libc::SYS_setresuid, USER, USER, USER), 0);
    }
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    for set in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"] {
        assert!(status.contains(set), "{status}");
    }
}

fn run(commands: &str) {
    let done = Command::new("sh").args(["-ec", commands]).output().unwrap();
    assert!(done.status.success(), "{commands}: {}", String::from_utf8_lossy(&done.stderr));
}

fn says(interface: &str, what: &str) -> String {
    fs::read_to_string(format!("/sys/class/net/{interface}/{what}")).unwrap().trim().to_owned()
}

fn open(name: &str) -> Result<TapBackend, TapError> {
    TapBackend::new(Arc::new(Tap::open(name, 4)?))
}

fn refused(name: &str) -> String {
    open(name).unwrap_err().to_string()
}

fn queues(interface: &str) -> usize {
    let entries = fs::read_dir(format!("/sys/class/net/{interface}/queues")).unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("tx")).count()
}

fn readable(fd: RawFd, milliseconds: i32) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, valid across the call.
    unsafe { libc::poll(&mut poll, 1, milliseconds) == 1 }
}

/// Every way that `ip tuntap add` makes a TAP, and whether it has several queues.
const KINDS: [(&str, bool); 6] = [
    ("", false),
    ("pi", false),
    ("vnet_hdr", false),
    ("one_queue", false),
    ("multi_queue", true),
    ("multi_queue vnet_hdr pi", true),
];

#[test]
fn a_tap_of_every_kind_opens_with_offloads_and_no_capability_and_is_left_as_it_was() {
    for (kind, several) in KINDS {
        let make = format!("ip tuntap add mode tap dev t0 user {USER} {kind}; ip link set t0 mtu 1400 up");
        in_namespace(&make, RunAs::User, || {
            let before = ["mtu", "address", "flags", "owner"].map(|what| says("t0", what));
            let mut tap = open("t0").unwrap();
            assert_eq!(tap.pairs(), if several { 4 } else { 1 }, "{kind}");
            assert!(tap.offloads().contains(Offloads::CSUM | Offloads::TSO4 | Offloads::TSO6), "{kind}");
            tap.set_offloads(tap.offloads()).unwrap();
            assert!(tap.mtu() == 1400 && tap.warning().is_none() && tap.link_is_up(), "{kind}");
            assert_eq!(before, ["mtu", "address", "flags", "owner"].map(|what| says("t0", what)), "{kind}");
            drop(tap);
            // A new process that sets nothing.
            let file = sys::open_tun().unwrap();
            attach(&file, &Interface::find("t0").unwrap()).unwrap();
            assert_eq!(sys::header_len(&file).unwrap(), 10, "{kind}");
        });
    }
}

#[test]
fn membership_in_the_group_is_enough() {
    in_namespace(&format!("ip tuntap add mode tap dev t0 group {GROUP}"), RunAs::User, || {
        open("t0").unwrap();
    });
}

#[test]
fn a_tap_of_somebody_else_says_whose_it_is() {
    in_namespace(
        "ip tuntap add mode tap dev t0 user root; ip tuntap add mode tap dev t1 group 54323",
        RunAs::User,
        || {
            let user = refused("t0");
            assert!(user.contains("t0 belongs to user root, and you are 54321"), "{user}");
            assert!(user.contains("sudo ip tuntap add mode tap dev t0 user 54321"), "{user}");
            let group = refused("t1");
            assert!(group.contains("sudo usermod -aG 54323 54321, then log in again"), "{group}");
        },
    );
}

#[test]
fn a_tap_in_use_says_by_whom_also_where_the_kernel_would_share_it() {
    for kind in ["", "multi_queue"] {
        in_namespace(&format!("ip tuntap add mode tap dev t0 {kind}"), RunAs::Root, || {
            let first = open("t0").unwrap();
            let Err(TapError::Busy { holder: Some(holder), .. }) = open("t0") else {
                panic!("{kind}: two machines on one TAP");
            };
            assert_eq!(holder.pid, std::process::id());
            drop(first);
            // A child of another test may hold the file between its fork and its exec.
            let free = (0..1000).any(|_| {
                std::thread::sleep(Duration::from_millis(20));
                open("t0").is_ok()
            });
            assert!(free, "{kind}: a TAP that nobody holds stays busy");
        });
    }
}

#[test]
fn what_is_no_tap_is_refused_by_what_it_is() {
    let make = "ip link add b0 type bridge; ip tuntap add mode tun dev u0; ip tuntap add mode tap dev t0";
    in_namespace(make, RunAs::Root, || {
        let bridge = refused("b0");
        assert!(
            bridge.contains("b0 is a bridge") && bridge.contains("ip link set tap0 master b0"),
            "{bridge}"
        );
        assert!(refused("u0").contains("u0 is a TUN interface"));
        assert!(refused("lo").contains("lo is the loopback interface"));
        let missing = refused("tap2");
        assert!(missing.contains("there is no network interface tap2 (there is t0); create it"), "{missing}");
        assert!(
            missing.contains("sudo ip tuntap add mode tap dev tap2 user root && sudo ip link set tap2 up")
        );
        assert!(missing.contains("sudo ovs-vsctl add-port"));
        // Root could have created it by the request.
        assert!(!Path::new("/sys/class/net/tap2").exists());
    });
}

#[test]
fn a_driver_that_is_missing_or_closed_is_said_to_be() {
    let make = format!("ip tuntap add mode tap dev t0 user {USER}; chmod 600 /dev/net/tun");
    in_namespace(&make, RunAs::User, || assert!(matches!(open("t0"), Err(TapError::DriverDenied))));
    in_namespace("ip tuntap add mode tap dev t0; rm /dev/net/tun", RunAs::Root, || {
        assert!(matches!(open("t0"), Err(TapError::DriverMissing)));
    });
}

#[test]
fn an_interface_of_another_namespace_is_not_made_anew() {
    in_namespace("ip tuntap add mode tap dev t0", RunAs::Root, || {
        // SAFETY: changes this thread alone. /sys still shows the namespace before.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) }, "a namespace");
        assert!(matches!(open("t0"), Err(TapError::Namespace { .. })));
    });
}

#[test]
fn a_tap_of_this_namespace_opens_whatever_sys_shows() {
    in_namespace("ip tuntap add mode tap dev t1", RunAs::Root, || {
        // SAFETY: changes this thread alone. /sys still shows the namespace before.
        check(unsafe { libc::unshare(libc::CLONE_NEWNET) }, "a namespace");
        run("ip tuntap add mode tap dev t0 multi_queue && ip link set t0 mtu 1400 up");
        let mut tap = open("t0").unwrap();
        assert_eq!((NetBackend::pairs(&tap), NetBackend::mtu(&tap)), (4, 1400));
        assert!(tap.warning().is_none() && tap.link_is_up());
        assert!(!refused("nosuch").contains("t1"), "a TAP of another namespace is offered");
    });
}

#[test]
fn queues_are_attached_as_they_are_enabled() {
    in_namespace(&format!("ip tuntap add mode tap dev t0 user {USER} multi_queue"), RunAs::User, || {
        let mut tap = open("t0").unwrap();
        for count in [1, 3, 4, 1, 2] {
            NetBackend::enable(&mut tap, count).unwrap();
            assert_eq!(queues("t0"), usize::from(count));
        }
        assert!(NetBackend::enable(&mut tap, 5).is_err() && NetBackend::enable(&mut tap, 0).is_err());
    });
}

#[test]
fn the_link_follows_the_interface() {
    in_namespace("ip tuntap add mode tap dev t0", RunAs::Root, || {
        let mut tap = open("t0").unwrap();
        let down = tap.warning().unwrap().to_string();
        assert!(down.ends_with("sudo ip link set t0 up"), "{down}");
        assert!(!tap.link_is_up());
        for (command, up) in
            [("up", true), ("carrier off", false), ("carrier on", true), ("down", false), ("up", true)]
        {
            run(&format!("ip link set t0 {command}"));
            assert!(readable(tap.link_fd().unwrap(), 60_000), "{command}");
            let deadline = Instant::now() + Duration::from_secs(60);
            while tap.link_is_up() != up {
                assert!(Instant::now() < deadline, "{command}");
            }
        }
        run("ip link del t0");
        assert!(!tap.link_is_up());
        let (memory, _) = virtio::testing::memory(4096);
        let error = tap.receive(0, &mut [0; HEADER_LEN], &memory, &[], &mut [0; 100]).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::WouldBlock);
    });
}

/// Two TAPs on a silent bridge: without an address, and without multicast snooping.
const BRIDGED: &str = "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
    ip link add b0 type bridge mcast_snooping 0; ip link set b0 up
    for t in t0 t1; do ip tuntap add mode tap dev $t; ip link set $t master b0 up; done";

/// Payload type of frames of these tests (IEEE 802 local experiments).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

fn segments(pieces: &[(u64, u32)]) -> Vec<Segment> {
    pieces.iter().map(|(at, len)| Segment { address: GuestAddress(*at), len: *len }).collect()
}

/// The next frame at `tap`: its header and its length.
fn receive(
    tap: &mut TapBackend,
    memory: &Memory,
    room: &[Segment],
    spill: &mut [u8],
) -> ([u8; HEADER_LEN], usize) {
    let mut header = [0xff; HEADER_LEN];
    loop {
        match tap.receive(0, &mut header, memory, room, spill) {
            Ok(len) => return (header, len),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        assert!(readable(tap.fd(0).unwrap(), 2000), "no frame comes");
    }
}

#[test]
fn a_frame_goes_from_scattered_memory_to_scattered_memory_and_spills_over() {
    in_namespace(BRIDGED, RunAs::Root, || {
        let (mut from, mut to) = (open("t0").unwrap(), open("t1").unwrap());
        let (memory, _) = virtio::testing::memory(1 << 16);
        let mut frame: Vec<u8> = (0..1000).map(|at| (at % 251) as u8).collect();
        frame[..12].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1]);
        frame[12..14].copy_from_slice(&ETHERTYPE);
        memory.write_slice(&frame[..7], GuestAddress(0x1000)).unwrap();
        memory.write_slice(&frame[7..], GuestAddress(0x3000)).unwrap();
        from.send(0, &[0; HEADER_LEN], &memory, &segments(&[(0x1000, 7), (0x3000, 993)])).unwrap();
        let mut spill = [0; 2000];
        let (_, len) = receive(&mut to, &memory, &segments(&[(0x5000, 100), (0x7000, 500)]), &mut spill);
        let mut got = vec![0; 600];
        memory.read_slice(&mut got[..100], GuestAddress(0x5000)).unwrap();
        memory.read_slice(&mut got[100..], GuestAddress(0x7000)).unwrap();
        got.extend(&spill[..400]);
        assert!(len == 1000 && got == frame);
        let error = to.receive(0, &mut [0; HEADER_LEN], &memory, &[], &mut spill).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    });
}

/// A TCP segment of `payload` bytes over IPv4 that asks for checksum and segmentation, and its header.
fn large_segment(payload: u16) -> ([u8; HEADER_LEN], Vec<u8>) {
    let mut frame = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 0];
    let [high, low] = (40 + payload).to_be_bytes();
    frame.extend([0x45, 0, high, low, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum =
        frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
    let sum = !(((sum >> 16) + (sum & 0xffff)) as u16);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend([0x30, 0, 0x40, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    frame.resize(54 + usize::from(payload), 0xaa);
    let mut header = [0; HEADER_LEN];
    header[..2].copy_from_slice(&[1, 1]);
    for (at, field) in [(2, 54u16), (4, 1448), (6, 34), (8, 16)] {
        header[at..at + 2].copy_from_slice(&field.to_le_bytes());
    }
    (header, frame)
}

#[test]
fn a_large_segment_passes_uncut_to_a_guest_that_takes_it_and_cut_to_one_that_does_not() {
    in_namespace(BRIDGED, RunAs::Root, || {
        let (mut from, mut to) = (open("t0").unwrap(), open("t1").unwrap());
        let (memory, _) = virtio::testing::memory(1 << 18);
        let (header, frame) = large_segment(60_000);
        memory.write_slice(&frame, GuestAddress(0)).unwrap();
        let (whole, room) = (segments(&[(0, frame.len() as u32)]), segments(&[(0x20000, 0x20000)]));

        to.set_offloads(to.offloads()).unwrap();
        from.send(0, &header, &memory, &whole).unwrap();
        let (got, len) = receive(&mut to, &memory, &room, &mut []);
        assert_eq!((len, &got[..2], &got[4..6]), (frame.len(), &header[..2], &header[4..6]));

        to.set_offloads(Offloads::empty()).unwrap();
        from.send(0, &header, &memory, &whole).unwrap();
        let (got, len) = receive(&mut to, &memory, &room, &mut []);
        assert_eq!((len, got[1]), (54 + 1448, 0));
    });
}

#[test]
fn a_boot_finds_nothing_of_the_boot_before_and_the_carrier_stays() {
    for kind in ["", "multi_queue"] {
        let make = format!(
            "{BRIDGED}; ip link del t1; ip tuntap add mode tap dev t1 {kind}; ip link set t1 master b0 up"
        );
        in_namespace(&make, RunAs::Root, || {
            let (mut from, tap) = (open("t0").unwrap(), Arc::new(Tap::open("t1", 4).unwrap()));
            let (memory, _) = virtio::testing::memory(1 << 18);
            let (header, frame) = large_segment(60_000);
            memory.write_slice(&frame, GuestAddress(0)).unwrap();
            let (whole, room) = (segments(&[(0, frame.len() as u32)]), segments(&[(0x20000, 0x20000)]));
            let mut first = TapBackend::new(tap.clone()).unwrap();
            let notifications = says("t1", "carrier_changes");

            let pairs = NetBackend::pairs(&first);
            NetBackend::enable(&mut first, pairs).unwrap();
            first.set_offloads(first.offloads()).unwrap();
            from.send(0, &header, &memory, &whole).unwrap();
            let deadline = Instant::now() + Duration::from_secs(60);
            while !(0..pairs).any(|pair| readable(first.fd(pair).unwrap(), 1)) {
                assert!(Instant::now() < deadline, "{kind}: no frame comes");
            }
            drop(first);

            let mut second = TapBackend::new(tap.clone()).unwrap();
            assert_eq!(queues("t1"), 1, "{kind}");
            let nothing = second.receive(0, &mut [0; HEADER_LEN], &memory, &room, &mut []).unwrap_err();
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock, "{kind}");
            from.send(0, &header, &memory, &whole).unwrap();
            let (got, len) = receive(&mut second, &memory, &room, &mut []);
            assert_eq!((len, got[1]), (54 + 1448, 0), "{kind}: a large segment comes uncut");
            NetBackend::enable(&mut second, pairs).unwrap();
            assert_eq!(
                (queues("t1"), says("t1", "carrier_changes")),
                (pairs.into(), notifications),
                "{kind}"
            );
        });
    }
}

#[test]
fn a_boot_on_a_tap_that_was_removed_says_so_and_what_was_changed_is_seen() {
    in_namespace("ip tuntap add mode tap dev t0; ip link set t0 mtu 1400 up", RunAs::Root, || {
        let tap = Arc::new(Tap::open("t0", 1).unwrap());
        let first = TapBackend::new(tap.clone()).unwrap();
        assert!(first.warning().is_none() && NetBackend::mtu(&first) == 1400);
        run("ip link set t0 mtu 1300 down");
        let second = TapBackend::new(tap.clone()).unwrap();
        assert!(second.warning().is_some() && NetBackend::mtu(&second) == 1300);
        run("ip link del t0; ip tuntap add mode tap dev t0");
        let removed = TapBackend::new(tap).unwrap_err();
        assert!(matches!(removed, TapError::Removed { .. }), "{removed}");
        assert!(removed.to_string().contains("t0 was removed while the machine used it"), "{removed}");
    });
}

#[test]
fn a_header_that_the_kernel_refuses_loses_the_frame_and_nothing_else() {
    in_namespace(BRIDGED, RunAs::Root, || {
        let mut tap = open("t0").unwrap();
        let (memory, _) = virtio::testing::memory(1 << 16);
        let mut bad = [0; HEADER_LEN];
        bad[..2].copy_from_slice(&[1, 0x7f]);
        let error = tap.send(0, &bad, &memory, &segments(&[(0, 60)])).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::WouldBlock);
        tap.send(0, &[0; HEADER_LEN], &memory, &segments(&[(0, 60)])).unwrap();
        let beyond = segments(&[(0, 60), (1 << 40, 60)]);
        assert!(tap.send(0, &[0; HEADER_LEN], &memory, &beyond).is_err());
    });
}

#[test]
fn a_driver_behind_the_device_talks_through_a_tap_both_ways() {
    in_namespace(BRIDGED, RunAs::Root, || {
        let (tap, mut peer) = (open("t0").unwrap(), open("t1").unwrap());
        let device = Net::<Epoll>::new("net0", [2, 0, 0, 0, 0, 9], Box::new(tap), 1);
        let mut guest = Guest::new(Box::new(device), Box::new(Epoll::new));
        guest.start(u64::MAX, 256);
        let (memory, _) = virtio::testing::memory(1 << 16);
        let mut frame = vec![0xff; 1000];
        frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, ETHERTYPE[0], ETHERTYPE[1]]);
        for turn in 0..500u16 {
            frame[14..16].copy_from_slice(&turn.to_le_bytes());
            guest.request(1, &[&[0; HEADER_LEN], &frame], &[]);
            let (_, len) = receive(&mut peer, &memory, &segments(&[(0, 2000)]), &mut []);
            assert_eq!(len, 1000);
            peer.send(0, &[0; HEADER_LEN], &memory, &segments(&[(0, 1000)])).unwrap();
            let (_, buffer) = guest.add(0, &[], &[1526]);
            guest.kick(0);
            assert_eq!(guest.rings[0].wait_used().len as usize, HEADER_LEN + 1000);
            assert_eq!(guest.bytes(buffer[0] + HEADER_LEN as u64, 1000), frame, "frame {turn}");
        }
        let counters = guest.counters();
        let [requests, sent, received] =
            [&counters.requests, &counters.bytes_out, &counters.bytes_in].map(|count| count.now());
        assert_eq!((requests, sent, received, counters.errors.now()), (1000, 500_000, 500_000, 0));
    });
}

/// An answer to an ARP request (RFC 826): `frame` with its two halves exchanged, from the address 02:00:00:00:00:09.
fn arp_answer(frame: &[u8]) -> Vec<u8> {
    let own = [2, 0, 0, 0, 0, 9];
    let (asking, target) = (&frame[22..32], &frame[38..42]);
    [&frame[6..12], &own, &frame[12..20], &[0, 2], &own, target, asking].concat()
}

#[test]
fn a_tap_as_a_port_of_a_switch_passes_frames_both_ways_without_a_capability() {
    let make = format!(
        "ip tuntap add mode tap dev t0 user {USER}; ip addr add 10.9.9.1/24 dev t0; ip link set t0 up"
    );
    in_namespace(&make, RunAs::User, || {
        let port = TapPort::open("t0", Offloads::CSUM | Offloads::TSO4).unwrap();
        assert!(port.offloads().contains(Offloads::CSUM) && port.warning().is_none());
        let socket = std::net::UdpSocket::bind("10.9.9.1:0").unwrap();
        socket.send_to(b"to the guest", "10.9.9.2:9").unwrap();
        let mut bytes = vec![0; 70_000];
        let next = |bytes: &mut Vec<u8>, kind: [u8; 2]| {
            let begun = Instant::now();
            loop {
                assert!(begun.elapsed() < Duration::from_secs(60), "no frame of type {kind:?}");
                match port.read(bytes).unwrap() {
                    Some(count) if bytes[HEADER_LEN + 12..HEADER_LEN + 14] == kind => {
                        return bytes[HEADER_LEN..count].to_vec();
                    }
                    Some(_) => {}
                    None => drop(readable(port.fd().unwrap(), 1000)),
                }
            }
        };
        let request = next(&mut bytes, [8, 6]);
        let answer = arp_answer(&request);
        assert!(port.send(&[0; HEADER_LEN], &[&answer[..12], &answer[12..]]));
        let datagram = next(&mut bytes, [8, 0]);
        assert!(datagram.ends_with(b"to the guest"), "{datagram:?}");
        let too_many = [&answer[..1]; 10];
        assert!(!port.send(&[0; HEADER_LEN], &too_many));
    });
}

#[test]
fn a_tap_that_was_closed_is_had_when_a_program_that_begins_lets_go_of_it() {
    for (kind, several) in [("", false), ("multi_queue", true)] {
        in_namespace(&format!("ip tuntap add mode tap dev t0 {kind}"), RunAs::Root, || {
            let first = open("t0").unwrap();
            let (child, mut begun, mut end) = starting();
            begun.read_exact(&mut [0]).unwrap();
            drop(first);
            let file = sys::open_tun().unwrap();
            let free = sys::attach(&file, "t0", several).is_ok_and(|_| !several);
            assert!(!free, "the child has a copy of its queue");
            drop(file);
            end.write_all(&[0]).unwrap();
            // Between this and the last, the child needs longer than we do.
            let opened = open("t0").unwrap_or_else(|error| panic!("{kind}: {error:?}"));
            assert_eq!(opened.pairs(), if several { 4 } else { 1 });
            child.join().unwrap();
        });
    }
}
