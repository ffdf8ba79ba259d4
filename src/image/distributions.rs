//! The table of distributions in docs/boot.md, row by row: images with each distribution's own layout.

use super::explore::{Explored, Wanted, explore};
use super::testing::{EFI, LINUX, ext4, fat, gpt, with_disk};

type File = (&'static str, &'static [u8]);

/// A disk of a distribution, and the expected findings.
struct Case<'a> {
    name: &'static str,
    /// Files of /boot, or of its partition if `separate` is set.
    boot: &'a [File],
    separate: bool,
    /// Files of an EFI system partition, or of a FAT partition for /boot, before the others.
    esp: &'a [File],
    /// The image has a partition table.
    gpt: bool,
    entry: Option<&'static str>,
    kernel: &'static str,
    initrd: &'static str,
    options: Option<&'static str>,
}

const DEBIAN: &[u8] = b"if [ -s $prefix/grubenv ]; then\n  set have_grubenv=true\n  load_env\nfi\n\
if [ \"${next_entry}\" ] ; then\n  set default=\"${next_entry}\"\n  set next_entry=\n  save_env next_entry\n  set boot_once=true\n\
else\n  set default=\"0\"\nfi\nif [ x\"${feature_menuentry_id}\" = xy ]; then\n  menuentry_id_option=\"--id\"\nelse\n  menuentry_id_option=\"\"\nfi\n\
export menuentry_id_option\nfunction load_video {\n  if [ x$feature_all_video_module = xy ]; then\n    insmod all_video\n  fi\n}\n\
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple-1' {\n\tload_video\n\tinsmod gzio\n\
\tsearch --no-floppy --fs-uuid --set=root 1\n\techo\t'Loading Linux 6.1.0-25-amd64 ...'\n\
\tlinux\t/boot/vmlinuz-6.1.0-25-amd64 root=UUID=1 ro  quiet\n\techo\t'Loading initial ramdisk ...'\n\tinitrd\t/boot/initrd.img-6.1.0-25-amd64\n}\n";
const DEBIAN_CLOUD: &[u8] = b"set default=\"0\"\nterminal_input console serial\nterminal_output console serial\n\
menuentry 'Debian GNU/Linux' --class debian {\n\tlinux\t/boot/vmlinuz-6.1.0-25-cloud-amd64 root=PARTUUID=1 ro console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200\n\
\tinitrd\t/boot/initrd.img-6.1.0-25-cloud-amd64\n}\n";
const UBUNTU: &[u8] = b"if [ -s $prefix/grubenv ]; then\n  set have_grubenv=true\n  load_env\nfi\nif [ \"${next_entry}\" ] ; then\n  set default=\"${next_entry}\"\n\
else\n  set default=\"1>2\"\nfi\nmenuentry_id_option=--id\n\
function recordfail {\n  set recordfail=1\n  if [ -n \"${have_grubenv}\" ]; then if [ -z \"${boot_once}\" ]; then save_env recordfail; fi; fi\n}\n\
function gfxmode {\n  set gfxpayload=\"${1}\"\n  if [ \"${1}\" = \"keep\" ]; then\n    set vt_handoff=vt.handoff=7\n  else\n    set vt_handoff=\n  fi\n}\n\
menuentry 'Ubuntu' $menuentry_id_option 'simple' {\n\trecordfail\n\tgfxmode $linux_gfx_mode\n\tlinux\t/vmlinuz-6.8.0-31-generic root=/dev/mapper/vg-lv ro  $vt_handoff\n\tinitrd\t/initrd.img-6.8.0-31-generic\n}\n\
submenu 'Advanced options for Ubuntu' $menuentry_id_option 'advanced' {\n\
\tmenuentry 'Ubuntu, with Linux 6.8.0-31-generic' {\n\t\tlinux\t/vmlinuz-6.8.0-31-generic root=/dev/mapper/vg-lv ro\n\t\tinitrd\t/initrd.img-6.8.0-31-generic\n\t}\n\
\tmenuentry 'Ubuntu, with Linux 6.8.0-31-generic (recovery mode)' {\n\t\tlinux\t/vmlinuz-6.8.0-31-generic root=/dev/mapper/vg-lv ro recovery nomodeset\n\t\tinitrd\t/initrd.img-6.8.0-31-generic\n\t}\n\
\tmenuentry 'Ubuntu, with Linux 6.8.0-28-generic' {\n\t\trecordfail\n\t\tgfxmode $linux_gfx_mode\n\t\tlinux\t/vmlinuz-6.8.0-28-generic root=/dev/mapper/vg-lv ro  quiet splash $vt_handoff\n\t\tinitrd\t/initrd.img-6.8.0-28-generic\n\t}\n}\n";
const FEDORA: &[u8] = b"set pager=1\nif [ -f ${config_directory}/grubenv ]; then\n  load_env -f ${config_directory}/grubenv\nelif [ -s $prefix/grubenv ]; then\n  load_env\nfi\n\
if [ \"${next_entry}\" ] ; then\n   set default=\"${next_entry}\"\n   set next_entry=\n   save_env next_entry\n   set boot_once=true\nelse\n   set default=\"${saved_entry}\"\nfi\n\
insmod part_gpt\ninsmod ext2\nsearch --no-floppy --fs-uuid --set=root 2\n\
if [ -z \"${kernelopts}\" ]; then\n  set kernelopts=\"root=UUID=wrong ro \"\nfi\n\
insmod blscfg\nblscfg\nif [ \"${boot_success}\" = \"1\" -o \"${boot_indeterminate}\" = \"1\" ]; then\n  set menu_hide_ok=1\nelse\n  set menu_hide_ok=0\nfi\n\
if [ x$feature_timeout_style = xy ] ; then\n  set timeout_style=menu\n  set timeout=5\nelse\n  set timeout=5\nfi\n";
const FEDORA_ENV: &[u8] = b"# GRUB Environment Block\nsaved_entry=f00d-6.9.5-200.fc40.x86_64\nkernelopts=root=UUID=2 ro rhgb quiet\nboot_success=1\n#######";
const FEDORA_OLD: &[u8] = b"title Fedora Linux (6.9.5-200.fc40.x86_64) 40\nversion 6.9.5-200.fc40.x86_64\nlinux /boot/vmlinuz-6.9.5-200.fc40.x86_64\n\
initrd /boot/initramfs-6.9.5-200.fc40.x86_64.img $tuned_initrd\noptions $kernelopts $tuned_params\ngrub_users $grub_users\ngrub_arg --unrestricted\ngrub_class fedora\n";
const FEDORA_NEW: &[u8] = b"title Fedora Linux (6.10.3-200.fc40.x86_64) 40\nversion 6.10.3-200.fc40.x86_64\nlinux /boot/vmlinuz-6.10.3-200.fc40.x86_64\n\
initrd /boot/initramfs-6.10.3-200.fc40.x86_64.img $tuned_initrd\noptions $kernelopts $tuned_params\n";
const RHEL_ENV: &[u8] = b"# GRUB Environment Block\nkernelopts=root=/dev/vda2 ro crashkernel=auto\n#######";
const RHEL_ENTRY: &[u8] = b"title Red Hat Enterprise Linux (5.14.0-427.el9.x86_64) 9.4 (Plow)\nversion 5.14.0-427.el9.x86_64\nlinux /vmlinuz-5.14.0-427.el9.x86_64\n\
initrd /initramfs-5.14.0-427.el9.x86_64.img $tuned_initrd\noptions root=/dev/vda2 ro crashkernel=1G-4G:192M $tuned_params\n";
const RESCUE_ENTRY: &[u8] = b"title Rescue (0-rescue-f00d)\nversion 0-rescue-f00d\nlinux /vmlinuz-0-rescue-f00d\ninitrd /initramfs-0-rescue-f00d.img\noptions ro\n";
const ARCH: &[u8] = b"if [ -s $prefix/grubenv ]; then\n  load_env\nfi\nset default=\"0\"\nmenuentry_id_option=\"--id\"\n\
menuentry 'Arch Linux' --class arch --class gnu-linux $menuentry_id_option 'gnulinux-simple-3' {\n\tset gfxpayload=keep\n\tinsmod gzio\n\
\tlinux\t/boot/vmlinuz-linux root=UUID=3 rw  loglevel=3 quiet\n\tinitrd\t/boot/intel-ucode.img /boot/initramfs-linux.img\n}\n";
const SUSE: &[u8] = b"if [ -f $prefix/grubenv ]; then\n  load_env\nfi\nif [ \"${next_entry}\" ]; then\n  set default=\"${next_entry}\"\nelse\n  set default=\"${saved_entry}\"\nfi\n\
if [ -n \"$extra_cmdline\" ]; then\n  submenu \"Bootable snapshot #$snapshot_num\" {\n    menuentry \"x\" { true; }\n  }\nfi\n\
menuentry 'openSUSE Leap 15.6'  --class opensuse --id 'gnulinux-simple-4' {\n\tload_video\n\tset gfxpayload=keep\n\
\tlinux\t/boot/vmlinuz-6.4.0-150600.21-default root=UUID=4  ${extra_cmdline} splash=silent mitigations=auto quiet\n\tinitrd\t/boot/initrd-6.4.0-150600.21-default\n}\n";
const ALPINE: &[u8] = b"# Generated by update-extlinux\nDEFAULT menu.c32\nPROMPT 0\nMENU TITLE Alpine/Linux Boot Menu\nMENU HIDDEN\nMENU AUTOBOOT Alpine will be booted automatically in # seconds.\nTIMEOUT 10\n\
LABEL virt\n  MENU DEFAULT\n  MENU LABEL Linux virt\n  LINUX vmlinuz-virt\n  INITRD initramfs-virt\n  APPEND root=UUID=5 modules=sd-mod,usb-storage,ext4 quiet rootfstype=ext4\n\nMENU SEPARATOR\n";
const GENTOO: &[u8] = b"set default=\"0\"\nmenuentry 'Gentoo GNU/Linux' --class gentoo $menuentry_id_option 'gnulinux-simple-6' {\n\
\tlinux\t/boot/kernel-6.6.30-gentoo root=UUID=6 ro \n\tinitrd\t/boot/initramfs-6.6.30-gentoo\n}\n";
const VOID: &[u8] = b"set default=\"0\"\nmenuentry 'Void GNU/Linux' --class void {\n\tlinux\t/boot/vmlinuz-6.6.30_1 root=UUID=7 ro  loglevel=4\n\
\tinitrd\t/boot/initramfs-6.6.30_1.img\n}\n";

