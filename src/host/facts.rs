//! What the host is, read from /proc, /sys and /dev. Facts only: what follows from them is for others to say.
//!
//! Everything is found under one root, so that a test can give a tree of its own. /proc and /sys may not be mounted, and may
//! show another world than this process's: docs/host.md lists what is asked of them, and what is asked instead.

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

/// Whether a device can be used by this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    /// It can.
    Granted,
    /// There is none.
    Missing,
    /// It is there for others. What could let this process in.
    Denied(Owner),
    /// Somebody else has it.
    Busy,
    /// Something else, in the host's words.
    Failed(String),
}

/// Who may use a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The group that may, by name; `None` if it has no rights or no name, or is root's.
    pub group: Option<String>,
}

/// What virtualizes under /dev/kvm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
    /// kvm_pvm: page tables and emulation, with no help from the processor.
    Pvm,
    /// Nothing known.
    Unknown,
}

/// The processors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cpu {
    /// `vendor_id`: `GenuineIntel`, `AuthenticAMD`.
    pub vendor: String,
    /// Name of the model.
    pub model: String,
    /// How many this host has on line.
    pub count: usize,
    /// Intel VT-x is visible.
    pub vmx: bool,
    /// AMD-V is visible.
    pub svm: bool,
    /// The host is itself a virtual machine.
    pub hypervisor: bool,
}

/// Memory, in KiB as /proc/meminfo counts it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// All of it.
    pub total_kib: u64,
    /// What can be had without swapping.
    pub available_kib: u64,
    /// All swap.
    pub swap_kib: u64,
}

impl Host {
    /// The host that this process runs on.
    pub(crate) fn here() -> Self {
        Host { root: PathBuf::from("/") }
    }

    /// A host whose files lie under `root`.
    #[cfg(test)]
    pub(crate) fn under(root: impl Into<PathBuf>) -> Self {
        Host { root: root.into() }
    }

    /// `path`, which starts with `/`, on this host.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Whether `device` can be opened for reading and writing. Opening /dev/kvm or /dev/net/tun changes nothing.
    pub(crate) fn access(&self, device: &str) -> Access {
        self.open(device).map_or_else(|refused| refused, |_| Access::Granted)
    }

    /// Opens `device` for reading and writing.
    pub(crate) fn open(&self, device: &str) -> Result<File, Access> {
        let path = self.path(device);
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        opened.map_err(|error| self.refused(&path, &error))
    }

    /// Asks KVM what it can.
    pub(crate) fn ask_kvm(&self, device: &str) -> Result<KvmFacts, Access> {
        let path = self.path(device);
        kvm::probe(&path).map_err(|error| self.refused(&path, &error))
    }

    /// What it means that `device` was not to be had.
    pub(crate) fn refused(&self, path: &Path, error: &io::Error) -> Access {
        match error.kind() {
            io::ErrorKind::NotFound => Access::Missing,
            io::ErrorKind::PermissionDenied => Access::Denied(Owner { group: self.group(path) }),
            io::ErrorKind::ResourceBusy => Access::Busy,
            _ => match error.raw_os_error() {
                // The node is there and no driver is behind it.
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

    /// Which backend /dev/kvm has. A module that is built in has its folder also where it found no hardware: the
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

    /// Whether /dev/kvm is kvm_pvm's, without reading /proc/cpuinfo, which asks every processor of the host.
    pub(crate) fn is_pvm(&self) -> bool {
        self.module("kvm_pvm") && !self.module("kvm_intel") && !self.module("kvm_amd")
    }

    fn module(&self, name: &str) -> bool {
        self.path("/sys/module").join(name).exists()
    }

    /// Whether the kernel has KVM, whatever stands in /dev. No namespace hides either file; a chroot has none of them.
    pub(crate) fn kernel_has_kvm(&self) -> bool {
        let listed = || {
            let devices = read(&self.path("/proc/misc"));
            devices.lines().any(|line| line.split_whitespace().nth(1) == Some("kvm"))
        };
        self.path("/sys/class/misc/kvm").exists() || listed()
    }

    /// Whether /proc or /sys is mounted.
    pub(crate) fn shows_its_kernel(&self) -> bool {
        self.path("/proc/cpuinfo").exists()
            || self.path("/proc/misc").exists()
            || self.path("/sys/class").exists()
    }

    /// Whether this process is in a user namespace of its own: its users are a part of the host's, or others (user_namespaces(7)).
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
        if cpu.count == 0 && self.is_here() { processor::ask() } else { cpu }
    }

    /// Whether this is the host that the process runs on, which can be asked in other ways than by files.
    fn is_here(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Memory that this process can have: the host's, or less where a control group (a container, a service) has a limit.
    /// `None` where it cannot be known.
    pub(crate) fn memory(&self) -> Option<Memory> {
        let memory = self.all_memory().or_else(|| limits::ask_kernel().filter(|_| self.is_here()))?;
        Some(limits::of_groups(self, memory))
    }

    /// The host's, as /proc/meminfo says.
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

    /// The user whose folder this is, if logind removes it when that user's last session ends: it makes /run/user/UID at the first
    /// login and knows no lingering for the user (loginctl(1)).
    pub(crate) fn removed_at_logout(&self, folder: &Path, user: u32) -> Option<String> {
        let own = Path::new("/run/user").join(user.to_string());
        if !folder.starts_with(own) {
            return None;
        }
        // Of its own making, for programs to read: sd-login(3) does.
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
}

/// The text of a small file; empty if there is none. Bounded, for a path may lead anywhere.
pub(crate) fn read(path: &Path) -> String {
    const MOST: u64 = 8 << 20;
    let regular = fs::metadata(path).is_ok_and(|meta| meta.is_file());
    // As much as most of these files have, so that they are read at once.
    let mut bytes = Vec::with_capacity(4096);
    if regular {
        if let Ok(file) = File::open(path) {
            // What could be read until an error is better than nothing.
            let _ = file.take(MOST).read_to_end(&mut bytes);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
pub(crate) mod tests;
