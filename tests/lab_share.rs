//! A folder of the host under Linux's own driver, of Debian's kernels 6.1 and 6.12: git, a file system exerciser, files that are removed
//! while they are open, guests and host at once, a share that is only read, and guests that are paused, saved, taken back and booted again
//! in the midst of their work.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    clippy::print_stdout,
    reason = "a helper that fails fails its test"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "lab_share/in_guest.rs"]
mod in_guest;
#[path = "support/small.rs"]
mod small;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dose::{dose, soak};
use lab::{Cmd, InitramfsSpec, Lab, LabConfig, initramfs, kernel};
use small::{KERNELS, Small, succeeds, verb};

/// Where the guest has the share.
const MOUNT: &str = "mkdir -p /mnt && mount -t virtiofs work /mnt";

/// The lab: both kernels with their drivers, git, and this program, which is the exerciser.
fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let mut config = LabConfig::default()
            .file(env!("CARGO_BIN_EXE_minivmm"), "minivmm")
            .file(std::env::current_exe().unwrap(), "exerciser");
        let git = ["/usr/local/bin/git", "/usr/bin/git"].into_iter().find(|path| Path::new(path).exists());
        for (name, flavour, _) in KERNELS {
            let kernel = kernel(flavour).unwrap();
            let mut spec = InitramfsSpec::default();
            spec.modules.extend(["virtio_pci", "virtiofs"].map(String::from));
            spec.files.push((git.expect("apt install git").into(), "bin/git".into()));
            spec.files.push((std::env::current_exe().unwrap(), "bin/exerciser".into()));
            let initrd = initramfs(&kernel, &spec).unwrap();
            config = config
                .file(&kernel.vmlinux, format!("{name}.vmlinux"))
                .file(initrd, format!("{name}.initrd"));
        }
        Lab::start(&config).unwrap()
    })
}

/// The emulated processors have one test at a time, and there is one machine of a name.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest with a new folder of this name as its share, mounted.
fn boot(kernel: &str, folder: &str, options: &str) -> Small {
    lab().sh(&format!("rm -rf {folder}; mkdir {folder}")).unwrap();
    let mut guest = Small::boot(lab(), kernel, &format!("--share {folder},tag=work{options}"));
    guest.sh(MOUNT);
    guest
}

fn host(line: &str) -> String {
    lab().sh(line).unwrap()
}

/// The line that runs one of [`in_guest`].
fn runs(name: &str, on: &str, rounds: u64) -> String {
    format!("EXERCISE={on} ROUNDS={rounds} exerciser --ignored --exact --nocapture in_guest::{name}")
}

/// Time for what a soak has many rounds of.
const LONG: Duration = Duration::from_secs(1800);

/// Begins a line in the guest that may take long, called `name`.
fn begin(guest: &mut Small, name: &str, line: &str) {
    guest.sh(&format!("(({line}) >/tmp/{name}.said 2>&1; echo $? >/tmp/{name}.end) >/dev/null 2>&1 &"));
}

/// Waits until that has ended well; what it said.
#[track_caller]
fn ended(guest: &mut Small, name: &str) -> String {
    let asks = format!(
        "for n in $(seq 200); do [ -s /tmp/{name}.end ] && break; sleep 0.1; done; cat /tmp/{name}.end || true"
    );
    for _ in 0..LONG.as_secs() / 20 {
        let end = guest.sh(&asks);
        if end.starts_with(|c: char| c.is_ascii_digit()) {
            let said = guest.sh(&format!("cat /tmp/{name}.said"));
            assert_eq!(end, "0", "{name}: {said}");
            return said;
        }
    }
    panic!("{name} does not end: {}", guest.sh(&format!("cat /tmp/{name}.said")));
}