const ARCH_SYSTEMD: &[File] = &[
    ("loader/loader.conf", b"#timeout 3\r\ndefault  arch.conf\r\nconsole-mode keep\r\n"),
    (
        "loader/entries/arch.conf",
        b"title   Arch Linux\nlinux   /vmlinuz-linux\ninitrd  /intel-ucode.img\ninitrd  /initramfs-linux.img\noptions root=PARTLABEL=part2 rw\n",
    ),
    (
        "loader/entries/arch-fallback.conf",
        b"title   Arch Linux (fallback)\nlinux   /vmlinuz-linux\ninitrd  /initramfs-linux-fallback.img\noptions root=PARTLABEL=part2 rw\n",
    ),
    ("EFI/systemd/systemd-bootx64.efi", b"x"),
    ("EFI/BOOT/BOOTX64.EFI", b"x"),
    ("vmlinuz-linux", b"k"),
    ("intel-ucode.img", b"12345"),
    ("initramfs-linux.img", b"i"),
    ("initramfs-linux-fallback.img", b"i"),
];
const DEBIAN_SYSTEMD: &[File] = &[
    ("loader/loader.conf", b"#timeout 3\n#console-mode keep\ndefault f00d-*\n"),
    (
        "loader/entries/f00d-6.1.0-9-amd64.conf",
        b"title      Debian GNU/Linux 12 (bookworm)\nversion    6.1.0-9-amd64\nmachine-id f00d\nsort-key   debian\n\
options    root=UUID=1 ro quiet systemd.machine_id=f00d\nlinux      /f00d/6.1.0-9-amd64/linux\ninitrd     /f00d/6.1.0-9-amd64/initrd.img-6.1.0-9-amd64\n",
    ),
    (
        "loader/entries/f00d-6.1.0-25-amd64.conf",
        b"title      Debian GNU/Linux 12 (bookworm)\nversion    6.1.0-25-amd64\nmachine-id f00d\nsort-key   debian\n\
options    root=UUID=1 ro quiet systemd.machine_id=f00d\nlinux      /f00d/6.1.0-25-amd64/linux\ninitrd     /f00d/6.1.0-25-amd64/initrd.img-6.1.0-25-amd64\n",
    ),
    ("f00d/6.1.0-9-amd64/linux", b"k"),
    ("f00d/6.1.0-9-amd64/initrd.img-6.1.0-9-amd64", b"i"),
    ("f00d/6.1.0-25-amd64/linux", b"k"),
    ("f00d/6.1.0-25-amd64/initrd.img-6.1.0-25-amd64", b"i"),
];
const ALPINE_FAT: &[File] = &[
    (
        "boot/syslinux/syslinux.cfg",
        b"TIMEOUT 20\nPROMPT 1\nDEFAULT virt\n\nLABEL virt\nMENU LABEL Linux virt\nKERNEL /boot/vmlinuz-virt\nINITRD /boot/initramfs-virt\n\
FDTDIR /boot/dtbs-virt\nAPPEND root=/dev/vda2 modules=loop,squashfs,sd-mod,usb-storage quiet\n",
    ),
    ("boot/vmlinuz-virt", b"k"),
    ("boot/initramfs-virt", b"i"),
    ("vmlinuz-virt", b"k"),
    ("initramfs-virt", b"i"),
];
const FEDORA_STUB: &[File] = &[
    (
        "EFI/fedora/grub.cfg",
        b"search --no-floppy --root-dev-only --fs-uuid --set=dev 2\nset prefix=($dev)/boot/grub2\nexport $prefix\nconfigfile $prefix/grub.cfg\n",
    ),
    ("EFI/fedora/shimx64.efi", b"x"),
];

