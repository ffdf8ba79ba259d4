//! A Debian under stress-ng and fio moves live: to another process of its host, which takes its disks, and with its disks to another
//! host, through sockets.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::panic,
    reason = "a helper that fails fails its test; what was measured is shown"
)]

#[allow(dead_code, reason = "each test file uses its part")]
#[path = "support/at_work.rs"]
mod at_work;
#[path = "support/debian.rs"]
mod debian;
#[path = "support/dose.rs"]
mod dose;
#[path = "support/small.rs"]
mod small;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use at_work::{SUMS, as_user, begin_fio, end_fio, keep, lab, uptime};
use debian::{BOOT, Guest, SOON};
use dose::soak;
use lab::{Cmd, Lab, LabConfig, Output, Process, Status, stress_ng};
use small::{no_splat, succeeds};

/// Twice the processes of an emulated host that gets what this one leaves it.
const MOVE: Duration = Duration::from_secs(1200);

#[test]
fn debian_under_stress_moves_in_its_host_and_to_another_one_and_misses_nothing() {
    if !soak() {
        println!(
            "in `make soak`: lab_save moves a Debian under fio in its host, lab_moves a small guest to another one"
        );
        return;
    }
    let other =
        Lab::start(&LabConfig::default().debian().file(env!("CARGO_BIN_EXE_minivmm"), "minivmm")).unwrap();
    other.sh("ip link set lo up; mkdir -m 700 run there; chown 1000:1000 . vm0.raw run there").unwrap();
    let stress = stress_ng().unwrap();
    for host in [lab(), &other] {
        host.put("stress.tar", &stress).unwrap();
    }
    let mut guest = Guest::start(&as_user(
        "./minivmm --name vm0 --mem 384 --disk vm0.raw,overlay=vm0.qcow2 --disk data.raw,direct --disk tools.ext4,ro \
         --disk stress.tar,ro --append quiet",
    ));
    guest.is_healthy();
    guest.mount_tools("/dev/vdc");
    let mut work = Work::begin(&mut guest);

    let mut target = receive(lab(), "--listen unix:moving --name moved");
    let out = migrate("vm0 --to unix:moving");
    print(&out, "in one host", &mut target);
    guest.wait();
    let mut guest = Guest::of(target, "has-moved");
    work.goes_on(&mut guest);

    let mut target = receive(&other, "--listen unix:moving --disks there --name moved");
    let is_over = AtomicBool::new(false);
    // Both ends are sockets, and this process is the cable between them.
    let mut here = lab().spawn(&Cmd::sh(as_user("socat -b 65536 UNIX-LISTEN:cable -"))).unwrap();
    let mut there = other.spawn(&Cmd::sh(as_user("socat -b 65536 - UNIX-CONNECT:moving"))).unwrap();
    lab().sh("until [ -S cable ]; do sleep 0.1; done").unwrap();
    let out = thread::scope(|scope| {
        let (up, down) = (there.input(), here.input());
        let (one, two, over) = (&mut here, &mut there, &is_over);
        scope.spawn(move || {
            pass(one, over, |bytes| up.send(bytes).unwrap());
            let _ = up.close();
        });
        scope.spawn(move || {
            pass(two, over, |bytes| down.send(bytes).unwrap());
            let _ = down.close();
        });
        let out = migrate("moved --to unix:cable --with-disks --bandwidth 16M");
        is_over.store(true, Ordering::Relaxed);
        out
    });
    print(&out, "to another host", &mut target);
    guest.wait();
    let mut guest = Guest::of(target, "has-moved-on");
    work.goes_on(&mut guest);
    work.ends_well(&mut guest);
    guest.sh("umount -R /mnt");
    guest.is_healthy();
    succeeds(&other.exec(&Cmd::sh(as_user("./minivmm stop moved")).limit(BOOT)).unwrap());
    guest.wait();
    lab().sh("qemu-img check -q vm0.qcow2").unwrap();
}

