//! File systems that are mounted in a shared folder. Those that hold files are shared with it. The kernel's own are not: a file
//! of them is a way to the host's processes and settings (`/proc/PID/mem`), not something that lies in a folder.

use std::os::fd::AsFd;

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

/// Whether a file system of this number is the kernel's own.
pub(super) fn is_kernels(magic: u64) -> bool {
    KERNELS.contains(&magic)
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
        if Identity::of(stat).device == self.folder.identity.device || !is_kernels(magic(fd).map_err(errno)?)
        {
            return Ok(());
        }
        Err(Errno::ACCES)
    }
}
