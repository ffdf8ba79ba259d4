//! Searches of whole disks.
#![allow(clippy::cast_possible_truncation, reason = "the sizes are the tests' own, and small")]

use super::disk::{Budget, Disk};
use super::explore::{Explored, Wanted, explore};
use super::testing::{
    Bytes, EFI, LINUX, LVM, debugfs, ext4, fat, gpt, mbr_entry, unclean, with_disk, with_sectors,
};
use super::*;

fn look(disk: &[u8], wanted: Wanted<'_>) -> Explored {
    with_disk(disk, |disk| explore(disk, wanted).unwrap())
}

/// The content of a file by its runs.
fn content(disk: &[u8], file: &ImageFile) -> Vec<u8> {
    let mut bytes = vec![0; file.size as usize];
    for run in &file.runs {
        let part = &disk[run.disk as usize..][..run.len as usize];
        bytes[run.file as usize..][..run.len as usize].copy_from_slice(part);
    }
    bytes
}

const INIT: [(&str, &[u8]); 4] = [
    ("etc/hostname", b"vm0"),
    ("usr/lib/systemd/systemd", b"\x7fELF"),
    ("usr/sbin/init", b"->/lib/systemd/systemd"),
    ("lib", b"->usr/lib"),
];

fn with<'a>(files: &[(&'a str, &'a [u8])]) -> Vec<(&'a str, &'a [u8])> {
    INIT.iter().chain(files).copied().collect()
}

const KERNELS: [(&str, &[u8]); 4] = [
    ("boot/vmlinuz-6.1.0-9-amd64", b"old kernel"),
    ("boot/initrd.img-6.1.0-9-amd64", b"old initrd"),
    ("boot/vmlinuz-6.1.0-25-amd64", b"new kernel"),
    ("boot/initrd.img-6.1.0-25-amd64", b"new initrd"),
];

#[test]
fn newest_kernel_of_an_undivided_disk_is_found_with_its_initrd() {
    for options in [&["-b", "1024"][..], &["-b", "4096"], &["-O", "^64bit,^metadata_csum"]] {
        let disk = ext4(8192, &with(&KERNELS), options);
        let found = look(&disk, Wanted::Kernel);
        assert_eq!(found.root, Some(("/dev/vda".into(), "the whole disk".into())));
        let (kernel, initrd) = (found.kernel.unwrap(), found.initrd.unwrap());
        assert_eq!(
            (kernel.path.as_str(), content(&disk, &kernel)),
            ("/boot/vmlinuz-6.1.0-25-amd64", b"new kernel".to_vec())
        );
        assert_eq!(content(&disk, &initrd), b"new initrd");
        assert_eq!(found.entry, None);
    }
}

#[test]
fn initrd_of_a_kernel_from_elsewhere_is_found_by_its_release() {
    let disk = ext4(8192, &with(&KERNELS), &[]);
    let found = look(&disk, Wanted::Initrd("6.1.0-9-amd64"));
    assert_eq!((content(&disk, &found.initrd.unwrap()), found.kernel), (b"old initrd".to_vec(), None));
    let found = look(&disk, Wanted::Initrd("6.1.0-10-amd64"));
    assert_eq!(found.initrd, None);
    assert!(found.looked.contains("; it has no initrd.img-6.1.0-10-amd64, no "), "{}", found.looked);
}

#[test]
fn loaders_entry_wins_over_the_newest_kernel_unless_it_is_out_of_date() {
    let cfg = "set default=\"0\"\nmenuentry 'D' {\n linux /boot/vmlinuz-6.1.0-9-amd64 root=UUID=1 ro quiet\n initrd /boot/initrd.img-6.1.0-9-amd64\n}\n";
    let files = with(&[&KERNELS[..], &[("boot/grub/grub.cfg", cfg.as_bytes())]].concat());
    let disk = ext4(8192, &files, &[]);
    let found = look(&disk, Wanted::Kernel);
    assert_eq!(found.kernel.unwrap().path, "/boot/vmlinuz-6.1.0-9-amd64");
    assert_eq!(found.entry, Some(("/boot/grub/grub.cfg (D)".into(), Some("root=UUID=1 ro quiet".into()))));
    let stale = cfg.replace("vmlinuz-6.1.0-9", "vmlinuz-6.1.0-8");
    let files = with(&[&KERNELS[..], &[("boot/grub/grub.cfg", stale.as_bytes())]].concat());
    let found = look(&ext4(8192, &files, &[]), Wanted::Kernel);
    assert_eq!((found.kernel.unwrap().path.as_str(), found.entry), ("/boot/vmlinuz-6.1.0-25-amd64", None));
    let entry = b"version 1\nlinux /boot/vmlinuz-6.1.0-9-amd64\noptions ro\n";
    let files = with(&[&KERNELS[..], &[("boot/loader/entries/a.conf", entry)]].concat());
    let found = look(&ext4(8192, &files, &[]), Wanted::Kernel);
    assert_eq!(found.entry, Some(("/boot/loader/entries/a.conf (a)".into(), Some("ro".into()))));
    assert_eq!(found.initrd, None, "the entry has none");
}

