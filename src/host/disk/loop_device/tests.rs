//! Loop devices of a host that the tests make up, and one of this host where that is possible.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;
use crate::host::disk::file::DiskFile;
use crate::host::disk::tests::lacks;

const WRITE: Access = Access { read_only: false, direct: false };
const READ: Access = Access { read_only: true, direct: false };

/// A folder that looks like sysfs, beside images.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let host = Host(tempfile::tempdir().unwrap());
        for folder in ["block", "dev/block", "devices"] {
            fs::create_dir_all(host.path(folder)).unwrap();
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn image(&self, name: &str) -> PathBuf {
        fs::write(self.path(name), [0; 4096]).unwrap();
        self.path(name)
    }

    /// Attaches a loop device to `backing`.
    fn attach(&self, name: &str, backing: &Path, offset: u64, limit: u64, read_only: bool) {
        let folder = self.path("devices").join(name);
        fs::create_dir_all(folder.join("loop")).unwrap();
        for (file, text) in [
            ("loop/backing_file", backing.to_str().unwrap().to_owned()),
            ("loop/offset", offset.to_string()),
            ("loop/sizelimit", limit.to_string()),
            ("ro", u32::from(read_only).to_string()),
        ] {
            fs::write(folder.join(file), text + "\n").unwrap();
        }
        std::os::unix::fs::symlink(&folder, self.path("block").join(name)).unwrap();
    }

    /// Gives a device, such as `loop0` or `loop0/loop0p1`, a number.
    fn number(&self, device: &str, major: u32, minor: u32) -> u64 {
        let link = self.path(&format!("dev/block/{major}:{minor}"));
        std::os::unix::fs::symlink(self.path("devices").join(device), link).unwrap();
        libc::makedev(major, minor)
    }

    fn refused(&self, path: &Path, access: Access) -> Option<String> {
        let file = File::open(path).unwrap();
        let sys = self.0.path();
        let claim = Claim { sys, path, access }.all(&file, &file.metadata().unwrap());
        claim.err().map(|error| error.to_string())
    }
}

#[test]
fn an_image_with_a_loop_device_over_it_is_refused_with_its_name() {
    let host = Host::new();
    let (image, other) = (host.image("vm0.raw"), host.image("vm1.raw"));
    assert_eq!(host.refused(&image, WRITE), None);
    // By whatever name the kernel calls the file.
    fs::hard_link(&image, host.path("same.raw")).unwrap();
    host.attach("loop3", &host.path("same.raw"), 0, 0, false);
    host.attach("loop4", &host.path("gone.raw (deleted)"), 0, 0, false);
    fs::create_dir(host.path("block/loop5")).unwrap();
    let said = host.refused(&image, WRITE).unwrap();
    assert!(
        said.contains("the loop device /dev/loop3") && said.contains("`losetup -d /dev/loop3`"),
        "{said}"
    );
    let said = host.refused(&image, READ).unwrap();
    assert!(said.contains("/dev/loop3") && said.contains("`losetup -r`"), "{said}");
    assert_eq!(host.refused(&other, WRITE), None);
    host.attach("loop6", &other, 0, 0, true);
    assert_eq!(host.refused(&other, READ), None, "nothing writes");
    assert!(host.refused(&other, WRITE).unwrap().contains("/dev/loop6"));
}