const RHEL_FILES: &[File] = &[
    ("grub2/grub.cfg", FEDORA),
    ("grub2/grubenv", RHEL_ENV),
    ("loader/entries/f00d-0-rescue.conf", RESCUE_ENTRY),
    ("loader/entries/f00d-5.14.0-427.el9.x86_64.conf", RHEL_ENTRY),
    ("vmlinuz-0-rescue-f00d", b"k"),
    ("initramfs-0-rescue-f00d.img", b"i"),
    ("vmlinuz-5.14.0-427.el9.x86_64", b"k"),
    ("initramfs-5.14.0-427.el9.x86_64.img", b"i"),
];
const SIMPLE: Case<'static> = Case {
    name: "",
    boot: &[],
    separate: false,
    esp: &[],
    gpt: false,
    entry: None,
    kernel: "",
    initrd: "",
    options: None,
};
const RHEL: Case<'static> = Case {
    name: "RHEL",
    boot: RHEL_FILES,
    esp: &[],
    separate: true,
    gpt: true,
    entry: Some("/grub2/grub.cfg (Red Hat Enterprise Linux (5.14.0-427.el9.x86_64) 9.4 (Plow))"),
    kernel: "/vmlinuz-5.14.0-427.el9.x86_64",
    initrd: "/initramfs-5.14.0-427.el9.x86_64.img",
    options: Some("root=/dev/vda2 ro crashkernel=1G-4G:192M"),
};