#[test]
fn links_at_the_top_serve_where_nothing_else_does() {
    let files = with(&[
        ("k/linux", b"kernel"),
        ("k/initrd", b"initrd"),
        ("vmlinuz", b"->k/linux"),
        ("initrd.img", b"->/k/../k/initrd"),
    ]);
    let disk = ext4(8192, &files, &[]);
    let found = look(&disk, Wanted::Kernel);
    assert_eq!(content(&disk, &found.kernel.unwrap()), b"kernel");
    assert_eq!(content(&disk, &found.initrd.unwrap()), b"initrd");
}

#[test]
fn links_never_leave_the_image_or_run_in_circles() {
    let files = with(&[("vmlinuz", b"->../../../../etc/passwd"), ("boot", b"->loop"), ("loop", b"->boot")]);
    let found = with_disk(&ext4(8192, &files, &[]), |disk| explore(disk, Wanted::Kernel));
    assert!(matches!(found, Err(ReadError::Damaged(_))), "{found:?}");
    let files = with(&[("vmlinuz", b"->../../../../etc/passwd")]);
    assert_eq!(look(&ext4(8192, &files, &[]), Wanted::Kernel).kernel, None);
}

#[test]
fn partitions_are_named_as_linux_names_them() {
    let root = ext4(8192, &with(&KERNELS), &[]);
    let disk = gpt(512, &[(1, LVM, b"x"), (14, LINUX, &root)]);
    let found = look(&disk, Wanted::Kernel);
    let uuid = "PARTUUID=0e0e0e0e-0e0e-0e0e-0e0e-0e0e0e0e0e0e";
    assert_eq!(found.root, Some((uuid.into(), "partition 14".into())));
    assert_eq!(content(&disk, &found.kernel.unwrap()), b"new kernel");
    assert!(found.looked.contains("partition 1 is LVM"), "{}", found.looked);
}

#[test]
fn table_that_the_guests_linux_does_not_take_is_not_taken() {
    let root = ext4(8192, &with(&KERNELS), &[]);
    let whole = gpt(512, &[(1, LINUX, &root)]);
    let mut damaged = whole.clone();
    damaged[512 + 60] ^= 1;
    let mut unprotected = whole.clone();
    unprotected[0x1be + 4] = 0x83;
    let large_sectors = gpt(4096, &[(1, LINUX, &root)]);
    // Linux accepts only entries of 128 bytes, and no table of a truncated disk.
    let mut large_entries = whole.clone();
    large_entries[512 + 84] = 0;
    large_entries[512 + 85] = 1;
    let cut = whole[..whole.len() - (1 << 20)].to_vec();
    assert!(look(&whole, Wanted::Kernel).kernel.is_some());
    for disk in [damaged, unprotected, large_sectors, large_entries, cut] {
        let found = look(&disk, Wanted::Kernel);
        assert!(found.kernel.is_none() && found.looked.contains("GPT"), "{}", found.looked);
    }
}

/// The findings for a guest with this sector size.
fn look_in(sector: u64, disk: &[u8]) -> Explored {
    with_sectors(disk, sector, |disk| explore(disk, Wanted::Kernel).unwrap())
}

