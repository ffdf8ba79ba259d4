//! An overview of a disk from a few bytes of each part: which parts could be Linux's root, their names, and
//! identifiers that two copies of a disk share.

use super::disk::{Disk, ReadError, Window};
use super::partitions::{self, Kind, Partition};
use super::signatures::{self, BTRFS, EXT, LVM, RootUse, XFS};
use super::unclean;

/// The parts of a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    parts: Vec<Part>,
}

/// A partition, or the whole disk.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    /// 0 is the whole disk.
    number: u32,
    /// Its `PARTUUID` and `PARTLABEL` in Linux.
    uuid: Option<String>,
    label: String,
    /// Its kind.
    kind: Option<(&'static str, RootUse)>,
    /// The UUID of its ext file system.
    ext: Option<[u8; 16]>,
    /// The UUID and the label of its file system, if known.
    names: Vec<Vec<u8>>,
    /// The options with which Linux mounts it although its log has to be replayed.
    replay: Option<&'static str>,
    /// An image or an archive, which has to be converted or unpacked first.
    is_wrapped: bool,
}

/// The root file system, as far as the first disk shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Root {
    /// The value of `root=`, and its location in words.
    Is(String, String),
    /// It may be here, and its name cannot be known.
    Unknown(String),
    /// There is none.
    No,
}

impl Survey {
    /// Reads the beginning of each part of a disk.
    pub(crate) fn of(disk: &Disk<'_>) -> Result<Self, ReadError> {
        let mut parts = Vec::new();
        for partition in partitions::read(disk)?.map(|(_, all)| all).unwrap_or_default() {
            let mut part = Part::of(disk, partition.window, Some(&partition));
            match partition.kind {
                Kind::Efi => part.kind = Some(("the EFI system partition", RootUse::Never)),
                Kind::Lvm => part.kind = part.kind.or(Some((LVM, RootUse::Container))),
                Kind::Other => {}
            }
            parts.push(part);
        }
        if parts.is_empty() {
            parts.push(Part::of(disk, disk.whole(), None));
        }
        Ok(Survey { parts })
    }

    /// The part that is the root, if that can be known from here.
    pub(crate) fn root(&self) -> Root {
        let with =
            |wanted| self.parts.iter().filter(move |part| part.kind.is_some_and(|(_, use_)| use_ == wanted));
        let roots: Vec<_> = with(RootUse::Possible).collect();
        if let Some(part) = with(RootUse::Container).next() {
            return Root::Unknown(format!("{} is {}", part.place(), part.kind_name()));
        }
        match roots.as_slice() {
            [] => match self.parts.iter().find(|part| part.is_wrapped) {
                Some(part) => Root::Unknown(format!(
                    "{} is {}, which no kernel can mount",
                    part.place(),
                    part.kind_name()
                )),
                None => Root::No,
            },
            [part] => {
                let device =
                    part.uuid.as_ref().map_or_else(|| part.device(), |uuid| format!("PARTUUID={uuid}"));
                Root::Is(device, format!("{} ({})", part.place(), part.kind_name()))
            }
            several => {
                let places: Vec<_> = several.iter().map(|part| part.place()).collect();
                Root::Unknown(format!("each of {} could be it", places.join(", ")))
            }
        }
    }

    /// The part that `root=` names, if its name is known.
    fn called(&self, root: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.is_called(root))
    }

    /// The device of a value of `root=`.
    pub(crate) fn device(&self, root: &str) -> Option<String> {
        self.called(root).map(Part::device)
    }

    /// Whether it is known that no part of this disk has this `root=`.
    pub(crate) fn lacks(&self, root: &str) -> bool {
        if self.parts.is_empty() || self.called(root).is_some() {
            return false;
        }
        let is_known =
            |part: &Part| part.ext.is_some() || part.kind.is_none_or(|(_, usage)| usage == RootUse::Never);
        match root.split_once('=') {
            // Another partition, relative to a named one.
            Some((_, value)) if value.contains('/') => false,
            Some(("PARTUUID" | "PARTLABEL", _)) => true,
            // The UUIDs of file systems are only known for ext.
            Some(("UUID", _)) => self.parts.iter().all(is_known),
            Some(_) => false,
            None => root.strip_prefix("/dev/vda").is_some_and(|number| number.parse::<u32>().is_ok()),
        }
    }

    /// Whether the two share the identifier of a partition, or the UUID or the label of a file system.
    pub(crate) fn is_twin(&self, other: &Survey) -> bool {
        self.parts.iter().any(|one| {
            other.parts.iter().any(|other| {
                let named = |name: &&Vec<u8>| other.kind == one.kind && other.names.contains(*name);
                one.uuid.is_some() && one.uuid == other.uuid || one.names.iter().any(|name| named(&name))
            })
        })
    }

    /// The options with which Linux mounts this `root=` without replaying its log, if the log is not empty.
    pub(crate) fn replay_words(&self, root: &str) -> Option<&'static str> {
        let called = self.called(root);
        // The UUIDs of file systems are only known for ext.
        let unknown = called.is_none() && root.starts_with("UUID=");
        let others = self.parts.iter().filter(|part| unknown && part.ext.is_none());
        called.into_iter().chain(others).find_map(|part| part.replay)
    }
}

