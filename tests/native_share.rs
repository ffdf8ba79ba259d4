//! Shared folders under a guest that speaks FUSE itself (`tests/guest/share`): well, over reboots and saves, and forging what it can.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on shall say so by a panic"
)]

#[path = "support/embedded.rs"]
mod embedded;
#[path = "support/vmm.rs"]
mod vmm;

use std::fs;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use embedded::{LIMIT, Output};
use minivmm::spec::Spec;
use minivmm::{DeviceStats, Machine};
use rustix::fs::inotify;
use tempfile::TempDir;
use tiny_guest::Guest;

/// A machine with a share, beside which lies something secret.
struct Sharing {
    machine: Machine,
    output: Output,
    spec: Spec,
    folder: TempDir,
}

impl Sharing {
    fn start(options: &str) -> Self {
        Self::with(options, |spec| spec)
    }

    fn with(options: &str, more: impl FnOnce(Spec) -> Spec) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("kernel"), tiny_guest::SHARE).unwrap();
        fs::write(path("secret"), "secret").unwrap();
        fs::create_dir(path("dir")).unwrap();
        fs::write(path("dir/from-host"), "from the host").unwrap();
        symlink("/etc", path("dir/out")).unwrap();
        fs::create_dir(path("elsewhere")).unwrap();
        fs::write(path("elsewhere/a"), "elsewhere").unwrap();
        symlink(path("elsewhere"), path("dir/elsewhere")).unwrap();
        let share = format!("{}{options}", path("dir").display());
        let spec = more(
            Spec::new(path("kernel")).with_mem("16".parse().unwrap()).with_share(share.parse().unwrap()),
        );
        let output = Output::default();
        let machine = Machine::start(&spec, Box::new(output.clone())).unwrap();
        let sharing = Sharing { machine, output, spec, folder };
        sharing.has_said("mounted=0\nready\n");
        sharing
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("dir").join(name)
    }

    #[track_caller]
    fn has_said(&self, text: &str) {
        assert!(self.output.wait_for(&[text]), "{}", self.output.text());
    }

    /// What the guest says to a letter.
    #[track_caller]
    fn says(&self, typed: &[u8], said: &str) {
        let before = self.output.text().len();
        self.machine.console_input().write_all(typed).unwrap();
        let deadline = Instant::now() + LIMIT;
        while !self.output.text()[before..].ends_with('\n') {
            assert!(Instant::now() < deadline, "{said}: {}", self.output.text());
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(&self.output.text()[before..], format!("{said}\n"));
    }

    fn counts(&self) -> DeviceStats {
        let devices = self.machine.stats().unwrap().devices;
        devices.into_iter().find(|device| device.name == "fs0").unwrap()
    }

    /// Saves the machine, lets `between` happen, and goes on in another one.
    fn moved(mut self, between: impl FnOnce(&Self)) -> Self {
        self.machine.pause(LIMIT).unwrap();
        let memory = tempfile::tempfile().unwrap();
        let state = serde_json::to_string(&self.machine.save(&memory).unwrap()).unwrap();
        self.machine.kill();
        self.machine.wait();
        between(&self);
        self.output = Output::default();
        let builder = Machine::builder(&self.spec).output(Box::new(self.output.clone()));
        self.machine = builder.restore(serde_json::from_str(&state).unwrap(), memory).start().unwrap();
        self
    }
}

#[test]
fn guest_reads_and_writes_the_hosts_files_and_mounts_again_after_a_reboot() {
    let sharing = Sharing::start(",tag=work");
    sharing.says(b"w", "wrote=0 bytes=5");
    assert_eq!(fs::read(sharing.path("from-guest")).unwrap(), b"hello");
    sharing.says(b"o", "opened=0");
    sharing.says(b"r", "read=0 from the host");
    // What the host appends is there at once.
    fs::write(sharing.path("from-host"), "from the host, later").unwrap();
    sharing.says(b"r", "read=0 from the host, later");
    fs::remove_file(sharing.path("from-host")).unwrap();
    sharing.says(b"r", "read=0 from the host, later");
    let counts = sharing.counts();
    assert_eq!((counts.bytes_out, counts.bytes_in, counts.errors), (5, 13 + 20 + 20, 0));
    sharing.machine.console_input().write_all(b"b").unwrap();
    sharing.has_said("later\nmounted=0\nready\n");
    sharing.says(b"o", "opened=2");
    sharing.says(b"r", "read=9 ?");
    sharing.says(b"w", "wrote=0 bytes=5");
}

#[test]
fn the_last_of_the_most_shares_works_beside_all_other_devices() {
    let folder = tempfile::tempdir().unwrap();
    let last = folder.path().join("last");
    fs::create_dir(&last).unwrap();
    fs::write(last.join("from-host"), "from the last folder").unwrap();
    let sharing = Sharing::with("", |mut spec| {
        for n in 0..16 {
            let image = folder.path().join(format!("{n}.raw"));
            fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
            spec = spec.with_disk(image.display().to_string().parse().unwrap());
        }
        spec = (0..8).fold(spec, |spec, n| {
            spec.with_net(format!("user,subnet=10.0.{}.0/24", 10 + n).parse().unwrap())
        });
        spec = (2..24)
            .fold(spec, |spec, _| spec.with_share(folder.path().display().to_string().parse().unwrap()));
        spec.with_share(last.display().to_string().parse().unwrap())
    });
    sharing.says(b"o", "opened=0");
    sharing.says(b"r", "read=0 from the host");
    sharing.says(b"l", "mounted=0 of=24");
    sharing.says(b"o", "opened=0");
    sharing.says(b"r", "read=0 from the last folder");
    let names: Vec<_> =
        sharing.machine.stats().unwrap().devices.into_iter().map(|device| device.name).collect();
    assert!(
        ["net7", "vdp", "fs23", "console0"].iter().all(|name| names.iter().any(|of| of == name)),
        "{names:?}"
    );
    let one_more = sharing.spec.clone().with_share(last.display().to_string().parse().unwrap());
    let refused = Machine::start(&one_more, Box::new(Output::default())).unwrap_err();
    assert!(refused.to_string().contains("24"), "{refused}");
}