#[test]
fn tables_count_in_the_sectors_of_the_disk() {
    let root = ext4(8192, &with(&KERNELS), &[]);
    let disk = gpt(4096, &[(3, LINUX, &root)]);
    let found = look_in(4096, &disk);
    assert_eq!(found.root.unwrap().0, "PARTUUID=03030303-0303-0303-0303-030303030303");
    assert_eq!(content(&disk, &found.kernel.unwrap()), b"new kernel");
    // A table in other sectors is ignored.
    assert!(look_in(4096, &gpt(512, &[(3, LINUX, &root)])).kernel.is_none());
    // An MBR: the root is the second logical partition of an extended one at 1 MiB.
    let mut disk = vec![0; 3 << 20];
    mbr_entry(&mut disk, 0, 1, 5, 256, 5120);
    mbr_entry(&mut disk, 1 << 20, 0, 0x83, 8, 8);
    mbr_entry(&mut disk, 1 << 20, 1, 5, 256, 2560);
    mbr_entry(&mut disk, 2 << 20, 0, 0x83, 256, 2048);
    disk.extend(&root);
    let found = look_in(4096, &disk);
    assert_eq!(found.root.unwrap(), ("PARTUUID=00000000-06".into(), "partition 6".into()));
    assert_eq!(content(&disk, &found.kernel.unwrap()), b"new kernel");
    let survey = with_sectors(&disk, 4096, |disk| Survey::of(disk).unwrap());
    assert_eq!(survey.device("PARTUUID=00000000-06").as_deref(), Some("/dev/vda6"));
}

#[test]
fn partition_that_the_disk_cuts_short_ends_with_it_as_in_linux() {
    let root = ext4(8192, &with(&KERNELS), &[]);
    let mut disk = vec![0; 1 << 20];
    mbr_entry(&mut disk, 0, 0, 0x83, 2048, 99_999_999);
    mbr_entry(&mut disk, 0, 1, 0x83, 99_999_999, 8);
    disk.extend(&root);
    let found = look(&disk, Wanted::Kernel);
    assert_eq!(found.root.unwrap().1, "partition 1");
    assert!(found.looked.starts_with("it has 1 partition (MBR)"), "{}", found.looked);
}

#[test]
fn kernel_without_its_initrd_waits_behind_an_older_one_that_is_whole() {
    let mut files = with(&KERNELS);
    files.push(("boot/vmlinuz-99.0", b"half installed"));
    let disk = ext4(8192, &files, &[]);
    let found = look(&disk, Wanted::Kernel);
    assert_eq!(content(&disk, &found.kernel.unwrap()), b"new kernel");
    assert!(found.initrd.is_some());
    let disk = ext4(8192, &with(&[("boot/vmlinuz-1.0", b"one"), ("boot/vmlinuz-2.0", b"two")]), &[]);
    assert_eq!(content(&disk, &look(&disk, Wanted::Kernel).kernel.unwrap()), b"two");
}

#[test]
fn boot_partition_of_its_own_is_found_next_to_the_root() {
    let cfg = b"set default=0\nmenuentry 'D' {\n linux /vmlinuz-6 root=/dev/mapper/x ro\n initrd /initrd.img-6\n}\n";
    let boot =
        ext4(2048, &[("vmlinuz-6", b"kernel"), ("initrd.img-6", b"initrd"), ("grub/grub.cfg", cfg)], &[]);
    let root = ext4(8192, &with(&[]), &[]);
    let disk = gpt(512, &[(1, LINUX, &boot), (2, LINUX, &root)]);
    let found = look(&disk, Wanted::Kernel);
    assert!(found.root.unwrap().0.starts_with("PARTUUID=02020202-"));
    assert_eq!(content(&disk, &found.kernel.unwrap()), b"kernel");
    assert_eq!(found.entry.unwrap().0, "/grub/grub.cfg (D)");
    // With its root on LVM, the kernel is still found.
    let disk = gpt(512, &[(1, LINUX, &boot), (2, LVM, b"x")]);
    let found = look(&disk, Wanted::Kernel);
    assert!(found.root.is_none() && found.kernel.is_some() && found.initrd.is_some());
}