/// The UUID and the label of a file system, if they are known; zeros mean none.
fn uuid_and_label(disk: &Disk<'_>, window: Window, kind: &str) -> [Option<Vec<u8>>; 2] {
    let fields: [(u64, usize); 2] = match kind {
        EXT => [(1024 + 0x68, 16), (1024 + 0x78, 16)],
        XFS => [(32, 16), (108, 12)],
        BTRFS => [(0x1_0020, 16), (0x1_012b, 256)],
        _ => return [None, None],
    };
    fields.map(|(at, len)| {
        let mut name = vec![0; len];
        disk.read(window, at, &mut name, "its superblock").ok()?;
        name.iter().any(|byte| *byte != 0).then_some(name)
    })
}

impl Part {
    fn of(disk: &Disk<'_>, window: Window, partition: Option<&Partition>) -> Self {
        let signature = signatures::identify(disk, window);
        let kind = signature.map(|signature| (signature.name, signature.usage));
        let [uuid, label] = kind.map_or([None, None], |(name, _)| uuid_and_label(disk, window, name));
        let ext = uuid.as_deref().filter(|_| kind.is_some_and(|(name, _)| name == EXT));
        Part {
            number: partition.map_or(0, |partition| partition.number),
            uuid: partition.map(|partition| partition.uuid.clone()),
            label: partition.map(|partition| partition.label.clone()).unwrap_or_default(),
            kind,
            is_wrapped: signature
                .is_some_and(|signature| signature.usage == RootUse::Never && !signature.cure.is_empty()),
            ext: ext.and_then(|uuid| uuid.try_into().ok()),
            names: [uuid, label].into_iter().flatten().collect(),
            replay: kind.and_then(|(name, _)| unclean::words(disk, window, name)),
        }
    }

