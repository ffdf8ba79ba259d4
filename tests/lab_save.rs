//! Linux saved to a folder and restored: a Debian at work with its disks, its console and its networks, and small guests of two
//! kernels, of which one has a driver for the VM generation ID.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::panic,
    reason = "a helper that fails fails its test; what was measured is shown"
)]

#[path = "support/at_work.rs"]
mod at_work;
#[path = "support/debian.rs"]
mod debian;
#[path = "support/dose.rs"]
mod dose;
#[path = "support/small.rs"]
mod small;

use at_work::{
    CLOCKS, ECHO, Load, ahead_of_host, as_user, begin_fio, end_fio, hold_a_connection, lab, log_in,
    networks_work_again, set_right, verb, with_newer_kernel,
};
use debian::{BOOT, Guest, SOON, Tap};
use dose::{dose, soak};
use lab::{Cmd, Flavour};
use small::{FORKED, KERNELS, Small, goes_on, no_splat, remember, succeeds, with_kernels};

#[test]
fn guests_restored_twice_have_timers_and_other_random_numbers() {
    if !soak() {
        println!("in `make soak`: lab_moves restores and clones a small guest");
        return;
    }
    let lab = with_kernels(Flavour::Cloud);
    for (name, _, has_driver) in KERNELS {
        let mut guest = Small::boot(&lab, name, "");
        assert!(guest.sh("uname -r").starts_with(name));
        remember(&mut guest);
        guest.save(&lab, name);
        let numbers: Vec<String> = (0..dose(20))
            .map(|_| {
                let mut guest = Small::restore(&lab, name);
                let number = guest.sh("head -c 16 /dev/urandom | md5sum");
                goes_on(&mut guest, has_driver);
                guest.kill();
                number
            })
            .collect();
        println!("{name}: {numbers:?}");
        if has_driver {
            let mut different = numbers.clone();
            different.sort_unstable();
            different.dedup();
            assert_eq!(different.len(), numbers.len(), "{numbers:?}");
        }
    }
}

#[test]
fn debian_at_work_misses_nothing_when_it_is_saved_taken_back_cloned_and_moved() {
    let tap = Tap::new("tap2", "");
    let mut echo = lab().spawn(&Cmd::sh(format!("exec {ECHO}"))).unwrap();
    goes_through_all(&tap, "6.1.", false, "");
    if soak() {
        goes_through_all(&tap, "6.12.", true, with_newer_kernel());
    }
    echo.signal(15).unwrap();
    echo.wait(SOON).unwrap();
}

/// One boot for all of it. `has_driver` is for the VM generation ID.
fn goes_through_all(tap: &Tap, version: &str, has_driver: bool, kernel: &str) {
    lab().sh("rm -rf vm0.qcow2 vm1 state").unwrap();
    let mut guest = Guest::start(&as_user(&format!(
        "./minivmm --name vm0 {kernel} --disk vm0.raw,overlay=vm0.qcow2 --disk data.raw,direct --disk tools.ext4,ro --tap tap2 \
         --net user,host-loopback=on -p 5555:22 --append quiet",
    )));
    assert!(guest.sh("uname -r").starts_with(version));
    guest.is_healthy();
    guest.sh("until ip -4 -o addr | grep -q 10.0.2.15; do sleep 0.5; done");
    set_right(&mut guest);
    guest.mount_tools("/dev/vdc");
    guest.sh("echo saved-from-here >/dev/kmsg");
    begin_fio(&mut guest);
    let clocks;
    (guest, clocks) = is_saved_and_restored(guest, tap);
    println!("{version}: ahead of the host's clocks: {clocks:?}");
    goes_back_to_its_snapshot(&mut guest);
    let tap = Tap::new("tap3", "");
    let clone = has_a_clone(&mut guest, has_driver);
    end_fio(&mut guest);
    guest.sh("umount -R /mnt");
    guest.is_healthy();
    verb("stop vm0");
    drop(guest);
    moves(clone, version);
    drop(tap);
}