#[test]
fn mbr_and_its_logical_partitions_are_numbered_as_linux_does() {
    let root = ext4(4096, &with(&KERNELS), &[]);
    let mut disk = vec![0; 1 << 20];
    disk[0x1b8..0x1bc].copy_from_slice(&0x1234_abcd_u32.to_le_bytes());
    // An extended partition at 1 MiB: an empty logical one, then the root.
    mbr_entry(&mut disk, 0, 1, 5, 2048, 40960);
    disk.resize(3 << 20, 0);
    mbr_entry(&mut disk, 1 << 20, 0, 0x83, 8, 8);
    mbr_entry(&mut disk, 1 << 20, 1, 5, 2048, 20480);
    mbr_entry(&mut disk, 2 << 20, 0, 0x83, 2048, 8192);
    disk.extend(&root);
    disk.resize(30 << 20, 0);
    let found = look(&disk, Wanted::Kernel);
    assert_eq!(found.root, Some(("PARTUUID=1234abcd-06".into(), "partition 6".into())));
    assert_eq!(content(&disk, &found.kernel.unwrap()), b"new kernel");
    // A cyclic chain ends.
    mbr_entry(&mut disk, 2 << 20, 1, 5, 2048, 20480);
    assert!(look(&disk, Wanted::Kernel).root.is_some());
}

#[test]
fn data_disk_is_no_root() {
    let disk = ext4(2048, &[("etc/x", b""), ("data", b"1")], &[]);
    let found = look(&disk, Wanted::Nothing);
    assert_eq!((found.root, found.readable), (None, true));
    let found = look(&vec![0; 1 << 20], Wanted::Nothing);
    assert_eq!((found.root, found.readable, found.looked.as_str()), (None, false, "the whole disk is empty"));
}

#[test]
fn disks_that_are_not_read_are_named() {
    let said = |at: usize, signature: &[u8]| {
        let mut disk = vec![0; 1 << 18];
        disk[at..at + signature.len()].copy_from_slice(signature);
        look(&disk, Wanted::Kernel).looked
    };
    assert!(said(0, b"QFI\xfb\0").contains("qemu-img convert -O raw"));
    assert!(said(512, b"LABELONE").contains("LVM"));
    assert!(said(0, b"LUKS\xba\xbe").contains("LUKS"));
    assert!(said(0x10040, b"_BHRfS_M").contains("btrfs"));
    assert!(said(5, b"junk").contains("not known"));
    assert_eq!(look(b"", Wanted::Kernel).looked, "the whole disk is empty");
}

#[test]
fn random_damage_gives_an_error_or_files_within_the_image() {
    let root = ext4(2048, &with(&KERNELS), &[]);
    let disk = gpt(512, &[(1, LINUX, &root)]);
    let entry = b"linux /vmlinuz-6\ninitrd /i\n";
    let files: [(&str, &[u8]); 3] =
        [("loader/entries/a.conf", entry), ("vmlinuz-6", &[1; 4000]), ("i", b"i")];
    let fats = [(12, 512), (16, 4096), (32, 1024)].map(|(bits, kib)| fat(bits, kib, &files));
    let mut state = 1_u64;
    for round in 0..2000 {
        // The first sectors of a FAT, which have all its structures.
        let (mut image, end) = match fats.get(round % 4) {
            Some(fat) => (fat.clone(), [fat.len(), 40 << 10, 64][round % 3]),
            None => (disk.clone(), disk.len()),
        };
        for _ in 0..8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (state >> 33) as usize % end;
            image[at] = (state >> 25) as u8;
        }
        explore_bytes(&image, 512, None);
        image.truncate((state >> 40) as usize % image.len());
        explore_bytes(&image, 512, Some("6.1.0-9-amd64"));
    }
}

#[test]
fn several_initrds_are_joined_at_multiples_of_four_bytes() {
    let cfg = b"menuentry 'D' {\n linux /boot/vmlinuz-6\n initrd /boot/a.img /boot/b.img /boot/c.img\n}\n";
    let files = with(&[
        ("boot/vmlinuz-6", b"kernel"),
        ("boot/a.img", b"12345"),
        ("boot/b.img", b"abcd"),
        ("boot/c.img", b"xyz"),
        ("boot/grub/grub.cfg", cfg),
    ]);
    let disk = ext4(8192, &files, &[]);
    let initrd = look(&disk, Wanted::Kernel).initrd.unwrap();
    assert_eq!(content(&disk, &initrd), b"12345\0\0\0abcdxyz");
    assert_eq!(initrd.path, "/boot/a.img + /boot/b.img + /boot/c.img");
}