    /// Its kind, for people.
    fn kind_name(&self) -> &'static str {
        self.kind.map_or("", |(name, _)| name)
    }

    /// Whether this value of `root=` names this part, to Linux or an initrd.
    fn is_called(&self, root: &str) -> bool {
        let hex = |bytes: [u8; 16]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        match root.split_once('=') {
            Some(("PARTUUID", uuid)) => self.uuid.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(uuid)),
            Some(("PARTLABEL", label)) => !label.is_empty() && self.label == label,
            Some(("UUID", uuid)) => {
                self.ext.is_some_and(|own| hex(own).eq_ignore_ascii_case(&uuid.replace('-', "")))
            }
            _ => self.device() == root,
        }
    }

    fn device(&self) -> String {
        if self.number == 0 { "/dev/vda".into() } else { format!("/dev/vda{}", self.number) }
    }

    fn place(&self) -> String {
        if self.number == 0 { "the whole disk".into() } else { format!("partition {}", self.number) }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::image::testing::{LINUX, LVM, ext4, gpt, unclean, with_disk};

    pub(in crate::image) fn survey(disk: &[u8]) -> Survey {
        with_disk(disk, |disk| Survey::of(disk).unwrap())
    }

    fn marked(at: usize, signature: &[u8]) -> Vec<u8> {
        let mut disk = vec![0; 256 << 10];
        disk[at..at + signature.len()].copy_from_slice(signature);
        disk
    }

    #[test]
    fn file_system_over_a_whole_disk_is_the_root() {
        for signature in signatures::SIGNATURES {
            let disk = marked(usize::try_from(signature.at).unwrap(), signature.bytes);
            let (name, root) = (signature.name, survey(&disk).root());
            match signature.usage {
                RootUse::Possible => {
                    assert_eq!(root, Root::Is("/dev/vda".into(), format!("the whole disk ({name})")));
                }
                RootUse::Container => assert!(matches!(root, Root::Unknown(_)), "{name}: {root:?}"),
                RootUse::Never => assert!(!matches!(root, Root::Is(..)), "{name}: {root:?}"),
            }
        }
        assert_eq!(survey(&[0; 4096]).root(), Root::No);
    }

    #[test]
    fn one_partition_that_can_be_a_root_is_it_and_of_several_none() {
        let (xfs, fat) = (marked(0, b"XFSB"), marked(0x52, b"FAT32"));
        let one = survey(&gpt(512, &[(1, LINUX, &fat), (2, LINUX, &xfs)]));
        assert!(matches!(one.root(), Root::Is(root, _) if root.starts_with("PARTUUID=02020202-")));
        let several = survey(&gpt(512, &[(1, LINUX, &xfs), (2, LINUX, &xfs)]));
        assert!(matches!(several.root(), Root::Unknown(said) if said.contains("partition 1, partition 2")));
        let lvm = survey(&gpt(512, &[(1, LINUX, &xfs), (2, LVM, b"x")]));
        assert!(matches!(lvm.root(), Root::Unknown(said) if said.contains("partition 2 is LVM")));
    }

    #[test]
    fn copies_of_a_disk_are_known_and_other_disks_are_not() {
        let file_system = ext4(2048, &[("x", b"1")], &[]);
        let whole = survey(&file_system);
        assert!(whole.is_twin(&survey(&gpt(512, &[(3, LINUX, &file_system)]))));
        assert!(!whole.is_twin(&survey(&ext4(2048, &[("x", b"1")], &[]))));
        let disk = survey(&gpt(512, &[(1, LINUX, b"x")]));
        // Two systems from one template may share labels.
        let labelled = |label: &str| survey(&ext4(2048, &[("x", b"1")], &["-L", label]));
        assert!(labelled("root").is_twin(&labelled("root")) && !labelled("root").is_twin(&labelled("boot")));
        for (signature, at, name) in [
            (&b"XFSB"[..], 0, 32),
            (b"XFSB", 0, 108),
            (b"_BHRfS_M", 0x1_0040, 0x1_0020),
            (b"_BHRfS_M", 0x1_0040, 0x1_012b),
        ] {
            let named = |sign: u8| {
                let mut disk = marked(at, signature);
                disk[name] = sign;
                survey(&disk)
            };
            assert!(
                named(7).is_twin(&named(7)) && !named(7).is_twin(&named(8)) && !named(0).is_twin(&named(0))
            );
        }
        assert!(disk.is_twin(&disk) && !disk.is_twin(&survey(&[0; 4096])));
        assert_eq!(
            disk.device("PARTUUID=01010101-0101-0101-0101-010101010101").as_deref(),
            Some("/dev/vda1")
        );
    }

    #[test]
    fn a_root_that_no_part_has_is_known_where_all_names_are() {
        let file_system = ext4(2048, &[("x", b"1")], &[]);
        let disk = survey(&gpt(512, &[(2, LINUX, &file_system)]));
        for root in ["/dev/vda1", "PARTUUID=1-2", "PARTLABEL=none", "UUID=1111-2222"] {
            assert!(disk.lacks(root), "{root}");
        }
        for root in [
            "/dev/vda2",
            "/dev/vdb1",
            "PARTLABEL=part2",
            "LABEL=x",
            "PARTUUID=1-2/PARTNROFF=1",
            "/dev/mapper/x",
        ] {
            assert!(!disk.lacks(root), "{root}");
        }
        assert!(survey(&file_system).lacks("/dev/vda1"));
        let xfs = survey(&marked(0, b"XFSB"));
        assert!(!xfs.lacks("UUID=1111-2222"), "its own UUID is not known");
    }

    #[test]
    fn archives_are_no_root() {
        let packed = survey(&marked(0, b"\xfd7zXZ\0")).root();
        assert!(matches!(&packed, Root::Unknown(said) if said.contains("packed with xz")), "{packed:?}");
    }

    #[test]
    fn journal_to_be_replayed_is_seen() {
        let disk = unclean(&[("etc/x", b"")]);
        assert_eq!(survey(&disk).replay_words("/dev/vda"), Some("rootflags=noload"));
        let uuid: String = disk[1024 + 0x68..][..16].iter().map(|byte| format!("{byte:02x}")).collect();
        let parted = survey(&gpt(512, &[(2, LINUX, &disk)]));
        for root in ["PARTLABEL=part2", "/dev/vda2", &format!("UUID={uuid}")] {
            assert_eq!(parted.replay_words(root), Some("rootflags=noload"), "{root}");
        }
        for root in ["PARTLABEL=part1", "PARTLABEL=", "/dev/vda1", "UUID=0"] {
            assert_eq!(parted.replay_words(root), None, "{root}");
        }
        assert_eq!(parted.device("PARTLABEL=part2").as_deref(), Some("/dev/vda2"));
        assert_eq!(survey(&ext4(2048, &[("etc/x", b"")], &[])).replay_words("/dev/vda"), None);
    }
}
