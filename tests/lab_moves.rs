//! Small Linux guests that go on elsewhere: under another host's kernel, as a clone, from a snapshot, and live in another process and on
//! another host.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/small.rs"]
mod small;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use dose::soak;
use lab::{Cmd, Flavour, Lab, Process};
use small::{KERNELS, SOON, Small, goes_on, no_splat, remember, succeeds, verb, with_kernels};

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

#[test]
fn a_saved_guest_goes_on_under_the_kernel_of_another_host_and_back_again() {
    let _alone = alone();
    let [older, newer] = hosts();
    for (name, _, has_driver) in guests() {
        let mut guest = Small::boot(older, name, "");
        remember(&mut guest);
        guest.save(older, &format!("{name}.older"));
        carry(&format!("{name}.older"), older, newer);
        guest = Small::restore(newer, &format!("{name}.older"));
        goes_on(&mut guest, *has_driver);
        guest.save(newer, &format!("{name}.newer"));
        carry(&format!("{name}.newer"), newer, older);
        guest = Small::restore(older, &format!("{name}.newer"));
        goes_on(&mut guest, *has_driver);
        guest.kill();
    }
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
fn a_guest_goes_back_to_its_snapshot_and_clones_of_it_write_to_disks_of_their_own() {
    let _alone = alone();
    let [host, _] = hosts();
    for (name, _, has_driver) in guests() {
        host.sh("rm -rf disk.raw state saved; truncate -s 4M disk.raw").unwrap();
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
        guest.save(host, "saved --with-disks");
        let mut clones = ["one", "two"].map(|clone| {
            host.sh(&format!("rm -rf {clone}")).unwrap();
            Small::restore(host, &format!("saved --name {clone} --disks {clone}"))
        });
        for (clone, word) in clones.iter_mut().zip(["one", "two"]) {
            write(clone, word);
        }
        let mut numbers = Vec::new();
        for (clone, word) in clones.iter_mut().zip(["one", "two"]) {
            assert_eq!(read(clone), word);
            goes_on(clone, *has_driver);
            numbers.push(clone.sh("head -c 16 /dev/urandom | md5sum"));
        }
        println!("{name}: {numbers:?}");
        assert!(numbers[0] != numbers[1] || !has_driver, "{numbers:?}");
        clones.into_iter().for_each(Small::kill);
        // What both came from is as it was.
        let mut again = Small::restore(host, "saved --snapshot");
        assert_eq!(read(&mut again), "old");
        again.kill();
    }
}

/// Begins to write memory again and again, and to compare it with what does not change.
fn load(guest: &mut Small) {
    guest.sh(
        "head -c 3000000 /dev/urandom >/tmp/kept; (while cp /tmp/kept /tmp/copy && cmp /tmp/kept /tmp/copy; do echo >>/tmp/rounds; done; \
         touch /tmp/differs) >/dev/null 2>&1 &",
    );
}

/// The load goes on, and what it compares is right.
fn is_under_load(guest: &mut Small) {
    guest.sh("before=$(wc -l </tmp/rounds); until [ $(wc -l </tmp/rounds) -gt $((before + 2)) ]; do sleep 0.1; done");
    guest.sh("! [ -e /tmp/differs ]");
}

/// Of what must not change: memory, and the disk as the host gives it.
fn sums(guest: &mut Small) -> String {
    guest.sh("echo 3 >/proc/sys/vm/drop_caches; md5sum /tmp/kept /dev/vda")
}

/// Seconds on the guest's clock that counts from its boot.
fn uptime(guest: &mut Small) -> f64 {
    guest.sh("cut -d' ' -f1 /proc/uptime").parse().unwrap()
}

/// What `minivmm migrate --json` has said, which has ended well, on one line. A pause is allowed to be long: all of this is emulated, and
/// tests share the host.
#[track_caller]
fn migrated(out: &lab::Output) -> String {
    succeeds(out);
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
fn a_guest_under_load_moves_to_another_process_and_to_another_host() {
    let _alone = alone();
    let [host, other] = hosts();
    let disk: Vec<u8> = (0..1u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for host in [host, other] {
        host.put("shared.raw", &disk).unwrap();
    }
    for (name, _, _) in guests() {
        let mut guest = Small::boot(host, name, "--disk shared.raw,ro");
        remember(&mut guest);
        load(&mut guest);
        is_under_load(&mut guest);
        let before = (sums(&mut guest), uptime(&mut guest));
        // In the same host, and its console goes on in the other process.
        let mut receive =
            host.spawn(&Cmd::sh("exec ./minivmm receive --listen unix:moving --name moved").tty()).unwrap();
        receive.expect("waiting for a machine", SOON).unwrap();
        let migrate = Cmd::sh("./minivmm migrate small --to unix:moving --downtime 10s --json");
        let cost = migrated(&host.exec(&migrate.limit(2 * SOON)).unwrap());
        println!("{name} in one host: {cost}");
        guest.ends_well();
        guest = Small::go_on(receive);
        is_under_load(&mut guest);
        let after = (sums(&mut guest), uptime(&mut guest));
        assert!(before.0 == after.0 && before.1 < after.1, "{before:?} {after:?}");
        goes_on(&mut guest, false);

        // To the other host, through the standard streams of a program.
        host.sh("rm -f up down; mkfifo up down").unwrap();
        let mut streams = ["cat up", "cat >down"].map(|line| host.spawn(&Cmd::sh(line)).unwrap());
        let mut target = other.spawn(&Cmd::sh("./minivmm receive --name small 2>receive.err")).unwrap();
        let is_over = AtomicBool::new(false);
        let out = thread::scope(|scope| {
            scope.spawn(|| connect(streams.each_mut(), &mut target, &is_over));
            let line = "./minivmm migrate moved --to 'cat <down & exec cat >up' --downtime 10s --json";
            let out = host.exec(&Cmd::sh(line).limit(2 * SOON));
            is_over.store(true, Ordering::Relaxed);
            out
        });
        let said = other.sh("cat receive.err").unwrap();
        println!("the target: {said}");
        println!("{name} to another host: {}", migrated(&out.unwrap()));
        guest.ends_well();
        guest = Small::go_on(other.spawn(&Cmd::sh("exec ./minivmm console small").tty()).unwrap());
        is_under_load(&mut guest);
        let there = (sums(&mut guest), uptime(&mut guest));
        assert!(after.0 == there.0 && after.1 < there.1, "{after:?} {there:?}");
        no_splat(&guest.sh("dmesg | sed '1,/saved-here/d'"));
        verb(other, "kill small");
        guest.kill();
    }
}
