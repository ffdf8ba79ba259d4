//! Cloud images, of which partition 1 is the root and lies behind those of boot loaders: Debian's, with two kernels and GRUB's
//! files as grub-mkconfig makes them.

use super::explore::{Explored, Wanted, explore};
use super::testing::{EFI, LINUX, ext4, fat, gpt, with_disk};

/// The partition type for GRUB's own sectors, in its on-disk form.
const BIOS_BOOT: [u8; 16] = *b"Hah!IdontNeedEFI";
const UUID: &str = "71bf75cb-a0e4-40ac-88da-8a4b9b530d4a";
const HEADER: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="DEFAULT"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function load_video {
  insmod vbe
}
serial --speed=115200
terminal_input console serial
terminal_output console serial
"#;
const ENTRY: &str = r#"
menuentry 'TITLE' --class debian --class os $menuentry_id_option 'ID' {
	load_video
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	insmod part_gpt
	set root='hd0,gpt1'
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 --hint-efi=hd0,gpt1 UUID
	else
	  search --no-floppy --fs-uuid --set=root UUID
	fi
	echo	'Loading Linux VERSION ...'
	linux	/boot/vmlinuz-VERSION root=PARTUUID=01010101-0101-0101-0101-010101010101 ro console=tty0 console=ttyS0,115200
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-VERSION
}
"#;
const OPTIONS: &str =
    "root=PARTUUID=01010101-0101-0101-0101-010101010101 ro console=tty0 console=ttyS0,115200";
const NEW: &str = "6.1.0-56-cloud-amd64";
const OLD: &str = "6.1.0-48-cloud-amd64";

fn entry(title: &str, id: &str, version: &str) -> String {
    let text = ENTRY.replace("TITLE", title).replace("'ID'", &format!("'{id}'"));
    text.replace(" UUID\n", &format!(" {UUID}\n")).replace("VERSION", version)
}

/// What grub-mkconfig writes where GRUB_DEFAULT is `default`.
fn grub_cfg(default: &str) -> String {
    let below = [NEW, OLD].map(|version| {
        entry(
            &format!("Debian, with Linux {version}"),
            &format!("gnulinux-{version}-advanced-{UUID}"),
            version,
        )
    });
    let submenu = format!(
        "submenu 'Advanced options for Debian' $menuentry_id_option 'gnulinux-advanced-{UUID}' {{{}}}\n",
        below.concat()
    );
    let first = entry("Debian", &format!("gnulinux-simple-{UUID}"), NEW);
    format!("{}{first}{submenu}", HEADER.replace("DEFAULT", default))
}

fn look(default: &str, environment: &str) -> Explored {
    let (cfg, grubenv) = (grub_cfg(default), format!("# GRUB Environment Block\n{environment}"));
    let grubenv = format!("{grubenv:#<1024}");
    let (kernels, initrds) =
        ([NEW, OLD].map(|v| format!("boot/vmlinuz-{v}")), [NEW, OLD].map(|v| format!("boot/initrd.img-{v}")));
    let mut files: Vec<(&str, &[u8])> = vec![
        ("etc/hostname", b"vm0"),
        ("sbin/init", b"x"),
        ("boot/grub/grub.cfg", cfg.as_bytes()),
        ("boot/grub/grubenv", grubenv.as_bytes()),
    ];
    files.extend(kernels.iter().chain(&initrds).map(|name| (name.as_str(), &b"x"[..])));
    let root = ext4(4096, &files, &["-U", UUID]);
    let stub =
        format!("search.fs_uuid {UUID} root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n");
    let esp = fat(32, 2048, &[("EFI/debian/grub.cfg", stub.as_bytes()), ("EFI/BOOT/BOOTX64.EFI", b"x")]);
    // In this order on the disk.
    let disk = gpt(512, &[(14, BIOS_BOOT, b"GRUB"), (15, EFI, &esp), (1, LINUX, &root)]);
    with_disk(&disk, |disk| explore(disk, Wanted::Kernel).unwrap())
}

#[test]
fn entry_that_grub_would_start_is_taken_from_partition_1_behind_14_and_15() {
    let pinned = format!("saved_entry=gnulinux-advanced-{UUID}>gnulinux-{OLD}-advanced-{UUID}\n");
    let once = format!("{pinned}next_entry=gnulinux-simple-{UUID}\n");
    let by_title = format!("saved_entry=Advanced options for Debian>Debian, with Linux {OLD}\n");
    for (default, environment, title, version) in [
        ("0", "", "Debian", NEW),
        ("1>1", "", "Debian, with Linux 6.1.0-48-cloud-amd64", OLD),
        ("${saved_entry}", &pinned, "Debian, with Linux 6.1.0-48-cloud-amd64", OLD),
        ("${saved_entry}", &by_title, "Debian, with Linux 6.1.0-48-cloud-amd64", OLD),
        ("${saved_entry}", &once, "Debian", NEW),
        // Nothing was saved, or what has gone since.
        ("${saved_entry}", "", "Debian", NEW),
        ("${saved_entry}", "saved_entry=gone\n", "Debian", NEW),
    ] {
        let found = look(default, environment);
        let (root, place) = found.root.unwrap();
        assert_eq!(root, "PARTUUID=01010101-0101-0101-0101-010101010101");
        assert_eq!(place, "partition 1");
        let file = "/boot/grub/grub.cfg";
        assert_eq!(found.entry, Some((format!("{file} ({title})"), Some(OPTIONS.into()))), "{environment}");
        let paths = [found.kernel, found.initrd].map(|file| file.unwrap().path);
        assert_eq!(paths, [format!("/boot/vmlinuz-{version}"), format!("/boot/initrd.img-{version}")]);
        assert_eq!(found.notes, Vec::<String>::new());
    }
}
