//! Small Linux guests that go on elsewhere: under another host's kernel, as a clone, from a snapshot, and live in another process and on
//! another host.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a helper that fails fails its test; what was measured is shown"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/small.rs"]
mod small;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use dose::soak;
use lab::{Cmd, Flavour, Lab, Process, Status};
use small::{KERNELS, SOON, Small, goes_on, remember, succeeds, verb, with_kernels};

/// A host with Linux 6.1 and one with 6.12.
fn hosts() -> [&'static Lab; 2] {
    static HOSTS: OnceLock<[Lab; 2]> = OnceLock::new();
    let hosts = HOSTS.get_or_init(|| {
        let hosts = [with_kernels(Flavour::Cloud), with_kernels(Flavour::Trixie)];
        for (host, version) in hosts.iter().zip(["6.1.", "6.12."]) {
            assert!(host.sh("uname -r").unwrap().starts_with(version));
        }
        // What a saved machine is made of has an absolute path.
        assert_eq!(hosts[0].sh("pwd").unwrap(), hosts[1].sh("pwd").unwrap());
        hosts
    });
    hosts.each_ref()
}

/// The emulated processors have one test at a time: machines of one name are there at most once, and none is slowed down.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The guests that a test is about: that with all drivers, and in a soak the other one too.
fn guests() -> &'static [(&'static str, Flavour, bool)] {
    if soak() { &KERNELS } else { &KERNELS[1..] }
}

/// Carries a folder from one host to the other.
fn carry(folder: &str, from: &Lab, to: &Lab) {
    let packed = from.exec(&Cmd::sh(format!("tar -c {folder} | gzip -1")).limit(SOON)).unwrap();
    succeeds(&packed);
    succeeds(&to.exec(&Cmd::sh("gunzip | tar -x").stdin(packed.stdout).limit(SOON)).unwrap());
}

/// Writes to the guest's disk, so that it is there.
fn write(guest: &mut Small, word: &str) {
    guest.sh(&format!("echo {word} >/tmp/disk; dd if=/tmp/disk of=/dev/vda bs=512 count=1 conv=sync,fsync"));
}

/// What the disk holds, and not what the guest remembers of it.
fn read(guest: &mut Small) -> String {
    guest.sh("echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\\0'")
}

#[test]
fn a_guest_goes_back_to_its_snapshot_has_clones_and_moves_with_its_disk() {
    let _alone = alone();
    let [host, _] = hosts();
    for (name, _, has_driver) in guests() {
        host.sh("rm -rf disk.raw state one two; truncate -s 4M disk.raw").unwrap();
        let mut guest = Small::boot(host, name, "--disk disk.raw");
        remember(&mut guest);
        write(&mut guest, "old");
        let snapshots = |words: &str| {
            succeeds(&host.exec(&Cmd::sh(format!("XDG_STATE_HOME=$PWD/state ./minivmm {words}"))).unwrap());
        };
        snapshots("snapshot small clean");
        for round in 0..if soak() { 5 } else { 2 } {
            // The snapshot's guest, and not one that has seen a snapshot taken.
            write(&mut guest, &format!("new{round}"));
            guest.sh("echo lost >/tmp/word; echo lost >/tmp/more");
            assert_eq!(read(&mut guest), format!("new{round}"));
            snapshots("revert small clean");
            assert_eq!(guest.sh("ls /tmp/more || cat /tmp/word").lines().last(), Some("kept"));
            assert_eq!(read(&mut guest), "old");
            goes_on(&mut guest, *has_driver);
        }
        has_two_clones(host, &mut guest, *has_driver);
        moves_with_its_disk(host, guest, name);
    }
}

