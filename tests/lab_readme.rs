//! The commands of README.md, docs/api.md and docs/ci.md, in this order. A `console` block behind `<!-- host -->` runs here,
//! beside a checkout; the others run in one lab that has what a Debian has. The output must be as shown: numbers may
//! differ, and `...` stands for any lines. tests/docs.rs checks the commands of the other documents without running them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a helper that fails fails its test"
)]

#[path = "support/debian.rs"]
mod debian;
#[path = "support/documents.rs"]
mod documents;
#[path = "support/dose.rs"]
mod dose;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use debian::AS_USER;
use documents::{RUN, Shown, is_as_shown, read, shown};
use dose::soak;
use lab::{Cmd, Lab, LabConfig, LabKind, Status, kernels};

/// For all of the lab's commands: one boot of Debian, and a few small guests.
const LIMIT: Duration = Duration::from_secs(600);
/// The program that is installed is built as the tests' programs are: what is compared does not depend on it.
const BUILDS: &str = "cargo() { [ \"$1\" != install ] || set -- \"$@\" --debug; command cargo \"$@\"; }\n";
/// In `make test` it is the tests' own program, if its dependencies are those of Cargo.lock, and the project is checked and not built:
/// minutes less, and a linker's mistakes are found by the build of the examples.
const CHECKS: &str = r#"cargo() {
    case $1 in
        install) command cargo tree --quiet --locked >/dev/null && install -D "$PROGRAM" "$CARGO_INSTALL_ROOT/bin/minivmm" ;;
        build) shift; command cargo check "$@" ;;
        *) command cargo "$@" ;;
    esac
}
"#;
/// Stands before each command's output, with its number.
const MARK: char = '\u{1}';

/// One script of all commands, each with its output behind a mark.
fn script(commands: &[&Shown]) -> String {
    let lines =
        commands.iter().enumerate().map(|(at, one)| format!("printf '\\001{at}\\n'\n{}\n", one.command));
    format!("exec 2>&1 </dev/null\n{}", lines.collect::<String>())
}

#[track_caller]
fn compare(commands: &[&Shown], text: &str) {
    let said: Vec<Vec<&str>> = text.split(MARK).skip(1).map(|part| part.lines().skip(1).collect()).collect();
    let wrong = commands.iter().zip(&said).find(|(shown, said)| !is_as_shown(&shown.output, said));
    if let Some((shown, said)) = wrong {
        panic!(
            "{}\n== the document shows:\n{}\n== it said:\n{}",
            shown.command,
            shown.output.join("\n"),
            said.join("\n")
        );
    }
    assert_eq!(said.len(), commands.len(), "not all commands ran: {text}");
}

/// Runs what is for this host: installs the program and makes somebody's first project, both in `folder`. Gives that project's program.
fn on_the_host(commands: &[&Shown], folder: &Path) -> PathBuf {
    std::os::unix::fs::symlink(env!("CARGO_MANIFEST_DIR"), folder.join("minivmm")).unwrap();
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme");
    let out = Command::new("bash")
        .arg("-c")
        .arg(format!("{}{}", if soak() { BUILDS } else { CHECKS }, script(commands)))
        .current_dir(folder)
        .env("CARGO_INSTALL_ROOT", folder)
        .env("PROGRAM", env!("CARGO_BIN_EXE_minivmm"))
        // Built once, and with the versions that are here.
        .env("CARGO_TARGET_DIR", &kept)
        .env("CARGO_NET_OFFLINE", "true")
        .envs([
            ("CARGO_PROFILE_DEV_OPT_LEVEL", "0"),
            ("CARGO_PROFILE_DEV_DEBUG", "0"),
            ("CARGO_INCREMENTAL", "0"),
        ])
        .env("PATH", format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap()))
        .output()
        .unwrap();
    compare(commands, &String::from_utf8(out.stdout).unwrap());
    let built = kept.join("debug/sandbox");
    // The same program, as an example of this repository.
    let example = Path::new(env!("CARGO_BIN_EXE_minivmm")).with_file_name("examples/command");
    let program = folder.join("sandbox.program");
    fs::copy(if soak() { built } else { example }, &program).unwrap();
    program
}