#[test]
fn loop_devices_and_their_partitions_are_parts_of_their_files() {
    let host = Host::new();
    host.attach("loop0", Path::new("/images/a b.raw"), 1 << 20, 0, false);
    host.attach("loop1", Path::new("/images/c.raw"), 512, 4096, false);
    let partition = host.path("devices/loop0/loop0p2");
    fs::create_dir(&partition).unwrap();
    for (file, text) in [("partition", "2"), ("start", "2048"), ("size", "100")] {
        fs::write(partition.join(file), text).unwrap();
    }
    fs::create_dir(host.path("devices/vda")).unwrap();
    let numbers = [host.number("loop0", 7, 0), host.number("loop1", 7, 1), host.number("vda", 253, 0)];
    let partition = host.number("loop0/loop0p2", 259, 7);
    let of = |number| LoopDevice::of(host.0.path(), number).map(|found| (found.backing, found.range));
    assert_eq!(of(numbers[0]), Some(("/images/a b.raw".into(), 1 << 20..u64::MAX)));
    assert_eq!(of(numbers[1]), Some(("/images/c.raw".into(), 512..4608)));
    assert_eq!(of(partition), Some(("/images/a b.raw".into(), 2 << 20..(2 << 20) + 51_200)));
    assert_eq!((of(numbers[2]), of(libc::makedev(1, 1))), (None, None));
}

/// A loop device of this host, detached with this.
pub(in crate::host::disk) struct RealLoop(pub(in crate::host::disk) PathBuf);

impl RealLoop {
    /// `None`, which the test says, where this user or host can attach none.
    pub(in crate::host::disk) fn attach(image: &Path, options: &[&str]) -> Option<Self> {
        let output = Command::new("losetup").args(options).args(["-f", "--show"]).arg(image).output();
        let Some(output) = output.ok().filter(|output| output.status.success()) else {
            lacks("loop", "this user can attach no loop device (losetup -f): run it as root");
            return None;
        };
        Some(RealLoop(String::from_utf8(output.stdout).unwrap().trim().into()))
    }
}

impl Drop for RealLoop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
        // The kernel detaches it with its last descriptor, of which a process that another test begins has a copy until its exec.
        let folder = Path::new("/sys/block").join(self.0.file_name().unwrap());
        let until = Instant::now() + Duration::from_secs(20);
        while LoopDevice::at(folder.clone()).is_some() && Instant::now() < until {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// An MBR with two partitions of 1 MiB each, at 1 MiB and 2 MiB.
fn partitioned() -> Vec<u8> {
    let mut disk = vec![0; 4 << 20];
    for (entry, start) in [(446, 2048u32), (462, 4096)] {
        disk[entry + 4] = 0x83;
        disk[entry + 8..entry + 12].copy_from_slice(&start.to_le_bytes());
        disk[entry + 12..entry + 16].copy_from_slice(&2048u32.to_le_bytes());
    }
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

#[test]
fn a_real_loop_device_and_its_image_are_one_disk() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.raw");
    fs::write(&image, partitioned()).unwrap();
    let Some(attached) = RealLoop::attach(&image, &["-P"]) else { return };
    let device = attached.0.as_path();
    let open = |path: &Path, access| DiskFile::open(path, access).map_err(|error| error.to_string());
    let named = format!("{} ", device.display());
    assert!(open(&image, WRITE).unwrap_err().contains(named.trim_end()));
    assert!(open(&image, READ).unwrap_err().contains("losetup -r"));
    // The device itself is a disk, and its image is in use then, whoever asks.
    let disk = open(device, WRITE).unwrap();
    for path in [&image, device] {
        assert!(open(path, WRITE).unwrap_err().contains("in use"), "{}", path.display());
    }
    drop(disk);
    let readers = [READ; 2].map(|access| open(device, access).unwrap());
    drop(readers);
    // Partitions are disks of their own.
    let partition = |number: u32| PathBuf::from(format!("{}p{number}", device.display()));
    if partition(2).exists() {
        let first = open(&partition(1), WRITE).unwrap();
        let second = open(&partition(2), WRITE).unwrap();
        assert!(open(&image, WRITE).unwrap_err().contains("in use"));
        assert!(open(device, READ).unwrap_err().contains("in use"));
        drop((first, second));
    }
    drop(attached);
    drop(open(&image, WRITE).unwrap());
    let Some(attached) = RealLoop::attach(&image, &["-r"]) else { return };
    drop(open(&image, READ).unwrap());
    assert!(open(&image, WRITE).unwrap_err().contains(attached.0.to_str().unwrap()));
}
