//! Disk images of each format: made before a machine starts, and read after a power cut, by QEMU's tools.

use std::fs;
use std::path::Path;
use std::process::Command;

use tiny_guest::plan::SECTORS;

use super::promise::base;
use super::recording::Folder;

/// What a disk's file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Raw,
    /// With clusters of so many bytes.
    Qcow2(u32),
    /// A qcow2 image on a raw base, or on a qcow2 image on such a base.
    Overlay(u32),
    Chain(u32),
    /// An overlay that is not there before the machine starts, which makes it.
    Made,
}

/// Why an image cannot be read that was made just now.
pub(crate) const NO_NAME: &str = "the image has no name";

/// The names of the base, the image between, and the disk.
const BASE: &str = "base.raw";
const MIDDLE: &str = "middle.qcow2";

impl Format {
    pub(crate) fn name(self) -> &'static str {
        if self == Format::Raw { "disk.raw" } else { "disk.qcow2" }
    }

    pub(crate) fn on_base(self) -> bool {
        matches!(self, Format::Overlay(_) | Format::Chain(_) | Format::Made)
    }

    /// What a machine is told of the disk in this folder.
    pub(crate) fn disk(self, folder: &Path) -> String {
        let disk = folder.join(self.name());
        match self {
            Format::Made => format!("{},overlay={}", folder.join(BASE).display(), disk.display()),
            _ => disk.display().to_string(),
        }
    }

    /// The files of an empty disk.
    pub(crate) fn make(self) -> Folder {
        let mut folder = Folder::default();
        let size = usize::try_from(SECTORS * 512).unwrap();
        let at = tempfile::tempdir().unwrap();
        let create = |cluster: u32, name: &str, below: Option<(&str, &str)>| {
            let options = format!("cluster_size={cluster}");
            let mut words = vec!["create", "-q", "-f", "qcow2", "-o", &options];
            if let Some((name, format)) = below {
                words.extend(["-b", name, "-F", format]);
            }
            let size = size.to_string();
            words.extend([name, &size]);
            qemu_img(at.path(), &words).unwrap();
            fs::read(at.path().join(name)).unwrap()
        };
        if self.on_base() {
            fs::write(at.path().join(BASE), base()).unwrap();
            folder.add(BASE, base());
        }
        let content = match self {
            Format::Made => return folder,
            Format::Raw => vec![0; size],
            Format::Qcow2(cluster) => create(cluster, self.name(), None),
            Format::Overlay(cluster) => create(cluster, self.name(), Some((BASE, "raw"))),
            Format::Chain(cluster) => {
                folder.add(MIDDLE, create(cluster, MIDDLE, Some((BASE, "raw"))));
                create(cluster, self.name(), Some((MIDDLE, "qcow2")))
            }
        };
        folder.add(self.name(), content);
        folder
    }

    /// What the disk reads as, or what is wrong with its image. Clusters that nothing refers to are nothing wrong.
    pub(crate) fn read(self, folder: &Folder) -> Result<Vec<u8>, String> {
        let file = folder.file(self.name()).ok_or(NO_NAME)?;
        if self == Format::Raw {
            return Ok(file.clone());
        }
        let at = tempfile::tempdir().unwrap();
        for (name, node) in &folder.names {
            fs::write(at.path().join(str::from_utf8(name).unwrap()), &folder.files[node]).unwrap();
        }
        qemu_img(at.path(), &["check", "-q", "-f", "qcow2", self.name()])?;
        qemu_img(at.path(), &["convert", "-f", "qcow2", "-O", "raw", self.name(), "read"])?;
        Ok(fs::read(at.path().join("read")).unwrap())
    }
}

/// Runs `qemu-img`; leaked clusters (status 3 of `check`) are none of its errors.
fn qemu_img(folder: &Path, words: &[&str]) -> Result<(), String> {
    let ran = Command::new("qemu-img").args(words).current_dir(folder).output();
    let ran = ran.map_err(|error| format!("{error}: qemu-img is in the package qemu-utils"))?;
    let said = [ran.stdout, ran.stderr]
        .map(|said| String::from_utf8_lossy(&said).chars().take(500).collect::<String>());
    match ran.status.code() {
        Some(0 | 3) => Ok(()),
        status => Err(format!("qemu-img {}: status {status:?}: {}", words.join(" "), said.concat())),
    }
}