const CASES: [Case<'static>; 15] = [
    Case {
        name: "Debian",
        boot: &[
            ("grub/grub.cfg", DEBIAN),
            ("vmlinuz-6.1.0-25-amd64", b"k"),
            ("initrd.img-6.1.0-25-amd64", b"i"),
        ],
        entry: Some("/boot/grub/grub.cfg (Debian GNU/Linux)"),
        kernel: "/boot/vmlinuz-6.1.0-25-amd64",
        initrd: "/boot/initrd.img-6.1.0-25-amd64",
        options: Some("root=UUID=1 ro quiet"),
        ..SIMPLE
    },
    Case {
        name: "Debian",
        gpt: true,
        boot: &[
            ("grub/grub.cfg", DEBIAN_CLOUD),
            ("vmlinuz-6.1.0-25-cloud-amd64", b"k"),
            ("initrd.img-6.1.0-25-cloud-amd64", b"i"),
        ],
        entry: Some("/boot/grub/grub.cfg (Debian GNU/Linux)"),
        kernel: "/boot/vmlinuz-6.1.0-25-cloud-amd64",
        initrd: "/boot/initrd.img-6.1.0-25-cloud-amd64",
        options: Some("root=PARTUUID=1 ro console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200"),
        ..SIMPLE
    },
    Case {
        name: "Ubuntu",
        esp: &[],
        gpt: true,
        separate: true,
        boot: &[
            ("grub/grub.cfg", UBUNTU),
            ("vmlinuz-6.8.0-31-generic", b"k"),
            ("initrd.img-6.8.0-31-generic", b"i"),
            ("vmlinuz-6.8.0-28-generic", b"k"),
            ("initrd.img-6.8.0-28-generic", b"i"),
        ],
        entry: Some("/grub/grub.cfg (Ubuntu, with Linux 6.8.0-28-generic)"),
        kernel: "/vmlinuz-6.8.0-28-generic",
        initrd: "/initrd.img-6.8.0-28-generic",
        options: Some("root=/dev/mapper/vg-lv ro quiet splash"),
    },
    Case {
        name: "Fedora",
        gpt: true,
        esp: FEDORA_STUB,
        boot: &[
            ("grub2/grub.cfg", FEDORA),
            ("grub2/grubenv", FEDORA_ENV),
            ("loader/entries/f00d-6.9.5-200.fc40.x86_64.conf", FEDORA_OLD),
            ("loader/entries/f00d-6.10.3-200.fc40.x86_64.conf", FEDORA_NEW),
            ("vmlinuz-6.9.5-200.fc40.x86_64", b"k"),
            ("initramfs-6.9.5-200.fc40.x86_64.img", b"i"),
            ("vmlinuz-6.10.3-200.fc40.x86_64", b"k"),
            ("initramfs-6.10.3-200.fc40.x86_64.img", b"i"),
        ],
        entry: Some("/boot/grub2/grub.cfg (Fedora Linux (6.9.5-200.fc40.x86_64) 40)"),
        kernel: "/boot/vmlinuz-6.9.5-200.fc40.x86_64",
        initrd: "/boot/initramfs-6.9.5-200.fc40.x86_64.img",
        options: Some("root=UUID=2 ro rhgb quiet"),
        ..SIMPLE
    },
    RHEL,
    Case { name: "Rocky", ..RHEL },
    Case {
        name: "Arch with systemd-boot",
        gpt: true,
        esp: ARCH_SYSTEMD,
        entry: Some("/loader/entries/arch.conf (Arch Linux)"),
        kernel: "/vmlinuz-linux",
        initrd: "/intel-ucode.img + /initramfs-linux.img",
        options: Some("root=PARTLABEL=part2 rw"),
        ..SIMPLE
    },
    Case {
        name: "Debian with systemd-boot",
        gpt: true,
        esp: DEBIAN_SYSTEMD,
        boot: &[("vmlinuz-6.1.0-25-amd64", b"k"), ("initrd.img-6.1.0-25-amd64", b"i")],
        entry: Some("/loader/entries/f00d-6.1.0-25-amd64.conf (Debian GNU/Linux 12 (bookworm))"),
        kernel: "/f00d/6.1.0-25-amd64/linux",
        initrd: "/f00d/6.1.0-25-amd64/initrd.img-6.1.0-25-amd64",
        options: Some("root=UUID=1 ro quiet systemd.machine_id=f00d"),
        ..SIMPLE
    },
    Case {
        name: "Alpine with a FAT /boot",
        gpt: true,
        esp: ALPINE_FAT,
        entry: Some("/boot/syslinux/syslinux.cfg (virt)"),
        kernel: "/boot/vmlinuz-virt",
        initrd: "/boot/initramfs-virt",
        options: Some("root=/dev/vda2 modules=loop,squashfs,sd-mod,usb-storage quiet"),
        ..SIMPLE
    },
    Case {
        name: "Arch",
        boot: &[
            ("grub/grub.cfg", ARCH),
            ("vmlinuz-linux", b"k"),
            ("intel-ucode.img", b"12345"),
            ("initramfs-linux.img", b"i"),
            ("initramfs-linux-fallback.img", b"i"),
        ],
        entry: Some("/boot/grub/grub.cfg (Arch Linux)"),
        kernel: "/boot/vmlinuz-linux",
        initrd: "/boot/intel-ucode.img + /boot/initramfs-linux.img",
        options: Some("root=UUID=3 rw loglevel=3 quiet"),
        ..SIMPLE
    },
    Case {
        name: "openSUSE",
        boot: &[
            ("grub2/grub.cfg", SUSE),
            ("vmlinuz", b"->vmlinuz-6.4.0-150600.21-default"),
            ("initrd", b"->initrd-6.4.0-150600.21-default"),
            ("vmlinuz-6.4.0-150600.21-default", b"k"),
            ("initrd-6.4.0-150600.21-default", b"i"),
        ],
        entry: Some("/boot/grub2/grub.cfg (openSUSE Leap 15.6)"),
        kernel: "/boot/vmlinuz-6.4.0-150600.21-default",
        initrd: "/boot/initrd-6.4.0-150600.21-default",
        options: Some("root=UUID=4 splash=silent mitigations=auto quiet"),
        ..SIMPLE
    },
    Case {
        name: "Alpine",
        boot: &[
            ("boot", b"->."),
            ("extlinux.conf", ALPINE),
            ("vmlinuz-virt", b"k"),
            ("initramfs-virt", b"i"),
        ],
        entry: Some("/boot/extlinux.conf (virt)"),
        kernel: "/boot/vmlinuz-virt",
        initrd: "/boot/initramfs-virt",
        options: Some("root=UUID=5 modules=sd-mod,usb-storage,ext4 quiet rootfstype=ext4"),
        ..SIMPLE
    },
    Case {
        name: "Slackware",
        boot: &[
            ("vmlinuz", b"->vmlinuz-huge-5.15.19"),
            ("vmlinuz-huge", b"->vmlinuz-huge-5.15.19"),
            ("vmlinuz-huge-5.15.19", b"k"),
            ("vmlinuz-generic", b"->vmlinuz-generic-5.15.19"),
            ("vmlinuz-generic-5.15.19", b"k"),
            ("initrd.gz", b"i"),
        ],
        kernel: "/boot/vmlinuz-generic-5.15.19",
        initrd: "/boot/initrd.gz",
        ..SIMPLE
    },
    Case {
        name: "Gentoo",
        boot: &[
            ("grub/grub.cfg", GENTOO),
            ("kernel-6.6.30-gentoo", b"k"),
            ("initramfs-6.6.30-gentoo", b"i"),
            ("System.map-6.6.30-gentoo", b"x"),
        ],
        entry: Some("/boot/grub/grub.cfg (Gentoo GNU/Linux)"),
        kernel: "/boot/kernel-6.6.30-gentoo",
        initrd: "/boot/initramfs-6.6.30-gentoo",
        options: Some("root=UUID=6 ro"),
        ..SIMPLE
    },
    Case {
        name: "Void",
        boot: &[("grub/grub.cfg", VOID), ("vmlinuz-6.6.30_1", b"k"), ("initramfs-6.6.30_1.img", b"i")],
        entry: Some("/boot/grub/grub.cfg (Void GNU/Linux)"),
        kernel: "/boot/vmlinuz-6.6.30_1",
        initrd: "/boot/initramfs-6.6.30_1.img",
        options: Some("root=UUID=7 ro loglevel=4"),
        ..SIMPLE
    },
];