#[test]
fn guest_cannot_write_a_share_that_is_only_read() {
    let sharing = Sharing::start(",ro");
    sharing.says(b"w", "wrote=30 bytes=0");
    sharing.says(b"o", "opened=0");
    sharing.says(b"r", "read=0 from the host");
    assert!(!sharing.path("from-guest").exists());
}

#[test]
fn saved_machine_goes_on_with_its_open_file_and_one_that_is_gone_is_stale() {
    let sharing = Sharing::start("");
    sharing.says(b"o", "opened=0");
    let sharing = sharing.moved(|_| {});
    sharing.says(b"r", "read=0 from the host");
    // Another file of that name.
    let sharing = sharing.moved(|sharing| {
        fs::write(sharing.path("new"), "another").unwrap();
        fs::rename(sharing.path("new"), sharing.path("from-host")).unwrap();
    });
    sharing.says(b"r", "read=116 ?");
    sharing.says(b"o", "opened=0");
    sharing.says(b"r", "read=0 another");
}

#[test]
fn a_machine_that_goes_back_to_a_snapshot_finds_its_open_file_again() {
    let sharing = Sharing::start("");
    sharing.says(b"o", "opened=0");
    let snapshot = sharing.folder.path().join("snapshot");
    sharing.machine.snapshot_to(&snapshot, LIMIT).unwrap();
    sharing.says(b"w", "wrote=0 bytes=5");
    // The folder is no part of a snapshot.
    fs::write(sharing.path("from-host"), "changed since").unwrap();
    sharing.machine.revert_to(&snapshot).unwrap();
    sharing.says(b"r", "read=0 changed since");
    assert_eq!(fs::read(sharing.path("from-guest")).unwrap(), b"hello");
    fs::rename(sharing.path("from-host"), sharing.path("elsewhere")).unwrap();
    sharing.machine.revert_to(&snapshot).unwrap();
    sharing.says(b"r", "read=116 ?");
    sharing.says(b"o", "opened=2");
}

#[test]
fn saved_machine_whose_folder_is_gone_is_refused_with_a_cure() {
    let sharing = Sharing::start("");
    sharing.machine.pause(LIMIT).unwrap();
    let memory = tempfile::tempfile().unwrap();
    let state = sharing.machine.save(&memory).unwrap();
    sharing.machine.kill();
    fs::remove_dir_all(sharing.path("")).unwrap();
    let builder = Machine::builder(&sharing.spec).output(Box::new(Output::default()));
    let refused = builder.restore(state, memory).start().unwrap_err().to_string();
    let path = sharing.folder.path().join("dir");
    assert!(refused.contains(&format!("make it with `mkdir -p {}`", path.display())), "{refused}");
}

#[test]
fn a_request_costs_one_wake_up_and_no_interrupt_that_was_not_asked_for() {
    let sharing = Sharing::start("");
    sharing.says(b"o", "opened=0");
    let before = sharing.counts();
    sharing.says(b"n", "reads=1000");
    let after = sharing.counts();
    assert_eq!(after.requests - before.requests, 1000);
    let kicks = after.kicks - before.kicks;
    assert!(kicks <= 1000 && after.interrupts == before.interrupts, "{kicks} {after:?}");
}

#[test]
fn forged_requests_reach_nothing_outside_and_leave_the_machine_as_it_was() {
    let sharing = Sharing::start("");
    sharing.says(b"o", "opened=0");
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    for outside in ["", "secret", "elsewhere", "elsewhere/a"] {
        let path = sharing.folder.path().join(outside);
        inotify::add_watch(&watch, &path, inotify::WatchFlags::ALL_EVENTS).unwrap();
    }
    sharing.says(b"h", "forged=20000 out=0");
    let before = open();
    sharing.says(b"h", "forged=20000 out=0");
    // Other tests of this process open files too.
    assert!(open() < before + 100, "{before}");
    sharing.says(b"m", "mounted=0");
    sharing.says(b"o", "opened=0");
    // Nothing but the shared folder was opened for reading, listed, read or changed.
    let mut room = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&watch, &mut room);
    let mut outside = || loop {
        match events.next() {
            Ok(event) if event.file_name() == Some(c"dir") => {}
            event => return event.map(|event| format!("{event:?}")),
        }
    };
    assert_eq!(outside(), Err(rustix::io::Errno::AGAIN));
    fs::read(sharing.folder.path().join("secret")).unwrap();
    assert!(outside().is_ok(), "the watch sees what is read");
    let names: Vec<_> =
        fs::read_dir(sharing.folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert_eq!(fs::read(sharing.folder.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn folder_that_is_missing_or_none_is_refused_with_a_cure() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none").display().to_string();
    let ended = vmm::run(Guest::Halt, &["--share", &missing]);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains(&format!("make it with `mkdir -p {missing}`")), "{ended:?}");
    let ended = vmm::run(Guest::Halt, &["--share", "/etc/passwd"]);
    assert!(ended.status.code() == Some(1) && ended.stderr.contains("is no folder"), "{ended:?}");
    let ended = vmm::run(Guest::Halt, &["--share", "/tmp,rw"]);
    assert!(
        ended.status.code() == Some(2) && ended.stderr.contains("`cache=auto|always|never`"),
        "{ended:?}"
    );
}