/// All of it in one guest of each kernel: a boot costs more than these.
#[test]
fn a_share_is_a_file_system_for_git_and_the_exerciser() {
    let _alone = alone();
    for (name, ..) in KERNELS {
        let mut guest = boot(name, "tree", "");
        // git: a repository that is made, cloned and looked at in the guest, and is whole for the host. Its file system is slow here.
        guest.sh("ln -s git /bin/git-upload-pack; export HOME=/tmp; git config --global user.name n; git config --global user.email e");
        let git = |line: &str| format!("export HOME=/tmp; cd /mnt; {line}");
        guest.sh(&git("git init -q --template= a; cd a; for n in $(seq 60); do mkdir -p d$((n % 6)); echo $n >d$((n % 6))/$n; done; ln -s d1/1 link; chmod 755 d1/1"));
        guest.sh(&git("cd a; git add ."));
        guest.sh(&git("cd a; git commit -qm first"));
        guest.sh(&git("git clone -q --template= a b"));
        assert_eq!(guest.sh(&git("cd b; git status --porcelain")), "");
        assert_eq!(guest.sh(&git("cd b; git fsck --no-progress")), "");
        assert_eq!(host("ls tree/b | wc -l").trim(), "7");
        assert_eq!(guest.sh("stat -c '%u %F' /mnt/b/link"), "0 symbolic link");
        host("echo changed >tree/b/d1/1");
        assert_eq!(guest.sh("sleep 2; export HOME=/tmp; cd /mnt/b; git status --porcelain"), "M d1/1");
        // Names of any bytes, holes behind 4 GiB, a file without a name, many files.
        guest.sh(&runs("corners", "/mnt/corners", dose(2000)));
        // Unlinked while it is open; a shell in a folder that is gone.
        assert_eq!(
            guest.sh("cd /mnt; exec 5<>open 6<open; rm open; echo kept >&5; ls | grep -c open; cat <&6"),
            "0\nkept"
        );
        guest.sh("cd /mnt; mkdir gone; cd gone; rmdir ../gone; ! touch x");
        // Special files: the guest's own FIFO; no device.
        assert_eq!(guest.sh("cd /mnt; mkfifo p; echo through >p & cat /mnt/p; rm /mnt/p"), "through");
        guest.sh("! mknod /mnt/null c 1 3");
        // The exerciser, on the cached file and by memory.
        guest.sh(&runs("exerciser", "/mnt/fsx", dose(20_000)));
        guest.has_no_splat();
        guest.kill();
    }
}

#[test]
fn both_sides_see_what_the_other_writes_where_nothing_is_cached() {
    let _alone = alone();
    let mut guest = boot("6.12", "both", ",cache=never,locks=host");
    for round in 0..20 {
        host(&format!("echo host-{round} >both/file"));
        assert_eq!(
            guest.sh("cat /mnt/file; stat -c %s /mnt/file"),
            format!("host-{round}\n{}", 6 + round.to_string().len())
        );
        guest.sh(&format!("echo guest-{round} >/mnt/file"));
        assert_eq!(host("cat both/file").trim(), format!("guest-{round}"));
        host("mv both/file both/other");
        guest.sh("test ! -e /mnt/file; mv /mnt/other /mnt/file");
    }
    // Both append at once, and no line is lost or torn.
    guest.sh("(for n in $(seq 300); do echo guest-$n; done >>/mnt/log) & exit 0");
    host("for n in $(seq 300); do echo host-$n; done >>both/log");
    guest.sh("while [ $(grep -c guest- /mnt/log) -lt 300 ]; do sleep 0.1; done");
    assert_eq!(host("sort -u both/log | grep -cE '^(host|guest)-[0-9]+$'").trim(), "600");
    race(&mut guest);
    guest.sh(&runs("exerciser", "/mnt/fsx", dose(5_000)));
    guest.kill();
}

