//! A folder of the host under Linux's own driver, of Debian's kernels 6.1 and 6.12: git, a file system exerciser, files that are removed
//! while they are open, both sides at once, a share that is only read, and one that is saved.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a helper that fails fails its test"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/small.rs"]
mod small;

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use dose::dose;
use lab::{InitramfsSpec, Lab, LabConfig, initramfs, kernel};
use small::{KERNELS, Small, no_splat, verb};

/// Where the guest has the share.
const MOUNT: &str = "mkdir -p /mnt && mount -t virtiofs work /mnt";

/// The lab: both kernels with their drivers, git, and this program, which is the exerciser.
fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let mut config = LabConfig::default().file(env!("CARGO_BIN_EXE_minivmm"), "minivmm");
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
        // Names of any bytes, holes, files over 4 GiB.
        guest.sh("cd /mnt; n=$(printf 'a\\377\\nb'); echo x >\"$n\"; test \"$(cat \"$n\")\" = x; rm \"$n\"");
        guest.sh("cd /mnt; echo end | dd of=big bs=1 seek=5368709120 2>/dev/null; test $(stat -c %s big) = 5368709124; test $(stat -c %b big) -lt 1000; \
                  dd if=big bs=1 skip=5368709120 2>/dev/null | grep -q end; rm big");
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
        guest.sh(&format!("EXERCISE=/mnt/fsx ROUNDS={} exerciser --ignored --exact exerciser", dose(20_000)));
        no_splat(&guest.sh("dmesg"));
        guest.kill();
    }
}

#[test]
fn both_sides_see_what_the_other_writes_where_nothing_is_cached() {
    let _alone = alone();
    let mut guest = boot("6.12", "both", ",cache=never");
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
    guest.sh(&format!("EXERCISE=/mnt/fsx ROUNDS={} exerciser --ignored --exact exerciser", dose(5_000)));
    guest.kill();
}

#[test]
fn a_share_is_collected_saved_and_goes_on() {
    let _alone = alone();
    let mut guest = boot("6.12", "kept", ",cache=always");
    guest.sh(&format!("EXERCISE=/mnt/fsx ROUNDS={} exerciser --ignored --exact exerciser", dose(20_000)));
    guest.sh("echo one >/mnt/a; echo two >/mnt/b; mkdir /mnt/d; echo in >/mnt/d/f; sync");
    // A process that holds files open over the save, as its shell does.
    guest.sh("(exec 5<>/mnt/a 6<>/mnt/b; cd /mnt/d; while [ ! -e /tmp/go ]; do sleep 0.1; done; \
              (cat f; cat <&5; echo more >&5; cat <&6) >/tmp/said 2>&1; touch /tmp/done) >/dev/null 2>&1 & sleep 1; echo 3 >/proc/sys/vm/drop_caches");
    guest.save(lab(), "saved");
    host("rm kept/b");
    let mut guest = Small::restore(lab(), "saved");
    guest.sh("touch /tmp/go; while [ ! -e /tmp/done ]; do sleep 0.1; done");
    let said = guest.sh("cat /tmp/said");
    assert!(said.starts_with("in\none\n") && said.contains("Stale file handle"), "{said}");
    guest.sh("sync; echo three >/mnt/c");
    assert_eq!(host("cat kept/a kept/c"), "one\nmore\nthree\n");
    assert!(verb(lab(), "stats small").contains("fs0"));
    no_splat(&guest.sh("dmesg"));
    guest.kill();
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
    host("mkdir -p full && mount -t tmpfs -o size=1m tmpfs full");
    let mut guest = Small::boot(lab(), "6.12", "--share full,tag=work");
    let said = guest.sh(&format!("{MOUNT}; dd if=/dev/zero of=/mnt/f bs=64k count=100 || true; rm /mnt/f; echo fits >/mnt/f; cat /mnt/f"));
    assert!(said.contains("No space left on device") && said.ends_with("fits"), "{said}");
    host("mount -o remount,ro full");
    let said = guest.sh("cat /mnt/f; echo x >/mnt/f || rm /mnt/f || true");
    assert!(said.starts_with("fits\n") && said.matches("Read-only file system").count() == 2, "{said}");
    guest.kill();
    host("umount full");
}

/// Runs in the guest, on the file that `EXERCISE` says: random writes, reads, truncations and holes, each compared with what a file in
/// memory would have.
#[test]
#[ignore = "the exerciser that runs in the guest"]
fn exerciser() {
    let path = std::env::var_os("EXERCISE").expect("the path of a file");
    let rounds: u32 = std::env::var("ROUNDS").unwrap().parse().unwrap();
    let mut model: Vec<u8> = Vec::new();
    let mut chance = 1u64;
    let mut below = |limit: usize| {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(chance >> 33).unwrap() % limit
    };
    const MOST: usize = 256 << 10;
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
    let mut file: File = open();
    file.set_len(0).unwrap();
    for round in 0..rounds {
        let (at, len) = (below(MOST), below(20_000));
        match below(10) {
            0..=3 => {
                let bytes: Vec<u8> = (0..len).map(|n| (n + round as usize) as u8 | 1).collect();
                file.write_all_at(&bytes, at as u64).unwrap();
                model.resize(model.len().max(at + len), 0);
                model[at..at + len].copy_from_slice(&bytes);
            }
            4..=6 => {
                let mut bytes = vec![0; len];
                let mut got = 0;
                while got < len {
                    match file.read_at(&mut bytes[got..], (at + got) as u64).unwrap() {
                        0 => break,
                        n => got += n,
                    }
                }
                let wanted = model.get(at..model.len().min(at + len)).unwrap_or_default();
                assert_eq!(&bytes[..got], wanted, "round {round}: {len} bytes at {at}");
            }
            7 => {
                file.set_len(at as u64).unwrap();
                model.resize(at, 0);
            }
            8 => {
                let end = file.seek(SeekFrom::End(0)).unwrap();
                assert_eq!(end, model.len() as u64, "round {round}");
                file.write_all(b"tail").unwrap();
                model.extend(b"tail");
            }
            _ => {
                if below(4) == 0 {
                    file.sync_all().unwrap();
                }
                drop(file);
                file = open();
                assert_eq!(fs::metadata(&path).unwrap().len(), model.len() as u64, "round {round}");
            }
        }
    }
    assert!(fs::read(&path).unwrap() == model, "at the end");
}
