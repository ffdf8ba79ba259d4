//! The files of `make install`, and their removal by `make uninstall`. The build profile is that of the
//! tests.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

fn make(verb: &str, root: &Path, prefix: &Path) {
    // All of them put pages and completions together in one place under target.
    static ONE_BY_ONE: Mutex<()> = Mutex::new(());
    let _turn = ONE_BY_ONE.lock();
    let mut command = Command::new("make");
    command.args(["-s", verb, "PROFILE=dev"]).arg(format!("PREFIX={}", prefix.display()));
    command.arg(format!("DESTDIR={}", root.display()));
    let out = command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("SUDO_USER").output().unwrap();
    assert!(
        out.status.success(),
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// All files under a folder, with their modes.
fn files(folder: &Path, found: &mut BTreeSet<(String, u32)>, root: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found, root);
        } else {
            let mode = path.metadata().unwrap().permissions().mode() & 0o7777;
            found.insert((path.strip_prefix(root).unwrap().display().to_string(), mode));
        }
    }
}

fn installed(root: &Path) -> BTreeSet<(String, u32)> {
    let mut found = BTreeSet::new();
    files(root, &mut found, root);
    found
}

#[test]
fn everything_is_where_a_distribution_wants_it_and_goes_again() {
    let root = tempfile::tempdir().unwrap();
    make("install", root.path(), Path::new("/opt/vmm"));
    let found = installed(root.path());
    for (file, mode) in [
        ("bin/minivmm", 0o755),
        ("share/man/man1/minivmm.1", 0o644),
        ("share/man/man1/minivmm-run.1", 0o644),
        ("share/man/man1/minivmm-doctor.1", 0o644),
        ("share/bash-completion/completions/minivmm", 0o644),
        ("share/zsh/site-functions/_minivmm", 0o644),
        ("share/fish/vendor_completions.d/minivmm.fish", 0o644),
        ("lib/systemd/system/minivmm@.service", 0o644),
    ] {
        assert!(found.contains(&(format!("opt/vmm/{file}"), mode)), "{file} {mode:o}: {found:?}");
    }
    assert!(found.iter().all(|(file, _)| file.starts_with("opt/vmm/")), "{found:?}");

    let program = root.path().join("opt/vmm/bin/minivmm");
    let version = Command::new(program).arg("--version").output().unwrap();
    assert!(version.status.success() && version.stdout.starts_with(b"minivmm 0."), "{version:?}");
    pages_are_whole(&root.path().join("opt/vmm/share/man/man1"));
    completions_know_the_flags(&root.path().join("opt/vmm/share"));

    let unit = fs::read_to_string(root.path().join("opt/vmm/lib/systemd/system/minivmm@.service")).unwrap();
    assert!(unit.contains("\nExecStart=/opt/vmm/bin/minivmm --config "), "no DESTDIR in it: {unit}");
    make("uninstall", root.path(), Path::new("/opt/vmm"));
    assert_eq!(installed(root.path()), BTreeSet::new());
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let prefix = tempfile::tempdir().unwrap();
    make("install", Path::new(""), prefix.path());
    let unit = prefix.path().join("lib/systemd/system/minivmm@.service");
    let verify = || {
        // It looks for the program that is started, and for the manual page.
        let mut command = Command::new("systemd-analyze");
        command
            .args(["verify", "--recursive-errors=no"])
            .arg(&unit)
            .env("MANPATH", prefix.path().join("share/man"));
        let out = command.output().expect("systemd-analyze is there: `make install-deps` installs it");
        (out.status.success(), String::from_utf8(out.stderr).unwrap())
    };
    assert_eq!(verify(), (true, String::new()));
    // It would say so.
    let text = fs::read_to_string(&unit).unwrap();
    for (right, wrong, said) in [
        ("KillMode=mixed", "KillMode=maybe", "kill mode"),
        ("TimeoutStopSec=", "TimeoutStop=", "TimeoutStop"),
        ("/bin/minivmm", "/bin/minivm", "not executable"),
    ] {
        assert!(text.contains(right), "{text}");
        fs::write(&unit, text.replace(right, wrong)).unwrap();
        let (_, errors) = verify();
        assert!(errors.contains(said), "{wrong}: {errors}");
    }
    assert!(!prefix.path().join("etc").exists(), "what machines there are is the host's matter");
}

fn pages_are_whole(folder: &Path) {
    for page in fs::read_dir(folder).unwrap() {
        let page = page.unwrap().path();
        let text = fs::read_to_string(&page).unwrap();
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "\"EXIT STATUS\"", "\"SEE ALSO\""] {
            assert!(
                text.contains(&format!(".SH {section}\n")),
                "{} has no {section}:\n{text}",
                page.display()
            );
        }
        let lines: Vec<&str> = text.lines().collect();
        let bare = lines.windows(3).find(|lines| matches!(lines, [".TP", _, text] if text.trim().is_empty()));
        assert!(bare.is_none(), "{} says nothing of {bare:?}", page.display());
        let man = Command::new("man").args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8"]).arg(&page).output();
        let man = man.map_err(|error| format!("man: {error}; `make install-deps` installs it")).unwrap();
        let said = String::from_utf8_lossy(&man.stderr);
        assert!(man.status.success() && said.is_empty(), "{}: {said}", page.display());
    }
    let main = fs::read_to_string(folder.join("minivmm.1")).unwrap();
    let run = fs::read_to_string(folder.join("minivmm-run.1")).unwrap();
    let stop = fs::read_to_string(folder.join("minivmm-stop.1")).unwrap();
    assert!(stop.contains("by force\n") && !stop.contains("powered off"), "{stop}");
    let console = fs::read_to_string(folder.join("minivmm-console.1")).unwrap();
    assert!(console.contains("Ctrl\\-] opens a menu: d detaches"), "{console}");
    // roff distinguishes minus signs and apostrophes.
    for flag in ["kernel", "disk", "on\\-reboot", "daemonize", "pidfile", "log", "version"] {
        assert!(main.contains(&format!("\\-\\-{flag}")), "{main}");
    }
    assert!(main.contains("minivmm\\-run(1)") && main.contains("the guest powered off"), "{main}");
    assert!(
        run.contains("\\-\\-boot\\-timeout") && run.contains("124") && !run.contains("\\-\\-initrd"),
        "{run}"
    );
}

fn completions_know_the_flags(share: &Path) {
    for file in [
        "bash-completion/completions/minivmm",
        "zsh/site-functions/_minivmm",
        "fish/vendor_completions.d/minivmm.fish",
    ] {
        let text = fs::read_to_string(share.join(file)).unwrap();
        for word in ["doctor", "run", "on-reboot", "boot-timeout", "from-format"] {
            assert!(text.contains(word), "{file} does not know {word}");
        }
    }
    let bash = share.join("bash-completion/completions/minivmm");
    assert!(Command::new("bash").arg("-n").arg(bash).status().unwrap().success());
}
