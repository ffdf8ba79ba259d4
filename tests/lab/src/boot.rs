//! `lab boot`: a Debian guest for a person at a terminal; without one, a tour of it that says whether it works.

use crate::{Options, attach, usage};
use lab::{
    Access, Cmd, Flavour, InitramfsSpec, Lab, LabConfig, LabError, LabKind, Process, Status, terminal,
};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A whole Debian starts in less than a minute in an emulated machine that has a processor to itself.
const BOOT: Duration = Duration::from_secs(300);
const SOON: Duration = Duration::from_secs(60);
/// Ends the tour's commands; a terminal that echoes the command does not show this.
const DONE: &str = "LAB-STATUS 0";

/// What a small guest without a person at the terminal is asked to do.
const SMALL_TOUR: &str = "for c in 'uname -a' 'free -m' nproc date 'cat /proc/cmdline' uptime; do
    echo \"guest# $c\"; $c || exit 1; done";
/// What a Debian is asked to do.
const TOUR: [&str; 5] =
    ["uname -a", "systemctl is-system-running --wait", "lspci", "df -h /", "systemctl --failed --no-pager"];

pub(crate) fn boot(options: &Options) -> Result<Status, LabError> {
    let minivmm = options.minivmm.clone().unwrap_or_else(|| "target/release/minivmm".into());
    if !minivmm.exists() {
        let mend = "cargo build --release".into();
        return Err(LabError::Missing { what: minivmm.display().to_string(), mend });
    }
    let (kind, why) = LabKind::of_host();
    if kind == LabKind::Nested {
        eprintln!("{why}: the guest boots inside the lab, an emulated machine (slow)");
    }
    let config = options.config.clone().file(minivmm, "minivmm");
    if options.small { small(options, config) } else { debian(options, config) }
}

/// The image of `make image` in this directory, made if it is not there.
fn debian(options: &Options, config: LabConfig) -> Result<Status, LabError> {
    image(&PathBuf::from("."), false)?;
    let config = config.disk("vm0.raw", "vm0.raw", Access::Write);
    let cmd = Cmd::new("./minivmm").args(["--disk", "vm0.raw", "--append", "quiet"]).args(&options.command);
    eprintln!("vm0.raw boots, in which user etu has the password -etu-; what it writes stays there");
    if terminal::is_terminal() {
        return attach(&config, cmd, true);
    }
    let lab = Lab::start(&config)?;
    let mut guest = lab.spawn(&cmd)?;
    let toured = tour(&mut guest);
    let out = guest.wait(if toured.is_ok() { SOON } else { Duration::ZERO });
    if let Ok(out) = &out {
        eprint!("{}", out.err_text());
    }
    toured?;
    Ok(out?.status)
}

/// Logs in, looks around, powers off; shows what the guest says.
fn tour(guest: &mut Process) -> Result<(), LabError> {
    for (question, limit, answer) in [
        ("login: ", BOOT, "etu\n"),
        ("Password: ", SOON, "-etu-\n"),
        ("$ ", SOON, "export TERM=dumb\n"),
        ("$ ", SOON, ""),
    ] {
        print!("{}", guest.expect(question, limit)?);
        guest.send(answer)?;
    }
    guest.send(format!("{} && echo LAB-'STATUS' 0\n", TOUR.join(" && ")))?;
    println!("{}", guest.expect(DONE, SOON)?);
    guest.send("echo -etu- | sudo -S -p '' systemctl poweroff\n")
}

/// What `make image` does.
pub(crate) fn image(dir: &Path, whole: bool) -> Result<(), LabError> {
    let name = if whole { "vm0-whole.raw" } else { "vm0.raw" };
    if lab::debian_into(dir, whole)? {
        println!(
            "{} is made, with the kernel and the initrd that it holds beside it",
            dir.join(name).display()
        );
    } else {
        println!("{} is there and stays as it is; remove it for a new one", dir.join(name).display());
    }
    Ok(())
}

/// One of Debian's kernels with a shell in its initramfs.
fn small(options: &Options, config: LabConfig) -> Result<Status, LabError> {
    let kernel = lab::kernel(if options.generic { Flavour::Generic } else { Flavour::Cloud })?;
    let image = if options.vmlinux { &kernel.vmlinux } else { &kernel.bzimage };
    let initrd = lab::initramfs(&kernel, &InitramfsSpec::default())?;
    let config = config.file(image, "vmlinuz").file(initrd, "initrd.img");
    let cmd = |append: &str| {
        let cmd = Cmd::new("./minivmm").args(["--kernel", "vmlinuz", "--initrd", "initrd.img"]);
        cmd.args(["--append", append]).args(&options.command)
    };
    if terminal::is_terminal() {
        return attach(&config, cmd("quiet"), true);
    }
    let lab = Lab::start(&config)?;
    let out = lab.exec(&cmd(&format!("quiet {}", lab::guest_command(SMALL_TOUR))).limit(BOOT))?;
    print!("{}", out.text());
    eprint!("{}", out.err_text());
    // The guest's word counts, and so does the way in which minivmm ends.
    if out.status == Status::Exited(0) && !out.text().contains(DONE) {
        return Err(usage(format!("the guest's `{DONE}`: its commands failed or did not run")));
    }
    Ok(out.status)
}