fn look(case: &Case<'_>) -> Explored {
    let boot = case.boot;
    let root: [File; 2] = [("etc/hostname", b"vm0"), ("sbin/init", b"x")];
    let small = ["-O", "^has_journal"];
    let disk = if case.separate {
        let (boot, root) = (ext4(2048, boot, &small), ext4(2048, &root, &small));
        gpt(512, &[(1, LINUX, &boot), (2, LINUX, &root)])
    } else {
        let names: Vec<_> = boot.iter().map(|(name, text)| (format!("boot/{name}"), *text)).collect();
        let boot = names.iter().map(|(name, text)| (name.as_str(), *text));
        let root = ext4(2048, &root.into_iter().chain(boot).collect::<Vec<_>>(), &small);
        match case.esp {
            [] if case.gpt => gpt(512, &[(2, LINUX, &root)]),
            [] => root,
            esp => gpt(512, &[(1, EFI, &fat(32, 2048, esp)), (2, LINUX, &root)]),
        }
    };
    with_disk(&disk, |disk| explore(disk, Wanted::Kernel).unwrap())
}

#[test]
fn each_distributions_choice_is_followed() {
    for case in CASES {
        let found = look(&case);
        let uuid = "PARTUUID=02020202-0202-0202-0202-020202020202";
        let root = found.root.as_ref().map(|(root, _)| root.as_str());
        assert_eq!(root, Some(if case.gpt { uuid } else { "/dev/vda" }), "{}", case.name);
        let path = |file: Option<super::ImageFile>| file.map(|file| file.path).unwrap_or_default();
        assert_eq!(
            found.entry,
            case.entry.map(|entry| (entry.to_owned(), case.options.map(str::to_owned))),
            "{}: {:?}",
            case.name,
            found.notes
        );
        assert_eq!(
            (path(found.kernel), path(found.initrd)),
            (case.kernel.to_owned(), case.initrd.to_owned()),
            "{}",
            case.name
        );
        assert_eq!(found.notes, Vec::<String>::new(), "{}", case.name);
    }
}

