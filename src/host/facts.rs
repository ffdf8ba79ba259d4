//! Facts about the host, read from /proc, /sys and /dev; their interpretation is elsewhere.
//!
//! Everything is read below one root, so that a test can use a tree of its own. /proc and /sys may be
//! missing, or show another namespace than this process's: docs/host.md lists what is read, and the
//! alternatives.

mod limits;
mod processor;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::kvm::{self, KvmFacts};

/// A host, seen from a root folder.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    root: PathBuf,
}

/// Whether this process can open a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    /// It can.
    Granted,
    /// It does not exist.
    Missing,
    /// Permission denied, with the owner that would have it.
    Denied(Owner),
    /// Another process uses it.
    Busy,
    /// Any other error, as text.
    Failed(String),
}

/// The owner of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The group with access, by name; `None` if it has no rights or no name, or is root's.
    pub group: Option<String>,
}

/// The implementation behind /dev/kvm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
    /// kvm_pvm: page tables and emulation, without help from the processor.
    Pvm,
    /// Unknown.
    Unknown,
}

/// The processors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cpu {
    /// `vendor_id`: `GenuineIntel`, `AuthenticAMD`.
    pub vendor: String,
    /// Model name.
    pub model: String,
    /// Number of processors online.
    pub count: usize,
    /// Intel VT-x is visible.
    pub vmx: bool,
    /// AMD-V is visible.
    pub svm: bool,
    /// The host is itself a virtual machine.
    pub hypervisor: bool,
}

/// Memory, in KiB as in /proc/meminfo.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Total memory.
    pub total_kib: u64,
    /// Memory that is available without swapping.
    pub available_kib: u64,
    /// Total swap.
    pub swap_kib: u64,
}

impl Host {
    /// The host of this process.
    pub(crate) fn here() -> Self {
        Host { root: PathBuf::from("/") }
    }

    /// A host whose files are below `root`.
    #[cfg(test)]
    pub(crate) fn under(root: impl Into<PathBuf>) -> Self {
        Host { root: root.into() }
    }

    /// `path`, which starts with `/`, on this host.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Whether `device` can be opened for reading and writing. Opening /dev/kvm or /dev/net/tun changes
    /// nothing.
    pub(crate) fn access(&self, device: &str) -> Access {
        self.open(device).map_or_else(|refused| refused, |_| Access::Granted)
    }

    /// Opens `device` for reading and writing.
    pub(crate) fn open(&self, device: &str) -> Result<File, Access> {
        let path = self.path(device);
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        opened.map_err(|error| self.access_error(&path, &error))
    }

    /// Queries KVM.
    pub(crate) fn probe_kvm(&self, device: &str) -> Result<KvmFacts, Access> {
        let path = self.path(device);
        kvm::probe(&path).map_err(|error| self.access_error(&path, &error))
    }

    /// The meaning of an error of opening `device`.
    pub(crate) fn access_error(&self, path: &Path, error: &io::Error) -> Access {
        match error.kind() {
            io::ErrorKind::NotFound => Access::Missing,
            io::ErrorKind::PermissionDenied => Access::Denied(Owner { group: self.group(path) }),
            io::ErrorKind::ResourceBusy => Access::Busy,
            _ => match error.raw_os_error() {
                // The node exists without a driver.
                Some(libc::ENODEV | libc::ENXIO) => Access::Missing,
                _ => Access::Failed(error.to_string()),
            },
        }
    }

    /// The group whose members may read and write `path`.
    fn group(&self, path: &Path) -> Option<String> {
        const GROUP_READ_WRITE: u32 = 0o060;
        let meta = fs::metadata(path).ok()?;
        if meta.gid() == 0 || meta.mode() & GROUP_READ_WRITE != GROUP_READ_WRITE {
            return None;
        }
        let id = meta.gid().to_string();
        let groups = read(&self.path("/etc/group"));
        // group(5): name:password:id:members
        let line = groups.lines().find(|line| line.split(':').nth(2) == Some(&id))?;
        line.split(':').next().map(str::to_owned)
    }

    /// The backend of /dev/kvm. A built-in module has its folder even without hardware support, so the
    /// processor must agree.
    pub(crate) fn backend(&self, cpu: &Cpu) -> Backend {
        if self.module("kvm_intel") && cpu.vmx {
            Backend::Vmx
        } else if self.module("kvm_amd") && cpu.svm {
            Backend::Svm
        } else if self.module("kvm_pvm") {
            Backend::Pvm
        } else {
            Backend::Unknown
        }
    }

    /// Whether /dev/kvm is kvm_pvm's, without reading /proc/cpuinfo, which interrupts every processor of the
    /// host.
    pub(crate) fn is_pvm(&self) -> bool {
        self.module("kvm_pvm") && !self.module("kvm_intel") && !self.module("kvm_amd")
    }

    fn module(&self, name: &str) -> bool {
        self.path("/sys/module").join(name).exists()
    }