/// Gives how far the guest's clocks were ahead of the host's, at first and after each round.
fn is_saved_and_restored(mut guest: Guest, tap: &Tap) -> (Guest, Vec<[[f64; 2]; 2]>) {
    let mut login = log_in("", tap.name);
    let before = CLOCKS.map(|clock| ahead_of_host(&mut guest, clock));
    let mut clocks = vec![before];
    for round in 0..if soak() { 10 } else { 2 } {
        // The user network's connections are not saved.
        guest.sh(hold_a_connection());
        let folder = format!("saved{round}");
        verb(&format!("save vm0 {folder}"));
        guest = restore(guest, &folder, round);
        let after = CLOCKS.map(|clock| ahead_of_host(&mut guest, clock));
        for ([least, most], [least_before, most_before]) in after.into_iter().zip(before) {
            let is_right = least < most_before + 1.0 && most > least_before - 1.0;
            assert!(is_right, "round {round}: {after:?} ahead of the host, {before:?} before");
        }
        clocks.push(after);
        // What a machine has mapped may go away.
        lab().sh(&format!("rm -r {folder}")).unwrap();
        guest.sh("sleep 1");
        // An ssh session on the TAP is the same.
        login.send(format!("{round}\n")).unwrap();
        login.expect(&format!("heard {round} "), SOON).unwrap();
        networks_work_again(&mut guest, Some(5555));
        no_splat(&guest.sh("dmesg | sed '1,/saved-from-here/d'"));
    }
    login.close_stdin().unwrap();
    succeeds(&login.wait(SOON).unwrap());
    (guest, clocks)
}

/// Memory, disk and services are as they were, and fio, which the snapshot has in the midst of its work, finds on its disk what it wrote.
fn goes_back_to_its_snapshot(guest: &mut Guest) {
    let sum = "echo 3 >/proc/sys/vm/drop_caches; md5sum /dev/shm/kept /root/kept | cut -d ' ' -f 1 | uniq";
    guest.sh("systemd-run --quiet --unit=there sleep 100000");
    guest.sh("head -c 5000000 /dev/urandom >/dev/shm/kept; cp /dev/shm/kept /root/kept; sync");
    let before = guest.sh(sum);
    assert_eq!(before.lines().count(), 1, "{before}");
    guest.sh(hold_a_connection());
    verb("snapshot vm0 clean");
    for round in 0..if soak() { 3 } else { 1 } {
        // The snapshot's guest, and not one that has seen a snapshot taken.
        guest.sh("systemctl stop there; echo lost >/dev/shm/kept; touch /dev/shm/lost /root/lost; rm /root/kept; sync");
        verb("revert vm0 clean");
        guest.says(&format!("reverted-{round}"));
        assert_eq!(guest.sh(sum), before);
        assert_eq!(
            guest.sh("systemctl is-active there; ls /dev/shm /root"),
            "active\n/dev/shm:\nkept\n\n/root:\nkept\n"
        );
        networks_work_again(guest, Some(5555));
        guest.sh("sleep 1");
        no_splat(&guest.sh("dmesg | sed '1,/saved-from-here/d'"));
        guest.is_healthy();
    }
    verb("snapshot vm0 --delete clean");
    guest.sh("systemctl stop there");
}

/// Both go on, and neither sees what the other writes to the overlays on one base.
fn has_a_clone(guest: &mut Guest, has_driver: bool) -> Guest {
    let read = "echo 3 >/proc/sys/vm/drop_caches; cat /root/word";
    let who = "hostname; cat /etc/machine-id; cat /etc/ssh/ssh_host_*_key.pub | md5sum";
    guest.sh("echo cloned-here >/dev/kmsg; echo both >/root/word; sync");
    guest.sh(hold_a_connection());
    // A TAP has one guest with the addresses that this one knows.
    let said = verb("clone vm0 vm1 --net tap=tap3 --net user,host-loopback=on");
    let on_base = said.lines().find(|line| line.starts_with("vda: ")).unwrap();
    assert!(
        on_base.contains("vm1/vda.qcow2, on ") && on_base.contains("/vm0.raw, which must stay"),
        "{said}"
    );
    assert!(
        said.contains("MAC address") && said.contains("must not meet it"),
        "what to heed is said: {said}"
    );
    println!("{said}");
    let mut clone = Guest::go_on(&as_user("./minivmm console vm1"), "clone");
    let both = [(&mut *guest, "original"), (&mut clone, "of-the-clone")];
    for (one, word) in both {
        assert_eq!(one.sh(&format!("{read}; echo {word} >/root/word; sync")), "both\n");
    }
    let [first, second] = [(&mut *guest, "original"), (&mut clone, "of-the-clone")].map(|(one, word)| {
        assert_eq!(one.sh(read), format!("{word}\n"));
        one.sh("sleep 1");
        (one.sh(who), one.sh("head -c 16 /dev/urandom | md5sum"), one.sh("dmesg | sed '1,/cloned-here/d'"))
    });
    // What the documents say of a clone that runs.
    assert_eq!(first.0, second.0);
    no_splat(&first.2);
    no_splat(&second.2);
    assert_eq!([first.2, second.2].map(|log| log.contains(FORKED)), [false, has_driver]);
    assert!(first.1 != second.1 || !has_driver, "{}", first.1);
    verb("forward vm1 5556:22");
    networks_work_again(&mut clone, Some(5556));
    clone
}