#[test]
fn what_fstab_mounts_over_boot_wins_over_the_roots_own_boot() {
    let boot = ext4(2048, &[("vmlinuz-5", b"mounted"), ("initrd.img-5", b"i")], &["-L", "boot"]);
    let files = with(
        &[&KERNELS[..], &[("etc/fstab", b"# /dev/vda1 /boot\nLABEL=boot /boot ext4 defaults 0 2\n")]]
            .concat(),
    );
    let disk = gpt(512, &[(1, LINUX, &ext4(8192, &files, &[])), (2, LINUX, &boot)]);
    let found = look(&disk, Wanted::Kernel);
    assert_eq!(content(&disk, &found.kernel.unwrap()), b"mounted");
}

#[test]
fn entry_that_names_what_is_missing_is_passed_over_with_a_note() {
    let cfg = b"menuentry 'D' {\n linux /boot/vmlinuz-6.1.0-9-amd64\n initrd /boot/gone\x1b[2J\n}\n";
    let files = with(&[&KERNELS[..], &[("boot/grub/grub.cfg", cfg)]].concat());
    let found = look(&ext4(8192, &files, &[]), Wanted::Kernel);
    assert_eq!((found.kernel.unwrap().path.as_str(), found.entry), ("/boot/vmlinuz-6.1.0-25-amd64", None));
    let note = "/boot/grub/grub.cfg on the whole disk names /boot/gone?[2J, which is not there or empty";
    assert_eq!(found.notes, [note]);
}

#[test]
fn names_from_an_image_hold_no_control_characters() {
    let cfg = b"menuentry 'D\x1b[2J\n' {\n linux '/boot/vmlinuz-\x1b\n'\n}\n";
    let files = with(&[("boot/vmlinuz-\x1b\n", b"kernel"), ("boot/grub/grub.cfg", cfg)]);
    let found = look(&ext4(8192, &files, &[]), Wanted::Kernel);
    assert_eq!(found.entry.unwrap().0, "/boot/grub/grub.cfg (D?[2J?)");
    assert_eq!(found.kernel.unwrap().path, "/boot/vmlinuz-??");
}

#[test]
fn installed_system_is_the_root_before_a_rescue_system() {
    let root = ext4(8192, &with(&KERNELS), &[]);
    for rescue in ["bin/sh", "init"] {
        let rescue = ext4(2048, &[(rescue, b"x"), ("etc/x", b"")], &["-t", "ext2"]);
        let found = look(&gpt(512, &[(1, LINUX, &rescue), (2, LINUX, &root)]), Wanted::Kernel);
        assert_eq!(found.root.unwrap().1, "partition 2");
        let alone = look(&gpt(512, &[(1, LINUX, &rescue)]), Wanted::Kernel);
        assert_eq!(alone.root.unwrap().1, "partition 1");
        let said = "it has 1 partition (GPT); partition 1 is ext2 with a root file system";
        assert!(alone.looked.starts_with(said), "{}", alone.looked);
    }
}

/// A file of many pieces under 200 names: its pieces are mapped at most once, and not at all if it is too
/// long.
#[test]
fn many_names_of_one_long_file_cost_no_more_than_one() {
    let folder = tempfile::tempdir().unwrap();
    let [image, script] = ["image", "script"].map(|name| folder.path().join(name));
    let content = vec![7; 1 << 20];
    let files = with(&[("boot/vmlinuz-1.0", &content)]);
    // Without extents each block is a piece.
    std::fs::write(&image, ext4(8192, &files, &["-b", "1024", "-O", "^extent,^64bit"])).unwrap();
    let room = vec!["expand_dir /boot".to_owned(); 8];
    let names = (0..200).map(|name| format!("ln /boot/vmlinuz-1.0 /boot/vmlinuz-2.{name}"));
    let mut commands: Vec<_> = room.into_iter().chain(names).collect();
    for size in [200_u64 << 20, 300 << 20] {
        commands.push(format!("set_inode_field /boot/vmlinuz-1.0 size {size}"));
        std::fs::write(&script, commands.join("\n")).unwrap();
        debugfs(&image, &["-w", "-f", script.to_str().unwrap()]);
        let bytes = Bytes(std::fs::read(&image).unwrap());
        let budget = Budget::new();
        let disk = Disk::new(&bytes, 512, &budget).unwrap();
        let kernel = explore(&disk, Wanted::Kernel).unwrap().kernel.unwrap();
        assert_eq!((kernel.path.as_str(), kernel.size), ("/boot/vmlinuz-2.199", size));
        assert_eq!(kernel.runs.is_empty(), size > 256 << 20);
        assert!(budget.spent() < 2 << 20, "{}", budget.spent());
        commands.clear();
    }
}

