//! Small Linux guests of two kernels in a lab: busybox at a shell on the console. One of the kernels has a driver for the VM generation
//! ID.

#![allow(dead_code, reason = "each test file uses its part")]

use std::time::Duration;

use lab::{Cmd, Flavour, InitramfsSpec, Lab, LabConfig, Output, Process, Status, initramfs, kernel};

/// Time to boot under two emulations, on a busy machine.
const BOOT: Duration = Duration::from_secs(480);
/// Time for a guest that is up to answer.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// The guests' kernels by their names here, and whether they have a driver for the VM generation ID.
pub(crate) const KERNELS: [(&str, Flavour, bool); 2] =
    [("6.1", Flavour::Cloud, false), ("6.12", Flavour::Trixie, true)];

/// A lab whose own kernel is `host`, with both kernels and their initrds.
pub(crate) fn with_kernels(host: Flavour) -> Lab {
    let mut config = LabConfig::default().kernel(host).file(env!("CARGO_BIN_EXE_minivmm"), "minivmm");
    for (name, flavour, _) in KERNELS {
        let kernel = kernel(flavour).unwrap();
        let mut spec = InitramfsSpec::default();
        spec.modules.extend(["virtio_pci", "virtio_blk"].map(String::from));
        let initrd = initramfs(&kernel, &spec).unwrap();
        // Not compressed, it boots sooner.
        config =
            config.file(&kernel.vmlinux, format!("{name}.vmlinux")).file(initrd, format!("{name}.initrd"));
    }
    Lab::start(&config).unwrap()
}

/// Runs a verb in a lab, which must do what it is asked; gives what it printed.
#[track_caller]
pub(crate) fn verb(lab: &Lab, words: &str) -> String {
    let out = lab.exec(&Cmd::sh(format!("./minivmm {words}")).limit(BOOT)).unwrap();
    succeeds(&out);
    out.text()
}

#[track_caller]
pub(crate) fn succeeds(out: &Output) {
    assert_eq!(out.status, Status::Exited(0), "{}{}", out.text(), out.err_text());
}

/// A small guest at a shell that says only what commands say.
#[derive(Debug)]
pub(crate) struct Small(Process);

impl Small {
    /// A machine called `small` with this kernel.
    #[track_caller]
    pub(crate) fn boot(lab: &Lab, kernel: &str, flags: &str) -> Self {
        Self::boot_as(lab, "small", kernel, &format!("--mem 96 {flags}"))
    }

    /// A machine of another name, and with as much memory as the flags say.
    #[track_caller]
    pub(crate) fn boot_as(lab: &Lab, name: &str, kernel: &str, flags: &str) -> Self {
        let line = format!(
            "exec ./minivmm --name {name} --kernel {kernel}.vmlinux --initrd {kernel}.initrd --net none --append quiet {flags}"
        );
        let mut guest = Small(lab.spawn(&Cmd::sh(line).tty()).unwrap());
        guest.boots();
        guest
    }

    #[track_caller]
    fn boots(&mut self) {
        self.0.expect("guest:/# ", BOOT).unwrap();
        self.type_in("stty -echo; PS1= PS2=; echo its-''shell", "its-shell");
    }

    /// Boots again, with whatever it is at.
    #[track_caller]
    pub(crate) fn reboot(&mut self) {
        self.0.send("reboot -f\n").unwrap();
        self.boots();
    }

    /// Its console goes on, with what was in its screen.
    #[track_caller]
    pub(crate) fn restore(lab: &Lab, words: &str) -> Self {
        Self::go_on(lab.spawn(&Cmd::sh(format!("exec ./minivmm restore {words}")).tty()).unwrap())
    }

    /// The console of a machine that is there already.
    #[track_caller]
    pub(crate) fn go_on(console: Process) -> Self {
        let mut guest = Small(console);
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
    pub(crate) fn sh(&mut self, line: &str) -> String {
        self.0.send(format!("( {line}\n) 2>&1; echo \"status=$?.\"\n")).unwrap();
        let said = self.0.expect("status=", SOON).unwrap();
        assert_eq!(self.0.expect(".", SOON).unwrap(), "0.", "{line}: {said}");
        said.trim_end_matches("status=").replace('\r', "").trim().to_owned()
    }

    /// Saves it; it ends.
    #[track_caller]
    pub(crate) fn save(self, lab: &Lab, words: &str) {
        verb(lab, &format!("save small {words}"));
        self.ends_well();
    }

    /// Saves it to a folder, and goes on from there in another process.
    #[track_caller]
    pub(crate) fn goes_on_elsewhere(&mut self, lab: &Lab, folder: &str) {
        verb(lab, &format!("save small {folder}"));
        succeeds(&self.0.wait(SOON).unwrap());
        *self = Self::restore(lab, folder);
    }

    /// Its kernel has nothing to complain of. The whole log would take ten seconds on its console.
    #[track_caller]
    pub(crate) fn has_no_splat(&mut self) {
        assert_eq!(self.sh(&format!("dmesg | grep -E '{}' || true", SPLATS.join("|"))), "");
    }

    /// Waits until the program on its terminal has ended by itself.
    #[track_caller]
    pub(crate) fn ends_well(mut self) {
        succeeds(&self.0.wait(SOON).unwrap());
    }

    #[track_caller]
    pub(crate) fn kill(mut self) {
        self.0.signal(9).unwrap();
        self.0.wait(SOON).unwrap();
    }
}

/// What Linux says when it hears of a new VM generation ID.
pub(crate) const FORKED: &str = "crng reseeded due to virtual machine fork";

/// Before a small guest is saved or moved.
#[track_caller]
pub(crate) fn remember(guest: &mut Small) {
    guest.sh("echo kept >/tmp/word; echo saved-here >/dev/kmsg");
}

/// A small guest has all that it had, nothing to complain of and timers that fire. It has heard that it is another machine, or it has not.
#[track_caller]
pub(crate) fn goes_on(guest: &mut Small, is_told: bool) {
    assert_eq!(guest.sh("sleep 1; cat /tmp/word"), "kept");
    let log = guest.sh("dmesg | sed '1,/saved-here/d'");
    no_splat(&log);
    assert_eq!(log.contains(FORKED), is_told, "{log}");
}

/// What Linux says of a fault, and of a TSC that does not keep the time of kvm-clock.
const SPLATS: [&str; 9] = [
    "soft lockup",
    "rcu: INFO",
    "hung_task",
    "blocked for more than",
    "BUG:",
    "WARNING:",
    "Call Trace",
    "I/O error",
    "Marking clocksource",
];

#[track_caller]
pub(crate) fn no_splat(log: &str) {
    for splat in SPLATS {
        assert!(!log.contains(splat), "{splat}: {log}");
    }
}
