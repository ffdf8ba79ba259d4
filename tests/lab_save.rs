//! Linux saved to a folder and restored: a Debian at work with its disks, its console and its networks, and small guests of two
//! kernels, of which one has a driver for the VM generation ID.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "support/debian.rs"]
mod debian;
#[path = "support/dose.rs"]
mod dose;

use std::sync::OnceLock;

use debian::{AS_USER, BOOT, Guest, LINK_LOCAL, SOON, Tap, in_tools};
use dose::{dose, soak};
use lab::{Cmd, Flavour, InitramfsSpec, Lab, LabConfig, Output, Process, Status, initramfs, kernel};

/// Small guests by their names here, and whether their kernel has a driver for the VM generation ID.
const KERNELS: [(&str, Flavour, bool); 2] = [("6.1", Flavour::Cloud, false), ("6.12", Flavour::Trixie, true)];

/// A lab with both kernels and their initrds.
fn with_kernels() -> Lab {
    let mut config = LabConfig::default().file(env!("CARGO_BIN_EXE_minivmm"), "minivmm");
    for (name, flavour, _) in KERNELS {
        let kernel = kernel(flavour).unwrap();
        let initrd = initramfs(&kernel, &InitramfsSpec::default()).unwrap();
        // Not compressed, it boots sooner.
        config =
            config.file(&kernel.vmlinux, format!("{name}.vmlinux")).file(initrd, format!("{name}.initrd"));
    }
    Lab::start(&config).unwrap()
}

/// A small guest at a shell that says only what commands say.
#[derive(Debug)]
struct Small(Process);

impl Small {
    #[track_caller]
    fn boot(lab: &Lab, name: &str) -> Self {
        let line = format!(
            "exec ./minivmm --name small --kernel {name}.vmlinux --initrd {name}.initrd --mem 96 --net none --append quiet"
        );
        let mut console = lab.spawn(&Cmd::sh(line).tty()).unwrap();
        console.expect("guest:/# ", BOOT).unwrap();
        let mut guest = Small(console);
        guest.type_in("stty -echo; PS1= PS2=; echo its-''shell", "its-shell");
        guest
    }

    /// Its console goes on, with what was in its screen.
    #[track_caller]
    fn restore(lab: &Lab, folder: &str) -> Self {
        let mut guest = Small(lab.spawn(&Cmd::sh(format!("exec ./minivmm restore {folder}")).tty()).unwrap());
        guest.type_in("echo goes-''on", "goes-on");
        guest
    }

    #[track_caller]
    fn type_in(&mut self, line: &str, answer: &str) {
        self.0.send(format!("{line}\n")).unwrap();
        self.0.expect(answer, SOON).unwrap();
    }

    /// What a line says, which must succeed.
    #[track_caller]
    fn sh(&mut self, line: &str) -> String {
        self.0.send(format!("( {line}\n) 2>&1; echo \"status=$?.\"\n")).unwrap();
        let said = self.0.expect("status=", SOON).unwrap();
        assert_eq!(self.0.expect(".", SOON).unwrap(), "0.", "{line}: {said}");
        said.trim_end_matches("status=").replace('\r', "").trim().to_owned()
    }

    #[track_caller]
    fn save(mut self, lab: &Lab, folder: &str) {
        lab.sh(&format!("./minivmm save small {folder}")).unwrap();
        let out = self.0.wait(SOON).unwrap();
        assert_eq!(out.status, Status::Exited(0), "{}{}", out.text(), out.err_text());
    }

    #[track_caller]
    fn kill(mut self) {
        self.0.signal(9).unwrap();
        self.0.wait(SOON).unwrap();
    }
}

/// What Linux says when it hears of a new VM generation ID.
const FORKED: &str = "crng reseeded due to virtual machine fork";