#[test]
fn grubs_short_script_on_an_esp_leads_to_the_other_file_system() {
    let cfg = "menuentry 'D' {\n search --set=root --label roots\n linux /k ro\n initrd /sub/i\n}\n";
    let options = ["-U", "01234567-89ab-cdef-0123-456789abcdef", "-L", "roots"];
    let files = with(&[("k", b"kernel"), ("sub/i", b"initrd"), ("odd/grub.cfg", cfg.as_bytes())]);
    let root = ext4(4096, &files, &options);
    let stub = |uuid: &str| {
        format!(
            "search.fs_uuid {uuid} root hd0,gpt2\nset prefix=($root)'/odd'\nconfigfile $prefix/grub.cfg\n"
        )
    };
    // A file of the same name on the EFI system partition must not be taken.
    let disk = |uuid: &str| {
        let stub = stub(uuid);
        let esp = fat(16, 4096, &[("EFI/debian/grub.cfg", stub.as_bytes()), ("k", b"wrong")]);
        gpt(512, &[(1, EFI, &esp), (2, LINUX, &root)])
    };
    let whole = disk("01234567-89AB-cdef-0123-456789abcdef");
    let found = look(&whole, Wanted::Kernel);
    assert_eq!(content(&whole, &found.kernel.unwrap()), b"kernel");
    assert_eq!(content(&whole, &found.initrd.unwrap()), b"initrd");
    assert_eq!(found.entry.unwrap().0, "/EFI/debian/grub.cfg (D)");
    assert!(
        found.looked.contains("partition 1 is FAT, the EFI system partition; partition 2"),
        "{}",
        found.looked
    );
    let found = look(&disk("1"), Wanted::Kernel);
    assert_eq!(found.kernel, None);
    let note = "/EFI/debian/grub.cfg on partition 1 is not followed: it shows no entry, and the file system 1 that it looks for \
                cannot be read here";
    assert_eq!(found.notes, [note]);
}

#[test]
fn unified_kernel_image_is_named() {
    let disk = gpt(512, &[(1, EFI, &fat(16, 4096, &[("EFI/Linux/arch.efi", b"MZ"), ("EFI/Linux/x", b"x")]))]);
    let note = "/EFI/Linux/arch.efi on partition 1 is a unified kernel image, which is not read here";
    assert_eq!(look(&disk, Wanted::Kernel).notes, [note]);
}

#[test]
fn entry_that_starts_an_efi_program_is_named() {
    let entry = ("boot/loader/entries/arch.conf", &b"title Arch\nefi /EFI/Linux/arch.efi\n"[..]);
    let note = "/boot/loader/entries/arch.conf on the whole disk starts the EFI program /EFI/Linux/arch.efi, which is not read here";
    assert_eq!(look(&ext4(4096, &with(&[entry]), &[]), Wanted::Kernel).notes, [note]);
}

#[test]
fn root_without_a_kernel_is_told_once_with_all_names_of_kernels() {
    let looked = look(&ext4(4096, &with(&[]), &[]), Wanted::Kernel).looked;
    let (root, kernel) = looked.split_once("; ").unwrap();
    assert_eq!(root, "the whole disk is ext4 with a root file system");
    assert!(
        kernel.starts_with("it has no kernel (vmlinuz-VERSION, kernel-VERSION, ") && !kernel.contains(';'),
        "{kernel}"
    );
    assert!(
        kernel.ends_with(" or one named vmlinuz, bzImage, kernel, vmlinux) in its /boot or at its top"),
        "{kernel}"
    );
}

