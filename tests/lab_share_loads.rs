//! What Debian's programs do with a share, for `make soak`: builds, databases and package managers of two guests and their host, many
//! files, and fio. Their system is on a disk that is only read; all that they write is on the share.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a helper that fails fails its test; what was measured is shown"
)]

#[path = "support/dose.rs"]
mod dose;
#[path = "support/small.rs"]
mod small;

use std::time::{Duration, Instant};

use dose::soak;
use lab::{Access, Cmd, InitramfsSpec, Lab, LabConfig, initramfs, kernel, loads};
use small::{KERNELS, Small, succeeds, verb};

/// For one load under two emulations, on a busy machine.
const LONG: Duration = Duration::from_secs(3600);

/// `tree` is shared. The host has the programs too, in `system`.
fn lab() -> Lab {
    let system = loads().unwrap();
    let mut config = LabConfig::default().debian().file(env!("CARGO_BIN_EXE_minivmm"), "minivmm").disk(
        system,
        "loads.raw",
        Access::Read,
    );
    for (name, flavour, _) in KERNELS {
        let kernel = kernel(flavour).unwrap();
        let mut spec = InitramfsSpec::default();
        spec.modules.extend(["virtio_pci", "virtio_blk", "ext4", "virtiofs"].map(String::from));
        let initrd = initramfs(&kernel, &spec).unwrap();
        config =
            config.file(&kernel.vmlinux, format!("{name}.vmlinux")).file(initrd, format!("{name}.initrd"));
    }
    let lab = Lab::start(&config).unwrap();
    lab.sh("mkdir tree system && mount -o ro loads.raw system && mount --bind tree system/work && \
            mount -t tmpfs tmp system/tmp && mount --bind /dev system/dev")
        .unwrap();
    lab
}

/// The system, with the share twice: at `/never` nothing is cached, and locks are the host's too.
const MOUNTS: &str = "mkdir -p /d && mount -t ext4 -o ro /dev/vda /d && mount -t virtiofs work /d/work && mount -t virtiofs never /d/never && \
    mount -t proc proc /d/proc && mount -t tmpfs tmp /d/tmp && mount --bind /dev /d/dev && mount --bind /sys /d/sys";
const FLAGS: &str = "--disk loads.raw,ro --share tree,tag=work --share tree,tag=never,cache=never,locks=host";

/// A guest that is in that system.
struct Debian<'a> {
    lab: &'a Lab,
    name: &'static str,
    guest: Small,
}

impl<'a> Debian<'a> {
    fn boot(lab: &'a Lab, name: &'static str, kernel: &str, flags: &str) -> Self {
        let mut guest = Small::boot_as(lab, name, kernel, &format!("{flags} {FLAGS}"));
        guest.sh(MOUNTS);
        Debian { lab, name, guest }
    }

    /// Begins with a script of bash, which ends at its first error.
    fn begin(&mut self, script: &str) {
        // It comes by the share.
        let file = format!("script-{}", self.name);
        self.lab.put(&format!("tree/{file}"), script.as_bytes()).unwrap();
        self.guest.sh(&format!(
            "cp /d/never/{file} /d/tmp/script; rm -f /d/tmp/end; (chroot /d /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C \
             bash -e /tmp/script >/d/tmp/said 2>&1; echo $? >/d/tmp/end) >/dev/null 2>&1 &"
        ));
    }

    /// Waits for it to end well; what it said.
    #[track_caller]
    fn ended(&mut self) -> String {
        let until = Instant::now() + LONG;
        while Instant::now() < until {
            let end = self.guest.sh(
                "for n in $(seq 100); do [ -s /d/tmp/end ] && break; sleep 0.2; done; [ ! -s /d/tmp/end ] || cat /d/tmp/end",
            );
            if !end.is_empty() {
                let said = self.guest.sh("cat /d/tmp/said");
                assert_eq!(end, "0", "{said}");
                return said;
            }
        }
        panic!("it does not end: {}", self.guest.sh("cat /d/tmp/said"));
    }

    #[track_caller]
    fn does(&mut self, name: &str, script: &str) -> String {
        let start = Instant::now();
        self.begin(script);
        let said = self.ended();
        println!("{:5.0} s: {name}", start.elapsed().as_secs_f64());
        said
    }
}

/// The host, in the same system.
fn host(lab: &Lab, script: &str) -> String {
    lab.put("tree/script-host", script.as_bytes()).unwrap();
    let out = lab.exec(&Cmd::sh("chroot system /bin/bash -e /work/script-host").limit(LONG)).unwrap();
    succeeds(&out);
    out.text()
}

#[test]
fn debians_programs_build_store_lock_and_load_on_a_share_of_linux_6_1() {
    work_under("6.1", "6.12");
}

#[test]
fn debians_programs_build_store_lock_and_load_on_a_share_of_linux_6_12() {
    work_under("6.12", "6.1");
}