/// The table's last column: without a boot loader's files, the names alone lead to a kernel and its initrd.
#[test]
fn each_distributions_names_are_known() {
    for case in CASES {
        let is_file_of_kernel = |name: &str| !name.contains('/') && !name.ends_with(".conf");
        let [boot, esp] = [case.boot, case.esp].map(|files| {
            let names = files.iter().filter(|(name, _)| is_file_of_kernel(name)).copied();
            names.collect::<Vec<File>>()
        });
        let found = look(&Case { boot: &boot, esp: &esp, ..case });
        assert!(found.entry.is_none() && found.kernel.is_some() && found.initrd.is_some(), "{}", case.name);
        let initrd = found.initrd.unwrap().path;
        assert!(!initrd.contains("rescue") && !initrd.contains("fallback"), "{}: {initrd}", case.name);
    }
}

#[test]
fn table_in_the_documentation_names_the_tested_distributions() {
    let page = include_str!("../../docs/boot.md");
    let table = page.lines().skip_while(|line| !line.starts_with("| Distribution |")).skip(2);
    let rows = table.take_while(|line| line.starts_with('|')).filter_map(|line| line.split('|').nth(1));
    let mut written: Vec<_> = rows.flat_map(|cell| cell.split(',')).map(str::trim).collect();
    let mut tested: Vec<_> = CASES.iter().map(|case| case.name).collect();
    written.sort_unstable();
    tested.sort_unstable();
    tested.dedup();
    assert_eq!(written, tested);
}
