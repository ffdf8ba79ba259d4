//! What the facts of a host mean: the problem, and the cure. The doctor and the preflight checks use the same
//! sentences.

use std::fmt;

use crate::host::facts::{Access, Backend, Cpu, Host, Memory, Owner};
use crate::spec::MemSize;

/// The KVM device.
pub(super) const KVM: &str = "/dev/kvm";
/// The device for TAP interfaces.
pub(super) const TUN: &str = "/dev/net/tun";

/// A problem and its cure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// The problem.
    pub what: String,
    /// The cure, if one is known.
    pub cure: Option<String>,
}

impl Problem {
    fn new(what: impl Into<String>, cure: impl Into<String>) -> Self {
        Problem { what: what.into(), cure: Some(cure.into()) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.cure.as_ref().map_or(Ok(()), |cure| write!(f, "; {cure}"))
    }
}

impl std::error::Error for Problem {}

/// The problem of /dev/kvm, given the result of opening it.
pub(super) fn kvm(host: &Host, access: &Access) -> Option<Problem> {
    let problem = match access {
        Access::Granted => return None,
        Access::Missing => no_kvm(host, &host.cpu()),
        Access::Denied(owner) => denied(KVM, owner),
        Access::Busy => Problem::new(
            "/dev/kvm is busy: another hypervisor, such as VirtualBox, holds the processor's virtualization",
            "stop its machines first",
        ),
        Access::Failed(said) => Problem { what: format!("/dev/kvm cannot be used: {said}"), cure: None },
    };
    Some(problem)
}

fn no_kvm(host: &Host, cpu: &Cpu) -> Problem {
    let amd = matches!(cpu.vendor.as_str(), "AuthenticAMD" | "HygonGenuine");
    let (module, feature) = if amd { ("kvm_amd", "AMD-V (SVM)") } else { ("kvm_intel", "Intel VT-x") };
    if !host.has_proc_or_sys() {
        Problem::new(
            "/dev/kvm does not exist, and neither /proc nor /sys is mounted: this looks like a chroot",
            "give it the host's with `mount --rbind /dev DIR/dev` and `mount -t proc proc DIR/proc`, where DIR is its \
             folder on the host",
        )
    } else if host.kernel_has_kvm() {
        Problem::new(
            "/dev/kvm does not exist, though the kernel has KVM: this looks like a container or a chroot",
            "start the container with the device, as in `docker run --device /dev/kvm`; in a chroot, \
             `mknod /dev/kvm c 10 232`",
        )
    } else if cpu.vmx || cpu.svm {
        Problem::new(
            "/dev/kvm does not exist, though the processor can virtualize",
            format!(
                "load the module with `sudo modprobe {module}`; \
                 if that fails, switch {feature} on in the firmware (BIOS) setup"
            ),
        )
    } else if cpu.hypervisor {
        Problem::new(
            "/dev/kvm does not exist: this host is itself a virtual machine and was given no virtualization",
            format!("switch nested virtualization on for it in its own host, then `sudo modprobe {module}`"),
        )
    } else {
        Problem::new(
            "/dev/kvm does not exist and the processor shows no virtualization",
            format!("switch {feature} on in the firmware (BIOS) setup, then `sudo modprobe {module}`"),
        )
    }
}

fn denied(device: &str, owner: &Owner) -> Problem {
    let cure = match &owner.group {
        Some(group) => {
            format!("join its group with `sudo usermod -aG {group} $USER`, then log in again")
        }
        None if device == KVM => {
            "give it to the group kvm with `sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm`, \
             join it with `sudo usermod -aG kvm $USER`, then log in again"
                .to_owned()
        }
        None => format!("open it to all users, as distributions do, with `sudo chmod 666 {device}`"),
    };
    Problem::new(format!("{device} may not be opened by this user: permission denied"), cure)
}

/// The problem of /dev/net/tun, given the result of opening it.
pub(super) fn tun(access: &Access) -> Option<Problem> {
    match access {
        Access::Granted => None,
        Access::Missing => Some(Problem::new(
            "/dev/net/tun does not exist, so no TAP interface can be used",
            "machines have a network without it (`--net user`); for TAPs `sudo modprobe tun`; for a container, start it with `--device /dev/net/tun`",
        )),
        Access::Denied(owner) => Some(denied(TUN, owner)),
        Access::Busy => Some(Problem { what: "/dev/net/tun is busy".into(), cure: None }),
        Access::Failed(said) => {
            Some(Problem { what: format!("/dev/net/tun cannot be used: {said}"), cure: None })
        }
    }
}

/// What a backend is called and which guests it runs.
pub(super) fn backend(backend: Backend) -> &'static str {
    match backend {
        Backend::Vmx => "Intel VT-x, boots any Linux kernel",
        Backend::Svm => "AMD-V, boots any Linux kernel",
        Backend::Pvm => "kvm_pvm, which emulates the guest's kernel mode",
        Backend::Unknown => "of a kind that is not known here",
    }
}

/// The limit of kvm_pvm.
pub(super) fn no_linux_on_pvm() -> Problem {
    Problem::new(
        "this host's KVM is kvm_pvm, on which a stock Linux kernel cannot boot; tiny guests can",
        "use a host whose processor shows vmx or svm",
    )
}

