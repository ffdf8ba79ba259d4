//! One lab for all tests of a file, and Debian guests in it.

#![allow(dead_code, reason = "each test file uses its part")]

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use lab::{
    Cmd, InitramfsSpec, Kernel, Lab, LabConfig, Output, Process, Status, guest_command, initramfs, kernels,
};

/// Time for a guest to boot under two emulations, on a busy machine.
pub(crate) const BOOT: Duration = Duration::from_secs(120);
/// Time for a guest that is up to answer.
pub(crate) const SOON: Duration = Duration::from_secs(120);
/// What the guest's shell prompts with.
pub(crate) const PROMPT: &str = "guest:/# ";

/// The lab that the tests of this file share, with minivmm, both kernels in both forms and their initrds.
pub(crate) fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let kernels = kernels().unwrap();
        let mut config = LabConfig::default().file(env!("CARGO_BIN_EXE_minivmm"), "minivmm");
        for (name, kernel) in [("cloud", &kernels.cloud), ("generic", &kernels.generic)] {
            config = config
                .file(&kernel.bzimage, format!("{name}.bzimage"))
                .file(&kernel.vmlinux, format!("{name}.vmlinux"))
                .file(initrd(kernel), format!("{name}.initrd"));
        }
        Lab::start(&config).unwrap()
    })
}

fn initrd(kernel: &Kernel) -> std::path::PathBuf {
    initramfs(kernel, &InitramfsSpec::default()).unwrap()
}

/// minivmm with a kernel of the lab, `cloud` or `generic`, as `bzimage` or `vmlinux`.
pub(crate) fn minivmm(flavour: &str, form: &str) -> Cmd {
    Cmd::new("./minivmm").args([
        "--kernel".to_owned(),
        format!("{flavour}.{form}"),
        "--initrd".to_owned(),
        format!("{flavour}.initrd"),
        // A network is the affair of the tests that are about it.
        "--net".to_owned(),
        "none".to_owned(),
    ])
}

/// Runs a shell line in a cloud guest that boots with `flags` and powers off, and gives what came out of it all.
pub(crate) fn in_guest(cmd: Cmd, line: &str, append: &str) -> Output {
    let append = format!("quiet {append} {}", guest_command(line));
    lab().exec(&cmd.args(["--append", append.as_str()]).limit(BOOT)).unwrap()
}

/// A cloud guest at its shell, on a terminal.
pub(crate) fn shell(flags: &[&str]) -> Process {
    // Not compressed, it boots sooner.
    let cmd = minivmm("cloud", "vmlinux").args(["--append", "quiet"]).args(flags.iter().copied()).tty();
    let mut guest = lab().spawn(&cmd).unwrap();
    guest.expect(PROMPT, BOOT).unwrap();
    guest
}

/// The exit status of a machine that is on its way out.
pub(crate) fn status(guest: &mut Process) -> Status {
    guest.wait(SOON).unwrap().status
}

/// Guests with much memory do not run side by side: the lab's machine has 2 GiB.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
