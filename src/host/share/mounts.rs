//! File systems that are mounted in a shared folder. Those that hold files are shared with it. The kernel's own are not: a file
//! of them is a way to the host's processes and settings (`/proc/PID/mem`), not something that lies in a folder.

use std::os::fd::AsFd;
use std::sync::OnceLock;

use rustix::fs::Statx;
use virtio::fs::{Answer, Errno};

use super::attributes::Identity;
use super::{Share, errno};
use crate::host::file_system::magic;

/// Numbers of statfs(2) (linux/magic.h).
const KERNELS: [u64; 22] = [
    0x0000_9fa0, // proc
    0x6265_6572, // sysfs
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6265_6570, // configfs
    0x7363_6673, // securityfs
    0xde5e_81e4, // efivarfs
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0x6e73_6673, // nsfs
    0x4249_4e4d, // binfmt_misc
    0x1980_0202, // mqueue
    0x0765_5821, // resctrl
    0x0000_1cd1, // devpts
    0x6573_5543, // fusectl
    0x6e66_7364, // nfsd
    0x6759_6969, // rpc_pipefs
    0xabba_1974, // xenfs
];
/// Those that tell at close(2) what became of writes.
const TELL_AT_CLOSE: [u64; 8] = [
    0x0000_6969, // nfs
    0xff53_4d42, // cifs
    0xfe53_4d42, // smb2
    0x0000_517b, // smb
    0x0102_1997, // 9p
    0x00c3_6400, // ceph
    0x5346_414f, // afs
    0x6573_5546, // fuse
];
const OVERLAYFS: u64 = 0x794c_7630;
/// What devtmpfs may have: it is built on one of these, and its files are the host's devices.
const LIKE_DEVTMPFS: [u64; 2] = [
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
];

/// Devices as in [`Identity`] of devtmpfs, which Linux has one of: known when it is first asked for.
pub(super) type Devtmpfs = OnceLock<Option<u64>>;

/// Whether a file system of this number and device is the kernel's own.
pub(super) fn is_kernels(magic: u64, device: u64, devtmpfs: &Devtmpfs) -> bool {
    let of_devices = || {
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        *devtmpfs.get_or_init(|| devtmpfs_of(&mounts())) == Some(device)
    };
    KERNELS.contains(&magic) || LIKE_DEVTMPFS.contains(&magic) && of_devices()
}

/// The device of devtmpfs in a list of mounts (proc(5)).
fn devtmpfs_of(mounts: &str) -> Option<u64> {
    mounts.lines().find_map(|mount| {
        let (own, file_system) = mount.split_once(" - ")?;
        let (major, minor) = own.split(' ').nth(2)?.split_once(':')?;
        let device = u64::from(major.parse::<u32>().ok()?) << 32 | u64::from(minor.parse::<u32>().ok()?);
        file_system.starts_with("devtmpfs ").then_some(device)
    })
}

/// Whether a file's birth stays on a file system of this number. With overlayfs (of containers) it is another one once the file has
/// been changed.
pub(super) fn keeps_births(magic: u64) -> bool {
    magic != OVERLAYFS
}

/// Whether a file system of this number tells at close(2) only what became of writes.
pub(super) fn tells_at_close(magic: u64) -> bool {
    TELL_AT_CLOSE.contains(&magic)
}

impl Share {
    /// Refuses what `fd` is of, whose attributes are `stat`, if it is the kernel's own.
    pub(super) fn may_use(&self, fd: impl AsFd, stat: &Statx) -> Answer<()> {
        // A mounted file system is another device than the shared folder's, which was looked at.
        let device = Identity::of(stat).device;
        if device == self.folder.identity.device {
            return Ok(());
        }
        let magic = magic(fd).map_err(errno)?;
        if is_kernels(magic, device, &self.folder.devtmpfs) { Err(Errno::ACCES) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devtmpfs_is_known_by_the_list_of_mounts() {
        let mounts = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:6 / /dev rw,nosuid shared:2 - devtmpfs udev rw,size=4k
24 23 0:25 / /dev/shm rw,nosuid - tmpfs devtmpfs rw
25 22 0:26 /x /mnt/a\\040-\\040b rw - tmpfs tmpfs rw
";
        assert_eq!(devtmpfs_of(mounts), Some(6));
        assert_eq!(devtmpfs_of(&mounts.replace("- devtmpfs", "- tmpfs")), None);
        assert_eq!(devtmpfs_of(""), None);
        let (found, missing) = (Devtmpfs::from(Some(6)), Devtmpfs::from(None));
        assert!(is_kernels(0x0102_1994, 6, &found) && is_kernels(0x9fa0, 5, &missing));
        assert!(!is_kernels(0x0102_1994, 25, &found) && !is_kernels(0x0102_1994, 6, &missing));
        assert!(!is_kernels(0xef53, 6, &found), "ext4");
    }
}