/// A network of another host, so far as TAPs and loopback are concerned.
const ELSEWHERE: &str = "ip netns exec elsewhere";

/// To another process, which takes the disks that it writes to, while its memory is written and fio is at work.
fn moves(mut guest: Guest, version: &str) {
    lab()
        .sh(&format!(
            "ip netns add elsewhere; {ELSEWHERE} ip link set lo up; \
             {ELSEWHERE} ip tuntap add mode tap dev tap3 group kvm; {ELSEWHERE} ip link set tap3 up"
        ))
        .unwrap();
    let mut echo = lab().spawn(&Cmd::sh(format!("exec {ELSEWHERE} {ECHO}"))).unwrap();
    let load = Load::begin(&mut guest);
    guest.sh(hold_a_connection());
    let line = as_user("./minivmm receive --listen unix:moving --name moved");
    let mut receive = lab().spawn(&Cmd::sh(format!("exec {ELSEWHERE} {line}")).tty()).unwrap();
    receive.expect("waiting for a machine", SOON).unwrap();
    // All of this is emulated, and tests share the host.
    let line = as_user("./minivmm migrate vm1 --to unix:moving --downtime 10s --json");
    let out = lab().exec(&Cmd::sh(line).limit(BOOT)).unwrap();
    if out.status != lab::Status::Exited(0) {
        // Why it has gone it says last.
        let target = receive.wait(SOON).map(|ended| (ended.status, ended.text()));
        panic!("{}; the target: {target:?}", out.err_text());
    }
    println!("{version}: moved: {}", out.text().split_whitespace().collect::<String>());
    guest.wait();
    let mut guest = Guest::of(receive, "has-moved");
    load.goes_on(&mut guest);
    networks_work_again(&mut guest, None);
    let mut login = log_in(ELSEWHERE, "tap3");
    login.close_stdin().unwrap();
    succeeds(&login.wait(SOON).unwrap());
    end_fio(&mut guest);
    no_splat(&guest.sh("dmesg | sed '1,/cloned-here/d'"));
    guest.sh("umount -R /mnt");
    guest.is_healthy();
    succeeds(
        &lab()
            .exec(&Cmd::sh(format!("{ELSEWHERE} {}", as_user("./minivmm stop moved"))).limit(BOOT))
            .unwrap(),
    );
    guest.wait();
    for image in ["vm1/vda.qcow2", "vm0.qcow2"] {
        lab().sh(&format!("qemu-img check -q {image}")).unwrap();
    }
    echo.signal(15).unwrap();
    echo.wait(SOON).unwrap();
    lab().sh("ip netns del elsewhere").unwrap();
}

/// Ends the console of a machine that was saved, and gives that of the restored one: its own, or one attached to it.
#[track_caller]
fn restore(saved: Guest, folder: &str, round: u32) -> Guest {
    let in_background = round % 2 == 1;
    let out = saved.wait();
    // The first machine is in the foreground, and so is each that was restored without -d.
    if round == 0 || !in_background {
        succeeds(&out);
    }
    if in_background {
        verb(&format!("restore {folder} -d --log restored.log"));
    }
    let line = if in_background {
        "./minivmm console vm0".to_owned()
    } else {
        format!("./minivmm restore {folder}")
    };
    Guest::go_on(&as_user(&line), &format!("again-{round}"))
}