/// A lab with what a course's or a runner's Debian has: the image of `make image`, a kernel package, busybox, sudo.
fn start_lab(folder: &Path, sandbox: PathBuf) -> Lab {
    let (kernel, debian) = (kernels().unwrap().cloud, lab::debian().unwrap());
    let busybox =
        ["/usr/bin/busybox", "/bin/busybox"].map(PathBuf::from).into_iter().find(|file| file.exists());
    let version = &kernel.version;
    let mut config = LabConfig::default()
        .debian()
        // Of the same source as the one that was installed, and quicker.
        .file(env!("CARGO_BIN_EXE_minivmm"), "installed/minivmm")
        .file(sandbox, "sandbox/target/debug/sandbox")
        .file(debian.file("initrd.img"), "initrd.img")
        .file(busybox.expect("busybox is missing: make install-deps"), "bin/busybox")
        .file(&kernel.bzimage, format!("package/boot/vmlinuz-{version}"));
    for (name, content) in kernel
        .modules(&[
            "virtio_pci",
            "virtio_console",
            "virtio_blk",
            "virtio_net",
            "pvpanic_mmio",
            "virtiofs",
            "overlay",
        ])
        .unwrap()
    {
        let file = folder.join(&name);
        fs::write(&file, content).unwrap();
        config = config.file(file, format!("package/lib/modules/{version}/kernel/{name}"));
    }
    let lab = Lab::start(&config).unwrap();
    if lab.kind() == LabKind::Nested {
        lab.sh("mkdir -p /boot /lib/modules && cp package/boot/* /boot && cp -r package/lib/modules/* /lib/modules").unwrap();
    }
    // The session is root's, and minivmm a user's of group kvm.
    let user = format!("exec env XDG_RUNTIME_DIR=$PWD/run {AS_USER} $PWD/installed/minivmm");
    let wrappers = format!(
        "mkdir -m 700 run; chown 1000:1000 . run vm0.raw
         printf '#!/bin/sh\\nexec \"$@\"\\n' >bin/sudo
         printf '#!/bin/sh\\n%s \"$@\"\\n' \"{user}\" >bin/minivmm
         chmod +x bin/sudo bin/minivmm"
    );
    lab.sh(&wrappers).unwrap();
    lab
}

/// The tables of docs/ci.md for those who know podman or virtme-ng, as far as no command of a document does it: in as few guests as can be.
const ROWS: &str = r#"exec 2>&1
kernel=$(ls /boot/vmlinuz-* | tail -n 1)
mkdir -m 777 rw ro; echo there >ro/file; truncate -s 1M disk.raw
echo text | HERE=host minivmm run -i --kernel "$kernel" --root / --root-rw --volume "./rw:$PWD/in-rw" --volume "./ro:$PWD/in-ro:ro" -w "$PWD" --cpus 2 --append a=b \
    --verbose --disk disk.raw,ro --mem 1G --net user -p 8080:80 --env-host --name job --timeout 500 -- sh -c '
    cat && uname -r; nproc; grep -o a=b /proc/cmdline; cat /sys/block/vda/size; grep -q 10.0.2.15 /proc/net/fib_trie && echo network; echo "$HERE"
    cat in-ro/file; touch in-ro/new 2>/dev/null || echo read-only; pwd >here; echo up >in-rw/up; exec sleep 1000' >out 2>err &
until [ -s rw/up ] || ! kill -0 $! 2>/dev/null; do sleep 0.2; done
minivmm ls | grep -c '^job '
minivmm kill job
wait $!; echo "status $?"
sed "s/^${kernel#/boot/vmlinuz-}\$/the release/" out; [ "$(cat here)" = "$PWD" ] && echo here
grep -q 'killed, with `minivmm kill`' err || cat err
mkdir -p linux/arch/x86/boot linux/drivers/all; cp "$kernel" linux/arch/x86/boot/bzImage
cp /lib/modules/"${kernel#/boot/vmlinuz-}"/kernel/*.ko linux/drivers/all; (cd linux && find drivers -name '*.ko' >modules.order)
"#;
const ROWS_SAY: &str =
    "1\nstatus 122\ntext\nthe release\n2\na=b\n2048\nnetwork\nhost\nthere\nread-only\nhere\n";

/// A command of bash in the lab that finds the wrapped program.
fn bash(lab: &Lab, line: &str, tty: bool) -> lab::Process {
    let line = format!("export PATH=$PWD/bin:$PATH XDG_RUNTIME_DIR=$PWD/run; {line}");
    let command = Cmd::new("bash").arg("-c").arg(line);
    lab.spawn(&if tty { command.tty() } else { command }).unwrap()
}

fn rows(lab: &Lab) {
    let out = bash(lab, ROWS, false).wait(LIMIT).unwrap();
    assert_eq!(out.text(), ROWS_SAY);
    let mut shell = bash(lab, "cd linux && exec minivmm run -it --kernel . --root / -- bash", true);
    shell.send("echo o''n \"$(tty) by $0\"; exit 7\n").unwrap();
    shell.expect("on /dev/hvc1 by bash", LIMIT).unwrap();
    assert_eq!(shell.wait(LIMIT).unwrap().status, Status::Exited(7));
}

#[test]
fn commands_do_what_the_documents_show() {
    let commands: Vec<Shown> = RUN.iter().flat_map(|name| shown(&read(name))).collect();
    let (here, there): (Vec<&Shown>, Vec<&Shown>) = commands.iter().partition(|one| one.on_host);
    assert!(here.len() > 3 && there.len() > 10, "{commands:?}");
    let folder = tempfile::tempdir().unwrap();
    let sandbox = on_the_host(&here, folder.path());
    let lab = start_lab(folder.path(), sandbox);
    let mut session = bash(&lab, &script(&there), false);
    let out = session.wait(LIMIT).unwrap_or_else(|error| panic!("{error}: {}", session.so_far()));
    assert_eq!(out.status, Status::Exited(0), "{}", out.text());
    compare(&there, &out.text());
    rows(&lab);
}