#[test]
fn entry_with_an_empty_initrd_starts_without_it() {
    let cfg = b"menuentry 'D' {\n linux /boot/vmlinuz-6 ro\n initrd /boot/ucode /boot/initrd-6\n}\n";
    let files = with(&[
        ("boot/vmlinuz-6", b"kernel"),
        ("boot/initrd-6", b""),
        ("boot/ucode", b"u"),
        ("boot/grub/grub.cfg", cfg),
    ]);
    let found = look(&ext4(4096, &files, &[]), Wanted::Kernel);
    assert_eq!(found.initrd.unwrap().path, "/boot/ucode");
    assert!(found.entry.is_some());
    let note =
        "/boot/grub/grub.cfg on the whole disk names the empty initrd /boot/initrd-6, which is left out";
    assert_eq!(found.notes, [note]);
}

#[test]
fn fstab_may_mount_boot_by_any_name() {
    let boot = fat(16, 4096, &[("vmlinuz-5", b"mounted"), ("initrd.img-5", b"i")]);
    for device in [
        "PARTLABEL=part2",
        "/dev/disk/by-partlabel/part2",
        "UUID=1234-ABCD",
        "LABEL=ESP",
        "/dev/sda2",
        "PARTUUID=02020202-0202-0202-0202-020202020202",
    ] {
        let fstab = format!("{device} /boot vfat defaults 0 2\n");
        let files = with(&[&KERNELS[..], &[("etc/fstab", fstab.as_bytes())]].concat());
        let disk = gpt(512, &[(1, LINUX, &ext4(4096, &files, &[])), (2, EFI, &boot)]);
        let found = look(&disk, Wanted::Kernel);
        assert_eq!(content(&disk, &found.kernel.unwrap()), b"mounted", "{device}: {:?}", found.notes);
    }
}

/// The work of a start on this disk: a survey and a search.
fn steps(disk: Vec<u8>) -> u64 {
    let budget = Budget::new();
    let bytes = Bytes(disk);
    let disk = Disk::new(&bytes, 512, &budget).unwrap();
    let _ = Survey::of(&disk);
    let _ = explore(&disk, Wanted::Kernel);
    budget.spent()
}

/// An image whose journal has newer contents of this many blocks of a file.
fn long_journal(blocks: usize) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let [path, new, commands] = ["image", "new", "commands"].map(|name| folder.path().join(name));
    let file = vec![7; blocks * 1024];
    let size = ["-b", "1024", "-J", "size=8"];
    std::fs::write(&path, ext4(24 << 10, &with(&[&KERNELS[..], &[("f", &file)]].concat()), &size)).unwrap();
    let first: usize = debugfs(&path, &["-R", "bmap f 0"]).trim().parse().unwrap();
    std::fs::write(&new, vec![8; blocks * 1024]).unwrap();
    let text = format!("jo\njw -b {first}-{} {}\njc\n", first + blocks - 1, new.display());
    std::fs::write(&commands, text).unwrap();
    debugfs(&path, &["-w", "-f", commands.to_str().unwrap()]);
    std::fs::read(&path).unwrap()
}

#[test]
fn twice_the_image_costs_at_most_about_twice_the_steps() {
    let folder_of = |names: usize| {
        let names: Vec<String> = (0..names).map(|n| format!("boot/vmlinuz-1.{n}")).collect();
        let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"k"[..])).collect();
        ext4(8192, &with(&files), &["-b", "1024"])
    };
    let chain_of = |links: usize| {
        let mut disk = vec![0; 4 << 20];
        mbr_entry(&mut disk, 0, 1, 5, 8, 8000);
        for link in 0..links {
            mbr_entry(&mut disk, (8 + link * 8) * 512, 0, 0x83, 1, 2);
            mbr_entry(&mut disk, (8 + link * 8) * 512, 1, 5, ((link + 1) * 8) as u32, 8);
        }
        disk
    };
    let script_of = |lines: usize| {
        let cfg = "search --set=root --label none\nset a=\"$a$b\"\n".repeat(lines);
        ext4(8192, &with(&[&KERNELS[..], &[("boot/grub/grub.cfg", cfg.as_bytes())]].concat()), &[])
    };
    let fat_of = |names: usize| {
        let names: Vec<String> = (0..names).map(|n| format!("loader/entries/{n}.conf")).collect();
        let files: Vec<(&str, &[u8])> =
            names.iter().map(|name| (name.as_str(), &b"linux /none"[..])).collect();
        fat(16, 4096, &files)
    };
    for (what, one, two) in [
        ("journal", steps(long_journal(2000)), steps(long_journal(4000))),
        ("names", steps(folder_of(400)), steps(folder_of(800))),
        ("partitions", steps(chain_of(50)), steps(chain_of(100))),
        ("script", steps(script_of(200)), steps(script_of(400))),
        ("entries", steps(fat_of(30)), steps(fat_of(60))),
    ] {
        assert!(two <= one * 9 / 4, "{what}: {one} steps, and {two} for twice as much");
        assert!(two > 1 << 19 && two < 256 << 20, "{what}: {two} steps");
    }
}

