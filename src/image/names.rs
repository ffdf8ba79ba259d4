//! Names of kernels and initrds in distributions.

use std::cmp::Ordering;

use super::version::compare;

/// Prefixes of kernels with a release or flavour.
const KERNELS: [&str; 5] = ["vmlinuz-", "kernel-", "bzImage-", "linux-", "vmlinux-"];
/// Kernels without a release in their names.
pub(super) const PLAIN_KERNELS: [&str; 4] = ["vmlinuz", "bzImage", "kernel", "vmlinux"];
/// Initrds without a release in their names.
pub(super) const PLAIN_INITRDS: [&str; 5] =
    ["initrd.img", "initrd.gz", "initrd", "initramfs.img", "initramfs"];
/// The names of kernels, for people.
pub(super) fn kernels() -> String {
    format!(
        "{} or one named {}",
        KERNELS.map(|front| format!("{front}VERSION")).join(", "),
        PLAIN_KERNELS.join(", ")
    )
}

/// Suffixes of files that are no bootable kernel.
const ODD: [&str; 9] =
    [".old", ".bak", ".dpkg-new", ".dpkg-tmp", ".dpkg-bak", ".img", ".hmac", ".sig", ".tmp"];

/// The release in a kernel's name.
pub(super) fn release(name: &str) -> Option<&str> {
    let odd = ODD.iter().any(|end| name.ends_with(end));
    KERNELS.iter().find_map(|front| name.strip_prefix(front)).filter(|release| !odd && !release.is_empty())
}

/// Sorts the best kernel first: the newest, with rescue systems last.
pub(super) fn order(one: &str, other: &str) -> Ordering {
    let rescue = |name: &str| name.contains("rescue") || name.contains("fallback");
    let version = |name: &str| release(name).unwrap_or_default().to_owned();
    rescue(one).cmp(&rescue(other)).then_with(|| compare(&version(other), &version(one)))
}

/// The distributions' names for the initrd of a release or flavour.
pub(super) fn initrds(release: &str) -> Vec<String> {
    let mut names = vec![
        format!("initrd.img-{release}"),                 // Debian, Ubuntu
        format!("initramfs-{release}.img"),              // Fedora, Red Hat, Arch, Void
        format!("initrd-{release}"),                     // SUSE
        format!("initramfs-{release}"),                  // Alpine, Gentoo
        format!("initrd-{release}.img"),                 // dracut of old
        format!("initramfs-genkernel-x86_64-{release}"), // Gentoo
        format!("initrd-{release}.gz"),                  // Slackware
    ];
    // Slackware's generic kernel has one initrd for all releases.
    if release.starts_with("generic") {
        names.push("initrd.gz".into());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_kernel_is_first_and_a_rescue_system_last() {
        let mut names: Vec<String> =
            ["vmlinuz-0-rescue-7", "vmlinuz-6.9", "kernel-6.10", "vmlinuz-6.1"].map(String::from).into();
        names.sort_by(|one, other| order(one, other));
        assert_eq!(names, ["kernel-6.10", "vmlinuz-6.9", "vmlinuz-6.1", "vmlinuz-0-rescue-7"]);
        let newest = |names: &[&'static str]| *names.iter().min_by(|one, other| order(one, other)).unwrap();
        assert_eq!(
            newest(&["vmlinuz-5.14.0-427.el9.x86_64", "vmlinuz-5.14.0-427.13.1.el9_4.x86_64"]),
            "vmlinuz-5.14.0-427.13.1.el9_4.x86_64"
        );
        assert_eq!(newest(&["vmlinuz-6.12.0-rc7", "vmlinuz-6.12.0"]), "vmlinuz-6.12.0");
        assert_eq!(release("vmlinuz-6.1.old"), None);
        assert_eq!(release("vmlinuz-virt"), Some("virt"));
    }
}