/// Each writes to a disk of its own, and each is told that it is another machine.
fn has_two_clones(host: &Lab, guest: &mut Small, has_driver: bool) {
    // What it has heard so far is not asked for again.
    guest.sh("dmesg -c >/dev/null; echo >/dev/kmsg; echo saved-here >/dev/kmsg");
    let mut clones = ["one", "two"].map(|clone| {
        verb(host, &format!("clone small {clone}"));
        Small::go_on(host.spawn(&Cmd::sh(format!("exec ./minivmm console {clone}")).tty()).unwrap())
    });
    for (clone, word) in clones.iter_mut().zip(["one", "two"]) {
        assert_eq!(read(clone), "old");
        write(clone, word);
    }
    write(guest, "original");
    let mut numbers = BTreeSet::new();
    for (clone, word) in clones.iter_mut().zip(["one", "two"]) {
        assert_eq!(read(clone), word);
        goes_on(clone, has_driver);
        numbers.insert(clone.sh("head -c 16 /dev/urandom | md5sum"));
    }
    println!("{numbers:?}");
    assert!(numbers.len() == 2 || !has_driver, "{numbers:?}");
    verb(host, "kill one");
    verb(host, "kill two");
    clones.into_iter().for_each(Small::kill);
    // What both came from is as it was.
    assert_eq!(read(guest), "original");
    goes_on(guest, false);
}

/// Live to another process of the same host, which takes the disk that it writes to.
fn moves_with_its_disk(host: &'static Lab, mut guest: Small, name: &str) {
    load(&mut guest, "/dev/vda");
    is_under_load(&mut guest);
    let before = (guest.sh(SUM), uptime(&mut guest));
    // Its console goes on in the other process.
    let mut receive =
        host.spawn(&Cmd::sh("exec ./minivmm receive --listen unix:moving --name moved").tty()).unwrap();
    receive.expect("waiting for a machine", SOON).unwrap();
    let migrate = Cmd::sh("./minivmm migrate small --to unix:moving --downtime 10s --json");
    let out = host.exec(&migrate.limit(2 * SOON)).unwrap();
    let cost = migrated(&out, &receive.so_far());
    println!("{name} in one host: {cost}");
    guest.ends_well();
    guest = Small::go_on(receive);
    is_under_load(&mut guest);
    let after = (guest.sh(SUM), uptime(&mut guest));
    assert!(before.0 == after.0 && before.1 < after.1, "{before:?} {after:?}");
    goes_on(&mut guest, false);
    guest.kill();
}

/// Begins to write memory again and again, and a disk, and to compare them with what does not change.
fn load(guest: &mut Small, disk: &str) {
    guest.sh(&format!(
        "head -c 1048576 /dev/urandom >/tmp/kept; (n=0; while cp /tmp/kept /tmp/copy && cmp /tmp/kept /tmp/copy &&
         n=$(((n + 1) % 4)) && dd if=/tmp/kept of={disk} bs=4k seek=$((n * 256)) conv=notrunc,fsync &&
         echo 1 >/proc/sys/vm/drop_caches && dd if={disk} bs=4k skip=$((n * 256)) count=256 | cmp - /tmp/kept; \
         do echo >>/tmp/rounds; done; touch /tmp/differs) >/dev/null 2>&1 &"
    ));
}

/// The load goes on, and what it compares is right.
fn is_under_load(guest: &mut Small) {
    guest.sh("before=$(wc -l </tmp/rounds); until [ $(wc -l </tmp/rounds) -gt $((before + 2)) ]; do sleep 0.1; done");
    guest.sh("! [ -e /tmp/differs ]");
}

/// Of what must not change in memory.
const SUM: &str = "md5sum /tmp/kept";
/// And of the disk as the host gives it.
const SUMS: &str = "echo 3 >/proc/sys/vm/drop_caches; md5sum /tmp/kept /dev/vda";

/// Seconds on the guest's clock that counts from its boot.
fn uptime(guest: &mut Small) -> f64 {
    guest.sh("cut -d' ' -f1 /proc/uptime").parse().unwrap()
}

/// What `minivmm migrate --json` has said, which has ended well, on one line. A pause is allowed to be long: all of this is emulated, and
/// tests share the host.
#[track_caller]
fn migrated(out: &lab::Output, target: &str) -> String {
    assert_eq!(out.status, Status::Exited(0), "{}; the target: {target}", out.err_text());
    out.text().split_whitespace().collect()
}