/// Its console goes on there.
fn receive(host: &Lab, words: &str) -> Process {
    let line = as_user(&format!("./minivmm receive --timeout 300s {words}"));
    let mut target = host.spawn(&Cmd::sh(format!("exec {line}")).tty()).unwrap();
    target.expect("waiting for a machine", SOON).unwrap();
    target
}

/// All of this is emulated, and tests share the host: what it takes is shown and not judged.
fn migrate(words: &str) -> Output {
    let line = as_user(&format!("./minivmm migrate {words} --timeout 300s --downtime 10s --json"));
    lab().exec(&Cmd::sh(line).limit(MOVE)).unwrap()
}

#[track_caller]
fn print(out: &Output, how: &str, target: &mut Process) {
    if out.status != Status::Exited(0) {
        let target = target.wait(SOON).map(|ended| (ended.status, ended.text()));
        panic!("{how}: {}; the target: {target:?}", out.err_text());
    }
    println!("{how}: {}", out.text().split_whitespace().collect::<String>());
}

/// Gives what a process writes to `to`, until all is over.
fn pass(from: &mut Process, is_over: &AtomicBool, to: impl Fn(Vec<u8>)) {
    loop {
        let news = from.news(Duration::from_millis(200));
        if !news.stdout.is_empty() {
            to(news.stdout);
        } else if news.ended || is_over.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// stress-ng, which writes memory and looks at what it wrote, fio, which does so with a disk, and what must not change.
struct Work {
    sums: String,
    system: String,
    uptime: f64,
    ticks: u64,
}

/// Of many files of the system's disk, as the host gives them.
const SYSTEM: &str = "echo 3 >/proc/sys/vm/drop_caches; cat /boot/* /usr/bin/[a-m]* 2>/dev/null | md5sum";
/// How long its processes have had a processor, in ticks.
const TICKS: &str = "for p in $(pgrep stress-ng); do cut -d' ' -f14 /proc/$p/stat; done | awk '{all += $1} END {print all + 0}'";

impl Work {
    fn begin(guest: &mut Guest) -> Self {
        let sums = keep(guest);
        guest.sh("mkdir /tmp/stress; tar -x -C /tmp/stress </dev/vdd");
        begin_fio(guest);
        guest.sh(
            "(LD_LIBRARY_PATH=/tmp/stress/usr/lib/x86_64-linux-gnu /tmp/stress/usr/bin/stress-ng --vm 1 --vm-bytes 32M --vm-keep --verify \
             --timeout 0 >/tmp/stressed 2>&1; echo ended with $? >>/tmp/stressed) &",
        );
        let system = guest.sh_within(SYSTEM, BOOT);
        let mut work = Work { sums, system, uptime: uptime(guest), ticks: 0 };
        work.is_at_work(guest);
        work
    }

    /// It has worked for another second.
    fn is_at_work(&mut self, guest: &mut Guest) {
        let line =
            format!("until now=$({TICKS}); [ $now -gt {} ]; do sleep 0.2; done; echo $now", self.ticks + 100);
        self.ticks = guest.sh_within(&line, BOOT).trim().parse().unwrap();
    }

    /// All is as it was, and the guest has not begun anew.
    fn goes_on(&mut self, guest: &mut Guest) {
        let now = uptime(guest);
        assert!(now > self.uptime, "{now} {}", self.uptime);
        self.is_at_work(guest);
        assert_eq!(guest.sh(SUMS), self.sums);
        assert_eq!(guest.sh_within(SYSTEM, BOOT), self.system);
        no_splat(&guest.sh("dmesg"));
    }

    /// Both have found all that they wrote.
    fn ends_well(self, guest: &mut Guest) {
        end_fio(guest);
        let said = guest
            .sh_within("pkill -INT -o stress-ng; until grep -q 'ended with' /tmp/stressed; do sleep 0.2; done; cat /tmp/stressed", BOOT);
        assert!(said.contains("successful run completed") && said.contains("ended with 0"), "{said}");
        assert!(!said.contains("fail"), "{said}");
    }
}