    /// Whether the kernel has KVM, regardless of /dev. Namespaces hide neither file; a chroot has neither.
    pub(crate) fn kernel_has_kvm(&self) -> bool {
        let listed = || {
            let devices = read(&self.path("/proc/misc"));
            devices.lines().any(|line| line.split_whitespace().nth(1) == Some("kvm"))
        };
        self.path("/sys/class/misc/kvm").exists() || listed()
    }

    /// Whether /proc or /sys is mounted.
    pub(crate) fn has_proc_or_sys(&self) -> bool {
        self.path("/proc/cpuinfo").exists()
            || self.path("/proc/misc").exists()
            || self.path("/sys/class").exists()
    }

    /// Whether this process is in a user namespace other than the initial one (user_namespaces(7)).
    pub(crate) fn is_in_user_namespace(&self) -> bool {
        let map = read(&self.path("/proc/self/uid_map"));
        let whole = ["0", "0", "4294967295"];
        map.lines().next().is_some_and(|line| !line.split_whitespace().eq(whole))
    }

    /// The processors.
    pub(crate) fn cpu(&self) -> Cpu {
        let text = read(&self.path("/proc/cpuinfo"));
        let mut cpu = Cpu::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match key.trim() {
                "processor" => cpu.count += 1,
                "vendor_id" if cpu.vendor.is_empty() => cpu.vendor = value.to_owned(),
                "model name" if cpu.model.is_empty() => cpu.model = value.to_owned(),
                "flags" if cpu.count <= 1 => {
                    let has = |flag| value.split_whitespace().any(|word| word == flag);
                    (cpu.vmx, cpu.svm, cpu.hypervisor) = (has("vmx"), has("svm"), has("hypervisor"));
                }
                _ => {}
            }
        }
        if cpu.count == 0 && self.is_real_root() { processor::from_cpuid() } else { cpu }
    }

    /// Whether the root is `/`, so that system calls describe the same host.
    fn is_real_root(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Memory for this process: the host's, or less under the limit of a control group (a container, a
    /// service). `None` if unknown.
    pub(crate) fn memory(&self) -> Option<Memory> {
        let memory = self.all_memory().or_else(|| limits::from_sysinfo().filter(|_| self.is_real_root()))?;
        Some(limits::apply_cgroup_limits(self, memory))
    }

    /// The memory of the host below this process, in one system call: not all that it has may be for this process.
    pub(crate) fn physical_memory() -> Option<Memory> {
        limits::from_sysinfo()
    }

    /// The host's memory, from /proc/meminfo.
    fn all_memory(&self) -> Option<Memory> {
        let text = read(&self.path("/proc/meminfo"));
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Memory {
            total_kib: field("MemTotal")?,
            available_kib: field("MemAvailable")?,
            swap_kib: field("SwapTotal").unwrap_or(0),
        })
    }

    /// The owner of `folder`, if logind removes it when that user's last session ends: logind makes
    /// /run/user/UID at the first login, and removes it unless the user lingers (loginctl(1)).
    pub(crate) fn removed_at_logout(&self, folder: &Path, user: u32) -> Option<String> {
        let own = Path::new("/run/user").join(user.to_string());
        if !folder.starts_with(own) {
            return None;
        }
        // logind's own record; sd-login(3) reads it too.
        let text = read(&self.path("/run/systemd/users").join(user.to_string()));
        let name = text.lines().find_map(|line| line.strip_prefix("NAME="))?;
        let lingers = self.path("/var/lib/systemd/linger").join(name).exists();
        (!lingers).then(|| name.to_owned())
    }

    /// The setting of transparent huge pages: `always`, `madvise` or `never`; `None` where the kernel has none.
    pub(crate) fn huge_pages(&self) -> Option<String> {
        let text = read(&self.path("/sys/kernel/mm/transparent_hugepage/enabled"));
        let (_, rest) = text.split_once('[')?;
        rest.split_once(']').map(|(setting, _)| setting.to_owned())
    }

    /// The state of KSM, which merges equal pages; `None` where the kernel has none, or does not tell.
    pub(crate) fn merging(&self) -> Option<Merging> {
        match read(&self.path("/sys/kernel/mm/ksm/run")).trim() {
            "" => None,
            "1" => Some(Merging::Runs),
            // 2: off, and what was merged is split again.
            _ => Some(Merging::Off),
        }
    }
}

/// Whether the host merges equal pages that are marked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merging {
    /// Its thread ksmd runs.
    Runs,
    /// Nobody has switched it on.
    Off,
}

/// The text of a small file; empty if it does not exist. The size is bounded, as a path may lead to any file.
pub(crate) fn read(path: &Path) -> String {
    const MAX_SIZE: u64 = 8 << 20;
    let regular = fs::metadata(path).is_ok_and(|meta| meta.is_file());
    // Most of these files are shorter, so one read suffices.
    let mut bytes = Vec::with_capacity(4096);
    if regular && let Ok(file) = File::open(path) {
        // Keep what was read before an error.
        let _ = file.take(MAX_SIZE).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
pub(crate) mod tests;