/// The guest, its host, and in a soak another guest with another kernel do the same in one folder.
fn race(guest: &mut Small) {
    let rounds = dose(300);
    host(
        "mkdir -p both/race/tickets both/race/here; echo -n whole >both/race/here/file; touch both/race/locked",
    );
    host(&format!(
        "cd both/race; for n in $(seq 0 {}); do : >tickets/$n; done; for n in file flock fcntl; do echo -n 0 >by-$n; done",
        rounds - 1
    ));
    let mut other = soak().then(|| {
        let mut other =
            Small::boot_as(lab(), "other", "6.1", "--mem 96 --share both,tag=work,cache=never,locks=host");
        other.sh(MOUNT);
        other
    });
    let line = |me: &str| format!("ME={me} {}", runs("racer", "/mnt/race", rounds));
    begin(guest, "racer", &line("first"));
    if let Some(other) = &mut other {
        begin(other, "racer", &line("second"));
    }
    let on_host = format!("PATH=$PWD:$PATH; {}", line("host").replace("/mnt", "both"));
    let on_host = lab().exec(&Cmd::sh(on_host).limit(LONG)).unwrap();
    succeeds(&on_host);
    let mut said = vec![on_host.text(), ended(guest, "racer")];
    said.extend(other.as_mut().map(|other| ended(other, "racer")));
    let count = |text: &str, of: &str| -> u64 {
        let rest = text.split_once(of).unwrap().1;
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    let sum = |of: &str| said.iter().map(|text| count(text, of)).sum::<u64>();
    println!("{rounds} rounds of {}: taken {}, stale {}", said.len(), sum("taken="), sum("stale="));
    // Nothing was taken twice, and nobody counted what another one counted at the same time.
    assert_eq!(
        (sum("taken="), host("ls both/race/tickets both/race/of-* | grep -c '^[0-9]'").trim()),
        (rounds, &*rounds.to_string())
    );
    let counted = host("cd both/race; echo $(cat by-file) $(($(cat by-flock) + $(cat by-fcntl)))");
    let all = rounds * said.len() as u64;
    assert_eq!(counted.trim(), format!("{all} {all}"));
    if let Some(other) = other {
        other.kill();
    }
}

#[test]
fn a_guest_in_the_midst_of_its_work_is_paused_saved_taken_back_and_booted_again_and_loses_nothing() {
    let _alone = alone();
    for (name, ..) in if soak() { &KERNELS[..] } else { &KERNELS[1..] } {
        host("rm -rf auto state saved; mkdir auto");
        let mut guest = boot(name, "kept", ",cache=always --share auto,tag=auto");
        guest.sh(MOUNT_AUTO);
        guest.sh(&runs("exerciser", "/mnt/fsx", dose(20_000)));
        // A name goes over to another file, and the file has another one. Times that the guest has collected find it, too.
        let said = guest.sh(
            "cd /mnt; mkdir old; for n in 1 2 3; do echo old >old/$n; done; cp -al old kept; sed -i s/old/new/ old/*; \
             cat kept/* old/*; for n in 1 2; do echo more >>kept/$n; sync kept/$n; done; rm -r old kept; sync",
        );
        assert_eq!(said, "old\nold\nold\nnew\nnew\nnew");
        guest.sh("echo one >/mnt/a; echo two >/mnt/b; mkdir /mnt/d; echo in >/mnt/d/f; sync");
        let works = ["/mnt/collected", "/auto/through"].map(|on| Work::begin(&mut guest, on, "all"));
        // A process that holds files open over the save, as its shell does.
        guest.sh("(exec 5<>/mnt/a 6<>/mnt/b; cd /mnt/d; touch /tmp/holds; while [ ! -e /tmp/go ]; do sleep 0.1; done; \
                  (cat f; cat <&5; echo more >&5; cat <&6) >/tmp/said 2>&1; touch /tmp/done) >/dev/null 2>&1 & \
                  until [ -e /tmp/holds ]; do sleep 0.1; done; echo 3 >/proc/sys/vm/drop_caches");
        for _ in 0..dose(10) {
            verb(lab(), "pause small");
            verb(lab(), "resume small");
            works.iter().for_each(|work| work.goes_on(&mut guest));
        }
        for round in 0..dose(5) {
            if round == 0 {
                guest.save(lab(), "saved");
                host("rm kept/b");
                guest = Small::restore(lab(), "saved");
            } else {
                guest.goes_on_elsewhere(lab(), "saved");
            }
            works.iter().for_each(|work| work.goes_on(&mut guest));
            host("rm -r saved");
        }
        guest.sh("touch /tmp/go; while [ ! -e /tmp/done ]; do sleep 0.1; done");
        let said = guest.sh("cat /tmp/said");
        assert!(said.starts_with("in\none\n") && said.contains("Stale file handle"), "{said}");
        works.into_iter().for_each(|work| work.ends(&mut guest));
        guest.sh("sync; echo three >/mnt/c");
        assert_eq!(host("cat kept/a kept/c"), "one\nmore\nthree\n");
        assert!(verb(lab(), "stats small").contains("fs0"));
        goes_back_in_the_midst(&mut guest);
        guest.has_no_splat();
        if soak() {
            boots_in_the_midst(&mut guest);
        }
        guest.kill();
    }
}

const MOUNT_AUTO: &str = "mkdir -p /auto && mount -t virtiofs auto /auto";

/// A [`in_guest::worker`] in the background.
struct Work(String);

impl Work {
    /// On a folder that it makes.
    fn begin(guest: &mut Small, on: &str, mode: &str) -> Self {
        let name = on.rsplit('/').next().unwrap().to_owned();
        guest.sh("rm -f /tmp/stop");
        let line =
            format!("STOP=/tmp/stop PROGRESS=/tmp/{name}.rounds MODE={mode} {}", runs("worker", on, 0));
        begin(guest, &name, &line);
        let work = Work(name);
        work.goes_on(guest);
        work
    }

    /// It does several rounds more.
    #[track_caller]
    fn goes_on(&self, guest: &mut Small) {
        let name = &self.0;
        let end = guest.sh(&format!(
            "rounds() {{ n=; until [ -n \"$n\" ] || [ -e /tmp/{name}.end ]; do n=$(cat /tmp/{name}.rounds 2>/dev/null); done; echo ${{n:-0}}; }}; before=$(rounds); \
             until [ \"$(rounds)\" -gt $((before + 2)) ] || [ -e /tmp/{name}.end ]; do sleep 0.1; done 2>/dev/null; cat /tmp/{name}.said; ls /tmp/{name}.end || true"
        ));
        assert!(end.contains("No such file"), "{name}: {end}");
    }

    #[track_caller]
    fn ends(self, guest: &mut Small) {
        guest.sh("touch /tmp/stop");
        ended(guest, &self.0);
    }
}

/// To a snapshot; the folder, which is no part of it, is taken back by the host.
fn goes_back_in_the_midst(guest: &mut Small) {
    let work = Work::begin(guest, "/auto/data", "data");
    let snapshots = |words: &str| {
        let line = format!("XDG_STATE_HOME=$PWD/state ./minivmm {words}");
        succeeds(&lab().exec(&Cmd::sh(line).limit(LONG)).unwrap());
    };
    verb(lab(), "pause small");
    snapshots("snapshot small midst");
    host("cp auto/data/data copy");
    verb(lab(), "resume small");
    for _ in 0..dose(5) {
        work.goes_on(guest);
        verb(lab(), "pause small");
        // The same file.
        host("cat copy >auto/data/data");
        snapshots("revert small midst");
        work.goes_on(guest);
    }
    work.ends(guest);
    snapshots("snapshot small --delete midst");
}

/// What was done until then is on the host, and nothing of the share stays open there.
fn boots_in_the_midst(guest: &mut Small) {
    let open = "ls /proc/$(pgrep -x minivmm)/fd | wc -l";
    let mut counts = Vec::new();
    for round in 0..3 {
        let work = Work::begin(guest, &format!("/auto/boot{round}"), "all");
        work.goes_on(guest);
        guest.reboot();
        counts.push(host(open));
        let log = host(&format!("cat auto/boot{round}/log"));
        assert!(
            log.lines().count() > 2 && log.lines().enumerate().all(|(n, line)| line == n.to_string()),
            "{log}"
        );
        guest.sh(MOUNT);
        guest.sh(MOUNT_AUTO);
    }
    assert!(counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    let work = Work::begin(guest, "/auto/at-last", "all");
    work.ends(guest);
}

#[test]
fn a_share_that_is_only_read_is_read_only_and_a_full_host_is_told() {
    let _alone = alone();
    let mut guest = boot("6.12", "read", ",ro");
    host("echo text >read/file");
    let said = guest.sh(
        "cat /mnt/file; echo x >/mnt/file || rm /mnt/file || mkdir /mnt/d || chmod 600 /mnt/file || true",
    );
    assert!(said.starts_with("text\n") && said.matches("Read-only file system").count() == 4, "{said}");
    guest.kill();
    host("rm -rf own; mkdir -p full own && mount -t tmpfs -o size=1m tmpfs full && echo text >own/file");
    let mut guest = Small::boot(lab(), "6.12", "--share full,tag=work --share own,tag=own,owner=7:8");
    let said = guest.sh(&format!("{MOUNT}; dd if=/dev/zero of=/mnt/f bs=64k count=100 || true; rm /mnt/f; echo fits >/mnt/f; cat /mnt/f"));
    assert!(said.contains("No space left on device") && said.ends_with("fits"), "{said}");
    host("mount -o remount,ro full");
    let said = guest.sh("cat /mnt/f; echo x >/mnt/f || rm /mnt/f || true");
    assert!(said.starts_with("fits\n") && said.matches("Read-only file system").count() == 2, "{said}");
    // An ordinary user of the guest, to whom a folder is given.
    let user = "cd /own; echo more >>file; mkdir d; echo made >d/new; chmod 600 d/new; touch -d @5 file; mv file d; cat d/*; rm d/new";
    let said = guest.sh(&format!(
        "mkdir -p /own /etc; mount -t virtiofs own /own; echo u:x:7:8::/:/bin/sh >/etc/passwd; su u -c \"set -e; {user}\"; stat -c '%u:%g %Y' /own/d/file"
    ));
    assert_eq!(said, "text\nmore\nmade\n7:8 5");
    assert_eq!(host("stat -c %u:%g own/d/file"), host("echo $(id -u):$(id -g)"));
    guest.kill();
    host("umount full");
}