/// An image as the fuzzer's input: its nonzero blocks of 1 KiB, each after its number.
fn packed(image: &[u8]) -> Vec<u8> {
    let blocks = (0_u16..).zip(image.chunks(1024)).filter(|(_, block)| block.iter().any(|byte| *byte != 0));
    blocks.flat_map(|(number, block)| [&number.to_le_bytes()[..], block].concat()).collect()
}

fn unpacked(seed: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 4 << 20];
    for part in seed.chunks(1026) {
        let (number, block) = part.split_first_chunk().unwrap();
        image[usize::from(u16::from_le_bytes(*number)) * 1024..][..block.len()].copy_from_slice(block);
    }
    image
}

/// The seeds of the fuzz target `image_explore`. mke2fs is not reproducible, so they are written if
/// `MINIVMM_WRITE_SEEDS` is set, and not compared.
fn write_seeds(folder: &std::path::Path) {
    let small = ["-b", "1024", "-N", "64", "-O", "^has_journal,^resize_inode"];
    let cfg = b"menuentry 'D' {\n linux /boot/vmlinuz-6.1.0-9-amd64 ro\n initrd /boot/initrd.img-6.1.0-9-amd64\n}\n";
    let entry = b"version 1\nlinux /boot/vmlinuz-6.1.0-9-amd64\ninitrd /boot/initrd.img-6.1.0-9-amd64\n";
    let esp: [(&str, &[u8]); 3] = [
        (
            "EFI/debian/grub.cfg",
            b"search --set=root --file /boot/vmlinuz-6.1.0-9-amd64\nconfigfile /grub.cfg\n",
        ),
        ("loader/loader.conf", b"default a*\n"),
        ("loader/entries/a.conf", entry),
    ];
    let plain = ext4(1024, &with(&KERNELS), &small);
    let grub = ext4(1024, &with(&[&KERNELS[..], &[("boot/grub/grub.cfg", cfg)]].concat()), &small);
    let bls = ext4(1024, &with(&[&KERNELS[..], &[("boot/loader/entries/a.conf", entry)]].concat()), &small);
    let mut mbr = vec![0; 1 << 20];
    mbr_entry(&mut mbr, 0, 1, 5, 1024, 7000);
    mbr_entry(&mut mbr, 512 << 10, 0, 0x83, 1024, 2048);
    mbr.extend(&grub);
    mbr.resize(4 << 20, 0);
    let seeds = [
        ("ext4", plain),
        ("journal", unclean(&with(&KERNELS))),
        ("gpt", gpt(512, &[(1, LINUX, &bls), (2, LVM, b"LABELONE")])),
        ("mbr", mbr),
        ("fat", gpt(512, &[(1, EFI, &fat(12, 512, &esp)), (2, LINUX, &bls)])),
    ];
    for (name, image) in seeds {
        std::fs::write(folder.join(name), packed(&image)).unwrap();
    }
}

#[test]
fn fuzz_seeds_lead_to_a_kernel() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/image_explore");
    if std::env::var_os("MINIVMM_WRITE_SEEDS").is_some() {
        write_seeds(&folder);
    }
    for name in ["ext4", "journal", "gpt", "mbr", "fat"] {
        let seed = std::fs::read(folder.join(name)).unwrap();
        let found = look(&unpacked(&seed), Wanted::Kernel);
        assert!(
            found.kernel.is_some() && found.initrd.is_some() && found.root.is_some(),
            "{name}: {found:?}"
        );
    }
}
