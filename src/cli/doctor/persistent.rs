//! Persistent cures. Settings in /dev, /sys or by modprobe are lost at the next boot, so the doctor, unlike
//! an error at a start, names the file that sets them again.

use crate::cli::advice::Problem;
use crate::host::facts::{Access, Cpu, Host};

/// Takes effect at once and at each boot.
pub(super) const HUGE_PAGES: &str = "`echo 'w /sys/kernel/mm/transparent_hugepage/enabled - - - - madvise' | sudo tee \
     /etc/tmpfiles.d/huge-pages.conf && sudo systemd-tmpfiles --create huge-pages.conf`, which each boot does again";

/// Takes effect at once and at each boot.
pub(super) const MERGING: &str = "`echo 'w /sys/kernel/mm/ksm/run - - - - 1' | sudo tee /etc/tmpfiles.d/ksm.conf && sudo systemd-tmpfiles \
     --create ksm.conf` starts it, at each boot again";

/// The persistent cure for /dev/kvm.
pub(super) fn kvm(host: &Host, cpu: &Cpu, access: &Access, problem: Problem) -> Problem {
    match access {
        Access::Denied(_) if host.is_in_user_namespace() => in_user_namespace(problem, "/dev/kvm"),
        Access::Denied(owner) if owner.group.is_none() => {
            let udev_rule = udev_rule("kvm", "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"");
            let cure = format!(
                "give it to the group kvm, at each boot: {udev_rule}; join it: `sudo usermod -aG kvm $USER`, then log in again"
            );
            Problem { cure: Some(cure), ..problem }
        }
        Access::Missing if host.kernel_has_kvm() || !host.has_proc_or_sys() => {
            let seen = if host.kernel_has_kvm() {
                "though the kernel has KVM: this looks like a container or a chroot"
            } else {
                "and neither /proc nor /sys shows the kernel: this looks like a chroot"
            };
            let cure = "give a container the device, as in `docker run --device /dev/kvm` or `podman run --device /dev/kvm`; give a \
                        chroot the host's folders, as in `for d in dev proc sys; do mount --rbind /$d ROOT/$d; done`";
            Problem { what: format!("/dev/kvm does not exist, {seen}"), cure: Some(cure.to_owned()) }
        }
        // The problem itself names the module; a distribution loads it at each boot where the processor has
        // the feature.
        Access::Missing if cpu.vmx || cpu.svm => {
            let module = if cpu.svm { "kvm_amd" } else { "kvm_intel" };
            append_cure(
                problem,
                &format!("at each boot: `echo {module} | sudo tee /etc/modules-load.d/kvm.conf`"),
            )
        }
        _ => problem,
    }
}

/// The persistent cure for /dev/net/tun.
pub(super) fn tun(host: &Host, access: &Access, problem: Problem) -> Problem {
    match access {
        Access::Denied(_) if host.is_in_user_namespace() => in_user_namespace(problem, "/dev/net/tun"),
        Access::Denied(owner) if owner.group.is_none() => {
            let udev_rule =
                udev_rule("tun", "KERNEL==\"tun\", MODE=\"0666\", OPTIONS+=\"static_node=net/tun\"");
            let cure = format!("open it to all users, as distributions do, at each boot: {udev_rule}");
            Problem { cure: Some(cure), ..problem }
        }
        Access::Missing => {
            append_cure(problem, "at each boot: `echo tun | sudo tee /etc/modules-load.d/tun.conf`")
        }
        _ => problem,
    }
}

/// A udev rule, which takes effect at once and at each boot.
fn udev_rule(device: &str, udev_rule: &str) -> String {
    format!(
        "`echo '{udev_rule}' | sudo tee /etc/udev/rules.d/65-{device}.rules && sudo udevadm control --reload && sudo udevadm trigger \
         --sysname-match={device}`"
    )
}

fn append_cure(problem: Problem, more: &str) -> Problem {
    let cure = problem.cure.map_or_else(|| more.to_owned(), |cure| format!("{cure}; {more}"));
    Problem { cure: Some(cure), ..problem }
}

/// In a user namespace root has no rights on the host's devices.
fn in_user_namespace(problem: Problem, device: &str) -> Problem {
    let cure = format!(
        "this process is in a user namespace, where its groups and root's rights do not count for devices: let the user outside \
         open {device}, and keep that user's groups (`podman run --group-add keep-groups --device {device}`)"
    );
    Problem { cure: Some(cure), ..problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::advice;
    use crate::host::facts::Owner;
    use crate::host::facts::tests::tree;

    fn cure(files: &[(&str, &str)], access: &Access) -> String {
        let (_folder, host) = tree(files);
        let problem = advice::kvm(&host, access).unwrap();
        kvm(&host, &host.cpu(), access, problem).to_string()
    }

    #[test]
    fn cures_survive_a_boot() {
        let denied = |group: Option<&str>| Access::Denied(Owner { group: group.map(str::to_owned) });
        assert!(cure(&[], &denied(Some("kvm"))).contains("usermod -aG kvm"));
        let said = cure(&[], &denied(None));
        assert!(
            said.contains("/etc/udev/rules.d/65-kvm.rules") && said.contains("usermod -aG kvm"),
            "{said}"
        );
        let intel = ("/proc/cpuinfo", "processor : 0\nvendor_id : GenuineIntel\nflags : vmx\n");
        let said = cure(&[intel], &Access::Missing);
        assert!(
            said.contains("modprobe kvm_intel") && said.contains("/etc/modules-load.d/kvm.conf"),
            "{said}"
        );
        let (_folder, host) = tree(&[]);
        for (access, file) in [
            (denied(None), "/etc/udev/rules.d/65-tun.rules"),
            (Access::Missing, "/etc/modules-load.d/tun.conf"),
        ] {
            let said = tun(&host, &access, advice::tun(&access).unwrap()).to_string();
            assert!(said.contains(file), "{said}");
        }
        assert!(HUGE_PAGES.contains("/etc/tmpfiles.d/"));
    }

    #[test]
    fn a_user_namespace_and_a_chroot_are_told_what_helps_there() {
        let inside = ("/proc/self/uid_map", "         0       1000          1\n");
        let said = cure(&[inside], &Access::Denied(Owner { group: Some("nogroup".into()) }));
        assert!(said.contains("user namespace") && !said.contains("usermod"), "{said}");
        let outside = ("/proc/self/uid_map", "         0          0 4294967295\n");
        assert!(cure(&[outside], &Access::Denied(Owner { group: Some("kvm".into()) })).contains("usermod"));
        let said = cure(&[("/proc/misc", "232 kvm\n")], &Access::Missing);
        assert!(said.contains("--device /dev/kvm") && said.contains("chroot"), "{said}");
        let said = cure(&[], &Access::Missing);
        assert!(said.contains("neither /proc nor /sys") && !said.contains("modprobe"), "{said}");
    }
}