/// `other` is the kernel of another guest on the same tree.
fn work_under(kernel: &str, other: &str) {
    if !soak() {
        println!("in `make soak`: lab_share has a small guest's loads");
        return;
    }
    let lab = lab();
    let mut guest = Debian::boot(&lab, "small", kernel, "--cpus 2 --mem 512");
    builds_and_is_saved_meanwhile(&mut guest);
    package_managers_lock(&mut guest);
    databases_lock(&mut guest, other);
    has_many_files(&mut guest);
    loads_verify(&mut guest);
    guest.guest.has_no_splat();
    guest.guest.kill();
}

/// The build ends with tests of what it has built.
const BUILD: &str = "cp -r /src /work/bzip2; cd /work/bzip2; make -j2 CFLAGS='-O1 -D_FILE_OFFSET_BITS=64'";

/// Paused, and saved, with compilers and make at work.
fn builds_and_is_saved_meanwhile(debian: &mut Debian<'_>) {
    let (lab, start) = (debian.lab, Instant::now());
    debian.begin(BUILD);
    debian.guest.sh("until [ -e /d/work/bzip2/blocksort.o ] || [ -e /d/tmp/end ]; do sleep 0.2; done");
    verb(lab, "pause small");
    verb(lab, "resume small");
    let mut saves = 0;
    while saves < 3 && debian.guest.sh("[ ! -e /d/tmp/end ] || echo over").is_empty() {
        debian.guest.goes_on_elsewhere(lab, "saved");
        lab.sh("rm -r saved").unwrap();
        saves += 1;
        debian.guest.sh("sleep 2");
    }
    let said = debian.ended();
    println!("{:5.0} s: make -j2, saved {saves} times", start.elapsed().as_secs_f64());
    assert!(saves > 0 && said.contains("If you got this far and the 'cmp's didn't complain"), "{said}");
    // The host runs what the guest has built.
    assert_eq!(host(lab, "echo text | /work/bzip2/bzip2 | /work/bzip2/bzip2 -d"), "text\n");
    let built = "cd /work/bzip2 && ls *.o bzip2 bzip2recover libbz2.a | wc -l";
    assert_eq!(host(lab, built).trim(), "12");
}