/// The result of comparing a guest's memory with the host's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MemoryVerdict {
    /// The guest's memory is available.
    Fits,
    /// More than is available now: allowed, as the guest may never touch it all.
    Overcommitted(Problem),
    /// So much more that it must be a mistake.
    Excessive(Problem),
}

/// A guest with more than this many times the host's memory is a typing mistake, not overcommitment.
const MISTAKE_FACTOR: u64 = 8;

/// Compares `asked` with the host's `memory`.
pub(super) fn memory(asked: MemSize, memory: Memory) -> MemoryVerdict {
    let asked_kib = asked.bytes() / 1024;
    let has = memory.total_kib.saturating_add(memory.swap_kib);
    let mib = |kib: u64| kib / 1024;
    if asked_kib > has.saturating_mul(MISTAKE_FACTOR) {
        let swap = if memory.swap_kib > 0 { " with its swap" } else { "" };
        return MemoryVerdict::Excessive(Problem::new(
            format!("{asked} of memory were asked for and this host has {} MiB{swap}", mib(has)),
            format!("a plain number counts MiB; write `--mem {}` or less", mib(memory.available_kib).max(1)),
        ));
    }
    if asked_kib > memory.available_kib {
        return MemoryVerdict::Overcommitted(Problem::new(
            format!(
                "the guest may use {asked} of memory and this host has {} MiB available now",
                mib(memory.available_kib)
            ),
            "once the guest uses more than that, the host swaps or ends a process",
        ));
    }
    MemoryVerdict::Fits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::facts::tests::tree;

    fn missing(files: &[(&str, &str)]) -> String {
        let (_folder, host) = tree(files);
        kvm(&host, &Access::Missing).unwrap().to_string()
    }

    #[test]
    fn missing_kvm_names_the_module_of_this_processor() {
        let intel = missing(&[("/proc/cpuinfo", "processor : 0\nvendor_id : GenuineIntel\nflags : vmx\n")]);
        assert!(intel.contains("sudo modprobe kvm_intel`"), "{intel}");
        let amd = missing(&[("/proc/cpuinfo", "processor : 0\nvendor_id : AuthenticAMD\nflags : svm\n")]);
        assert!(amd.contains("sudo modprobe kvm_amd`") && amd.contains("AMD-V"), "{amd}");
    }

    #[test]
    fn missing_kvm_is_explained_by_where_this_host_runs() {
        let nested =
            missing(&[("/proc/cpuinfo", "processor : 0\nvendor_id : AuthenticAMD\nflags : hypervisor\n")]);
        assert!(nested.contains("nested virtualization") && nested.contains("kvm_amd"), "{nested}");
        let metal = missing(&[("/proc/cpuinfo", "processor : 0\nvendor_id : GenuineIntel\nflags : fpu\n")]);
        assert!(metal.contains("BIOS") && metal.contains("VT-x"), "{metal}");
        let container = missing(&[("/sys/class/misc/kvm/dev", "10:232\n")]);
        assert!(container.contains("--device /dev/kvm"), "{container}");
        let chroot = missing(&[]);
        assert!(chroot.contains("a chroot") && chroot.contains("mount -t proc"), "{chroot}");
    }

    #[test]
    fn denied_kvm_names_the_group_to_join() {
        let (_folder, host) = tree(&[]);
        let said = kvm(&host, &Access::Denied(Owner { group: Some("kvm".into()) })).unwrap().to_string();
        assert_eq!(
            said,
            "/dev/kvm may not be opened by this user: permission denied; \
             join its group with `sudo usermod -aG kvm $USER`, then log in again"
        );
        let said = kvm(&host, &Access::Denied(Owner { group: None })).unwrap().to_string();
        assert!(said.contains("sudo chgrp kvm /dev/kvm"), "{said}");
    }

    #[test]
    fn busy_kvm_names_the_suspects() {
        let (_folder, host) = tree(&[]);
        let said = kvm(&host, &Access::Busy).unwrap().to_string();
        assert!(said.contains("VirtualBox"), "{said}");
    }

    #[test]
    fn memory_past_eight_times_the_host_is_a_mistake() {
        let has = Memory { total_kib: 1 << 20, available_kib: 1 << 19, swap_kib: 0 };
        let judge = |mem: &str| memory(mem.parse().unwrap(), has);
        assert_eq!(judge("512"), MemoryVerdict::Fits);
        let MemoryVerdict::Overcommitted(said) = judge("513") else { panic!() };
        assert!(said.what.contains("513 MiB") && said.what.contains("512 MiB available"), "{said}");
        assert!(matches!(judge("8G"), MemoryVerdict::Overcommitted(_)));
        let MemoryVerdict::Excessive(said) = judge("8193") else { panic!() };
        assert!(said.to_string().contains("this host has 1024 MiB"), "{said}");
        assert!(said.to_string().contains("`--mem 512`"), "{said}");
        assert!(matches!(
            memory(MemSize::MAX, Memory { swap_kib: u64::MAX, ..has }),
            MemoryVerdict::Overcommitted(_)
        ));
    }

    #[test]
    fn tun_troubles_have_their_cures() {
        assert_eq!(tun(&Access::Granted), None);
        assert!(tun(&Access::Missing).unwrap().to_string().contains("modprobe tun"));
        let denied = tun(&Access::Denied(Owner { group: None })).unwrap().to_string();
        assert!(denied.contains("chmod 666 /dev/net/tun"), "{denied}");
    }
}