/// Carries the bytes between a machine that leaves one host and a process that takes it on another, until one of them ends.
fn connect([up, down]: [&mut Process; 2], target: &mut Process, is_over: &AtomicBool) {
    let (to_target, to_source) = (target.input(), down.input());
    thread::scope(|scope| {
        scope.spawn(move || {
            pass(up, is_over, |bytes| to_target.send(bytes).unwrap());
            let _ = to_target.close();
        });
        pass(target, is_over, |bytes| to_source.send(bytes).unwrap());
        let _ = to_source.close();
    });
}

/// Gives what a process writes to `to`.
fn pass(from: &mut Process, is_over: &AtomicBool, to: impl Fn(Vec<u8>)) {
    loop {
        let news = from.news(Duration::from_millis(200));
        if !news.stdout.is_empty() {
            to(news.stdout);
        }
        if news.ended || is_over.load(Ordering::Relaxed) {
            return;
        }
    }
}

#[test]
fn a_guest_under_load_moves_to_a_host_with_another_kernel_and_is_carried_back_in_a_folder() {
    let _alone = alone();
    let [host, other] = hosts();
    let disk: Vec<u8> = (0..1u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for host in [host, other] {
        host.put("shared.raw", &disk).unwrap();
    }
    for (name, _, has_driver) in guests() {
        host.sh("rm -f disk.raw; truncate -s 4M disk.raw").unwrap();
        other.sh("rm -rf moved; mkdir moved").unwrap();
        let mut guest = Small::boot(host, name, "--disk shared.raw,ro --disk disk.raw");
        remember(&mut guest);
        load(&mut guest, "/dev/vdb");
        is_under_load(&mut guest);
        let before = (guest.sh(SUMS), uptime(&mut guest));
        // Through the standard streams of a program.
        host.sh("rm -f up down; mkfifo up down").unwrap();
        let mut streams = ["cat up", "cat >down"].map(|line| host.spawn(&Cmd::sh(line)).unwrap());
        let mut target =
            other.spawn(&Cmd::sh("./minivmm receive --name small --disks moved 2>receive.err")).unwrap();
        let is_over = AtomicBool::new(false);
        let out = thread::scope(|scope| {
            scope.spawn(|| connect(streams.each_mut(), &mut target, &is_over));
            let line =
                "./minivmm migrate small --to 'cat <down & exec cat >up' --with-disks --downtime 10s --json";
            let out = host.exec(&Cmd::sh(line).limit(2 * SOON));
            is_over.store(true, Ordering::Relaxed);
            out
        });
        let said = other.sh("cat receive.err").unwrap();
        println!("{name} to another host: {}", migrated(&out.unwrap(), &said));
        guest.ends_well();
        guest = Small::go_on(other.spawn(&Cmd::sh("exec ./minivmm console small").tty()).unwrap());
        is_under_load(&mut guest);
        let there = (guest.sh(SUMS), uptime(&mut guest));
        assert!(before.0 == there.0 && before.1 < there.1, "{before:?} {there:?}");
        goes_on(&mut guest, false);

        // And back: a folder of the newer host on the older one.
        verb(other, &format!("save small {name}.newer --with-disks"));
        guest.ends_well();
        guest = carried(&format!("{name}.newer"), other, host);
        is_under_load(&mut guest);
        assert_eq!(guest.sh(SUMS), before.0);
        goes_on(&mut guest, *has_driver);
        if soak() {
            guest.save(host, &format!("{name}.older --with-disks"));
            guest = carried(&format!("{name}.older"), host, other);
            is_under_load(&mut guest);
            goes_on(&mut guest, *has_driver);
        }
        guest.kill();
    }
}

/// The guest that was saved on one host, restored on another one.
fn carried(folder: &str, from: &Lab, to: &Lab) -> Small {
    carry(folder, from, to);
    to.sh("rm -rf again").unwrap();
    Small::restore(to, &format!("{folder} --disks again"))
}