/// apt and dpkg hold their locks while they work, and the second one is told who has them.
fn package_managers_lock(guest: &mut Debian<'_>) {
    let said = guest.does(
        "apt",
        "mkdir -p /work/apt/{lists/partial,cache/archives/partial,log}; : >/work/apt/status
        update() { apt-get -o Dir::State=/work/apt -o Dir::State::status=/work/apt/status -o Dir::Cache=/work/apt/cache -o Dir::Log=/work/apt/log \
            -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User=root \"$@\" update; }
        update -o APT::Update::Pre-Invoke::='touch /tmp/in; until [ -e /tmp/go ]; do sleep 0.2; done' & first=$!
        until [ -e /tmp/in ]; do sleep 0.2; done
        ! update
        touch /tmp/go; wait $first
        update; rm /tmp/in /tmp/go",
    );
    assert_eq!(
        said.matches("Could not get lock /work/apt/lists/lock. It is held by process").count(),
        1,
        "{said}"
    );
    let said = guest.does(
        "dpkg",
        "mkdir -p /work/p/DEBIAN /work/db/{info,updates,triggers} /work/inst; : >/work/db/status; cd /work
        printf 'Package: p\\nVersion: 1\\nArchitecture: all\\nMaintainer: m <m@m>\\nDescription: d\\n' >p/DEBIAN/control
        printf '#!/bin/sh\\ntouch /tmp/in; until [ -e /tmp/go ]; do sleep 0.2; done\\n' >p/DEBIAN/postinst; chmod 755 p/DEBIAN/postinst
        mkdir p/usr; echo packed >p/usr/file; dpkg-deb -b p p.deb
        pkg() { dpkg --force-all --force-script-chrootless --admindir=/work/db --instdir=/work/inst \"$@\"; }
        pkg -i p.deb & first=$!
        until [ -e /tmp/in ]; do sleep 0.2; done
        ! pkg -i p.deb
        touch /tmp/go; wait $first
        pkg -s p; cat inst/usr/file",
    );
    assert!(
        said.contains("lock was locked by another process") && said.contains("Status: install ok installed"),
        "{said}"
    );
    assert!(said.ends_with("packed"), "{said}");
}

/// 100,000 files in a folder, of which the guest makes and removes some.
fn has_many_files(guest: &mut Debian<'_>) {
    let lab = guest.lab;
    host(lab, "mkdir /work/many; cd /work/many; seq -f host-%06.0f 97000 | xargs touch");
    guest.does("3,000 files made", "cd /work/many; seq -f guest-%06.0f 3000 | xargs touch");
    guest.does(
        "100,000 listed",
        "cd /work/many; test $(ls -U | sort -u | wc -l) = 100000; test $(ls -U | wc -l) = 100000",
    );
    guest.does(
        "a tenth looked at",
        "cd /work/many; test $(find . -name '*7' -type f -size 0 | wc -l) = 10000",
    );
    guest.does(
        "3,000 removed",
        "cd /work/many; find . -name 'guest-*' -delete; test $(ls -U | wc -l) = 97000",
    );
    host(lab, "test $(ls -U /work/many | wc -l) = 97000; rm -r /work/many");
    guest.does("gone", "test ! -e /work/many");
}

/// What fio says of what it wrote; holes behind 4 GiB that Debian's programs find.
fn loads_verify(guest: &mut Debian<'_>) {
    let said = guest.does(
        "holes",
        "cd /work; truncate -s 6G big; printf x | dd of=big bs=1 seek=5G conv=notrunc status=none
        perl -e 'open F, q(<), q(big); print sysseek(F, 0, 3) >> 20, q( ), sysseek(F, 5 << 30, 4) - (5 << 30)'
        cp --sparse=auto big copy; test $(stat -c %s copy) = $((6 << 30)); test $(stat -c %b copy) -lt 1000
        tail -c 1G copy | head -c 2 | od -c | head -1; rm big copy",
    );
    assert!(said.starts_with("5120 4096"), "{said}");
    let said = guest.does(
        "fio",
        "fio --name=v --directory=/work --size=4m --rw=randrw --bs=4k-64k --verify=crc32c --do_verify=1 --verify_fatal=1 --ioengine=psync \
            --numjobs=2 --fallocate=none --fsync=32
        fio --name=m --directory=/work --size=4m --rw=randwrite --bs=4k --verify=md5 --do_verify=1 --verify_fatal=1 --ioengine=mmap --fallocate=none
        fio --name=d --directory=/never --size=4m --rw=randwrite --bs=4k-64k --verify=crc32c --do_verify=1 --verify_fatal=1 --direct=1 \
            --ioengine=libaio --iodepth=8 --fallocate=none",
    );
    assert!(said.matches("err= 0").count() == 4, "{said}");
}

/// Two writers here, one in another guest with another kernel and one on the host; none of what they write is lost.
fn databases_lock(guest: &mut Debian<'_>, other: &str) {
    const ROWS: u32 = 15;
    let lab = guest.lab;
    let mut other = Debian::boot(lab, "other", other, "--mem 128");
    guest.does("a database", "sqlite3 /never/rows 'CREATE TABLE t(w, n)'");
    let writer = |n: u32, on: &str| {
        format!(
            "(echo .timeout 3000000; for n in $(seq {ROWS}); do echo \"INSERT INTO t VALUES({n}, $n);\"; done) | sqlite3 {on}/rows"
        )
    };
    let start = Instant::now();
    other.begin(&writer(4, "/never"));
    guest.begin(&format!("{} & first=$!; {}; wait $first", writer(1, "/never"), writer(2, "/never")));
    host(lab, &writer(3, "/work"));
    guest.ended();
    other.ended();
    println!("{:5.0} s: four writers, three of them in guests", start.elapsed().as_secs_f64());
    let rows = "sqlite3 /never/rows 'SELECT w, count(*), sum(n) FROM t GROUP BY w ORDER BY w; PRAGMA integrity_check'";
    let sum = ROWS * (ROWS + 1) / 2;
    let all: String = (1..=4).map(|w| format!("{w}|{ROWS}|{sum}\n")).collect::<String>() + "ok";
    assert_eq!(guest.does("its rows", rows), all);
    other.guest.kill();
}

/// One after the other, so that one that does not end is known by its name. With locks of the host lockf would not: it waits for the end of a child
/// that waits for a lock of its own, which no signal ends there (docs/shares.md). What takes thousands of files is made small: a file takes 10 ms to
/// make here.
const STRESS: &str = "mkdir -p stress; cd stress
    for stressor in access chmod chown copy-file dentry dir dirdeep dirmany dup fallocate fcntl fiemap file-ioctl filename flock fstat getdent hdd \
        inode-flags io link locka lockf lockofd mknod open rename seek symlink sync-file touch utime xattr; do
        begun=$SECONDS
        timeout 900 stress-ng --temp-path . --timeout 2 --verify --$stressor 1 --dentries 50 --dir-dirs 64 --dirdeep-dirs 1 --dirdeep-inodes 50 \
            --fallocate-bytes 4m --fiemap-bytes 4m --hdd-bytes 4m --seek-size 4m --sync-file-bytes 4m --copy-file-bytes 128m >/tmp/stress 2>&1 ||
            echo \"$stressor fails: $?\"
        grep fail: /tmp/stress || true
        grep -q 'successful run completed\\|skipped' /tmp/stress || cat /tmp/stress
        echo \"$stressor: $((SECONDS - begun)) s\"
    done";

#[test]
fn stressors_of_file_systems_find_no_fault_in_a_share() {
    if !soak() {
        println!("in `make soak`");
        return;
    }
    let lab = lab();
    for kernel in ["6.12", "6.1"] {
        let mut guest = Debian::boot(&lab, "small", kernel, "--cpus 2 --mem 512");
        let said = guest.does("stressors", &format!("cd /work; {STRESS}"));
        println!("Linux {kernel}: {said}");
        assert!(!said.contains("fail") && said.ends_with("s"), "{said}");
        guest.guest.has_no_splat();
        guest.guest.kill();
    }
}