#[test]
fn guests_restored_twice_have_timers_and_other_random_numbers() {
    let lab = with_kernels();
    for (name, _, has_driver) in KERNELS {
        let mut guest = Small::boot(&lab, name);
        assert!(guest.sh("uname -r").starts_with(name));
        guest.sh("echo kept >/tmp/word; echo saved-here >/dev/kmsg");
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

/// A small guest that was restored has all that it had, and nothing to complain of.
#[track_caller]
fn goes_on(guest: &mut Small, has_driver: bool) {
    assert_eq!(guest.sh("sleep 1; cat /tmp/word"), "kept");
    let log = guest.sh("dmesg | sed '1,/saved-here/d'");
    no_splat(&log);
    assert_eq!(log.contains(FORKED), has_driver, "{log}");
}

#[track_caller]
fn succeeds(out: &Output) {
    assert_eq!(out.status, Status::Exited(0), "{}{}", out.text(), out.err_text());
}

/// What Linux says of a fault.
const SPLATS: [&str; 8] = [
    "soft lockup",
    "rcu: INFO",
    "hung_task",
    "blocked for more than",
    "BUG:",
    "WARNING:",
    "Call Trace",
    "I/O error",
];

#[track_caller]
fn no_splat(log: &str) {
    for splat in SPLATS {
        assert!(!log.contains(splat), "{splat}: {log}");
    }
}

/// A lab with Debian, whose loopback is up.
fn lab() -> &'static Lab {
    static LAB: OnceLock<()> = OnceLock::new();
    let lab = debian::lab();
    LAB.get_or_init(|| {
        lab.sh("ip link set lo up; mkdir -m 700 run; truncate -s 64M data.raw; chown 1000:1000 run data.raw")
            .unwrap();
    });
    lab
}

/// A command of the courses' user.
fn as_user(line: &str) -> String {
    format!("env XDG_RUNTIME_DIR=$PWD/run {AS_USER} {line}")
}

/// A verb, which must do what it is asked; gives what it printed.
#[track_caller]
fn verb(words: &str) -> String {
    let out = lab().exec(&Cmd::sh(as_user(&format!("./minivmm {words}"))).limit(BOOT)).unwrap();
    succeeds(&out);
    out.text()
}

/// Writes, reads again what it wrote, and compares.
const FIO: &str = "fio --output-format=terse --direct=1 --ioengine=libaio --iodepth=8 --verify=crc32c --verify_fatal=1 \
                   --name=load --filename=/dev/vdb --size=32m --bs=4k --rw=randrw --verify_backlog=64 --time_based --runtime=5";

#[test]
fn debian_at_work_is_saved_and_restored_again_and_again_and_misses_nothing() {
    let tap = Tap::new("tap2", "");
    let mut echo = lab()
        .spawn(&Cmd::sh("exec socat TCP-LISTEN:7010,bind=127.0.0.1,fork,reuseaddr EXEC:cat 2>&1"))
        .unwrap();
    let mut guest = Guest::start(&as_user(
        "./minivmm --name vm0 --disk vm0.raw --disk data.raw,direct --disk tools.ext4,ro --tap tap2 \
         --net user,host-loopback=on -p 5555:22 --append quiet",
    ));
    guest.is_healthy();
    guest.sh("until ip -4 -o addr | grep -q 10.0.2.15; do sleep 0.5; done");
    set_right(&mut guest);
    guest.mount_tools("/dev/vdc");
    guest.sh("echo saved-from-here >/dev/kmsg");
    let job = in_tools(FIO);
    guest.sh(&format!(
        "rm -f /tmp/enough; ((until [ -e /tmp/enough ]; do {job} || exit 1; done; echo all-verified) >/tmp/fio 2>&1; echo over >>/tmp/fio) &"
    ));
    let mut login = log_in(tap.name);
    for round in 0..if soak() { 10 } else { 2 } {
        let before = clock_difference(&mut guest);
        // The user network's connections are not saved.
        guest.sh(&hold_a_connection());
        let folder = format!("saved{round}");
        verb(&format!("save vm0 {folder}"));
        guest = restore(guest, &folder, round);
        let after = clock_difference(&mut guest);
        println!(
            "round {round}: the guest's clock is {before:?} ahead of the host's before, {after:?} after"
        );
        // What a machine has mapped may go away.
        lab().sh(&format!("rm -r {folder}")).unwrap();
        guest.sh("sleep 1");
        // An ssh session on the TAP is the same.
        login.send(format!("{round}\n")).unwrap();
        login.expect(&format!("heard {round} "), SOON).unwrap();
        networks_work_again(&mut guest);
        no_splat(&guest.sh("dmesg | sed '1,/saved-from-here/d'"));
    }
    let said = guest
        .sh_within("touch /tmp/enough; until grep -qx over /tmp/fio; do sleep 1; done; cat /tmp/fio", BOOT);
    assert!(said.contains("all-verified"), "{said}");
    login.close_stdin().unwrap();
    succeeds(&login.wait(SOON).unwrap());
    guest.sh("umount -R /mnt");
    guest.is_healthy();
    verb("stop vm0");
    echo.signal(15).unwrap();
    echo.wait(SOON).unwrap();
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

/// A login through the TAP that answers line by line.
fn log_in(tap: &str) -> Process {
    let line = format!(
        "exec sshpass -p -etu- ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
         -o ConnectTimeout=60 etu@{LINK_LOCAL}%{tap} 'while read -r word; do echo heard $word again; done'"
    );
    let mut login = lab().spawn(&Cmd::sh(line)).unwrap();
    login.send("first\n").unwrap();
    login.expect("heard first ", SOON).unwrap();
    login
}

/// Opens a connection to the host's loopback, on which something has gone both ways. It waits in `read`.
fn hold_a_connection() -> String {
    let script = "exec 3<>/dev/tcp/10.0.2.2/7010; echo open >&3; read -r word <&3; echo $word >/tmp/held; \
                  while sleep 0.5 && echo more >&3; do :; done 2>>/tmp/held; echo ended >>/tmp/held";
    format!(
        "rm -f /tmp/held; (bash -c '{script}' >/tmp/bash 2>&1 &); until grep -q open /tmp/held; do sleep 0.2; done"
    )
}

/// Those of the user network.
fn networks_work_again(guest: &mut Guest) {
    let held = guest.sh("until grep -q ended /tmp/held; do sleep 0.2; done; cat /tmp/held");
    assert!(held.contains("Connection reset by peer"), "{held}");
    let asked =
        guest.sh("bash -c 'exec 3<>/dev/tcp/10.0.2.2/7010; echo through >&3; read -r word <&3; echo $word'");
    assert_eq!(asked, "through\n");
    let out = lab().exec(&Cmd::sh("exec bash -c 'head -c 7 </dev/tcp/127.0.0.1/5555'").limit(SOON)).unwrap();
    assert_eq!(out.text(), "SSH-2.0", "{}", out.err_text());
}

/// How far the guest's clock is ahead of the host's, in seconds: at least and at most.
fn clock_difference(guest: &mut Guest) -> [f64; 2] {
    let host = || lab().sh("date +%s.%N").unwrap().trim().parse::<f64>().unwrap();
    let ask = |_| {
        let asked = host();
        let told = guest.sh("date +%s.%N").trim().parse::<f64>().unwrap();
        [told - host(), told - asked]
    };
    (0..5).map(ask).fold([f64::MIN, f64::MAX], |all, [least, most]| [all[0].max(least), all[1].min(most)])
}

/// As a time service would. Before it has its own clock, Linux counts ticks, of which an emulated processor loses seconds while it boots.
fn set_right(guest: &mut Guest) {
    let now = lab().sh("date +%s.%N").unwrap();
    guest.sh(&format!("date -s @{}", now.trim()));
}
