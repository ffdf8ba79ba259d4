use super::*;

/// A tree of files, each a path and its text.
pub(crate) fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    let host = Host::under(folder.path());
    for (path, text) in files {
        let path = host.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    (folder, host)
}

const CPUINFO: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: A Core\nflags\t\t: fpu vmx lm\n\n\
                       processor\t: 1\nvendor_id\t: GenuineIntel\nmodel name\t: A Core\nflags\t\t: fpu vmx lm\n";

#[test]
fn cpuinfo_gives_model_count_and_flags() {
    let cpu = tree(&[("/proc/cpuinfo", CPUINFO)]).1.cpu();
    assert_eq!((cpu.model.as_str(), cpu.vendor.as_str(), cpu.count), ("A Core", "GenuineIntel", 2));
    assert!(cpu.vmx && !cpu.svm && !cpu.hypervisor);
}

#[test]
fn meminfo_gives_amounts() {
    let text = "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:  600 kB\nSwapTotal:  50 kB\n";
    let (_folder, host) = tree(&[("/proc/meminfo", text)]);
    assert_eq!(host.memory(), Some(Memory { total_kib: 1000, available_kib: 600, swap_kib: 50 }));
}

#[test]
fn host_without_files_gives_nothing_and_no_panic() {
    let (_folder, host) = tree(&[]);
    assert_eq!(host.memory(), None);
    assert_eq!(host.huge_pages(), None);
    assert_eq!(host.cpu(), Cpu::default());
    assert_eq!(host.backend(&Cpu::default()), Backend::Unknown);
    assert_eq!(host.access("/dev/kvm"), Access::Missing);
    assert!(!host.kernel_has_kvm());
}

#[test]
fn backend_needs_module_and_processor_flag() {
    let (_folder, host) = tree(&[("/sys/module/kvm_intel/x", ""), ("/sys/module/kvm_amd/x", "")]);
    let cpu = |vmx, svm| Cpu { vmx, svm, ..Cpu::default() };
    assert_eq!(host.backend(&cpu(true, false)), Backend::Vmx);
    assert_eq!(host.backend(&cpu(false, true)), Backend::Svm);
    assert_eq!(host.backend(&cpu(false, false)), Backend::Unknown);
    let (_folder, host) = tree(&[("/sys/module/kvm_pvm/x", "")]);
    assert_eq!(host.backend(&cpu(false, false)), Backend::Pvm);
    assert_eq!(host.backend(&cpu(true, false)), Backend::Pvm);
    assert!(host.is_pvm());
}

#[test]
fn huge_page_setting_is_the_bracketed_word() {
    let (_folder, host) =
        tree(&[("/sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")]);
    assert_eq!(host.huge_pages().as_deref(), Some("madvise"));
}

#[test]
fn refusals_are_told_apart() {
    let (_folder, host) = tree(&[("/dev/kvm", "")]);
    let access_error =
        |errno| host.access_error(&host.path("/dev/kvm"), &io::Error::from_raw_os_error(errno));
    assert_eq!(access_error(libc::ENOENT), Access::Missing);
    assert_eq!(access_error(libc::ENODEV), Access::Missing);
    assert_eq!(access_error(libc::EBUSY), Access::Busy);
    assert!(matches!(access_error(libc::EACCES), Access::Denied(_)));
    assert!(matches!(access_error(libc::EIO), Access::Failed(_)));
}

#[test]
fn group_with_rights_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, host) = tree(&[("/dev/kvm", "")]);
    let path = host.path("/dev/kvm");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
    let gid = fs::metadata(&path).unwrap().gid();
    fs::create_dir_all(host.path("/etc")).unwrap();
    fs::write(host.path("/etc/group"), format!("kvm:x:{gid}:\n")).unwrap();
    // A tree made by root belongs to root's group, which is never suggested.
    assert_eq!(host.group(&path), (gid != 0).then(|| "kvm".to_owned()));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(host.group(&path), None);
}

#[test]
fn a_folder_of_logind_goes_with_a_user_that_does_not_linger() {
    let session = ("/run/systemd/users/1000", "# This is private data.\nNAME=ana\nSTATE=active\n");
    let folder = Path::new("/run/user/1000/minivmm");
    let (_folder, host) = tree(&[session]);
    assert_eq!(host.removed_at_logout(folder, 1000).as_deref(), Some("ana"));
    assert_eq!(host.removed_at_logout(folder, 1001), None);
    assert_eq!(host.removed_at_logout(Path::new("/run/minivmm"), 1000), None);
    let (_folder, host) = tree(&[session, ("/var/lib/systemd/linger/ana", "")]);
    assert_eq!(host.removed_at_logout(folder, 1000), None);
    let (_folder, host) = tree(&[]);
    assert_eq!(host.removed_at_logout(folder, 1000), None, "no logind");
}

#[test]
fn kvm_in_the_kernel_is_seen_without_sys() {
    let (_folder, host) = tree(&[("/proc/misc", "232 kvm\n229 fuse\n")]);
    assert!(host.kernel_has_kvm());
    let (_folder, host) = tree(&[("/proc/misc", "229 fuse\n")]);
    assert!(!host.kernel_has_kvm());
}
